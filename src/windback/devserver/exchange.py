"""One request on its way through the server, and the log and tallies of all of them."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Deque, Dict, List, Optional, Tuple

from .options import BASE_PATH
from .store import iso

#: Requests kept for inspection; older ones are forgotten, the tallies are not.
KEPT_REQUESTS = 10_000

#: Request headers shown in the log, next to the redacted key.
_SHOWN = (
    *(
        "accept",
        "content-encoding",
        "content-length",
        "content-type",
        "idempotency-key",
        "user-agent",
        "x-api-key",
    ),
)

Headers = Dict[str, str]


class Exchange:
    """What is known of one request. The gateway makes it, the routes add to it, the log shows it."""

    __slots__ = (
        *("number", "method", "path", "headers", "body", "body_bytes", "received_at", "status", "fault"),
        *("events", "duplicate"),
    )

    def __init__(self, number: int, method: str, path: str, headers: List[Tuple[bytes, bytes]]) -> None:
        self.number = number
        self.method = method
        self.path = path
        self.headers: Headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        #: The bytes as they came; None before, when there were more than the limit, and when all is over.
        self.body: Optional[bytes] = None
        self.body_bytes = 0
        self.received_at = time.time()
        #: None until an answer has started; stays None when the connection was dropped instead.
        self.status: Optional[int] = None
        #: What a fault rule did to the request, or "".
        self.fault = ""
        #: Events in the body, stored or not.
        self.events = 0
        #: Whether a stored answer was given again.
        self.duplicate = False

    @property
    def is_track(self) -> bool:
        """Whether this is a `POST /track`."""
        return self.method == "POST" and self.path == BASE_PATH + "/track"

    @property
    def request_id(self) -> str:
        """What the answer's X-Request-Id says."""
        return f"req_{self.number}"

    def describe(self) -> Dict[str, object]:
        """The request as the control plane shows it; the API key is cut to its kind."""
        shown = {name: self.headers[name] for name in _SHOWN if name in self.headers}
        if "x-api-key" in shown:
            kind, mark, _ = shown["x-api-key"].partition("_")
            shown["x-api-key"] = (kind + mark if kind in ("sk", "pub") else "") + "***"
        return {
            "request_id": self.request_id,
            "received_at": iso(self.received_at),
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "fault": self.fault or None,
            "headers": shown,
            "idempotency_key": self.headers.get("idempotency-key"),
            "body_bytes": self.body_bytes,
            "events": self.events,
            "duplicate": self.duplicate,
        }


class Journal:
    """Counts every request to the API and remembers the last `KEPT_REQUESTS`."""

    def __init__(self) -> None:
        self.recent: Deque[Exchange] = deque(maxlen=KEPT_REQUESTS)
        self._started = self._forgotten = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything, requests under way included; request ids go on from where they were."""
        self._forgotten = self._started
        self.recent.clear()
        self.requests = self.track_requests = self.rejected = self.faults = 0
        self.duplicates = self.duplicate_events = 0
        self.by_status: Counter[int] = Counter()

    def start(self, method: str, path: str, headers: List[Tuple[bytes, bytes]]) -> Exchange:
        """Enter a request as soon as its head is read, so that one that hangs can be seen."""
        self._started += 1
        exchange = Exchange(self._started, method, path, headers)
        self.recent.append(exchange)
        self.requests += 1
        self.track_requests += exchange.is_track
        return exchange

    def has_forgotten(self, exchange: Exchange) -> bool:
        """Whether a request came before the last reset."""
        return exchange.number <= self._forgotten

    def finish(self, exchange: Exchange) -> None:
        """Tally a request that was answered, dropped or left hanging."""
        exchange.body = None  # ten thousand of them would be too much to keep
        if self.has_forgotten(exchange):
            return
        if exchange.status is not None:
            self.by_status[exchange.status] += 1
        if exchange.fault:
            self.faults += 1
        elif exchange.is_track and exchange.status is not None and 400 <= exchange.status < 500:
            self.rejected += 1
        if exchange.duplicate:
            self.duplicates += 1
            self.duplicate_events += exchange.events

    def counts(self) -> Dict[str, object]:
        """The tallies since the start or the last reset."""
        return {
            "requests": self.requests,
            "track_requests": self.track_requests,
            "rejected": self.rejected,
            "duplicates": self.duplicates,
            "duplicate_events": self.duplicate_events,
            "faults": self.faults,
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
        }
