"""The step machine of the workers, driven by hand: no thread, no socket, and a clock that stands still."""

from __future__ import annotations

import logging
import time

import pytest
from inside import config_of
from sides import Sides

import windback
from windback import clock
from windback.api.answer import Answer, Failure
from windback.clock import Moment
from windback.delivery import retry
from windback.delivery.hooks import Hooks
from windback.delivery.pace import HELP_AFTER_LEAST_S, HELP_AFTER_S, WATCH_CAP_S
from windback.delivery.parking import Worker
from windback.delivery.refusals import log_refusal
from windback.delivery.scheduler import SPARE_WORKER_S, Scheduler, Step
from windback.queue.intake import NEVER, Refusals
from windback.queue.memory import MemoryQueue

OK = Answer(200)
#: The one answer that rejects a batch as a whole.
NOT_ALLOWED = Answer(None, failure=Failure.FORBIDDEN, detail="twice")
LINGER = 2.0


class Waker:
    """Counts how often it was released."""

    def __init__(self):
        self.releases = 0

    def release(self):
        self.releases += 1

    @property
    def is_awake(self):
        return self.releases > 0


class World:
    """A scheduler with a clock of its own, and workers that this test plays."""

    def __init__(self, **options):
        options = {"batch_size": 10, "flush_interval": LINGER, "max_in_flight": 3, **options}
        config = config_of(windback.Windback("sk_test_1", base_url="http://127.0.0.1:9", **options))
        self.now = 1_000.0
        self.started = 0
        self.can_start = True
        self._idle = []
        refusals = Refusals(config.overflow, log_refusal)
        self.whole_queue = MemoryQueue(config.max_queue_size, config.max_queue_bytes, refusals)
        self.scheduler = Scheduler(config, self.start, self.whole_queue, Hooks(config))
        self.queue = Sides(self.whole_queue)

    def start(self, worker):
        if self.can_start:
            self.started += 1
            self._idle.append(worker)
        return self.can_start

    def put(self, count=1, size=8):
        for _ in range(count):
            assert self.queue.put(b"x" * size)

    def worker(self):
        """Play a worker that was started, or one more."""
        return Played(self, self._idle.pop(0) if self._idle else Worker())

    def settle(self, batch, answer=OK):
        worker = self.holder(batch)
        if not answer.ok:
            self.scheduler.try_failed(batch, answer, Moment(self.now, self.now))
        try:
            self.scheduler.settle(worker, answer, Moment(self.now, self.now), gzipped=False)
        finally:
            self.scheduler.put_down(worker)

    def holder(self, batch):
        (worker,) = (each for each in self.scheduler.parking.workers if each.batch is batch)
        return worker

    @property
    def stats(self):
        return self.scheduler.stats()


class Played:
    """One worker's place in the protocol; `step` asks what comes next."""

    def __init__(self, world, worker):
        self._world = world
        self.worker = worker
        self.waker = None

    def step(self, *, idle=False):
        self.waker = Waker()
        return self._world.scheduler.next_step(self.worker, self._world.now, self.waker, idle=idle)

    @property
    def is_awake(self):
        return self.waker.is_awake


@pytest.fixture
def world():
    return World()


def settled_world(**options):
    """A world whose one worker was started, and sleeps because there is nothing to do."""
    world = World(**options)
    world.put(10)
    worker = world.worker()
    world.settle(worker.step().batch)
    assert worker.step() == Step(wait_s=LINGER)
    world.now += LINGER
    assert worker.step() == Step(wait_s=None)
    return world, worker


# A worker is started, and waits for a batch to fill


def test_the_first_event_starts_a_worker_and_the_next_ones_do_not(world):
    assert world.started == 0
    world.put()
    assert world.started == 1
    world.put(5)
    assert world.started == 1
    assert world.stats.workers == 1


