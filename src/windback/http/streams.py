"""What httpcore, below httpx, asks a network for: connections for threads and for tasks.

It accepts a network of one's own, and this is `network` in its terms. For threads each wait ends at the
deadline of its thread; for tasks the transport cancels the whole request. The head and the body of a request
are one write.
"""

from __future__ import annotations

import ssl
from typing import Callable, Dict, Iterable, Optional, Union

import httpcore

from .. import clock
from . import egress
from .names import Resolver
from .network import HAIR_S, A, Endpoint, Network, T, first, is_readable, mapped

SocketOptions = Optional[Iterable[object]]
#: The timeout of a request without one, of which the SDK makes none (seconds).
_LONG_S = 3600.0
_TLS_RECORD_BYTES = 16_384


class InnerTLS:
    """TLS inside of TLS, as to an API behind a proxy with https: `ssl` wraps no socket that is one of TLS."""

    def __init__(self, outer: Endpoint, context: ssl.SSLContext, name: Optional[str]) -> None:
        self.sock = outer.sock
        self._outer = outer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._run(lambda _: self.tls.do_handshake(), None)

    def _run(self, call: Callable[[A], T], argument: A) -> T:
        while True:
            try:
                result = call(argument)
            except ssl.SSLWantReadError:
                self._flush()
                data = self._outer.receive(_TLS_RECORD_BYTES)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        self._outer.send(self._outgoing.read())

    @property
    def has_unread(self) -> bool:
        """Whether one of the two holds bytes that the socket no longer shows."""
        return self.tls.pending() > 0 or self._incoming.pending > 0 or self._outer.has_unread

    def receive(self, max_bytes: int) -> bytes:
        """Return what arrives next; nothing at the end."""
        return self._run(self.tls.read, max_bytes)

    def send(self, data: bytes) -> None:
        """Send all of *data*."""
        view = memoryview(data)
        while view:
            view = view[self._run(self.tls.write, view) :]


class Stream(httpcore.NetworkStream):
    """A connection. The first part of a request waits for the second one, and both are one write."""

    def __init__(self, endpoint: Union[Endpoint, InnerTLS], network: Network) -> None:
        self._endpoint = endpoint
        self._network = network
        self._held = b""

    def read(self, max_bytes: int, timeout: Optional[float] = None) -> bytes:
        """Read up to *max_bytes* bytes; nothing at the end."""
        if self._held:
            self.write(b"")
        with mapped(httpcore.ReadTimeout, httpcore.ReadError):
            return self._endpoint.receive(max_bytes)

    def write(self, buffer: bytes, timeout: Optional[float] = None) -> None:
        """Write all of *buffer*; what begins a request waits for the next call."""
        if buffer and not self._held and buffer.endswith(b"\r\n\r\n"):
            self._held = bytes(buffer)
            return
        data, self._held = self._held + buffer, b""
        with mapped(httpcore.WriteTimeout, httpcore.WriteError):
            self._endpoint.send(data)

    def close(self) -> None:
        """Close the socket."""
        self._endpoint.sock.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> httpcore.NetworkStream:
        """Return the same connection with TLS on it."""
        outer = self._endpoint
        assert isinstance(outer, Endpoint)
        with mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            try:
                if isinstance(outer.sock, ssl.SSLSocket):
                    return Stream(InnerTLS(outer, ssl_context, server_hostname), self._network)
                return Stream(self._network.secure(outer.sock, ssl_context, server_hostname), self._network)
            except BaseException:
                self.close()
                raise

    def get_extra_info(self, info: str) -> object:
        """Return what httpcore asks for: the socket, and whether it has news while nothing is expected."""
        sock = self._endpoint.sock
        if info == "ssl_object":
            inner = self._endpoint
            return inner.tls if isinstance(inner, InnerTLS) else getattr(sock, "_sslobj", None)
        if info == "socket":
            return sock
        if info == "is_readable":
            return self._endpoint.has_unread or is_readable(sock)
        if info == "client_addr":
            return sock.getsockname()
        return sock.getpeername() if info == "server_addr" else None


