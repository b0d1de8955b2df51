"""The queue of a relay: events that other processes write, and that only this one sends.

Nobody calls `put`; `poll` reads what there is. It is for one thread, without the drain side's lock.

Each application costs two descriptors. Where there are not enough for all, applications take turns: one with
nothing to send is closed for another. What fails because the system is short of something is tried again.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Callable, Collection, Dict, List, Mapping, Optional, Set, Tuple

from .. import clock
from ..event.batch import Batch
from ..journal.directory import COUNTERS, JournalDirectory, is_transient, names
from ..journal.format import ForeignError
from ..journal.reader import Found, Reader
from ..journal.segment import Segment
from ..queue.journal import READ_AHEAD, UNBOUNDED, add_found, bury, hand_out, sync
from ..queue.line import Line
from ..queue.outbox import Outbox
from ..remote.counters import Block, Counters
from ..stats import DeliveryReport

logger = logging.getLogger("windback")

#: Pauses while the system is short of something (seconds): the first, which doubles, and the longest.
_PAUSE_S, _PAUSE_CAP_S = 0.1, 5.0
#: Descriptors that are left for connections and for what is open for a moment.
_SPARE_DESCRIPTORS = 24
#: How many applications are closed at once, so that others have their turn, and how long one has it.
_TURNS, _TURN_S = 8, 0.2
_DESCRIPTORS = "/proc/self/fd"


class _Told:
    """What a running process is told of its events: see `remote.counters`. The file is open only for that."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / COUNTERS
        #: By reason; `_before` is what an earlier relay counted.
        self.rejected: Dict[str, int] = {}
        self._before: Optional[Mapping[str, int]] = None
        self._newest: Optional[Counters] = None

    def write(self, counters: Counters, rejected: Mapping[str, int]) -> None:
        """Tell it, if it wants to know and there is something new. Raises OSError."""
        if self._newest == counters._replace(rejected_by_reason=dict(rejected)):
            return
        block = Block.open(self._path)
        try:
            if self._before is None:
                self._before = block.read().rejected_by_reason
            sums = dict(self._before)
            for reason, count in rejected.items():
                sums[reason] = sums.get(reason, 0) + count
            block.write(counters._replace(rejected_by_reason=sums))
        finally:
            block.close()
        self._newest = counters._replace(rejected_by_reason=dict(rejected))


