"""The workers: threads or tasks that lease a batch, send it and settle it, again and again.

Both shells do the same in the same order and decide nothing: `dispatch` says what comes next,
`transport` sends, `delivery` judges. What differs is how one sleeps, and how one starts.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
import time
from contextvars import Context
from typing import TYPE_CHECKING, Awaitable, Callable, Dict, Iterator, List, Optional, Protocol, Set, TypeVar

from . import api, lifecycle
from .config import Config
from .delivery import Answer, Tries
from .dispatch import Dispatcher

if TYPE_CHECKING:
    import anyio

    from .queue.base import Batch
    from .transport import AsyncTransport, SyncTransport


T = TypeVar("T")


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

    def __init__(self, config: Config, dispatcher: Dispatcher) -> None:
        self._config = config
        self._dispatcher = dispatcher
        self._transport: Optional[SyncTransport] = None
        self.reset()

    def reset(self) -> None:
        """Forget the threads and connections, as in a forked child, which has neither."""
        self._lock = threading.Lock()
        if self._transport is not None:
            self._transport.abandon()
            self._transport = None
        self._idents: Set[int] = set()
        #: Released by the last worker to leave, once the client is closed.
        self._gone: Optional[ThreadWaker] = None

    def start(self) -> bool:
        """Start a worker; False if the system refuses.

        Not `Thread.start`, which waits until the new thread has run: in a busy process that takes as long
        as everybody's turn at the interpreter, and the caller may be a request.
        """
        try:
            _thread.start_new_thread(self._main, ())
        except RuntimeError:  # out of threads, or the interpreter is going down
            return False
        return True

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is one of the workers."""
        return threading.get_ident() in self._idents

    def transport(self) -> SyncTransport:
        """Return the connections, made at first use."""
        transport = self._transport
        if transport is None:
            with lifecycle.loading, self._lock:
                transport = self._transport
                if transport is None:
                    from .transport import SyncTransport  # loads httpx and tenacity, which no importer should

                    transport = SyncTransport(self._config)
                    if transport.broken is None:  # else the next one may find the file that is missing
                        self._transport = transport
        return transport

    def _main(self) -> None:
        with contextlib.suppress(Exception):  # cosmetic: names it in py-spy and faulthandler
            threading.current_thread().name = "windback-worker"
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - a dead worker must not pass in silence, whatever killed it
            self._dispatcher.log_death(error, time.monotonic())

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
        dispatcher = self._dispatcher
        waker: Optional[ThreadWaker] = None
        idle = False
        try:
            while done is None or not done():
                fresh = ThreadWaker()
                step = dispatcher.next_step(time.monotonic(), fresh, waker, idle=idle)
                waker, idle = fresh, False
                if step.leave:
                    return
                if step.batch is not None:
                    if step.helper and done is None:
                        dispatcher.call_helper()
                    self._send(step.batch, deadline_s)
                    continue
                wait_s = _until(deadline_s, step.wait_s)
                idle = not fresh.sleep(wait_s) and step.spare
        except BaseException:
            dispatcher.retire(waker, time.monotonic(), died=True)
            raise
        dispatcher.retire(waker, time.monotonic(), died=False)

    def _send(self, batch: Batch, deadline_s: Optional[float]) -> None:
        dispatcher = self._dispatcher
        gzipped = dispatcher.compress
        tries = Tries(self._config.max_retries, self._config.timeout, deadline_s=deadline_s, gated=True)
        try:
            request = api.track(batch.records, batch.key, gzip=gzipped)
            answer = self.transport().send(
                request, tries, self._nap, lambda each: _tried(dispatcher, batch, tries, each)
            )
        except BaseException:
            dispatcher.abandon(batch)
            raise
        dispatcher.settle(batch, answer, time.monotonic(), time.time(), gzipped=gzipped)

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


class NoThreadError(Exception):
    """The system starts no more threads, so what takes long has to be done here."""


