"""What is below HTTP: one deadline for all of it, answers that are no answers, proxies of the environment."""

from __future__ import annotations

import asyncio
import codecs
import gzip
import json
import socket
import ssl
import sys
import threading
import time
import tracemalloc
import zlib
from contextlib import closing

import httpx
import pytest
from deadlines import SLACK_S
from raw_server import RawServer, Tunnel, drip, response

from windback import AsyncWindback, Windback, WindbackConnectionError, WindbackError, WindbackTimeoutError
from windback.delivery.connections import Connections
from windback.http import proxy
from windback.http.names import Resolver

KEY = "sk_test_1"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def serve():
    servers = []

    def start(answer, tls=None):
        servers.append(RawServer(answer, tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def always(data):
    return lambda connection, _: connection.sendall(data)


class Sync:
    """Calls of both clients in one spelling."""

    def __init__(self, url, **options):
        self.client = Windback(KEY, "shop", base_url=url, **options)

    def call(self):
        return self.client.get_churn_event("evt_1")

    def send(self, count, timeout):
        for n in range(count):
            assert self.client.track_event("login", "jane@example.com", {"n": n})
        return self.client.flush(timeout)

    def close(self):
        return self.client.close(0.1)


class SyncByHttpx(Sync):
    """The same, where batches do not go by the lane."""


class Async:
    def __init__(self, url, **options):
        self.loop = asyncio.new_event_loop()
        self.client = AsyncWindback(KEY, "shop", base_url=url, **options)

    def call(self):
        return self.loop.run_until_complete(self.client.get_churn_event("evt_1"))

    def send(self, count, timeout):
        async def main():
            for n in range(count):
                assert await self.client.track_event("login", "jane@example.com", {"n": n})
            return await self.client.flush(timeout)

        return self.loop.run_until_complete(main())

    def close(self):
        result = self.loop.run_until_complete(self.client.close(0.1))
        self.loop.close()
        return result


@pytest.fixture(params=[Sync, SyncByHttpx, Async], ids=["sync", "sync with httpx", "async"])
def make(request, monkeypatch):
    made = []
    if request.param is SyncByHttpx:
        monkeypatch.setattr(Connections, "_batch_way", Connections.transport)

    def make(url, **options):
        made.append(request.param(url, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def took(call):
    started_s = time.monotonic()
    with pytest.raises(WindbackError) as caught:
        call()
    return caught.value, time.monotonic() - started_s


# The deadline


@pytest.fixture
def slow_resolver(monkeypatch):
    """A resolver that answers only after the test, and counts how often it was asked at the same time."""
    end, asked = threading.Event(), []

    def look_up(host, *arguments, **options):
        asked.append(host)
        end.wait(60)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield asked
    end.set()


def test_a_resolver_that_hangs_holds_a_call_no_longer_than_its_timeout(make, slow_resolver):
    client = make("https://api.example.com/api/v1", timeout=0.5, max_retries=0)
    error, took_s = took(client.call)
    assert isinstance(error, WindbackTimeoutError)
    assert "in time" in error.message
    assert took_s < 0.5 + SLACK_S


def test_a_resolver_that_hangs_costs_one_thread_however_often_it_is_tried(make, slow_resolver):
    client = make("https://api.example.com/api/v1", timeout=0.1, max_retries=0)
    for _ in range(5):
        took(client.call)
    assert slow_resolver == ["api.example.com"]


def test_an_asyncio_run_ends_although_the_resolver_hangs(slow_resolver):
    async def main():
        client = AsyncWindback(KEY, base_url="https://api.example.com/api/v1", shutdown_timeout=0.3)
        await client.track_event("login", "jane@example.com")
        assert not await client.close(0.3)

    started_s = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started_s < 0.6 + SLACK_S


def test_the_next_look_up_after_a_failed_one_asks_again(monkeypatch):
    answers = iter([socket.gaierror(-2, "Name or service not known"), [(2, 1, 6, "", ("192.0.2.1", 80))]])

    def look_up(*_, **__):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    resolver = Resolver()
    with pytest.raises(socket.gaierror):
        resolver.look_up("api.example.com", 80, 10.0)
    assert resolver.look_up("api.example.com", 80, 10.0) == ["192.0.2.1"]


def test_the_address_that_answers_is_found_and_tried_first_from_then_on(serve, monkeypatch):
    server = serve(always(response("200 OK", b'{"data": {"id": "evt_1"}}', extra="Connection: close\r\n")))
    tried = []
    connect = socket.create_connection

    def note(address, *arguments, **options):
        tried.append(address[0])
        return connect(address, *arguments, **options)

    # Nobody listens on this port of the other address.
    monkeypatch.setattr(Resolver, "look_up", lambda *_: ["127.0.0.2", "127.0.0.1"])
    monkeypatch.setattr(socket, "create_connection", note)
    client = Windback(KEY, "shop", base_url=server.url("localhost"), max_retries=0)
    for _ in range(3):
        client.get_churn_event("evt_1")
    assert tried == ["127.0.0.2", "127.0.0.1", "127.0.0.1", "127.0.0.1"]
    client.close()


@pytest.mark.skipif(sys.version_info < (3, 9), reason="trustme needs 3.9")
@pytest.mark.parametrize("way", ["direct", "through a proxy", "through a proxy with TLS"])
def test_a_dripping_answer_over_tls_is_bounded_by_the_timeout(make, serve, monkeypatch, tmp_path, way):
    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(pem))
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    target = serve(drip, context)
    if way != "direct":
        is_tls = way.endswith("TLS")
        tunnel = serve(Tunnel(target.port), context if is_tls else None)
        # Loopback is reached directly: a name that is not loopback for us leads there.
        monkeypatch.setattr(proxy, "is_loopback", lambda _: False)
        monkeypatch.setenv("https_proxy", f"http{'s' if is_tls else ''}://localhost:{tunnel.port}")
    client = make(target.url("localhost"), timeout=3.0, max_retries=0)
    error, took_s = took(client.call)
    assert isinstance(error, WindbackTimeoutError), error
    assert took_s < 3.0 + SLACK_S
    assert len(target.requests) == 1


def test_a_request_is_one_write(serve, monkeypatch, way):
    server = serve(always(response("200 OK")))
    sizes = []
    send = socket.socket.send
    monkeypatch.setattr(
        "windback.http.network.Endpoint.send",
        lambda self, data: (sizes.append(len(data)), send(self.sock, data)),
    )
    with Windback(KEY, base_url=server.url()) as client:
        client.track_event("login", "jane@example.com")
        assert client.flush()
    (request,) = server.requests
    assert sizes == [len(request)] or (sum(sizes) == len(request) and sizes[0] == len(request))


def test_a_server_that_reads_nothing_holds_a_batch_no_longer_than_its_timeout(way):
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
        options = {"max_batch_bytes": 20_000_000, "max_event_bytes": 1_000_000, "max_queue_bytes": 30_000_000}
        with Windback(KEY, base_url=url, timeout=0.5, max_retries=0, shutdown_timeout=0, **options) as client:
            for _ in range(16):
                assert client.track_event("login", "jane@example.com", {"text": "x" * 900_000})
            result = client.flush()
    assert not result
    assert result.problem.startswith("no answer in time")


# Connections that are kept


def test_a_connection_that_the_server_closed_while_it_was_idle_is_replaced(serve, eventually, way):
    closed = []

    def answer(connection, _):
        connection.sendall(response("200 OK"))
        connection.close()
        closed.append(connection)

    server = serve(answer)
    with Windback(KEY, base_url=server.url(), max_retries=0) as client:
        for n in range(3):
            eventually(lambda n=n: len(closed) == n)
            assert client.track_event("login", "jane@example.com")
            assert client.flush(10)
        assert client.stats().requests == 3
    assert len(server.requests) == server.connections == 3


def test_a_batch_goes_out_again_immediately_if_the_server_closes_the_connection_as_it_comes(serve):
    """Whether it had the batch is unknown, so the same one goes out again, once, under the same key."""

    def answer(connection, request):
        if server.connections == 1 and len(server.requests) > 1:
            connection.close()
        else:
            connection.sendall(response("200 OK"))

    server = serve(answer)
    with Windback(KEY, base_url=server.url(), max_retries=0) as client:
        for _ in range(2):
            assert client.track_event("login", "jane@example.com")
            assert client.flush(10)
        stats = client.stats()
    assert (stats.delivered, stats.requests, stats.retries) == (2, 3, 1)
    assert server.requests[1] == server.requests[2]
    assert b"Idempotency-Key" in server.requests[1]
    assert server.connections == 2


def test_a_new_connection_that_ends_without_an_answer_is_a_failure_and_not_tried_again(serve, way):
    server = serve(lambda connection, _: connection.close())
    with Windback(KEY, base_url=server.url(), max_retries=0, shutdown_timeout=0) as client:
        assert client.track_event("login", "jane@example.com")
        result = client.flush()
        assert not result
        assert result.problem.startswith("the connection broke")
        assert len(server.requests) == 1


def check_unasked_answer(serve, eventually, first):
    sent = []

    def answer(connection, _):
        if len(server.requests) == 1:
            first(connection)
            sent.append(connection)
        else:
            connection.sendall(response("503 Service Unavailable"))

    server = serve(answer)
    with Windback(KEY, base_url=server.url(), max_retries=0, shutdown_timeout=0) as client:
        assert client.track_event("login", "jane@example.com")
        assert client.flush(10)
        eventually(lambda: sent)
        assert client.track_event("login", "jane@example.com")
        result = client.flush()
    assert not result
    assert (result.delivered, result.pending) == (0, 1)
    assert server.connections == 2


def test_an_answer_that_nobody_asked_for_is_not_the_answer_to_the_next_batch(serve, eventually, way):
    def first(connection):
        connection.sendall(response("200 OK"))
        time.sleep(0.2)
        connection.sendall(response("200 OK"))

    check_unasked_answer(serve, eventually, first)


def test_two_answers_in_one_are_not_those_to_two_batches(serve, eventually):
    """By the lane; httpx takes the second one for the next answer."""
    check_unasked_answer(serve, eventually, lambda connection: connection.sendall(2 * response("200 OK")))


def test_a_batch_that_is_too_large_is_split_although_the_server_closes_before_it_has_read_all(serve, way):
    """It answers 413 after the head alone, as a gateway does, and closes: the rest can not be sent."""

    def answer(connection, request):
        large = len(request) > 5_000
        connection.sendall(
            response("413 Content Too Large" if large else "200 OK", extra="Connection: close\r\n")
        )
        connection.close()

    server = serve(answer)
    with Windback(KEY, base_url=server.url()) as client:
        for n in range(100):
            assert client.track_event("login", "jane@example.com", {"n": n})
        result = client.flush(20)
    assert (bool(result), result.delivered) == (True, 100)


# What a 2xx is worth


PAGES = [
    response("200 OK", b"<html>Please log in</html>", "text/html"),
    response("200 OK", b"OK", "text/plain"),
    response("200 OK", b"[]"),
    response("202 Accepted", b'{"cut": ', "application/json"),
]


@pytest.mark.parametrize("page", PAGES, ids=["a page", "text", "a list", "broken JSON"])
def test_a_2xx_that_the_api_does_not_send_is_not_a_delivery(make, serve, caplog, eventually, page):
    server = serve(always(page))
    client = make(server.url())
    result = client.send(3, 10)
    assert not result
    assert (result.pending, result.delivered) == (3, 0)
    assert result.problem.startswith(f"this is not the API: {server.url()}/track answered 20")
    assert len(server.requests) == 1  # a person has to fix it: it is not asked again soon
    # The line is written after the flush has returned.
    eventually(lambda: any("this is not the API" in each for each in caplog.messages))
    (line,) = (each for each in caplog.messages if "this is not the API" in each)
    assert "set base_url to the API" in line


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
ODD_BUT_TAKEN = {
    "empty": response("204 No Content", b""),
    "205": response("205 Reset Content", b""),
    "blanks": response("200 OK", b" \r\n"),
    "byte order mark": response("200 OK", codecs.BOM_UTF8 + b'{"status": "ok"}'),
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + response("200 OK", b"{}"),
    "still processing": b"HTTP/1.1 102 Processing\r\n\r\n" * 50 + response("200 OK", b"{}"),
    "trailers": CHUNKED + b"Trailer: X\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n",
    "60 kB of headers": response("200 OK", b"{}", extra="X: " + "a" * 60_000 + "\r\n"),
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}",
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
}


@pytest.mark.parametrize("data", ODD_BUT_TAKEN.values(), ids=ODD_BUT_TAKEN)
def test_an_odd_2xx_is_a_delivery_and_nothing_is_sent_twice(make, serve, data):
    server = serve(always(data))
    assert make(server.url()).send(3, 10).delivered == 3
    assert len(server.requests) == 1


UNREADABLE = {
    "not gzip": response("200 OK", b'{"ok": true}', extra="Content-Encoding: gzip\r\n"),
    "unknown encoding": response("200 OK", b'{"ok": true}', extra="Content-Encoding: br\r\n"),
    "packed twice": response(
        "200 OK", gzip.compress(gzip.compress(b"{}")), extra="Content-Encoding: gzip, gzip\r\n"
    ),
    "cut short": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "broken chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE)
def test_a_2xx_whose_body_cannot_be_read_is_the_answer_and_nothing_is_sent_twice(make, serve, data):
    def answer(connection, _):
        connection.sendall(data)
        if not data.endswith(b"}"):
            connection.close()

    server = serve(answer)
    client = make(server.url())
    result = client.send(3, 10)
    assert (bool(result), result.delivered) == (True, 3)
    assert [len(json.loads(each.partition(b"\r\n\r\n")[2])["events"]) for each in server.requests] == [3]


def test_a_packed_answer_is_read(make, serve):
    body = b'{"data": {"id": "evt_1", "status": "new"}}'
    for packed, name in ((gzip.compress(body), "gzip"), (zlib.compress(body), "deflate")):
        client = make(serve(always(response("200 OK", packed, extra=f"Content-Encoding: {name}\r\n"))).url())
        assert client.call().id == "evt_1"


def test_an_answer_that_grows_without_end_is_not_unpacked(make, serve):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    server = serve(always(response("200 OK", bomb, extra="Content-Encoding: gzip\r\n")))
    client = make(server.url(), max_retries=0)
    tracemalloc.start()
    try:
        with pytest.raises(WindbackConnectionError, match="could not be read"):
            client.call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20  # of 256 MiB


# Clients of the user's


def test_a_clients_hook_that_raises_for_a_status_is_an_answer(serve):
    def answer(connection, request):
        bad = b'"n":1' in request
        connection.sendall(response("400 Bad Request" if bad else "200 OK", b'{"error": "bad"}'))

    server = serve(answer)
    hooks = {"response": [lambda given: given.raise_for_status()]}
    with httpx.Client(event_hooks=hooks) as own:
        with Windback(KEY, base_url=server.url(), http_client=own) as client:
            for n in range(3):
                client.track_event("login", "jane@example.com", {"n": n})
            result = client.flush(10)
            assert (bool(result), result.delivered, result.rejected) == (True, 2, 1)


# Proxies


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_this_machine_is_never_reached_through_a_proxy(make, serve, monkeypatch, name):
    server, between = serve(always(response("200 OK"))), serve(always(response("502 Bad Gateway")))
    monkeypatch.setenv(name, f"http://127.0.0.1:{between.port}")
    client = make(server.url())
    assert client.send(3, 10).delivered == 3
    assert between.requests == []


def test_a_proxy_of_the_environment_leads_to_another_machine(make, serve, monkeypatch):
    between = serve(always(response("200 OK")))
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{between.port}")
    monkeypatch.setattr(proxy, "is_loopback", lambda _: False)
    client = make("http://localhost:9/api/v1")
    assert client.send(3, 10).delivered == 3
    (request,) = between.requests
    assert request.startswith(b"POST http://localhost:9/api/v1/track HTTP/1.1\r\n")
    assert b"proxy-authorization: basic" in request.lower()


HOST = "https://api.example.com/api/v1"
ROUTES = [
    ({}, None, "no proxy is set", None),
    ({"HTTP_PROXY": "http://proxy:1"}, None, "no proxy is set", None),
    ({"HTTPS_PROXY": "http://u:p@proxy:1"}, "http://u:p@proxy:1", "HTTPS_PROXY is http://proxy:1", None),
    ({"HTTPS_PROXY": "proxy:1"}, "http://proxy:1", "HTTPS_PROXY is http://proxy:1", None),
    ({"ALL_PROXY": "http://proxy:1"}, "http://proxy:1", "ALL_PROXY is http://proxy:1", None),
    ({"ALL_PROXY": "socks://proxy:1"}, None, "ALL_PROXY has the scheme socks", "without a proxy"),
    ({"ALL_PROXY": "http://[::1"}, None, "ALL_PROXY is not a URL", "without a proxy"),
    ({"ALL_PROXY": "0.300.0.0"}, None, "ALL_PROXY has a host that is not valid", "without a proxy"),
    ({"ALL_PROXY": "http://u:p@00.0.0.0:1"}, None, "ALL_PROXY has a host that is not", "without a proxy"),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "*"}, None, "NO_PROXY has *", None),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "other.org, .example.com"}, None, "NO_PROXY has .example", None),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "example.com"}, None, "NO_PROXY has example.com", None),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "ample.com"}, "http://p:1", "ALL_PROXY is", None),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "api.example.com:8443"}, "http://p:1", "ALL_PROXY is", None),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8,::1,[::1]:7"}, "http://p:1", "ALL_PROXY is", None),
    ({"ALL_PROXY": "http://p:1", "NO_PROXY": "http://[x"}, "http://p:1", "ALL_PROXY is", "cannot be read"),
]


