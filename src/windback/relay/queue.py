"""The queue of a relay: events that other processes write, and that only this process sends.

It has no `put`; `poll` reads new events. `poll` is for one thread, without the drain side's lock.

Each application costs two descriptors. If there are not enough for all, applications take turns: one with
nothing to send is closed for another. Operations that fail for lack of resources are tried again.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Callable, Collection, Dict, List, Mapping, Optional, Set, Tuple

from .. import clock, log
from ..event.batch import Batch
from ..journal.directory import COUNTERS, JournalDirectory, is_transient
from ..journal.format import ForeignError
from ..journal.merging import names_after_sweep
from ..journal.reader import Found, Reader
from ..journal.segment import Segment
from ..queue.journal import READ_AHEAD, UNBOUNDED, add_found, hand_out, move_to_dead_letters, sync
from ..queue.line import Line
from ..queue.outbox import Outbox
from ..remote.counters import Block, Counters
from ..stats import DeliveryReport

logger = logging.getLogger("windback")

#: Pauses while the system lacks resources (seconds): the first, which doubles, and the longest.
_PAUSE_S, _PAUSE_CAP_S = 0.1, 5.0
#: Descriptors that remain for connections and short-lived files.
_SPARE_DESCRIPTORS = 24
#: How many applications are closed together to give others a turn, and how long a turn is.
_TURNS, _TURN_S = 8, 0.2
_DESCRIPTORS = "/proc/self/fd"


class _Noted:
    """The counters for a running process: see `remote.counters`. The file is open only during a write."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / COUNTERS
        #: By reason; `_before` is the count of an earlier relay.
        self.rejected: Dict[str, int] = {}
        self._before: Optional[Mapping[str, int]] = None
        self._newest: Optional[Counters] = None

    def write(self, counters: Counters, rejected: Mapping[str, int]) -> None:
        """Write the counters, if the process reads them and they have changed. Raises OSError."""
        if self._newest == counters._replace(rejected_by_reason=dict(rejected)):
            return
        block = Block.open(self._path)
        if self._before is None:
            self._before = block.read().rejected_by_reason
        sums = Counter(self._before) + Counter(rejected)
        block.write(counters._replace(rejected_by_reason=dict(sums)))
        self._newest = counters._replace(rejected_by_reason=dict(rejected))