def test_the_interval_counts_from_the_first_event(world):
    world.put()
    worker = world.worker()
    assert worker.step() == Step(wait_s=LINGER)
    world.now += 0.5
    world.put(3)
    assert not worker.is_awake
    assert worker.step() == Step(wait_s=LINGER - 0.5)
    world.now += LINGER - 0.5
    step = worker.step()
    assert len(step.batch) == 4
    assert not step.helper


def test_the_interval_of_later_events_counts_from_the_first_of_them():
    world, worker = settled_world()
    world.now += 100.0
    world.put()
    assert worker.is_awake
    assert worker.step() == Step(wait_s=LINGER)
    world.now += LINGER
    assert len(worker.step().batch) == 1


def test_events_that_came_while_a_batch_was_out_wait_no_longer_than_the_interval_after_it_left(world):
    world.put(10)
    worker = world.worker()
    batch = worker.step().batch
    world.now += 1.5
    world.put(2)
    world.settle(batch)
    assert worker.step().wait_s <= LINGER - 1.5 + 1e-9
    world.now += LINGER
    assert len(worker.step().batch) == 2


def test_a_full_batch_wakes_the_worker_and_is_due_immediately(world):
    world.put()
    worker = world.worker()
    worker.step()
    world.put(8)
    assert not worker.is_awake
    world.put()
    assert worker.waker.releases == 1
    assert len(worker.step().batch) == 10


def test_a_batch_full_by_bytes_wakes_the_worker_too():
    world = World(max_batch_bytes=1_000, max_event_bytes=900)
    world.put(size=100)
    worker = world.worker()
    worker.step()
    world.put(size=100)
    assert not worker.is_awake
    world.put(size=850)
    assert worker.is_awake
    assert worker.step().batch is not None


# Waking


def test_a_worker_with_nothing_to_do_sleeps_without_an_end():
    _, worker = settled_world()
    assert not worker.is_awake
    assert worker.step() == Step(wait_s=None)


def test_only_the_first_event_of_many_wakes_a_sleeping_worker():
    world, worker = settled_world()
    world.put(9)
    assert worker.waker.releases == 1
    assert world.started == 1


def test_events_that_come_while_a_worker_sends_wake_nobody_until_a_batch_is_full(world):
    world.put(10)
    batch = world.worker().step().batch
    world.put(9)
    assert world.started == 1
    world.put()
    assert world.started == 2, "a full batch waits, and one more may be in flight"
    world.settle(batch)


def test_an_event_that_came_before_the_worker_slept_is_not_overlooked(world):
    world.put()
    worker = world.worker()
    world.put(9)  # before the worker asked anything
    assert len(worker.step().batch) == 10


def test_no_event_is_put_without_somebody_on_the_way_to_it():
    """Whatever the order of steps, an event that waits has a worker awake, timed, or about to be started."""
    world, worker = settled_world()
    for n in range(3):
        world.put()
        # Later events wake nobody: the worker that sent the batch before is timed.
        assert worker.is_awake is (n == 0)
        if n == 0:
            assert worker.step().wait_s == LINGER
        world.now += LINGER
        world.settle(worker.step().batch)
        assert worker.step() == Step(wait_s=LINGER)
    assert world.stats.delivered == 13


def test_in_a_stream_of_events_a_worker_is_woken_once_for_each_batch():
    world, worker = settled_world()
    world.put()
    assert worker.is_awake
    worker.step()
    woken = []
    for n in range(1, 50):
        was_awake = worker.is_awake
        world.put()
        if worker.is_awake and not was_awake:
            woken.append(n)
            world.settle(worker.step().batch)
            assert worker.step() == Step(wait_s=LINGER)
    assert woken == [9, 19, 29, 39, 49]
    assert world.started == 1


def test_an_event_after_a_batch_waits_no_longer_than_the_interval_though_it_wakes_nobody():
    world, worker = settled_world()
    world.put(10)
    world.settle(worker.step().batch)
    step = worker.step()
    world.now += LINGER / 2
    world.put()
    assert not worker.is_awake
    world.now += step.wait_s - LINGER / 2
    assert len(worker.step().batch) == 1


