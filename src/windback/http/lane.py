"""The way of batches to the API: h11 on a socket.

A worker of a busy process has to win the interpreter back after each system call that may wait, and each
time the application stops for a moment. So a batch costs one `send`, of head and body together, and
one `recv` of the answer. The layers of httpx and httpcore are left out: they take longer than the calls.

Only direct connections go this way; `Lane.fits` decides which. Plain calls, tasks, proxies and clients of
the user's stay with httpx (`transport`). Both ways share what is above them, `wire` (headers, what an answer
is worth), and what is below, `network` (one deadline for everything).

What happens in a try, from top to bottom of `Lane`: find a connection that is open, or make one (look-up,
connection, TLS; the key is sent only after the certificate was verified), send, read the answer to its end,
put the connection back. Each wait of these ends at the deadline of the try, in `network.Endpoint.wait` or,
for a new connection, in `network.Network.connect`.
"""

from __future__ import annotations

import ssl
import sys
from functools import partial
from typing import Dict, List, Optional

import h11

from .. import clock
from ..api.answer import Answer, Failure
from ..api.endpoints import Request
from ..config import Config
from ..secrets import without_frames
from . import certificates
from .interruption import interruption, raise_interruption
from .network import Endpoint, Network, mapped
from .proxy import usable_route
from .wire import KEEPALIVE_S, MAX_ANSWER_BYTES, NoAnswerError, Wire

#: The head of an answer is not larger. httpcore has the same bound.
_MAX_HEAD_BYTES = 100 * 1024
#: What h11 gets for each request, so that it expects an answer; its bytes are not sent. It checks each
#: header anew, which took a tenth of a batch's time. Config has checked what ours are made of.
_ASKED = h11.Request(method="POST", target="/", headers=[("Host", "api"), ("Content-Length", "0")])
_RECEIVE_BYTES = 64 * 1024
#: What a socket raises while it connects, and later: see `mapped`.
_UNCONNECTED = partial(NoAnswerError, Failure.CONNECT_TIMEOUT), partial(NoAnswerError, Failure.CONNECT)
_UNANSWERED = partial(NoAnswerError, Failure.TIMEOUT), partial(NoAnswerError, Failure.BROKEN)


class Lane:
    """Sends batches from threads. Safe to share between them."""

    def __init__(self, config: Config) -> None:
        self._wire = Wire(config)
        self._network = Network()
        #: The connections that no thread uses. A list is a stack that threads can share: the one that was
        #: used last is used next, and the others grow old.
        self._idle: List[_Connection] = []
        self._tls: Optional[ssl.SSLContext] = None
        #: Why no connection can be made at all: the answer to every try.
        self.broken: Optional[Answer] = None
        before = sys.exc_info()[1]
        try:
            if config.base_url.startswith("https"):
                self._tls = certificates.verifying()
                self._tls.set_alpn_protocols(["http/1.1"])
        except Exception as error:  # noqa: BLE001 - a certificate file that the environment has wrong
            raise_interruption(error, before)
            self.broken = self._wire.read_failure(error, Failure.CONNECT)

    @staticmethod
    def fits(config: Config) -> bool:
        """Return whether batches may go this way: directly, and without a client of the user's."""
        return config.http_client is None and usable_route(config.base_url).proxy is None

    def attempt(self, request: Request, timeout_s: float) -> Answer:
        """Make one try, of at most *timeout_s* seconds. What a network or a server does is an Answer."""
        if self.broken is not None:
            return self.broken
        self._network.deadline.start(timeout_s)
        before = sys.exc_info()[1]
        repeats = 0
        try:
            connection = self._take()
            if connection is not None:
                try:
                    return self._converse(connection, request)
                except _StaleError as error:  # the server closed it before it had the request, or as it came
                    raise_interruption(error, before)
                    repeats = 1
            answer = self._converse(self._connect(), request)
        except Exception as error:  # noqa: BLE001 - any exception means that there is no answer
            raise_interruption(error, before)
            answer = self._wire.read_failure(error)
        except BaseException as error:  # noqa: BLE001 - an interrupt, whose frames hold the key
            raise without_frames(error)  # noqa: B904
        return answer._replace(repeats=repeats) if repeats else answer

    def _take(self) -> Optional[_Connection]:
        """Return an open connection, or None."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.is_usable:
                return connection
            connection.close()

    def _connect(self) -> _Connection:
        with mapped(*_UNCONNECTED):
            sock = self._network.connect(self._wire.host, self._wire.port)
            if self._tls is None:
                return _Connection(Endpoint(sock, self._network.deadline))
            try:
                return _Connection(self._network.secure(sock, self._tls, self._wire.host))
            except BaseException:
                sock.close()
                raise

    def _converse(self, connection: _Connection, request: Request) -> Answer:
        before = sys.exc_info()[1]
        is_kept = False
        raw: Optional[bytes] = None
        try:
            connection.send(self._head(request) + request.body)
            response = connection.read_head()
            try:
                raw = connection.read_body()
                is_kept = connection.rest()
            except Exception as error:  # noqa: BLE001 - the status has come, and it is the answer
                raise_interruption(error, before)
        finally:
            if not is_kept:
                connection.close()
        if is_kept:
            self._idle.append(connection)
        return self._wire.read(request, response.status_code, _headers_of(response), raw)

    def _head(self, request: Request) -> bytes:
        first = b"%b %b HTTP/1.1\r\n" % (request.method.encode(), self._wire.target(request).encode())
        headers = [b"%b: %b\r\n" % header for header in self._wire.headers(request)]
        return b"".join((first, *headers, b"\r\n"))

    def abandon(self) -> None:
        """Let go of the sockets in a forked child, where they are the parent's."""
        self._network.abandon()
        self._idle.clear()

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().close()