class _Loop(Protocol):
    """What of an event loop is needed before anyio is loaded, which takes too long to do in the loop."""

    key: object
    backend: str

    def spawn(self, main: Callable[[], Awaitable[None]], never_ran: Callable[[], object]) -> None:
        """Start a task, in the loop's own thread; *never_ran* is called if it is cancelled before it runs."""

    def call_soon(self, call: Callable[[], object]) -> None:
        """Call something in the loop, from any thread."""

    def is_closed(self) -> bool:
        """Whether the loop was closed over its tasks, which it never tells them."""
        ...

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Call something that takes long in a thread; NoThreadError if none can be started."""
        ...


class _AsyncioLoop:
    backend = "asyncio"

    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self.key: object = self._loop

    def spawn(self, main: Callable[[], Awaitable[None]], never_ran: Callable[[], object]) -> None:
        has_run = False

        async def run() -> None:
            nonlocal has_run
            has_run = True
            await main()

        def end(task: object) -> None:
            _tasks.discard(task)
            if not has_run:
                never_ran()

        # An empty context: a worker outlives the request that started it, and must not hold on to it.
        task = Context().run(self._loop.create_task, run())
        _tasks.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(end)

    def call_soon(self, call: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(call)

    def is_closed(self) -> bool:
        return self._loop.is_closed()

    async def in_thread(self, call: Callable[[], T]) -> T:
        done = self._loop.create_future()

        def notify() -> None:
            if not done.done():
                done.set_result(None)

        outcome = _start_thread(call, lambda: self._loop.call_soon_threadsafe(notify))
        await done
        return outcome()


class _TrioLoop:
    backend = "trio"

    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self.key: object = self._token

    def spawn(self, main: Callable[[], Awaitable[None]], never_ran: Callable[[], object]) -> None:
        del never_ran  # trio runs a task up to its first checkpoint in any case
        self._trio.lowlevel.spawn_system_task(main, context=Context())

    def call_soon(self, call: Callable[[], object]) -> None:
        self._token.run_sync_soon(call)

    def is_closed(self) -> bool:
        return False  # trio cancels every task before it ends

    async def in_thread(self, call: Callable[[], T]) -> T:
        done = self._trio.Event()
        outcome = _start_thread(call, lambda: self._token.run_sync_soon(done.set))
        await done.wait()
        return outcome()


def _start_thread(call: Callable[[], T], notify: Callable[[], object]) -> Callable[[], T]:
    """Run *call* in a thread of its own, then *notify*; returns what gives or raises its outcome.

    Not in the loop's executor or trio's cache of threads: the one is shut in a loop that goes down, and
    the other, in a forked child, counts on threads that are not there.
    """
    results: List[T] = []
    errors: List[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            errors.append(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            notify()

    def outcome() -> T:
        if errors:
            raise errors[0]
        return results[0]

    try:
        _thread.start_new_thread(work, ())
    except RuntimeError as error:
        raise NoThreadError from error
    return outcome


_tasks: Set[object] = set()


def _current_loop() -> _Loop:
    """Return the event loop this thread runs; RuntimeError if it runs none."""
    if "trio" in sys.modules:
        with contextlib.suppress(RuntimeError):
            return _TrioLoop()
    return _AsyncioLoop()


class TaskWaker:
    """Sleeping on an event of the current loop."""

    __slots__ = ("_event", "_loop", "_thread")

    def __init__(self, loop: _Loop) -> None:
        import anyio

        self._event: anyio.Event = anyio.Event()
        self._loop = loop
        self._thread = threading.get_ident()

    def release(self) -> None:
        """End the sleep; from any thread, and a second time does nothing."""
        # RuntimeError: that loop is closed, and nobody sleeps there any more.
        with contextlib.suppress(RuntimeError):
            if threading.get_ident() == self._thread:
                self._event.set()
            else:
                self._loop.call_soon(self._event.set)

    async def sleep(self, seconds: Optional[float]) -> bool:
        """Sleep until released; False if *seconds* passed first."""
        import anyio

        with anyio.move_on_after(seconds):
            await self._event.wait()
        return self._event.is_set()


class _Home:
    """What a client has in one event loop: connections, and a task that closes them when the loop ends.

    Connections belong to the loop that opened them, and a process may run several, one after the other.
    """

    def __init__(self, loop: _Loop) -> None:
        self.loop = loop
        self.transport: Optional[AsyncTransport] = None
        self.stop: Optional[TaskWaker] = None
        self.stopped: Optional[TaskWaker] = None
        self.workers = 0
        self._scopes: Set[anyio.CancelScope] = set()
        #: What its workers have leased right now.
        self.leases: Set[Batch] = set()
        self._left: Optional[TaskWaker] = None
        #: The loop is going down: nothing may be started in it any more.
        self.ended = False
        self._is_loaded = False

    def adopt(self, transport: AsyncTransport) -> AsyncTransport:
        """Return the connections to use: those of a task that was faster, else *transport*, still unused."""
        if self.transport is not None:
            return self.transport
        if transport.broken is None:
            self.transport = transport
        return transport

    def worker_left(self) -> None:
        """Count one worker less; the last one out lets `workers_gone` go on."""
        self.workers -= 1
        if self._left is not None and not self.workers:
            self._left.release()

    @contextlib.contextmanager
    def worker_scope(self) -> Iterator[None]:
        """What a worker works in: it is cancelled when the client is closed or the loop goes down.

        By a scope of its own, which cancels again where something on the way swallowed the loop's attempt.
        """
        import anyio

        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                if self.ended:
                    scope.cancel()
                yield
            finally:
                self._scopes.discard(scope)

    async def close(self) -> None:
        """End the workers, then close the connections.

        In this order: a connection that is closed under its request makes some httpcores wait for ever.
        """
        self.ended = True
        if not self._scopes and self.transport is None:
            return  # and anyio may not even be loaded
        import anyio

        with anyio.CancelScope(shield=True):
            for scope in self._scopes:
                scope.cancel()
            self._left = TaskWaker(self.loop)
            if self.workers:
                await self._left.sleep(None)
            if self.transport is not None:
                await self.transport.aclose()

    async def load(self) -> None:
        """Load anyio's backend without holding up the loop; the first time, a checkpoint."""
        if not self._is_loaded:
            with contextlib.suppress(NoThreadError):  # then the first use loads it, and holds up the loop
                await self.loop.in_thread(lambda: _load_backend(self.loop.backend))
            self._is_loaded = True


