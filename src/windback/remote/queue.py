"""The queue of worker="process" and None: callers write, and another process takes out and sends.

`put` is the journal's. The deque of places, which it looks at to see whether somebody has to be woken, keeps
one of them, so it is empty before the first event alone.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Deque, Dict, Mapping

from ..journal.writer import OwnJournal
from ..queue.journal import JournalQueue
from ..queue.sourced import Item

#: How many events each segment held at one moment.
Mark = Mapping[int, int]


class SharedQueue(JournalQueue):
    """See the module. While the disk has trouble nothing is accepted: the sender can't see memory."""

    __slots__ = ()

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, which owns nothing there."""
        super().reset()
        self._places: Deque[Item] = deque(maxlen=1)
        self._max_in_memory = (0, 0)

    def _make_own(self) -> OwnJournal:
        return OwnJournal(self._root, self._max_journal_bytes, drains=False, fsync=self._fsync)

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
    def written(self) -> int:
        """How many events were ever accepted."""
        return self._own.written

    def mark(self) -> Mark:
        """Return what there is now, to ask later whether all of it is off our hands."""
        return {segment_id: each.count for segment_id, each in list(self._own.segments.items()) if each.count}

    def unsettled(self, settled: Mapping[int, int], seen: int, mark: Mark) -> int:
        """Return how many events of *mark* are not off our hands, by what the sender says.

        settled: events done with, by segment; one up to *seen* that is missing is gone, all events with it.
        """
        return sum(
            max(0, count - (settled.get(segment_id, count if segment_id <= seen else 0)))
            for segment_id, count in mark.items()
        )

    def tidy(self, settled: Dict[int, int], seen: int) -> None:
        """Let go of segments that are done with, and make spares."""
        own = self._own
        for segment_id, segment in list(own.segments.items()):
            segment.settled = settled.get(segment_id, segment.count if segment_id <= seen else 0)
        own.upkeep()
