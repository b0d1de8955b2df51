"""HTTP: a request goes out, an Answer comes back. Each call makes one try.

Nothing here raises for what a network or a server does: every outcome is an Answer, which `delivery`
judges. That also keeps the key out of tracebacks, for an httpx exception's frames hold the headers.
Redirects are never followed: the key goes to no other host.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import socket
import ssl
import sys
import threading
from typing import AsyncIterator, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Union
from weakref import WeakSet

import httpx

from .. import __version__, clock, event_loops
from ..api.answer import Answer, Failure
from ..api.endpoints import Request
from ..config import Config
from ..secrets import without_frames
from . import egress as guard
from .interruption import raise_interruption

# For getaddrinfo, which loads it at first use: a fork at that moment would break the child for good.
codecs.lookup("idna")

#: No answer of this API is larger; what comes after it is not read.
MAX_ANSWER_BYTES = 8_000_000
#: Longer than the default of httpx, so that a low but steady stream of batches keeps its connection.
KEEPALIVE_S = 30.0

_PHASES = ("connect", "read", "write", "pool")


class _Wire:
    """What both transports share: requests made, exceptions read."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._urls: Dict[str, httpx.URL] = {}
        self._extensions: Dict[str, object] = {}
        #: Why no connection can be made at all: the answer to every try.
        self.broken: Optional[Answer] = None
        url = httpx.URL(config.base_url)
        self._common = [
            (b"Host", url.netloc),
            (b"User-Agent", f"windback-python/{__version__}".encode()),
        ]

    def build(self, request: Request, timeout_s: float) -> httpx.Request:
        # With `stream` httpx adds no headers and copies no body; each of ours is already there.
        return httpx.Request(
            request.method,
            self._url(request),
            headers=self._headers(request),
            stream=_Body(request.body),
            extensions={**self._extensions, "timeout": dict.fromkeys(_PHASES, timeout_s)},
        )

    def build_for(
        self, client: Union[httpx.Client, httpx.AsyncClient], request: Request, timeout_s: float
    ) -> httpx.Request:
        """The same for a client the user gave us, with the headers and cookies it adds."""
        return client.build_request(
            request.method,
            self._url(request),
            headers=self._headers(request),
            content=request.body,
            timeout=timeout_s,
            extensions=self._extensions,
        )

    def _url(self, request: Request) -> httpx.URL:
        target = f"{request.path}?{request.query}" if request.query else request.path
        url = self._urls.get(target)
        if url is None:
            if len(self._urls) > 100:
                self._urls.clear()
            url = self._urls[target] = httpx.URL(self._config.base_url + target)
        return url

    def _headers(self, request: Request) -> List[Tuple[bytes, bytes]]:
        config = self._config
        # Without a key of its own kind a call is made with the one there is (both are documented to work).
        key = (config.public_key or config.api_key) if request.public else config.api_key
        headers: List[Tuple[bytes, bytes]] = [
            *self._common,
            (b"X-API-Key", b"" if key is None else key.reveal().encode()),
        ]
        if request.method != "GET":
            headers += (b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(request.body))
        if request.idempotency_key is not None:
            headers.append((b"Idempotency-Key", request.idempotency_key.encode()))
        if request.gzip:
            headers.append((b"Content-Encoding", b"gzip"))
        return headers

    def read_failure(self, error: Exception, otherwise: Failure = Failure.BROKEN) -> Answer:
        """Say why there is no answer, without the key."""
        if isinstance(error, guard.RefusedError):
            return Answer(None, failure=Failure.FORBIDDEN, detail=str(error))
        if isinstance(error, (httpx.ConnectTimeout, httpx.PoolTimeout)):
            failure = Failure.CONNECT_TIMEOUT
        elif isinstance(error, httpx.TimeoutException):
            failure = Failure.TIMEOUT
        elif isinstance(error, httpx.ConnectError):
            failure = Failure.CONNECT
        else:
            failure = otherwise
        name = type(error).__name__
        # httpx says in words what happened; what others raise is often a value alone.
        detail = (str(error) or name) if isinstance(error, httpx.HTTPError) else f"{name}: {error}"
        return Answer(None, failure=failure, detail=self._config.redact(detail))


def _goes_through_proxy() -> bool:
    from urllib.request import getproxies

    return any(scheme != "no" for scheme in getproxies())


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request's body. The iterators are no generators, which complain if a loop ends in the middle."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return iter((self._body,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._body)


class _Once:
    def __init__(self, body: bytes) -> None:
        self._left = [body]

    def __aiter__(self) -> _Once:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


