"""Workers that are tasks, of asyncio or trio."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Optional

from ... import clock
from ...api.answer import Answer
from .. import retry_loop
from ..scheduler import Scheduler
from .loop_state import LoopState, LoopStates, TaskWaker

if TYPE_CHECKING:
    from ...event.batch import Batch


class TaskWorkers:
    """Drains a queue from tasks, in whichever event loop calls."""

    def __init__(self, scheduler: Scheduler, loops: LoopStates) -> None:
        self._scheduler = scheduler
        self._loops = loops

    @property
    def has_worker_here(self) -> bool:
        """Whether a worker runs in the calling thread's event loop."""
        state = self._loops.known()
        return state is not None and state.workers > 0

    def start(self) -> bool:
        """Start a worker in the running loop; False if this thread runs none, or the loop is going down."""
        try:
            state = self._loops.current()
        except RuntimeError:
            return False
        if state.ended:
            return False
        state.workers += 1
        state.loop.spawn(lambda: self._main(state), lambda: self._retire(state))
        return True

    def _retire(self, state: LoopState) -> None:
        state.worker_left()
        self._scheduler.retire(None, clock.now_s(), died=False)

    def take_back(self) -> None:
        """Give back what the workers of closed loops hold; nobody told them, and they never run again."""
        for state in self._loops.closed():
            state.ended = True
            for batch in list(state.leases):
                self._give_back(state, batch)
            while state.workers:
                self._retire(state)

    def _give_back(self, state: LoopState, batch: Batch) -> None:
        if batch in state.leases:
            state.leases.remove(batch)
            self._scheduler.abandon(batch)

    async def _main(self, state: LoopState) -> None:
        try:
            await self._run(state)
        except Exception as error:  # noqa: BLE001 - a dead worker must not pass in silence, whatever killed it
            self._scheduler.log_death(error, clock.now_s())
        finally:
            state.worker_left()

    async def _run(self, state: LoopState) -> None:
        scheduler = self._scheduler
        waker: Optional[TaskWaker] = None
        idle = False
        try:
            # Before any batch is leased: a loop that goes down cancels this task here, and nothing is held.
            await state.load()
            import anyio.lowlevel  # loaded by now, and not in the loop

            await anyio.lowlevel.checkpoint()
            with state.worker_scope():
                while True:
                    fresh = TaskWaker(state.loop)
                    step = scheduler.next_step(clock.now_s(), fresh, waker, idle=idle)
                    waker, idle = fresh, False
                    if step.leave:
                        return
                    if step.upkeep:
                        await self._upkeep(state)
                        continue
                    if step.batch is not None:
                        if step.helper:
                            scheduler.call_helper()
                        await self._send(state, step.batch)
                        continue
                    idle = not await fresh.sleep(step.wait_s) and step.spare
        except BaseException as error:
            # Anything that is no Exception is the loop cancelling its tasks: no fault, no death.
            scheduler.retire(waker, clock.now_s(), died=isinstance(error, Exception))
            raise
        scheduler.retire(waker, clock.now_s(), died=False)

    async def _upkeep(self, state: LoopState) -> None:
        await state.in_thread(self._scheduler.upkeep)

    async def _send(self, state: LoopState, batch: Batch) -> None:
        scheduler = self._scheduler
        gzipped = scheduler.compress

        def on_failure(answer: Answer) -> None:
            scheduler.try_failed(batch, answer, clock.now_s(), time.time())

        state.leases.add(batch)
        try:
            sink = await self._loops.sink(state)
            answer = await retry_loop.send_async(
                lambda left_s: sink.attempt(batch, left_s, gzip=gzipped),
                scheduler.retry_policy(),
                lambda seconds: self._nap(state, seconds),
                on_failure,
            )
        except BaseException:
            self._give_back(state, batch)
            raise
        state.leases.discard(batch)
        scheduler.settle(batch, answer, clock.now_s(), time.time(), gzipped=gzipped)

    async def _nap(self, state: LoopState, seconds: float) -> None:
        """Wait out a backoff, unless a flush or a close ends it."""
        waker = TaskWaker(state.loop)
        self._scheduler.sleeper(waker)
        try:
            await waker.sleep(seconds)
        finally:
            self._scheduler.awake(waker)
