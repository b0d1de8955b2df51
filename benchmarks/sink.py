"""The server all clients send to: it reads a request, counts what is in it, waits, and says yes.

It is a process of its own, so that its work is not the client's, with one thread per connection, so that
a latency holds up nothing but the request it belongs to. It prints its port and serves until it is ended.

Events are counted by their name, which occurs once in each of them and nowhere else. Compressed bodies
are kept, and looked into when somebody asks for the count, after the clock has stopped. `first` is when the
first event arrived, on the clock that all processes of a machine share.

What the harness asks is never delayed: ``/_stats``, ``/_reset?latency=0.05``, ``/_reset?latency=hang``.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any, Iterator
from urllib.parse import parse_qs, urlsplit

MARKER = b"feature_used"

#: A request in "hang" mode is held this long (seconds), or until the next reset.
HANG = 600.0

#: What a client expects as an answer, by the start of the path; of OTLP, an empty protobuf message.
ANSWERS = {
    "/v1/download_config_specs": b'{"has_updates":false}',
    "/v1/logs": b"",
    "/2/httpapi": b'{"code":200}',
    "/track": b'{"status":1}',
    "/1/batch/": b"[]",
}
ANSWER = b'{"status":"ok","success":true}'


class Sink:
    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.reset(0.0)

    def reset(self, latency: float | None) -> None:
        """Forget all counts; from now on answer after `latency` seconds, or not at all if it is None."""
        self.released.set()
        self.released = threading.Event()
        with self.lock:
            self.latency = latency
            self.events = self.bytes = self.head_bytes = 0
            self.first: float | None = None
            self.paths: Counter[str] = Counter()
            self.compressed: list[bytes] = []

    def stats(self) -> dict[str, Any]:
        with self.lock:
            compressed, self.compressed = self.compressed, []
            self.events += sum(gzip.decompress(body).count(MARKER) for body in compressed)
            return {
                "events": self.events,
                "bytes": self.bytes,
                "head_bytes": self.head_bytes,
                "paths": dict(self.paths),
                "first": self.first,
            }

    def serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.converse, args=(connection,), daemon=True).start()

    def converse(self, connection: socket.socket) -> None:
        with connection:
            try:
                reader = Reader(connection)
                while reader.read():
                    connection.sendall(reply(self.answer(reader)))
            except OSError:
                pass  # the client is gone, as it may be when a measurement is over

    def answer(self, request: Reader) -> bytes:
        if request.path.startswith("/_"):
            return self.control(request.path)
        self.count(request)
        if self.latency is None:
            self.released.wait(HANG)
        elif self.latency:
            time.sleep(self.latency)
        return next((body for path, body in ANSWERS.items() if request.path.startswith(path)), ANSWER)

    def control(self, path: str) -> bytes:
        target = urlsplit(path)
        if target.path == "/_reset":
            latency = parse_qs(target.query)["latency"][0]
            self.reset(None if latency == "hang" else float(latency))
        return json.dumps(self.stats()).encode()

    def count(self, request: Reader) -> None:
        now = time.monotonic()
        events = 0 if request.gzipped else request.buffer.count(MARKER, request.start, request.end)
        with self.lock:
            self.paths[request.path] += 1
            self.bytes += request.end - request.start
            self.head_bytes += request.start
            self.events += events
            if request.gzipped:
                self.compressed.append(bytes(request.buffer[request.start : request.end]))
            if self.first is None and (events or request.gzipped):
                self.first = now


class Reader:
    """Reads one request after the other into one buffer, where the body is `buffer[start:end]`."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = bytearray(1 << 20)
        self.filled = 0

    def read(self) -> bool:
        """Wait for the next whole request; False when the client hung up."""
        self.filled = 0
        while (head_end := self.buffer.find(b"\r\n\r\n", 0, self.filled)) < 0:
            if not self.receive():
                return False
        lines = bytes(self.buffer[:head_end]).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        self.path = lines[0].split(" ")[1]
        self.gzipped = headers.get("content-encoding") == "gzip"
        self.start = head_end + 4
        if headers.get("transfer-encoding") == "chunked":
            return self.read_chunks()
        self.end = self.start + int(headers.get("content-length", 0))
        while self.filled < self.end:
            if not self.receive():
                return False
        return True

    def read_chunks(self) -> bool:
        """Move the chunks together, so that the body lies in one piece."""
        position = self.end = self.start
        while True:
            while (line_end := self.buffer.find(b"\r\n", position, self.filled)) < 0:
                if not self.receive():
                    return False
            size = int(self.buffer[position:line_end].split(b";")[0], 16)
            while self.filled < line_end + 2 + size + 2:
                if not self.receive():
                    return False
            self.buffer[self.end : self.end + size] = self.buffer[line_end + 2 : line_end + 2 + size]
            self.end += size
            position = line_end + 2 + size + 2
            if size == 0:
                return True

    def receive(self) -> bool:
        if self.filled == len(self.buffer):
            self.buffer += bytes(len(self.buffer))
        with memoryview(self.buffer) as view:
            received = self.connection.recv_into(view[self.filled :])
        self.filled += received
        return received > 0


def reply(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """Run one in a process of its own; its URL."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}" if process.stdout else ""
        finally:
            process.kill()


if __name__ == "__main__":
    started = Sink()
    print(started.listener.getsockname()[1], flush=True)
    started.serve()
