"""Workers that are threads; the same work is done by the caller's own where none can be started."""

from __future__ import annotations

import _thread
import contextlib
import importlib
import sys
import threading
from typing import TYPE_CHECKING, Dict, Optional

from ... import clock
from ...api.answer import Answer
from .. import retry_loop
from ..connections import Connections
from ..parking import Worker
from ..scheduler import Scheduler

if TYPE_CHECKING:
    from ...event.batch import Batch
    from ..flushes import Flush


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
        #: The threads that work right now, and whether each is one of ours or a caller's.
        self._idents: Dict[int, bool] = {}
        #: Released by the last worker to leave, once the client is closed.
        self._gone: Optional[ThreadWaker] = None

    def start(self, worker: Worker) -> bool:
        """Start a thread for *worker*; False if the system refuses.

        Not `Thread.start`, which waits until the new thread has run: in a busy process that takes as long
        as everybody's turn at the interpreter, and the caller may be a request.
        """
        if "gevent" in sys.modules and not self._connections.are_open:
            self._load_for_gevent()
        try:
            _thread.start_new_thread(self._main, (worker,))
        except RuntimeError:  # out of threads, or the interpreter is going down
            return False
        return True

    def _load_for_gevent(self) -> None:
        """Load what sends now: at the exit gevent can't, for it would fork and register exit handlers.

        A greenlet that loads it later would block all others for as long.
        """
        with contextlib.suppress(Exception):  # the next request meets it again, and reports it
            self._connections.sink()
            importlib.import_module("concurrent.futures.thread")
            # Names are resolved in threads of the hub's pool; one that is there can be used at the exit, too.
            importlib.import_module("gevent").get_hub().threadpool.spawn(int)

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is one of the workers."""
        return self._idents.get(threading.get_ident(), False)

    def _main(self, worker: Worker) -> None:
        scheduler = self._scheduler
        try:
            with contextlib.suppress(Exception):  # cosmetic: names it in py-spy and faulthandler
                threading.current_thread().name = "windback-worker"
            self._work(worker)
        except BaseException as error:  # noqa: BLE001 - a dead worker must not pass in silence, whatever killed it
            # Not `suppress(...)`: CPython 3.12 and 3.13 crash when they lack the memory for its arguments.
            try:  # noqa: SIM105
                scheduler.lines.died(clock.now_s(), error)
            except BaseException:  # noqa: BLE001, S110 - out of memory, perhaps, also for a log line
                pass
        finally:
            # Whatever failed until here: it is not a worker any more, and the next event starts another.
            if scheduler.parking.workers.pop(worker, self) is None:
                scheduler.look_again()

    def _work(
        self,
        worker: Worker,
        flush: Optional[Flush] = None,
        deadline_s: Optional[float] = None,
        *,
        is_ours: bool = True,
    ) -> None:
        ident = threading.get_ident()
        try:
            self._idents[ident] = is_ours
            self.run(worker, flush, deadline_s)
        finally:
            self._idents.pop(ident, None)
            gone = self._gone
            if gone is not None and not self._idents:
                self._connections.close()
                gone.release()

    def run(self, worker: Worker, flush: Optional[Flush] = None, deadline_s: Optional[float] = None) -> None:
        """Work until there is nothing left to do for this thread, or *flush* is done, or the deadline."""
        scheduler = self._scheduler
        idle = False
        died = True
        try:
            while True:
                waker = ThreadWaker()
                if flush is not None:
                    flush.waker = waker  # its end ends a sleep of this thread, and is looked for after that
                    if flush.done or clock.is_past(deadline_s):
                        break
                step = scheduler.next_step(worker, clock.now_s(), waker, idle=idle)
                idle = False
                if step.leave:
                    break
                if step.maintain:
                    scheduler.maintain()
                elif step.batch is not None:
                    if step.helper and flush is None:
                        scheduler.call_helper()
                    self._send(worker, step.batch, deadline_s)
                else:
                    idle = not waker.sleep(_until(deadline_s, step.wait_s)) and step.spare
            died = False
        finally:
            scheduler.retire(worker, clock.now_s(), died=died)

    def _send(self, worker: Worker, batch: Batch, deadline_s: Optional[float]) -> None:
        scheduler = self._scheduler
        gzipped = scheduler.compress

        def on_failure(answer: Answer) -> None:
            scheduler.try_failed(batch, answer, clock.moment())

        def attempt(left_s: float) -> Answer:
            # Asked for at each try: connections that could not be made are made anew.
            sink = self._connections.sink()
            started_s = clock.now_s()
            answer = sink.attempt(batch, left_s, gzip=gzipped)
            worker.last_wake = scheduler.parking.last_wake
            scheduler.hooks.tried(batch, answer, clock.now_s() - started_s)
            return answer

        try:
            answer = retry_loop.send(
                attempt,
                scheduler.retry_policy(deadline_s),
                lambda seconds: self._sleep(worker, seconds),
                on_failure,
            )
            scheduler.settle(worker, answer, clock.moment(), gzipped=gzipped)
        finally:
            scheduler.put_down(worker)

    def _sleep(self, worker: Worker, seconds: float) -> None:
        """Wait out a backoff, unless a flush or a close ends it."""
        waker = ThreadWaker()
        try:
            self._scheduler.parking.rest(waker, worker.last_wake)
            waker.sleep(seconds)
        finally:
            self._scheduler.parking.rested(waker)

    def drain(self, flush: Flush, deadline_s: Optional[float]) -> bool:
        """Do a worker's work in the calling thread, until *flush* is done or nothing is left to begin.

        False if this thread does so already: a signal handler interrupted it, and waits for itself.
        """
        if threading.get_ident() in self._idents:
            return False
        worker = Worker()
        try:
            self._scheduler.parking.workers[worker] = None
            self._work(worker, flush, deadline_s, is_ours=False)
        finally:
            self._scheduler.parking.leave(worker)
        return True

    def close(self) -> None:
        """Wait for the workers to leave and close the connections.

        A worker in a request that outlasts the deadline is not waited for: the last one out closes them.
        """
        self._gone = gone = ThreadWaker()
        if not self._idents:  # looked at after that: from now on the last one out closes them, too
            self._connections.close()
        elif self._scheduler.stats().in_flight == 0:
            gone.sleep(1.0)


def _until(deadline_s: Optional[float], wait_s: Optional[float]) -> Optional[float]:
    if deadline_s is None:
        return wait_s
    left_s = max(0.0, deadline_s - clock.now_s())
    return left_s if wait_s is None else min(wait_s, left_s)
