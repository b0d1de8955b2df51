"""The event loops of asyncio and trio, as far as they are needed before anyio is loaded.

Loading anyio takes too long to do in a loop. A thread loads it, and until then this module does the work.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from contextvars import Context
from typing import (
    TYPE_CHECKING,
    AsyncGenerator,
    Awaitable,
    Callable,
    ContextManager,
    Coroutine,
    Generator,
    Iterable,
    List,
    Optional,
    Protocol,
    Set,
    TypeVar,
)

from . import clock

if TYPE_CHECKING:
    import anyio

T = TypeVar("T")

_tasks: Set[object] = set()


class NoThreadError(Exception):
    """The system starts no more threads, so slow work must be done in the loop."""


class Loop(Protocol):
    """What a worker needs of an event loop."""

    key: object
    backend: str

    def spawn(self, main: Callable[[], Awaitable[None]], never_ran: Callable[[], object], name: str) -> None:
        """Start a task, in the loop's own thread; *never_ran* is called if it is cancelled before it runs.

        Raises what the loop raises: asyncio calls a task factory of the application, and in Python 3.8 keeps
        the tasks of all loops in a set that is not made for several threads.
        """

    def call_later(self, seconds: float, call: Callable[[], object]) -> Callable[[], object]:
        """Call a function in the loop after a while, if it still runs then. Returns what cancels that.

        In the loop's own thread, as what cancels it. The loop's clock may be frozen; see `call_later`.
        """
        ...

    def call_soon(self, call: Callable[[], object]) -> None:
        """Call a function in the loop, from any thread. Raises RuntimeError if the loop is closed."""

    def at_end(self, call: Callable[[], Awaitable[None]]) -> Callable[[], object]:
        """Await *call* when the loop ends, with no task that users see. Returns what cancels that."""
        ...

    def is_closed(self) -> bool:
        """Whether the loop was closed while tasks remained; the tasks are not notified of that."""
        ...

    def is_running(self) -> bool:
        """Whether the loop may call something; false between two runs of it, too."""
        ...

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Call a slow function in a thread. Raises NoThreadError if none can be started."""
        ...


class _AsyncioLoop:
    backend = "asyncio"

    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.key: object = self._loop

    def spawn(self, main: Callable[[], Awaitable[None]], never_ran: Callable[[], object], name: str) -> None:
        has_run = False

        async def run() -> None:
            nonlocal has_run
            has_run = True
            await main()

        def end(task: object) -> None:
            _tasks.discard(task)
            if not has_run:
                never_ran()

        work = run()
        try:
            # An empty context: a worker outlives the request that started it, and must not keep it alive.
            task = Context().run(self._loop.create_task, work)
        except BaseException:
            work.close()  # or Python warns that it was never awaited
            raise
        with contextlib.suppress(AttributeError):  # a loop may make tasks of its own kind
            task.set_name(name)
        _tasks.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(end)

    def call_later(self, seconds: float, call: Callable[[], object]) -> Callable[[], object]:
        return self._loop.call_later(seconds, call).cancel

    def call_soon(self, call: Callable[[], object]) -> None:
        if threading.get_ident() == self._thread:  # without the system call that wakes a loop that sleeps
            self._loop.call_soon(call)
        else:
            self._loop.call_soon_threadsafe(call)

    def at_end(self, call: Callable[[], Awaitable[None]]) -> Callable[[], object]:
        # asyncio.run, and everything like it, ends the asynchronous generators of its loop after the tasks.
        is_over = False

        async def wait() -> AsyncGenerator[None, None]:
            try:
                yield
            finally:
                if not is_over:
                    await call()

        def cancel() -> None:
            nonlocal is_over
            is_over = True
            with contextlib.suppress(RuntimeError):  # it runs right now, and this is a part of it
                _run_without_waiting(generator.aclose())

        generator = wait()
        is_ending = getattr(self._loop, "_asyncgens_shutdown_called", False)
        if sys.get_asyncgen_hooks().firstiter is not None and not is_ending:
            _run_without_waiting(generator.__anext__())
        return cancel

    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def is_running(self) -> bool:
        return self._loop.is_running()

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

    def spawn(self, main: Callable[[], Awaitable[None]], never_ran: Callable[[], object], name: str) -> None:
        del never_ran  # trio runs a task up to its first checkpoint in any case

        async def run() -> None:
            try:
                await main()
            except BaseException as error:
                if not _is_interrupt(error):
                    raise
                # trio keeps Ctrl-C from this task, but not from those that anyio makes for it, and would call
                # it an internal error. Raised again here, it reaches the application's main task.
                signal.raise_signal(signal.SIGINT)

        self._trio.lowlevel.spawn_system_task(run, context=Context(), name=name)

    def call_later(self, seconds: float, call: Callable[[], object]) -> Callable[[], object]:
        scope = self._trio.CancelScope()

        async def wait() -> None:
            with scope:
                await self._trio.sleep(seconds)
                call()

        self.spawn(wait, _nothing, "windback-timer")
        return scope.cancel

    def call_soon(self, call: Callable[[], object]) -> None:
        self._token.run_sync_soon(call)

    def at_end(self, call: Callable[[], Awaitable[None]]) -> Callable[[], object]:
        # A system task: nobody who waits for a nursery waits for it.
        scope = self._trio.CancelScope()

        async def wait() -> None:
            try:
                with scope:
                    await self._trio.sleep_forever()
            finally:
                if not scope.cancel_called:
                    await call()

        self.spawn(wait, _nothing, "windback-connections")
        return scope.cancel

    def is_closed(self) -> bool:
        return False  # trio cancels every task before it ends

    def is_running(self) -> bool:
        return False  # as above: what has ended starts nothing

    async def in_thread(self, call: Callable[[], T]) -> T:
        done = self._trio.Event()
        outcome = _start_thread(call, lambda: self._token.run_sync_soon(done.set))
        await done.wait()
        return outcome()


