"""Whatever is set as an address ends in a result or in a documented error, within bounded time.

Each test is a target of `make fuzz`, which feeds it new values for minutes. Here each gets a few, always the
same.
"""

from __future__ import annotations

import os
from unittest import mock
from urllib.parse import urlsplit

import httpx
import pytest
from fuzzing import (
    target,
    texts,
)
from hypothesis import strategies as st

from windback import ConfigurationError
from windback.config import resolve
from windback.http.proxy import route_to
from windback.secrets import BrokerAddress, broker_address

# -- Addresses -----------------------------------------------------------------------------------------

url_parts = st.sampled_from(
    [
        "http",
        "https",
        "HTTPS",
        "ftp",
        "redis",
        "rediss",
        "redis+sentinel",
        "redis+cluster",
        "://",
        ":",
        "/",
        "//",
        "@",
        "[",
        "]",
        "::1",
        "127.0.0.1",
        "127.999.1.1",
        "localhost",
        "api.example.com",
        "user",
        "pass",
        "#",
        "?",
        "%",
        "%2f",
        "\\",
        ".",
        "..",
        "65536",
        "80",
        "0",
        ",",
        " ",
        "\t",
        "é",
        "xn--a",
        "\u3002",
        "socks5",
        "*",
        "_",
        "mymaster",
        "a" * 300,
    ]
)
urls = st.one_of(
    texts,
    st.lists(url_parts, max_size=12).map("".join),
    st.lists(url_parts, max_size=6).map(lambda parts: "https://" + "".join(parts)),
    st.lists(url_parts, max_size=6).map(lambda parts: "http://" + "".join(parts)),
)


@pytest.mark.parametrize("host", ["xn--a", "XN--0", "www.xn--.com"])
def test_a_name_that_httpx_can_not_decode_is_refused(host):
    with pytest.raises(ConfigurationError, match="neither a name nor an address"):
        resolve(is_async=False, api_key="sk_test_1", base_url=f"https://{host}/api/v1")
    resolve(is_async=False, api_key="sk_test_1", base_url="https://xn--strae-oqa.example/api/v1")


@target(urls)
def test_base_url(url):
    try:
        config = resolve(is_async=False, api_key="sk_test_1", base_url=url)
    except ConfigurationError:
        return
    parsed = httpx.URL(config.base_url + "/track")  # what a request does with it
    mine = urlsplit(config.base_url)
    assert parsed.scheme in ("http", "https")
    assert parsed.host.lower() == (mine.hostname or "").lower()
    assert (parsed.port or {"http": 80, "https": 443}[parsed.scheme]) == (
        mine.port or {"http": 80, "https": 443}[mine.scheme]
    )
    assert not parsed.username
    if parsed.scheme == "http":
        assert parsed.host in ("localhost", "::1") or parsed.host.startswith("127.")


@target(urls.map(lambda url: url.replace("https://", "redis://")))
def test_broker_url(url):
    try:
        address = broker_address(url)
    except ConfigurationError:
        return
    assert isinstance(address, BrokerAddress)
    assert address.place
    assert 0 <= address.database < 10**9


@target(
    st.sampled_from(
        [
            "https://api.example.com/api/v1",
            "http://localhost:1/x",
            "https://[2001:db8::1]/x",
            "https://10.0.0.1/",
        ]
    ),
    st.dictionaries(
        st.sampled_from(["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"]),
        urls.filter(lambda text: "\0" not in text and text.isprintable() and text.isascii()),
    ),
)
def test_proxy(base_url, variables):
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with mock.patch.dict(os.environ, {**clean, **variables}, clear=True):
        route = route_to(base_url)
    if route.proxy is not None:
        httpx.Proxy(route.proxy)
    assert "localhost" not in base_url or route.proxy is None
