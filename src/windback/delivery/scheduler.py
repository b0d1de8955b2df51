"""What the workers of one queue share: what to do next, and what an answer means for a batch.

Sans I/O: nothing here sends, sleeps or starts anything, and but for `stats` the time is an argument. A
worker, a thread or a task, asks `next_step`, executes the step, and passes the answer to `settle`.

One lock guards the decisions, and it is the workers' alone. What an application may call at any moment, also
from a signal handler, a finalizer, a logging handler or a hook, never waits for it: `track_event`, `stats`,
and a flush, which leaves a mark that the next worker finds. The state is in plain objects: `Parking` has the
workers and everything that sleeps, `Flushes` those who wait for delivery, `Accounts` the counters, `Gate`
whether anything may be sent. Nothing of an application's runs under the lock: log lines, reports and wake-ups
are collected and made after it.

An exception may strike at any instruction, in a caller or a worker. Each change is therefore one step, or
the next worker finds the unfinished work: it gives back a lease that no worker holds, and does not count
a worker that ended.
"""

from __future__ import annotations

import logging
import threading
from typing import Callable, List, Optional

from .. import clock, log
from ..api.answer import Answer, error_of, retry_after_s
from ..clock import Moment
from ..config import Config
from ..event.batch import Batch, Limits, Waiting
from ..queue.intake import NEVER
from ..queue.protocol import Queue
from ..stats import DeliveryReport, FlushResult, Stats, nonzero
from .accounts import Accounts
from .flushes import Flush, Flushes
from .gate import Gate
from .hooks import Hooks, report_of
from .lines import Lines
from .pace import Pace
from .parking import Parking, Step, Waker, Worker
from .retry import RetryPolicy, jitter
from .verdict import Action, is_throttle, judge

#: A worker beyond the first goes when it had nothing to do for this long.
SPARE_WORKER_S = 5.0
#: After this many workers that ended without settling a batch there is a pause, as in an outage.
_DEATHS_IN_A_ROW = 3


#: Starts a worker and returns whether it could.
StartWorker = Callable[[Worker], bool]


