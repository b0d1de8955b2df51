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
from ...config import Config
from ...process import lifecycle
from ..scheduler import Scheduler

if TYPE_CHECKING:
    from ...event.batch import Batch
    from ...http.transport import SyncTransport
    from ..sink import Sink


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

    def __init__(self, config: Config, scheduler: Scheduler) -> None:
        self._config = config
        self._dispatcher = scheduler
        self._transport: Optional[SyncTransport] = None
        self._broker: Optional[Sink] = None
        if config.broker is not None:
            # redis-py loads it, which fails once the interpreter goes down: it registers an exit handler.
            importlib.import_module("concurrent.futures.thread")
        self.reset()

    def reset(self) -> None:
        """Forget the threads and connections, as in a forked child, which has neither."""
        self._lock = threading.Lock()
        if self._transport is not None:
            self._transport.abandon()
            self._transport = None
        if self._broker is not None:
            self._broker.abandon()
            self._broker = None
        self._idents: Set[int] = set()
        #: Released by the last worker to leave, once the client is closed.
        self._gone: Optional[ThreadWaker] = None

    def start(self) -> bool:
        """Start a worker; False if the system refuses.

        Not `Thread.start`, which waits until the new thread has run: in a busy process that takes as long
        as everybody's turn at the interpreter, and the caller may be a request.
        """
        if "gevent" in sys.modules and self._transport is None and self._broker is None:
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
            self.sink()
            importlib.import_module("concurrent.futures.thread")
            # Names are resolved in threads of the hub's pool; one that is there can be used at the exit, too.
            importlib.import_module("gevent").get_hub().threadpool.spawn(int)

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is one of the workers."""
        return threading.get_ident() in self._idents

    def transport(self) -> SyncTransport:
        """Return the connections, made at first use."""
        if self._transport is None:
            # No lock of ours is held: an import may switch to another greenlet, which would wait for it.
            with lifecycle.loading:
                from ...http.transport import (
                    SyncTransport,  # loads httpx and tenacity, which no importer should
                )

                transport = SyncTransport(self._config)
                if transport.broken is not None:  # the next one may find the file that is missing
                    return transport
                if self._transport is None:  # else another was faster; this one has no connection yet
                    self._transport = transport
        return self._transport

    def sink(self) -> Sink:
        """Return where batches go: to the API, or to a broker."""
        if self._config.broker is None:
            return self.transport()
        if self._broker is None:
            with lifecycle.loading:
                from ...broker.sink import RedisSink

                broker = RedisSink(self._config)
                if self._broker is None:  # as above
                    self._broker = broker
        return self._broker

    def _main(self) -> None:
        with contextlib.suppress(Exception):  # cosmetic: names it in py-spy and faulthandler
            threading.current_thread().name = "windback-worker"
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - a dead worker must not pass in silence, whatever killed it
            self._dispatcher.log_death(error, clock.now_s())

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
                    self._close_transport()
                    self._gone.release()

    def run(self, done: Optional[Callable[[], bool]] = None, deadline_s: Optional[float] = None) -> None:
        """Work until there is nothing left to do for this thread, or *done*, or the deadline."""
        scheduler = self._dispatcher
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
        scheduler = self._dispatcher
        gzipped = scheduler.compress
        tries = scheduler.tries(deadline_s)

        def on_try(answer: Answer) -> None:
            scheduler.tried(batch, tries, answer, clock.now_s(), time.time())

        try:
            answer = self.sink().deliver(batch, tries, self._nap, on_try, gzip=gzipped)
        except BaseException:
            scheduler.abandon(batch)
            raise
        scheduler.settle(batch, answer, clock.now_s(), time.time(), gzipped=gzipped)

    def _nap(self, seconds: float) -> None:
        """Wait out a backoff, unless a flush or a close ends it."""
        waker = ThreadWaker()
        self._dispatcher.sleeper(waker)
        try:
            waker.sleep(seconds)
        finally:
            self._dispatcher.awake(waker)

    def drain(self, done: Callable[[], bool], deadline_s: Optional[float]) -> None:
        """Do a worker's work in the calling thread, until *done* or the deadline."""
        with self._dispatcher.lock:
            self._dispatcher.workers += 1
        self._work(done, deadline_s)

    def close(self) -> None:
        """Wait for the workers to leave and close the connections.

        A worker in a request that outlasts the deadline is not waited for: the last one out closes them.
        """
        gone = ThreadWaker()
        with self._lock:
            if not self._idents:
                self._close_transport()
                return
            self._gone = gone
        if self._dispatcher.stats().in_flight == 0:
            gone.sleep(1.0)

    def _close_transport(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        if self._broker is not None:
            self._broker.close()
            self._broker = None


def _until(deadline_s: Optional[float], wait_s: Optional[float]) -> Optional[float]:
    if deadline_s is None:
        return wait_s
    left_s = max(0.0, deadline_s - clock.now_s())
    return left_s if wait_s is None else min(wait_s, left_s)
