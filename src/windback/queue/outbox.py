"""The drain side of a queue: batches are leased from it, and acked, given back or split.

What changes something is called under one lock, the scheduler's. What only looks takes no lock: each change
is one step, so `counts` and `unsettled_before` see all of it or nothing, from any thread, signal handler or
finalizer. The same makes an exception at any instruction harmless: an event is always in the queue, in a
batch that was given back, or in a lease. A lease that no worker holds is given back, see `leases`.
"""

from __future__ import annotations

import sys
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import chain, islice, repeat, starmap
from operator import attrgetter
from typing import (
    Callable,
    Deque,
    Generic,
    List,
    NoReturn,
    Optional,
    Sequence,
    Set,
    Tuple,
    TypeVar,
    Union,
    cast,
)

from ..config import BATCH_FRAME_BYTES, MAX_BATCH_SIZE
from ..event.batch import Batch, Limits, Source, Waiting, cut
from ..stats import AtomicCounter, DeliveryReport
from ..steps import call, in_one_step
from .line import Line

#: What is in a journal, and waits as the place where it is. Contravariant: see `Drain`.
Place = TypeVar("Place", contravariant=True)  # noqa: PLC0105 - one name
#: Returns the event of a place: the journal, the offset in it, and the event itself.
Resolve = Callable[[Place], Tuple[Source, int, bytes]]
#: Keeps the events of a rejected batch as dead letters; whether it could.
ToDeadLetters = Callable[[Batch, DeliveryReport], bool]


#: So many batches are set back, at most, before one of them is tried again although others wait.
_MOST_LATE = 8
_NO_LIMITS = Limits(MAX_BATCH_SIZE, sys.maxsize, 0.0)
_size_of = attrgetter("size_bytes")


