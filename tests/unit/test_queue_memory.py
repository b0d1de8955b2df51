"""The memory queue: bounds, policies, leases, and what many threads at once do to them."""

from __future__ import annotations

import threading
import time

import pytest
from sides import memory_queue

from windback import QueueFullError
from windback.event.batch import Limits
from windback.queue.intake import NEVER, NoRoomError

LIMITS = Limits(100, 500_000, 1.0)
POLICIES = ("drop_newest", "drop_oldest", "block", "raise")
THREADS = 8


class Made:
    """A queue, and who was called by it."""

    def __init__(self, max_events=10, max_bytes=10_000, overflow="drop_newest"):
        self.wakes = 0
        self.full = []
        self.queue = memory_queue(max_events, max_bytes, overflow, self.wake, self.full.append)

    def wake(self):
        self.wakes += 1


def queue(**options):
    return Made(**options).queue


def fill(made, count, size=1):
    return [made.put(b"%d" % (n % 10) * size) for n in range(count)]


# Take, ack, nack, split


def test_events_are_taken_in_order_up_to_the_limits():
    made = queue(max_events=500)
    for n in range(250):
        made.put(b"%d" % n)
    batches = [made.take(LIMITS) for _ in range(3)]
    assert [len(each) for each in batches] == [100, 100, 50]
    assert [int(record) for each in batches for record in each.records] == list(range(250))
    assert [each.position for each in batches] == [0, 100, 200]
    assert made.take(LIMITS) is None


def test_a_batch_keeps_the_byte_limit_and_leaves_the_rest_in_order():
    made = queue(max_events=500)
    for n in range(10):
        made.put(b"%d" % n * 100)
    first = made.take(Limits(100, 13 + 3 * 100 + 2, 1.0))
    second = made.take(LIMITS)
    assert (len(first), len(second)) == (3, 7)
    assert [record[:1] for record in second.records] == [b"%d" % n for n in range(3, 10)]


def test_what_was_given_back_is_taken_first_and_unchanged():
    made = queue(max_events=500)
    fill(made, 150)
    first = made.take(LIMITS)
    made.nack(first)
    assert made.has_returned
    assert made.take(LIMITS) is first
    assert not made.has_returned
    assert len(made.take(LIMITS)) == 50


def test_a_split_batch_comes_back_as_halves_with_keys_derived_from_its_own():
    made = queue()
    fill(made, 5)
    batch = made.take(LIMITS)
    made.split(batch)
    halves = [made.take(LIMITS), made.take(LIMITS)]
    assert [list(each.records) for each in halves] == [[b"0", b"1"], [b"2", b"3", b"4"]]
    assert [each.key for each in halves] == [f"{batch.key}-0", f"{batch.key}-1"]
    made.nack(halves[1])
    made.split(made.take(LIMITS))
    assert made.take(LIMITS).key == f"{batch.key}-1-0"


def test_every_batch_has_a_key_of_its_own():
    made = queue(max_events=500)
    fill(made, 500)
    assert len({made.take(LIMITS).key for _ in range(5)}) == 5


def test_counts_follow_an_event_from_call_to_ack():
    made = queue()
    fill(made, 4)
    assert made.counts() == (4, 0, 4, 0)
    batch = made.take(LIMITS)
    assert made.counts() == (4, 0, 4, 4)
    made.nack(batch)
    assert made.counts() == (4, 0, 4, 0)
    made.ack(made.take(LIMITS))
    assert made.counts() == (4, 0, 0, 0)
    assert made.size_bytes == 0


def test_reclaimed_leases_come_back_in_order():
    made = queue(max_events=500)
    fill(made, 250)
    batches = [made.take(LIMITS) for _ in range(3)]
    made.reclaim()
    assert [made.take(LIMITS) for _ in range(3)] == batches
    assert made.counts() == (250, 0, 250, 250)


def test_discard_takes_out_all_that_waits_and_leaves_what_is_leased():
    made = queue(max_events=500)
    fill(made, 150)
    leased, returned = made.take(LIMITS), made.take(Limits(20, 500_000, 1.0))
    made.nack(returned)
    discarded = made.discard()
    assert sorted(map(len, discarded)) == [20, 30]
    for each in discarded:
        made.ack(each)
    assert made.counts() == (150, 0, 100, 100)
    made.ack(leased)
    assert made.counts() == (150, 0, 0, 0)


def test_a_position_reports_what_is_left_of_what_was_accepted_before():
    made = queue(max_events=500)
    fill(made, 150)
    target = made.next_position()
    fill(made, 50)
    assert made.unsettled_before(target) == 150
    first = made.take(LIMITS)
    assert made.unsettled_before(target) == 150
    made.ack(first)
    assert made.unsettled_before(target) == 50
    made.ack(made.take(Limits(50, 500_000, 1.0)))
    assert made.unsettled_before(target) == 0
    assert made.counts()[2] == 50


