"""Workers that are tasks, of asyncio or trio. While a worker sleeps it has no task; see `Sleeper`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Callable

from ... import clock
from ...api.answer import Answer
from ...event_loops import call_later
from .. import retry_loop
from ..parking import Step, Worker
from ..scheduler import Scheduler
from .loop_state import LoopState, LoopStates, Sleeper, TaskWaker

if TYPE_CHECKING:
    from ...event.batch import Batch

_NAME = "windback-worker"
#: How long after a worker was cancelled another may start (seconds).
_RESUME_S = 0.05


class TaskWorkers:
    """Drains a queue from tasks, in whichever event loop calls."""

    def __init__(self, scheduler: Scheduler, loops: LoopStates) -> None:
        self._scheduler = scheduler
        self._loops = loops

    @property
    def has_worker_here(self) -> bool:
        """Whether a worker runs in the calling thread's event loop."""
        state = self._loops.known()
        return state is not None and bool(state.workers)

    def start(self, worker: Worker) -> bool:
        """Start a worker in the running loop; False if this thread runs none, or the loop takes no task."""
        try:
            state = self._loops.current()
        except RuntimeError:
            return False
        if state.ended:
            return False
        try:
            state.workers[worker] = None
            if self._spawn(state, worker, idle=False):
                return True
        except BaseException:
            state.worker_left(worker)
            raise
        state.worker_left(worker)
        self._resume_soon(state)
        return False

    def _spawn(self, state: LoopState, worker: Worker, *, idle: bool) -> bool:
        """Start a task for a worker that is new, or slept; False if the loop takes none.

        idle: see `Scheduler.next_step`.
        """

        def never_ran() -> None:
            self._retire(state, worker)
            self._resume_soon(state)

        try:
            state.loop.spawn(lambda: self._main(state, worker, idle=idle), never_ran, _NAME)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the application's task factory may raise anything
            self._scheduler.lines.died(clock.now_s(), error)
            return False
        return True

    def _after_sleep(self, state: LoopState, worker: Worker, step: Step) -> Callable[[bool], None]:
        """Return what is called when a worker has slept, with whether it was woken."""
        return lambda is_woken: self._go_on(state, worker, idle=step.spare and not is_woken)

    def _go_on(self, state: LoopState, worker: Worker, *, idle: bool) -> None:
        """Work again after a sleep, in a new task."""
        if worker not in state.workers:
            return
        try:
            if not state.ended and self._spawn(state, worker, idle=idle):
                return
        except BaseException:
            self._retire(state, worker)
            raise
        self._retire(state, worker)
        if not state.ended:
            self._resume_soon(state)

    def _lose(self, state: LoopState, worker: Worker) -> None:
        """Have another worker instead of one that sleeps in a closed loop. Waits for nothing."""
        state.ended = True
        state.worker_left(worker)
        self._scheduler.parking.workers.pop(worker, None)
        self._scheduler.add_worker()

    def _retire(self, state: LoopState, worker: Worker) -> None:
        state.worker_left(worker)
        self._scheduler.retire(worker, clock.now_s(), died=False)

    def take_back(self) -> None:
        """Return the batches of closed loops' workers, which were not notified and never run again."""
        for state in self._loops.closed():
            state.ended = True
            for worker in list(state.workers):
                self._retire(state, worker)

    async def _main(self, state: LoopState, worker: Worker, *, idle: bool) -> None:
        was_cancelled = True
        sleeps = False
        try:
            sleeps = await self._run(state, worker, idle=idle)
            was_cancelled = False
        except Exception as error:  # noqa: BLE001 - a dead worker must not pass in silence, whatever killed it
            was_cancelled = False
            self._scheduler.lines.died(clock.now_s(), error)
        finally:
            if not sleeps:
                state.worker_left(worker)
                if self._scheduler.parking.workers.pop(worker, self) is None:
                    self._scheduler.look_again()
            if was_cancelled:
                self._resume_soon(state)

    def _resume_soon(self, state: LoopState) -> None:
        # RuntimeError: the loop is closed, or going down.
        with contextlib.suppress(RuntimeError):
            call_later(state.loop, _RESUME_S, lambda: self._resume(state))

    def _resume(self, state: LoopState) -> None:
        """Start another worker where one was cancelled, if the loop still runs and events wait."""
        scheduler = self._scheduler
        if not (state.ended or state.workers) and scheduler.queue.waiting().events:
            scheduler.add_worker()

    async def _run(self, state: LoopState, worker: Worker, *, idle: bool) -> bool:
        """Work until there is nothing left to do now; whether the worker sleeps until there is."""
        scheduler = self._scheduler
        died = sleeps = False
        try:
            # Before any batch is leased: a loop that goes down cancels this task here, and nothing is held.
            await state.load()
            import anyio.lowlevel  # loaded by now, and not in the loop

            await anyio.lowlevel.checkpoint()
            with state.worker_scope():
                while not state.ended:
                    waker = Sleeper(state.loop, lambda: self._lose(state, worker))
                    step = scheduler.next_step(worker, clock.now_s(), waker, idle=idle)
                    idle = False
                    if step.leave:
                        break
                    if step.maintain:
                        await state.in_thread(scheduler.maintain)
                    elif step.batch is not None:
                        if step.helper:
                            scheduler.call_helper()
                        await self._send(state, worker, step.batch)
                    else:
                        await anyio.lowlevel.checkpoint()  # who waited for this worker sees its task
                        sleeps = waker.sleep(step.wait_s, self._after_sleep(state, worker, step))
                        if sleeps:
                            break
        except Exception:
            # Anything else is the loop, or the application, that cancels its tasks: no fault, no death.
            died = True
            raise
        finally:
            if not sleeps:
                scheduler.retire(worker, clock.now_s(), died=died)
        return sleeps

    async def _send(self, state: LoopState, worker: Worker, batch: Batch) -> None:
        scheduler = self._scheduler
        gzipped = scheduler.compress

        def on_failure(answer: Answer) -> None:
            scheduler.try_failed(batch, answer, clock.moment())

        async def attempt(left_s: float) -> Answer:
            started_s = clock.now_s()
            answer = await sink.attempt(batch, left_s, gzip=gzipped)
            worker.last_wake = scheduler.parking.last_wake
            scheduler.hooks.tried(batch, answer, clock.now_s() - started_s)
            return answer

        try:
            sink = await self._loops.sink(state)
            answer = await retry_loop.send_async(
                attempt,
                scheduler.retry_policy(),
                lambda seconds: self._sleep(state, worker, seconds),
                on_failure,
            )
            scheduler.settle(worker, answer, clock.moment(), gzipped=gzipped)
        finally:
            scheduler.put_down(worker)

    async def _sleep(self, state: LoopState, worker: Worker, seconds: float) -> None:
        """Wait out a backoff, unless a flush or a close ends it."""
        waker = TaskWaker(state.loop)
        try:
            self._scheduler.parking.rest(waker, worker.last_wake)
            await waker.sleep(seconds)
        finally:
            self._scheduler.parking.rested(waker)