class RelayQueue:
    """The events of other processes. only: names of directories; None for all under *root*.

    fsync: `sync` is called now and then. max_journal_bytes: bounds dead letters.
    """

    intake = None
    disk = None

    def __init__(
        self,
        root: Path,
        only: Optional[Collection[str]] = None,
        *,
        fsync: bool = False,
        max_journal_bytes: int = 1 << 62,
    ) -> None:
        self._root = root
        self._max_journal_bytes = max_journal_bytes
        self._only = None if only is None else list(only)
        self._fsync = fsync
        self.outbox = Outbox(Line[Found](UNBOUNDED), lambda found: found, self._to_dead_letters)
        self._start()

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, which owns nothing there."""
        for reader in self.readers.values():
            reader.close()
        self.outbox.reset(Line(UNBOUNDED))
        self._start()

    def _start(self) -> None:
        self.readers: Dict[str, Reader] = {}
        self._noted: Dict[str, _Noted] = {}
        self._left_alone: List[str] = []
        self._queued_before = 0
        #: Names that were added and not checked since.
        self._untried: Set[str] = set(self._only or ())
        #: When each reader was opened, and when those closed in favour of others were; by name.
        self._opened_s: Dict[str, float] = {}
        self._closed_s: Dict[str, float] = {}
        #: Names that could not be opened.
        self._waiting = 0
        self._retry_s, self._pause_s = 0.0, _PAUSE_S
        #: Why not everything can be read now.
        self.trouble: Optional[str] = None
        #: Whether more can be read as soon as some queued events are sent.
        self.is_held_back = False

    def add(self, more: Collection[str]) -> None:
        """Add directories to read."""
        if self._only is not None:
            self._only += [name for name in more if name not in self._only]
            self._untried.update(more)

    def others_than(self, name: str) -> List[str]:
        """Return the other directories from which this process may still send events."""
        return [each for each in self._only or () if each != name and not self.is_over(each)]

    def is_over(self, name: str) -> bool:
        """Whether this process will send nothing more from a directory."""
        return name not in self.readers and name not in self._untried

    def poll(self) -> Callable[[], int]:
        """Read new events. The returned function is called under the lock, and returns their number.

        Raises nothing: a directory that can't be read is left alone, with one log line.
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
            self._noted.pop(name, None)
            self._drop(name)
        elif reader.outstanding < READ_AHEAD:
            found += reader.read(READ_AHEAD)
        else:
            self.is_held_back = True

    # -- the applications to read from ---------------------------------------------------------

    def _open_all(self, leased: List[Tuple[Reader, List[Batch]]], now_s: float) -> Optional[OSError]:
        """Open the directories that are not open. Returns why some could not be, if that may work later."""
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
        """Close an application with nothing to send, to give another a turn. False if there is none."""
        for name, since_s in self._opened_s.items():  # the one that has been open longest comes first
            reader = self.readers[name]
            if now_s - since_s >= _TURN_S and not reader.outstanding and not reader.is_owned:
                with suppress(OSError):  # it reads no counters
                    noted = self._noted_of(name)
                    noted.write(Counters(reader.settled(), reader.seen), noted.rejected)
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
        """Store why not everything can be read, and log a line when that begins and when it ends."""
        if short is None:
            self._pause_s = _PAUSE_S
            if self.trouble is not None:
                self.trouble = None
                logger.info("journal %s: everything there can be read again", self._root)
            return
        is_news = self.trouble is None
        waiting = f"{self._waiting} application{'' if self._waiting == 1 else 's'} must wait"
        reason = short.strerror or str(short)
        self.trouble = f"journal {self._root}: {reason}; {waiting if self._waiting else 'retrying'}"
        if short.errno in (errno.EMFILE, errno.ENFILE):
            self._pause_s = _PAUSE_S  # a turn is over soon
        self._retry_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_CAP_S)
        if is_news:
            advice = "; raise its limit of open files (ulimit -n)" if short.errno == errno.EMFILE else ""
            logger.warning("%s%s", self.trouble, advice)

    def _noted_of(self, name: str) -> _Noted:
        noted = self._noted.get(name)
        if noted is None:
            noted = self._noted[name] = _Noted(self._root / name)
        return noted

    def _to_dead_letters(self, batch: Batch, report: DeliveryReport) -> bool:
        assert batch.source is not None  # all of its events are in a journal
        rejected = self._noted_of(batch.source.name).rejected
        rejected[report.reason] = rejected.get(report.reason, 0) + len(batch)
        return move_to_dead_letters(self._root, batch.source.name, batch, report, self._max_journal_bytes)

    def progress(self, problem: Optional[str], *, is_retrying: bool) -> Callable[[], None]:
        """Read the progress of running applications, under the lock. The returned function writes it.

        It is called without the lock. problem: why events can't be delivered now; is_retrying: whether
        a flush without a timeout keeps waiting.
        """
        news = []
        for name, reader in self.readers.items():
            if not reader.is_owned:
                noted = self._noted_of(name)
                outage = None if is_retrying else problem
                counters = Counters(reader.settled(), reader.seen, problem=outage, last_failure=problem)
                news.append((noted, dict(noted.rejected), counters))

        def tell() -> None:
            for noted, rejected, counters in news:
                with suppress(OSError):  # it made no file: it does not read counters, or not yet
                    noted.write(counters, rejected)

        return tell

    def _new_names(self) -> List[str]:
        """Return the directories that are not open, the one that waited longest first."""
        with suppress(OSError):
            known = {*self.readers, *self._left_alone}
            candidates = names_after_sweep(self._root) if self._only is None else self._only
            new = [name for name in candidates if name not in known]
            return sorted(new, key=lambda name: self._closed_s.get(name, 0.0)) if self._closed_s else new
        return []

    def _open(self, name: str, leased: List[Tuple[Reader, List[Batch]]], now_s: float) -> None:
        """Start to read a directory, unless another process does. Raises OSError if that may work later."""
        home = JournalDirectory.to_drain(self._root, name, synced=self._fsync)
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
        """Sync the delivery progress to disk. Returns whether there was anything new. Raises nothing."""
        return sync(self._root, self._written_to())

    def _written_to(self) -> List[Segment]:
        return [reader.written_to for reader in list(self.readers.values())]

    @property
    def wants_sync(self) -> bool:
        """Whether anything was written since the last `sync`."""
        return self._fsync and any(each.count > each.synced for each in self._written_to())

    def of_others(self, name: str) -> Tuple[int, int]:
        """Return how many events were read from other directories, and how many are not settled."""
        others = [reader for reader in self.readers.values() if reader.name != name]
        queued = self._queued_before + sum(reader.queued for reader in others)
        return queued, sum(reader.outstanding for reader in others)

    @property
    def paused_until_s(self) -> float:
        """Never: only one relay sends from a directory."""
        return float("-inf")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to wait for: no directory to read, and no event queued."""
        return not self.readers and not self.outbox.waiting().events

    def release(self) -> None:
        """Leave the remaining events to the next process."""
        if self._fsync:
            self.sync()
        self.progress(None, is_retrying=False)()
        for reader in self.readers.values():
            with suppress(OSError):
                reader.clear()
            reader.close()
        self.readers = {}
        log.write()


def _check_descriptors(used: int) -> None:
    """Raise OSError if one more application would leave too few descriptors for connections."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if used + 2 * _SPARE_DESCRIPTORS < limit // 2:
        return
    with suppress(FileNotFoundError):  # without /proc the system reports it, a little later
        if len(os.listdir(_DESCRIPTORS)) + 2 + _SPARE_DESCRIPTORS > limit:  # noqa: PTH208 - called often
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