class _StaleError(Exception):
    """A connection that was used before ended without a byte of an answer."""


class _Connection:
    """One connection, on which one request follows the other."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._idle_since_s: Optional[float] = None
        self._is_answered = False

    def send(self, data: bytes) -> None:
        """Send a request, in one write."""
        self._h11.send(_ASKED)
        self._h11.send(h11.EndOfMessage())
        self._is_answered = False
        before = sys.exc_info()[1]
        # A server may answer and close before it has read everything, as with 413: its answer counts.
        try:
            with mapped(*_UNANSWERED):
                self._endpoint.send(data)
        except NoAnswerError as error:
            if error.failure is Failure.TIMEOUT or interruption(error, before):
                raise

    def read_head(self) -> h11.Response:
        """Read the answer up to its body."""
        while True:
            event = self._next_event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise NoAnswerError(Failure.BROKEN, f"{event!r} is not an answer")

    def read_body(self) -> bytes:
        """Read the body to its end, or until it is larger than an answer may be."""
        body = bytearray()
        while len(body) <= MAX_ANSWER_BYTES:
            event = self._next_event()
            if not isinstance(event, h11.Data):
                break
            body += event.data
        return bytes(body)

    def _next_event(self) -> object:
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                raise NoAnswerError(Failure.BROKEN, str(error)) from error
            if event is not h11.NEED_DATA:
                return event
            self._h11.receive_data(self._receive())

    def _receive(self) -> bytes:
        try:
            with mapped(*_UNANSWERED):
                data = self._endpoint.receive(_RECEIVE_BYTES)
        except NoAnswerError as error:
            if self._is_stale and error.failure is Failure.BROKEN:
                raise _StaleError from error
            raise
        if not data and self._h11.their_state is h11.SEND_RESPONSE:
            if self._is_stale:
                raise _StaleError
            raise NoAnswerError(Failure.BROKEN, "Server disconnected without sending a response.")
        self._is_answered = True
        return data

    @property
    def _is_stale(self) -> bool:
        return self._idle_since_s is not None and not self._is_answered

    def rest(self) -> bool:
        """Make ready for another request; False if none may follow."""
        conversation = self._h11
        is_over = conversation.our_state is h11.DONE and conversation.their_state is h11.DONE
        if not is_over or conversation.trailing_data[0]:
            return False  # a side closes, or the server has sent more than an answer
        conversation.start_next_cycle()
        self._endpoint.rest()
        self._idle_since_s = clock.now_s()
        return True

    @property
    def is_usable(self) -> bool:
        """Whether a connection that was idle may be used again: it is young, and the server sent nothing."""
        assert self._idle_since_s is not None
        return clock.now_s() - self._idle_since_s < KEEPALIVE_S and self._endpoint.is_quiet

    def close(self) -> None:
        """Close the socket."""
        self._endpoint.sock.close()


def _headers_of(response: h11.Response) -> Dict[str, str]:
    headers: Dict[str, str] = {}
    for raw_name, raw_value in response.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