class RelayQueue:
    """See the module. only: names of directories to care for; None for all under *root*.

    fsync: `sync` is called now and then.
    """

    intake = None
    disk = None

    def __init__(self, root: Path, only: Optional[Collection[str]] = None, *, fsync: bool = False) -> None:
        self._root = root
        self._only = None if only is None else list(only)
        self._fsync = fsync
        self.outbox = Outbox(Line[Found](UNBOUNDED), lambda found: found, self._bury)
        self._start()

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, which owns nothing there."""
        for reader in self.readers.values():
            reader.close()
        self.outbox.reset(Line(UNBOUNDED))
        self._start()

    def _start(self) -> None:
        self.readers: Dict[str, Reader] = {}
        self._told: Dict[str, _Told] = {}
        self._left_alone: List[str] = []
        self._queued_before = 0
        #: Names that were added and not looked at since.
        self._untried: Set[str] = set(self._only or ())
        #: When each reader was opened, and when those that were closed for others were; by name.
        self._opened_s: Dict[str, float] = {}
        self._closed_s: Dict[str, float] = {}
        #: Names that could not be opened.
        self._waiting = 0
        self._retry_s, self._pause_s = 0.0, _PAUSE_S
        #: Why not all that is there can be read right now.
        self.trouble: Optional[str] = None
        #: Whether there may be more to read as soon as some of what is queued is sent.
        self.is_held_back = False

    def add(self, more: Collection[str]) -> None:
        """Care for more directories."""
        if self._only is not None:
            self._only += [name for name in more if name not in self._only]
            self._untried.update(more)

    def others_than(self, name: str) -> List[str]:
        """Return the directories, without one, of which something may still be sent from here."""
        return [each for each in self._only or () if each != name and not self.is_over(each)]

    def is_over(self, name: str) -> bool:
        """Whether nothing of a directory is to be sent from here any more."""
        return name not in self.readers and name not in self._untried

    def poll(self) -> Callable[[], int]:
        """Read what is new. What is returned is called under the lock, and says how many events there were.

        Raises nothing: a directory with trouble is left alone, with one log line.
        """
        leased: List[Tuple[Reader, List[Batch]]] = []
        found: List[Found] = []
        now_s = clock.now_s()
        short: Optional[OSError] = None
        may_try = now_s >= self._retry_s
        if may_try:
            short = self._open_all(leased, now_s)
        self.is_held_back = False
        for name, reader in list(self.readers.items()):
            try:
                self._read(name, reader, found)
            except (OSError, ForeignError) as error:
                if isinstance(error, OSError) and is_transient(error):
                    short = error
                else:
                    self._leave(name, error)
                    self._close(name)
        if short is not None or may_try:
            self._note(short, now_s)

        def add() -> int:
            before = self.outbox.adopted
            for reader, batches in leased:
                hand_out(reader, batches)
                self.outbox.add_batches(batches)
            add_found(self.outbox.add, found)
            return self.outbox.adopted - before

        return add

    def _read(self, name: str, reader: Reader, found: List[Found]) -> None:
        if reader.clear():
            self._queued_before += reader.queued
            self._told.pop(name, None)
            self._drop(name)
        elif reader.outstanding < READ_AHEAD:
            found += reader.read(READ_AHEAD)
        else:
            self.is_held_back = True

    # -- which applications are read from ------------------------------------------------------

    def _open_all(self, leased: List[Tuple[Reader, List[Batch]]], now_s: float) -> Optional[OSError]:
        """Open what is not open yet; why not all of it, if that may work later."""
        new = self._new_names()
        short: Optional[OSError] = None
        turns = _TURNS
        while new:
            try:
                _check_descriptors(2 * len(self.readers))
                self._open(new[0], leased, now_s)
            except OSError as error:
                short = error
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not turns or not self._close_one(now_s):
                    break
                turns -= 1
            else:
                self._untried.discard(new.pop(0))
        self._waiting = len(new)
        return short if new else None

    def _close_one(self, now_s: float) -> bool:
        """Close an application with nothing to send, so that another has its turn; False if there is none."""
        for name, since_s in self._opened_s.items():  # the one that is open for longest comes first
            reader = self.readers[name]
            if now_s - since_s >= _TURN_S and not reader.outstanding and not reader.is_owned:
                with suppress(OSError):  # it wants to know nothing
                    told = self._told_of(name)
                    told.write(Counters(reader.settled(), reader.seen), told.rejected)
                self._queued_before += reader.queued
                self._close(name)
                self._closed_s[name] = now_s
                return True
        return False

    def _close(self, name: str) -> None:
        self.readers[name].close()
        self._drop(name)

    def _drop(self, name: str) -> None:
        del self.readers[name]
        del self._opened_s[name]

    def _note(self, short: Optional[OSError], now_s: float) -> None:
        """Remember why not everything can be read, and write a line when that begins and when it ends."""
        if short is None:
            self._pause_s = _PAUSE_S
            if self.trouble is not None:
                self.trouble = None
                logger.info("journal %s: everything there can be read again", self._root)
            return
        is_news = self.trouble is None
        waiting = f"{self._waiting} application{'' if self._waiting == 1 else 's'} must wait"
        reason = short.strerror or str(short)
        self.trouble = f"journal {self._root}: {reason}; {waiting if self._waiting else 'it is tried again'}"
        if short.errno in (errno.EMFILE, errno.ENFILE):
            self._pause_s = _PAUSE_S  # a turn is over soon
        self._retry_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_CAP_S)
        if is_news:
            advice = "; raise its limit of open files (ulimit -n)" if short.errno == errno.EMFILE else ""
            logger.warning("%s%s", self.trouble, advice)

    def _told_of(self, name: str) -> _Told:
        told = self._told.get(name)
        if told is None:
            told = self._told[name] = _Told(self._root / name)
        return told

    def _bury(self, batch: Batch, report: DeliveryReport) -> bool:
        assert batch.source is not None  # all of it is in a journal
        rejected = self._told_of(batch.source.name).rejected
        rejected[report.reason] = rejected.get(report.reason, 0) + len(batch)
        return bury(self._root, batch.source.name, batch, report)

    def progress(self, problem: Optional[str], *, is_retrying: bool) -> Callable[[], None]:
        """Look at how far running applications are, under the lock; the returned function tells them.

        That is called without the lock. problem: why delivery is held up right now; is_retrying: whether
        a flush without a timeout waits on.
        """
        news = []
        for name, reader in self.readers.items():
            if not reader.is_owned:
                told = self._told_of(name)
                outage = None if is_retrying else problem
                counters = Counters(reader.settled(), reader.seen, problem=outage, last_failure=problem)
                news.append((told, dict(told.rejected), counters))

        def tell() -> None:
            for told, rejected, counters in news:
                with suppress(OSError):  # it made no file: it does not want to know, or not yet
                    told.write(counters, rejected)

        return tell

    def _new_names(self) -> List[str]:
        """Return what is not open, whose turn it has been for longest first."""
        with suppress(OSError):
            known = {*self.readers, *self._left_alone}
            candidates = names(self._root) if self._only is None else self._only
            new = [name for name in candidates if name not in known]
            return sorted(new, key=lambda name: self._closed_s.get(name, 0.0)) if self._closed_s else new
        return []

    def _open(self, name: str, leased: List[Tuple[Reader, List[Batch]]], now_s: float) -> None:
        """Begin to read from a directory, unless another does. Raises OSError if that may work later."""
        home = JournalDirectory.attend(self._root, name, synced=self._fsync)
        if home is None:
            return
        reader: Optional[Reader] = None
        try:
            reader = Reader(home)
            found = reader.leased()
        except (OSError, ForeignError) as error:
            (home if reader is None else reader).close()
            if is_transient(error):
                raise
            self._leave(name, error)
            return
        leased.append((reader, found))
        self.readers[name] = reader
        self._opened_s[name] = now_s

    def _leave(self, name: str, error: Exception) -> None:
        self._left_alone.append(name)
        logger.warning("journal %s/%s: left alone: %s", self._root, name, error)

    def sync(self) -> bool:
        """Sync to disk what was noted of deliveries; whether there was anything new. Raises nothing."""
        return sync(self._root, self._written_to())

    def _written_to(self) -> List[Segment]:
        return [reader.written_to for reader in list(self.readers.values())]

    @property
    def wants_sync(self) -> bool:
        """Whether something was written since `sync` last looked."""
        return self._fsync and any(each.count > each.synced for each in self._written_to())

    def of_others(self, name: str) -> Tuple[int, int]:
        """Return how many events were read from others than *name*, and how many of them are still here."""
        others = [reader for reader in self.readers.values() if reader.name != name]
        queued = self._queued_before + sum(reader.queued for reader in others)
        return queued, sum(reader.outstanding for reader in others)

    @property
    def paused_until_s(self) -> float:
        """Never: only one relay sends what stands in a directory."""
        return float("-inf")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to wait for: no directory is cared for, and no event waits."""
        return not self.readers and not self.outbox.waiting().events

    def release(self) -> None:
        """Leave what is there to who comes next."""
        if self._fsync:
            self.sync()
        self.progress(None, is_retrying=False)()
        for reader in self.readers.values():
            with suppress(OSError):
                reader.clear()
            reader.close()
        self.readers = {}


def _check_descriptors(used: int) -> None:
    """Raise OSError if one more application would leave too few descriptors for connections."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if used + 2 * _SPARE_DESCRIPTORS < limit // 2:
        return
    with suppress(FileNotFoundError):  # where there is no /proc the system says so, a little late
        if len(os.listdir(_DESCRIPTORS)) + 2 + _SPARE_DESCRIPTORS > limit:  # noqa: PTH208 - many times
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
