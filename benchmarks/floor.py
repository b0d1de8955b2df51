"""The cheapest imaginable code for the job: all that a client owes its user is left out.

Encode, copy, append; one thread that joins 100 events and posts them on one connection. No checks, no bounds,
no counts, no retries, no look at the answer. What a client costs beyond this is what it costs.
"""

from __future__ import annotations

import collections
import http.client
import threading
import time
from datetime import datetime, timezone
from typing import Any, Callable
from urllib.parse import urlsplit

import orjson

#: Events in a request: as many as Windback's API takes.
BATCH = 100

#: Seconds between two looks at the queue while less than a batch is in it.
NAP = 0.005


class Floor:
    def __init__(self, url: str) -> None:
        self.queue: collections.deque[bytes] = collections.deque()
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc)
        self.flushing = False
        self.busy = False
        self.track_event = self.tracker()
        threading.Thread(target=self.drain, daemon=True).start()

    def tracker(self) -> Callable[[str, str, dict[str, Any]], None]:
        """The call, as a closure: it looks up nothing that it need not."""
        put, dumps, now, utc = self.queue.append, orjson.dumps, datetime.now, timezone.utc

        def track_event(event: str, customer_email: str, properties: dict[str, Any]) -> None:
            # The copy is part of the job: what orjson returns keeps its 4 KB working buffer alive.
            put(
                b"%b"
                % dumps(
                    {
                        "event": event,
                        "customer_email": customer_email,
                        "timestamp": now(utc),
                        "properties": properties,
                    }
                )
            )

        return track_event

    def drain(self) -> None:
        queue, take = self.queue, self.queue.popleft
        while True:
            count = min(len(queue), BATCH)
            if count < BATCH and not (self.flushing and count):
                time.sleep(NAP)
                continue
            self.busy = True
            self.post(b'{"events":[' + b",".join([take() for _ in range(count)]) + b"]}")
            self.busy = False

    def post(self, body: bytes) -> None:
        self.connection.request("POST", "/track", body, {"Content-Type": "application/json"})
        self.connection.getresponse().read()

    def flush(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self.flushing = True
        while (self.queue or self.busy) and time.monotonic() < deadline:
            time.sleep(0.0005)
