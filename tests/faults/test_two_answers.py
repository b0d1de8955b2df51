"""A server that sends two answers to one request: the second one is never taken for the next request's."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import sys
import threading
from typing import Optional

import anyio
import pytest
from raw_server import RawServer, Tunnel, response

from windback import AsyncWindback, Windback
from windback.http import proxy

OPTIONS = {"api_key": "sk_test_1", "project_slug": "my-project", "max_retries": 0, "timeout": 20}
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%x\r\n%s\r\n0\r\n\r\n"
)


def statistics(number):
    return b'{"data": {"total_events": %d}}' % number


class Doubles(RawServer):
    """Answers with the number of the request, and behind that with a wrong one."""

    def __init__(self, kind, tls=None):
        self.kind = kind
        self.count = 0
        self.has_sent = threading.Semaphore(0)
        self.way: Optional[Tunnel] = None
        super().__init__(self.double, tls)

    def double(self, connection, _):
        self.count += 1
        right, wrong = statistics(self.count), statistics(666)
        if self.kind == "chunked":
            connection.sendall(CHUNKED % (len(right), right) + response("200 OK", wrong))
        elif self.kind == "at once":
            connection.sendall(response("200 OK", right) + response("200 OK", wrong))
        else:
            connection.sendall(response("200 OK", right))
            connection.sendall(response("200 OK", wrong))
        self.has_sent.release()

    def count_of(self, stats):
        """The number that an answer has, when both answers are there."""
        self.has_sent.acquire()
        if self.way is not None:
            self.way.wait_until_quiet()
        return stats.total_events


@pytest.fixture(params=["at once", "chunked", "one after the other"])
def doubles(request):
    servers = []

    def start(tls=None):
        servers.append(Doubles(request.param, tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def check(server, url, **options):
    """Make calls; each must have the answer that was meant for it."""
    client = Windback(**OPTIONS, base_url=url, **options)
    assert [server.count_of(client.get_recovery_stats()) for _ in range(5)] == [1, 2, 3, 4, 5]
    client.close()
    assert server.connections == 5


async def check_async(server, url, **options):
    client = AsyncWindback(**OPTIONS, base_url=url, **options)
    assert [server.count_of(await client.get_recovery_stats()) for _ in range(5)] == [1, 2, 3, 4, 5]
    await client.close()
    assert server.connections == 5


def test_plain_calls_of_threads(doubles):
    server = doubles()
    check(server, server.url())


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_plain_calls_of_tasks(doubles, backend):
    server = doubles()
    options = {"use_uvloop": True} if backend == "uvloop" else {}
    name = "asyncio" if backend == "uvloop" else backend
    anyio.run(check_async, server, server.url(), backend=name, backend_options=options)


def test_clients_of_the_users(doubles, httpx_package):
    server = doubles()
    with httpx_package.Client() as http_client:
        check(server, server.url(), http_client=http_client)
    other = doubles()

    async def main():
        async with httpx_package.AsyncClient() as http_client:
            client = AsyncWindback(**OPTIONS, base_url=other.url(), http_client=http_client)
            assert [other.count_of(await client.get_recovery_stats()) for _ in range(5)] == [1, 2, 3, 4, 5]
            await client.close()

    asyncio.run(main())
    assert other.connections == 5


@pytest.mark.skipif(sys.version_info < (3, 9), reason="trustme needs 3.9")
@pytest.mark.parametrize("way", ["direct", "proxy", "proxy with TLS"])
@pytest.mark.parametrize("who", ["threads", "tasks"])
def test_over_tls_and_proxies(doubles, monkeypatch, tmp_path, way, who):
    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    server = doubles(context)
    tunnel = None
    if way != "direct":
        is_tls = way.endswith("TLS")
        server.way = Tunnel(server.port)
        tunnel = RawServer(server.way, context if is_tls else None)
        monkeypatch.setattr(proxy, "is_loopback", lambda _: False)
        monkeypatch.setenv("https_proxy", f"http{'s' if is_tls else ''}://localhost:{tunnel.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
    if who == "threads":
        check(server, server.url("localhost"))
    else:
        anyio.run(check_async, server, server.url("localhost"))
    if tunnel is not None:
        assert tunnel.connections == 5
        tunnel.close()


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_a_hook_may_read_the_answer_first(httpx_package, encoding):
    """As httpx documents for hooks that log or raise; what it has read is unpacked."""
    body = statistics(7)
    if encoding == "gzip":
        body = gzip.compress(body)
    answer = response("200 OK", body, extra=f"Content-Encoding: {encoding}\r\n")
    server = RawServer(lambda connection, _: connection.sendall(answer))

    def read(found):
        found.read()
        found.raise_for_status()

    async def read_async(found):
        await found.aread()
        found.raise_for_status()

    with httpx_package.Client(event_hooks={"response": [read]}) as http_client:
        client = Windback(**OPTIONS, base_url=server.url(), http_client=http_client)
        assert client.get_recovery_stats().total_events == 7
        client.close()

    async def main():
        async with httpx_package.AsyncClient(event_hooks={"response": [read_async]}) as http_client:
            client = AsyncWindback(**OPTIONS, base_url=server.url(), http_client=http_client)
            assert (await client.get_recovery_stats()).total_events == 7
            await client.close()

    asyncio.run(main())
    server.close()