def test_an_evicted_event_is_settled_for_whoever_waits_for_it():
    made = queue(overflow="drop_oldest")
    fill(made, 10)
    target = made.next_position()
    fill(made, 7)
    assert made.unsettled_before(target) == 3
    fill(made, 7)
    assert made.unsettled_before(target) == 0


# Bounds and policies, one thread


def test_drop_newest_refuses_and_counts():
    given = Made()
    assert fill(given.queue, 13) == [True] * 10 + [False] * 3
    assert given.queue.refusals.counters["queue_full"].value() == 3
    assert given.queue.counts() == (10, 0, 10, 0)
    assert given.full == ["drop_newest"]


def test_drop_oldest_makes_room_and_counts():
    given = Made(overflow="drop_oldest")
    assert fill(given.queue, 13) == [True] * 13
    assert given.queue.counts() == (13, 3, 10, 0)
    assert given.queue.take(LIMITS).records[0] == b"3"
    assert given.full == ["drop_oldest"]


def test_drop_oldest_makes_room_for_the_bytes_of_a_large_event():
    made = queue(max_events=100, max_bytes=100, overflow="drop_oldest")
    fill(made, 100)
    assert made.put(b"x" * 30)
    assert made.counts() == (101, 30, 71, 0)
    assert made.size_bytes == 100


def test_drop_oldest_refuses_where_all_the_bytes_are_in_requests():
    made = queue(max_bytes=10, overflow="drop_oldest")
    fill(made, 10)
    batch = made.take(LIMITS)
    assert not made.put(b"x")
    assert made.refusals.counters["queue_full"].value() == 1
    assert made.counts() == (10, 0, 10, 10)
    made.ack(batch)
    assert made.put(b"x")


def test_raise_raises_and_counts():
    made = queue(overflow="raise")
    fill(made, 10)
    with pytest.raises(
        QueueFullError, match="10 events wait, and max_queue_size or max_queue_bytes allows no more"
    ):
        made.put(b"x")
    assert made.refusals.counters["queue_full"].value() == 1
    assert made.size_bytes == 10


def test_block_asks_the_client_to_wait_and_counts_nothing():
    made = queue(overflow="block")
    fill(made, 10)
    with pytest.raises(NoRoomError):
        made.put(b"x")
    assert made.refusals.counters["queue_full"].value() == 0
    assert made.size_bytes == 10


def test_the_byte_bound_counts_what_is_in_requests_too():
    made = queue(max_events=100, max_bytes=50)
    fill(made, 50)
    made.take(LIMITS)
    assert not made.put(b"x")
    assert made.room() == 0


def test_room_is_what_may_still_wait():
    made = queue()
    assert made.room() == 10
    fill(made, 4)
    assert made.room() == 6
    made.close("closed")
    assert made.room() == 0


def test_a_full_queue_is_announced_once_an_episode():
    given = Made(max_events=100)
    fill(given.queue, 150)
    assert given.full == ["drop_newest"]
    given.queue.take(Limits(40, 500_000, 1.0))
    fill(given.queue, 80)
    assert given.full == ["drop_newest"], "it never was half empty in between"
    given.queue.take(Limits(60, 500_000, 1.0))
    fill(given.queue, 80)
    assert given.full == ["drop_newest"] * 2


@pytest.mark.parametrize("overflow", POLICIES)
def test_a_closed_queue_takes_nothing_whatever_the_policy(overflow):
    made = queue(overflow=overflow)
    fill(made, 3)
    made.close("closed")
    assert made.put(b"x") is False
    assert made.refusals.counters["closed"].value() == 1
    assert made.counts() == (3, 0, 3, 0)
    assert made.size_bytes == 3


@pytest.mark.parametrize("overflow", POLICIES)
def test_a_disabled_queue_counts_refusals(overflow):
    made = queue(overflow=overflow)
    made.close("disabled")
    assert fill(made, 3) == [False] * 3
    assert made.refusals.counters["disabled"].value() == 3


def test_reset_forgets_everything():
    given = Made()
    fill(given.queue, 13)
    given.queue.take(Limits(3, 500_000, 1.0))
    given.queue.close("closed")
    given.queue.reset()
    assert given.queue.counts() == (0, 0, 0, 0)
    assert given.queue.size_bytes == given.queue.refusals.counters["queue_full"].value() == 0
    assert given.queue.put(b"x")