def test_after_a_batch_and_an_interval_without_events_the_worker_sleeps_without_an_end():
    world, worker = settled_world()
    world.put(10)
    world.settle(worker.step().batch)
    world.now += worker.step().wait_s
    assert worker.step() == Step(wait_s=None)
    world.put()
    assert worker.is_awake


# Helpers


def test_a_helper_is_asked_for_only_when_a_full_batch_waits(world):
    world.put(15)
    first = world.worker().step()
    assert (len(first.batch), first.helper) == (10, False)
    world.settle(first.batch)


def test_a_helper_is_asked_for_when_a_full_batch_waits(world):
    world.put(25)
    first = world.worker().step()
    assert (len(first.batch), first.helper) == (10, True)
    world.now += 1.5 * HELP_AFTER_S
    second = world.worker().step()
    assert (len(second.batch), second.helper) == (10, False)


def test_a_helper_waits_for_a_server_that_may_answer_immediately(world):
    world.put(50)
    first, helper = world.worker(), world.worker()
    batch = first.step().batch
    assert helper.step() == Step(wait_s=pytest.approx(HELP_AFTER_LEAST_S))
    world.now += HELP_AFTER_LEAST_S / 2
    world.settle(batch)
    assert first.step().batch is not None  # so the helper is not needed yet
    assert helper.step().wait_s == pytest.approx(2 * HELP_AFTER_LEAST_S)
    world.now += 1.5 * HELP_AFTER_LEAST_S
    assert helper.step().batch is not None  # now it is


def test_a_helper_that_is_never_needed_looks_ever_less_often():
    world = World(max_in_flight=2)
    world.put(2_000)
    first, helper = world.worker(), world.worker()
    looks = []
    for _ in range(8):
        batch = first.step().batch
        looks.append(helper.step().wait_s)
        world.now += HELP_AFTER_LEAST_S / 4
        world.settle(batch)
    assert looks == sorted(looks)
    assert looks[0] == pytest.approx(HELP_AFTER_LEAST_S)
    assert looks[-1] == pytest.approx(WATCH_CAP_S)


def test_a_server_that_becomes_slow_gets_help_though_each_look_comes_just_after_a_batch_went_out():
    """So it is in a relay: what it reads in place of a batch wakes the worker that watches."""
    world = World(max_in_flight=2)
    world.put(2_000)
    first, helper = world.worker(), world.worker()
    wait_s = 0.0
    while wait_s < 0.9 * WATCH_CAP_S:  # the server answers immediately
        batch = first.step().batch
        wait_s = helper.step().wait_s
        world.settle(batch)
    for _ in range(3):  # now it does not
        batch = first.step().batch
        world.now += 0.1 * HELP_AFTER_LEAST_S
        wait_s = helper.step().wait_s
        world.now += 2 * HELP_AFTER_LEAST_S
        world.settle(batch)
    assert wait_s == pytest.approx(0.9 * HELP_AFTER_LEAST_S)


@pytest.mark.parametrize(
    ("waiting", "patience_s"),
    [(10, HELP_AFTER_S), (20, HELP_AFTER_S / 2), (40, HELP_AFTER_LEAST_S), (900, HELP_AFTER_LEAST_S)],
)
def test_the_more_waits_the_sooner_a_batch_goes_out_beside_another(waiting, patience_s):
    world = World(max_queue_size=1_000)
    world.put(10)
    first, helper = world.worker(), world.worker()
    assert first.step().batch is not None
    world.put(waiting)
    assert helper.step() == Step(wait_s=pytest.approx(patience_s))
    world.now += 0.9 * patience_s
    assert helper.step().batch is None
    world.now += 0.2 * patience_s
    assert helper.step().batch is not None


def test_for_a_flush_a_batch_goes_out_beside_another_as_soon_as_it_may(world):
    world.put(20)
    first, helper = world.worker(), world.worker()
    assert first.step().batch is not None
    world.scheduler.begin_flush(Waker(), has_timeout=True)
    assert helper.step() == Step(wait_s=pytest.approx(HELP_AFTER_LEAST_S))


