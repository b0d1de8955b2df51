"""What the workers of one queue share: what to do next, what became of a batch, who sleeps.

Sans I/O: nothing here sends, sleeps or starts anything, and but for `stats` the time is an argument.
A worker, a thread or a task, asks `next_step`, obeys, and tells `settle` what the answer was. All state
is behind one lock that is the drain side's: `track_event` takes it only to start a worker, never to add
an event.

Sleep and wake. A worker that has nothing to do leaves a `Waker` in `_parked` and sleeps on it. The
queue's `wake_at` says at how many waiting events a caller must wake one; the caller pops a waker and
releases it, so exactly one caller wakes exactly one worker. Order makes this safe: a worker parks,
then sets `wake_at`, then looks at the queue once more; a caller appends, then looks at `wake_at`.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections import Counter, deque
from typing import Callable, Deque, List, NamedTuple, Optional

from .. import clock
from ..api.answer import Answer, error_of, retry_after_s
from ..config import Config
from ..errors import WindbackError
from ..event import batch as batching
from ..event.batch import Batch, Limits
from ..outage import OutageLog
from ..queue.intake import NEVER
from ..queue.protocol import Queue
from ..stats import DeliveryReport, FlushResult, Outcome, Stats
from .gate import Gate
from .hooks import Hooks
from .parking import Waker
from .retry import RetryPolicy
from .verdict import Action, is_throttle, judge

logger = logging.getLogger("windback")

#: A worker beyond the first goes when it had nothing to do for this long.
SPARE_WORKER_S = 5.0


#: A batch goes out beside another only when that one is under way for this long. A server that answers
#: sooner is served best by one worker: more of them only wait for each other's turns at the interpreter.
PATIENCE_S = 0.002
#: Who looks whether the others need help, and finds that they don't, looks half as often, down to this.
WATCH_CAP_S = 0.064
#: After so many workers that died without settling a batch there is a pause, as in an outage.
_DEATHS_IN_A_ROW = 3


class Step(NamedTuple):
    """What a worker does next: send `batch`, or `upkeep`, or sleep for `wait_s` (None: for ever), or leave.

    helper: one more worker would find work right now. spare: nobody needs this worker; if it sleeps
    the whole time it tells `next_step` so, and is sent away.
    """

    batch: Optional[Batch] = None
    wait_s: Optional[float] = None
    leave: bool = False
    helper: bool = False
    spare: bool = False
    upkeep: bool = False


class _Outcome(NamedTuple):
    """What is left to do after a batch was settled, without the lock: a report to give, a line to write."""

    report: Optional[DeliveryReport] = None
    level: int = logging.INFO
    line: Optional[str] = None


class Flush:
    """A flush in progress: done once everything below `target` is settled, or there is no hope."""

    def __init__(self, target: int, waker: Waker, *, patient: bool, adopts: bool, before: Stats) -> None:
        self.target = target
        #: Whether it is also about what exited processes left.
        self.adopts = adopts
        self.waker = waker
        #: A patient flush has a timeout of its own; the other gives up when the server can't be reached.
        self.patient = patient
        self.before = before
        self.done = False


class Scheduler:
    """See the module."""

    def __init__(
        self,
        config: Config,
        start_worker: Callable[[], bool],
        queue: Queue,
        hooks: Hooks,
        on_throttle: Optional[Callable[[float], None]] = None,
    ) -> None:
        """on_throttle: called with the seconds for which the API wants nothing of this project."""
        self._config = config
        self._hooks = hooks
        self._on_throttle = on_throttle
        self._limits = Limits(config.batch_size, config.max_batch_bytes, config.flush_interval)
        #: Starts a worker and says whether it could; it is called without the lock.
        self._start_worker = start_worker
        self._whole_queue = queue
        self.queue, self._intake, self._disk = queue.outbox, queue.intake, queue.disk
        if self._intake is not None:
            self._intake.wake = self.wake
        self._start()

    def reset(self) -> None:
        """Start anew with nothing, as in a forked child."""
        self._whole_queue.reset()
        self._start()

    def _start(self) -> None:
        #: At how many waiting events, and bytes, a worker must be woken; the callers' side has a copy.
        self._wake_at, self._wake_at_bytes = 0, NEVER
        if self._intake is not None and not self._config.enabled:
            self._intake.close("disabled")
        self.lock = threading.Lock()
        self.gate = Gate(self._config.max_in_flight)
        self.compress = self._config.compress
        self.closing = False
        self.workers = 0
        self._outage = OutageLog()
        self._parked: Deque[Waker] = deque()
        self._sleepers: Deque[Waker] = deque()
        self._room_waiters: Deque[Waker] = deque()
        self._timed: Optional[Waker] = None
        self._timed_until_s = 0.0
        self._watch_s = PATIENCE_S
        self._flushes: List[Flush] = []
        self._first_seen_s: Optional[float] = None
        self._last_take_s = 0.0
        self._on_watch = True
        #: Nothing is retried any more: the deadline of close() or of the exit has passed.
        self.given_up = False
        #: The interpreter is going down: no thread may be started.
        self.exiting = False
        self._in_upkeep = False
        self._next_rejection_line_s = 0.0
        self._next_death_line_s = 0.0
        self._deaths_in_a_row = 0
        self._in_flight = 0
        self._reported_evictions = 0
        self._delivered = 0
        self._rejected: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._requests = self._retries = self._deaths = 0

    # -- called by track_event -----------------------------------------------------------------

    def wake(self) -> None:
        """Wake a sleeping worker, or start one if there may be more. Never waits for a worker."""
        self._set_wake_at(NEVER, NEVER)  # the worker that wakes sets it again
        self.call_helper()

    def _set_wake_at(self, events: int, size_bytes: int) -> None:
        self._wake_at, self._wake_at_bytes = events, size_bytes
        if self._intake is not None:
            self._intake.wake_at_bytes = size_bytes
            self._intake.wake_at = events

    @property
    def must_wake(self) -> bool:
        """Whether a worker must be woken for what waits; for events that came by another way than `put`."""
        waiting = self.queue.waiting()
        is_much = waiting.events > self._wake_at or self.queue.size_bytes >= self._wake_at_bytes
        return is_much or self.queue.has_returned

    def call_helper(self) -> None:
        """Get one more worker to look at the queue: a sleeping one, else a new one."""
        try:
            waker = self._parked.pop()
        except IndexError:
            self.add_worker()
        else:
            waker.release()

    def add_worker(self) -> bool:
        """Start a worker if there may be one more; False if there may not, or the system refuses."""
        with self.lock:
            if self.workers >= self.gate.limit or self.exiting:
                return False
            self.workers += 1
        if self._start_worker():
            return True
        with self.lock:
            self.workers -= 1
            # Nobody sleeps here, so callers must try again: not each of them, but one in a thousand.
            self._set_wake_at(self.queue.waiting().events + 1000, self._wake_at_bytes)
        return False

    def wait_for_room(self, waker: Waker, size: int) -> bool:
        """Have *waker* released when *size* bytes may fit; False if they do already, or never will."""
        self._room_waiters.append(waker)
        assert self._intake is not None
        return not self._intake.has_room_for(size) and not self.closing

    def stop_waiting(self, waker: Waker, *, gave_up: bool) -> None:
        """The counterpart of `wait_for_room`; a caller that gave up leaves the room to the next."""
        with contextlib.suppress(ValueError):
            self._room_waiters.remove(waker)
        if gave_up:
            with self.lock:
                self._release_room()

    # -- called by workers ---------------------------------------------------------------------

    def next_step(self, now_s: float, waker: Waker, previous: Optional[Waker], *, idle: bool = False) -> Step:
        """Say what a worker does next. To sleep, it waits on *waker*; *previous* is its last one.

        idle: the worker was spare and slept its whole time.
        """
        with self.lock:
            self._unpark(previous)
            is_kept = not self.closing or self._is_adopting
            if self._disk is not None and self._disk.wants_upkeep and is_kept and not self._in_upkeep:
                self._in_upkeep = True
                return Step(upkeep=True)
            step = self._try_lease(now_s)
            if step is not None:
                return step
            is_last = self.workers <= 1
            has_rest = self.queue.waiting().events or self._is_adopting
            is_over = self.closing and (self.given_up or not has_rest)
            if is_over or (idle and not is_last):
                return self._leave()
            return self._park(now_s, waker)

    @property
    def _is_adopting(self) -> bool:
        """Whether events of exited processes are to be read before this client is closed."""
        adopting = 0 if self._disk is None else self._disk.adopting
        return adopting > 0 and any(flush.adopts for flush in self._flushes)

    def _try_lease(self, now_s: float) -> Optional[Step]:
        if self.given_up or self._due_in(now_s) != 0.0:
            return None
        batch = self.queue.take(self._limits)
        if batch is None:
            return None
        if self._in_flight:
            self._watch_s = PATIENCE_S
        self._in_flight += 1
        # What is left now came after the last take, and after the first event was seen.
        since_s = now_s if self._first_seen_s is None else self._first_seen_s
        if not self.queue.is_cut:
            since_s = max(self._last_take_s, since_s)
        self._first_seen_s = since_s if self.queue.waiting().events else None
        self._last_take_s = now_s
        due_s = self._due_in(now_s)
        is_watched = self._timed is not None and self._timed_until_s <= now_s + WATCH_CAP_S
        helper = due_s is not None and due_s <= PATIENCE_S and not is_watched
        self._arm(now_s)
        if self._room_waiters:
            self._release_room()
        return Step(batch=batch, helper=helper)

    def _due_in(self, now_s: float) -> Optional[float]:
        """Seconds until a batch may be leased: 0.0 for now, None if nothing here decides when."""
        waiting = self.queue.waiting()
        if not waiting.events:
            self._first_seen_s = None
            return None
        if self._first_seen_s is None:
            # With a worker on watch the first event is seen as it comes; else it came since the last take.
            self._first_seen_s = now_s if self._on_watch else self._last_take_s
        if self._in_flight >= self.gate.limit:
            return None
        blocked_s = self.gate.blocked_s(now_s)
        if blocked_s > 0.0:
            return blocked_s
        due_s: Optional[float] = 0.0
        if not (self.closing or self._flushes or self.queue.has_returned):
            age_s = now_s - self._first_seen_s
            due_s = batching.wait_s(waiting.events, waiting.size_bytes, age_s, self._limits)
        if due_s == 0.0 and self._in_flight:
            return max(0.0, PATIENCE_S - (now_s - self._last_take_s))
        return due_s

    def _park(self, now_s: float, waker: Waker) -> Step:
        """Put a worker to sleep, unless there is work after all."""
        self._parked.append(waker)
        self._arm(now_s)
        # Looked at only now: what came before `wake_at` was set woke nobody.
        due_s = self._due_in(now_s)
        retry_s = None if self._disk is None else self._disk.retry_in_s(now_s)
        if retry_s is not None:
            due_s = retry_s if due_s is None else min(due_s, retry_s)
        if due_s is not None and self._timed is None:
            if self._in_flight and due_s <= PATIENCE_S:
                due_s = max(due_s, self._watch_s)
                self._watch_s = min(2 * self._watch_s, WATCH_CAP_S)
            self._timed = waker
            self._timed_until_s = now_s + due_s
            return Step(wait_s=due_s)
        spare = self.workers > 1
        return Step(wait_s=SPARE_WORKER_S if spare else None, spare=spare)

    def _leave(self) -> Step:
        self.workers -= 1
        if self.workers == 0:
            self._set_wake_at(0, self._wake_at_bytes)
        return Step(leave=True)

    def _unpark(self, waker: Optional[Waker]) -> None:
        if waker is None:
            return
        if self._timed is waker:
            self._timed = None
        with contextlib.suppress(ValueError):  # whoever woke this worker took it out
            self._parked.remove(waker)

    def _arm(self, now_s: float) -> None:
        """Set at how many waiting events a caller must wake somebody."""
        is_quiet = self._in_flight == 0 and self._first_seen_s is None
        may_start = self.workers < self.gate.limit
        if self.workers == 0 or (is_quiet and self._parked):
            wake_at = 0
        elif (
            self._in_flight >= self.gate.limit
            or self.gate.blocked_s(now_s) > 0
            or not (self._parked or may_start)
        ):
            wake_at = NEVER
        else:
            wake_at = self._limits.max_events - 1
        self._on_watch = wake_at == 0
        held, waiting = self.queue.size_bytes, self.queue.waiting().size_bytes
        self._set_wake_at(wake_at, NEVER if wake_at == NEVER else held - waiting + self._limits.max_bytes)

    def upkeep(self) -> None:
        """Do what a step said; it may take milliseconds, of the disk's, and holds nobody up."""
        assert self._disk is not None
        try:
            add = self._disk.upkeep()
            with self.lock:
                add()
                self._release_room()
                self._end_flushes()  # there may have been nothing to adopt, or it is all settled
                if self._disk.trouble is not None:
                    self._give_up_flushes(also_patient=False)
        finally:
            self._in_upkeep = False

    def settle(self, batch: Batch, answer: Answer, now_s: float, wall_s: float, *, gzipped: bool) -> None:
        """Take in the answer to the last try of a batch, and do what it means."""
        verdict = judge(answer, events=len(batch), gzipped=gzipped)
        with self.lock:
            self._in_flight -= 1
            self._deaths_in_a_row = 0
            if verdict.action is Action.ACK:
                outcome = self._ack(batch, answer)
            elif verdict.action is Action.REJECT:
                error = error_of(answer, wall_s, self._config.redact)
                outcome = self._reject(batch, answer, verdict.reason, error, now_s)
            elif verdict.action is Action.SPLIT:
                self.queue.split(batch)
                outcome = _Outcome()
            elif verdict.action is Action.PLAIN:
                self.compress = False
                self.queue.nack(batch)
                outcome = _Outcome(None, logging.INFO, "the API takes no gzip; sending plain from now on")
            else:
                problem = str(error_of(answer, wall_s, self._config.redact))
                outcome = self._keep(batch, answer, problem, now_s, verdict.action)
            lines = [outcome]
            if verdict.action not in (Action.KEEP, Action.WAIT, Action.PAUSE):
                lines.append(self._is_served(now_s))
        for line in lines:
            if line.line is not None:
                logger.log(line.level, "%s", line.line)
        try:
            self._deliver_reports(outcome.report)
        finally:
            if self._flushes or self._room_waiters:
                with self.lock:  # after the reports, so that a flush ends when its hooks were called
                    self._end_flushes()
                    self._release_room()

    def _is_served(self, now_s: float) -> _Outcome:
        """The server took a request for what it is: an outage, if there was one, is over."""
        self.gate.succeeded(now_s)
        if not self._outage.is_on:
            return _Outcome()
        line = self._outage.recovered(now_s, self.queue.counts()[2], self._delivered)
        return _Outcome(None, logging.INFO, line)

    def _ack(self, batch: Batch, answer: Answer) -> _Outcome:
        self._count_try(batch)
        self.queue.ack(batch)
        self._delivered += len(batch)
        return _Outcome(_report("delivered", batch, "ok", answer))

    def _reject(
        self, batch: Batch, answer: Answer, reason: str, error: WindbackError, now_s: float
    ) -> _Outcome:
        report = _report("rejected", batch, reason, answer, error.message)
        is_kept = self.queue.reject(batch, report)
        self._rejected[reason] += len(batch)
        line = None
        if now_s >= self._next_rejection_line_s:
            self._next_rejection_line_s = now_s + OutageLog.EVERY_S
            where = "; they are kept as dead letters" if is_kept else ""
            line = f"the API rejects events, {sum(self._rejected.values())} so far; the last: {error}{where}"
        return _Outcome(report, logging.WARNING, line)

    def _keep(self, batch: Batch, answer: Answer, problem: str, now_s: float, action: Action) -> _Outcome:
        """Hold on to a batch that could not be delivered, and close the gate for a while."""
        report = None
        # Where there was an answer the fault may be with this batch; else nothing gets through.
        if self._nack_or_drop(batch, others_first=action is Action.KEEP and answer.status is not None):
            report = _report("dropped", batch, "closed", answer, problem)
        if self.given_up:
            return _Outcome(report)  # whoever closed the client was told, and nothing is sent any more
        if action is Action.PAUSE:
            self.gate.refused(now_s, problem)
        elif action is Action.KEEP:
            self.gate.failed(now_s, random.random(), problem)
        elif not self.gate.is_stuck(self._config.max_retries, problem):
            return _Outcome(report)  # `try_failed` closed the gate; that is no outage yet
        self._give_up_flushes(also_patient=action is Action.PAUSE)
        line = self._outage.trouble(now_s, problem, self.queue.counts()[2], self._delivered)
        return _Outcome(report, logging.WARNING, line)

    def abandon(self, batch: Batch) -> None:
        """Give back a batch whose worker was cancelled, or died; it is sent again under the same key."""
        with self.lock:
            self._in_flight -= 1
            batch.was_tried = True
            is_dropped = self._nack_or_drop(batch)
        if is_dropped:
            self._deliver_reports(_report("dropped", batch, "closed", Answer(None)))

    def _nack_or_drop(self, batch: Batch, *, others_first: bool = False) -> bool:
        """Keep a batch that is not delivered; return True if it was dropped instead.

        That is what becomes of it once the client has given up, unless it is on disk for who comes next.
        """
        if self.given_up and batch.source is None:
            self.queue.ack(batch)
            self._dropped["closed"] += len(batch)
            return True
        (self.queue.set_back if others_first else self.queue.nack)(batch)
        return False

    def retire(self, waker: Optional[Waker], now_s: float, *, died: bool) -> None:
        """A worker ended in another way than by a step that said so; the next call starts another."""
        with self.lock:
            self._unpark(waker)
            self._leave()
            if died:
                self._deaths += 1
                self._deaths_in_a_row += 1
                if self._deaths_in_a_row >= _DEATHS_IN_A_ROW:
                    # Starting one after the other would get nowhere, and busily.
                    self.gate.failed(now_s, random.random(), "each worker that is started dies at once")
                    self._give_up_flushes(also_patient=False)
            self._wake_one()  # what this worker would have done next is another's
            if self.workers == 0:
                for flush in self._flushes:  # whoever waits must see that nobody works for it
                    flush.waker.release()

    def log_death(self, error: BaseException, now_s: float) -> None:
        """Write why a worker died, at most once a minute; stats() counts them all."""
        with self.lock:
            if now_s < self._next_death_line_s:
                return
            self._next_death_line_s = now_s + OutageLog.EVERY_S
        logger.warning("a worker ended with %s; the next event starts another", type(error).__name__)
        logger.debug("it was", exc_info=error)

    def reclaim(self) -> None:
        """Take back the batches of workers whose event loop is gone; their keys show a repeat as such."""
        with self.lock:
            self.queue.reclaim()
            self._in_flight = 0
            self.workers = 0

    def retry_policy(self, deadline_s: Optional[float] = None) -> RetryPolicy:
        """Return which tries a batch gets: no more of them once the client has given up."""
        config = self._config
        return RetryPolicy(
            config.max_retries,
            config.timeout,
            deadline_s=deadline_s,
            gated=True,
            is_over=lambda: self.given_up,
        )

    def try_failed(self, batch: Batch, answer: Answer, now_s: float, wall_s: float) -> None:
        """Take in the answer to a try that failed; another try may follow before `settle`."""
        with self.lock:
            self._count_try(batch)
            self.gate.last_failure = str(error_of(answer, wall_s, self._config.redact))
            if is_throttle(answer):
                self.gate.throttled(now_s, random.random(), retry_after_s(answer, wall_s))
                if self._on_throttle is not None:
                    self._on_throttle(self.gate.blocked_s(now_s))

    def _count_try(self, batch: Batch) -> None:
        self._requests += 1
        self._retries += batch.was_tried
        batch.was_tried = True

    def sleeper(self, waker: Waker) -> None:
        """Have *waker* released by a flush or a close: it is waiting out a backoff."""
        with self.lock:
            self._sleepers.append(waker)

    def awake(self, waker: Waker) -> None:
        """The counterpart of `sleeper`."""
        with self.lock:
            if waker in self._sleepers:
                self._sleepers.remove(waker)

    def _release_room(self) -> None:
        """Wake as many callers as there is room for; each tries again, and may have to wait again."""
        if self._intake is None or not self._room_waiters:
            return
        for _ in range(min(len(self._room_waiters), self._intake.room())):
            self._room_waiters.popleft().release()

    def _wake_one(self) -> None:
        if self._parked:
            self._parked.pop().release()

    # -- flush, close, stats -------------------------------------------------------------------

    def begin_flush(self, waker: Waker, *, patient: bool, adopts: bool = False) -> Flush:
        """Start to send everything that was accepted so far; *waker* is released when it is done.

        adopts: what exited processes left in the journal counts, too.
        """
        adopts = adopts and not self.exiting and self._disk is not None
        if adopts and self._disk is not None:
            self._disk.look()
        with self.lock:
            _, target = self.queue.positions()
            flush = Flush(target, waker, patient=patient, adopts=adopts, before=self._snapshot())
            if not self._unsettled(flush):
                flush.done = True
                return flush
            self._flushes.append(flush)
            self.gate.hurry()
            self._wake_all()
        return flush

    def end_flush(self, flush: Flush) -> FlushResult:
        """Stop waiting, and say what there is to say."""
        with self.lock:
            if flush in self._flushes:
                self._flushes.remove(flush)
            after, before = self._snapshot(), flush.before
            pending = self._unsettled(flush)
        return FlushResult.between(before, after, pending)

    def begin_close(self) -> None:
        """Accept nothing more, and let the workers leave once the queue is empty."""
        with self.lock:
            if self._intake is not None and self._intake.refusals.closed is None:
                self._intake.close("closed")
            self.closing = True
            self.gate.hurry()
            self._wake_all()

    def discard(self) -> int:
        """Drop what still waits, and count it; what is in a request now is settled by its answer."""
        with self.lock:
            self.given_up = True
            batches = self.queue.discard()
            for batch in batches:
                self.queue.ack(batch)
                self._dropped["closed"] += len(batch)
            self._end_flushes()
            self._wake_all()
        for batch in batches:
            self._deliver_reports(DeliveryReport("dropped", len(batch), "closed", _records=batch.records))
        return sum(map(len, batches))

    def stats(self) -> Stats:
        """Return the counters at one instant."""
        with self.lock:
            return self._snapshot()

    def _snapshot(self) -> Stats:
        accepted, evicted, pending, leased = self.queue.counts()
        dropped = {**self._dropped, **({"queue_full": evicted} if evicted else {})}
        return Stats(
            accepted=accepted,
            delivered=self._delivered,
            rejected=sum(self._rejected.values()),
            dropped=sum(dropped.values()),
            pending=pending,
            in_flight=leased,
            pending_bytes=self.queue.size_bytes,
            refused={} if self._intake is None else self._intake.refusals.counts(),
            rejected_by_reason=dict(self._rejected),
            dropped_by_reason=dropped,
            requests=self._requests,
            retries=self._retries,
            workers=self.workers,
            worker_deaths=self._deaths,
            hook_errors=self._hooks.errors,
            adopted=self.queue.adopted,
            journal_bytes=0 if self._disk is None else self._disk.size_on_disk,
            problem=self.gate.problem(clock.now_s()) or (None if self._disk is None else self._disk.trouble),
        )

    def _unsettled(self, flush: Flush) -> int:
        """Return how many of the events that a flush is about are still here."""
        pending = min(self.queue.unsettled_before(flush.target), self.queue.counts()[2])
        return max(pending, self._disk.adopting) if flush.adopts and self._disk is not None else pending

    def _end_flushes(self) -> None:
        for flush in list(self._flushes):
            if not self._unsettled(flush):
                self._end(flush)

    def _give_up_flushes(self, *, also_patient: bool) -> None:
        """The server can't be reached, or (also_patient) won't take anything from us for a long time."""
        for flush in list(self._flushes):
            if also_patient or not flush.patient:
                self._end(flush)

    def _end(self, flush: Flush) -> None:
        flush.done = True
        self._flushes.remove(flush)
        flush.waker.release()

    def _wake_all(self) -> None:
        for sleepers in (self._parked, self._sleepers, self._room_waiters if self.closing else deque()):
            while sleepers:
                try:
                    waker = sleepers.pop()
                except IndexError:  # a caller was faster
                    break
                waker.release()

    # -- reports -------------------------------------------------------------------------------

    def _deliver_reports(self, report: Optional[DeliveryReport]) -> None:
        """Give on_delivery what there is to report, without the lock."""
        if not self._hooks.wants_reports:
            return
        with self.lock:
            evicted = self.queue.counts()[1]
            unreported, self._reported_evictions = evicted - self._reported_evictions, evicted
        reports = [] if report is None else [report]
        if unreported:
            reports.append(DeliveryReport("dropped", unreported, "queue_full"))
        for each in reports:
            self._hooks.report(each)


def _report(
    outcome: Outcome, batch: Batch, reason: str, answer: Answer, message: Optional[str] = None
) -> DeliveryReport:
    return DeliveryReport(outcome, len(batch), reason, answer.status, message, batch.key, batch.records)
