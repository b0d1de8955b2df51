"""The seam between those who make events and those who send them.

    track_event ── put ──►  Queue  ── take ──►  Batch  ── ack / nack ──►  gone / taken again

A queue is written once, synchronously. `put` runs on request paths, from any number of threads and
without a lock; everything else is the drain side's, which calls it under its own lock.
"""

from __future__ import annotations

import os
from typing import List, NamedTuple, Optional, Protocol, Sequence

from ..batching import Limits


class Batch:
    """Events that travel together, leased from a queue until they are acked or nacked.

    records: each event's JSON bytes, never changed. key: the Idempotency-Key, the same for every
    try of these bytes. position: how many events had left the queue before the first of these;
    flush compares it with what was accepted before it was called.
    source, spots: the journal that they stand in, and where there; it outlives this process.
    """

    __slots__ = ("key", "position", "records", "size_bytes", "source", "spots", "was_tried")

    def __init__(
        self,
        records: Sequence[bytes],
        position: int,
        key: Optional[str] = None,
        *,
        source: Optional[Source] = None,
        spots: Sequence[int] = (),
    ) -> None:
        self.records = records
        self.position = position
        self.source = source
        self.spots = spots
        self.key = os.urandom(16).hex() if key is None else key
        self.size_bytes = sum(map(len, records))
        #: Whether a request was made for these bytes, under this key.
        self.was_tried = False

    def __len__(self) -> int:
        return len(self.records)

    def halves(self) -> List[Batch]:
        """Split in two. Their keys derive from this one's, so splitting again gives the same keys."""
        middle = len(self.records) // 2
        return [
            Batch(
                self.records[part],
                self.position,
                f"{self.key}-{number}",
                source=self.source,
                spots=self.spots[part],
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
        """Record that *batch* is off our hands."""


class Waiting(NamedTuple):
    """What waits in a queue: events not leased, and the bytes of those."""

    events: int
    size_bytes: int


class Waker(Protocol):
    """Something that sleeps."""

    def release(self) -> None:
        """End its sleep, from any thread; a second time does nothing."""


class Queue(Protocol):
    """What the drain side needs of a queue."""

    def put(self, record: bytes) -> bool:
        """Accept an event, or apply the overflow policy. Any thread; no lock, no I/O."""
        ...

    def take(self, limits: Limits) -> Optional[Batch]:
        """Lease the next batch, nacked ones first and unchanged; None if nothing waits."""

    def ack(self, batch: Batch) -> None:
        """Forget a batch: it is off our hands."""

    def nack(self, batch: Batch) -> None:
        """Give a batch back; it is taken again, before anything else, with the same key."""

    def split(self, batch: Batch) -> None:
        """Give a batch back as its halves."""

    def waiting(self) -> Waiting:
        """Return what can be taken."""
        ...

    def positions(self) -> tuple[int, int]:
        """Return (the lowest position not yet settled, the position the next put event will get)."""
        ...

    def discard(self) -> List[Batch]:
        """Take out everything that waits, as batches that are then acked as dropped."""
        ...
