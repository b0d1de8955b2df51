"""The connections of threads: one deadline for a whole request, from the look-up of a name to the last byte.

httpx limits each read and write separately, so a server that sends a byte now and then blocks a caller
forever. It has no limit for the look-up of a name. Here each wait ends at the deadline of its thread.

The lane sends batches on these connections, and `streams` hands them to httpx. This module also applies the
egress block of `windback.testing`, and lists the sockets that a forked child must drop.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import sys
import threading
from typing import Callable, Dict, Generator, List, Optional, TypeVar
from weakref import WeakSet

from .. import clock
from . import egress
from .interruption import interruption
from .names import Resolver

A = TypeVar("A")
T = TypeVar("T")
#: Longest single wait of a socket (seconds). Setting another timeout costs a system call, so it is set once,
#: and the wait is repeated while there is time left.
_SLICE_S = 1.0
#: Where the kernel can keep the time of a wait. On Windows a socket that timed out can't be used any more.
_KERNEL_KEEPS_TIME = sys.platform in ("linux", "darwin")
#: Of Linux's `struct tcp_info`: the first byte is the state, and the last field here the bytes received.
_TCP_INFO_RECEIVED, _TCP_INFO_BYTES = 128, 136
#: The state of an open connection, which is the first byte of TCP_INFO.
_ESTABLISHED = b"\x01"
#: What a wait raises that lasted its whole slice.
_SLICE_IS_OVER = (socket.timeout, BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
#: Not 0, which means not to wait at all: a hair's breadth ends in the usual timeout error (seconds).
HAIR_S = 0.001


class Deadline:
    """When the request of the calling thread must be over."""

    def __init__(self) -> None:
        self._local = threading.local()

    def start(self, timeout_s: float) -> None:
        """Begin a request that may take *timeout_s* seconds."""
        self._local.until_s = clock.now_s() + timeout_s

    def left_s(self, limit_s: Optional[float] = None) -> float:
        """Return the seconds that are left, at most *limit_s*; 0 if the time is over."""
        left_s = max(0.0, getattr(self._local, "until_s", 0.0) - clock.now_s())
        return left_s if limit_s is None else min(limit_s, left_s)


@contextlib.contextmanager
def mapped(
    late: Callable[[str], Exception], failed: Callable[[str], Exception]
) -> Generator[None, None, None]:
    """Raise what *late* makes of a timeout's text, and what *failed* makes of that of another OSError."""
    try:
        yield
    except OSError as error:
        make = late if isinstance(error, (socket.timeout, TimeoutError)) else failed
        raise make(str(error) or type(error).__name__) from error


class Endpoint:
    """A socket with a deadline; the socket may be one of TLS.

    The kernel keeps the time of each wait (SO_RCVTIMEO and SO_SNDTIMEO), so a wait is one system call. With
    Python's own timeouts it would be two or three, for these ask `poll` first. Each call gives up the
    interpreter, and in a busy process winning it back takes longer than the call.

    For that Python takes the socket for a non-blocking one, and the kernel for a blocking one. Python's
    timeouts are used where that is not enough:

    - TLS reads in C until a whole record is there, so a server that drips bytes would hold it forever.
    - In the main thread a signal ends the wait in the kernel, and Python begins it anew with its full time.
      A timer that fires often would hold it forever.
    - A socket of a library for greenlets must not block a thread.
    """

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock = sock
        self.deadline = deadline
        self._arrived: Optional[bytes] = None
        self._is_for_kernel = _KERNEL_KEEPS_TIME and type(sock).__module__ == "socket"
        #: Whether the kernel keeps the time, and how long a wait may take (seconds).
        self._limit = (False, 0.0)

    def _set_limit(self, in_kernel: bool, timeout_s: float) -> None:  # noqa: FBT001 - as in `_limit`
        if in_kernel:
            if not self._limit[0]:
                self.sock.settimeout(0.0)
                os.set_blocking(self.sock.fileno(), True)
            value = struct.pack("ll", int(timeout_s), int(timeout_s % 1.0 * 1e6))
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
        else:
            self.sock.settimeout(timeout_s)
        self._limit = in_kernel, timeout_s

    def wait(self, call: Callable[[A], T], argument: A) -> T:
        """Return what *call* returns. Raises socket.timeout if it still waits at the deadline."""
        while True:
            left_s = self.deadline.left_s()
            if left_s <= 0.0:
                raise socket.timeout("timed out")
            # Less than a slice is left: the last wait must end in time.
            timeout_s = max(HAIR_S, min(left_s, _SLICE_S))
            in_kernel = self._is_for_kernel and threading.get_ident() != threading.main_thread().ident
            if (in_kernel, timeout_s) != self._limit:
                self._set_limit(in_kernel, timeout_s)
            try:
                return call(argument)
            except _SLICE_IS_OVER as error:
                if interruption(error) is not None:  # a signal handler's, which is the same class
                    raise

    def rest(self) -> None:
        """Remember what has arrived, for `is_quiet`."""
        self._arrived = _arrived(self.sock)

    @property
    def is_quiet(self) -> bool:
        """Whether the connection is open, and nothing has arrived since `rest`: what would is unexpected."""
        if self._arrived is None:
            return not is_readable(self.sock)
        # The server may have closed with its answer, and so before `rest`.
        return self._arrived[:1] == _ESTABLISHED and _arrived(self.sock) == self._arrived

    @property
    def has_unread(self) -> bool:
        """Whether TLS holds bytes that the socket no longer shows."""
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.fileno() >= 0 and self.sock.pending() > 0

    def receive(self, max_bytes: int) -> bytes:
        """Return what arrives next; nothing at the end."""
        return self.wait(self.sock.recv, max_bytes)

    def send(self, data: bytes) -> None:
        """Send all of *data*."""
        view = memoryview(data)
        while view:
            view = view[self.wait(self.sock.send, view) :]


