"""Workers that are threads; the same work is done by the caller's own where none can be started."""

from __future__ import annotations

import _thread
import contextlib
import importlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Callable, Optional, Set

from ... import clock
from ...api.answer import Answer
from .. import retry_loop
from ..connections import Connections
from ..scheduler import Scheduler

if TYPE_CHECKING:
    from ...event.batch import Batch


class ThreadWaker:
    """Sleeping on a raw lock: one system call to sleep, one to wake, and the waker never waits."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def release(self) -> None:
        """End the sleep; from any thread, and a second time does nothing."""
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def sleep(self, seconds: Optional[float]) -> bool:
        """Sleep until released; False if *seconds* passed first."""
        if seconds is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=max(0.0, min(seconds, threading.TIMEOUT_MAX)))


class ThreadWorkers:
    """Drains a queue from daemon threads; also from the caller's own, where no thread can be started."""

    def __init__(self, scheduler: Scheduler, connections: Connections) -> None:
        self._scheduler = scheduler
        self._connections = connections
        self.reset()

    def reset(self) -> None:
        """Forget the threads, as in a forked child, which has none of them."""
        self._lock = threading.Lock()
        self._idents: Set[int] = set()
        #: Released by the last worker to leave, once the client is closed.
        self._gone: Optional[ThreadWaker] = None

    def start(self) -> bool:
        """Start a worker; False if the system refuses.

        Not `Thread.start`, which waits until the new thread has run: in a busy process that takes as long
        as everybody's turn at the interpreter, and the caller may be a request.
        """
        if "gevent" in sys.modules and not self._connections.are_open:
            self._load_for_gevent()
        try:
            _thread.start_new_thread(self._main, ())
        except RuntimeError:  # out of threads, or the interpreter is going down
            return False
        return True

    def _load_for_gevent(self) -> None:
        """Load httpx now: at the exit, under gevent, it can't be, for that forks and registers exit handlers.

        A greenlet that loads it later would hold up all others for as long.
        """
        with contextlib.suppress(Exception):  # whoever sends meets it again, and says so
            self._connections.sink()
            importlib.import_module("concurrent.futures.thread")
            # Names are resolved in threads of the hub's pool; one that is there can be used at the exit, too.
            importlib.import_module("gevent").get_hub().threadpool.spawn(int)

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is one of the workers."""
        return threading.get_ident() in self._idents

    def _main(self) -> None:
        with contextlib.suppress(Exception):  # cosmetic: names it in py-spy and faulthandler
            threading.current_thread().name = "windback-worker"
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - a dead worker must not pass in silence, whatever killed it
            self._scheduler.log_death(error, clock.now_s())

    def _work(self, done: Optional[Callable[[], bool]] = None, deadline_s: Optional[float] = None) -> None:
        ident = threading.get_ident()
        with self._lock:
            self._idents.add(ident)
        try:
            self.run(done, deadline_s)
        finally:
            with self._lock:
                self._idents.discard(ident)
                if self._gone is not None and not self._idents:
                    self._connections.close()
                    self._gone.release()

    def run(self, done: Optional[Callable[[], bool]] = None, deadline_s: Optional[float] = None) -> None:
        """Work until there is nothing left to do for this thread, or *done*, or the deadline."""
        scheduler = self._scheduler
        waker: Optional[ThreadWaker] = None
        idle = False
        try:
            while done is None or not done():
                fresh = ThreadWaker()
                step = scheduler.next_step(clock.now_s(), fresh, waker, idle=idle)
                waker, idle = fresh, False
                if step.leave:
                    return
                if step.upkeep:
                    scheduler.upkeep()
                    continue
                if step.batch is not None:
                    if step.helper and done is None:
                        scheduler.call_helper()
                    self._send(step.batch, deadline_s)
                    continue
                wait_s = _until(deadline_s, step.wait_s)
                idle = not fresh.sleep(wait_s) and step.spare
        except BaseException:
            scheduler.retire(waker, clock.now_s(), died=True)
            raise
        scheduler.retire(waker, clock.now_s(), died=False)

    def _send(self, batch: Batch, deadline_s: Optional[float]) -> None:
        scheduler = self._scheduler
        gzipped = scheduler.compress

        def on_failure(answer: Answer) -> None:
            scheduler.try_failed(batch, answer, clock.now_s(), time.time())

        try:
            sink = self._connections.sink()
            answer = retry_loop.send(
                lambda left_s: sink.attempt(batch, left_s, gzip=gzipped),
                scheduler.retry_policy(deadline_s),
                self._nap,
                on_failure,
            )
        except BaseException:
            scheduler.abandon(batch)
            raise
        scheduler.settle(batch, answer, clock.now_s(), time.time(), gzipped=gzipped)

    def _nap(self, seconds: float) -> None:
        """Wait out a backoff, unless a flush or a close ends it."""
        waker = ThreadWaker()
        self._scheduler.sleeper(waker)
        try:
            waker.sleep(seconds)
        finally:
            self._scheduler.awake(waker)

    def drain(self, done: Callable[[], bool], deadline_s: Optional[float]) -> None:
        """Do a worker's work in the calling thread, until *done* or the deadline."""
        with self._scheduler.lock:
            self._scheduler.workers += 1
        self._work(done, deadline_s)

    def close(self) -> None:
        """Wait for the workers to leave and close the connections.

        A worker in a request that outlasts the deadline is not waited for: the last one out closes them.
        """
        gone = ThreadWaker()
        with self._lock:
            if not self._idents:
                self._connections.close()
                return
            self._gone = gone
        if self._scheduler.stats().in_flight == 0:
            gone.sleep(1.0)


def _until(deadline_s: Optional[float], wait_s: Optional[float]) -> Optional[float]:
    if deadline_s is None:
        return wait_s
    left_s = max(0.0, deadline_s - clock.now_s())
    return left_s if wait_s is None else min(wait_s, left_s)