def test_no_more_workers_than_may_be_in_flight(world):
    world.put(100)
    for _ in range(5):
        world.scheduler.add_worker()
    assert world.stats.workers == 3
    steps = []
    for _ in range(3):
        steps.append(world.worker().step())
        world.now += 1.5 * HELP_AFTER_S
    assert [len(each.batch) for each in steps] == [10] * 3
    assert [each.helper for each in steps] == [True, True, False]


def test_a_spare_worker_goes_after_a_while_and_the_last_one_stays(world):
    world.put(20)
    world.scheduler.add_worker()
    first, second = world.worker(), world.worker()
    batches = [first.step().batch]
    world.now += 1.5 * HELP_AFTER_S
    batches.append(second.step().batch)
    for each in batches:
        world.settle(each)
    assert first.step() == Step(wait_s=LINGER)
    assert second.step() == Step(wait_s=SPARE_WORKER_S, spare=True)
    world.now += LINGER
    assert first.step() == Step(wait_s=SPARE_WORKER_S, spare=True)
    assert second.step(idle=True) == Step(leave=True)
    assert world.stats.workers == 1
    assert first.step(idle=True) == Step(wait_s=None)


def test_where_no_worker_could_be_started_the_next_event_tries_again(world):
    world.can_start = False
    world.put(3)
    assert world.stats.workers == 0
    world.can_start = True
    world.put()
    assert world.stats.workers == 1


# Settling


def test_a_failed_batch_waits_behind_the_gate_and_is_taken_again_unchanged(world):
    world.put(10)
    worker = world.worker()
    batch = worker.step().batch
    world.settle(batch, Answer(500))
    step = worker.step()
    assert retry.BACKOFF_CAP_S / 2 <= step.wait_s <= retry.BACKOFF_CAP_S
    world.now += step.wait_s
    assert worker.step().batch is batch
    assert world.stats.problem.startswith("500: HTTP 500 without a message; ")


def test_nothing_at_all_is_sent_while_the_server_asked_to_wait(world):
    world.put(30)
    worker = world.worker()
    world.settle(worker.step().batch, Answer(429, {"retry-after": "30"}))
    assert worker.step().wait_s == pytest.approx(30.0, abs=0.5)
    world.scheduler.begin_flush(Waker(), has_timeout=True)
    assert worker.step().wait_s == pytest.approx(30.0, abs=0.5)
    world.now += 31.0
    assert worker.step().batch is not None
    assert world.worker().step().batch is None, "one at a time"


def test_a_pause_until_a_date_does_not_end_early_where_a_thread_was_held_up_between_the_clocks(monkeypatch):
    wall_s = time.time

    def held_up():
        time.sleep(0.05)
        return wall_s()

    monkeypatch.setattr(time, "time", held_up)
    moment = clock.moment()
    apart_s = -clock.now_s() + wall_s()  # in this order: at least what they are apart
    assert moment.now_s + apart_s >= moment.wall_s - 0.01


def test_halves_are_sent_before_anything_else_and_immediately(world):
    world.put(14)
    worker = world.worker()
    batch = worker.step().batch
    world.settle(batch, Answer(413))
    halves = [worker.step().batch]
    world.now += 1.5 * HELP_AFTER_S
    halves.append(world.worker().step().batch)
    assert [each.key for each in halves] == [f"{batch.key}-0", f"{batch.key}-1"]


def test_a_batch_that_was_given_up_after_the_deadline_is_dropped(world):
    world.put(10)
    worker = world.worker()
    batch = worker.step().batch
    world.put(5)
    world.scheduler.begin_close()
    assert world.scheduler.discard() == 5
    world.settle(batch, Answer(500))
    seen = world.stats
    assert (seen.dropped, seen.dropped_by_reason, seen.pending) == (15, {"closed": 15}, 0)
    assert worker.step() == Step(leave=True)


