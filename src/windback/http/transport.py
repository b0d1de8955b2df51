"""HTTP: a request goes out, an Answer comes back. Each call makes one try.

Nothing here raises for what a network or a server does: every outcome is an Answer, which `delivery`
judges. That also keeps the key out of tracebacks, for an httpx exception's frames hold the headers.
Redirects are never followed: the key goes to no other host.
"""

from __future__ import annotations

import contextlib
import ssl
import sys
from typing import Mapping, Optional, Sequence, Tuple, TypedDict, cast

import httpcore
import httpx

from .. import event_loops
from ..api.answer import Answer, Failure
from ..api.endpoints import Request
from ..config import Config
from ..secrets import without_frames
from . import body, certificates, egress
from .httpx_requests import HttpxRequests
from .interruption import raise_interruption
from .network import Network
from .proxy import Route, usable_route
from .streams import AsyncBackend, Backend
from .wire import KEEPALIVE_S, Wire, response_of


class _PoolLimits(TypedDict):
    ssl_context: ssl.SSLContext
    max_connections: Optional[int]
    max_keepalive_connections: int
    keepalive_expiry: float


class SyncTransport:
    """Sends from threads. Safe to share between them."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._wire = Wire(config)
        self._requests = HttpxRequests(self._wire)
        self._network = Network()
        self._backend = Backend(self._network)
        self._client: Optional[httpx.Client] = None
        self._direct: Optional[httpx.HTTPTransport] = None
        #: The API's host, if a proxy leads there: the egress block sees the proxy's host alone.
        self._behind_proxy: Optional[str] = None
        #: Why no connection can be made at all: the answer to every try.
        self.broken: Optional[Answer] = None
        before = sys.exc_info()[1]
        try:
            if config.http_client is not None:
                self._client = cast("httpx.Client", config.http_client)
                self._requests.extensions["trace"] = self._on_trace
            else:
                # A client costs a fifth more CPU a request than the transport below it, for cookies, auth
                # and redirects that we do not want.
                route = usable_route(config.base_url)
                self._behind_proxy = None if route.proxy is None else self._wire.host
                self._direct = httpx.HTTPTransport(verify=_no_certificates(), limits=_limits())
                self._direct._pool = self._make_pool(route)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # httpx has no way in for a network backend
        except Exception as error:  # noqa: BLE001 - a certificate file or proxy that the environment has wrong
            raise_interruption(error, before)
            self.broken = self._wire.read_failure(error, Failure.CONNECT)

    def _make_pool(self, route: Route) -> httpcore.ConnectionPool:
        limits = _pool_limits(self._config)
        if route.proxy is None:
            return httpcore.ConnectionPool(network_backend=self._backend, **limits)
        url, auth = _proxy(route.proxy)
        if url.scheme.startswith(b"socks"):
            return httpcore.SOCKSProxy(url, auth, network_backend=self._backend, **limits)
        return httpcore.HTTPProxy(url, auth, network_backend=self._backend, **limits)

    def _on_trace(self, name: str, info: Mapping[str, object]) -> None:
        """Watch the connections of a user's client: it has a network of its own."""
        if name == "connection.connect_tcp.started":
            egress.check(info["host"])
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            stream = info.get("return_value")
            if stream is not None:
                self._backend.bind(stream)

    def attempt(self, request: Request, timeout_s: float) -> Answer:
        """Make one try, of at most *timeout_s* seconds."""
        if self.broken is not None:
            return self.broken
        self._network.deadline.start(timeout_s)
        before = sys.exc_info()[1]
        try:
            if self._behind_proxy is not None:
                egress.check(self._behind_proxy)
            if self._direct is not None:
                response = self._direct.handle_request(self._requests.build(request, timeout_s))
            else:
                assert self._client is not None
                wire = self._requests.build_for(self._client, request, timeout_s)
                response = self._client.send(wire, stream=True, follow_redirects=False)
            raw = body.read(response, before)
        except Exception as error:  # noqa: BLE001 - any exception means that there is no answer; see the module
            raise_interruption(error, before)
            return response_of(error) or self._wire.read_failure(error)
        except BaseException as error:  # noqa: BLE001 - an interrupt or a cancellation
            raise without_frames(error)  # noqa: B904 - the frames of httpx hold the key
        return self._wire.read(request, response.status_code, body.headers_of(response), raw)

    def abandon(self) -> None:
        """Let go of the sockets in a forked child, where they are the parent's."""
        self._network.abandon()

    def close(self) -> None:
        """Close the connections; a client that the user gave us stays open."""
        with contextlib.suppress(RuntimeError):  # what older versions of httpcore make of a request under way
            if self._direct is not None:
                self._direct.close()
            elif self._client is not None and self._client is not self._config.http_client:
                self._client.close()