def _load_backend(backend: str) -> None:
    with lifecycle.loading:
        from anyio import lowlevel, run

        run(lowlevel.checkpoint, backend=backend)


class TaskWorkers:
    """Drains a queue from tasks; keeps the connections of plain calls too, one set for each event loop."""

    def __init__(self, config: Config, dispatcher: Dispatcher) -> None:
        self._config = config
        self._dispatcher = dispatcher
        self.reset()

    def reset(self) -> None:
        """Forget all loops, as in a forked child, where none of them runs."""
        self._homes: Dict[object, _Home] = {}

    async def waker(self) -> TaskWaker:
        """Return something the current task can sleep on."""
        home = self._home()
        await home.load()
        return TaskWaker(home.loop)

    @property
    def has_worker_here(self) -> bool:
        """Whether a worker runs in the calling thread's event loop."""
        with contextlib.suppress(RuntimeError):
            home = self._homes.get(_current_loop().key)
            return home is not None and home.workers > 0
        return False

    def start(self) -> bool:
        """Start a worker in the running loop; False if this thread runs none, or the loop is going down."""
        try:
            home = self._home()
        except RuntimeError:
            return False
        if home.ended:
            return False
        home.workers += 1
        home.loop.spawn(lambda: self._main(home), lambda: self._retire(home))
        return True

    def _retire(self, home: _Home) -> None:
        home.worker_left()
        self._dispatcher.retire(None, time.monotonic(), died=False)

    def bury(self) -> None:
        """Give back what the workers of closed loops hold; nobody told them, and they never run again."""
        for home in self._homes.values():
            if home.workers and home.loop.is_closed():
                home.ended = True
                for batch in list(home.leases):
                    self._give_back(home, batch)
                while home.workers:
                    self._retire(home)

    def _give_back(self, home: _Home, batch: Batch) -> None:
        if batch in home.leases:
            home.leases.remove(batch)
            self._dispatcher.abandon(batch)

    def _home(self) -> _Home:
        loop = _current_loop()
        home = self._homes.get(loop.key)
        if home is None:
            # An ended loop stays known until there is another, so that nothing starts anew in it.
            self._homes = {key: other for key, other in self._homes.items() if not other.ended}
            home = self._homes[loop.key] = _Home(loop)
            resident = home
            loop.spawn(lambda: self._reside(resident), lambda: setattr(resident, "ended", True))
        return home

    async def transport(self) -> AsyncTransport:
        """Return the connections of the running loop, made at first use."""
        return await self._open(self._home())

    async def _open(self, home: _Home) -> AsyncTransport:
        if home.transport is not None:
            return home.transport
        # Loading httpx and the certificates takes 100 ms, which is too long for a loop.
        try:
            transport = await home.loop.in_thread(self._make_transport)
        except NoThreadError:
            transport = self._make_transport()
        return home.adopt(transport)

    def _make_transport(self) -> AsyncTransport:
        with lifecycle.loading:
            from .transport import AsyncTransport

            return AsyncTransport(self._config)

    async def _reside(self, home: _Home) -> None:
        try:
            await home.load()
            home.stop, home.stopped = TaskWaker(home.loop), TaskWaker(home.loop)
            if not home.ended:
                await home.stop.sleep(None)
        finally:
            try:
                await home.close()
            finally:
                if home.stopped is not None:
                    home.stopped.release()

    async def _main(self, home: _Home) -> None:
        try:
            await self._run(home)
        except Exception as error:  # noqa: BLE001 - a dead worker must not pass in silence, whatever killed it
            self._dispatcher.log_death(error, time.monotonic())
        finally:
            home.worker_left()

    async def _run(self, home: _Home) -> None:
        dispatcher = self._dispatcher
        waker: Optional[TaskWaker] = None
        idle = False
        try:
            # Before any batch is leased: a loop that goes down cancels this task here, and nothing is held.
            await home.load()
            import anyio.lowlevel  # loaded by now, and not in the loop

            await anyio.lowlevel.checkpoint()
            with home.worker_scope():
                while True:
                    fresh = TaskWaker(home.loop)
                    step = dispatcher.next_step(time.monotonic(), fresh, waker, idle=idle)
                    waker, idle = fresh, False
                    if step.leave:
                        return
                    if step.batch is not None:
                        if step.helper:
                            dispatcher.call_helper()
                        await self._send(home, step.batch)
                        continue
                    idle = not await fresh.sleep(step.wait_s) and step.spare
        except BaseException as error:
            # Anything that is no Exception is the loop cancelling its tasks: no fault, no death.
            dispatcher.retire(waker, time.monotonic(), died=isinstance(error, Exception))
            raise
        dispatcher.retire(waker, time.monotonic(), died=False)

    async def _send(self, home: _Home, batch: Batch) -> None:
        dispatcher = self._dispatcher
        gzipped = dispatcher.compress
        tries = Tries(self._config.max_retries, self._config.timeout, gated=True)
        home.leases.add(batch)
        try:
            transport = await self._open(home)
            request = api.track(batch.records, batch.key, gzip=gzipped)
            nap = lambda seconds: self._nap(home, seconds)  # noqa: E731
            answer = await transport.send(
                request, tries, nap, lambda each: _tried(dispatcher, batch, tries, each)
            )
        except BaseException:
            self._give_back(home, batch)
            raise
        home.leases.discard(batch)
        dispatcher.settle(batch, answer, time.monotonic(), time.time(), gzipped=gzipped)

    async def _nap(self, home: _Home, seconds: float) -> None:
        """Wait out a backoff, unless a flush or a close ends it."""
        waker = TaskWaker(home.loop)
        self._dispatcher.sleeper(waker)
        try:
            await waker.sleep(seconds)
        finally:
            self._dispatcher.awake(waker)

    async def close(self) -> None:
        """Close the connections of the running loop."""
        home = self._homes.get(_current_loop().key)
        if home is None or home.ended:
            return
        home.ended = True
        if home.stop is not None and home.stopped is not None:
            home.stop.release()
            await home.stopped.sleep(None)


def _tried(dispatcher: Dispatcher, batch: Batch, tries: Tries, answer: Answer) -> None:
    dispatcher.tried(batch, tries, answer, time.monotonic(), time.time())


def _until(deadline_s: Optional[float], wait_s: Optional[float]) -> Optional[float]:
    if deadline_s is None:
        return wait_s
    left_s = max(0.0, deadline_s - time.monotonic())
    return left_s if wait_s is None else min(wait_s, left_s)
