"""The callers' side alone, for worker="process" and None: another process takes events out and sends them.

The line of places, which `put` looks at to see whether the sender must be woken, keeps one of them. So it is
empty before the first event only.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Dict, Mapping, Optional, Tuple

from ..journal.writer import JournalWriter
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
        self.writer = self._make_writer()
        self.intake = JournalIntake(self._make_line(), self.writer, _NO_MEMORY, refusals)

    def _make_writer(self) -> JournalWriter:
        return JournalWriter(self._root, self._max_journal_bytes, drains=False, fsync=self._fsync)

    @staticmethod
    def _make_line() -> Line[JournalPlace]:
        return Line(UNBOUNDED, length=1)

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, which owns nothing on disk."""
        self.writer.abandon()
        self.writer = self._make_writer()
        self.intake.reset(self._make_line(), self.writer)

    @property
    def folder(self) -> Path:
        """The directory that this process writes to."""
        return self._root / self.writer.name

    def sync(self) -> bool:
        """Sync new records to disk. Returns whether there were any. Raises nothing."""
        return sync(self._root, self.writer.written_to())

    def counted(self) -> Tuple[int, Mark]:
        """Return how many events were ever accepted, and a mark to ask whether those here are settled."""
        written, counts = self.writer.counted()
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

        folder = self.folder
        if folder.is_dir():  # not before the first event, and not after close
            with suppress(OSError):
                for record in inspect.events_in(folder):
                    return record.payload
        return None

    def remove_settled(self, settled: Dict[int, int], seen: int) -> None:
        """Let go of segments that are settled, and make spares."""
        writer = self.writer
        for segment_id, segment in list(writer.segments.items()):
            segment.settled = settled.get(segment_id, segment.count if segment_id <= seen else 0)
        writer.maintain()

    def release(self) -> None:
        """Close what is on disk; the rest of the events is for the sender."""
        self.writer.release()
