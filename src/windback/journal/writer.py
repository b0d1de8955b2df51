"""The journal that this process writes: open segments for callers, spares made ahead, and a ledger.

Callers never wait for each other. A segment is claimed by popping it from `open` and given back by
appending it; a full one is sealed and replaced by a spare. Spares are made by `maintain`, in a
worker; only if none is left does a caller make one, and only then may it have to wait for another that does.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import logging
import os
import secrets
import sys
import threading
import time
from collections import Counter, deque
from itertools import repeat
from pathlib import Path
from typing import Callable, Deque, Dict, Generator, List, Optional, Sequence, Set, Tuple, cast

from .. import clock, log
from ..errors import ConfigurationError
from ..event.batch import Batch
from ..stats import AtomicCounter
from ..steps import call, in_one_step
from . import format as fmt
from .directory import (
    JournalDirectory,
    close_inherited,
    growing,
    names,
    open_root,
    used_bytes,
)
from .ledger import OFFSET_BITS, Ledger, Location, extents_of
from .merging import left_behind, merge, names_after_sweep
from .segment import Segment, sync_new

#: Full segments come one after the other in a burst; each takes a worker 2 ms to replace.
SPARES = 3
#: So many finished segments stay open; only an outage makes more.
_FINISHED_OPEN = 4
#: How much of a segment is allocated: of the first, as little as possible, for many processes track a few
#: events; of later ones all of it or, near the bound, the most that fits.
_LIMITS = (fmt.SEGMENT_BYTES, 4 * fmt.SMALL_BYTES, fmt.SMALL_BYTES)
#: The free space that is left to other programs: the smaller of the two.
_FREE_BYTES, _FREE_PART = 64 * 1024 * 1024, 0.05
_RETRY_FIRST_S, _RETRY_CAP_S = 1.0, 30.0
#: A disk that is nearly full, and has room now and then, is worth a line this often, at most.
_LINE_S = 60.0
#: When there is no room, the bytes of other processes are counted this often at most (seconds), and never for
#: more than this part of the time.
_COUNT_S, _COUNT_PART = 0.1, 0.05
#: How long a process waits for another that makes a segment (seconds): two must not take the same room.
_GROWING_S = 0.1
#: Spares are made only while less than this part of the bound is used: another process can't use them.
_SPARE_SHARE = 0.25
#: A new process merges what exited ones left if there are so many, and up to this many of them. The file of a
#: small one is 1 MiB long, of which 64 KiB are allocated: a listing must not show more than a bound of 8 MiB.
_MANY, _MANY_AT_ONCE = 6, 64
#: How long a caller waits for another thread that makes a segment (seconds).
_MAKING_S = 10.0
#: How long the end waits for a caller in the middle of a `put`, which takes a few µs of its own time.
_IN_HAND_S = 0.2


class JournalWriter:
    """The journal that this process writes. max_bytes: of all files under *root*, also of exited processes.

    drains: this process also sends what it writes; else that is another's, and so is the ledger.
    fsync: what is `written_to` is synced, so files and their names have to be synced before that.
    """

    def __init__(self, root: Path, max_bytes: int, *, drains: bool = True, fsync: bool = False) -> None:
        self._drains = drains
        self._fsync = fsync
        self._root = root
        self._max_bytes = max_bytes
        self.open: Deque[Segment] = deque()
        self.segments: Dict[int, Segment] = {}
        #: A worker should call `maintain`.
        self.needs_maintenance = False
        #: Why nothing can be written right now.
        self.trouble: Optional[OSError] = None
        self.spares: Deque[Segment] = deque()
        self._home: Optional[JournalDirectory] = None
        self._ledger: Optional[Ledger] = None
        #: Held while a segment is made; a caller takes it only if there is no spare.
        self._making = threading.Lock()
        #: The thread that holds it.
        self._maker: Optional[int] = None
        self._is_released = False
        self._others_bytes = 0
        self._count_at_s = 0.0
        #: Whether there was an event.
        self._has_begun = False
        #: Directories of exited processes that need no more space than their events.
        self._merged: Set[str] = set()
        self._has_failed = False
        self._retry_at_s = 0.0
        self._retry_s = _RETRY_FIRST_S
        self._line_at_s = 0.0
        self._is_said = False
        #: Records in segments that are gone.
        self._retired = AtomicCounter()

    @property
    def written(self) -> int:
        """How many events were ever written."""
        written, _ = self.counted()
        return written

    def counted(self) -> Tuple[int, Dict[int, int]]:
        """Return how many events were ever written, and those in each segment, at one moment."""
        while True:
            retired = self._retired.value()
            counts = {segment_id: each.count for segment_id, each in list(self.segments.items())}
            if retired == self._retired.value():  # else a segment was removed in between
                return retired + sum(counts.values()), counts

    @property
    def has_home(self) -> bool:
        """Whether there is a directory: there is none before the first segment."""
        return self._home is not None

    @property
    def name(self) -> str:
        """The name of the directory; "memory" while there is none."""
        return "memory" if self._home is None else self._home.name

    def has_room_for(self, length: int) -> bool:
        """Whether an event of *length* bytes can be written, as far as the bound goes."""
        if any(each.has_room_for(length) for each in (*self.spares, *list(self.open))):
            return True
        return self.trouble is None and self._limit(length) > 0

    # -- callers -------------------------------------------------------------------------------

    def append_elsewhere(self, full: Optional[Segment], payload: bytes) -> Optional[Location]:
        """Write an event where there is room; None if there is none, or the disk has trouble (`trouble`).

        full: the segment that the caller has and could not use immediately.
        """
        if full is not None and not full.has_room_for(len(payload)):
            full.seal()
            full = None
        if full is None:
            self.needs_maintenance = (
                True  # for another spare; or there is none, and it finds something to remove
            )
            full = self._fresh(len(payload))
            if full is None:
                return None
        try:
            at = full.append(payload)
        except OSError as error:  # without a mapping: the disk is full, after all
            self._fail(error)
            self._has_failed = True
            return None
        finally:
            self.open.append(full)
        if self._has_failed:
            self._has_failed = False
            self._recover()
        return full.segment_id << OFFSET_BITS | at

    def _fresh(self, length: int) -> Optional[Segment]:
        """Return an empty segment for an event of *length* bytes, made now if no spare will do.

        None if there may be none, or if there is trouble.
        """
        spare = self._spare_for(length)
        if spare is None and not self.is_interrupted and self._may_make():
            with self._making:
                self._maker = threading.get_ident()
                spare = self._spare_for(length) or self._make(length)  # another may have made more by now
                self._maker = None
            self.needs_maintenance = True  # it may have found somebody at it
        if spare is not None:
            self._has_begun = True
        return spare

    @property
    def is_interrupted(self) -> bool:
        """Whether this very thread makes a segment: a signal handler or a finalizer runs in its middle."""
        return self._making.locked() and self._maker == threading.get_ident()

    def _may_make(self) -> bool:
        """Wait while another thread makes a segment; not for ever, for a finalizer may hold it up."""
        deadline_s = clock.now_s() + _MAKING_S
        while self._making.locked():
            if clock.now_s() >= deadline_s:
                return False
            clock.sleep(0.0005)
        return True

    def _spare_for(self, length: int) -> Optional[Segment]:
        for _ in range(len(self.spares)):
            try:
                spare = self.spares.popleft()
            except IndexError:  # another was faster
                break
            if spare.has_room_for(length):
                return spare
            self.spares.append(spare)  # for a shorter one
        return None

    def _make(self, length: int, share: float = 1.0) -> Optional[Segment]:
        """Make a segment for an event of *length* bytes; the caller holds `_making`.

        share: the part of the bound that may be used then.
        """
        if self._is_released or (self.trouble is not None and clock.now_s() < self._retry_at_s):
            return None
        try:
            with growing(self._root, _GROWING_S) as is_alone:
                limit = self._counted_limit(length, share)
                if not is_alone:  # another may take the same room: as little as possible
                    limit = min(limit, self._limit(length, share, smallest=True))
                if not limit:
                    return None
                if self._home is None:
                    self._start()
                assert self._home is not None
                if self._home.restore() and self._ledger is not None:
                    self._ledger.renew()
                self._check_free(limit)
                made = self._home.new_segment(fmt.EVENTS, limit)
                self.segments[made.segment_id] = made
                self._close_finished()
        except OSError as error:
            self._fail(error)
            return None
        self._recover()
        return made

    def _close_finished(self) -> None:
        """Close finished segments but a few: an outage makes many, and a process may have few descriptors.

        Whatever reads one later opens it for that.
        """
        finished = [each for each in list(self.segments.values()) if each.is_sealed and not each.is_closed]
        for segment in finished[_FINISHED_OPEN:]:
            if not self._fsync or segment.synced >= segment.count:
                segment.close()

    def _recover(self) -> None:
        if self.trouble is not None:
            self.trouble = None
            self._retry_s = _RETRY_FIRST_S
            if self._is_said:
                self._is_said = False
                log.later(logging.INFO, "journal %s: events are written to the disk again", self._root)

    @property
    def size(self) -> int:
        """The bytes on disk of this process's segments of events."""
        return sum(segment.limit for segment in list(self.segments.values()))

    def _limit(self, length: int, share: float = 1.0, *, smallest: bool = False) -> int:
        """Return how large the next segment may be for an event of *length* bytes; 0 if there is no room."""
        # A ledger is there beside the next one for a moment. With another process to send, it is that one's.
        ledger = max(2 * fmt.SMALL_BYTES, 0 if self._ledger is None else self._ledger.size)
        room = self._max_bytes * share - self._others_bytes - self.size - ledger
        needed = fmt.HEADER_BYTES + fmt.RECORD_BYTES + length
        fitting = [limit for limit in _LIMITS if needed <= limit <= room]
        is_first = not self.segments and not self._has_begun
        return (min if is_first or smallest else max)(fitting, default=0)

    def _counted_limit(self, length: int, share: float) -> int:
        """Count what others have, if it is time to, and return the same."""
        if clock.now_s() < self._count_at_s:
            return self._limit(length, share)
        self._count_others()
        limit = self._limit(length, share)
        if not limit and share == 1.0 and self._give_back():
            self._count_others()
            limit = self._limit(length, share)
        if not limit:  # it stays so for a while, and callers ask again and again
            self._count_at_s = max(self._count_at_s, clock.now_s() + _COUNT_S)
        return limit

    def _give_back(self) -> bool:
        """Free the space that exited processes take and don't need. Returns whether any was checked."""
        new: Set[str] = set()
        with contextlib.suppress(OSError):
            new = merge(
                self._root, [name for name in names_after_sweep(self._root) if name not in self._merged]
            )
            self._merged |= new
        return bool(new)

    def _start(self) -> None:
        try:
            mapped = open_root(self._root)
        except ConfigurationError as error:  # it was not a directory when the client was made
            raise OSError(errno.EINVAL, str(error)) from None
        self._merge_some()
        home = JournalDirectory.create(self._root, mapped=mapped, synced=self._fsync, drains=self._drains)
        try:
            self._ledger = Ledger.start(home) if self._drains else None
        except OSError:
            home.remove()
            raise
        self._home = home

    def _merge_some(self) -> None:
        """Merge what exited processes left, if it is much. A program may end in a moment, again and again."""
        with contextlib.suppress(OSError):
            if len(names(self._root)) < _MANY:
                return
            left = left_behind(self._root, "")
            if len(left) >= _MANY:
                # From another place each time: not all of it can be merged.
                first = bisect.bisect(left, secrets.token_hex(8))
                self._merged = merge(self._root, [*left[first:], *left[:first]][:_MANY_AT_ONCE])
                self._count_at_s = 0.0

    def recount(self) -> None:
        """Count the bytes of other processes anew: something was removed."""
        self._count_at_s = 0.0
        self.needs_maintenance = True

    def _count_others(self) -> None:
        began_s = time.thread_time()  # on a busy machine far less than by the clock
        self._others_bytes = used_bytes(self._root, self.name)
        self._count_at_s = clock.now_s() + (time.thread_time() - began_s) / _COUNT_PART

    def _check_free(self, size: int) -> None:
        disk = os.statvfs(self._root)
        floor = min(_FREE_BYTES, int(_FREE_PART * disk.f_blocks * disk.f_frsize))
        if disk.f_bavail * disk.f_frsize - size < floor:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _fail(self, error: OSError) -> None:
        now_s = clock.now_s()
        if self.trouble is not None:
            self._retry_s = min(2 * self._retry_s, _RETRY_CAP_S)
        elif now_s >= self._line_at_s:
            self._line_at_s = now_s + _LINE_S
            self._is_said = True
            log.later(
                logging.WARNING,
                "journal %s: %s; events are kept only in memory for now, and a killed process loses them",
                self._root,
                error.strerror or error,
            )
        self.trouble = error
        self._retry_at_s = now_s + self._retry_s

    # -- the drain side, under its lock --------------------------------------------------------

    def payload_at(self, location: Location) -> bytes:
        """Return the event at a location; nothing if somebody removed its file. Raises OSError."""
        segment = self.segments[location >> OFFSET_BITS]
        try:
            return segment.payload_at(location & (fmt.SEGMENT_BYTES - 1))
        except FileNotFoundError:
            return b""

    def lease(self, batch: Batch) -> None:
        """Record that *batch* is about to be sent under its key."""
        if self._ledger is None:
            return
        with self._tolerated():
            self._ledger.lease(batch.key, extents_of(batch.locations, map(len, batch.records)))

    def split(self, batch: Batch, halves: Sequence[Batch]) -> None:
        """Record that *batch* goes on as its halves."""
        if self._ledger is None:
            return
        parts = [(half.key, extents_of(half.locations, map(len, half.records))) for half in halves]
        with self._tolerated():
            self._ledger.split(batch.key, parts)

    def settle(self, batch: Batch) -> None:
        """Record that *batch* is settled."""
        if self._ledger is None:  # the client was closed while this was under way
            return
        counts: Counter[int] = Counter()
        for segment_id, _, _, count in self._ledger.state.leases.get(batch.key, ()):
            counts[segment_id] += count
        each = [self.segments[segment_id] for segment_id in counts]
        settled = [segment.settled + count for segment, count in zip(each, counts.values())]
        in_one_step(map(setattr, each, repeat("settled"), settled), call(setattr, batch, "is_settled", True))
        if any(segment.is_sealed and segment.settled == segment.count for segment in each):
            self.needs_maintenance = True
        with self._tolerated():
            self._ledger.done(batch.key)

    @contextlib.contextmanager
    def _tolerated(self) -> Generator[None, None, None]:
        """Write to the ledger. If it can't grow, delivery continues, and a kill may then repeat batches."""
        try:
            yield
        except OSError as error:
            self._fail(error)

    # -- a worker, without any lock ------------------------------------------------------------

    def prepare(self) -> None:
        """Make the first segments now, so that the first caller need not. Raises ConfigurationError."""
        with contextlib.suppress(OSError):  # the next maintenance meets it as well, and logs it
            open_root(self._root)
        self.maintain()
        log.write()

    def maintain(self) -> None:
        """Make spares, remove what is done with. Raises nothing."""
        self.needs_maintenance = False
        self.open.extend(self._leaked())
        for segment in list(self.segments.values()):
            if segment.is_sealed and segment.settled == segment.count:
                try:
                    self._drop(segment)
                except OSError as error:
                    self._fail(error)
        if not self._making.locked():  # the thread that makes some asks for maintenance again
            with self._making:
                self._maker = threading.get_ident()
                self._make_spares()
                self._maker = None
        if self._ledger is not None and self._ledger.wants_room:
            with self._tolerated():
                self._ledger.make_room()

    def _make_spares(self) -> None:
        # Before the first event one will do.
        while len(self.spares) < (SPARES if self._has_begun else 1):
            made = self._make(0, share=_SPARE_SHARE if self.segments else 1.0)
            if made is None:
                break
            self.spares.append(made)

    def written_to(self) -> List[Segment]:
        """Return what there is to sync."""
        segments = list(self.segments.values())
        return segments if self._ledger is None else [*segments, self._ledger.current]

    def _leaked(self) -> List[Segment]:
        """Return open segments that nobody holds, found by their reference counts.

        An exception from outside, such as Ctrl-C, can strike a caller before it holds what it took.
        """
        found = [each for each in _unheld(self.segments, _UNHELD) if not each.is_sealed] if _UNHELD else []
        for segment in found:
            segment.settle(segment.end, segment.count, 0)
        return found

    def _drop(self, segment: Segment) -> None:
        in_one_step(
            call(self.segments.__delitem__, segment.segment_id), call(self._retired.move, segment.count, 1)
        )
        segment.unlink()
        if self._ledger is not None:
            self._ledger.state.forget(segment.segment_id)

    # -- the end -------------------------------------------------------------------------------

    def release(self) -> None:
        """Close the journal: remove it if all of it is settled, else leave it to the next process."""
        self._is_released = True
        self._may_make()  # who is at it comes to its end
        if self._fsync and any(each.settled < each.count for each in list(self.segments.values())):
            with contextlib.suppress(OSError):
                sync_new(self.written_to())
        if self._is_in_use():  # somebody writes, for longer than that takes: the end of the process closes it
            return
        self._let_go()

    def _let_go(self) -> None:
        home, ledger = self._home, self._ledger
        self._home = self._ledger = None
        if home is None:
            return
        if ledger is None:
            self._leave_to_drainer(home)
        else:
            is_left = False
            for segment in self.segments.values():
                if segment.settled == segment.count:
                    with contextlib.suppress(OSError):
                        segment.unlink()
                else:
                    segment.close()
                    is_left = True
            if is_left:
                ledger.close()
                home.trim()
                home.close()
            else:
                with contextlib.suppress(OSError):
                    ledger.remove()
                home.remove()
        self.segments = {}

    def _is_in_use(self) -> bool:
        """Take all segments out of callers' reach; whether one of them holds one, even after a moment."""
        self.open.extend(self._leaked())
        ours: Set[Segment] = set()
        deadline_s = clock.now_s() + _IN_HAND_S
        while True:
            for each in (self.open, self.spares):
                with contextlib.suppress(IndexError):
                    while True:
                        ours.add(each.pop())
            if all(each.is_sealed or each in ours for each in self.segments.values()):
                return False
            if clock.now_s() >= deadline_s:
                return True
            clock.sleep(0.0005)

    def _leave_to_drainer(self, home: JournalDirectory) -> None:
        """The process that drains it removes it; if nothing was ever written, there may be none."""
        is_empty = self.written == 0
        for segment in self.segments.values():
            segment.close()
        home.close()
        again = JournalDirectory.adopt(self._root, home.name) if is_empty else None
        if again is not None:
            with contextlib.suppress(OSError):
                for segment in self.segments.values():
                    segment.unlink()
            again.remove()

    def abandon(self) -> None:
        """Let go of the files in a forked child, where all of it is the parent's."""
        for segment in self.segments.values():
            segment.close()
        if self._ledger is not None:
            self._ledger.close()
        if self._home is not None:
            self._home.close()
        close_inherited()


def _unheld(segments: Dict[int, Segment], references: int) -> List[Segment]:
    """Return the segments to which no more than so many *references* exist."""
    return [each for each in list(segments.values()) if sys.getrefcount(each) <= references]


def _references_of_nobody() -> int:
    """Return how many references `_unheld` sees to an unused segment; 0 if that is unknown."""
    has_lock: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    if not hasattr(sys, "getrefcount") or not has_lock():  # without that lock a count is off at times
        return 0
    return next(count for count in range(1, 100) if _unheld({0: cast("Segment", object())}, count))


_UNHELD = _references_of_nobody()
