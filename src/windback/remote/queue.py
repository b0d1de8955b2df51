"""The callers' side alone, for worker="process" and None: another process takes events out and sends them.

The line of places, which `put` looks at to see whether the sender must be woken, keeps one of them. So it is
empty before the first event only.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

from .. import log
from ..journal.directory import open_root
from ..journal.segment import Segment
from ..journal.writer import OwnJournal
from ..queue.intake import Refusals
from ..queue.journal import UNBOUNDED, JournalIntake, JournalPlace, MemoryBounds, sync
from ..queue.line import Line

#: How many events each segment held at one moment.
Mark = Mapping[int, int]

#: While the disk has trouble nothing is accepted: the sender can't see memory.
_NO_MEMORY = MemoryBounds(0, 0)


class SharedQueue:
    """The write side of a journal; another process has the drain side."""

    def __init__(
        self, root: Path, max_journal_bytes: int, refusals: Refusals, *, fsync: bool = False
    ) -> None:
        self._root = root
        self._max_journal_bytes = max_journal_bytes
        self._fsync = fsync
        self._own = self._make_own()
        self.intake = JournalIntake(self._make_line(), self._own, _NO_MEMORY, refusals)

    def _make_own(self) -> OwnJournal:
        return OwnJournal(self._root, self._max_journal_bytes, drains=False, fsync=self._fsync)

    @staticmethod
    def _make_line() -> Line[JournalPlace]:
        return Line(UNBOUNDED, length=1)

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, which owns nothing on disk."""
        self._own.abandon()
        self._own = self._make_own()
        self.intake.reset(self._make_line(), self._own)

    def open(self) -> None:
        """Make the first segments now, so that the first caller need not. Raises ConfigurationError."""
        with suppress(OSError):  # the maintenance meets it as well, and logs it
            open_root(self._root)
        self._own.maintain()
        log.write()

    @property
    def has_home(self) -> bool:
        """Whether there is a directory at all."""
        return self._own.has_home

    @property
    def name(self) -> str:
        """The name of the directory that the sender is to care for."""
        return self._own.name

    @property
    def folder(self) -> Path:
        """That directory."""
        return self._root / self._own.name

    @property
    def size_on_disk(self) -> int:
        """What this process's segments take on disk (bytes)."""
        return self._own.size

    @property
    def written(self) -> int:
        """How many events were ever accepted."""
        return self._own.written

    def written_to(self) -> List[Segment]:
        """Return the segments that this process writes to."""
        return self._own.written_to()

    def sync(self) -> bool:
        """Sync new records to disk. Returns whether there were any. Raises nothing."""
        return sync(self._root, self.written_to())

    def counted(self) -> Tuple[int, Mark]:
        """Return how many events were ever accepted, and a mark to ask whether those here are settled."""
        written, counts = self._own.counted()
        return written, {segment_id: count for segment_id, count in counts.items() if count}

    def unsettled(self, settled: Mapping[int, int], seen: int, mark: Mark) -> int:
        """Return how many events of *mark* are not settled, by what the sender reports.

        settled: settled events, by segment. A segment up to *seen* that is missing is gone, and its events.
        """
        return sum(
            max(0, count - (settled.get(segment_id, count if segment_id <= seen else 0)))
            for segment_id, count in mark.items()
        )

    def first_record(self) -> Optional[bytes]:
        """Return the oldest event that is not settled, by what is on disk; None if it can't be read."""
        from ..journal import inspect  # for people alone: a process that sends needs none of it

        with suppress(OSError):
            for record in inspect.events_in(self.folder):
                return record.payload
        return None

    def remove_settled(self, settled: Dict[int, int], seen: int) -> None:
        """Let go of segments that are settled, and make spares."""
        own = self._own
        for segment_id, segment in list(own.segments.items()):
            segment.settled = settled.get(segment_id, segment.count if segment_id <= seen else 0)
        own.maintain()

    def release(self) -> None:
        """Close what is on disk; the rest of the events is for the sender."""
        self._own.release()