def test_wake_is_called_when_enough_waits():
    given = Made(max_events=100)
    given.queue.wake_at = NEVER
    fill(given.queue, 3)
    assert given.wakes == 0
    given.queue.wake_at = 4
    given.queue.put(b"x")
    assert given.wakes == 0
    given.queue.put(b"x")
    assert given.wakes == 1
    given.queue.wake_at, given.queue.wake_at_bytes = NEVER, 10
    given.queue.put(b"x" * 4)
    assert given.wakes == 1
    given.queue.put(b"x")
    assert given.wakes == 2


# Many threads


class Crowd:
    """Threads that put as fast as they can, while this one takes."""

    def __init__(self, made, record):
        self._made = made
        self._record = record
        self._over = threading.Event()
        self.taken = [0] * THREADS
        self.refused = [0] * THREADS
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(THREADS)]

    def _run(self, n):
        put = self._made.put
        while not self._over.is_set():
            try:
                accepted = put(self._record)
            except (NoRoomError, QueueFullError):
                accepted = False
            (self.taken if accepted else self.refused)[n] += 1

    def __enter__(self):
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for each in self._threads:
            each.join()


@pytest.mark.parametrize("overflow", POLICIES)
def test_eight_threads_overrun_the_bounds_by_no_more_than_they_are_and_lose_nothing(overflow, eager_switches):
    max_events, size = 300, 50
    max_bytes = 400 * size
    made = memory_queue(max_events, max_bytes, overflow, lambda: None, lambda _: None)
    made.wake_at = NEVER
    lock = threading.Lock()  # the drain side's
    settled = most_waiting = most_bytes = 0
    with Crowd(made, b"x" * size) as crowd:
        deadline = time.monotonic() + 0.7
        while time.monotonic() < deadline or min(crowd.taken) == 0 or settled < 10 * max_events:
            assert time.monotonic() < deadline + 20
            most_waiting = max(most_waiting, made.queued())
            with lock:
                batch = made.take(LIMITS)
                most_waiting = max(most_waiting, made.queued())
                accepted, evicted, pending, _ = made.counts()
                assert accepted == settled + evicted + pending
                if batch is not None:
                    held = sum(map(len, made.leased)) * size
                    most_bytes = max(most_bytes, held + made.queued() * size)
                    made.ack(batch)
                    settled += len(batch)
    assert most_waiting <= max_events + THREADS
    assert most_bytes <= max_bytes
    accepted, evicted, pending, leased = made.counts()
    assert accepted == sum(crowd.taken) == settled + evicted + pending
    assert (leased, made.size_bytes) == (0, pending * size)
    refused = made.refusals.counters["queue_full"].value()
    assert refused == (0 if overflow == "block" else sum(crowd.refused))
    assert evicted == 0 or overflow == "drop_oldest"


def test_the_byte_bound_is_exact_with_eight_threads(eager_switches):
    made = memory_queue(10**6, 1_000, "drop_newest", lambda: None, lambda _: None)
    made.wake_at = NEVER
    most = 0
    with Crowd(made, b"x" * 10) as crowd:
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline or min(crowd.taken) == 0:
            assert time.monotonic() < deadline + 20
            most = max(most, made.queued() * 10)
            batch = made.take(LIMITS)
            if batch is not None:
                most = max(most, batch.size_bytes + made.queued() * 10)
                made.ack(batch)
    assert most == 1_000
    assert made.size_bytes == made.counts()[2] * 10


def test_a_batch_cut_by_bytes_leaves_no_room_for_more_than_the_bound(eager_switches):
    made = memory_queue(1_000, 10**9, "drop_newest", lambda: None, lambda _: None)
    made.wake_at = NEVER
    most = takes = 0
    with Crowd(made, b"x" * 100):
        deadline = time.monotonic() + 0.7
        while time.monotonic() < deadline or takes < 300:
            assert time.monotonic() < deadline + 20
            batch = made.take(Limits(100, 1_000, 1.0))
            most = max(most, made.queued())
            if batch is not None:
                takes += 1
                made.ack(batch)
    assert most >= 1_000
    assert most <= 1_000 + THREADS + 1


def test_accepted_stays_between_the_calls_that_returned_and_those_that_began(eager_switches):
    made = memory_queue(100, 10**9, "drop_oldest", lambda: None, lambda _: None)
    made.wake_at = NEVER
    begun = returned = looks = 0
    over = threading.Event()

    def run():
        nonlocal begun, returned
        while not over.is_set():
            begun += 1
            made.put(b"x")
            returned += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline or returned < 1_000:
            assert time.monotonic() < deadline + 20
            at_least = returned
            accepted, evicted, pending, _ = made.counts()
            at_most = begun
            assert accepted == evicted + pending
            assert at_least <= accepted <= at_most
            looks += 1
    finally:
        over.set()
        thread.join()
    assert made.counts()[0] == returned
    assert looks > 10