@pytest.mark.parametrize(("environment", "way", "why", "problem"), ROUTES)
def test_one_proxy_is_resolved_for_the_one_host(monkeypatch, environment, way, why, problem):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    route = proxy.route_to(HOST)
    assert route.proxy == way
    assert route.why.startswith(why)
    assert "u:p" not in route.why
    assert (route.problem is None) is (problem is None)
    assert problem is None or problem in route.problem


def test_an_address_is_matched_with_networks(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "http://proxy:1")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8")
    assert proxy.route_to("https://10.1.2.3/api/v1").proxy is None
    assert proxy.route_to("https://11.1.2.3/api/v1").proxy == "http://proxy:1"


def test_a_proxy_that_is_not_supported_is_one_line_and_not_the_end(serve, monkeypatch, caplog):
    server = serve(always(response("200 OK")))
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9/")
    monkeypatch.setattr(proxy, "is_loopback", lambda _: False)
    for _ in range(2):
        with Windback(KEY, base_url=server.url()) as client:
            client.track_event("login", "jane@example.com")
            assert client.flush(10).delivered == 1
    (line,) = caplog.messages
    assert line == (
        "ALL_PROXY has the scheme socks, which is not supported; connecting to 127.0.0.1 without a proxy"
    )


def test_a_forked_child_on_macos_asks_the_variables_and_not_the_system(monkeypatch):
    def system():
        pytest.fail("it would crash there")

    monkeypatch.setattr(proxy, "_IMPORTED_IN", 0)
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("urllib.request.getproxies", system)
    monkeypatch.setattr(proxy, "_settings", {"https": "http://before:1"})
    assert proxy.route_to(HOST).proxy == "http://before:1"
    monkeypatch.setenv("HTTPS_PROXY", "http://variable:1")
    assert proxy.route_to(HOST).proxy == "http://variable:1"
