"""The engine of a client whose events another process sends: this one asks it and believes it."""

from __future__ import annotations

from typing import Callable, Optional

from .. import clock
from ..config import Config
from ..delivery.engine import LocalEngine
from ..delivery.workers.event_loops import sleep
from ..queue.memory import MemoryQueue, NoRoomError
from ..stats import FlushResult, Stats
from .link import LOOK_S, Link, RemoteFlush
from .queue import SharedQueue

MakeLink = Callable[[Config, SharedQueue], Link]

#: The longest pause between two looks at a flush in progress (seconds).
_LOOK_CAP_S = 0.02


class RemoteEngine(LocalEngine):
    """See the module. What it inherits of workers serves the plain calls alone."""

    def __init__(self, config: Config, make_link: MakeLink, *, is_async: bool = False) -> None:
        assert config.journal is not None
        root = config.journal

        def make_queue(_: Callable[[], None], on_full: Callable[[str], None]) -> MemoryQueue:
            return SharedQueue(
                config.max_queue_size,
                config.max_queue_bytes,
                config.overflow,
                lambda: self._link.wake(),  # noqa: PLW0108 - there is none yet
                on_full,
                root,
                config.max_journal_bytes,
                fsync=self._syncer is not None,
            )

        super().__init__(config, is_async=is_async, make_queue=make_queue)
        assert isinstance(self.queue, SharedQueue)
        self._link = make_link(config, self.queue)
        if config.worker is None:
            # What is in the journal is safe, and whether anybody sends it soon is not ours to know.
            self.shutdown_timeout = 0.0

    def _ensure_worker(self) -> bool:
        self._link.wake()
        return True

    def _flush_until(self, deadline_s: Optional[float], *, in_caller: bool) -> FlushResult:
        del in_caller
        flush = self._link.begin_flush(patient=deadline_s is not None)
        return self._await_remote(flush, deadline_s)

    def _await_remote(self, flush: RemoteFlush, deadline_s: Optional[float]) -> FlushResult:
        pause_s = LOOK_S
        try:
            while not self._link.is_done(flush):
                if deadline_s is not None and clock.now_s() >= deadline_s:
                    break
                clock.sleep(pause_s)
                pause_s = min(1.5 * pause_s, _LOOK_CAP_S)
        finally:
            after = self._link.end_flush(flush)
        return _result(flush, after)

    def put_or_wait(self, record: bytes) -> bool:
        """Wait for room in the journal, for block_timeout at most (overflow="block")."""
        deadline_s = clock.now_s() + self.config.block_timeout
        pause_s = LOOK_S
        while not self._may_put_at(deadline_s, len(record)):
            clock.sleep(pause_s)
            pause_s = min(1.5 * pause_s, _LOOK_CAP_S)
        return self._put_at_last(record)

    async def put_or_wait_async(self, record: bytes) -> bool:
        """Do the same for a task; one that is cancelled meanwhile knows that its event was not accepted."""
        await self.tasks.waker()  # has anyio loaded without holding up the loop
        deadline_s = clock.now_s() + self.config.block_timeout
        pause_s = LOOK_S
        while not self._may_put_at(deadline_s, len(record)):
            await sleep(pause_s)
            pause_s = min(1.5 * pause_s, _LOOK_CAP_S)
        return self._put_at_last(record)

    def _may_put_at(self, deadline_s: float, size: int) -> bool:
        self._link.wake()
        return self.queue.has_room_for(size) or self.scheduler.closing or clock.now_s() >= deadline_s

    def _put_at_last(self, record: bytes) -> bool:
        try:
            return self.put(record)
        except NoRoomError:
            return self.queue.refuse("queue_full")

    def flush_from_outside(self, deadline_s: float) -> Callable[[], FlushResult]:
        """Start a flush for a thread that is nobody's; what is returned waits for it."""
        flush = self._link.begin_flush(patient=True)
        return lambda: self._await_remote(flush, deadline_s)

    async def flush_async(self, timeout: Optional[float]) -> FlushResult:
        """Wait until all that was accepted is off our hands; see Windback.flush."""
        deadline_s = None if timeout is None else clock.now_s() + timeout
        await self.tasks.waker()  # has anyio loaded without holding up the loop
        flush = self._link.begin_flush(patient=timeout is not None)
        pause_s = LOOK_S
        try:
            while not self._link.is_done(flush):
                if deadline_s is not None and clock.now_s() >= deadline_s:
                    break
                await sleep(pause_s)
                pause_s = min(1.5 * pause_s, _LOOK_CAP_S)
        finally:
            after = self._link.end_flush(flush)
        return _result(flush, after)

    def _end(self) -> None:
        self._link.close()
        super()._end()

    def finish_exit(self, deadline_s: float) -> int:
        """Leave what waits to the sender, which outlives this process."""
        left = self._link.exit(deadline_s)
        self._end_sync()
        self.queue.release()
        return left

    def stats(self) -> Stats:
        """Return what became of all events so far, by what the sender says."""
        return self._link.stats()

    def reset(self) -> None:
        """Become a client that has done nothing yet, in a forked child, with a sender of its own."""
        super().reset()
        self._link.reset()


def _result(flush: RemoteFlush, after: Stats) -> FlushResult:
    before = flush.before
    return FlushResult(
        pending=flush.pending,
        delivered=after.delivered - before.delivered,
        rejected=after.rejected - before.rejected,
        dropped=after.dropped - before.dropped,
        problem=after.problem if flush.pending else None,
    )