class Scheduler:
    """Decides what each worker does next, and records the results."""

    def __init__(
        self,
        config: Config,
        start_worker: StartWorker,
        queue: Queue,
        hooks: Hooks,
        on_throttle: Optional[Callable[[float], None]] = None,
    ) -> None:
        """on_throttle: called with the seconds for which the API wants nothing of this project."""
        self._config = config
        self.hooks = hooks
        self._on_throttle = on_throttle
        self._limits = Limits(config.batch_size, config.max_batch_bytes, config.flush_interval)
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
        if self._intake is not None and not self._config.enabled:
            self._intake.close("disabled")
        #: The workers'. A signal handler that flushes may meet it again in the thread that holds it.
        self.lock = threading.RLock()
        self.parking = Parking()
        self.flushes = Flushes(self._is_settled)
        self.accounts = Accounts()
        self.gate = Gate(self._config.max_in_flight)
        self.pace = Pace(self._limits, self.queue, self._intake, self.parking, self.flushes, self.gate)
        self.compress = self._config.compress
        #: Nothing is retried any more: the deadline of close() or of the exit has passed.
        self.given_up = False
        #: The interpreter is going down: no thread may be started.
        self.exiting = False
        #: The worker that maintains the files.
        self._maintainer: Optional[Worker] = None
        self.lines = Lines(self.queue, self.accounts)
        self._deaths_in_a_row = 0
        self._reported_evictions = 0

    @property
    def workers(self) -> int:
        """How many workers there are."""
        return len(self.parking.workers)

    # -- called by track_event: without a lock -------------------------------------------------

    def wake(self) -> None:
        """Wake a sleeping worker, or start one if there may be more. Never waits."""
        try:
            self.pace.set_wake_at(NEVER, NEVER)  # the worker that wakes sets it again
            self.call_helper()
        except BaseException:
            self.look_again()  # perhaps no worker was woken
            raise

    def look_again(self) -> None:
        """Make the next event wake a worker, or start one."""
        self.pace.set_wake_at(0, NEVER)

    def call_helper(self) -> None:
        """Get one more worker to look at the queue: a sleeping one, else a new one."""
        if not self.parking.wake_worker():
            self.add_worker()

    def add_worker(self) -> bool:
        """Start a worker if there may be one more; False if there may not, or the system refuses."""
        worker = Worker()
        try:
            if not self.parking.join(worker, self.gate.limit):
                return False
            if self._start_worker(worker):
                return True
        except BaseException:
            # If it was started after all, it joins again.
            self.parking.leave(worker)
            raise
        self.parking.leave(worker)
        self.look_again()  # nobody may be awake, so callers must ask again
        return False

    def wait_for_room(self, waker: Waker, size: int) -> bool:
        """Arrange for *waker* to be released when *size* bytes may fit; False if they do, or never will."""
        assert self._intake is not None
        self.parking.wait_for_room(waker)
        return not self._intake.has_room_for(size) and not self.flushes.are_closing

    def stop_waiting(self, waker: Waker, *, gave_up: bool) -> None:
        """The counterpart of `wait_for_room`; a caller that gave up leaves the room to the next."""
        self.parking.stop_waiting(waker)
        if gave_up:
            self._wake_callers()

    def _wake_callers(self) -> None:
        """Wake as many callers as there is room for."""
        if self._intake is not None and self.parking.callers:
            self.parking.wake_callers(self._intake.room())

    # -- called by workers ---------------------------------------------------------------------

    def next_step(self, worker: Worker, now_s: float, waker: Waker, *, idle: bool = False) -> Step:
        """Return what a worker does next. To sleep, it waits on *waker*, a new one each time.

        idle: the worker was spare and slept its whole time.
        """
        with self.lock:
            step = self._next_step(worker, now_s, waker, idle=idle)
        if step.batch is not None:
            self._wake_callers()
        log.write()
        if step.missing:
            self._deliver_reports(DeliveryReport("dropped", step.missing, "journal_removed"))
            self.flushes.look()
        return step

    def _next_step(self, worker: Worker, now_s: float, waker: Waker, *, idle: bool) -> Step:
        self.pace.woke(worker)
        self.parking.unpark(worker)
        self.parking.workers[worker] = None
        self._open_gate()
        self._take_back()
        if self._needs_maintenance:
            self._maintainer = worker
            return Step(maintain=True)
        waiting = self.queue.waiting()
        step = None if self.given_up else self._try_lease(worker, now_s, waiting)
        if step is not None:
            return step
        is_last = len(self.parking.workers) <= 1
        has_rest = waiting.events > 0 or self._is_adopting
        is_over = self.flushes.are_closing and (self.given_up or not has_rest)
        if is_over or (idle and not is_last):
            self._leave(worker)
            return Step(leave=True)
        return self._park(worker, now_s, waker)

    def _open_gate(self) -> None:
        """Open the gate if a flush or a close began; what closes it comes after this, and counts."""
        if self.flushes.has_new:
            self.flushes.see()
            self.gate.open_early()

    @property
    def _needs_maintenance(self) -> bool:
        if self._disk is None or not self._disk.needs_maintenance:
            return False
        is_maintained = self._maintainer is not None and self._maintainer in self.parking.workers
        return not is_maintained and (not self.flushes.are_closing or self._is_adopting)

    @property
    def _is_adopting(self) -> bool:
        """Whether events of exited processes are to be read before this client is closed."""
        return self._disk is not None and self._disk.adopting > 0 and self.flushes.adopt

    def _take_back(self) -> None:
        """Give back what no worker holds: an exception struck the one that did."""
        for batch in self.queue.leased.difference(self.parking.batches):
            batch.was_tried = True
            self._nack_or_drop(batch)

    def _try_lease(self, worker: Worker, now_s: float, waiting: Waiting) -> Optional[Step]:
        if self.pace.due_in(now_s, waiting) != 0.0:
            return None
        try:
            batch = self.queue.take(self._limits)
        except OSError as error:  # of the disk, or the process has no descriptor left to read a file
            problem = f"the journal can't be read ({error.strerror or error})"
            self._is_trouble(Action.KEEP, problem, now_s, is_new=False)
            return None
        if batch is None:
            return None
        if batch.is_missing:
            return self._drop_missing(batch)
        worker.batch = batch
        return Step(batch=batch, helper=self.pace.took(batch, waiting, now_s))

    def _drop_missing(self, batch: Batch) -> Step:
        """Count events as dropped whose file somebody removed."""
        self.queue.ack(batch, self.accounts.dropped("journal_removed"))
        self.lines.missing(len(batch))
        return Step(wait_s=0.0, missing=len(batch))

    def _park(self, worker: Worker, now_s: float, waker: Waker) -> Step:
        """Put a worker to sleep, unless there is work after all."""
        self.parking.park(worker, waker)
        self.pace.arm(now_s)
        # Checked only now: events from before `wake_at` was set, or before it was parked, woke no worker.
        if self.flushes.has_new:
            return Step(wait_s=0.0)
        retry_s = None if self._disk is None else self._disk.retry_in_s(now_s)
        wait_s = self.pace.sleeps_for(worker, now_s, retry_s)
        if wait_s is not None:
            return Step(wait_s=wait_s)
        spare = len(self.parking.workers) > 1
        return Step(wait_s=SPARE_WORKER_S if spare else None, spare=spare)

    def _leave(self, worker: Worker) -> None:
        self.parking.leave(worker)
        if not self.parking.workers:
            self.look_again()

    def maintain(self) -> None:
        """Maintain the files, as a step requested. It may wait for the disk, and blocks no other worker."""
        assert self._disk is not None
        try:
            add = self._disk.maintain()
            with self.lock:
                add()
        finally:
            self._maintainer = None
            self.flushes.look()  # there may have been nothing to adopt, or it is all settled
            if self._disk.trouble is not None:
                self.flushes.end(self.flushes.hopeless(also_with_timeout=False))
            self._wake_callers()
            log.write()

    def settle(self, worker: Worker, answer: Answer, at: Moment, *, gzipped: bool) -> None:
        """Apply the answer to the last try of a worker's batch; `put_down` follows in any case."""
        batch = worker.batch
        assert batch is not None
        verdict = judge(answer, events=len(batch), gzipped=gzipped)
        config = self._config
        error = None if answer.ok else error_of(answer, at.wall_s, config.redact, config.base_url)
        hopeless: List[Flush] = []
        report: Optional[DeliveryReport] = None
        with self.lock:
            self._open_gate()
            self._deaths_in_a_row = 0
            if verdict.action is Action.ACK:
                self._count_try(batch, answer)
                report = report_of("delivered", batch, "ok", answer)
                self.queue.ack(batch, self.accounts.delivered)
            elif verdict.action is Action.REJECT:
                assert error is not None
                report = report_of("rejected", batch, verdict.reason, answer, error.message)
                is_kept = self.queue.reject(batch, report, self.accounts.rejected(verdict.reason))
                self.lines.rejected(at.now_s, error, is_kept=is_kept)
            elif verdict.action is Action.SPLIT:
                self.queue.split(batch)
            elif verdict.action is Action.PLAIN:
                self.compress = False
                self._give_back(worker, batch)
                log.later(logging.INFO, "the API takes no gzip; sending plain from now on")
            else:
                problem = str(error)
                # Where there was an answer the fault may be with this batch; else nothing gets through.
                others_first = verdict.action is Action.KEEP and answer.status is not None
                is_new = others_first and not batch.failures
                is_at_fault = others_first and not is_new and self.queue.has_settled_since(batch)
                if self._give_back(worker, batch, others_first=others_first):
                    report = report_of("dropped", batch, "closed", answer, problem)
                if not is_at_fault and self._is_trouble(verdict.action, problem, at.now_s, is_new=is_new):
                    hopeless = self.flushes.hopeless(also_with_timeout=verdict.action is Action.PAUSE)
            if verdict.action not in (Action.KEEP, Action.WAIT, Action.PAUSE):
                if self.gate.is_down:
                    self.lines.recovered(at.now_s)
                self.gate.succeeded(at.now_s)
        log.write()
        self._deliver_reports(report)
        self.flushes.end(hopeless)

    def _is_trouble(self, action: Action, problem: str, now_s: float, *, is_new: bool) -> bool:
        """Close the gate for a while after a batch could not be delivered; whether flushes should give up.

        is_new: this batch never failed before, and the fault may be with it.
        """
        if self.given_up:
            return False  # close() has returned, and nothing is sent any more
        if action is Action.PAUSE:
            self.gate.refused(now_s, problem)
        elif action is Action.KEEP:
            self.gate.failed(now_s, jitter(), problem, is_new=is_new)
        elif not self.gate.is_stuck(self._config.max_retries, problem):
            return False  # `try_failed` closed the gate; that is not an outage yet
        self.lines.trouble(now_s, problem)
        return True

    def put_down(self, worker: Worker) -> None:
        """End what a worker did with its batch. What is not settled is given back, under the same key."""
        batch = worker.batch
        if batch is not None:
            is_dropped = False
            with self.lock:
                if batch in self.queue.leased:
                    batch.was_tried = True
                    is_dropped = self._give_back(worker, batch)
                worker.batch = None
            if is_dropped:
                self._deliver_reports(report_of("dropped", batch, "closed", Answer(None)))
        # After the reports: when a flush ends, its hooks were called.
        self.flushes.look()
        self._wake_callers()
        log.write()

    def _give_back(self, worker: Worker, batch: Batch, *, others_first: bool = False) -> bool:
        is_dropped = self._nack_or_drop(batch, others_first=others_first)
        if not is_dropped:
            worker.batch = None  # from now on another worker may take it
        return is_dropped

    def _nack_or_drop(self, batch: Batch, *, others_first: bool = False) -> bool:
        """Keep a batch that is not delivered; return True if it was dropped instead.

        A client that gave up drops it, unless it is on disk for the next process.
        """
        if self.given_up and batch.source is None:
            self.queue.ack(batch, self.accounts.dropped("closed"))
            return True
        (self.queue.set_back if others_first else self.queue.nack)(batch)
        return False

    def retire(self, worker: Worker, now_s: float, *, died: bool) -> None:
        """A worker ended without a step that ends it; the next call starts another."""
        self.put_down(worker)
        hopeless: List[Flush] = []
        with self.lock:
            if worker not in self.parking.workers:  # a step ended it
                return
            self._leave(worker)
            if died:
                self._open_gate()
                self.accounts.worker_deaths.add()
                self._deaths_in_a_row += 1
                if self._deaths_in_a_row >= _DEATHS_IN_A_ROW:
                    # Starting one after the other would get nowhere, and busily.
                    self.gate.failed(now_s, jitter(), "each worker that is started ends immediately")
                    hopeless = self.flushes.hopeless(also_with_timeout=False)
        self.flushes.end(hopeless)
        self.parking.wake_worker()  # it does what this worker would have done next
        if not self.workers:
            self.flushes.wake()  # those who wait must see that no worker is left

    def reclaim(self) -> None:
        """Take back the batches of workers whose event loop is gone; their keys show a repeat as such."""
        with self.lock:
            self.parking.workers.clear()
            self.queue.reclaim()

    def retry_policy(self, deadline_s: Optional[float] = None) -> RetryPolicy:
        """Return which tries a batch gets: no more of them once the client has given up."""
        config = self._config
        tries, is_over = (config.max_retries, config.timeout), lambda: self.given_up
        return RetryPolicy(*tries, deadline_s=deadline_s, gated=True, is_over=is_over)

    def try_failed(self, batch: Batch, answer: Answer, at: Moment) -> None:
        """Apply the answer to a try that failed; another try may follow before `settle`."""
        self._count_try(batch, answer)
        failure = str(error_of(answer, at.wall_s, self._config.redact))
        is_throttled = is_throttle(answer)
        with self.lock:
            self._open_gate()
            self.gate.last_failure = failure
            if is_throttled:
                self.gate.throttled(at.now_s, jitter(), retry_after_s(answer, at.wall_s))
        if is_throttled and self._on_throttle is not None:
            self._on_throttle(self.gate.blocked_s(at.now_s))

    def _count_try(self, batch: Batch, answer: Answer) -> None:
        self.accounts.requests.add(1 + answer.repeats)
        repeats = answer.repeats + batch.was_tried
        if repeats:
            self.accounts.retries.add(repeats)
        batch.was_tried = True

    # -- flush, close, stats: by anybody, at any moment -------------------------------------------

    def begin_flush(self, waker: Waker, *, has_timeout: bool, adopts: bool = False) -> Flush:
        """Start to send everything that was accepted so far; *waker* is released when it is done.

        adopts: what exited processes left in the journal counts, too.
        """
        adopts = adopts and not self.exiting and self._disk is not None
        if adopts and self._disk is not None:
            self._disk.look()
        flush = Flush(
            self.queue.next_position(), waker, has_timeout=has_timeout, adopts=adopts, before=self.stats()
        )
        if self._is_settled(flush):
            flush.done = True
            return flush
        self.flushes.add(flush)
        self.parking.wake_all()
        return flush

    def _is_settled(self, flush: Flush) -> bool:
        """Whether everything that a flush is about is settled, and reported."""
        return not self._unsettled(flush) and all(
            batch.position >= flush.target for batch in self.parking.batches
        )

    def _unsettled(self, flush: Flush) -> int:
        """Return how many of the events that a flush is about are still here."""
        pending = self.queue.unsettled_before(flush.target)
        return max(pending, self._disk.adopting) if flush.adopts and self._disk is not None else pending

    def end_flush(self, flush: Flush) -> FlushResult:
        """Stop waiting, and return the result."""
        self.flushes.forget(flush)
        after = self.stats()
        pending = self._unsettled(flush)
        return FlushResult.between(flush.before, after, pending)

    def begin_close(self) -> None:
        """Accept nothing more, and let the workers leave once the queue is empty."""
        if self._intake is not None and self._intake.refusals.closed is None:
            self._intake.close("closed")
        self.flushes.begin_close()
        self.parking.wake_all()
        self.parking.wake_callers(NEVER)

    def discard(self) -> int:
        """Drop what still waits, and count it; what is in a request now is settled by its answer."""
        counter = self.accounts.dropped("closed")
        with self.lock:
            self.given_up = True
            batches = self.queue.discard()
            for batch in batches:
                self.queue.ack(batch, counter)
        self.flushes.expedite()
        self.flushes.look()
        self.parking.wake_all()
        self.parking.wake_callers(NEVER)
        log.write()
        for batch in batches:
            self._deliver_reports(DeliveryReport("dropped", len(batch), "closed", _records=batch.records))
        return sum(map(len, batches))

    def stats(self) -> Stats:
        """Return the counters at one moment. Takes no lock."""
        return self.accounts.snapshot(
            self.queue,
            refused={} if self._intake is None else nonzero(self._intake.refusals.counters),
            workers=len(self.parking.workers),
            hook_errors=self.hooks.errors.value(),
            journal_bytes=0 if self._disk is None else self._disk.writer.size,
            problem=self.gate.problem(clock.now_s()) or (None if self._disk is None else self._disk.trouble),
        )

    # -- reports -------------------------------------------------------------------------------

    def _deliver_reports(self, report: Optional[DeliveryReport]) -> None:
        """Give on_delivery what there is to report, without the lock."""
        if not self.hooks.wants_reports:
            return
        with self.lock:
            evicted = self.queue.counts()[1]
            unreported, self._reported_evictions = evicted - self._reported_evictions, evicted
        reports = [] if report is None else [report]
        if unreported:
            reports.append(DeliveryReport("dropped", unreported, "queue_full"))
        for each in reports:
            self.hooks.report(each)
