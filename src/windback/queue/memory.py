"""The queue in memory: a deque of encoded events, bounded by count and by bytes.

The rule of this file: **a caller takes no lock.** It does only what CPython does in one step —
append to a deque, move a counter, compare a number. A lock here, however short, makes busy threads
queue for the interpreter behind whoever holds it: 1.2 µs a call becomes 370. What that costs is
precision in one place: the bound by count may be overrun by as many events as there are threads in
`put` at that moment. The bound by bytes is exact.
"""

from __future__ import annotations

import sys
from collections import deque
from contextlib import suppress
from typing import Callable, Deque, Dict, List, Optional, Set, Tuple

from ..config import BATCH_FRAME_BYTES, MAX_BATCH_SIZE
from ..errors import QueueFullError
from ..event.batch import Batch, Limits, Waiting
from ..stats import AtomicCounter, DeliveryReport

#: A wake_at that no queue reaches: everybody who could be woken is awake.
NEVER = 1 << 62


class NoRoomError(Exception):
    """The queue is full and the policy is to wait; each client waits in its own way."""


class MemoryQueue:
    """See the module. `wake` is called, by the caller, when `wake_at` waiting events are reached."""

    __slots__ = (
        "_announced",
        "_evicted",
        "_evicting",
        "_first_after_close",
        "_items",
        "_leased",
        "_leased_bytes",
        "_max_bytes",
        "_max_events",
        "_move_bytes",
        "_on_refusal",
        "_overflow",
        "_returned",
        "_taken",
        "_wake",
        "closed",
        "max_waiting",
        "refused",
        "wake_at",
        "wake_at_bytes",
    )

    # What only a queue on disk has more of; see `journal`.
    adopted = 0
    journal_bytes = 0

    @property
    def wants_upkeep(self) -> bool:
        """Whether `upkeep` would do something."""
        return False

    def open(self) -> None:
        """Do what can be done before the first event."""

    def upkeep(self) -> Callable[[], object]:
        """Do what takes too long for a caller or a lock; what is returned is called under the lock."""
        return nothing

    def release(self) -> None:
        """Let go of everything outside of this process, at its end or after close."""

    def __init__(
        self,
        max_events: int,
        max_bytes: int,
        overflow: str,
        wake: Callable[[], None],
        on_refusal: Callable[[str], None],
    ) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._overflow = overflow
        self._wake = wake
        self._on_refusal = on_refusal
        self.reset()

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, where what waits is the parent's."""
        self._items: Deque[bytes] = deque()
        self._returned: Deque[Batch] = deque()
        self._leased: Set[Batch] = set()
        self._leased_bytes = 0
        bytes_held = AtomicCounter()
        self._move_bytes = bytes_held.move
        self._taken = 0
        # Evictions are counted before and after, so that each use can take the safe side of the two.
        self._evicting = AtomicCounter()
        self._evicted = AtomicCounter()
        self._announced: Deque[bool] = deque((False,))
        self._first_after_close: Deque[bool] = deque((False,))
        self.refused: Dict[str, AtomicCounter] = {
            reason: AtomicCounter()
            for reason in (
                *("queue_full", "before_send", "before_send_error", "disabled", "closed", "no_customer"),
            )
        }
        self.closed: Optional[str] = None
        #: Callers compare with this instead of with the bound, so that -1 sends them all the slow way.
        self.max_waiting = self._max_events
        self.wake_at = 0
        self.wake_at_bytes = NEVER

    # -- the callers' side ---------------------------------------------------------------------

    def put(self, record: bytes) -> bool:
        """Accept an encoded event; False if the overflow policy refused it, or the client is closed.

        Raises QueueFullError under overflow="raise", NoRoomError under "block".
        """
        items = self._items
        waiting = len(items)
        held = self._move_bytes(len(record), 1)
        if waiting >= self.max_waiting or held > self._max_bytes:
            return self._put_without_room(record)
        items.append(record)
        if waiting >= self.wake_at or held >= self.wake_at_bytes:
            self._wake()
        return True

    def refuse(self, reason: str, count: int = 1) -> bool:
        """Count events that were not accepted."""
        self.refused[reason].add(count)
        return False

    def _put_without_room(self, record: bytes) -> bool:
        size = len(record)
        if self.closed is None and self._overflow == "drop_oldest" and self._make_room():
            self._items.append(record)
            if len(self._items) > self.wake_at:
                self._wake()
            self._announce(self._announced, self._overflow)
            return True
        self._move_bytes(-size, 1)
        if self.closed is not None:
            self.refuse(self.closed)
            if self.closed == "closed":
                self._announce(self._first_after_close, "closed")
            return False
        if self._overflow == "block":
            raise NoRoomError
        self.refuse("queue_full")
        self._announce(self._announced, self._overflow)
        if self._overflow == "raise":
            message = (
                f"{len(self._items):,} events wait, and max_queue_size or max_queue_bytes allows no more"
            )
            raise QueueFullError(message, code="QUEUE_FULL")
        return False

    def _make_room(self) -> bool:
        """Discard the oldest events until the one whose bytes are already counted fits."""
        # Not `max_waiting`, which close() puts below any length.
        while len(self._items) >= self._max_events or self._move_bytes(0, 1) > self._max_bytes:
            self._evicting.add()
            try:
                oldest = self._items.popleft()
            except IndexError:  # what is left is in requests right now
                self._evicting.add(-1)
                return False
            self._move_bytes(-len(oldest), 1)
            self._evicted.add()
        return True

    def _announce(self, mark: Deque[bool], why: str) -> None:
        """Write one log line for each mark; a queue gets a new one each time it is no longer full."""
        try:
            mark.pop()
        except IndexError:
            return
        self._on_refusal(why)

    # -- the drain side, under its lock --------------------------------------------------------

    def take(self, limits: Limits) -> Optional[Batch]:
        """Lease the next batch: one given back, else up to the limits from the front."""
        if self._returned:
            batch = self._returned.popleft()
        else:
            # The lower count of evictions: the position may come out too low, never too high.
            position = self._taken + self._evicted.value
            popped = self._pop(position, limits.max_events, limits.max_bytes)
            if popped is None:
                return None
            batch = popped
            self._taken += len(batch)
        self._leased.add(batch)
        self._leased_bytes += batch.size_bytes
        if not self._announced and len(self._items) <= self._max_events // 2:
            self._announced.append(False)
        return batch

    def _pop(self, position: int, max_events: int, max_bytes: int) -> Optional[Batch]:
        """Pop what makes one batch; None if nothing waits.

        One by one: what is popped too many and put back later would be room that callers fill meanwhile.
        """
        popleft = self._items.popleft
        records: List[bytes] = []
        room = max_bytes - BATCH_FRAME_BYTES + 1  # a comma less than there are events
        with suppress(IndexError):  # under drop_oldest callers pop too, so the length says nothing
            for _ in range(max_events):
                record = popleft()
                room -= len(record) + 1
                if room < 0 and records:
                    self._items.appendleft(record)
                    break
                records.append(record)
        return Batch(records, position) if records else None

    def ack(self, batch: Batch) -> None:
        """Forget a batch: it is off our hands."""
        self._unlease(batch)
        self._move_bytes(-batch.size_bytes, 1)
        if batch.source is not None:
            batch.source.settle(batch)

    def hold(self, seconds: float) -> None:
        """Tell others that the API wants nobody to send for so long: there are none here."""

    def reject(self, batch: Batch, report: DeliveryReport) -> bool:
        """Forget a batch that the API will never take; whether it was kept as dead letters."""
        del report
        self.ack(batch)
        return False

    def nack(self, batch: Batch) -> None:
        """Give a batch back; it is taken again, before anything else, with the same key."""
        self._unlease(batch)
        self._returned.appendleft(batch)

    def split(self, batch: Batch) -> None:
        """Give a batch back as its halves."""
        self._unlease(batch)
        halves = batch.halves()
        if batch.source is not None:
            batch.source.split(batch, halves)
        self._returned.extendleft(reversed(halves))

    def _unlease(self, batch: Batch) -> None:
        if batch in self._leased:
            self._leased.remove(batch)
            self._leased_bytes -= batch.size_bytes

    def reclaim(self) -> None:
        """Nack every lease: those who held them are gone."""
        for batch in sorted(self._leased, key=lambda batch: batch.position, reverse=True):
            self.nack(batch)

    def waiting(self) -> Waiting:
        """Return what can be taken."""
        count = len(self._items)
        if self._returned:
            count += sum(map(len, self._returned))
        return Waiting(count, self._move_bytes(0, 1) - self._leased_bytes)

    @property
    def has_returned(self) -> bool:
        """Whether a batch that was given back waits; it is due at once."""
        return bool(self._returned)

    def positions(self) -> Tuple[int, int]:
        """Return (the lowest position not yet settled, the position the next put event will get)."""
        left = self._taken + self._evicted.value
        lowest = min((batch.position for batch in (*self._leased, *self._returned)), default=left)
        # The higher count of evictions: what is being evicted now was accepted before.
        return min(lowest, left), self._taken + self._evicting.value + len(self._items)

    def counts(self) -> Tuple[int, int, int, int]:
        """Return (accepted, evicted, pending, leased) at one instant."""
        # The higher count of evictions, read last: with the other one, `accepted` could fall for an instant.
        waiting, evicted = len(self._items), self._evicting.value
        leased = sum(map(len, self._leased))
        pending = waiting + leased + sum(map(len, self._returned))
        return self._taken + evicted + waiting, evicted, pending, leased

    @property
    def size_bytes(self) -> int:
        """The encoded bytes of all events held, leased ones included."""
        return self._move_bytes(0, 1)

    def unsettled_before(self, position: int) -> int:
        """Return how many events with a lower position are still here; never too low."""
        left = self._taken + self._evicted.value
        held = sum(len(batch) for batch in (*self._leased, *self._returned) if batch.position < position)
        return held + max(0, min(position - left, len(self._items)))

    def room(self) -> int:
        """Return how many more events may wait, 0 if the bytes allow none."""
        return max(0, self.max_waiting - len(self._items)) if self._move_bytes(0, 1) < self._max_bytes else 0

    def has_room_for(self, size: int) -> bool:
        """Whether an event of *size* bytes would be accepted now."""
        return len(self._items) < self.max_waiting and self._move_bytes(0, 1) + size <= self._max_bytes

    def discard(self) -> List[Batch]:
        """Take out everything that waits, as batches that are then acked as dropped."""
        batches = list(self._returned)
        self._returned.clear()
        position = self._taken + self._evicted.value
        while True:
            batch = self._pop(position, MAX_BATCH_SIZE, sys.maxsize)
            if batch is None:
                return batches
            batches.append(batch)
            self._taken += len(batch)
            position += len(batch)

    def close(self, reason: str) -> None:
        """Accept nothing more: `put` counts a refusal under *reason*, "closed" or "disabled"."""
        self.closed = reason
        self.max_waiting = -1


def nothing() -> None:
    """Take in nothing."""