def test_who_gave_up_tries_nothing_again_and_logs_nothing(world, caplog):
    world.put(10)
    batch = world.worker().step().batch
    policy = world.scheduler.retry_policy()
    refused = Answer(None, failure=Failure.CONNECT)
    assert policy.allows_retry(refused, 1)
    assert not policy.is_last(1, world.now, 0.5)
    assert policy.left_s(world.now) > 0
    world.scheduler.begin_close()
    world.scheduler.discard()
    assert policy.left_s(world.now) == 0
    assert policy.is_last(1, world.now, 0.5)
    world.settle(batch, refused)
    assert world.stats.dropped == 10
    assert caplog.messages == []


def test_an_abandoned_batch_is_sent_again_under_its_key(world):
    world.put(10)
    worker = world.worker()
    batch = worker.step().batch
    world.scheduler.retire(worker.worker, world.now, died=True)
    seen = world.stats
    assert (seen.pending, seen.in_flight, seen.workers, seen.worker_deaths) == (10, 0, 0, 1)
    world.put()
    assert world.started == 2
    assert world.worker().step().batch is batch


def test_reclaimed_batches_are_sent_by_whoever_comes_next(world):
    world.put(20)
    batches = {world.worker().step().batch, world.worker().step().batch}
    world.scheduler.reclaim()
    assert world.stats.in_flight == 0
    world.scheduler.add_worker()
    world.scheduler.add_worker()
    world.scheduler.begin_flush(Waker(), has_timeout=True)
    assert {world.worker().step().batch, world.worker().step().batch} == batches


def test_the_counts_add_up_after_every_step(world):
    answers = [OK, Answer(500), Answer(413), Answer(400), Answer(401), Answer(429), NOT_ALLOWED, OK] * 4
    worker = world.worker()
    for answer in answers:
        world.put(10)
        world.now += 1_000.0
        world.settle(worker.step().batch, answer)
        seen = world.stats
        assert seen.accepted == seen.delivered + seen.rejected + seen.dropped + seen.pending
    assert seen.accepted == 10 * len(answers)
    assert seen.delivered > 0
    assert seen.rejected > 0


# Flush and close


def test_a_flush_sends_immediately_what_would_wait_for_more(world):
    world.put(3)
    worker = world.worker()
    worker.step()
    waiting = Waker()
    flush = world.scheduler.begin_flush(waiting, has_timeout=True)
    assert worker.is_awake
    batch = worker.step().batch
    assert len(batch) == 3
    assert not flush.done
    world.settle(batch)
    assert flush.done
    assert waiting.is_awake
    assert world.scheduler.end_flush(flush) == windback.FlushResult(0, 3, 0, 0)


def test_a_flush_of_nothing_is_done_immediately(world):
    flush = world.scheduler.begin_flush(Waker(), has_timeout=False)
    assert flush.done
    assert world.scheduler.end_flush(flush)


def test_a_flush_waits_for_what_was_accepted_before_it_and_for_nothing_later(world):
    world.put(10)
    worker = world.worker()
    flush = world.scheduler.begin_flush(Waker(), has_timeout=True)
    world.put(10)
    world.settle(worker.step().batch)
    assert flush.done
    result = world.scheduler.end_flush(flush)
    assert (bool(result), result.pending, world.stats.pending) == (True, 0, 10)


def test_a_flush_waits_for_what_is_in_flight(world):
    world.put(10)
    batch = world.worker().step().batch
    flush = world.scheduler.begin_flush(Waker(), has_timeout=True)
    assert not flush.done
    result = world.scheduler.end_flush(flush)
    assert (bool(result), result.pending) == (False, 10)
    world.settle(batch)


