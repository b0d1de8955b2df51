"""The two sides of a queue, as the scheduler sees them. Each kind of queue is made of the sides that it has.

The queue in memory and the one in a journal have both. Events that another process sends have the callers'
side alone, and a relay the drain side alone.
"""

from __future__ import annotations

from typing import Callable, List, Optional, Protocol, Set, Tuple

from ..event.batch import Batch, Limits, Waiting
from ..stats import AtomicCounter, DeliveryReport
from .intake import Refusals


class Intake(Protocol):
    """The callers' side. Each kind has its own `put`, which takes no lock and calls as little as it can."""

    #: How many events, and bytes, must wait for a caller to wake a worker.
    wake_at: int
    wake_at_bytes: int
    #: Called by a caller when one of the two is reached.
    wake: Callable[[], None]
    refusals: Refusals

    def put(self, record: bytes) -> bool:
        """Accept an encoded event; False if the overflow policy refused it, or the client is closed.

        Raises QueueFullError under overflow="raise", NoRoomError under "block".
        """
        ...

    def room(self) -> int:
        """Return how many more events may wait, 0 if the bytes allow none."""
        ...

    def has_room_for(self, size: int) -> bool:
        """Whether an event of *size* bytes would be accepted now."""
        ...

    def close(self, reason: str) -> None:
        """Accept nothing more: `put` counts a refusal under *reason*, "closed" or "disabled"."""


class Drain(Protocol):
    """The drain side. What changes something is called under one lock, the scheduler's.

    `leased`, `waiting`, and those from `next_position` on, need no lock.
    """

    #: What workers deliver. Read in one step; a lease that no worker holds is to be given back.
    leased: Set[Batch]

    #: Events of other processes that were queued here.
    adopted: int
    #: Whether the last batch ended where the events of another journal begin, so that more are due as well.
    is_cut: bool

    def take(self, limits: Limits) -> Optional[Batch]:
        """Lease the next batch: one given back, else up to the limits from the front."""
        ...

    def ack(self, batch: Batch, count: Optional[AtomicCounter] = None) -> None:
        """Forget a leased batch that is settled. In the same step its events are added to *count*."""

    def reject(self, batch: Batch, report: DeliveryReport, count: Optional[AtomicCounter] = None) -> bool:
        """Forget a batch that the API will never take; whether it was kept as dead letters."""
        ...

    def nack(self, batch: Batch) -> None:
        """Give a leased batch back; it is taken again, before anything else, with the same key."""

    def set_back(self, batch: Batch) -> None:
        """Give back a batch that used up its retries; others go first."""

    def split(self, batch: Batch) -> None:
        """Give a leased batch back as its halves."""

    def has_settled_since(self, batch: Batch) -> bool:
        """Return whether other batches were settled since this one was set back."""
        ...

    def reclaim(self) -> None:
        """Give every lease back: the workers that had them are gone."""

    def discard(self) -> List[Batch]:
        """Lease what only memory has, in batches that are then acked as dropped."""
        ...

    def waiting(self) -> Waiting:
        """Return what can be taken."""
        ...

    @property
    def has_returned(self) -> bool:
        """Whether a returned batch waits; it is due immediately."""
        ...

    @property
    def size_bytes(self) -> int:
        """The encoded bytes of all events held, leased ones included."""
        ...

    @property
    def leased_bytes(self) -> int:
        """The encoded bytes of the events that are leased."""
        ...

    def next_position(self) -> int:
        """Return the position that the next event will get."""
        ...

    def unsettled_before(self, position: int) -> int:
        """Return how many events with a lower position are still here; never too low."""
        ...

    def counts(self) -> Tuple[int, int, int, int]:
        """Return (accepted, evicted, pending, leased) at one moment."""
        ...

    def first_records(self) -> List[bytes]:
        """Return the first event of each part of what is here; the oldest event is among them."""
        ...

    def count_in_memory(self) -> int:
        """Return how many events are in memory alone, leased ones included."""
        ...


class Disk(Protocol):
    """What a queue has on disk, which a worker maintains between batches."""

    @property
    def size_on_disk(self) -> int:
        """What this process's segments take on disk (bytes)."""
        ...

    @property
    def adopting(self) -> int:
        """Events of exited processes that are not settled, as far as known; not 0 until all of them are."""
        ...

    @property
    def trouble(self) -> Optional[str]:
        """Why not everything on disk can be read right now."""
        ...

    def look(self) -> None:
        """Look for what exited processes left; without the scheduler's lock. Raises nothing."""

    def retry_in_s(self, now_s: float) -> Optional[float]:
        """Return the seconds until `maintain` tries again what failed; None if nothing did."""
        ...

    @property
    def needs_maintenance(self) -> bool:
        """Whether `maintain` would do something."""
        ...

    def maintain(self) -> Callable[[], None]:
        """Do what takes too long for a caller or a lock; what is returned is called under the lock."""
        ...


class Queue(Protocol):
    """What a scheduler drains."""

    @property
    def intake(self) -> Optional[Intake]:
        """The callers' side; None where other processes write the events."""
        ...

    @property
    def outbox(self) -> Drain:
        """The drain side."""
        ...

    @property
    def disk(self) -> Optional[Disk]:
        """What has to be maintained; None for a queue without files of its own."""
        ...

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, which owns nothing outside of itself."""

    def release(self) -> None:
        """Close everything outside of this process, at its end or after close."""