class AsyncTransport:
    """Sends from tasks of one event loop, on asyncio or trio."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._wire = Wire(config)
        self._requests = HttpxRequests(self._wire)
        self._client: Optional[httpx.AsyncClient] = None
        self._direct: Optional[httpx.AsyncHTTPTransport] = None
        self._pool: Optional[httpcore.AsyncConnectionPool] = None
        self._closing: Sequence[httpcore.AsyncConnectionInterface] = ()
        #: The API's host, if a proxy leads there: the egress block sees the proxy's host alone.
        self._behind_proxy: Optional[str] = None
        #: Why no connection can be made at all: the answer to every try.
        self.broken: Optional[Answer] = None
        before = sys.exc_info()[1]
        try:
            if config.http_client is not None:
                self._client = cast("httpx.AsyncClient", config.http_client)
                self._requests.extensions["trace"] = _on_trace
            else:
                route = usable_route(config.base_url)
                self._behind_proxy = None if route.proxy is None else self._wire.host
                self._direct = httpx.AsyncHTTPTransport(verify=_no_certificates(), limits=_limits())
                self._direct._pool = self._pool = self._make_pool(route)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as above
        except Exception as error:  # noqa: BLE001 - a certificate file or proxy that the environment has wrong
            raise_interruption(error, before)
            self.broken = self._wire.read_failure(error, Failure.CONNECT)

    def _make_pool(self, route: Route) -> httpcore.AsyncConnectionPool:
        limits, backend = _pool_limits(self._config), AsyncBackend()
        if route.proxy is None:
            return httpcore.AsyncConnectionPool(network_backend=backend, **limits)
        url, auth = _proxy(route.proxy)
        if url.scheme.startswith(b"socks"):
            return httpcore.AsyncSOCKSProxy(url, auth, network_backend=backend, **limits)
        return httpcore.AsyncHTTPProxy(url, auth, network_backend=backend, **limits)

    async def attempt(self, request: Request, timeout_s: float) -> Answer:
        """Make one try, of at most *timeout_s* seconds."""
        if self.broken is not None:
            return self.broken
        answer = Answer(None, failure=Failure.TIMEOUT)
        before = sys.exc_info()[1]
        try:
            if self._behind_proxy is not None:
                egress.check(self._behind_proxy)
            with event_loops.move_on_after(timeout_s):
                if self._direct is not None:
                    response = await self._direct.handle_async_request(
                        self._requests.build(request, timeout_s)
                    )
                else:
                    assert self._client is not None
                    wire = self._requests.build_for(self._client, request, timeout_s)
                    response = await self._client.send(wire, stream=True, follow_redirects=False)
                # The status has arrived: it counts even if the time is over before the body is read.
                answer = self._wire.read(request, response.status_code, response.headers, None)
                raw = await body.read_async(response, before)
                answer = self._wire.read(request, response.status_code, body.headers_of(response), raw)
        except Exception as error:  # noqa: BLE001 - any exception means that there is no answer; see the module
            raise_interruption(error, before)
            return response_of(error) or self._wire.read_failure(error)
        except BaseException as error:  # noqa: BLE001 - an interrupt or a cancellation
            raise without_frames(error)  # noqa: B904 - the frames of httpx hold the key
        return answer

    async def aclose(self) -> None:
        """Close the connections; a client that the user gave us stays open."""
        with contextlib.suppress(RuntimeError):  # as above
            if self._pool is not None:
                # The pool forgets them before it closes them: after a cancelled close only this knows them.
                self._closing = [*self._closing, *self._pool.connections]
                await self._pool.aclose()
                for connection in self._closing:
                    if not connection.is_closed():
                        await connection.aclose()
            elif self._client is not None and self._client is not self._config.http_client:
                await self._client.aclose()


async def _on_trace(name: str, info: Mapping[str, object]) -> None:
    if name == "connection.connect_tcp.started":
        egress.check(info["host"])


def _proxy(proxy: str) -> Tuple[httpcore.URL, Optional[Tuple[bytes, bytes]]]:
    given = httpx.Proxy(proxy)
    url = given.url
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/"), given.raw_auth


def _no_certificates() -> ssl.SSLContext:
    """Loading certificates takes 0.1 s; plain http, which is loopback, needs none."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _pool_limits(config: Config) -> _PoolLimits:
    is_https = config.base_url.startswith("https")
    return {
        "ssl_context": certificates.verifying() if is_https else _no_certificates(),
        "max_connections": None,
        "max_keepalive_connections": 100,
        "keepalive_expiry": KEEPALIVE_S,
    }


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=KEEPALIVE_S)
