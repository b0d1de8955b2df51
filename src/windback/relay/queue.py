"""The queue of a relay: events that other processes write, and that only this one sends.

Nobody calls `put`; `poll` reads what there is. It is for one thread, without the drain side's lock.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Callable, Collection, Dict, List, Mapping, Optional, Tuple

from ..event.batch import Batch
from ..journal.directory import COUNTERS, JournalDirectory, names
from ..journal.format import ForeignError
from ..journal.reader import Found, Reader
from ..journal.segment import Segment
from ..queue.journal import READ_AHEAD, UNBOUNDED, add_found, bury, hand_out, sync
from ..queue.line import Line
from ..queue.outbox import Outbox
from ..remote.counters import Block, Counters
from ..stats import DeliveryReport

logger = logging.getLogger("windback")


class _Told:
    """What a living process is told of its events: see `journal.counters`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / COUNTERS
        self._block: Optional[Block] = None
        #: By reason; `_before` is what an earlier relay counted.
        self.rejected: Dict[str, int] = {}
        self._before: Optional[Mapping[str, int]] = None
        self._newest: Optional[Counters] = None

    def write(self, counters: Counters, rejected: Mapping[str, int]) -> None:
        """Tell it, if it wants to know and there is something new. Raises OSError."""
        if self._block is None or not self._block.is_at(self._path):
            self.close()
            self._block = Block.open(self._path)
            self._newest = None
            if self._before is None:
                self._before = self._block.read().rejected_by_reason
        assert self._before is not None
        sums = dict(self._before)
        for reason, count in rejected.items():
            sums[reason] = sums.get(reason, 0) + count
        counters = counters._replace(rejected_by_reason=sums)
        if counters != self._newest:
            self._block.write(counters)
            self._newest = counters

    def close(self) -> None:
        """Let go of the file."""
        if self._block is not None:
            self._block.close()
            self._block = None


class RelayQueue:
    """See the module. only: names of directories to care for; None for all under *root*.

    fsync: `sync` is called now and then.
    """

    intake = None
    disk = None

    def __init__(self, root: Path, only: Optional[Collection[str]] = None, *, fsync: bool = False) -> None:
        self._root = root
        self._only = only
        self._fsync = fsync
        self.outbox = Outbox(Line[Found](UNBOUNDED), lambda found: found, self._bury)
        self._start()

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, which owns nothing there."""
        for reader in self.readers.values():
            reader.close()
        for told in self._told.values():
            told.close()
        self.outbox.reset(Line(UNBOUNDED))
        self._start()

    def _start(self) -> None:
        self.readers: Dict[str, Reader] = {}
        self._told: Dict[str, _Told] = {}
        self._left_alone: List[str] = []
        self._queued_before = 0
        #: Whether there may be more to read as soon as some of what is queued is sent.
        self.is_held_back = False

    def poll(self) -> Callable[[], int]:
        """Read what is new. What is returned is called under the lock, and says how many events there were.

        Raises nothing: a directory with trouble is left alone, with one log line.
        """
        leased: List[Tuple[Reader, List[Batch]]] = []
        found: List[Found] = []
        for name in self._new_names():
            reader = self._open(name)
            if reader is not None:
                self.readers[name] = reader
                leased.append((reader, reader.leased()))
        self.is_held_back = False
        for name, reader in list(self.readers.items()):
            try:
                if reader.clear():
                    self._queued_before += reader.queued
                    self._forget(name)
                elif reader.outstanding < READ_AHEAD:
                    found += reader.read(READ_AHEAD)
                else:
                    self.is_held_back = True
            except (OSError, ForeignError) as error:
                self._leave(name, error)
                reader.close()
                self._forget(name)

        def add() -> int:
            before = self.outbox.adopted
            for reader, batches in leased:
                hand_out(reader, batches)
                self.outbox.add_batches(batches)
            add_found(self.outbox.add, found)
            return self.outbox.adopted - before

        return add

    def _forget(self, name: str) -> None:
        del self.readers[name]
        told = self._told.pop(name, None)
        if told is not None:
            told.close()

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

    def progress(self, problem: Optional[str], last_failure: Optional[str]) -> Callable[[], None]:
        """Look at how far running applications are, under the lock; the returned function tells them.

        That is called without the lock. problem: why delivery is held up right now; last_failure: why the
        last try failed.
        """
        news = []
        for name, reader in self.readers.items():
            if not reader.is_owned:
                told = self._told_of(name)
                counters = Counters(reader.settled(), reader.seen, problem=problem, last_failure=last_failure)
                news.append((told, dict(told.rejected), counters))

        def tell() -> None:
            for told, rejected, counters in news:
                with suppress(OSError):  # it made no file: it does not want to know, or not yet
                    told.write(counters, rejected)

        return tell

    def _new_names(self) -> List[str]:
        with suppress(OSError):
            known = {*self.readers, *self._left_alone}
            candidates = names(self._root) if self._only is None else self._only
            return [name for name in candidates if name not in known]
        return []

    def _open(self, name: str) -> Optional[Reader]:
        home = JournalDirectory.attend(self._root, name, synced=self._fsync)
        if home is None:
            return None
        try:
            return Reader(home)
        except (OSError, ForeignError) as error:
            self._leave(name, error)
            home.close()
            return None

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
    def trouble(self) -> None:
        """Nothing: a directory with trouble is left alone."""
        return

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to wait for: no directory is cared for, and no event waits."""
        return not self.readers and not self.outbox.waiting().events

    def release(self) -> None:
        """Leave what is there to who comes next."""
        if self._fsync:
            self.sync()
        self.progress(None, None)()
        for told in self._told.values():
            told.close()
        for reader in self.readers.values():
            with suppress(OSError):
                reader.clear()
            reader.close()
        self.readers = {}
