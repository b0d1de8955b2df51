"""The engine of a client whose events another process sends: this one writes them, and asks how far it is.

It has a queue that is only written to, a link to what sends, and connections for the plain calls. It has no
scheduler, no gate and no workers, so there is one set of counters: those that the link reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Iterator, Optional

from .. import clock
from ..config import Config
from ..delivery.connections import Connections
from ..delivery.engine import flush_in_hook, put_of
from ..delivery.hooks import Hooks
from ..delivery.refusals import log_refusal
from ..delivery.workers.fsync import FsyncThread
from ..delivery.workers.loop_state import LoopStates
from ..event_loops import sleep
from ..process import lifecycle
from ..queue.intake import NoRoomError, Refusals
from ..report import Report, report_of
from ..stats import FlushResult, Stats
from .link import LOOK_S, Link, RemoteFlush
from .queue import SharedQueue

MakeLink = Callable[[Config, SharedQueue, Hooks], Link]

#: The longest pause between two looks at a flush in progress (seconds).
_LOOK_CAP_S = 0.02


class RemoteEngine:
    """The engine of a client whose events another process sends. make_link: makes the link to it."""

    def __init__(self, config: Config, make_link: MakeLink) -> None:
        assert config.journal is not None
        self.config = config
        # With a relay: what is in the journal is safe, and how soon it is sent is not known here.
        self.shutdown_timeout = 0.0 if config.worker is None else config.shutdown_timeout
        self.hooks = Hooks(config)
        self.refusals = Refusals(config.overflow, log_refusal)
        self.queue = SharedQueue(
            config.journal, config.max_journal_bytes, self.refusals, fsync=config.fsync is not None
        )
        self._intake = self.queue.intake
        self._fsync_thread = None if config.fsync is None else FsyncThread(self.queue.sync, config.fsync)
        self._link = make_link(config, self.queue, self.hooks)
        self.connections = Connections(config)
        self.loops = LoopStates(config)
        self._closed: Optional[FlushResult] = None
        self._intake.wake = self._link.wake
        self.put = put_of(self._intake.put, self._fsync_thread)
        self.queue.writer.prepare()
        lifecycle.register(self)

    @property
    def compress(self) -> bool:
        """Whether batches are compressed."""
        return self.config.compress

    def _check_may_wait(self) -> None:
        """Raise WindbackError in a thread that a flush would wait for."""
        if self.hooks.is_reporting or self._link.is_current:
            raise flush_in_hook()

    # -- what threads and tasks do alike: they sleep between looks, each in its own way -------------

    def _wait_for_room(self, size: int) -> Iterator[float]:
        """Yield the pauses until *size* bytes may fit, or block_timeout is over."""
        deadline_s = clock.now_s() + self.config.block_timeout

        def may_fit() -> bool:
            self._link.wake()
            return self.refusals.is_closed or self._intake.has_room_for(size)

        return _pauses(may_fit, deadline_s)

    def _put_at_last(self, record: bytes) -> bool:
        try:
            return self.put(record)
        except NoRoomError:
            return self.refusals.refuse("queue_full")

    def _wait_for(self, flush: RemoteFlush, deadline_s: Optional[float]) -> Iterator[float]:
        """Yield the pauses until a flush is done, or the deadline is over."""
        return _pauses(lambda: self._link.is_done(flush), deadline_s)

    def _end_flush(self, flush: RemoteFlush) -> FlushResult:
        after = self._link.end_flush(flush)
        return FlushResult.between(flush.before, after, flush.pending)

    def _end(self) -> None:
        self._link.close()
        self.connections.close()
        self._release_queue()
        lifecycle.forget(self)

    def _release_queue(self) -> None:
        if self._fsync_thread is not None:
            self._fsync_thread.close()
        self.queue.release()

    # -- for threads ---------------------------------------------------------------------------

    def put_or_wait(self, record: bytes) -> bool:
        """Wait for room in the journal, for block_timeout at most (overflow="block")."""
        for pause_s in self._wait_for_room(len(record)):
            clock.sleep(pause_s)
        return self._put_at_last(record)

    def flush(self, timeout: Optional[float]) -> FlushResult:
        """Block until everything that was accepted is settled; see Windback.flush."""
        self._check_may_wait()
        return self._await(
            self._link.begin_flush(has_timeout=timeout is not None),
            None if timeout is None else clock.now_s() + timeout,
        )

    def _await(self, flush: RemoteFlush, deadline_s: Optional[float]) -> FlushResult:
        try:
            for pause_s in self._wait_for(flush, deadline_s):
                clock.sleep(pause_s)
        finally:
            result = self._end_flush(flush)
        return result

    def flush_from_outside(self, deadline_s: float) -> Callable[[], FlushResult]:
        """Start a flush for a thread that is not the application's; the returned function waits for it."""
        flush = self._link.begin_flush(has_timeout=True)
        return lambda: self._await(flush, deadline_s)

    def close(self, timeout: Optional[float]) -> FlushResult:
        """Wait within the deadline, leave the remaining events to the sender; see Windback.close."""
        lifecycle.notice_fork()
        if self._closed is None:
            self._check_may_wait()
            self.begin_exit()
            result = self.flush(self.shutdown_timeout if timeout is None else timeout)
            self._end()
            self._closed = result  # now, and not before: a close that was interrupted can be called again
        return self._closed

    # -- for tasks: the same, in the same order ------------------------------------------------

    async def put_or_wait_async(self, record: bytes) -> bool:
        """Wait for room; a caller that is cancelled in the meantime knows its event was not accepted."""
        await self.loops.waker()  # loads anyio without blocking the loop
        for pause_s in self._wait_for_room(len(record)):
            await sleep(pause_s)
        return self._put_at_last(record)

    async def flush_async(self, timeout: Optional[float]) -> FlushResult:
        """Wait until everything that was accepted is settled; see Windback.flush."""
        self._check_may_wait()
        deadline_s = None if timeout is None else clock.now_s() + timeout
        await self.loops.waker()  # loads anyio without blocking the loop
        flush = self._link.begin_flush(has_timeout=timeout is not None)
        try:
            for pause_s in self._wait_for(flush, deadline_s):
                await sleep(pause_s)
        finally:
            result = self._end_flush(flush)
        return result

    async def close_async(self, timeout: Optional[float]) -> FlushResult:
        """Wait within the deadline, leave the remaining events to the sender; see Windback.close."""
        lifecycle.notice_fork()
        if self._closed is None:
            self._check_may_wait()
            self.begin_exit()
            result = await self.flush_async(self.shutdown_timeout if timeout is None else timeout)
            self._end()
            self._closed = result
        await self.loops.close()
        return self._closed

    # -- lifecycle -----------------------------------------------------------------------------

    def begin_exit(self) -> None:
        """Accept nothing more."""
        self._intake.close("closed")

    def finish_exit(self, deadline_s: float) -> int:
        """Leave the queued events to the sender, which outlives this process."""
        left = self._link.exit(deadline_s)
        self._release_queue()
        return left

    def stats(self) -> Stats:
        """Return what became of all events so far, by what the sender reports."""
        return replace(self._link.stats(), hook_errors=self.hooks.errors.value())

    def report(self) -> Report:
        """Return the state of the client at this moment. All events are in the journal."""
        stats = self.stats()
        first = self.queue.first_record() if stats.pending else None
        return report_of(self.config, stats, [] if first is None else [first])

    def retire(self) -> bool:
        """Leave the events of a client without references to the sender. Closes it and returns True."""
        self._link.maintain()
        stats = self._link.stats()
        if self.config.worker is not None and stats.pending and not stats.workers:
            return False  # no sender could be started
        self.close(0)
        self.loops.stop()
        return True

    def forked(self) -> None:
        """Take notice of a fork, in the parent."""
        self._link.forked()

    def reset(self) -> None:
        """Become a client that has done nothing yet, in a forked child, with a sender of its own."""
        self.hooks.reset()
        self.queue.reset()
        self.connections.reset()
        self.loops.reset()
        if self._fsync_thread is not None:
            self._fsync_thread.reset()
        self._link.reset()


def _pauses(is_over: Callable[[], bool], deadline_s: Optional[float]) -> Iterator[float]:
    """Yield how long to sleep between looks (seconds), which grows, until *is_over* or the deadline."""
    pause_s = LOOK_S
    while not is_over() and not clock.is_past(deadline_s):
        yield pause_s
        pause_s = min(1.5 * pause_s, _LOOK_CAP_S)
