"""What a client and its copies share. An engine wires parts together and decides nothing.

`LocalEngine` sends from this process. `remote.engine.RemoteEngine` is for a client whose events another
process sends. Each is made of the parts that it uses, and a client sees only the `Engine` protocol.
"""

from __future__ import annotations

import logging
from typing import Callable, Optional, Protocol, Tuple

from .. import clock, event_loops
from ..config import Config
from ..errors import WindbackError
from ..process import lifecycle
from ..queue.intake import NoRoomError, Refusals
from ..queue.memory import MemoryQueue
from ..queue.protocol import Queue
from ..report import Report, report_of
from ..stats import FlushResult, Stats
from .connections import Connections
from .flushes import LOOK_S, Flush
from .hooks import Hooks
from .parking import Worker
from .refusals import log_refusal
from .scheduler import Scheduler
from .workers.fsync import FsyncThread
from .workers.loop_state import LoopStates
from .workers.tasks import TaskWorkers
from .workers.threads import ThreadWaker, ThreadWorkers

logger = logging.getLogger("windback")

#: A system that refused a thread is asked again after this long: each time takes longer than an event.
_ASK_AGAIN_S = 0.1
#: Syncs a queue to disk; whether there was anything new.
Sync = Callable[[], bool]


class Engine(lifecycle.Engine, Protocol):
    """What a client needs of its engine, beside what the end of the process and a fork need."""

    hooks: Hooks
    refusals: Refusals
    #: For the plain calls of threads, and of tasks.
    connections: Connections
    loops: LoopStates
    #: Accept an encoded event. Raises QueueFullError, or NoRoomError where the caller may wait for room.
    put: Callable[[bytes], bool]

    @property
    def compress(self) -> bool:
        """Whether batches are compressed."""
        ...

    def put_or_wait(self, record: bytes) -> bool:
        """Accept an event when there is room, within block_timeout (overflow="block")."""
        ...

    async def put_or_wait_async(self, record: bytes) -> bool:
        """Do the same for a task."""
        ...

    def flush(self, timeout: Optional[float]) -> FlushResult:
        """Deliver everything that was accepted so far; see Windback.flush."""
        ...

    async def flush_async(self, timeout: Optional[float]) -> FlushResult:
        """Do the same for a task."""
        ...

    def close(self, timeout: Optional[float]) -> FlushResult:
        """Deliver the rest, then stop; see Windback.close."""
        ...

    async def close_async(self, timeout: Optional[float]) -> FlushResult:
        """Do the same for a task."""
        ...


