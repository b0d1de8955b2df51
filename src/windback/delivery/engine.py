"""What a client and its copies share: queue, scheduler, workers, connections. Wires, decides nothing."""

from __future__ import annotations

import logging
from typing import Callable, Optional, Union

from .. import clock
from ..config import Config
from ..errors import WindbackError
from ..process import lifecycle
from ..queue.memory import MemoryQueue, NoRoomError
from ..stats import FlushResult, Stats
from .scheduler import Flush, MakeQueue, Scheduler
from .workers.fsync import Syncer
from .workers.tasks import TaskWorkers
from .workers.threads import ThreadWaker, ThreadWorkers

logger = logging.getLogger("windback")


class LocalEngine:
    """See the module. A sync client uses `threads` alone; an async one also `tasks`.

    `tasks` keeps the connections of an async client's plain calls, and drains the queue unless
    worker="thread". `threads` sends what is left at exit, when no event loop runs any more.
    is_watched: the exit drains it, and a fork empties it.
    """

    def __init__(
        self,
        config: Config,
        *,
        is_async: bool = False,
        make_queue: Optional[MakeQueue] = None,
        is_watched: bool = True,
    ) -> None:
        self.config = config
        self.shutdown_timeout = config.shutdown_timeout
        self._syncer = None if config.fsync is None else Syncer(self._sync, config.fsync)
        self.scheduler = Scheduler(config, self._start_worker, make_queue or self._make_queue)
        self.queue = self.scheduler.queue
        self.threads = ThreadWorkers(config, self.scheduler)
        self.tasks = TaskWorkers(config, self.scheduler)
        self._uses_tasks = is_async and config.worker == "task"
        self._closed: Optional[FlushResult] = None
        #: Why no thread may be started, as far as it was logged.
        self._obstacle: Optional[str] = None
        #: `queue.put`, or more than that where it is not enough.
        self.put: Callable[[bytes], bool] = self.queue.put
        if self._syncer is not None:
            self.put = self._put_and_sync
        if lifecycle.misses_forks():
            self.put = self._noticing_forks(self.put)
        self.queue.open()
        self._is_watched = is_watched
        if is_watched:
            lifecycle.register(self)

    def _make_queue(self, wake: Callable[[], None], on_full: Callable[[str], None]) -> MemoryQueue:
        config = self.config
        bounds = config.max_queue_size, config.max_queue_bytes, config.overflow
        if config.journal is None:
            return MemoryQueue(*bounds, wake, on_full)
        from ..queue.journal import JournalQueue  # nobody else needs mmap and all that

        return JournalQueue(
            *bounds,
            wake,
            on_full,
            config.journal,
            config.max_journal_bytes,
            fsync=self._syncer is not None,
        )

    def _sync(self) -> bool:
        from ..queue.sourced import SourcedQueue

        assert isinstance(self.queue, SourcedQueue)
        return self.queue.sync()

    def sync_soon(self) -> None:
        """Have what was written into journals on the disk itself, if that was asked for; never waits."""
        if self._syncer is not None:
            self._syncer.wake()

    def _put_and_sync(self, record: bytes) -> bool:
        assert self._syncer is not None
        is_accepted = self.queue.put(record)
        self._syncer.wake()  # not `sync_soon`: a call less on the request path
        return is_accepted

    def _start_worker(self) -> bool:
        obstacle = lifecycle.why_no_threads()
        if obstacle is not None:
            if obstacle != self._obstacle:
                self._obstacle = obstacle
                logger.warning("%s", obstacle)
            return False
        workers: Union[TaskWorkers, ThreadWorkers] = self.tasks if self._uses_tasks else self.threads
        return workers.start()

    def _ensure_worker(self) -> bool:
        """Make sure that somebody drains the queue; False if nobody can."""
        if self._uses_tasks and not self.tasks.has_worker_here:
            self.tasks.bury()
            return self.scheduler.add_worker() or self.scheduler.workers > 0
        return self.scheduler.workers > 0 or self.scheduler.add_worker()

    @staticmethod
    def _noticing_forks(put: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
        """Return `put` for a process that may fork without Python's hooks."""

        def put_noticing_forks(record: bytes) -> bool:
            lifecycle.notice_fork()
            return put(record)

        return put_noticing_forks

    # -- for threads ---------------------------------------------------------------------------

    def put_or_wait(self, record: bytes) -> bool:
        """Wait for room in the queue, for block_timeout at most (overflow="block")."""
        deadline_s = clock.now_s() + self.config.block_timeout
        while True:
            waker = ThreadWaker()
            gave_up = True
            try:
                if self.scheduler.wait_for_room(waker, len(record)):
                    self._ensure_worker()
                    waker.sleep(deadline_s - clock.now_s())
                gave_up = clock.now_s() >= deadline_s
            finally:
                self.scheduler.stop_waiting(waker, gave_up=gave_up)
            try:
                return self.put(record)
            except NoRoomError:
                if gave_up:
                    return self.queue.refuse("queue_full")

    def flush(self, timeout: Optional[float]) -> FlushResult:
        """Block until all that was accepted is off our hands; see Windback.flush."""
        self._check_not_worker()
        return self._flush_until(None if timeout is None else clock.now_s() + timeout, in_caller=False)

    def _check_not_worker(self) -> None:
        if self.threads.is_current:
            message = "flush and close can't be called by on_delivery: they would wait for themselves"
            raise WindbackError(message, code="FLUSH_IN_HOOK")

    def _flush_until(self, deadline_s: Optional[float], *, in_caller: bool) -> FlushResult:
        """in_caller: there is no event loop, so no task can do it."""
        waker = ThreadWaker()
        flush = self.scheduler.begin_flush(waker, patient=deadline_s is not None)
        return self._await(flush, waker, deadline_s, in_caller=in_caller)

    def _await(
        self, flush: Flush, waker: ThreadWaker, deadline_s: Optional[float], *, in_caller: bool
    ) -> FlushResult:
        try:
            while not flush.done and not _is_past(deadline_s):
                if not in_caller and self._ensure_worker():
                    waker.sleep(None if deadline_s is None else deadline_s - clock.now_s())
                else:
                    self._drain(flush, deadline_s)
        finally:
            result = self.scheduler.end_flush(flush)
        return result

    def flush_from_outside(self, deadline_s: float) -> Callable[[], FlushResult]:
        """Start a flush for a thread that is nobody's; what is returned waits for it."""
        waker = ThreadWaker()
        flush = self.scheduler.begin_flush(waker, patient=True)
        return lambda: self._await(flush, waker, deadline_s, in_caller=False)

    def _drain(self, flush: Flush, deadline_s: Optional[float]) -> None:
        self.threads.drain(lambda: flush.done or _is_past(deadline_s), deadline_s)

    def close(self, timeout: Optional[float]) -> FlushResult:
        """Deliver what is left within the deadline, drop the rest, close; see Windback.close."""
        lifecycle.notice_fork()
        if self._closed is None:
            self._check_not_worker()
            self.scheduler.begin_close()
            self._closed = self.flush(self.shutdown_timeout if timeout is None else timeout)
            self._end()
        return self._closed

    def _end(self) -> None:
        self._release()
        if self._is_watched:
            lifecycle.forget(self)

    # -- for tasks: the same, in the same order ------------------------------------------------

    async def put_or_wait_async(self, record: bytes) -> bool:
        """Wait for room; a caller that is cancelled meanwhile knows that its event was not accepted."""
        deadline_s = clock.now_s() + self.config.block_timeout
        while True:
            waker = await self.tasks.waker()
            gave_up = True
            try:
                if self.scheduler.wait_for_room(waker, len(record)):
                    self._ensure_worker()
                    await waker.sleep(max(0.0, deadline_s - clock.now_s()))
                gave_up = clock.now_s() >= deadline_s
            finally:
                self.scheduler.stop_waiting(waker, gave_up=gave_up)
            try:
                return self.put(record)
            except NoRoomError:
                if gave_up:
                    return self.queue.refuse("queue_full")

    async def flush_async(self, timeout: Optional[float]) -> FlushResult:
        """Wait until all that was accepted is off our hands; see Windback.flush."""
        deadline_s = None if timeout is None else clock.now_s() + timeout
        # It begins before there is what this task can sleep on: what is delivered meanwhile counts.
        flush = self.scheduler.begin_flush(ThreadWaker(), patient=deadline_s is not None)
        try:
            flush.waker = waker = await self.tasks.waker()
            while not flush.done and not _is_past(deadline_s):
                if self._ensure_worker():
                    await waker.sleep(None if deadline_s is None else max(0.0, deadline_s - clock.now_s()))
                    flush.waker = waker = await self.tasks.waker()
                elif self._uses_tasks:  # this loop is going down; the next one, or the exit, sends the rest
                    break
                else:  # no thread can be started, so tasks do it from now on
                    self._uses_tasks = True
        finally:
            result = self.scheduler.end_flush(flush)
        return result

    async def close_async(self, timeout: Optional[float]) -> FlushResult:
        """Deliver what is left within the deadline, drop the rest, close; see Windback.close."""
        lifecycle.notice_fork()
        if self._closed is None:
            self.scheduler.begin_close()
            self._closed = await self.flush_async(self.shutdown_timeout if timeout is None else timeout)
            self._end()
        await self.tasks.close()
        return self._closed

    # -- lifecycle -----------------------------------------------------------------------------

    def begin_exit(self) -> None:
        """Accept nothing more, start no thread, hurry the workers."""
        self.scheduler.exiting = True
        self.scheduler.begin_close()

    def finish_exit(self, deadline_s: float) -> int:
        """Wait for the worker threads; send from here what no thread and no event loop will."""
        if self._uses_tasks:
            self.scheduler.reclaim()
        result = self._flush_until(deadline_s, in_caller=self._uses_tasks)
        self._release()
        return result.pending

    def _release(self) -> None:
        self.scheduler.discard()
        self.threads.close()
        self._end_sync()
        self.queue.release()

    def _end_sync(self) -> None:
        if self._syncer is not None:
            self._syncer.close()

    def stats(self) -> Stats:
        """Return what became of all events so far."""
        return self.scheduler.stats()

    def reset(self) -> None:
        """Become a client that has done nothing yet, in a forked child."""
        self.scheduler.reset()
        self.threads.reset()
        self.tasks.reset()
        if self._syncer is not None:
            self._syncer.reset()


def _is_past(deadline_s: Optional[float]) -> bool:
    return deadline_s is not None and clock.now_s() >= deadline_s
