"""The queue in memory: a deque of encoded events, bounded by count and by bytes.

The rule of this file: **a caller takes no lock.** It does only what CPython does in one step —
append to a deque, move a counter, compare a number. A lock here, however short, makes busy threads
wait for the interpreter behind the thread that has it: 1.2 µs a call becomes 370. What that costs is
precision in one place: the bound by count may be overrun by as many events as there are threads in
`put` at that moment. The bound by bytes is exact.
"""

from __future__ import annotations

from itertools import starmap
from operator import neg
from typing import Callable, Deque, NoReturn

from ..steps import call, in_one_step
from .intake import NEVER, Refusals, nobody
from .line import Line
from .outbox import Outbox


class MemoryIntake:
    """The callers' side. `wake` is called, by the caller, when `wake_at` waiting events are reached."""

    __slots__ = (
        *("_evicted", "_items", "_line", "_max_bytes", "_max_events", "_move_bytes"),
        *("max_waiting", "refusals", "wake", "wake_at", "wake_at_bytes"),
    )

    def __init__(self, line: Line[NoReturn], max_bytes: int, refusals: Refusals) -> None:
        self._max_bytes = max_bytes
        self.refusals = refusals
        #: Set by what drains the queue.
        self.wake: Callable[[], None] = nobody
        self.reset(line)

    def reset(self, line: Line[NoReturn]) -> None:
        """Start anew with another line, as in a forked child, where the events are the parent's."""
        self._line = line
        self._items: Deque[bytes] = line.items
        self._move_bytes = line.move_bytes
        self._evicted = line.evicted
        self._max_events = line.max_events
        #: Callers compare with this instead of with the bound, so that -1 sends them all the slow way.
        self.max_waiting = line.max_events
        self.wake_at = 0
        self.wake_at_bytes = NEVER
        self.refusals.reset()

    def put(self, record: bytes) -> bool:
        """Accept an encoded event; see Intake.put."""
        items = self._items
        waiting = len(items)
        held = self._move_bytes(len(record), 1)
        if waiting >= self.max_waiting or held > self._max_bytes:
            return self._put_without_room(record)
        items.append(record)
        if waiting >= self.wake_at or held >= self.wake_at_bytes:
            self.wake()
        return True

    def _put_without_room(self, record: bytes) -> bool:
        refusals = self.refusals
        if refusals.closed is None and refusals.overflow == "drop_oldest" and self._make_room():
            self._items.append(record)
            if len(self._items) > self.wake_at:
                self.wake()
            refusals.announce(self._line.announced, refusals.overflow)
            return True
        self._move_bytes(-len(record), 1)
        return refusals.turn_away(self._line.announced, self._why_full)

    def _why_full(self) -> str:
        waiting = len(self._items)
        verb = "event waits" if waiting == 1 else "events wait"
        return f"{waiting:,} {verb}, and max_queue_size or max_queue_bytes allows no more"

    def _make_room(self) -> bool:
        """Discard the oldest events until the one whose bytes are already counted fits."""
        # Not `max_waiting`, which close() puts below any length.
        while len(self._items) >= self._max_events or self._move_bytes(0, 1) > self._max_bytes:
            try:
                self._evict()
            except IndexError:  # the rest is in requests right now
                return False
        return True

    def _evict(self) -> None:
        """Discard the oldest event and count it; IndexError if none waits."""
        evicted = [b""]
        in_one_step(
            map(evicted.__setitem__, (0,), starmap(self._items.popleft, ((),))),
            call(self._evicted.move, 1, 1),
            map(self._move_bytes, map(neg, map(len, evicted)), (1,)),
        )

    def room(self) -> int:
        """Return how many more events may wait, 0 if the bytes allow none."""
        return max(0, self.max_waiting - len(self._items)) if self._move_bytes(0, 1) < self._max_bytes else 0

    def has_room_for(self, size: int) -> bool:
        """Whether an event of *size* bytes would be accepted now."""
        return len(self._items) < self.max_waiting and self._move_bytes(0, 1) + size <= self._max_bytes

    def close(self, reason: str) -> None:
        """Accept nothing more; see Intake.close."""
        self.refusals.closed = reason
        self.max_waiting = -1


class MemoryQueue:
    """Both sides of a queue in memory."""

    disk = None

    def __init__(self, max_events: int, max_bytes: int, refusals: Refusals) -> None:
        self._max_events = max_events
        self._evicts = refusals.overflow == "drop_oldest"
        line: Line[NoReturn] = Line(max_events, evicts=self._evicts)
        self.intake = MemoryIntake(line, max_bytes, refusals)
        self.outbox = Outbox(line)

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, where the events are the parent's."""
        line: Line[NoReturn] = Line(self._max_events, evicts=self._evicts)
        self.intake.reset(line)
        self.outbox.reset(line)

    def release(self) -> None:
        """Nothing is outside of this process."""
