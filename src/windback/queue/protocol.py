"""The two sides of a queue, as the scheduler sees them. Each kind of queue is made of the sides that it has.

The queue in memory and the one in a journal have both. Events that another process sends have the callers'
side alone, and a relay the drain side alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Optional, Protocol

from .intake import Refusals
from .outbox import Drain

if TYPE_CHECKING:
    from .journal import JournalQueue


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
    def disk(self) -> Optional[JournalQueue]:
        """What has to be maintained; None for a queue without files of its own."""
        ...

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, which owns nothing outside of itself."""

    def release(self) -> None:
        """Close everything outside of this process, at its end or after close."""
