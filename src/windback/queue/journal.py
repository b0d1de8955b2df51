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
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Callable, Deque, List, Optional, Tuple
from zlib import crc32

from ..event.batch import Batch, Source
from ..journal.directory import JournalDirectory, names, open_root, sweep
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
from ..journal.ledger import OFFSET_BITS
from ..journal.reader import Reader
from ..journal.segment import Segment
from ..journal.writer import OwnJournal
from .memory import nothing
from .sourced import READ_AHEAD, Item, SourcedQueue

logger = logging.getLogger("windback")

_pack = RECORD.pack


class JournalQueue(SourcedQueue):
    """See the module. max_events and max_bytes bound what is kept in memory while the disk has trouble."""

    __slots__ = (
        "_claim",
        "_fsync",
        "_give_back",
        "_is_released",
        "_leased_in",
        "_max_in_memory",
        "_max_journal_bytes",
        "_own",
        "_reader",
        "_tending",
        "_to_adopt",
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
        *,
        fsync: bool = False,
    ) -> None:
        self._root = root
        self._max_journal_bytes = max_journal_bytes
        self._max_in_memory = (max_events, max_bytes)
        self._fsync = fsync
        self._own = self._make_own()
        self._reader: Optional[Reader] = None
        super().__init__(root, overflow, wake, on_full)

    def reset(self) -> None:
        """Become an empty queue with nothing on disk yet, as in a forked child, which owns nothing there."""
        self._own.abandon()
        if self._reader is not None:
            self._reader.close()
        super().reset()
        self._own = self._make_own()
        self._claim = self._own.open.pop
        self._give_back = self._own.open.append
        self._reader = None
        #: Names of directories that may be those of dead processes; None before anybody looked.
        self._to_adopt: Optional[Deque[str]] = None
        #: Held by whoever tends the files: a worker, or who closes the client.
        self._tending = threading.Lock()
        self._is_released = False
        self._leased_in = 0

    def _make_own(self) -> OwnJournal:
        return OwnJournal(self._root, self._max_journal_bytes, fsync=self._fsync)

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
        try:
            segment = self._claim()
        except IndexError:
            if not self._put_elsewhere(None, record):
                return self._put_without_room(record)
        else:
            at, sequence = segment.end, segment.count
            until = at + RECORD_BYTES + size
            memory = segment.memory
            if until > SEGMENT_BYTES or memory is None:
                if not self._put_elsewhere(segment, record):
                    return self._put_without_room(record)
            else:
                # What Segment.append does, without the calls.
                try:
                    start = (segment.seed + at * K_OFFSET + size * K_LENGTH + sequence * K_SEQUENCE) & MASK
                    memory[at + RECORD_BYTES : until] = record
                    memory[at : at + RECORD_BYTES] = _pack(size, crc32(record, start), sequence, 0)
                    segment.end = (until + 7) & ~7
                    segment.count = sequence + 1
                    places.append(segment.segment_id << OFFSET_BITS | at)
                except BaseException:
                    if not segment.settle(at, sequence, size):
                        self._move_bytes(-size, 1)
                    raise
                finally:
                    self._give_back(segment)
        if waiting >= self.wake_at or held >= self.wake_at_bytes:
            self._wake()
        return True

    def _put_elsewhere(self, segment: Optional[Segment], record: bytes) -> bool:
        """Put an event into another segment than the one at hand, or into memory; whether it could be."""
        own = self._own
        item: Optional[Item] = own.append_elsewhere(segment, record)
        if item is None and own.trouble is not None and self._has_memory_for(len(record)):
            self._in_memory.add(len(record))
            item = record
        if item is not None:
            self._places.append(item)
        if own.wants_upkeep:
            self._wake()
        return item is not None

    def _has_memory_for(self, size: int) -> bool:
        max_events, max_bytes = self._max_in_memory
        return len(self._places) < max_events and self._in_memory.value + size <= max_bytes

    # -- the drain side, under its lock --------------------------------------------------------

    def _resolve(self, item: Item) -> Tuple[Optional[Source], int, bytes]:
        if type(item) is int:
            return self._own, item, self._own.payload_at(item)
        return super()._resolve(item)

    def _name(self) -> str:
        return self._own.name

    def take_in_leased(self, leased: List[Batch]) -> None:
        """Queue batches that a reader found leased, without moving the positions of what waits.

        They go out first, so whoever flushes now waits for them as well.
        """
        taken = self._taken
        super().take_in_leased(leased)
        self._leased_in += self._taken - taken
        self._taken = taken
        for batch in leased:
            batch.position = taken - 1

    def counts(self) -> Tuple[int, int, int, int]:
        """Return (accepted, evicted, pending, leased) at one instant."""
        accepted, evicted, pending, leased = super().counts()
        return accepted + self._leased_in, evicted, pending, leased

    def has_room_for(self, size: int) -> bool:
        """Whether an event of *size* bytes would be accepted now."""
        own = self._own
        return super().has_room_for(size) and (
            own.has_room_for(size) or (own.trouble is not None and self._has_memory_for(size))
        )

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
        return reader.is_done or (reader.has_more and reader.outstanding < READ_AHEAD // 2)

    def _written_to(self) -> List[Segment]:
        return self._own.written_to()

    def upkeep(self) -> Callable[[], object]:
        """Make segments ahead, remove those that are done with, read what the dead left. Raises nothing."""
        with self._tending:
            return nothing if self._is_released else self._tend()

    def _tend(self) -> Callable[[], object]:
        self._own.upkeep()
        if self._to_adopt is None:
            self._to_adopt = self._look()
        reader = self._reader
        try:
            if reader is not None and self._clear(reader):
                reader = None
            while reader is None and self._to_adopt:
                name = self._to_adopt.popleft()
                reader = self._reader = None if name == self._own.name else _adopt(self._root, name)
                if reader is not None:
                    leased = reader.leased()
                    return lambda: self.take_in_leased(leased)
            if reader is None:
                return nothing
            found = reader.read(max(1, READ_AHEAD - reader.outstanding))
        except (OSError, ForeignError) as error:
            if reader is not None:
                reader.stop(error)
            else:
                logger.warning("journal %s: events of a dead process are left alone: %s", self._root, error)
            return nothing
        return lambda: self.take_in(found)

    def _look(self) -> Deque[str]:
        with suppress(OSError):
            sweep(self._root)
            return deque(names(self._root))
        return deque()

    def _clear(self, reader: Reader) -> bool:
        """Remove what is done with; whether that is all of it."""
        is_over = reader.clear()
        if is_over:
            self.lost += reader.lost
            self._reader = None
            self._own.recount()
        return is_over

    def release(self) -> None:
        """Close what is on disk; what is settled is removed, the rest is for who comes next."""
        with self._tending:
            self._is_released = True
            if self._reader is not None:
                with suppress(OSError):
                    self._reader.clear()
                self._reader.close()
            self._own.release()


def _adopt(root: Path, name: str) -> Optional[Reader]:
    """Take over the directory of a dead process; None if it is not dead, or another adopts it."""
    home = JournalDirectory.adopt(root, name)
    if home is None:
        return None
    try:
        return Reader(home)
    except BaseException:
        home.close()
        raise
