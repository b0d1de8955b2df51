"""Events that travel together: what a batch is, when one is due, and how much goes in.

Pure: no clock, no lock, no socket. A batch is bounded by events and by the bytes of its body.
"""

from __future__ import annotations

import os
from typing import List, NamedTuple, Optional, Protocol, Sequence

from ..config import BATCH_FRAME_BYTES

_HEAD, _TAIL = b'{"events":[', b"]}"
_MAX_KEY = 200


class Limits(NamedTuple):
    """What bounds a batch: events, bytes of its body, seconds its first event may wait for others."""

    max_events: int
    max_bytes: int
    interval_s: float


def is_key(text: str) -> bool:
    """Return whether *text*, from a file or from Redis, is an Idempotency-Key: it is sent in a header."""
    return 0 < len(text) <= _MAX_KEY and text.isascii() and text.isprintable() and " " not in text


def wait_s(count: int, size_bytes: int, age_s: float, limits: Limits) -> Optional[float]:
    """Return the seconds to wait before a batch is due: 0.0 for now, None while there is nothing.

    count, size_bytes: the events waiting and their bytes; age_s: since the first of them came.
    """
    if count == 0:
        return None
    if count >= limits.max_events or size_bytes >= limits.max_bytes:
        return 0.0
    return max(0.0, limits.interval_s - age_s)


def cut(records: Sequence[bytes], limits: Limits) -> int:
    """Return how many of *records*, from the front, make one batch: at least one, if there is one."""
    count = len(records)
    if (
        count <= limits.max_events
        and sum(map(len, records)) + count - 1 + BATCH_FRAME_BYTES <= limits.max_bytes
    ):
        return count  # nearly always, and three times as fast as counting
    total = BATCH_FRAME_BYTES - 1  # a comma less than there are events
    for count, record in enumerate(records):
        total += len(record) + 1
        if count == limits.max_events or (count and total > limits.max_bytes):
            return count
    return len(records)


def chunks(records: Sequence[bytes], limits: Limits) -> List[Sequence[bytes]]:
    """Cut *records* into as few batches as the limits allow, in order."""
    batches = []
    while records:
        count = cut(records, limits)
        batches.append(records[:count])
        records = records[count:]
    return batches


def join(records: Sequence[bytes]) -> bytes:
    """Return the body of a batch (docs page "Event Tracking")."""
    return _HEAD + b",".join(records) + _TAIL


class Batch:
    """Events that travel together, leased from a queue until they are acked or nacked.

    records: each event's JSON bytes, never changed. key: the Idempotency-Key, the same for every
    try of these bytes. position: how many events had left the queue before the first of these;
    flush compares it with the number of events accepted before the call.
    source, locations: the journal that contains them, and their offsets there; it outlives this process.
    """

    __slots__ = (
        *("due", "failed_at", "failures", "is_recorded", "is_settled", "key", "locations", "position"),
        *("records", "seen", "size_bytes", "source", "was_tried"),
    )

    def __init__(
        self,
        records: Sequence[bytes],
        position: int,
        key: Optional[str] = None,
        *,
        source: Optional[Source] = None,
        locations: Sequence[int] = (),
    ) -> None:
        self.records = records
        self.position = position
        self.source = source
        self.locations = locations
        self.key = os.urandom(16).hex() if key is None else key
        self.size_bytes = sum(map(len, records))
        #: Whether a request was made for these bytes, under this key.
        self.was_tried = False
        #: How often it used up its retries.
        self.failures = 0
        #: How many batches of its queue were settled when it was set back last.
        self.failed_at = 0
        #: The number of batches that are settled before it is tried again, if it was set back.
        self.due = 0
        #: Whether the source has recorded this batch, and that it is settled.
        self.is_recorded = self.is_settled = False
        #: How many records at the front are not part of it; only an outbox that makes a batch sets this.
        self.seen = 0

    def __len__(self) -> int:
        return len(self.records) - self.seen

    @property
    def is_missing(self) -> bool:
        """Whether its events are gone with the file that held them. Such a batch has no others."""
        return not self.records[self.seen]

    def halves(self) -> List[Batch]:
        """Split in two. Their keys derive from this one's, so splitting again gives the same keys."""
        middle = len(self.records) // 2
        return [
            Batch(
                self.records[part],
                self.position,
                f"{self.key}-{number}",
                source=self.source,
                locations=self.locations[part],
            )
            for number, part in enumerate((slice(middle), slice(middle, None)))
        ]


class Source(Protocol):
    """Where events come from that outlive this process, and what is to be remembered of them there."""

    @property
    def name(self) -> str:
        """The name of its directory."""
        ...

    def lease(self, batch: Batch) -> None:
        """Record that *batch* is about to be sent under its key."""

    def split(self, batch: Batch, halves: Sequence[Batch]) -> None:
        """Record that *batch* goes on as its halves."""

    def settle(self, batch: Batch) -> None:
        """Record that *batch* is settled, and mark it as settled in the same step."""


class Waiting(NamedTuple):
    """What waits in a queue: events not leased, and the bytes of those."""

    events: int
    size_bytes: int