class _Deadline:
    """Makes the sockets of a thread keep one deadline for a whole request.

    httpx limits each read by itself, so a server that sends a byte now and then holds a caller for ever.
    The documented "trace" extension shows each new connection's stream, whose reads and writes are then
    bound by what is left.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self.sockets: WeakSet[socket.socket] = WeakSet()

    def start(self, timeout_s: float) -> None:
        self._local.until_s = clock.now_s() + timeout_s

    def on_trace(self, name: str, info: Mapping[str, object]) -> None:
        if name == "connection.connect_tcp.started":
            guard.check(info["host"])
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            stream = info.get("return_value")
            if stream is not None:
                self._bind(stream)

    def _bind(self, stream: object) -> None:
        read: Callable[..., bytes] = stream.read  # type: ignore[attr-defined]  # of httpcore's NetworkStream
        write: Callable[..., None] = stream.write  # type: ignore[attr-defined]

        def bound_read(max_bytes: int, timeout: Optional[float] = None) -> bytes:
            return read(max_bytes, self._left_s(timeout))

        def bound_write(buffer: bytes, timeout: Optional[float] = None) -> None:
            write(buffer, self._left_s(timeout))

        stream.read, stream.write = bound_read, bound_write  # type: ignore[attr-defined]
        self.sockets.add(stream.get_extra_info("socket"))  # type: ignore[attr-defined]

    def _left_s(self, timeout: Optional[float]) -> float:
        # Not 0, which would mean not to block at all: a hair's breadth ends in the usual timeout error.
        until_s: float = self._local.until_s
        left_s = max(0.001, until_s - clock.now_s())
        return left_s if timeout is None else min(timeout, left_s)


class SyncTransport(_Wire):
    """Sends from threads. Safe to share between them."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._deadline = _Deadline()
        self._extensions["trace"] = self._deadline.on_trace
        self._client: Optional[httpx.Client] = None
        self._direct: Optional[httpx.HTTPTransport] = None
        before = sys.exc_info()[1]
        try:
            if isinstance(config.http_client, httpx.Client):
                self._client = config.http_client
            elif _goes_through_proxy():
                self._client = httpx.Client(limits=_limits())
            else:
                # A client costs a fifth more CPU a request than the transport below it, for cookies, auth
                # and redirects that we do not want.
                self._direct = httpx.HTTPTransport(verify=_verify(config), limits=_limits())
        except Exception as error:  # noqa: BLE001 - a certificate file or proxy that the environment has wrong
            raise_interruption(error, before)
            self.broken = self.read_failure(error, Failure.CONNECT)

    def attempt(self, request: Request, timeout_s: float) -> Answer:
        """Make one try, of at most *timeout_s* seconds after the connection stands."""
        if self.broken is not None:
            return self.broken
        self._deadline.start(timeout_s)
        before = sys.exc_info()[1]
        try:
            if self._direct is not None:
                response = self._direct.handle_request(self.build(request, timeout_s))
            else:
                assert self._client is not None
                wire = self.build_for(self._client, request, timeout_s)
                response = self._client.send(wire, stream=True, follow_redirects=False)
            try:
                body = b""
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        break
            finally:
                response.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no answer; see the module
            raise_interruption(error, before)
            return self.read_failure(error)
        except BaseException as error:  # noqa: BLE001 - an interrupt or a cancellation
            raise without_frames(error)  # noqa: B904 - the frames of httpx hold the key
        return Answer(response.status_code, response.headers, body)

    def abandon(self) -> None:
        """Let go of the sockets in a forked child, where they are the parent's.

        Not by closing the pool: a thread that is not here any more may hold its lock.
        """
        for each in list(self._deadline.sockets):
            descriptor = each.detach()
            if descriptor >= 0:
                os.close(descriptor)  # the connection itself stays open, for the parent has it too

    def close(self) -> None:
        """Close the connections; a client that the user gave us stays open."""
        with contextlib.suppress(RuntimeError):  # what older versions of httpcore make of a request under way
            if self._direct is not None:
                self._direct.close()
            elif self._client is not None and self._client is not self._config.http_client:
                self._client.close()


class AsyncTransport(_Wire):
    """Sends from tasks of one event loop, on asyncio or trio."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if guard.refuse is not None:
            self._extensions["trace"] = _check_host
        self._client: Optional[httpx.AsyncClient] = None
        self._direct: Optional[httpx.AsyncHTTPTransport] = None
        before = sys.exc_info()[1]
        try:
            if isinstance(config.http_client, httpx.AsyncClient):
                self._client = config.http_client
            elif _goes_through_proxy():
                self._client = httpx.AsyncClient(limits=_limits())
            else:
                self._direct = httpx.AsyncHTTPTransport(verify=_verify(config), limits=_limits())
        except Exception as error:  # noqa: BLE001 - a certificate file or proxy that the environment has wrong
            raise_interruption(error, before)
            self.broken = self.read_failure(error, Failure.CONNECT)

    async def attempt(self, request: Request, timeout_s: float) -> Answer:
        """Make one try, of at most *timeout_s* seconds."""
        if self.broken is not None:
            return self.broken
        answer = Answer(None, failure=Failure.TIMEOUT)
        before = sys.exc_info()[1]
        try:
            with event_loops.move_on_after(timeout_s):
                if self._direct is not None:
                    response = await self._direct.handle_async_request(self.build(request, timeout_s))
                else:
                    assert self._client is not None
                    wire = self.build_for(self._client, request, timeout_s)
                    response = await self._client.send(wire, stream=True, follow_redirects=False)
                try:
                    body = b""
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > MAX_ANSWER_BYTES:
                            break
                finally:
                    await response.aclose()
                answer = Answer(response.status_code, response.headers, body)
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no answer; see the module
            raise_interruption(error, before)
            return self.read_failure(error)
        except BaseException as error:  # noqa: BLE001 - an interrupt or a cancellation
            raise without_frames(error)  # noqa: B904 - the frames of httpx hold the key
        return answer

    async def aclose(self) -> None:
        """Close the connections; a client that the user gave us stays open."""
        with contextlib.suppress(RuntimeError):  # as above
            if self._direct is not None:
                await self._direct.aclose()
            elif self._client is not None and self._client is not self._config.http_client:
                await self._client.aclose()


async def _check_host(name: str, info: Mapping[str, object]) -> None:
    if name == "connection.connect_tcp.started":
        guard.check(info["host"])


def _verify(config: Config) -> Union[ssl.SSLContext, bool]:
    """Certificates are verified, and loading them takes 0.1 s; plain http, which is loopback, needs none."""
    return True if config.base_url.startswith("https") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=KEEPALIVE_S)