def test_a_flush_waits_for_both_halves_of_a_split_batch(world):
    world.put(10)
    worker = world.worker()
    flush = world.scheduler.begin_flush(Waker(), has_timeout=True)
    world.settle(worker.step().batch, Answer(413))
    world.settle(worker.step().batch)
    assert not flush.done
    world.settle(worker.step().batch, NOT_ALLOWED)
    assert flush.done
    assert world.scheduler.end_flush(flush) == windback.FlushResult(0, 5, 5, 0)


def test_two_flushes_end_each_at_its_own_target(world):
    world.put(10)
    worker = world.worker()
    first = world.scheduler.begin_flush(Waker(), has_timeout=True)
    world.put(10)
    second = world.scheduler.begin_flush(Waker(), has_timeout=True)
    world.settle(worker.step().batch)
    assert (first.done, second.done) == (True, False)
    world.settle(worker.step().batch)
    assert second.done


def test_a_flush_without_a_timeout_gives_up_in_an_outage_and_one_with_a_timeout_does_not(world):
    world.put(10)
    worker = world.worker()
    hasty = world.scheduler.begin_flush(Waker(), has_timeout=False)
    patient = world.scheduler.begin_flush(Waker(), has_timeout=True)
    world.settle(worker.step().batch, Answer(None, failure=Failure.CONNECT))
    assert (hasty.done, patient.done) == (True, False)
    result = world.scheduler.end_flush(hasty)
    assert (bool(result), result.pending, result.problem) == (False, 10, "could not connect; trying again")


@pytest.mark.parametrize("patient", [False, True])
def test_every_flush_gives_up_on_a_refused_key(world, patient):
    world.put(10)
    flush = world.scheduler.begin_flush(Waker(), has_timeout=patient)
    world.settle(world.worker().step().batch, Answer(401))
    assert flush.done
    assert world.scheduler.end_flush(flush).problem.startswith("401: HTTP 401 without a message; ")


def test_a_flush_lets_one_request_through_a_gate_that_an_outage_closed(world):
    world.put(10)
    worker = world.worker()
    batch = worker.step().batch
    world.settle(batch, Answer(500))
    assert worker.step().batch is None
    world.scheduler.begin_flush(Waker(), has_timeout=True)
    assert worker.is_awake
    assert worker.step().batch is batch
    world.put(10)
    assert world.worker().step().batch is None


def test_a_flush_wakes_a_worker_that_waits_out_a_backoff(world):
    sleeper = Waker()
    world.put(10)
    world.worker().step()
    world.scheduler.parking.rest(sleeper, world.scheduler.parking.last_wake)
    assert not sleeper.is_awake
    world.scheduler.begin_flush(Waker(), has_timeout=True)
    assert sleeper.is_awake


def test_a_flush_between_an_answer_and_the_backoff_that_follows_ends_the_backoff(world):
    sleeper = Waker()
    world.put(10)
    world.worker().step()
    answered = world.scheduler.parking.last_wake
    world.scheduler.begin_flush(Waker(), has_timeout=True)
    world.scheduler.parking.rest(sleeper, answered)
    assert sleeper.is_awake


def test_a_flush_learns_that_the_last_worker_died(world):
    world.put(10)
    worker = world.worker()
    assert worker.step().batch is not None
    waiting = Waker()
    flush = world.scheduler.begin_flush(waiting, has_timeout=True)
    world.scheduler.retire(worker.worker, world.now, died=True)
    assert waiting.is_awake
    assert not flush.done


def test_close_wakes_everybody_and_workers_leave_when_nothing_is_left(world):
    world.put(3)
    worker = world.worker()
    worker.step()
    world.scheduler.begin_close()
    assert worker.is_awake
    batch = worker.step().batch
    assert len(batch) == 3
    world.settle(batch)
    assert worker.step() == Step(leave=True)
    assert world.stats.workers == 0
    assert world.queue.put(b"x") is False


# Room for callers that wait


def test_a_caller_that_waits_for_room_is_woken_by_the_next_lease():
    world = World(max_queue_size=10, overflow="block")
    world.put(10)
    waiting = [Waker() for _ in range(12)]
    for each in waiting:
        assert world.scheduler.wait_for_room(each, 8)
    world.worker().step()
    assert [each.is_awake for each in waiting] == [True] * 10 + [False] * 2


