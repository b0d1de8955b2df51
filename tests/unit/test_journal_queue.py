"""The queue on disk beside the one in memory: one contract for both."""

from __future__ import annotations

import pytest
from made_queues import MIB, THREADS, fill, fill_up, making_queues, run_threads

from windback import QueueFullError
from windback.event.batch import Limits
from windback.queue.intake import NEVER, NoRoomError

pytest.importorskip("fcntl", reason="this system has no flock")


POLICIES = ("drop_newest", "block", "raise")


@pytest.fixture
def make(root):
    with making_queues(root) as make:
        yield make


@pytest.fixture(params=["memory", "journal"])
def kind(request):
    return request.param


@pytest.fixture
def root(tmp_path):
    return tmp_path / "journal"


# The contract


def test_events_are_taken_in_order_up_to_the_limits(make, kind):
    made = make(kind)
    assert fill(made, 250) == [True] * 250
    batches = [made.take() for _ in range(3)]
    assert [len(each) for each in batches] == [100, 100, 50]
    assert [int(record) for each in batches for record in each.records] == list(range(250))
    assert [each.position for each in batches] == [0, 100, 200]
    assert made.take() is None


def test_a_batch_keeps_the_byte_limit_and_leaves_the_rest_in_order(make, kind):
    made = make(kind)
    for n in range(10):
        made.put(b"%d" % n * 100)
    first = made.take(Limits(100, 13 + 3 * 100 + 2, 1.0))
    second = made.take()
    assert (len(first), len(second)) == (3, 7)
    assert [record[:1] for record in second.records] == [b"%d" % n for n in range(3, 10)]


def test_what_was_given_back_is_taken_first_and_unchanged(make, kind):
    made = make(kind)
    fill(made, 150)
    first = made.take()
    made.queue.nack(first)
    assert made.queue.has_returned
    assert made.take() is first
    assert not made.queue.has_returned
    assert len(made.take()) == 50


def test_a_split_batch_comes_back_as_halves_with_keys_derived_from_its_own(make, kind):
    made = make(kind)
    fill(made, 5)
    batch = made.take()
    made.queue.split(batch)
    halves = [made.take(), made.take()]
    assert [list(each.records) for each in halves] == [[b"0", b"1"], [b"2", b"3", b"4"]]
    assert [each.key for each in halves] == [f"{batch.key}-0", f"{batch.key}-1"]
    made.queue.nack(halves[1])
    made.queue.split(made.take())
    assert made.take().key == f"{batch.key}-1-0"


def test_every_batch_has_a_key_of_its_own(make, kind):
    made = make(kind)
    fill(made, 500)
    assert len({made.take().key for _ in range(5)}) == 5


def test_counts_follow_an_event_from_call_to_ack(make, kind):
    made = make(kind)
    fill(made, 4)
    assert made.queue.counts() == (4, 0, 4, 0)
    assert made.queue.waiting() == (4, 4)
    batch = made.take()
    assert made.queue.counts() == (4, 0, 4, 4)
    assert made.queue.waiting() == (0, 0)
    made.queue.nack(batch)
    assert made.queue.counts() == (4, 0, 4, 0)
    made.queue.ack(made.take())
    assert made.queue.counts() == (4, 0, 0, 0)
    assert made.queue.size_bytes == 0


def test_reclaimed_leases_come_back_in_order(make, kind):
    made = make(kind)
    fill(made, 250)
    batches = [made.take() for _ in range(3)]
    made.queue.reclaim()
    assert [made.take() for _ in range(3)] == batches
    assert made.queue.counts() == (250, 0, 250, 250)


def test_a_position_reports_what_is_left_of_what_was_accepted_before(make, kind):
    made = make(kind)
    fill(made, 150)
    target = made.queue.next_position()
    fill(made, 50)
    assert made.queue.unsettled_before(target) == 150
    first = made.take()
    assert made.queue.unsettled_before(target) == 150
    made.queue.nack(first)
    assert made.queue.unsettled_before(target) == 150
    made.queue.ack(made.take())
    assert made.queue.unsettled_before(target) == 50
    made.queue.ack(made.take(Limits(50, 500_000, 1.0)))
    assert made.queue.unsettled_before(target) == 0
    assert made.queue.counts()[2] == 50