class Outbox(Generic[Place]):
    """The drain side. resolve: needed if items are places. keep_letters: stores dead letters."""

    __slots__ = (
        *("_announced", "_evicted", "_evicts", "_in_memory", "_items", "_late", "_max_events"),
        *("_move_bytes", "_overtaking", "_resolve", "_returned", "_settled", "_taken", "_to_dead_letters"),
        *("adopted", "is_cut", "leased"),
    )

    def __init__(
        self,
        line: Line[Place],
        resolve: Optional[Resolve[Place]] = None,
        move_to_dead_letters: Optional[ToDeadLetters] = None,
    ) -> None:
        self._resolve = resolve
        self._to_dead_letters = move_to_dead_letters
        self.reset(line)

    def reset(self, line: Line[Place]) -> None:
        """Start anew with another line, as in a forked child."""
        self._items: Deque[Union[bytes, Place]] = line.items
        self._move_bytes = line.move_bytes
        self._in_memory = line.in_memory
        self._evicts, self._evicted = line.evicts, line.evicted
        self._announced, self._max_events = line.announced, line.max_events
        self._returned: Deque[Batch] = deque()
        #: Batches that used up their retries, in the order in which they are tried again.
        self._late: Deque[Batch] = deque()
        self._settled = 0
        #: What workers deliver. Another thread may change it, so it is read in one step.
        self.leased: Set[Batch] = set()
        self._taken = AtomicCounter()
        #: Events of batches that were added in front of all that waited.
        self._overtaking = AtomicCounter()
        #: Events of other processes.
        self.adopted = 0
        #: Whether the last batch ended where the events of another journal begin.
        self.is_cut = False

    def take(self, limits: Limits) -> Optional[Batch]:
        """Lease the next batch: one given back, else up to the limits from the front."""
        if self._returned or self._is_late_due:
            given_back = self._late if self._is_late_due else self._returned
            batch = given_back[0]
            in_one_step(call(self.leased.add, batch), call(given_back.popleft))
        else:
            leased = self._lease_next(limits)
            if leased is None:
                return None
            batch = leased
        if batch.source is not None and not batch.is_recorded:
            batch.source.lease(batch)
            batch.is_recorded = True
        if not self._announced and len(self._items) <= self._max_events // 2:
            self._announced.append(False)
        return batch

    def _lease_next(self, limits: Limits) -> Optional[Batch]:
        """Lease a new batch, of one journal at most; None if nothing waits."""
        records, offsets, source = self._look_at_first(limits)
        count = len(records)
        if not count:
            return None
        # Evictions count at the moment they happen: the position may come out too low, never too high.
        position = self._taken.value() + self._evicted.value()
        leaving = starmap(self._items.popleft, repeat((), count))
        if not self._evicts:
            batch = Batch(records, position, source=source, locations=offsets)
            in_memory = 0 if source is not None else batch.size_bytes
            in_one_step(
                call(self.leased.add, batch),
                leaving,
                call(self._taken.move, count, 1),
                call(self._in_memory.move, -in_memory, 1),
            )
            return batch
        # Callers pop too, so what leaves the queue is what counts, not what was seen. It
        # goes behind what was seen: a list that was twice as long has room, and need not ask for memory.
        records = records * 2
        del records[count:]
        batch = Batch(records, position)
        batch.seen = count
        received = map(records.append, leaving)  # type: ignore[arg-type]  # these items are not places
        with suppress(IndexError):  # callers evicted the rest
            in_one_step(
                call(self.leased.add, batch), zip(received, map(self._taken.move, repeat(1), repeat(1)))
            )
        self._forget_seen(batch)
        if not batch.records:
            self.leased.discard(batch)
            return None
        if len(batch) > 1 and len(batch) + batch.size_bytes - 1 + BATCH_FRAME_BYTES > limits.max_bytes:
            self.split(batch)  # what was evicted was smaller than what is in the batch instead
            return self.take(limits)
        return batch

    def _look_at_first(self, limits: Limits) -> Tuple[List[bytes], List[int], Optional[Source]]:
        """Return the events at the front that make one batch, and where they are; nothing is removed."""
        records: List[bytes] = []
        offsets: List[int] = []
        source: Optional[Source] = None
        self.is_cut = False
        # `chain` asks for the iterator in the step that uses it up: no caller can append in between.
        items = list(islice(chain.from_iterable((self._items,)), limits.max_events))
        if self._resolve is None:
            records = cast("List[bytes]", items)  # there are no places
            del records[cut(records, limits) :]
            return records, offsets, source
        room = limits.max_bytes - BATCH_FRAME_BYTES + 1  # a comma less than there are events
        for item in items:
            if isinstance(item, bytes):
                of, offset, record = None, 0, item
            else:
                of, offset, record = self._resolve(item)
            room -= len(record) + 1
            if records and (room < 0 or of is not source or bool(record) != bool(records[0])):
                self.is_cut = of is not source
                break
            source = of
            records.append(record)
            offsets.append(offset)
        return records, offsets, source

    def ack(self, batch: Batch, count: Optional[AtomicCounter] = None) -> None:
        """Forget a leased batch that is settled. In the same step its events are added to *count*."""
        if batch not in self.leased:
            return
        if batch.source is not None and not batch.is_settled:
            batch.source.settle(batch)
        counter = AtomicCounter() if count is None else count
        self._settled += 1
        in_one_step(call(self.leased.remove, batch), call(counter.move, len(batch), 1))
        self._move_bytes(-batch.size_bytes, 1)

    def reject(self, batch: Batch, report: DeliveryReport, count: Optional[AtomicCounter] = None) -> bool:
        """Forget a batch that the API will never take; whether it was kept as dead letters."""
        is_kept = self._to_dead_letters is not None and self._to_dead_letters(batch, report)
        self.ack(batch, count)
        return is_kept

    def nack(self, batch: Batch) -> None:
        """Give a leased batch back; it is taken again, before anything else, with the same key."""
        if batch in self.leased:
            self._forget_seen(batch)
            in_one_step(call(self._returned.appendleft, batch), call(self.leased.remove, batch))

    def set_back(self, batch: Batch) -> None:
        """Give back a batch that used up its retries; others go first, and more of them each time.

        A batch that the server can't accept must not block all batches behind it. In an outage nothing is
        settled, so only few batches are set back.
        """
        if batch in self.leased:
            batch.failures += 1
            batch.failed_at = self._settled
            batch.due = self._settled + 16 ** min(batch.failures, 3)
            at = sum(late.due <= batch.due for late in self._late)
            in_one_step(call(self._late.insert, at, batch), call(self.leased.remove, batch))

    def has_settled_since(self, batch: Batch) -> bool:
        """Return whether other batches were settled since this one was set back."""
        return self._settled > batch.failed_at

    @property
    def _is_late_due(self) -> bool:
        """Whether a batch that was set back is the next one."""
        if not self._late:
            return False
        has_others = bool(self._returned) or bool(self._items)
        return not has_others or self._late[0].due <= self._settled or len(self._late) >= _MOST_LATE

    @staticmethod
    def _forget_seen(batch: Batch) -> None:
        """Remove what only shows what a batch would have been; see `_lease_next`."""
        if batch.seen:
            records = batch.records[batch.seen :]
            in_one_step(
                call(setattr, batch, "seen", 0),
                call(setattr, batch, "records", records),
                call(setattr, batch, "size_bytes", sum(map(len, records))),
            )

    def split(self, batch: Batch) -> None:
        """Give a leased batch back as its halves."""
        halves = batch.halves()
        if batch.source is not None:
            batch.source.split(batch, halves)
        in_one_step(call(self._returned.extendleft, halves[::-1]), call(self.leased.remove, batch))

    def reclaim(self) -> None:
        """Give every lease back: the workers that had them are gone."""
        for batch in sorted(self.leased, key=lambda batch: batch.position, reverse=True):
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
            self._add(batch, self._taken.value(), self._taken)

    def add_in_front(self, batches: Sequence[Batch]) -> None:
        """Do the same without moving the positions of the events that wait, which a flush may have noted.

        They go out first, so a flush that is under way waits for them as well.
        """
        for batch in batches:
            self._add(batch, self._taken.value() - 1, self._overtaking)

    def _add(self, batch: Batch, position: int, count: AtomicCounter) -> None:
        batch.position = position
        batch.is_recorded = True
        self.adopted += len(batch)
        self._move_bytes(batch.size_bytes, 1)
        in_one_step(call(self._returned.append, batch), call(count.move, len(batch), 1))

    # -- what there is ---------------------------------------------------------------------------

    def waiting(self) -> Waiting:
        """Return what can be taken."""
        count = len(self._items)
        if self._returned or self._late:
            count += sum(map(len, list(chain(self._returned, self._late))))
        return Waiting(count, max(0, self.size_bytes - self.leased_bytes))

    @property
    def has_returned(self) -> bool:
        """Whether a returned batch waits; it is due immediately."""
        return bool(self._returned) or self._is_late_due

    @property
    def size_bytes(self) -> int:
        """The encoded bytes of all events held, leased ones included."""
        return self._move_bytes(0, 1)

    @property
    def leased_bytes(self) -> int:
        """The encoded bytes of the events that are leased."""
        return sum(map(_size_of, list(self.leased)))

    def _look(self) -> Tuple[int, int, int, List[Batch]]:
        """Return (taken, evicted, waiting, batches that are leased or were given back) at one moment."""
        while True:
            taken, evicted = self._taken.value(), self._evicted.value()
            waiting = len(self._items)
            held = list(chain(self.leased, self._returned, self._late))
            # An event that leaves the queue moves one of the two in the same step.
            if taken == self._taken.value() and evicted == self._evicted.value():
                return taken, evicted, waiting, held

    def next_position(self) -> int:
        """Return the position that the next event will get."""
        taken, evicted, waiting, _ = self._look()
        return taken + evicted + waiting

    def counts(self) -> Tuple[int, int, int, int]:
        """Return (accepted, evicted, pending, leased) at one moment."""
        overtaking = self._overtaking.value()
        taken, evicted, waiting, held = self._look()
        pending = waiting + sum(map(len, held))
        leased = min(pending, sum(map(len, list(self.leased))))
        return taken + overtaking + evicted + waiting, evicted, pending, leased

    def first_records(self) -> List[bytes]:
        """Return the first event of each part of what is here; the oldest event is among them.

        Takes no lock: an event that is settled at this moment may be among them or not.
        """
        firsts = [batch.records[0] for batch in self._look()[3] if batch.records]
        with suppress(IndexError, KeyError, OSError, ValueError):  # it was taken, or its segment is gone
            item = self._items[0]
            if isinstance(item, bytes):
                firsts.append(item)
            elif self._resolve is not None:
                firsts.append(self._resolve(item)[2])
        return firsts

    def count_in_memory(self) -> int:
        """Return how many events are in memory alone, leased ones included."""
        held = self._look()[3]
        if self._resolve is None:
            waiting = len(self._items)
        elif self._in_memory.value():
            waiting = sum(isinstance(item, bytes) for item in list(self._items))
        else:
            waiting = 0
        return waiting + sum(len(batch) for batch in held if batch.source is None)

    def unsettled_before(self, position: int) -> int:
        """Return how many events with a lower position are still here; never too low."""
        taken, evicted, waiting, held = self._look()
        before = sum(len(batch) for batch in held if batch.position < position)
        return before + max(0, min(position - taken - evicted, waiting))

    def discard(self) -> List[Batch]:
        """Lease what only memory has, in batches that are then acked as dropped; the rest stays."""
        batches = []
        for given_back in (self._returned, self._late):
            for batch in [batch for batch in given_back if batch.source is None]:
                in_one_step(call(self.leased.add, batch), call(given_back.remove, batch))
                batches.append(batch)
        if self._evicts:  # callers pop, too, and all of it is in memory
            batches += iter(partial(self._lease_next, _NO_LIMITS), None)
            return batches
        # Callers may append in between, at the other end.
        items = list(self._items)
        lost = [item for item in items if isinstance(item, bytes)]
        kept = [item for item in reversed(items) if not isinstance(item, bytes)]
        position = self._taken.value() + self._evicted.value()
        starts = range(0, len(lost), MAX_BATCH_SIZE)
        batches += [Batch(lost[start : start + MAX_BATCH_SIZE], position) for start in starts]
        in_one_step(
            call(self.leased.update, batches),
            starmap(self._items.popleft, repeat((), len(items))),
            call(self._items.extendleft, kept),
            call(self._taken.move, len(lost), 1),
        )
        return batches


#: An outbox as the scheduler sees it, which adds nothing: whatever the places of its line are.
Drain = Outbox[NoReturn]
