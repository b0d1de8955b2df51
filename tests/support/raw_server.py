"""A server that answers each request with the bytes that a test wants, over plain sockets or TLS."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from contextlib import closing, suppress
from typing import Callable, List, Optional

Answer = Callable[[socket.socket, bytes], None]


def response(status: str, body: bytes = b"{}", kind: str = "application/json", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


class RawServer:
    """Reads one request at a time, keeps it in `requests`, and calls *answer* with the connection and it."""

    def __init__(self, answer: Answer, tls: Optional[ssl.SSLContext] = None) -> None:
        self.requests: List[bytes] = []
        self.connections = 0
        self.answer = answer
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, host: str = "127.0.0.1") -> str:
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}/api/v1"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with closing(connection):
                while True:
                    request = self._read(connection)
                    if not request:
                        return
                    self.requests.append(request)
                    self.answer(connection, request)

    @staticmethod
    def _read(connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65_536)
            if not more:
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].partition(b":")[2]) if lengths else 0
        while len(body) < length:
            body += connection.recv(65_536)
        return head + b"\r\n\r\n" + body


def drip(connection: socket.socket, _: bytes) -> None:
    """Answer one byte after the other, without an end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        connection.sendall(b"x")
        threading.Event().wait(0.05)


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes from *source* until it ends, and the end as well."""
    with suppress(OSError):
        while True:
            data = source.recv(65_536)
            if not data:
                break
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


class Tunnel:
    """Answers CONNECT, and passes on what comes from either side."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._passing = threading.Lock()
        self._inner: List[socket.socket] = []

    def __call__(self, connection: socket.socket, request: bytes) -> None:
        assert request.startswith(b"CONNECT ")
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        inner = socket.create_connection(("127.0.0.1", self._port))
        self._inner.append(inner)
        try:
            threading.Thread(target=pass_on, args=(connection, inner), daemon=True).start()
            while inner.recv(1, socket.MSG_PEEK):
                with self._passing:
                    connection.sendall(inner.recv(65_536))
        finally:
            with self._passing:
                self._inner.remove(inner)
                inner.close()

    def wait_until_quiet(self) -> None:
        """Wait until all that the server has sent is passed on."""
        while True:
            with self._passing:
                if not select.select(self._inner, [], [], 0)[0]:
                    return
            time.sleep(0.001)
