"""Nobody but the API gets the key: the certificate is verified before a byte of a request goes out.

The same for both ways of batches, and for plain calls.
"""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import sys
import threading
from contextlib import closing

import pytest
from raw_server import RawServer, response

from windback import Windback, WindbackConnectionError

if sys.version_info < (3, 9):
    pytest.skip("trustme needs 3.9", allow_module_level=True)

import trustme

KEY = "sk_test_0123456789abcdef"
NOW = dt.datetime.now(dt.timezone.utc)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def trust(authority, monkeypatch, tmp_path):
    """Trust the authority of these tests, as a user with SSL_CERT_FILE does."""
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(pem))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))


@pytest.fixture
def serve():
    """Start a server with a certificate, which answers as the API does."""
    servers = []

    def start(certificate):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        servers.append(RawServer(lambda connection, _: connection.sendall(response("200 OK")), context))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def track(url):
    with Windback(KEY, "shop", base_url=url, max_retries=0, timeout=10, shutdown_timeout=0) as client:
        assert client.track_event("login", "jane@example.com")
        result = client.flush()
        with pytest.raises(WindbackConnectionError) as caught:
            client.get_recovery_stats()
    return result, caught.value.message


def expired(authority):
    return authority.issue_cert(
        "localhost", not_before=NOW - dt.timedelta(9), not_after=NOW - dt.timedelta(1)
    )


REFUSED = {
    "unknown CA": (lambda _: trustme.CA().issue_cert("localhost"), "unable to get local issuer certificate"),
    "wrong host": (lambda authority: authority.issue_cert("other.example.com"), "Hostname mismatch"),
    "expired": (expired, "certificate has expired"),
    "self-signed": (lambda _: SelfSigned(), "self signed certificate"),
}


class SelfSigned:
    """The certificate of an authority, used as that of a server."""

    def configure_cert(self, context):
        made = trustme.CA()
        pem = made.cert_pem.bytes() + made.private_key_pem.bytes()
        with trustme.Blob(pem).tempfile() as path:
            context.load_cert_chain(path)


@pytest.mark.parametrize("case", REFUSED)
def test_a_certificate_that_proves_nothing_is_refused_and_the_key_is_not_sent(
    serve, trust, authority, way, case
):
    issue, why = REFUSED[case]
    server = serve(issue(authority))
    result, message = track(server.url("localhost"))
    assert not result
    assert result.pending == 1
    for text in (result.problem, message):
        assert text.startswith("could not connect: ")
        assert "certificate verify failed" in text
        assert why in text.replace("self-signed", "self signed")  # OpenSSL 3 writes it with a hyphen
    assert server.connections >= 2
    assert server.requests == []


def test_a_server_without_tls_never_gets_the_key(way):
    received = []

    def answer(listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with closing(connection):
                received.append(connection.recv(65_536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        result, _ = track(f"https://localhost:{listener.getsockname()[1]}/api/v1")
    assert not result
    assert received
    assert KEY[8:].encode() not in b"".join(received)
    assert b"login" not in b"".join(received)


def test_batches_go_to_a_server_whose_authority_ssl_cert_file_names(serve, trust, authority, way):
    server = serve(authority.issue_cert("localhost"))
    with Windback(KEY, "shop", base_url=server.url("localhost"), batch_size=10, max_in_flight=1) as client:
        for n in range(35):
            assert client.track_event("login", "jane@example.com", {"n": n})
        result = client.flush(20)
    assert (bool(result), result.delivered) == (True, 35)
    assert all(KEY.encode() in request for request in server.requests)
    assert len(server.requests) == 4
    assert server.connections == 1


def test_a_certificate_file_that_is_missing_is_named_and_used_once_it_is_there(
    serve, authority, monkeypatch, tmp_path, way
):
    pem = tmp_path / "later.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    server = serve(authority.issue_cert("localhost"))
    with Windback(KEY, "shop", base_url=server.url("localhost"), max_retries=0) as client:
        assert client.track_event("login", "jane@example.com")
        result = client.flush()
        authority.cert_pem.write_to_path(str(pem))
        assert client.flush(20)
    assert not result
    assert "No such file" in result.problem
    assert len(server.requests) == 1
