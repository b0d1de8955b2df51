"""An address that is taken is read the same by all libraries; any other is refused in the constructor."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
import pytest

import windback
from windback.api.endpoints import Request
from windback.base_url import base_url
from windback.config import resolve
from windback.http.wire import Wire

#: Each with what the error says.
REFUSED = {
    "HTTPS://api.example.com/v1": "must begin in lower case: https://api",
    "Http://localhost/v1": "must begin in lower case: http://localhost",
    "http://127.999.999.999/v1": "neither a name nor an address",
    "http://127.0.0.256/v1": "neither a name nor an address",
    "http://127.1/v1": "neither a name nor an address",
    "http://0x7f000001/v1": "neither a name nor an address",
    "https://2130706433/v1": "neither a name nor an address",
    "https://0x7f.1/v1": "neither a name nor an address",
    "https://127.0.0.01/v1": "neither a name nor an address",
    "https://127.0.0.1./v1": "neither a name nor an address",
    "http://[::1]x/v1": "must look like",
    "http://[::1]x:80/v1": "must look like",
    "http://x[::1]/v1": "must look like",
    "http://[::1]@evil.example/v1": "must not contain credentials",
    "http://[::1%25eth0]/v1": "must look like",
    "http://[::1/v1": "must look like",
    "http://::1/v1": "must look like",
    "http://[12345::1]/v1": "neither a name nor an address",
    "http://[:::]/v1": "neither a name nor an address",
    "https://[v1.x]/v1": "must look like",
    "https://good.example\\@evil.example/v1": "must not contain credentials",
    "https://good.example\\.evil.example/v1": "must look like",
    "https:\\\\good.example/v1": "must look like",
    "https:/good.example/v1": "must look like",
    "https:///good.example/v1": "must look like",
    "//good.example/v1": "must look like",
    "https://good.example:443:80/v1": "must look like",
    "https://good.example:/v1": "must look like",
    "https://good.example:0/v1": "ports go from 1 to 65535",
    "https://good.example:65536/v1": "ports go from 1 to 65535",
    "https://good.example:+443/v1": "must look like",
    "https://good.example%2eevil.example/v1": "must look like",
    "https://good.example/v1/%2e%2e": "must look like",
    "https://good.example/v1/../..": "write the path that is meant",
    "https://good.example/./v1": "write the path that is meant",
    "https://good.example//v1": "must look like",
    "https://good.example/v1?": "must not have a query",
    "https://good.example/v1#": "must not have a query",
    "https://good.example;x/v1": "must look like",
    "https://good..example/v1": "neither a name nor an address",
    "https://.good.example/v1": "neither a name nor an address",
    "https://-good.example/v1": "neither a name nor an address",
    "https://good.example,evil.example/v1": "must look like",
    " https://good.example/v1": "contains a space",
    "https://good.example/v1\n": "contains a space",
    "https://good.\texample/v1": "contains a space",
    "https://good.example/v1\x00": "contains a space",
    "https://g\u2024example/v1": "contains a space or a non-ASCII character",
    "https://g\u00fcnther.example/v1": "contains a space or a non-ASCII character",
    "https://good\uff0eexample/v1": "contains a space or a non-ASCII character",
    "javascript://good.example/v1": "must look like",
    "https://": "must look like",
    "https": "must look like",
    "": "must look like",
}

TAKEN = [
    *("https://api.example.com", "https://api.example.com/", "https://api.example.com:8443/api/v1/"),
    *("https://API.Example.com/V1", "https://my_service/v1", "https://xn--gnther-3ya.example/v1"),
    *("https://10.0.0.1/v1", "https://[2001:db8::1]:8443/v1", "https://[::ffff:127.0.0.1]/v1"),
    *("https://example.com./v1", "https://example.com/~me/v1,2;a=b", "https://1.example/v1"),
    *("http://localhost:8787/api/v1", "http://LOCALHOST/v1", "http://127.0.0.1:1", "http://[::1]:8787/v1"),
    "http://127.255.255.254/v1",
]


@pytest.mark.parametrize("make", [windback.Windback, windback.AsyncWindback])
@pytest.mark.parametrize(("url", "message"), REFUSED.items())
def test_an_address_that_could_be_read_in_two_ways_is_refused(make, url, message):
    with pytest.raises(windback.ConfigurationError) as caught:
        make("sk_test_1", base_url=url)
    assert message in str(caught.value)


@pytest.mark.parametrize("url", TAKEN)
def test_an_address_that_is_taken_is_read_the_same_by_all(url):
    taken = base_url(url)
    theirs, standard = httpx.URL(taken), urlsplit(taken)
    assert theirs.scheme == standard.scheme == taken.partition("://")[0]
    assert theirs.raw_host.decode().strip("[]") == standard.hostname
    assert theirs.port == standard.port
    assert theirs.path.rstrip("/") == standard.path.rstrip("/")
    assert not theirs.userinfo


@pytest.mark.parametrize("url", [*TAKEN, "https://example.com:443/v1", "http://localhost:080/v1"])
def test_batches_go_where_httpx_would_send_them(url):
    wire = Wire(resolve(is_async=False, api_key="sk_test_1", base_url=url))
    request = httpx.Request("POST", httpx.URL(base_url(url) + "/track"))
    headers = dict(wire.headers(Request("POST", "/track")))
    assert headers[b"Host"].decode() == request.headers["host"]
    assert wire.target(Request("POST", "/track")).encode() == request.url.raw_path
    assert wire.url(Request("GET", "/stats", query="a=b")) == f"{base_url(url)}/stats?a=b"


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(windback.ConfigurationError) as caught:
        windback.Windback("sk_test_1", base_url="https://user:s3cret@api.example.com\\x/v1")
    assert "s3cret" not in str(caught.value)
