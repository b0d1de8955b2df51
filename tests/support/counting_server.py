"""A server that stores nothing, in a process of its own: it counts what arrived, and what came twice.

Each event has a number `n`; one bit each says whether it arrived, so ten million events take 1.25 MB. Batches
are known by their idempotency keys: the same key with the same body is a repeat, which the API answers as the
first time. A number that arrives under a second key is doubled.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from typing import Dict, List, NamedTuple
from zlib import crc32

import orjson


class Counts(NamedTuple):
    """What a counting server has seen."""

    arrived: int
    doubled: int
    #: Batches that came again under their keys.
    repeated: int
    #: Keys that came with another body.
    conflicts: int
    #: Requests that were not answered as they should be, by kind.
    faults: Dict[str, int]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, events: int, rate: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._lock = threading.Lock()
        self._bits = bytearray(events // 8 + 1)
        self._keys: Dict[str, int] = {}
        self._random = random.Random(1)
        self._rate = rate
        self.counts = Counts(0, 0, 0, 0, {})
        self._events = events

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that hung up, as killed relays do."""

    def missing(self) -> List[int]:
        """Return some of the numbers that are missing."""
        with self._lock:
            absent = (n for n in range(self._events) if not self._bits[n >> 3] & 1 << (n & 7))
            return list(islice(absent, 10))

    def fault(self) -> str:
        """Return which fault this request gets: none, mostly."""
        with self._lock:
            kinds = ["unavailable", "busy", "drop before", "drop after", "slow"]
            kind = self._random.choice(kinds) if self._random.random() < self._rate else ""
            if kind:
                self.counts.faults[kind] = self.counts.faults.get(kind, 0) + 1
            return kind

    def count(self, key: str, body: bytes) -> None:
        numbers = [event["n"] for event in _properties(body)]
        with self._lock:
            counts, checksum = self.counts, crc32(body)
            if key in self._keys:
                is_conflict = self._keys[key] != checksum
                self.counts = counts._replace(
                    repeated=counts.repeated + 1, conflicts=counts.conflicts + is_conflict
                )
                return
            self._keys[key] = checksum
            doubled = 0
            for n in numbers:
                at, bit = n >> 3, 1 << (n & 7)
                doubled += bool(self._bits[at] & bit)
                self._bits[at] |= bit
            self.counts = counts._replace(
                arrived=counts.arrived + len(numbers) - doubled, doubled=counts.doubled + doubled
            )


def _properties(body: bytes) -> list:
    events = orjson.loads(body)
    return [event["properties"] for event in events.get("events", [events])]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the body waits 40 ms, until the head is acknowledged
    server: _Server

    def do_GET(self) -> None:
        found = self.server.missing() if self.path == "/missing" else self.server.counts
        self._answer(200, json.dumps(found).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        fault = self.server.fault()
        if fault == "drop before":
            self.close_connection = True
        elif fault == "unavailable":
            self._answer(503, b"{}")
        elif fault == "busy":
            self._answer(429, b"{}", ("Retry-After", "0.05"))
        else:
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            self.server.count(self.headers["idempotency-key"], body)
            if fault == "drop after":
                self.close_connection = True
                return
            if fault == "slow":
                threading.Event().wait(0.2)
            self._answer(200, b'{"success":true}')

    def _answer(self, status: int, body: bytes, *headers: tuple) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


class CountingServer:
    """The server in a process of its own.

    events: all numbers are below it; rate: the share of requests that fail or are slow.
    """

    def __init__(self, events: int, rate: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(events), str(rate)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._origin = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self.url = f"{self._origin}/api/v1"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def counts(self) -> Counts:
        return Counts(*self._get("/counts"))

    def missing(self) -> List[int]:
        """Return some of the numbers that are missing. It looks at all of them, so ask once."""
        return self._get("/missing")

    def _get(self, path: str) -> list:
        with self._opener.open(self._origin + path, timeout=60) as answer:
            return json.load(answer)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    counting = _Server(int(sys.argv[1]), float(sys.argv[2]))
    print(counting.server_address[1], flush=True)
    counting.serve_forever()
