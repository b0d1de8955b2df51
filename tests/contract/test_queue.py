"""What the drain side may expect of any queue: in memory, in a journal, in Redis."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

import pytest
from sides import Sides, journal_queue, memory_queue

from windback.broker.connection import Connection
from windback.broker.layout import GROUP, fields_of, keys_of
from windback.broker.stream import StreamQueue
from windback.event.batch import Limits
from windback.secrets import broker_address

LIMITS = Limits(10, 500_000, 1.0)
PLENTY = 1 << 40
EVENTS = keys_of(None).events


def nothing(*_):
    pass


def record(n):
    """An event: what is not a JSON object would be a dead letter in Redis."""
    return b'{"n":%d}' % n


class Memory:
    survives = False

    def __init__(self, stack, request):
        del stack, request
        self.queue = memory_queue(PLENTY, PLENTY, "drop_newest", nothing, nothing)

    def fill(self, start, stop):
        for n in range(start, stop):
            assert self.queue.put(record(n))


class Journal(Memory):
    survives = True

    def __init__(self, stack, request):
        self._folder = request.getfixturevalue("tmp_path") / "journal"
        self.queue = self._make()
        stack.callback(self.close)

    def _make(self):
        queue = journal_queue(PLENTY, PLENTY, "drop_newest", nothing, nothing, self._folder, 1 << 26)
        queue.writer.prepare()
        return queue

    def close(self):
        self.queue.release()

    def look(self):
        """Do what a worker does between batches."""
        self.queue.maintain()()

    def succeed(self):
        """End this process, as far as the queue knows, and start the next one."""
        self.queue.release()
        self.queue = self._make()
        for _ in range(3):
            self.look()


class Redis:
    survives = True

    def __init__(self, stack, request):
        self.server = request.getfixturevalue("redis_server")
        self.queue = self._make()
        stack.callback(self.close)

    def _make(self):
        def connect(timeout_s):
            return Connection(broker_address(self.server.url), timeout_s)

        return Sides(StreamQueue(self.server.url, None, connect, 5.0, 60.0, 100, nothing))

    def fill(self, start, stop):
        for first in range(start, stop, 10):
            records = [record(n) for n in range(first, min(first + 10, stop))]
            fields = fields_of(records, f"key-{first}", None)
            self.server.client.xadd(EVENTS, dict(zip(fields[::2], fields[1::2])))
        self.look()

    def close(self):
        self.queue.release()

    def look(self):
        self.queue.poll()()

    def succeed(self):
        self.queue.release()
        self.queue = self._make()
        self.look()


BACKENDS = [
    Memory,
    pytest.param(Journal, marks=pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")),
    Redis,
]


@pytest.fixture(params=BACKENDS, ids=lambda each: each.__name__.lower())
def case(request):
    with ExitStack() as stack:
        yield request.param(stack, request)


def values(batches):
    return [json.loads(each)["n"] for batch in batches for each in batch.records]


def take_all(queue):
    batches = []
    while True:
        batch = queue.take(LIMITS)
        if batch is None:
            return batches
        batches.append(batch)


def test_all_of_it_is_taken_once_and_in_order(case):
    case.fill(0, 35)
    batches = take_all(case.queue)
    assert [len(batch) for batch in batches] == [10, 10, 10, 5]
    assert values(batches) == list(range(35))
    assert [batch.position for batch in batches] == [0, 10, 20, 30]
    assert len({batch.key for batch in batches}) == 4


def test_the_numbers_add_up_at_every_step(case):
    queue = case.queue
    assert queue.counts()[:1] + queue.counts()[2:] == (0, 0, 0)
    case.fill(0, 25)
    assert queue.waiting().events == 25
    assert queue.waiting().size_bytes == queue.size_bytes == sum(len(record(n)) for n in range(25))
    first, second = queue.take(LIMITS), queue.take(LIMITS)
    assert queue.counts() == (25, 0, 25, 20)
    assert queue.waiting().events == 5
    queue.ack(second)
    assert queue.counts() == (25, 0, 15, 10)
    queue.nack(first)
    assert queue.counts() == (25, 0, 15, 0)
    assert queue.waiting().events == 15
    for batch in take_all(queue):
        queue.ack(batch)
    assert queue.counts() == (25, 0, 0, 0)
    assert (queue.waiting().events, queue.size_bytes) == (0, 0)


def test_what_is_given_back_comes_first_with_the_same_bytes_and_key(case):
    case.fill(0, 30)
    first = case.queue.take(LIMITS)
    records, key = list(first.records), first.key
    case.queue.nack(first)
    assert case.queue.has_returned
    again = case.queue.take(LIMITS)
    assert (list(again.records), again.key) == (records, key)
    assert values(take_all(case.queue)) == list(range(10, 30))


def test_halves_have_keys_of_their_own_that_are_the_same_every_time(case):
    case.fill(0, 10)
    batch = case.queue.take(LIMITS)
    case.queue.split(batch)
    left, right = case.queue.take(LIMITS), case.queue.take(LIMITS)
    assert (values([left]), values([right])) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    assert (left.key, right.key) == (f"{batch.key}-0", f"{batch.key}-1")
    assert case.queue.counts() == (10, 0, 10, 10)
    case.queue.ack(left)
    assert case.queue.counts() == (10, 0, 5, 5)


def test_positions_show_what_is_not_settled(case):
    case.fill(0, 30)
    first, second = case.queue.take(LIMITS), case.queue.take(LIMITS)
    assert (case.queue.unsettled_before(1), case.queue.next_position()) == (10, 30)
    assert case.queue.unsettled_before(30) == 30
    case.queue.ack(first)
    assert (case.queue.unsettled_before(11), case.queue.next_position()) == (10, 30)
    assert (case.queue.unsettled_before(10), case.queue.unsettled_before(30)) == (0, 20)
    case.queue.ack(second)
    assert case.queue.unsettled_before(20) == 0


def test_leases_are_taken_back(case):
    case.fill(0, 30)
    keys = [batch.key for batch in take_all(case.queue)]
    assert case.queue.waiting().events == 0
    case.queue.reclaim()
    batches = take_all(case.queue)
    assert values(batches) == list(range(30))
    assert [batch.key for batch in batches] == keys


def test_discard_drops_what_nobody_else_will_ever_see(case):
    case.fill(0, 30)
    first = case.queue.take(LIMITS)
    discarded = case.queue.discard()
    assert sum(map(len, discarded)) == (0 if case.survives else 20)
    for batch in discarded:
        case.queue.ack(batch)
    assert case.queue.counts()[3] == len(first)


@pytest.mark.parametrize("case", BACKENDS[1:], indirect=True, ids=["journal", "redis"])
def test_the_next_owner_gets_what_was_not_acked_under_the_same_keys(case):
    case.fill(0, 40)
    first, second, third = (case.queue.take(LIMITS) for _ in range(3))
    case.queue.ack(first)
    case.queue.nack(second)
    leased = {tuple(each.records): each.key for each in (second, third)}
    case.succeed()
    batches = take_all(case.queue)
    assert sorted(values(batches)) == list(range(10, 40))
    again = {tuple(batch.records): batch.key for batch in batches}
    assert {records: again[records] for records in leased} == leased


@pytest.mark.parametrize("case", BACKENDS[2:], indirect=True, ids=["redis"])
def test_only_what_is_done_as_a_whole_leaves_redis(case):
    case.fill(0, 20)
    client = case.server.client
    first, second = case.queue.take(LIMITS), case.queue.take(LIMITS)
    case.queue.split(first)
    left, right = case.queue.take(LIMITS), case.queue.take(LIMITS)
    case.queue.ack(left)
    case.queue.ack(second)
    case.look()
    assert (client.xlen(EVENTS), client.xpending(EVENTS, GROUP)["pending"]) == (1, 1)
    case.queue.ack(right)
    case.look()
    assert (client.xlen(EVENTS), client.xpending(EVENTS, GROUP)["pending"]) == (0, 0)
