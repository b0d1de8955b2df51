"""The queue on disk: an event is in a file-backed mapping before `put` returns, so it survives `kill -9`.

The rule of this file is that of `memory`, **a caller takes no lock**, and one more: **it makes no system
call**. It copies the event into a segment that no other caller has: payload first, then the header that makes
it count. Then it appends the place, not the event, to a line like that of the queue in memory. While the disk
has trouble, the events themselves wait in the line, as they would without a journal.

A worker adopts the events of exited processes between batches, without the drain side's lock.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Callable, Deque, List, NamedTuple, Optional, Set, Tuple, Union
from zlib import crc32

from .. import clock, log
from ..event.batch import Batch, Source
from ..journal import dead
from ..journal.directory import JournalDirectory, is_transient
from ..journal.format import (
    K_LENGTH,
    K_OFFSET,
    K_SEQUENCE,
    MASK,
    RECORD,
    RECORD_BYTES,
    ForeignError,
)
from ..journal.ledger import OFFSET_BITS
from ..journal.merging import left_behind
from ..journal.reader import Found, Reader
from ..journal.segment import Segment, sync_new
from ..journal.writer import JournalWriter
from ..stats import DeliveryReport
from .intake import NEVER, Refusals, nobody
from .line import Line
from .outbox import Outbox

#: Events of one other process that are queued together: a few batches for each of several workers.
READ_AHEAD = 1000
#: The bound of such a queue is that of its segments.
UNBOUNDED = 1 << 62

#: A place in this process's own journal, or an event that another process's holds.
JournalPlace = Union[int, Found]

#: Pauses while the system is short of something (seconds): the first, which doubles, and the longest.
_PAUSE_S, _PAUSE_CAP_S = 0.1, 5.0

_pack = RECORD.pack


class MemoryBounds(NamedTuple):
    """How many events, and bytes of them, may wait in memory while the disk has trouble."""

    max_events: int
    max_bytes: int


class JournalIntake:
    """The callers' side: writes events into this process's own journal."""

    __slots__ = (
        *("_bounds", "_claim", "_give_back", "_in_memory", "_line", "_move_bytes", "writer", "_places"),
        *("max_waiting", "refusals", "wake", "wake_at", "wake_at_bytes"),
    )

    def __init__(
        self, line: Line[JournalPlace], writer: JournalWriter, bounds: MemoryBounds, refusals: Refusals
    ) -> None:
        self._bounds = bounds
        self.refusals = refusals
        #: Set by what drains the queue.
        self.wake: Callable[[], None] = nobody
        self.reset(line, writer)

    def reset(self, line: Line[JournalPlace], writer: JournalWriter) -> None:
        """Start anew with another line and journal, as in a forked child."""
        self._line = line
        self.writer = writer
        self._claim = writer.open.pop
        self._give_back = writer.open.append
        self._places: Deque[Union[bytes, JournalPlace]] = line.items
        self._move_bytes = line.move_bytes
        self._in_memory = line.in_memory
        #: Callers compare with this, so that -1 sends them all the slow way.
        self.max_waiting = UNBOUNDED
        self.wake_at = 0
        self.wake_at_bytes = NEVER
        self.refusals.reset()

    def put(self, record: bytes) -> bool:
        """Accept an encoded event, which then survives this process; see Intake.put."""
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
            if until > segment.limit or memory is None:
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
            self.wake()
        return True

    def _put_without_room(self, record: bytes) -> bool:
        self._move_bytes(-len(record), 1)
        return self.refusals.turn_away(self._line.announced, self._why_full)

    def _why_full(self) -> str:
        if self.writer.trouble is not None:
            return f"the journal can't be written ({self.writer.trouble}), and memory has no room for more"
        return "the journal is full, and max_journal_bytes allows no more"

    def _put_elsewhere(self, segment: Optional[Segment], record: bytes) -> bool:
        """Put an event into another segment than the one at hand, or into memory; whether it could be."""
        writer = self.writer
        item: Union[bytes, JournalPlace, None] = writer.append_elsewhere(segment, record)
        if (
            item is None
            and (writer.trouble is not None or writer.is_interrupted)
            and self._has_memory_for(len(record))
        ):
            self._in_memory.add(len(record))
            item = record
        if item is not None:
            self._places.append(item)
        if writer.needs_maintenance:
            self.wake()
        log.write()
        return item is not None

    def _has_memory_for(self, size: int) -> bool:
        max_events, max_bytes = self._bounds
        return len(self._places) < max_events and self._in_memory.value() + size <= max_bytes

    def room(self) -> int:
        """Return how many more events may wait: that is not what bounds a journal."""
        return max(0, self.max_waiting)

    def has_room_for(self, size: int) -> bool:
        """Whether an event of *size* bytes would be accepted now."""
        writer = self.writer
        return self.max_waiting > 0 and (
            writer.has_room_for(size) or (writer.trouble is not None and self._has_memory_for(size))
        )

    def close(self, reason: str) -> None:
        """Accept nothing more; see Intake.close."""
        self.refusals.closed = reason
        self.max_waiting = -1


class JournalQueue:
    """Both sides of a queue on disk. bounds: for events in memory. adopts: what exited processes left."""

    def __init__(
        self,
        root: Path,
        max_journal_bytes: int,
        bounds: MemoryBounds,
        refusals: Refusals,
        *,
        fsync: bool = False,
        adopts: bool = True,
    ) -> None:
        self._root = root
        self._max_journal_bytes = max_journal_bytes
        self._fsync = fsync
        self._adopts = adopts
        line: Line[JournalPlace] = Line(UNBOUNDED)
        self.writer = self._make_writer()
        self.intake = JournalIntake(line, self.writer, bounds, refusals)
        self.outbox = Outbox(line, self._resolve, self._to_dead_letters)
        self._start()

    def _make_writer(self) -> JournalWriter:
        return JournalWriter(self._root, self._max_journal_bytes, fsync=self._fsync)

    def _start(self) -> None:
        self._reader: Optional[Reader] = None
        #: Names of directories that may be those of exited processes; None before they were looked for.
        self._to_adopt: Optional[Deque[str]] = None if self._adopts else deque()
        #: Held while the files are maintained, by a worker or by the thread that closes the client.
        self._maintaining = threading.RLock()
        self._is_released = False
        #: Records of other processes that were damaged.
        self.lost = 0
        #: Directories that are looked at no more: they are gone, or something there can't be read or removed.
        self._left_alone: Set[str] = set()
        #: When what failed for a moment is tried again, and how long to wait the next time.
        self._retry_s, self._pause_s = 0.0, _PAUSE_S
        #: Why not all that exited processes left can be read right now.
        self.trouble: Optional[str] = None

    def reset(self) -> None:
        """Become an empty queue with nothing on disk yet, as in a forked child, which owns nothing there."""
        self.writer.abandon()
        if self._reader is not None:
            self._reader.close()
        line: Line[JournalPlace] = Line(UNBOUNDED)
        self.writer = self._make_writer()
        self.intake.reset(line, self.writer)
        self.outbox.reset(line)
        self._start()

    def _resolve(self, place: JournalPlace) -> Tuple[Source, int, bytes]:
        if isinstance(place, int):
            return self.writer, place, self.writer.payload_at(place)
        return place

    def _to_dead_letters(self, batch: Batch, report: DeliveryReport) -> bool:
        return move_to_dead_letters(self._root, self.writer.name, batch, report, self._max_journal_bytes)

    def sync(self) -> bool:
        """Sync new records to disk. Returns whether there were any. Raises nothing.

        For one thread, which takes no lock that a caller wants.
        """
        return sync(self._root, self.writer.written_to())

    # -- a worker, without the drain side's lock -----------------------------------------------

    @property
    def disk(self) -> JournalQueue:
        """What a worker maintains."""
        return self

    @property
    def needs_maintenance(self) -> bool:
        """Whether `maintain` would do something."""
        if self.writer.needs_maintenance or self._to_adopt is None:
            return True
        reader = self._reader
        if reader is not None and reader.is_done:
            return True
        if self.trouble is not None and clock.now_s() < self._retry_s:
            return False
        if reader is None:
            return bool(self._to_adopt)
        return reader.has_more and reader.outstanding < READ_AHEAD // 2

    def retry_in_s(self, now_s: float) -> Optional[float]:
        """Return the seconds until `maintain` tries again what failed; None if nothing did."""
        return None if self.trouble is None else max(0.0, self._retry_s - now_s)

    @property
    def adopting(self) -> int:
        """Events of exited processes that are not settled, as far as known; not 0 until all of them are."""
        reader = self._reader
        if reader is None:
            return 1 if self._to_adopt is None else len(self._to_adopt)
        return max(1, reader.outstanding)

    def look(self) -> None:
        """Look for what exited processes left, unless that is known to be unsettled; raises nothing."""
        if self._adopts and self._maintaining.acquire(blocking=False):  # else a worker is at it
            try:
                if not self._to_adopt and not self._is_released:
                    self._to_adopt = self._look()
            finally:
                self._maintaining.release()

    def maintain(self) -> Callable[[], None]:
        """Make segments ahead, remove those that are settled, read what exited processes left.

        Raises nothing. What is returned is called under the drain side's lock.
        """
        with self._maintaining:
            add = _nothing if self._is_released else self._maintain()
        log.write()
        return add

    def _maintain(self) -> Callable[[], None]:
        self.writer.maintain()
        if self._to_adopt is None:
            self._to_adopt = self._look()
        reader = self._reader
        try:
            if reader is not None and self._clear(reader):
                reader = None
            while reader is None and self._to_adopt:
                begin = self._adopt_next(self._to_adopt)
                if begin is not None:
                    return begin
            found = [] if reader is None else reader.read(max(1, READ_AHEAD - reader.outstanding))
        except (OSError, ForeignError) as error:
            if isinstance(error, OSError) and is_transient(error):
                self._is_short(error)
            elif reader is not None:
                reader.stop(error)
            else:
                log.later(
                    logging.WARNING,
                    "journal %s: events of an exited process are left alone: %s",
                    self._root,
                    error,
                )
            return _nothing
        self._is_well()
        return lambda: add_found(self.outbox.add, found)

    def _adopt_next(self, waiting: Deque[str]) -> Optional[Callable[[], None]]:
        """Take over the next directory, if it can be; what queues its leased batches. Raises OSError."""
        try:
            adopted = _adopt(self._root, waiting[0])
        except OSError as error:
            if is_transient(error):
                waiting.rotate(-1)
            else:
                self._left_alone.add(waiting.popleft())
            raise
        except ForeignError:
            self._left_alone.add(waiting.popleft())
            raise
        if adopted is not None:
            self._reader = adopted[0]
        waiting.popleft()  # not before: a flush must not find that nothing is left to adopt
        if adopted is None:
            return None
        self._is_well()
        reader, leased = adopted

        def add() -> None:
            hand_out(reader, leased)
            self.outbox.add_in_front(leased)

        return add

    def _is_short(self, error: OSError) -> None:
        """Try again later what failed because the system is short of something."""
        is_news = self.trouble is None
        self.trouble = f"journal {self._root}: {error.strerror or error}; exited processes' events must wait"
        self._retry_s = clock.now_s() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_CAP_S)
        if is_news:
            log.later(logging.WARNING, "%s", self.trouble)

    def _is_well(self) -> None:
        if self.trouble is not None:
            self.trouble, self._pause_s = None, _PAUSE_S

    def _look(self) -> Deque[str]:
        with suppress(OSError):
            left = left_behind(self._root, self.writer.name)
            return deque(name for name in left if name not in self._left_alone)
        return deque()

    def _clear(self, reader: Reader) -> bool:
        """Remove what is settled; whether that is all of it."""
        is_over = reader.clear()
        if is_over:
            self.lost += reader.lost
            self._left_alone.add(reader.name)  # even if a part of it stays: it is checked once
            self._reader = None
            self.writer.recount()
        return is_over

    def release(self) -> None:
        """Close what is on disk; what is settled is removed, the rest is for the next process."""
        with self._maintaining:
            self._is_released = True
            if self._reader is not None:
                with suppress(OSError):
                    self._reader.clear()
                self._reader.close()
            self.writer.release()
        log.write()


def hand_out(reader: Reader, batches: List[Batch]) -> None:
    """Tell a reader that batches it found leased are queued."""
    for batch in batches:
        reader.hand_out(batch.locations)


def add_found(add: Callable[[Found, int], None], found: List[Found]) -> None:
    """Queue events that readers found, by the *add* of an outbox."""
    for item in found:
        item.source.hand_out((item.location,))
        add(item, len(item.payload))


def sync(root: Path, segments: List[Segment]) -> bool:
    """Sync segments to disk; whether there was anything new, or an error, which is logged."""
    try:
        return sync_new(segments)
    except OSError as error:
        log.later(
            logging.WARNING,
            "journal %s: can't sync new records to disk, so a power cut may lose them: %s",
            root,
            error.strerror or error,
        )
        log.write()
        return True


#: Journals of which was said that their dead letters take all the room that they may.
_full: Set[Path] = set()


def move_to_dead_letters(
    root: Path, name: str, batch: Batch, report: DeliveryReport, max_journal_bytes: int
) -> bool:
    """Keep the events of a rejected batch as dead letters; whether that worked.

    name: the name that is used for events that are in no journal.
    """
    try:
        is_kept = dead.write(
            root,
            name if batch.source is None else batch.source.name,
            batch.records,
            reason=report.reason,
            status=report.status,
            message=report.message,
            key=batch.key,
            max_journal_bytes=max_journal_bytes,
        )
    except OSError as error:
        log.later(logging.WARNING, "journal %s: a rejected event can't be kept: %s", root, error)
        return False
    if is_kept:
        _full.discard(root)
    elif root not in _full:
        _full.add(root)
        log.later(
            logging.WARNING,
            "journal %s: dead letters take %.1f MB, which is all they may (a quarter of max_journal_bytes, "
            "at most 64 MiB): events that the API rejects are no longer kept; see `windback journal replay`",
            root,
            dead.limit(max_journal_bytes) / 1e6,
        )
    return is_kept


def _adopt(root: Path, name: str) -> Optional[Tuple[Reader, List[Batch]]]:
    """Take over the directory of an exited process, with the batches that were under way.

    None if it runs, or if another process adopts it. Raises OSError, ForeignError.
    """
    home = JournalDirectory.adopt(root, name)
    if home is None:
        return None
    reader: Optional[Reader] = None
    try:
        reader = Reader(home)
        return reader, reader.leased()
    except BaseException:
        (home if reader is None else reader).close()
        raise


def _nothing() -> None:
    """Queue nothing."""
