"""The queue on disk: an event is in a file-backed mapping before `put` returns, so it survives `kill -9`.

The rule of this file is that of `memory`, **a caller takes no lock**, and one more: **it makes no system
call**. It copies the event into a segment that no other caller holds, payload first, then the header that
makes it count, and then appends the place, not the event, to the same deque that the memory queue has. All
else, bounds, leases, positions, is inherited. While the disk has trouble, the events themselves wait in the
deque, as they would without a journal.

What processes that died left behind is adopted by `upkeep`, in a worker, without the drain side's lock.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Callable, Deque, List, Optional, Tuple, Union, cast
from zlib import crc32

from ..config import BATCH_FRAME_BYTES
from ..journal import dead
from ..journal.format import (
    K_LENGTH,
    K_OFFSET,
    K_SEQUENCE,
    MASK,
    RECORD,
    RECORD_BYTES,
    SEGMENT_BYTES,
    ForeignError,
)
from ..journal.home import Home, names, open_root
from ..journal.ledger import OFFSET_BITS
from ..journal.own import OwnJournal
from ..journal.reader import Found, Reader
from ..journal.segment import Segment
from ..stats import AtomicCounter, DeliveryReport
from .base import Batch, Source
from .memory import MemoryQueue, nothing

logger = logging.getLogger("windback")

#: Events of other processes that are handed out at once: a few batches for each of several workers.
_READ_AHEAD = 1000

#: A place in this process's own journal, an event of another's, or one for which there was no place.
Item = Union[int, Found, bytes]

#: The bound of this queue is that of its segments.
_UNBOUNDED = 1 << 62

_pack = RECORD.pack


class JournalQueue(MemoryQueue):
    """See the module. max_events and max_bytes bound what is kept in memory while the disk has trouble."""

    __slots__ = (
        "_claim",
        "_give_back",
        "_in_memory",
        "_max_in_memory",
        "_max_journal_bytes",
        "_own",
        "_places",
        "_reader",
        "_root",
        "_to_adopt",
        "adopted",
        "lost",
    )

    def __init__(
        self,
        max_events: int,
        max_bytes: int,
        overflow: str,
        wake: Callable[[], None],
        on_full: Callable[[str], None],
        root: Path,
        max_journal_bytes: int,
    ) -> None:
        self._root = root
        self._max_journal_bytes = max_journal_bytes
        self._max_in_memory = (max_events, max_bytes)
        self._own = OwnJournal(root, max_journal_bytes)
        self._reader: Optional[Reader] = None
        super().__init__(_UNBOUNDED, _UNBOUNDED, overflow, wake, on_full)

    def reset(self) -> None:
        """Become an empty queue with nothing on disk yet, as in a forked child, which owns nothing there."""
        self._own.abandon()
        if self._reader is not None:
            self._reader.close()
        super().reset()
        self._places = cast("Deque[Item]", self._items)
        self._own = OwnJournal(self._root, self._max_journal_bytes)
        self._claim = self._own.open.pop
        self._give_back = self._own.open.append
        self._reader = None
        #: Names of directories that may be those of dead processes; None before anybody looked.
        self._to_adopt: Optional[Deque[str]] = None
        self._in_memory = AtomicCounter()
        #: Events of processes that died, and records of theirs that were damaged.
        self.adopted = self.lost = 0

    def open(self) -> None:
        """Make the first segments now, so that the first caller need not. Raises ConfigurationError."""
        with suppress(OSError):  # upkeep meets it as well, and says so
            open_root(self._root)
        self._own.upkeep()

    # -- the callers' side ---------------------------------------------------------------------

    def put(self, record: bytes) -> bool:
        """Accept an encoded event, which then survives this process; see MemoryQueue.put."""
        places = self._places
        waiting = len(places)
        size = len(record)
        held = self._move_bytes(size, 1)
        if waiting >= self.max_waiting:
            return self._put_without_room(record)
        item: Optional[Item]
        try:
            segment = self._claim()
        except IndexError:
            item = self._put_elsewhere(None, record)
        else:
            at = segment.end
            until = at + RECORD_BYTES + size
            memory = segment.memory
            if until > SEGMENT_BYTES or memory is None:
                item = self._put_elsewhere(segment, record)
            else:
                # What Segment.append does, without the calls.
                try:
                    sequence = segment.count
                    start = (segment.seed + at * K_OFFSET + size * K_LENGTH + sequence * K_SEQUENCE) & MASK
                    memory[at + RECORD_BYTES : until] = record
                    memory[at : at + RECORD_BYTES] = _pack(size, crc32(record, start), sequence, 0)
                    segment.end = (until + 7) & ~7
                    segment.count = sequence + 1
                except BaseException:
                    segment.settle_end()
                    raise
                finally:
                    self._give_back(segment)
                item = segment.segment_id << OFFSET_BITS | at
        if item is None:
            return self._put_without_room(record)
        places.append(item)
        if waiting >= self.wake_at or held >= self.wake_at_bytes:
            self._wake()
        return True

    def _put_elsewhere(self, segment: Optional[Segment], record: bytes) -> Optional[Item]:
        own = self._own
        spot = own.append_elsewhere(segment, record)
        if spot is None and own.trouble is not None:
            own.wants_upkeep = True  # a worker tries again
            max_events, max_bytes = self._max_in_memory
            if len(self._places) < max_events and self._in_memory.value + len(record) <= max_bytes:
                self._in_memory.add(len(record))
                self._wake()
                return record
        if own.wants_upkeep:
            self._wake()
        return spot

    # -- the drain side, under its lock --------------------------------------------------------

    def _pop(self, position: int, max_events: int, max_bytes: int) -> Optional[Batch]:
        """Pop what makes one batch, of one journal, and record there that it is about to be sent."""
        popleft = self._places.popleft
        records: List[bytes] = []
        spots: List[int] = []
        source: Optional[Source] = None
        room = max_bytes - BATCH_FRAME_BYTES + 1  # a comma less than there are events
        with suppress(IndexError):
            for _ in range(max_events):
                item = popleft()
                of, spot, record = self._resolve(item)
                room -= len(record) + 1
                if records and (room < 0 or of is not source):
                    self._places.appendleft(item)
                    break
                source = of
                records.append(record)
                spots.append(spot)
        if not records:
            return None
        batch = Batch(records, position, source=source, spots=spots if source is not None else ())
        if source is not None:
            source.lease(batch)
        else:
            self._in_memory.add(-batch.size_bytes)
        return batch

    def _resolve(self, item: Item) -> Tuple[Optional[Source], int, bytes]:
        if type(item) is int:
            return self._own, item, self._own.payload_at(item)
        if type(item) is bytes:
            return None, 0, item
        assert isinstance(item, Found)
        return item

    def reject(self, batch: Batch, report: DeliveryReport) -> bool:
        """Forget a batch that the API will never take, but keep its events as dead letters."""
        is_kept = False
        try:
            is_kept = dead.write(
                self._root,
                (batch.source or self._own).name,
                batch.records,
                reason=report.reason,
                status=report.status,
                message=report.message,
                key=batch.key,
            )
        except OSError as error:
            logger.warning("journal %s: a rejected event can't be kept: %s", self._root, error)
        self.ack(batch)
        return is_kept

    def has_room_for(self, size: int) -> bool:
        """Whether an event of *size* bytes would be accepted now."""
        return super().has_room_for(size) and self._own.has_room_for(size)

    def discard(self) -> List[Batch]:
        """Take out what is in memory alone; all else stays where it is, for who comes next."""
        kept = [item for item in self._places if type(item) is not bytes]
        lost = [item for item in self._places if type(item) is bytes]
        returned = [batch for batch in self._returned if batch.source is not None]
        batches = [batch for batch in self._returned if batch.source is None]
        self._places.clear()
        self._places.extend(kept)
        self._returned.clear()
        self._returned.extend(returned)
        if lost:
            batches.append(Batch(lost, self._taken))
            self._taken += len(lost)
        return batches

    @property
    def journal_bytes(self) -> int:  # type: ignore[override]  # a number there, that never changes
        """What this process's segments take on the disk."""
        return len(self._own.segments) * SEGMENT_BYTES

    # -- a worker, without the drain side's lock -----------------------------------------------

    @property
    def wants_upkeep(self) -> bool:
        """Whether `upkeep` would do something."""
        if self._own.wants_upkeep or self._to_adopt is None:
            return True
        reader = self._reader
        if reader is None:
            return bool(self._to_adopt)
        return reader.is_done or (reader.has_more and reader.outstanding < _READ_AHEAD // 2)

    def upkeep(self) -> Callable[[], object]:
        """Make segments ahead, remove those that are done with, read what the dead left. Raises nothing."""
        self._own.upkeep()
        if self._to_adopt is None:
            self._to_adopt = self._look()
        if self._reader is not None:
            self._clear(self._reader)
        while self._reader is None and self._to_adopt:
            name = self._to_adopt.popleft()
            if name == self._own.name:
                continue
            try:
                self._reader = adopt(self._root, name)
            except (OSError, ForeignError) as error:
                logger.warning("journal %s/%s: left alone: %s", self._root, name, error)
            if self._reader is not None:
                leased = self._reader.leased()
                return lambda: self._take_in_leased(leased)
        if self._reader is None:
            return nothing
        found = self._reader.read(max(1, _READ_AHEAD - self._reader.outstanding))
        return lambda: self._take_in(found)

    def _look(self) -> Deque[str]:
        with suppress(OSError):
            return deque(names(self._root))
        return deque()

    def _clear(self, reader: Reader) -> None:
        try:
            reader.clear()
        except OSError as error:
            logger.warning("journal %s/%s: left as it is: %s", self._root, reader.name, error)
            reader.close()
            self._reader = None
        if reader.is_done:
            self.lost += reader.lost
            self._reader = None

    def _take_in_leased(self, leased: List[Batch]) -> None:
        for batch in leased:
            batch.position = self._taken
            self._taken += len(batch)
            self.adopted += len(batch)
            self._move_bytes(batch.size_bytes, 1)
            assert isinstance(batch.source, Reader)
            batch.source.hand_out(batch.spots)
            self._returned.append(batch)

    def _take_in(self, found: List[Found]) -> None:
        for item in found:
            item.source.hand_out((item.spot,))
            self._move_bytes(len(item.payload), 1)
            self._places.append(item)
        self.adopted += len(found)

    def release(self) -> None:
        """Close what is on disk; what is settled is removed, the rest is for who comes next."""
        if self._reader is not None:
            self._clear(self._reader)
        if self._reader is not None:
            self._reader.close()
        self._own.release()


def adopt(root: Path, name: str) -> Optional[Reader]:
    """Take over the directory of a dead process; None if it is not dead, or another adopts it.

    Raises OSError, and ForeignError for what a newer windback wrote.
    """
    home = Home.adopt(root, name)
    if home is None:
        return None
    try:
        return Reader(home)
    except BaseException:
        home.close()
        raise