def test_a_caller_need_not_wait_where_there_is_room_already():
    world = World(max_queue_size=10, overflow="block")
    assert not world.scheduler.wait_for_room(Waker(), 8)


def test_a_caller_waits_for_room_for_the_bytes_of_its_own_event():
    world = World(max_queue_bytes=1_000, max_event_bytes=500, overflow="block")
    world.put(9, size=100)
    assert not world.scheduler.wait_for_room(Waker(), 100)
    assert world.scheduler.wait_for_room(Waker(), 101)


def test_close_wakes_callers_that_wait_for_room():
    world = World(max_queue_size=10, overflow="block")
    world.put(10)
    waiting = Waker()
    assert world.scheduler.wait_for_room(waiting, 8)
    world.scheduler.begin_close()
    assert waiting.is_awake
    assert not world.scheduler.wait_for_room(Waker(), 8)


# Reports and hooks


def test_every_batch_is_reported_once_with_its_outcome():
    reports = []
    world = World(on_delivery=reports.append)
    for answer in (OK, NOT_ALLOWED):
        world.put(10)
        world.settle(world.worker().step().batch, answer)
    assert [(each.outcome, each.count, each.reason, each.status, each.message) for each in reports] == [
        ("delivered", 10, "ok", 200, None),
        ("rejected", 10, "forbidden", None, "not allowed: twice"),
    ]
    assert all(each.idempotency_key for each in reports)


def test_a_report_comes_before_the_flush_that_waits_for_it_ends():
    done = []
    world = World(on_delivery=lambda _: done.append(flush.done))
    world.put(10)
    flush = world.scheduler.begin_flush(Waker(), has_timeout=True)
    world.settle(world.worker().step().batch)
    assert done == [False]
    assert flush.done


def test_keyboard_interrupt_in_a_hook_is_the_users():
    def hook(report):
        raise KeyboardInterrupt

    world = World(on_delivery=hook)
    world.put(10)
    batch = world.worker().step().batch
    flush = world.scheduler.begin_flush(Waker(), has_timeout=True)
    with pytest.raises(KeyboardInterrupt):
        world.settle(batch)
    assert world.stats.delivered == 10
    assert flush.done, "nothing is left to wait for"


def test_rejections_are_written_once_a_minute(world, caplog):
    caplog.set_level(logging.WARNING, "windback")
    for _ in range(5):
        world.put(10)
        world.settle(world.worker().step().batch, NOT_ALLOWED)
        world.now += 13.0
    lines = [each.getMessage() for each in caplog.records]
    assert lines == [
        "the API rejects events, 10 so far; the last: not allowed: twice",
    ]
    world.now += 60.0
    world.put(10)
    world.settle(world.worker().step().batch, NOT_ALLOWED)
    assert (
        caplog.records[-1].getMessage() == "the API rejects events, 60 so far; the last: not allowed: twice"
    )


def test_a_disabled_client_accepts_nothing_and_starts_nobody():
    world = World(enabled=False)
    assert not world.queue.put(b"x")
    assert world.started == 0
    assert world.stats.refused == {"disabled": 1}


def test_reset_is_a_new_beginning(world):
    world.put(25)
    world.worker().step()
    world.scheduler.begin_flush(Waker(), has_timeout=True)
    world.scheduler.begin_close()
    world.scheduler.reset()
    assert world.stats == windback.Stats()
    world.put()
    assert world.started >= 2
    assert world.worker().step() == Step(wait_s=LINGER)


def test_callers_wake_nobody_while_everybody_is_busy():
    world = World(max_in_flight=1)
    world.put(10)
    worker = world.worker()
    batch = worker.step().batch
    assert world.queue.wake_at == NEVER
    world.put(100)
    assert world.started == 1
    world.settle(batch)
    assert len(worker.step().batch) == 10
