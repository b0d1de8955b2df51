"""Nobody but the API gets the key: the certificate is verified before a byte of a request goes out.

The same for both ways of batches, and for plain calls.
"""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import sys
import threading
import time
from contextlib import closing, suppress

import pytest
from deadlines import SLACK_S
from raw_server import RawServer, pass_on, response

from windback import Windback, WindbackConnectionError, WindbackTimeoutError

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
    """Start a server with a certificate, which answers as the API does, after *wait_s* seconds."""
    servers = []

    def start(certificate, wait_s=0.0):
        def answer(connection, _):
            time.sleep(wait_s)
            connection.sendall(response("200 OK"))

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        servers.append(RawServer(answer, context))
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


def cpu_s(call):
    started_s = time.process_time()
    call()
    return time.process_time() - started_s


def test_a_wait_for_an_answer_takes_no_cpu(serve, trust, authority, way):
    server = serve(authority.issue_cert("localhost"), wait_s=2.0)
    with Windback(KEY, "shop", base_url=server.url("localhost"), flush_interval=0.001) as client:
        client.get_recovery_stats()
        assert client.track_event("login", "jane@example.com")  # the connection is made
        assert client.flush(20)
        assert client.track_event("login", "jane@example.com")
        assert cpu_s(lambda: client.flush(20)) < 0.5
        assert cpu_s(client.get_recovery_stats) < 0.5
    assert len(server.requests) == 4


class Slowly:
    """Passes on what comes for *port*; what comes from there, one byte after the other."""

    def __init__(self, port):
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self._listener.getsockname()[1]}/api/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection, socket.create_connection(("127.0.0.1", self._port)) as inner, suppress(OSError):
            threading.Thread(target=pass_on, args=(connection, inner), daemon=True).start()
            while True:
                data = inner.recv(1)
                if not data:
                    return
                connection.sendall(data)
                time.sleep(0.1)


def test_a_handshake_that_comes_in_single_bytes_ends_at_the_timeout(serve, trust, authority, way):
    server = serve(authority.issue_cert("localhost"))
    with closing(Slowly(server.port)) as slowly:
        options = {"timeout": 2.0, "max_retries": 0, "shutdown_timeout": 0}
        with Windback(KEY, "shop", base_url=slowly.url, **options) as client:
            started_s = time.monotonic()
            with pytest.raises(WindbackTimeoutError):
                client.get_recovery_stats()
            assert time.monotonic() - started_s < 2.0 + SLACK_S
            assert client.track_event("login", "jane@example.com")
            result = client.flush(2.0 + SLACK_S)
    assert "could not connect in time" in result.problem
    assert server.requests == []
