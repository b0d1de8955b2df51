"""When the next batch is due, and at how many waiting events a caller must wake a worker.

A stream of events wakes a worker once for each batch: after a batch one worker sleeps until the next is due,
and callers wake it earlier only for a full one. Decided under the workers' lock; the time is an argument.
"""

from __future__ import annotations

from typing import Optional

from ..event import batch as batching
from ..event.batch import Batch, Limits, Waiting
from ..queue.intake import NEVER
from ..queue.outbox import Drain
from ..queue.protocol import Intake
from .flushes import Flushes
from .gate import Gate
from .parking import Parking, Worker

#: A batch goes out beside another only when that one is under way for this long, and where more batches
#: wait, for a part of it. A server that answers sooner is served best by one worker: more of them only wait
#: for each other's turns at the interpreter. The least is twice as long as a busy thread may keep it.
HELP_AFTER_S, HELP_AFTER_LEAST_S = 0.04, 0.01
#: A worker that looks whether the others need help, and finds that they don't, looks half as often, down to
#: this.
WATCH_CAP_S = 0.16


class Pace:
    """The rhythm of one queue's workers."""

    def __init__(
        self,
        limits: Limits,
        queue: Drain,
        intake: Optional[Intake],
        parking: Parking,
        flushes: Flushes,
        gate: Gate,
    ) -> None:
        self._limits = limits
        self._queue, self._intake = queue, intake
        self._parking, self._flushes, self._gate = parking, flushes, gate
        #: At how many waiting events, and bytes, a worker must be woken; the callers' side has a copy.
        self._wake_at, self.wake_at_bytes = 0, NEVER
        #: The worker that sleeps until something is due.
        self._timed: Optional[Worker] = None
        self._timed_until_s = 0.0
        self._watch_s = 0.0
        self._on_watch = True
        self._first_seen_s: Optional[float] = None
        self._last_take_s = float("-inf")

    def set_wake_at(self, events: int, size_bytes: int) -> None:
        """Make callers wake a worker at so many waiting events, or bytes."""
        self._wake_at, self.wake_at_bytes = events, size_bytes
        if self._intake is not None:
            self._intake.wake_at_bytes = size_bytes
            self._intake.wake_at = events

    @property
    def must_wake(self) -> bool:
        """Whether a worker must be woken for waiting events that did not come from `put`."""
        is_much = self._queue.waiting().events > self._wake_at or self._queue.size_bytes >= self.wake_at_bytes
        return is_much or self._queue.has_returned

    def due_in(self, now_s: float, waiting: Waiting) -> Optional[float]:
        """Return the seconds until a batch may be leased: 0.0 for now, None if nothing here decides when."""
        if not waiting.events:
            self._first_seen_s = None
            return None
        if self._first_seen_s is None:
            # With a worker on watch the first event is seen as it comes; else it came since the last take.
            self._first_seen_s = now_s if self._on_watch else self._last_take_s
        in_flight = len(self._queue.leased)
        if in_flight >= self._gate.limit:
            return None
        blocked_s = self._gate.blocked_s(now_s)
        if blocked_s > 0.0:
            return blocked_s
        due_s: Optional[float] = 0.0
        if not (self._flushes.are_urgent or self._queue.has_returned):
            age_s = now_s - self._first_seen_s
            due_s = batching.wait_s(waiting.events, waiting.size_bytes, age_s, self._limits)
        if due_s == 0.0 and in_flight:
            return max(0.0, self._help_after_s(waiting) - (now_s - self._last_take_s))
        return due_s

    def _help_after_s(self, waiting: Waiting) -> float:
        """Return how long a batch is under way before another goes out beside it."""
        if self._flushes.are_urgent:
            return HELP_AFTER_LEAST_S
        batches = waiting.events / self._limits.max_events
        return max(HELP_AFTER_LEAST_S, HELP_AFTER_S / max(1.0, batches))

    def took(self, batch: Batch, waiting: Waiting, now_s: float) -> bool:
        """Note that *batch* was leased from what was *waiting*; whether one more worker would find work."""
        # Help came, or it would have come but for a look at the wrong moment: the next look is in time.
        if len(self._queue.leased) > 1 or now_s - self._last_take_s >= self._help_after_s(waiting):
            self._watch_s = 0.0
        # What is left now came after the last take, and after the first event was seen.
        since_s = now_s if self._first_seen_s is None else self._first_seen_s
        if not self._queue.is_cut:
            since_s = max(self._last_take_s, since_s)
        self._first_seen_s, self._last_take_s = since_s, now_s
        left = Waiting(max(0, waiting.events - len(batch)), max(0, waiting.size_bytes - batch.size_bytes))
        due_s = self.due_in(now_s, left)
        is_watched = self._is_timed and self._timed_until_s <= now_s + WATCH_CAP_S
        self.arm(now_s)
        return due_s is not None and due_s <= self._help_after_s(left) and not is_watched

    @property
    def _is_timed(self) -> bool:
        return self._timed is not None and self._timed in self._parking.workers

    def arm(self, now_s: float) -> None:
        """Set at how many waiting events a caller must wake a worker."""
        in_flight, workers = len(self._queue.leased), len(self._parking.workers)
        is_quiet = in_flight == 0 and self._first_seen_s is None and not self._gathers_for_s(now_s)
        may_start = workers < self._gate.limit
        if workers == 0 or (is_quiet and self._parking.parked):
            wake_at = 0
        elif (
            in_flight >= self._gate.limit
            or self._gate.blocked_s(now_s) > 0
            or not (may_start or self._parking.parked)
        ):
            wake_at = NEVER
        else:
            wake_at = self._limits.max_events - 1
        self._on_watch = wake_at == 0
        is_never = wake_at == NEVER
        self.set_wake_at(wake_at, NEVER if is_never else self._queue.leased_bytes + self._limits.max_bytes)

    def _gathers_for_s(self, now_s: float) -> float:
        """Return for how long an event wakes nobody: the worker wakes by itself when the next batch is due.

        So it is after a batch, because in a stream of events another one follows soon.
        """
        return max(0.0, self._last_take_s + self._limits.interval_s - now_s)

    def sleeps_for(self, worker: Worker, now_s: float, retry_s: Optional[float]) -> Optional[float]:
        """Return the seconds until a parked worker is to look again by itself; None if another does that.

        retry_s: the seconds until the disk is tried again, if that is due.
        """
        waiting = self._queue.waiting()
        due_s = self.due_in(now_s, waiting)
        if due_s is None and not (waiting.events or self._queue.leased):
            due_s = self._gathers_for_s(now_s) or None
        if retry_s is not None:
            due_s = retry_s if due_s is None else min(due_s, retry_s)
        if due_s is None or (self._is_timed and now_s + due_s >= self._timed_until_s):
            return None
        if self._queue.leased and due_s <= self._help_after_s(waiting):
            due_s = max(due_s, self._watch_s)
            self._watch_s = min(2 * due_s, WATCH_CAP_S)
        self._timed, self._timed_until_s = worker, now_s + due_s
        return due_s

    def woke(self, worker: Worker) -> None:
        """Note that a worker does not sleep any more."""
        if self._timed is worker:
            self._timed = None
