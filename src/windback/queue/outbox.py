"""The drain side of a queue: batches are leased from it, and acked, given back or split. Under one lock."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Callable, Deque, Generic, List, Optional, Sequence, Set, Tuple, Union

from ..config import BATCH_FRAME_BYTES, MAX_BATCH_SIZE
from ..event.batch import Batch, Limits, Source, Waiting
from ..stats import DeliveryReport
from .line import Line, Place

#: Returns what a place stands for: the journal, where in it, and the event itself.
Resolve = Callable[[Place], Tuple[Source, int, bytes]]
#: Keeps the events of a rejected batch as dead letters; whether it could.
Bury = Callable[[Batch, DeliveryReport], bool]

#: So many batches are set back, at most, before one of them is tried again although others wait.
_MOST_LATE = 8


class Outbox(Generic[Place]):
    """See the module. resolve: needed where items are places. bury: where dead letters are kept."""

    __slots__ = (
        *(
            "_announced",
            "_bury",
            "_evicted",
            "_evicting",
            "_in_memory",
            "_items",
            "_late",
            "_leased",
            "_leased_bytes",
        ),
        "_settled",
        *(
            "_max_events",
            "_move_bytes",
            "_overtaking",
            "_resolve",
            "_returned",
            "_taken",
            "adopted",
            "is_cut",
        ),
    )

    def __init__(
        self, line: Line[Place], resolve: Optional[Resolve[Place]] = None, bury: Optional[Bury] = None
    ) -> None:
        self._resolve = resolve
        self._bury = bury
        self.reset(line)

    def reset(self, line: Line[Place]) -> None:
        """Start anew with another line, as in a forked child."""
        self._items: Deque[Union[bytes, Place]] = line.items
        self._move_bytes = line.move_bytes
        self._in_memory = line.in_memory
        self._evicting, self._evicted = line.evicting, line.evicted
        self._announced, self._max_events = line.announced, line.max_events
        self._returned: Deque[Batch] = deque()
        #: Batches that used up their retries, each with the number of settled batches at which it is next.
        self._late: List[Tuple[int, Batch]] = []
        self._settled = 0
        self._leased: Set[Batch] = set()
        self._leased_bytes = 0
        self._taken = 0
        #: Events of batches that were added in front of all that waited.
        self._overtaking = 0
        #: Events of other processes.
        self.adopted = 0
        #: Whether the last batch ended where the events of another journal begin.
        self.is_cut = False

    def take(self, limits: Limits) -> Optional[Batch]:
        """Lease the next batch: one given back, else up to the limits from the front."""
        if self._is_late_due:
            batch = self._late.pop(0)[1]
        elif self._returned:
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
        """Pop what makes one batch, of one journal at most, which records it; None if nothing waits.

        One by one: what is popped too many and put back later would be room that callers fill meanwhile.
        """
        popleft, resolve = self._items.popleft, self._resolve
        records: List[bytes] = []
        offsets: List[int] = []
        source: Optional[Source] = None
        self.is_cut = False
        room = max_bytes - BATCH_FRAME_BYTES + 1  # a comma less than there are events
        with suppress(IndexError):  # under drop_oldest callers pop too, so the length says nothing
            for _ in range(max_events):
                item = popleft()
                if isinstance(item, bytes):
                    of, record = None, item
                else:
                    assert resolve is not None
                    of, offset, record = resolve(item)
                    offsets.append(offset)
                room -= len(record) + 1
                if records and (room < 0 or of is not source):
                    self._items.appendleft(item)
                    self.is_cut = of is not source
                    break
                source = of
                records.append(record)
        if not records:
            return None
        batch = Batch(records, position, source=source, spots=offsets[: len(records)] if source else ())
        if source is not None:
            source.lease(batch)
        else:
            self._in_memory.add(-batch.size_bytes)
        return batch

    def ack(self, batch: Batch) -> None:
        """Forget a batch that is settled."""
        self._settled += 1
        self._unlease(batch)
        self._move_bytes(-batch.size_bytes, 1)
        if batch.source is not None:
            batch.source.settle(batch)

    def reject(self, batch: Batch, report: DeliveryReport) -> bool:
        """Forget a batch that the API will never take; whether it was kept as dead letters."""
        is_kept = self._bury is not None and self._bury(batch, report)
        self.ack(batch)
        return is_kept

    def nack(self, batch: Batch) -> None:
        """Give a batch back; it is taken again, before anything else, with the same key."""
        self._unlease(batch)
        self._returned.appendleft(batch)

    def set_back(self, batch: Batch) -> None:
        """Give back a batch that used up its retries; others go first, and more of them each time.

        What a server can't take must not hold up everything behind it. In an outage nothing is settled, so
        only few batches are set back.
        """
        self._unlease(batch)
        batch.failures += 1
        self._late.append((self._settled + 16 ** min(batch.failures, 3), batch))
        self._late.sort(key=lambda late: late[0])

    @property
    def _is_late_due(self) -> bool:
        """Whether a batch that was set back is the next one."""
        if not self._late:
            return False
        has_others = bool(self._returned) or bool(self._items)
        return not has_others or self._late[0][0] <= self._settled or len(self._late) >= _MOST_LATE

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
        """Nack every lease: the workers that had them are gone."""
        for batch in sorted(self._leased, key=lambda batch: batch.position, reverse=True):
            self.nack(batch)

    # -- events of other processes ---------------------------------------------------------------

    def add(self, item: Place, size: int) -> None:
        """Queue an event that another process wrote."""
        self._move_bytes(size, 1)
        self._items.append(item)
        self.adopted += 1

    def add_batches(self, batches: Sequence[Batch]) -> None:
        """Queue batches of other processes, to go out as they are."""
        for batch in batches:
            self._add(batch, self._taken)
            self._taken += len(batch)

    def add_in_front(self, batches: Sequence[Batch]) -> None:
        """Do the same without moving the positions of the events that wait, which a flush may have noted.

        They go out first, so a flush that is under way waits for them as well.
        """
        for batch in batches:
            self._add(batch, self._taken - 1)
            self._overtaking += len(batch)

    def _add(self, batch: Batch, position: int) -> None:
        batch.position = position
        self.adopted += len(batch)
        self._move_bytes(batch.size_bytes, 1)
        self._returned.append(batch)

    @property
    def _given_back(self) -> List[Batch]:
        """All batches that are to be taken again."""
        return [*self._returned, *(batch for _, batch in self._late)]

    # -- what there is ---------------------------------------------------------------------------

    def waiting(self) -> Waiting:
        """Return what can be taken."""
        count = len(self._items)
        if self._returned or self._late:
            count += sum(map(len, self._given_back))
        return Waiting(count, self._move_bytes(0, 1) - self._leased_bytes)

    @property
    def has_returned(self) -> bool:
        """Whether a batch that was given back waits; it is due at once."""
        return bool(self._returned) or self._is_late_due

    def positions(self) -> Tuple[int, int]:
        """Return (the lowest position not yet settled, the position the next put event will get)."""
        left = self._taken + self._evicted.value
        lowest = min((batch.position for batch in (*self._leased, *self._given_back)), default=left)
        # The higher count of evictions: what is being evicted now was accepted before.
        return min(lowest, left), self._taken + self._evicting.value + len(self._items)

    def counts(self) -> Tuple[int, int, int, int]:
        """Return (accepted, evicted, pending, leased) at one instant."""
        # The higher count of evictions, read last: with the other one, `accepted` could fall for an instant.
        waiting, evicted = len(self._items), self._evicting.value
        leased = sum(map(len, self._leased))
        pending = waiting + leased + sum(map(len, self._given_back))
        return self._taken + self._overtaking + evicted + waiting, evicted, pending, leased

    @property
    def size_bytes(self) -> int:
        """The encoded bytes of all events held, leased ones included."""
        return self._move_bytes(0, 1)

    def unsettled_before(self, position: int) -> int:
        """Return how many events with a lower position are still here; never too low."""
        left = self._taken + self._evicted.value
        held = sum(len(batch) for batch in (*self._leased, *self._given_back) if batch.position < position)
        return held + max(0, min(position - left, len(self._items)))

    def discard(self) -> List[Batch]:
        """Take out what only memory has, as batches that are then acked as dropped; the rest stays."""
        batches = [batch for batch in self._given_back if batch.source is None]
        kept = [batch for batch in self._given_back if batch.source is not None]
        self._returned.clear()
        self._late.clear()
        self._returned.extend(kept)
        lost: List[bytes] = []
        with suppress(IndexError):
            for _ in range(len(self._items)):
                item = self._items.popleft()
                if isinstance(item, bytes):
                    lost.append(item)
                else:
                    self._items.append(item)
        for start in range(0, len(lost), MAX_BATCH_SIZE):
            batch = Batch(lost[start : start + MAX_BATCH_SIZE], self._taken + self._evicted.value)
            self._taken += len(batch)
            batches.append(batch)
        return batches