def full(kind, overflow):
    """Options for a queue that 60 events of 60,000 bytes fill, more or less."""
    bounds = {"max_journal_bytes": 4 * MIB} if kind == "journal" else {"max_bytes": 60 * 60_000}
    return {"overflow": overflow, **bounds}


@pytest.mark.parametrize("overflow", POLICIES)
def test_a_full_queue_does_what_its_policy_says(make, kind, overflow):
    made = make(kind, **full(kind, overflow))
    count = fill_up(made)
    assert 50 <= count <= 68
    if overflow == "drop_newest":
        assert made.put(b"y" * 60_000) is False
    else:
        with pytest.raises(QueueFullError if overflow == "raise" else NoRoomError):
            made.put(b"y" * 60_000)
    assert made.queue.refusals.counters["queue_full"].value() == (0 if overflow == "block" else 2)
    assert made.full == ([] if overflow == "block" else [overflow])
    assert not made.queue.has_room_for(60_000)
    assert made.queue.counts() == (count, 0, count, 0)
    assert made.queue.size_bytes == count * 60_000


@pytest.mark.parametrize("overflow", POLICIES)
def test_what_was_settled_makes_room(make, kind, overflow):
    made = make(kind, **full(kind, overflow))
    for _ in range(5):
        count = fill_up(made)
        assert count >= 45
        records = made.drain()
        assert [int(record[:5]) for record in records] == list(range(count))
        assert made.queue.has_room_for(60_000)
        assert made.queue.counts()[2] == 0


def test_no_event_is_half_accepted_by_a_queue_that_is_full(make, kind):
    made = make(kind, **full(kind, "drop_newest"))
    count = fill_up(made)
    assert not made.put(b"y" * 60_000)
    records = made.drain()
    assert len(records) == count
    assert not [record for record in records if record[:1] == b"y"]


def test_a_closed_queue_and_a_disabled_one_count(make, kind):
    made = make(kind)
    made.queue.close("closed")
    assert made.put(b"event") is False
    assert made.queue.refusals.counters["closed"].value() == 1
    made = make(kind)
    made.queue.close("disabled")
    assert made.put(b"event") is False
    assert made.queue.refusals.counters["disabled"].value() == 1
    assert made.queue.counts() == (0, 0, 0, 0)


def test_whoever_sleeps_is_woken_at_wake_at_and_not_before(make, kind):
    made = make(kind)
    made.put(b"the first")  # takes a spare, and wakes somebody to make another
    made.drain()
    made.queue.wake_at = 3
    before = made.wakes
    fill(made, 3)
    assert made.wakes == before
    fill(made, 1)
    assert made.wakes == before + 1
    made.queue.wake_at = NEVER
    made.queue.wake_at_bytes = made.queue.size_bytes + 10
    made.put(b"x" * 9)
    assert made.wakes == before + 1
    made.put(b"x")
    assert made.wakes == before + 2


def test_a_reset_queue_is_empty_and_usable(make, kind):
    made = make(kind)
    fill(made, 10)
    made.queue.reset()
    assert made.queue.counts() == (0, 0, 0, 0)
    assert made.queue.size_bytes == 0
    assert made.put(b"event")


@pytest.mark.parametrize("size", [10, 3_000])
def test_everything_that_eight_threads_put_is_taken_once(make, kind, size, eager_switches):
    made = make(kind)
    each = 1_500

    def work(thread):
        for n in range(each):
            assert made.put(b"%d:%d:" % (thread, n) + b"x" * size)

    threads, failures = run_threads(work)
    records = []
    while any(thread.is_alive() for thread in threads):
        batch = made.take()
        if batch is not None:
            records += batch.records
            made.queue.ack(batch)
    records += made.drain()
    assert failures == []
    found = [tuple(map(int, record.split(b":")[:2])) for record in records]
    assert sorted(found) == [(thread, n) for thread in range(THREADS) for n in range(each)]
    assert {len(record.rpartition(b":")[2]) for record in records} == {size}
    assert made.queue.counts() == (THREADS * each, 0, 0, 0)
    assert made.queue.size_bytes == 0
