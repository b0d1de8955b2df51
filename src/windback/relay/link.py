"""The application's side of worker=None: a relay sends, at an unknown time."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from .. import clock
from ..journal.directory import COUNTERS, DRAIN, is_held
from ..remote.counters import Block, Counters
from ..remote.link import Link, RemoteFlush
from ..stats import Stats

#: A flush without a timeout gives up when there was no relay for this long (seconds): one may be starting.
_GRACE_S = 1.0


class RelayLink(Link):
    """The link to a relay through files in the journal."""

    def _ensure(self) -> None:
        """Make the file in which a relay counts. Without one, all events count as pending."""
        if not self._queue.has_home:
            return
        path = self._queue.folder / COUNTERS
        if self._block is None or not self._block.is_at(path):
            with contextlib.suppress(OSError):  # a full disk; the maintenance thread tries again
                block = Block.open(path, create=True)
                if self._block is not None:
                    block.write(self._block.read())
                    self._block.close()
                self._block = block

    def _ask(self, flush: RemoteFlush) -> None:
        del flush
        self.attend()

    def _is_attended(self) -> bool:
        return is_held(self._queue.folder / DRAIN)

    def _is_hopeless(self, flush: RemoteFlush, counters: Counters) -> bool:
        if flush.patient:
            return False
        if self._is_attended():
            flush.attended_s = clock.now_s()
        is_alone = clock.now_s() - flush.attended_s > _GRACE_S
        return is_alone or counters.problem is not None

    def _complete(self, stats: Stats) -> Stats:
        if not stats.pending or self._is_attended():
            return stats
        root = self.config.journal
        return replace(
            stats, problem=f"no relay sends from the journal; start `windback relay --journal {root}`"
        )
