"""What a client has in each event loop it is used in: connections, and a task that closes them.

The event loop may be asyncio's or trio's. Workers that are tasks live in here as well; see `tasks`.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Callable, Dict, Generator, List, Optional, Set, TypeVar

from ... import log
from ...config import Config
from ...event_loops import Loop, NoThreadError, current_loop, move_on_after
from ...process import lifecycle
from .. import retry_loop
from ..parking import Worker
from ..sink import AsyncApiSink, AsyncSink

if TYPE_CHECKING:
    import anyio

    from ...broker.sink import AsyncRedisSink
    from ...http.transport import AsyncTransport

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


class LoopState:
    """What a client has in one event loop: connections, and a task that closes them when the loop ends.

    Connections belong to the loop that opened them, and a process may run several, one after the other.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.transport: Optional[AsyncTransport] = None
        #: Where batches go, if that is a broker.
        self.broker: Optional[AsyncRedisSink] = None
        self.stop: Optional[TaskWaker] = None
        self.stopped: Optional[TaskWaker] = None
        self.workers: Dict[Worker, None] = {}
        self._scopes: Set[anyio.CancelScope] = set()
        self._left: Optional[TaskWaker] = None
        #: The loop is going down: nothing may be started in it any more.
        self.ended = False
        #: The task that owns the connections has ended, and they are closed.
        self.is_closed = False
        self._is_loaded = False

    def adopt(self, transport: AsyncTransport) -> AsyncTransport:
        """Return the connections to use: those of a task that was faster, else *transport*, still unused."""
        if self.transport is not None:
            return self.transport
        if transport.broken is None:
            self.transport = transport
        return transport

    def worker_left(self, worker: Worker) -> None:
        """Forget a worker; the last one out lets `close` go on."""
        self.workers.pop(worker, None)
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

    def notify_closed(self) -> None:
        """Notify the caller of `TaskWorkers.close` that the connections' task has ended, or never started."""
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
        """Load anyio's backend without blocking the loop; a checkpoint, the first time."""
        if not self._is_loaded:
            with contextlib.suppress(NoThreadError):  # then the first use loads it, and blocks the loop
                await self.loop.in_thread(lambda: _load_backend(self.loop.backend))
            self._is_loaded = True

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Call something that takes long in a thread, or here if none can be started."""
        try:
            return await self.loop.in_thread(call)
        except NoThreadError:
            return call()


def _load_backend(backend: str) -> None:
    with lifecycle.loading:
        from anyio import lowlevel, run

        run(lowlevel.checkpoint, backend=backend)


class LoopStates:
    """The states of all event loops that one client is used in, by loop."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Forget all loops, as in a forked child, where none of them runs."""
        self._states: Dict[object, LoopState] = {}

    def current(self) -> LoopState:
        """Return the state of the running loop, made at first use; RuntimeError if this thread runs none."""
        loop = current_loop()
        state = self._states.get(loop.key)
        if state is None:
            # An ended loop stays known until there is another, so that nothing starts anew in it.
            self._states = {key: other for key, other in self._states.items() if not other.ended}
            state = self._states[loop.key] = LoopState(loop)
            owner = state
            loop.spawn(lambda: self._own_connections(owner), owner.notify_closed, "windback-connections")
        return state

    def revive(self) -> bool:
        """Forget that tasks of the running loop were cancelled, if they were; whether that was so.

        For a close: it delivers by new tasks, and ends them.
        """
        state = self.known()
        if state is None or not state.ended:
            return False
        del self._states[state.loop.key]
        return True

    def known(self) -> Optional[LoopState]:
        """Return the state of the running loop, if there is one."""
        with contextlib.suppress(RuntimeError):
            return self._states.get(current_loop().key)
        return None

    def closed(self) -> List[LoopState]:
        """Return the states of loops that were closed over their workers."""
        return [state for state in self._states.values() if state.workers and state.loop.is_closed()]

    async def waker(self) -> TaskWaker:
        """Return something the current task can sleep on."""
        state = self.current()
        await state.load()
        return TaskWaker(state.loop)

    async def transport(self) -> AsyncTransport:
        """Return the HTTP connections of the running loop, made at first use."""
        return await self._open(self.current())

    async def _open(self, state: LoopState) -> AsyncTransport:
        if state.transport is not None:
            return state.transport
        # Loading httpx and the certificates takes 100 ms, which is too long for a loop.
        return state.adopt(await state.in_thread(self._make_transport))

    def _make_transport(self) -> AsyncTransport:
        with lifecycle.loading:
            from ...http.transport import AsyncTransport

            retry_loop.load()
            transport = AsyncTransport(self._config)
        log.write()
        return transport

    async def sink(self, state: LoopState) -> AsyncSink:
        """Return where batches go from a loop: to the API, or to a broker."""
        if self._config.broker is None:
            return AsyncApiSink(await self._open(state))
        if state.broker is None:
            sink = await state.in_thread(lambda: self._make_broker(state))
            if state.broker is None:  # else another task was faster; this one has no connection yet
                state.broker = sink
        return state.broker

    def _make_broker(self, state: LoopState) -> AsyncRedisSink:
        with lifecycle.loading:
            from ...broker.sink import AsyncRedisSink, RedisSink

            retry_loop.load()
            return AsyncRedisSink(RedisSink(self._config), state.in_thread)

    async def _own_connections(self, state: LoopState) -> None:
        try:
            await state.load()
            state.stop = TaskWaker(state.loop)
            if not state.ended:
                await state.stop.sleep(None)
        finally:
            try:
                await state.close()
            finally:
                state.notify_closed()

    def stop(self) -> None:
        """Close the connections of all loops that still run, soon; from any thread."""
        for state in list(self._states.values()):
            state.ended = True
            if state.stop is not None:  # else their task checks `ended` before it sleeps
                state.stop.release()

    async def close(self) -> None:
        """Close the connections of the running loop. Called again, it waits for what a first call began."""
        state = self.known()
        if state is None or state.is_closed:
            return
        state.ended = True
        await state.load()  # their task may still be opening them, and can't be stopped before
        if state.stop is not None:
            state.stop.release()
        if not state.is_closed:
            if state.stopped is None:
                state.stopped = TaskWaker(state.loop)
            await state.stopped.sleep(None)
