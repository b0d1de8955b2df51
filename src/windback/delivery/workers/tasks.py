"""Workers that are tasks, of asyncio or trio, and what a client has in each event loop it is used in."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Callable, Dict, Generator, Optional, Set, TypeVar

from ... import clock
from ...api.answer import Answer
from ...config import Config
from ...process import lifecycle
from ..scheduler import Scheduler
from .event_loops import Loop, NoThreadError, current_loop, move_on_after

if TYPE_CHECKING:
    import anyio

    from ...event.batch import Batch
    from ...http.transport import AsyncTransport
    from ..sink import AsyncSink

T = TypeVar("T")


class TaskWaker:
    """Sleeping on an event of the current loop."""

    __slots__ = ("_event", "_loop", "_thread")

    def __init__(self, loop: Loop) -> None:
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
        with move_on_after(seconds):
            await self._event.wait()
        return self._event.is_set()


class _LoopState:
    """What a client has in one event loop: connections, and a task that closes them when the loop ends.

    Connections belong to the loop that opened them, and a process may run several, one after the other.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.transport: Optional[AsyncTransport] = None
        #: Where batches go, if that is a broker.
        self.broker: Optional[AsyncSink] = None
        self.stop: Optional[TaskWaker] = None
        self.stopped: Optional[TaskWaker] = None
        self.workers = 0
        self._scopes: Set[anyio.CancelScope] = set()
        #: What its workers have leased right now.
        self.leases: Set[Batch] = set()
        self._left: Optional[TaskWaker] = None
        #: The loop is going down: nothing may be started in it any more.
        self.ended = False
        #: The resident is gone, and the connections are closed.
        self.is_closed = False
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
    def worker_scope(self) -> Generator[None, None, None]:
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

    def vacate(self) -> None:
        """Tell whoever waits in `TaskWorkers.close` that the resident is gone, or never came."""
        self.ended = self.is_closed = True
        if self.stopped is not None:
            self.stopped.release()

    async def close(self) -> None:
        """End the workers, then close the connections.

        In this order: a connection that is closed under its request makes some httpcores wait for ever.
        """
        self.ended = True
        if not self._scopes and self.transport is None and self.broker is None:
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
            if self.broker is not None:
                await self.broker.aclose()

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

    def __init__(self, config: Config, scheduler: Scheduler) -> None:
        self._config = config
        self._dispatcher = scheduler
        self.reset()

    def reset(self) -> None:
        """Forget all loops, as in a forked child, where none of them runs."""
        self._homes: Dict[object, _LoopState] = {}

    async def waker(self) -> TaskWaker:
        """Return something the current task can sleep on."""
        home = self._home()
        await home.load()
        return TaskWaker(home.loop)

    @property
    def has_worker_here(self) -> bool:
        """Whether a worker runs in the calling thread's event loop."""
        with contextlib.suppress(RuntimeError):
            home = self._homes.get(current_loop().key)
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

    def _retire(self, home: _LoopState) -> None:
        home.worker_left()
        self._dispatcher.retire(None, clock.now_s(), died=False)

    def bury(self) -> None:
        """Give back what the workers of closed loops hold; nobody told them, and they never run again."""
        for home in self._homes.values():
            if home.workers and home.loop.is_closed():
                home.ended = True
                for batch in list(home.leases):
                    self._give_back(home, batch)
                while home.workers:
                    self._retire(home)

    def _give_back(self, home: _LoopState, batch: Batch) -> None:
        if batch in home.leases:
            home.leases.remove(batch)
            self._dispatcher.abandon(batch)

    def _home(self) -> _LoopState:
        loop = current_loop()
        home = self._homes.get(loop.key)
        if home is None:
            # An ended loop stays known until there is another, so that nothing starts anew in it.
            self._homes = {key: other for key, other in self._homes.items() if not other.ended}
            home = self._homes[loop.key] = _LoopState(loop)
            resident = home
            loop.spawn(lambda: self._reside(resident), resident.vacate)
        return home

    async def transport(self) -> AsyncTransport:
        """Return the connections of the running loop, made at first use."""
        return await self._open(self._home())

    async def _open(self, home: _LoopState) -> AsyncTransport:
        if home.transport is not None:
            return home.transport
        # Loading httpx and the certificates takes 100 ms, which is too long for a loop.
        return home.adopt(await self._in_thread(home, self._make_transport))

    def _make_transport(self) -> AsyncTransport:
        with lifecycle.loading:
            from ...http.transport import AsyncTransport

            return AsyncTransport(self._config)

    async def _open_sink(self, home: _LoopState) -> AsyncSink:
        """Return where batches go: to the API, or to a broker."""
        if self._config.broker is None:
            return await self._open(home)
        if home.broker is None:
            sink = await self._in_thread(home, lambda: self._make_broker(home))
            if home.broker is None:  # else another task was faster; this one has no connection yet
                home.broker = sink
        return home.broker

    def _make_broker(self, home: _LoopState) -> AsyncSink:
        with lifecycle.loading:
            from ...broker.sink import AsyncRedisSink, RedisSink

            return AsyncRedisSink(RedisSink(self._config), lambda call: self._in_thread(home, call))

    @staticmethod
    async def _in_thread(home: _LoopState, call: Callable[[], T]) -> T:
        try:
            return await home.loop.in_thread(call)
        except NoThreadError:
            return call()

    async def _reside(self, home: _LoopState) -> None:
        try:
            await home.load()
            home.stop = TaskWaker(home.loop)
            if not home.ended:
                await home.stop.sleep(None)
        finally:
            try:
                await home.close()
            finally:
                home.vacate()

    async def _main(self, home: _LoopState) -> None:
        try:
            await self._run(home)
        except Exception as error:  # noqa: BLE001 - a dead worker must not pass in silence, whatever killed it
            self._dispatcher.log_death(error, clock.now_s())
        finally:
            home.worker_left()

    async def _run(self, home: _LoopState) -> None:
        scheduler = self._dispatcher
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
                    step = scheduler.next_step(clock.now_s(), fresh, waker, idle=idle)
                    waker, idle = fresh, False
                    if step.leave:
                        return
                    if step.upkeep:
                        await self._upkeep(home)
                        continue
                    if step.batch is not None:
                        if step.helper:
                            scheduler.call_helper()
                        await self._send(home, step.batch)
                        continue
                    idle = not await fresh.sleep(step.wait_s) and step.spare
        except BaseException as error:
            # Anything that is no Exception is the loop cancelling its tasks: no fault, no death.
            scheduler.retire(waker, clock.now_s(), died=isinstance(error, Exception))
            raise
        scheduler.retire(waker, clock.now_s(), died=False)

    async def _upkeep(self, home: _LoopState) -> None:
        await self._in_thread(home, self._dispatcher.upkeep)

    async def _send(self, home: _LoopState, batch: Batch) -> None:
        scheduler = self._dispatcher
        gzipped = scheduler.compress
        tries = scheduler.tries()

        def on_try(answer: Answer) -> None:
            scheduler.tried(batch, tries, answer, clock.now_s(), time.time())

        home.leases.add(batch)
        try:
            sink = await self._open_sink(home)
            nap = lambda seconds: self._nap(home, seconds)  # noqa: E731
            answer = await sink.deliver(batch, tries, nap, on_try, gzip=gzipped)
        except BaseException:
            self._give_back(home, batch)
            raise
        home.leases.discard(batch)
        scheduler.settle(batch, answer, clock.now_s(), time.time(), gzipped=gzipped)

    async def _nap(self, home: _LoopState, seconds: float) -> None:
        """Wait out a backoff, unless a flush or a close ends it."""
        waker = TaskWaker(home.loop)
        self._dispatcher.sleeper(waker)
        try:
            await waker.sleep(seconds)
        finally:
            self._dispatcher.awake(waker)

    async def close(self) -> None:
        """Close the connections of the running loop. Called again, it waits for what a first call began."""
        home = self._homes.get(current_loop().key)
        if home is None or home.is_closed:
            return
        home.ended = True
        await home.load()  # the resident may be at it still, and can't be told to stop before
        if home.stop is not None:
            home.stop.release()
        if not home.is_closed:
            if home.stopped is None:
                home.stopped = TaskWaker(home.loop)
            await home.stopped.sleep(None)