class LocalEngine:
    """Sends from this process. A sync client uses `threads` alone; an async one also `tasks`.

    `loops` has the connections of an async client's plain calls. `tasks` drains the queue unless
    worker="thread". `threads` sends the rest at exit, when no event loop runs any more.
    queue: that of a relay; by default the one that the options of a client ask for. sync: syncs it to disk.
    on_throttle: see Scheduler. is_watched: the end of the process drains this engine, and a fork empties it.
    """

    def __init__(
        self,
        config: Config,
        *,
        is_async: bool = False,
        queue: Optional[Queue] = None,
        sync: Optional[Sync] = None,
        on_throttle: Optional[Callable[[float], None]] = None,
        is_watched: bool = True,
    ) -> None:
        self.config = config
        self.shutdown_timeout = config.shutdown_timeout
        self.hooks = Hooks(config)
        self.refusals = Refusals(config.overflow, log_refusal)
        if queue is None:
            queue, sync = self._make_queue()
        self.queue = queue
        self._fsync_thread = None if sync is None or config.fsync is None else FsyncThread(sync, config.fsync)
        self.scheduler = Scheduler(config, self._start_worker, self.queue, self.hooks, on_throttle)
        self.connections = Connections(config)
        self.loops = LoopStates(config)
        self.threads = ThreadWorkers(self.scheduler, self.connections)
        self.tasks = TaskWorkers(self.scheduler, self.loops)
        self._uses_tasks = is_async and config.worker == "task"
        self._closed: Optional[FlushResult] = None
        #: Begun once nobody refers to the client any more.
        self._last_flush: Optional[Flush] = None
        #: Why no thread may be started, as far as it was logged.
        self._obstacle: Optional[str] = None
        #: When a thread may be asked for again, after a refusal.
        self._ask_again_s = float("-inf")
        #: As in Engine; a relay has nothing to put.
        self.put: Callable[[bytes], bool]
        if queue.intake is not None:
            self.put = put_of(queue.intake.put, self._fsync_thread)
        self._is_watched = is_watched
        if is_watched:
            lifecycle.register(self)

    def _make_queue(self) -> Tuple[Queue, Optional[Sync]]:
        """Return the queue of a client, and what syncs it to disk."""
        config = self.config
        if config.journal is None:
            return MemoryQueue(config.max_queue_size, config.max_queue_bytes, self.refusals), None
        from ..queue.journal import JournalQueue, MemoryBounds  # nothing else needs mmap and its kind

        queue = JournalQueue(
            config.journal,
            config.max_journal_bytes,
            MemoryBounds(config.max_queue_size, config.max_queue_bytes),
            self.refusals,
            fsync=config.fsync is not None,
        )
        queue.writer.prepare()
        return queue, queue.sync

    def sync_soon(self) -> None:
        """Start to sync new records of journals to disk, if fsync is used. Never waits."""
        if self._fsync_thread is not None:
            self._fsync_thread.wake()

    @property
    def compress(self) -> bool:
        """Whether batches are compressed, which ends when the API refuses it."""
        return self.scheduler.compress

    def _start_worker(self, worker: Worker) -> bool:
        if self._uses_tasks:
            return self._may_start_worker() and self.tasks.start(worker)
        if self.scheduler.exiting or clock.now_s() < self._ask_again_s:
            return False
        if self._may_start_worker() and self.threads.start(worker):
            return True
        self._ask_again_s = clock.now_s() + _ASK_AGAIN_S
        return False

    def _may_start_worker(self) -> bool:
        """Return whether a worker may be started here; log why not, once."""
        lifecycle.follow_in_child()
        obstacle = lifecycle.why_no_threads()
        if obstacle is not None and obstacle != self._obstacle:
            self._obstacle = obstacle
            logger.warning("%s", obstacle)
        return obstacle is None

    def _ensure_worker(self) -> bool:
        """Make sure that a worker drains the queue; False if none can."""
        if self._uses_tasks and not self.tasks.has_worker_here:
            self.tasks.take_back()
            return self.scheduler.add_worker() or self.scheduler.workers > 0
        return self.scheduler.workers > 0 or self.scheduler.add_worker()

    def check_may_wait(self) -> None:
        """Raise WindbackError in a thread that a flush would wait for."""
        if self.threads.is_current or self.hooks.is_reporting:
            raise flush_in_hook()

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
                    return self.refusals.refuse("queue_full")

    def flush(self, timeout: Optional[float]) -> FlushResult:
        """Block until everything that was accepted is settled; see Windback.flush."""
        self.check_may_wait()
        return self._flush_until(None if timeout is None else clock.now_s() + timeout, in_caller=False)

    def _flush_until(self, deadline_s: Optional[float], *, in_caller: bool) -> FlushResult:
        """in_caller: this thread sends, too, until nothing is left to begin."""
        waker = ThreadWaker()
        flush = self.scheduler.begin_flush(waker, has_timeout=deadline_s is not None, adopts=True)
        return self._await(flush, waker, deadline_s, in_caller=in_caller)

    def _await(
        self, flush: Flush, waker: ThreadWaker, deadline_s: Optional[float], *, in_caller: bool
    ) -> FlushResult:
        try:
            while not flush.done and not clock.is_past(deadline_s):
                if not in_caller and self._ensure_worker():
                    if not waker.sleep(_until(deadline_s)):
                        self.scheduler.flushes.look()
                elif not self.threads.drain(flush, deadline_s):
                    break
                else:  # what is left is under way in other workers
                    in_caller = False
                    flush.waker = waker
        finally:
            result = self.scheduler.end_flush(flush)
        return result

    def flush_from_outside(self, deadline_s: float) -> Callable[[], FlushResult]:
        """Start a flush for a thread that is not the application's; the returned function waits for it."""
        waker = ThreadWaker()
        flush = self.scheduler.begin_flush(waker, has_timeout=True)
        return lambda: self._await(flush, waker, deadline_s, in_caller=False)

    def close(self, timeout: Optional[float]) -> FlushResult:
        """Deliver the remaining events within the deadline, drop the others, close; see Windback.close."""
        lifecycle.notice_fork()
        if self._closed is None:
            self.check_may_wait()
            self.scheduler.begin_close()
            result = self.flush(self.shutdown_timeout if timeout is None else timeout)
            self._end()
            self._closed = result  # now, and not before: a close that was interrupted can be called again
        return self._closed

    def _end(self) -> None:
        self._release()
        if self._is_watched:
            lifecycle.forget(self)

    # -- for tasks: the same, in the same order ------------------------------------------------

    async def put_or_wait_async(self, record: bytes) -> bool:
        """Wait for room; a caller that is cancelled in the meantime knows its event was not accepted."""
        deadline_s = clock.now_s() + self.config.block_timeout
        while True:
            waker = await self.loops.waker()
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
                    return self.refusals.refuse("queue_full")

    async def flush_async(self, timeout: Optional[float]) -> FlushResult:
        """Wait until everything that was accepted is settled; see Windback.flush."""
        self.check_may_wait()
        return await self._flush_until_async(None if timeout is None else clock.now_s() + timeout)

    async def _flush_until_async(self, deadline_s: Optional[float]) -> FlushResult:
        # It begins before this task has anything to sleep on: what is delivered in the meantime counts.
        flush = self.scheduler.begin_flush(ThreadWaker(), has_timeout=deadline_s is not None, adopts=True)
        try:
            flush.waker = waker = await self.loops.waker()
            while not flush.done and not clock.is_past(deadline_s):
                if self._ensure_worker():
                    if not await waker.sleep(_until(deadline_s)):
                        self.scheduler.flushes.look()
                    flush.waker = waker = await self.loops.waker()
                elif self.scheduler.flushes.are_closing and self.loops.revive():
                    continue  # others cancelled the tasks of this client
                elif self._uses_tasks:  # this loop is going down; the next one, or the exit, sends the rest
                    break
                else:  # no thread can be started, so tasks do it from now on
                    self._uses_tasks = True
        finally:
            result = self.scheduler.end_flush(flush)
        return result

    async def close_async(self, timeout: Optional[float]) -> FlushResult:
        """Deliver the remaining events within the deadline, drop the others, close; see Windback.close."""
        lifecycle.notice_fork()
        if self._closed is None:
            self.check_may_wait()
            self.scheduler.begin_close()
            result = await self.flush_async(self.shutdown_timeout if timeout is None else timeout)
            self._end()
            self._closed = result
        await self.loops.close()
        return self._closed

    # -- lifecycle -----------------------------------------------------------------------------

    def begin_exit(self) -> None:
        """Accept nothing more, start no thread, wake the workers."""
        self.scheduler.exiting = True
        self.scheduler.begin_close()

    def finish_exit(self, deadline_s: float) -> int:
        """Send what is left, from here too: no thread can be started any more, and no event loop runs."""
        if self._uses_tasks:
            self.scheduler.reclaim()
            self._send_in_loop(deadline_s)
        result = self._flush_until(deadline_s, in_caller=True)
        self._release()
        return result.pending

    def _send_in_loop(self, deadline_s: float) -> None:
        """Send in an event loop of the exit's own, where several requests can be under way.

        What it leaves, whatever stopped it, the calling thread sends.
        """
        backend = self.loops.last_backend
        # With a frozen clock only a thread could end a sleep.
        if backend is None or clock.is_replaced() or self.stats().pending <= self.config.batch_size:
            return

        async def main() -> None:
            await self._flush_until_async(deadline_s)

        try:
            event_loops.run(backend, main)
        except Exception:
            logger.debug("the rest can't be sent in an event loop", exc_info=True)
        self.scheduler.reclaim()

    def _release(self) -> None:
        self.scheduler.discard()
        self.threads.close()
        if self._fsync_thread is not None:
            self._fsync_thread.close()
        self.queue.release()

    def stats(self) -> Stats:
        """Return what became of all events so far."""
        return self.scheduler.stats()

    def report(self) -> Report:
        """Return the state of the client at this moment."""
        stats, outbox = self.stats(), self.queue.outbox
        if not stats.pending:
            return report_of(self.config, stats)
        return report_of(self.config, stats, outbox.first_records(), outbox.count_in_memory())

    def retire(self) -> bool:
        """Deliver the events of a client without references. Closes it and returns True when none remain."""
        if self._uses_tasks:
            self.tasks.take_back()
            if not self.scheduler.workers:  # its loops are gone, and nobody makes another for it
                self._uses_tasks = False
        if self._last_flush is None:
            self._last_flush = self.scheduler.begin_flush(ThreadWaker(), has_timeout=True)
        if self.scheduler.stats().pending:
            self._ensure_worker()
            return False
        self.close(0)
        self.loops.stop()
        return True

    def forked(self) -> None:
        """Take notice of a fork, in the parent: nothing changes here."""

    def reset(self) -> None:
        """Become a client that has done nothing yet, in a forked child."""
        self._ask_again_s = float("-inf")
        self.hooks.reset()
        self.scheduler.reset()
        self.threads.reset()
        self.connections.reset()
        self.loops.reset()
        if self._fsync_thread is not None:
            self._fsync_thread.reset()


def put_of(put: Callable[[bytes], bool], fsync_thread: Optional[FsyncThread]) -> Callable[[bytes], bool]:
    """Return the *put* of a queue, or more than that where it is not enough."""

    def put_and_sync(record: bytes) -> bool:
        assert fsync_thread is not None
        is_accepted = put(record)
        fsync_thread.wake()
        return is_accepted

    inner = put if fsync_thread is None else put_and_sync

    def put_noticing_forks(record: bytes) -> bool:
        lifecycle.notice_fork()
        return inner(record)

    # Only where a process may fork without Python's hooks.
    return put_noticing_forks if lifecycle.misses_forks() else inner


def flush_in_hook() -> WindbackError:
    """Return the error of a flush or a close that would wait for itself."""
    message = (
        "flush() and close() can't be called by on_delivery, or by anything else that runs in a thread of "
        "the client: they would wait for themselves; call them from a thread or a task of your own"
    )
    return WindbackError(message, code="FLUSH_IN_HOOK")


def _until(deadline_s: Optional[float]) -> float:
    """Return for how long to sleep before the next look at a flush (seconds)."""
    return LOOK_S if deadline_s is None else max(0.0, min(LOOK_S, deadline_s - clock.now_s()))
