"""The application's side of worker=None: a relay sends, at an unknown time."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Optional

from .. import clock
from ..journal.directory import COUNTERS, DRAIN, is_held
from ..remote.counters import Block, Counters
from ..remote.link import GRACE_S, Link, RemoteFlush
from ..remote.stopped import holder_of, is_stopped, problem_of
from ..stats import Stats


class RelayLink(Link):
    """The link to a relay through files in the journal."""

    def reset(self) -> None:
        """Forget the relay, which is the parent's, in a forked child."""
        super().reset()
        #: When a relay was last seen; at first when this process began to look.
        self._relay_seen_s = clock.now_s()

    def _ensure(self) -> None:
        """Make the file in which a relay counts. Without one, all events count as pending."""
        if not self._queue.writer.has_home:
            return
        path = self._queue.folder / COUNTERS
        if self._block is None or not self._block.is_at(path):
            with contextlib.suppress(OSError):  # a full disk; the maintenance thread tries again
                block = Block.open(path, create=True)
                if self._block is not None:
                    block.write(self._block.read())
                self._block = block

    def _ask(self, flush: RemoteFlush) -> None:
        del flush
        self.maintain()

    def _has_relay(self) -> bool:
        has_relay = is_held(self._queue.folder / DRAIN)
        if has_relay:
            self._relay_seen_s = clock.now_s()
        return has_relay

    def _stopped_relay(self) -> Optional[int]:
        """Return the process id of the relay, if it is stopped."""
        relay = holder_of(self._queue.folder / DRAIN)
        return relay if is_stopped(relay) else None

    def _is_hopeless(self, flush: RemoteFlush, counters: Counters) -> bool:
        if flush.has_timeout:
            return False
        if self._has_relay() and self._stopped_relay() is None:
            flush.sender_seen_s = clock.now_s()
        is_alone = clock.now_s() - flush.sender_seen_s > GRACE_S
        return is_alone or counters.problem is not None

    def _complete(self, stats: Stats) -> Stats:
        if not stats.pending:
            return stats
        if self._has_relay():
            stopped = self._stopped_relay()
            return stats if stopped is None else replace(stats, problem=problem_of("the relay", stopped))
        alone_s = clock.now_s() - self._relay_seen_s
        return replace(
            stats,
            problem=(
                f"no relay sends from the journal (for {alone_s:.0f} s); start "
                f"`windback relay --journal {self.config.journal}`"
            ),
        )
