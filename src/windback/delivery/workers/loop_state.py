"""What a client has in each event loop it is used in: workers, and connections, which close with the loop.

The event loop may be asyncio's or trio's. What the workers do is in `tasks`. An idle client has no task, so
a program that waits until all tasks of its loop have ended does not wait for the client.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Callable, Dict, Generator, List, Optional, Set, TypeVar

from ... import log
from ...config import Config
from ...event_loops import Loop, NoThreadError, call_later, current_loop, move_on_after, shielded
from ...process import lifecycle
from .. import retry_loop
from ..parking import Worker
from ..sink import AsyncApiSink, AsyncSink

if TYPE_CHECKING:
    import anyio

    from ...broker.sink import AsyncRedisSink
    from ...http.transport import AsyncTransport

T = TypeVar("T")

#: What forked children forgot. If it were collected, the parent's loops would be asked to end it.
_of_parents: List[Dict[object, LoopState]] = []


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


class Sleeper:
    """A worker that sleeps, without a task. *go_on* is called in the loop, with whether it was woken.

    on_closed: called by who wakes it, if the loop is closed.
    """

    __slots__ = ("_cancel_timer", "_go_on", "_is_released", "_loop", "_on_closed")

    def __init__(self, loop: Loop, on_closed: Callable[[], object]) -> None:
        self._loop = loop
        self._on_closed = on_closed
        self._is_released = False
        self._go_on: Optional[Callable[[bool], object]] = None
        self._cancel_timer: Optional[Callable[[], object]] = None

    def release(self) -> None:
        """End the sleep; from any thread, and a second time does nothing."""
        self._is_released = True
        try:
            self._loop.call_soon(self._wake)
        except RuntimeError:
            self._on_closed()

    def sleep(self, seconds: Optional[float], go_on: Callable[[bool], object]) -> bool:
        """Arrange for *go_on* to be called when the sleep is over; False if it is already."""
        if self._is_released:
            return False
        self._go_on = go_on
        if seconds is not None:
            self._cancel_timer = call_later(self._loop, seconds, self._time_is_up)
        return True

    def _time_is_up(self) -> None:
        self._cancel_timer = None
        self._end(is_woken=False)

    def _wake(self) -> None:
        self._end(is_woken=True)

    def _end(self, *, is_woken: bool) -> None:
        cancel, self._cancel_timer = self._cancel_timer, None
        if cancel is not None:
            cancel()
        go_on, self._go_on = self._go_on, None
        if go_on is not None:
            go_on(is_woken)


class LoopState:
    """What a client has in one event loop: workers, and connections, which are closed when the loop ends.

    Connections belong to the loop that opened them, and a process may run several, one after the other.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.transport: Optional[AsyncTransport] = None
        #: Where batches go, if that is a broker.
        self.broker: Optional[AsyncRedisSink] = None
        #: Those that sleep included, which have no task.
        self.workers: Dict[Worker, None] = {}
        self._scopes: Set[anyio.CancelScope] = set()
        self._left: Optional[TaskWaker] = None
        #: The loop is going down, or the client is closed: nothing may be started here any more.
        self.ended = False
        self._is_closing = False
        self._is_closed = False
        #: Those who wait for `close`.
        self._closers: List[TaskWaker] = []
        self._is_loaded = False
        self._cancel_end = loop.at_end(self._end)

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

    async def close(self) -> None:
        """Close this state. Called again, it waits for what a first call began."""
        await self.load()
        while not self._is_closed:
            self.begin_close()
            await self._until_closed()

    def begin_close(self) -> None:
        """Close this state soon, in a task, which a caller that is cancelled does not take along."""
        self.ended = True
        if not self._is_closing:
            self._is_closing = True
            self.loop.spawn(self._close, self._did_not_close, "windback-closing")

    def _did_not_close(self) -> None:
        """Leave it to the next: the task was cancelled, perhaps before it began."""
        self._is_closing = False
        self._wake_closers()

    async def _end(self) -> None:
        """Close this state, as the loop ends."""
        self.ended = True
        while self._is_closing and not self._is_closed:
            with shielded():
                await self._until_closed()
        if not self._is_closed:
            self._is_closing = True
            await self._close()

    async def _until_closed(self) -> None:
        waker = TaskWaker(self.loop)
        self._closers.append(waker)
        await waker.sleep(None)

    def _wake_closers(self) -> None:
        while self._closers:
            self._closers.pop().release()

    async def _close(self) -> None:
        """End the workers, then close the connections.

        In this order: a connection that is closed under its request makes some httpcores wait for ever.
        """
        was_cancelled = True  # by asyncio itself, against which nothing is shielded
        try:
            if self.workers or self.transport is not None or self.broker is not None:
                with shielded():
                    await self._close_all()
            was_cancelled = False
        except Exception:
            was_cancelled = False
            raise
        finally:
            if was_cancelled:
                self._did_not_close()
            else:
                self._is_closed = True
                self._cancel_end()
                self._wake_closers()

    async def _close_all(self) -> None:
        import anyio.lowlevel

        for scope in self._scopes:
            scope.cancel()
        for worker in list(self.workers):
            if worker.waker is not None:  # it sleeps
                worker.waker.release()
        self._left = TaskWaker(self.loop)
        if self.workers:
            await self._left.sleep(None)
        if self.transport is not None:
            await self.transport.aclose()
        if self.broker is not None:
            await self.broker.aclose()
        # A loop closes a socket in its next turn, or the one after, and this may be the last thing it does.
        for _ in range(2):
            await anyio.lowlevel.checkpoint()

    async def load(self) -> None:
        """Load anyio's backend without blocking the loop; a checkpoint, the first time."""
        if not self._is_loaded:
            if not lifecycle.exiting:
                with contextlib.suppress(NoThreadError):  # then the first use loads it, and blocks the loop
                    await self.loop.in_thread(lambda: _load_backend(self.loop.backend))
            self._is_loaded = True

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Call something that takes long in a thread, or here if none can be started."""
        if lifecycle.exiting:  # a thread that is started now may outlive the interpreter
            return call()
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
        self._states: Dict[object, LoopState] = {}

    def reset(self) -> None:
        """Forget all loops, as in a forked child, where none of them runs."""
        _of_parents.append(self._states)
        self._states = {}

    def current(self) -> LoopState:
        """Return the state of the running loop, made at first use; RuntimeError if this thread runs none."""
        loop = current_loop()
        state = self._states.get(loop.key)
        if state is None:
            # An ended state stays known while its loop still runs, so that nothing starts anew in there.
            # Loops of other threads do the same at this moment: each step below is one of the dict's own.
            for key, other in list(self._states.items()):
                if other.ended and not other.loop.is_running():
                    self._states.pop(key, None)
            state = self._states[loop.key] = LoopState(loop)
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

    @property
    def last_backend(self) -> Optional[str]:
        """The kind of the loop that this client was last used in; None before its first."""
        states = list(self._states.values())
        return states[-1].loop.backend if states else None

    def known(self) -> Optional[LoopState]:
        """Return the state of the running loop, if there is one."""
        with contextlib.suppress(RuntimeError):
            return self._states.get(current_loop().key)
        return None

    def closed(self) -> List[LoopState]:
        """Return the states of loops that were closed over their workers."""
        return [state for state in list(self._states.values()) if state.workers and state.loop.is_closed()]

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

    def stop(self) -> None:
        """Close the connections of all loops that still run, soon; from any thread."""
        for state in list(self._states.values()):
            state.ended = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                state.loop.call_soon(state.begin_close)

    async def close(self) -> None:
        """Close the connections of the running loop. Called again, it waits for what a first call began."""
        state = self.known()
        if state is not None:
            await state.close()