def _is_interrupt(error: BaseException) -> bool:
    """Whether it is Ctrl-C, or a group of errors with it."""
    parts: Iterable[BaseException] = getattr(error, "exceptions", ())
    return isinstance(error, KeyboardInterrupt) or any(map(_is_interrupt, parts))


def _nothing() -> None:
    """Do nothing."""


def _run_without_waiting(step: Awaitable[object]) -> None:
    """Run something that can be awaited and never waits."""
    with contextlib.suppress(StopIteration, StopAsyncIteration):
        next(step.__await__())


def _start_thread(call: Callable[[], T], notify: Callable[[], object]) -> Callable[[], T]:
    """Run *call* in a new thread, then *notify*. Returns a function that returns or raises its outcome.

    The loop's executor is shut in a loop that is closing. trio's cache of threads, in a forked child, counts
    threads that do not exist there. So neither is used.
    """
    results: List[T] = []
    errors: List[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            errors.append(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits
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


def current_loop() -> Loop:
    """Return the event loop that this thread runs. Raises RuntimeError if it runs none."""
    if "trio" in sys.modules:
        with contextlib.suppress(RuntimeError):
            return _TrioLoop()
    return _AsyncioLoop()


def run(backend: str, main: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run *main* in a new event loop, and close that. Raises RuntimeError where this thread runs one."""
    if backend == "trio":
        import trio

        trio.run(main)
    else:
        _run_asyncio(main)


def _run_asyncio(main: Callable[[], Coroutine[object, object, None]]) -> None:
    """Do what asyncio.run does, which would take away the application's current event loop."""
    import asyncio

    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - documented, and raises nothing
        raise RuntimeError("an event loop runs in this thread")

    loop = asyncio.new_event_loop()
    loop.slow_callback_duration = float("inf")  # in debug mode it would be logged, and nothing else runs here
    try:
        task = loop.create_task(main())
        try:
            loop.run_until_complete(task)
        finally:
            if not task.done():  # interrupted
                task.cancel()
                loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def call_later(loop: Loop, seconds: float, call: Callable[[], object]) -> Callable[[], object]:
    """Call a function in *loop* after a while, also where its clock is frozen. Returns what cancels that."""
    if clock.is_replaced():
        return _call_later_by_a_thread(loop, seconds, call)
    return loop.call_later(seconds, call)


def _call_later_by_a_thread(loop: Loop, seconds: float, call: Callable[[], object]) -> Callable[[], object]:
    is_over = _thread.allocate_lock()
    is_over.acquire()

    def keep_time(seconds: float) -> None:
        if not is_over.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX)):
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits
                loop.call_soon(call)

    with contextlib.suppress(RuntimeError):  # out of threads; it is not called
        _thread.start_new_thread(keep_time, (seconds,))
    return is_over.release


@contextlib.contextmanager
def move_on_after(seconds: Optional[float]) -> Generator[anyio.CancelScope, None, None]:
    """Do the same as anyio.move_on_after, also where the clock of the event loop is frozen.

    With a frozen clock the loop's own timers never fire, or all fire immediately, so a thread keeps the time.
    """
    import anyio

    if seconds is None or not clock.is_replaced():
        with anyio.move_on_after(seconds) as scope:
            yield scope
        return
    with anyio.CancelScope() as scope:
        cancel = _call_later_by_a_thread(current_loop(), seconds, scope.cancel)
        try:
            yield scope
        finally:
            cancel()


def shielded() -> ContextManager[object]:
    """Return a block that a cancelled scope of anyio or trio, around it, does not end."""
    # While anyio is not loaded no client did anything in a loop, so there is nothing to wait for.
    scope = getattr(sys.modules.get("anyio"), "CancelScope", None)
    return contextlib.nullcontext() if scope is None else scope(shield=True)


async def sleep(seconds: float) -> None:
    """Sleep in a task, also where the clock of its event loop is frozen."""
    import anyio

    with move_on_after(seconds):
        await anyio.sleep_forever()
