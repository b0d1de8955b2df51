"""Who works, who sleeps, and how sleepers are woken. None of it takes a lock, and none of it waits.

Sleep and wake. A worker that has nothing to do parks: it leaves a `Waker` here and sleeps on it. The queue's
`wake_at` is the number of waiting events at which a caller must wake a worker. Order makes this safe: a
worker parks, then sets `wake_at`, then looks at the queue once more; a caller appends, then looks at
`wake_at`, sets it to NEVER, then looks for a parked worker.

A waker is released first and taken out afterwards. So an exception between the two, such as one that a signal
handler raises in the caller, leaves a worker that is awake and still listed: the next caller wakes it once
more, which does no harm. The other order would leave one that sleeps and that nobody can find.

A worker is what is in `workers`, and nothing else counts them. One that ended takes itself out in a single
call that cannot fail; what it left elsewhere, such as its waker, is then recognized as nobody's.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Deque, Dict, List, NamedTuple, Optional, Protocol

from ..event.batch import Batch


class Waker(Protocol):
    """What a worker, a caller or a flush sleeps on."""

    def release(self) -> None:
        """End the sleep, from any thread; a second time does nothing."""


class Worker:
    """One worker, a thread or a task: what it delivers right now, and what it sleeps on."""

    __slots__ = ("batch", "last_wake", "waker")

    def __init__(self) -> None:
        self.batch: Optional[Batch] = None
        self.waker: Optional[Waker] = None
        #: That of the parking when the last answer came.
        self.last_wake: Optional[object] = None


class Step(NamedTuple):
    """The next step of a worker: send `batch`, call `maintain`, sleep for `wait_s` (None: forever), or end.

    helper: one more worker would find work right now. spare: nobody needs this worker; if it sleeps
    the whole time it passes that to `next_step`, and ends. missing: so many events were just counted as
    dropped, because the file that held them is gone.
    """

    batch: Optional[Batch] = None
    wait_s: Optional[float] = None
    leave: bool = False
    helper: bool = False
    spare: bool = False
    maintain: bool = False
    missing: int = 0


class Parking:
    """The workers, and everything that sleeps until something happens."""

    def __init__(self) -> None:
        #: All workers, in the order in which they came.
        self.workers: Dict[Worker, None] = {}
        #: Workers that sleep; the last one is woken first.
        self.parked: Dict[Waker, Worker] = {}
        #: Workers that wait out a backoff.
        self._resting: Deque[Waker] = deque()
        #: A new one each time that all are woken: any thread may do so, and none of the times is lost.
        self.last_wake = object()
        #: Callers that wait for room in the queue.
        self.callers: Deque[Waker] = deque()

    # -- workers -------------------------------------------------------------------------------

    def join(self, worker: Worker, limit: int) -> bool:
        """Add a worker unless there are *limit* already; whether it is one now."""
        self.workers[worker] = None
        # Several may join at the same time. The first ones stay, so at least one does.
        if list(self.workers).index(worker) < limit:
            return True
        self.leave(worker)
        return False

    def leave(self, worker: Worker) -> None:
        """Remove a worker."""
        self.workers.pop(worker, None)
        self.unpark(worker)

    def park(self, worker: Worker, waker: Waker) -> None:
        """List a worker as asleep."""
        worker.waker = waker
        self.parked[waker] = worker

    def unpark(self, worker: Worker) -> None:
        """Remove a worker from the list of those that sleep."""
        waker = worker.waker
        if waker is not None:
            self.parked.pop(waker, None)
            worker.waker = None

    def wake_worker(self) -> bool:
        """Wake the worker that went to sleep last; False if none sleeps."""
        for waker in reversed(list(self.parked)):
            worker = self.parked.get(waker)
            is_there = worker is not None and worker in self.workers
            if is_there:
                waker.release()
            self.parked.pop(waker, None)
            if is_there:
                return True
        return False

    @property
    def batches(self) -> List[Batch]:
        """What workers deliver right now."""
        return [worker.batch for worker in list(self.workers) if worker.batch is not None]

    # -- the others ----------------------------------------------------------------------------

    def rest(self, waker: Waker, last_wake: object) -> None:
        """List a worker that waits out a backoff, which a flush or a close ends.

        last_wake: what it was when the answer came. Who woke all since then could not see this one.
        """
        self._resting.append(waker)
        if self.last_wake is not last_wake:
            waker.release()

    def rested(self, waker: Waker) -> None:
        """Remove it from that list."""
        _remove(self._resting, waker)

    def wait_for_room(self, waker: Waker) -> None:
        """List a caller that waits for room in the queue."""
        self.callers.append(waker)

    def stop_waiting(self, waker: Waker) -> None:
        """Remove it from that list."""
        _remove(self.callers, waker)

    def wake_callers(self, count: int) -> None:
        """Wake the *count* callers that wait longest; each tries again, and may have to wait again."""
        for waker in list(self.callers)[:count]:
            waker.release()
            _remove(self.callers, waker)

    def wake_all(self) -> None:
        """Wake all workers."""
        self.last_wake = object()
        while self.wake_worker():
            pass
        for waker in list(self._resting):
            waker.release()


def _remove(wakers: Deque[Waker], waker: Waker) -> None:
    with suppress(ValueError):  # another thread was faster
        wakers.remove(waker)