class Backend(httpcore.NetworkBackend):
    """Makes the connections of threads."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Optional[float] = None,
        local_address: Optional[str] = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of *host* that answers."""
        with mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            sock = self._network.connect(host, port, timeout)
        return Stream(Endpoint(sock, self._network.deadline), self._network)

    def bind(self, stream: object) -> None:
        """Make a connection of a user's client keep the deadline of the calling thread, as far as that goes.

        A client that was made elsewhere has a network of its own; httpcore's documented trace shows it.
        """
        read: Callable[..., bytes] = stream.read  # type: ignore[attr-defined]  # of httpcore's NetworkStream
        write: Callable[..., None] = stream.write  # type: ignore[attr-defined]
        deadline = self._network.deadline

        def bound_read(max_bytes: int, timeout: Optional[float] = None) -> bytes:
            return read(max_bytes, max(HAIR_S, deadline.left_s(timeout)))

        def bound_write(buffer: bytes, timeout: Optional[float] = None) -> None:
            write(buffer, max(HAIR_S, deadline.left_s(timeout)))

        stream.read, stream.write = bound_read, bound_write  # type: ignore[attr-defined]
        self._network.sockets.add(stream.get_extra_info("socket"))  # type: ignore[attr-defined]


class AsyncStream(httpcore.AsyncNetworkStream):
    """The same for tasks, around a stream of anyio."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._held = b""

    async def read(self, max_bytes: int, timeout: Optional[float] = None) -> bytes:
        """Read up to *max_bytes* bytes; nothing at the end."""
        if self._held:
            await self.write(b"", timeout)
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: Optional[float] = None) -> None:
        """Write all of *buffer*; what begins a request waits for the next call."""
        if buffer and not self._held and buffer.endswith(b"\r\n\r\n"):
            self._held = bytes(buffer)
            return
        data, self._held = self._held + buffer, b""
        if data:
            await self._stream.write(data, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: Optional[str] = None,
        timeout: Optional[float] = None,
    ) -> httpcore.AsyncNetworkStream:
        """Return the same connection with TLS on it."""
        return AsyncStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> object:
        """Return what httpcore asks for."""
        extra: object = self._stream.get_extra_info(info)
        return extra


def has_unread(stream: object) -> bool:
    """Whether bytes wait above the socket of a stream for tasks, in TLS or in asyncio's protocol.

    anyio has no public way to ask, so they are found by the names of its attributes.
    """
    layer: object = stream
    while True:
        if getattr(getattr(layer, "_protocol", None), "read_queue", None):
            return True
        tls, incoming = getattr(layer, "_ssl_object", None), getattr(layer, "_read_bio", None)
        if tls is not None and (tls.pending() > 0 or getattr(incoming, "pending", 0) > 0):
            return True
        inner = getattr(layer, "_stream", None) or getattr(layer, "transport_stream", None)
        if inner is None:
            return False
        layer = inner


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """Makes the connections of tasks."""

    def __init__(self) -> None:
        self._backend: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()  # pyright: ignore[reportAttributeAccessIssue]  # without anyio it would be another
        self._resolver = Resolver()
        self._good: Dict[str, str] = {}

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: Optional[float] = None,
        local_address: Optional[str] = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of *host* that answers; each gets its share of the time left."""
        egress.check(host)
        until_s = clock.now_s() + (_LONG_S if timeout is None else timeout)
        with mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            addresses = await self._resolver.look_up_async(host, port, until_s - clock.now_s())
        error: Exception = httpcore.ConnectError(f"{host} has no address")
        for number, address in enumerate(first(self._good.get(host), addresses)):
            share_s = (until_s - clock.now_s()) / (len(addresses) - number)
            try:
                stream = await self._backend.connect_tcp(address, port, max(share_s, HAIR_S))
            except (httpcore.ConnectTimeout, httpcore.ConnectError) as refused:
                error = refused
            else:
                self._good[host] = address
                return AsyncStream(stream)
        raise error