class Network:
    """Makes the connections of one client."""

    def __init__(self) -> None:
        self.deadline = Deadline()
        self.sockets: WeakSet[socket.socket] = WeakSet()
        self._resolver = Resolver()
        self._good: Dict[str, str] = {}

    def connect(self, host: str, port: int, timeout: Optional[float] = None) -> socket.socket:
        """Return a socket that is connected to the first address of *host* that answers. Raises OSError."""
        egress.check(host)
        addresses = self._resolver.look_up(host, port, self.deadline.left_s(timeout))
        sock = self._connect(host, port, addresses, timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets.add(sock)
        return sock

    def secure(self, sock: socket.socket, context: ssl.SSLContext, host: Optional[str]) -> Endpoint:
        """Return the connection with TLS on it, after the certificate was verified. Raises OSError."""
        try:
            wrapped = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        except BaseException:
            sock.close()
            raise
        endpoint = Endpoint(wrapped, self.deadline)
        try:
            endpoint.wait(lambda _: wrapped.do_handshake(), None)
        except BaseException:
            wrapped.close()
            raise
        self.sockets.add(wrapped)
        return endpoint

    def _connect(self, host: str, port: int, addresses: List[str], timeout: Optional[float]) -> socket.socket:
        """Try one address after the other; each gets its share of the time that is left."""
        error = OSError(f"{host} has no address")
        for number, address in enumerate(first(self._good.get(host), addresses)):
            share_s = self.deadline.left_s(timeout) / (len(addresses) - number)
            try:
                sock = socket.create_connection((address, port), max(share_s, HAIR_S))
            except OSError as refused:
                error = refused
            else:
                self._good[host] = address
                return sock
        raise error

    def abandon(self) -> None:
        """Let go of the sockets in a forked child, where they are the parent's.

        Not by closing the pool: a thread that does not exist here may hold its lock.
        """
        for each in list(self.sockets):
            descriptor = each.detach()
            if descriptor >= 0:
                os.close(descriptor)  # the connection itself stays open: the parent has it, too


def first(good: Optional[str], addresses: List[str]) -> List[str]:
    """Return *addresses* with the one first that answered last time."""
    return addresses if good not in addresses else [good, *(each for each in addresses if each != good)]


def _arrived(sock: socket.socket) -> Optional[bytes]:
    """Return the state of a connection and how much has arrived, None if this system does not report it.

    Unlike a look with `poll` this does not give up the interpreter.
    """
    if sys.platform != "linux":
        return None
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return info[:1] + info[_TCP_INFO_RECEIVED:]


def is_readable(sock: socket.socket) -> bool:
    """Return whether there is something to read, which on an idle connection means that it was closed."""
    descriptor = sock.fileno()
    if descriptor < 0:
        return True
    if hasattr(select, "poll"):  # not on Windows; select can't see descriptors above 1,023
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([descriptor], [], [], 0)[0])
