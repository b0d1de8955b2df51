"""The application's side of a sender that is another process: looks at its counters, makes room.

`sender.supervisor.SenderLink` is for a sender of the application's own, `relay.link.RelayLink` for a relay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Optional

from .. import clock, log
from ..config import Config
from ..delivery.hooks import Hooks
from ..delivery.workers.maintenance import MaintenanceThread
from ..queue.intake import NEVER
from ..stats import AtomicCounter, Stats, nonzero
from ..turns import Turn
from .counters import Block, Counters
from .queue import Mark, SharedQueue

#: Between two looks at the sender's counters while somebody flushes (seconds).
LOOK_S = 0.002
#: A flush without a timeout gives up when nobody could send for so long (seconds): a relay may be starting.
GRACE_S = 1.0


#: How long the end waits for who looks after the sender right now (seconds).
_CLOSE_S = 5.0


class RemoteFlush:
    """A flush in progress; `Link.is_done` checks it. has_timeout: it waits even if retries are used up."""

    def __init__(self, number: int, mark: Mark, before: Stats, *, has_timeout: bool) -> None:
        self.number = number
        self.mark = mark
        self.before = before
        self.has_timeout = has_timeout
        #: The number of the look for what exited processes left that it is also about; 0 if there is nothing.
        self.look = 0
        self.pending = 0
        #: The sender that was asked for it.
        self.asked: Optional[object] = None
        #: When somebody who sends was last seen, as far as it is looked for.
        self.sender_seen_s = clock.now_s()


class Link(ABC):
    """The connection to the process that sends: wakes it, flushes, and reads its counters."""

    def __init__(self, config: Config, queue: SharedQueue, hooks: Hooks) -> None:
        self.config = config
        self._queue = queue
        self._hooks = hooks
        self._block: Optional[Block] = None
        self.reset()

    def reset(self) -> None:
        """Forget the sender, which is the parent's, in a forked child."""
        self._block = None
        #: Looks after the sender.
        self._turn = Turn(self._maintain)
        self._maintenance = MaintenanceThread(self.maintain, look=self._look, rest_s=self._rest_s)
        self._is_closed = False
        #: The counters at the end: the journal is another's from then on.
        self._last: Optional[Stats] = None
        self._flush_number = AtomicCounter()

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is one that a flush waits for."""
        return self._maintenance.is_current

    def wake(self) -> None:
        """Wake the maintenance thread. Called by track_event, never waits."""
        self._queue.intake.wake_at = NEVER
        self._maintenance.wake()

    def maintain(self) -> None:
        """Make room for more events, and see to it that somebody sends them. Never waits for another."""
        self._turn.take()
        log.write()

    def _maintain(self) -> None:
        if not self._is_closed:
            counters = self._counters()
            self._queue.remove_settled(counters.settled, counters.seen)
            self._ensure()

    def _look(self) -> None:  # noqa: B027 - for a link that has something to look for
        """Do what is to be done every `_rest_s` seconds."""

    def _rest_s(self) -> Optional[float]:
        """Return how long the maintenance thread sleeps (seconds) if it is not woken."""
        return None

    @abstractmethod
    def _ensure(self) -> None:
        """See to it that there is a sender; one thread at a time."""

    def _counters(self) -> Counters:
        block = self._block
        return Counters({}) if block is None else block.read()

    # -- flush, close, stats -------------------------------------------------------------------

    def begin_flush(self, *, has_timeout: bool) -> RemoteFlush:
        """Start to send everything that was accepted so far."""
        before = self.stats()
        _, mark = self._queue.counted()
        flush = RemoteFlush(self._flush_number.add(), mark, before, has_timeout=has_timeout)
        flush.look = self._next_look()
        if flush.mark or flush.look:
            self._ask(flush)
        return flush

    def _next_look(self) -> int:
        """Return the number of a look for what exited processes left; 0 if there is nothing to look for."""
        return 0

    def forked(self) -> None:  # noqa: B027 - as above
        """Take notice of a fork, in the parent."""

    @abstractmethod
    def _ask(self, flush: RemoteFlush) -> None:
        """Make the sender send without pauses."""

    def is_done(self, flush: RemoteFlush) -> bool:
        """Whether all its events are settled, or waiting is useless."""
        counters = self._counters()
        flush.pending = self._queue.unsettled(counters.settled, counters.seen, flush.mark)
        if counters.looked < flush.look:
            flush.pending += max(1, counters.adopted_pending)
        return not flush.pending or self._is_hopeless(flush, counters)

    @abstractmethod
    def _is_hopeless(self, flush: RemoteFlush, counters: Counters) -> bool:
        """Whether a flush that is not done won't be."""

    def end_flush(self, flush: RemoteFlush) -> Stats:
        """Stop waiting; returns the counters."""
        self.is_done(flush)
        Link.maintain(self)
        return self.stats()

    def stats(self) -> Stats:
        """Return the counters of one moment; after the end, the last ones. Takes no lock."""
        refused = nonzero(self._queue.intake.refusals.counters)
        if self._last is not None:
            return replace(self._last, refused=refused)
        counters = self._counters()  # first: what is settled was written before
        written, mark = self._queue.counted()
        here = self._queue.unsettled(counters.settled, counters.seen, mark)
        rejected = sum(counters.rejected_by_reason.values())
        accepted, pending = written + counters.adopted, here + counters.adopted_pending
        return self._complete(
            Stats(
                accepted=accepted,
                delivered=accepted - pending - rejected,
                rejected=rejected,
                pending=pending,
                in_flight=counters.in_flight,
                refused=refused,
                rejected_by_reason=counters.rejected_by_reason,
                requests=counters.requests,
                retries=counters.retries,
                worker_deaths=counters.worker_deaths,
                adopted=counters.adopted,
                journal_bytes=self._queue.writer.size,
                problem=counters.problem or counters.last_failure,
            )
        )

    @abstractmethod
    def _complete(self, stats: Stats) -> Stats:
        """Add what is known here alone."""

    def close(self) -> None:
        """Leave the remaining events to the sender."""
        if self._last is None:
            self._last = self.stats()
        self._is_closed = True
        self._turn.wait(_CLOSE_S)
        self._maintenance.close()

    def exit(self, deadline_s: float) -> int:
        """Leave the remaining events to the sender at the exit. Returns how many it won't deliver."""
        del deadline_s
        self.close()
        return 0
