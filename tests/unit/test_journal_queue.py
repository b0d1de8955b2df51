"""The queue on disk beside the one in memory: one contract, and what only a journal promises."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import sys
import threading
import time
from collections import Counter

import pytest
from sides import journal_queue, memory_queue

from windback import QueueFullError
from windback.event.batch import Limits
from windback.journal import format as fmt
from windback.journal import segment
from windback.journal.directory import JournalDirectory, names
from windback.journal.ledger import Ledger
from windback.journal.writer import SPARES, JournalWriter
from windback.queue.intake import NEVER, NoRoomError

pytest.importorskip("fcntl", reason="this system has no flock")

LIMITS = Limits(100, 500_000, 1.0)
ONE = Limits(1, 500_000, 1.0)
POLICIES = ("drop_newest", "block", "raise")
THREADS = 8
MIB = 1 << 20


class Made:
    """A queue, who was called by it, and its drain side as one call."""

    def __init__(self, kind, root, *, max_events=500_000, max_bytes=64 * MIB, overflow="drop_newest", **more):
        self.wakes = 0
        self.full = []
        bounds = max_events, max_bytes, overflow, self.wake, self.full.append
        if kind == "memory":
            self.queue = memory_queue(*bounds)
        else:
            self.queue = journal_queue(*bounds, root, more.get("max_journal_bytes", 64 * MIB))
        if kind == "journal":
            self.queue.open()
        self.put = self.queue.put

    def wake(self):
        self.wakes += 1

    def maintain(self):
        while getattr(self.queue, "needs_maintenance", False):
            self.queue.maintain()()

    def take(self, limits=LIMITS):
        self.maintain()
        return self.queue.take(limits)

    def drain(self, limits=LIMITS):
        """Take and ack everything; return the events."""
        records = []
        while True:
            batch = self.take(limits)
            if batch is None:
                self.maintain()
                return records
            records += batch.records
            self.queue.ack(batch)


@pytest.fixture
def make(tmp_path):
    """Make queues, which are let go of at the end, whatever becomes of them in between."""
    made = []

    def make(kind="journal", root=tmp_path / "journal", **options):
        made.append(Made(kind, root, **options))
        return made[-1]

    yield make
    for each in made:
        each.queue.reset()


@pytest.fixture(params=["memory", "journal"])
def kind(request):
    return request.param


@pytest.fixture
def root(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def eager_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def fill(made, count, start=0):
    return [made.put(b"%d" % n) for n in range(start, start + count)]


def crash(made):
    """Leave all files as they are and free the locks, as the kernel does for a process that is killed."""
    made.queue.reset()


def files(root):
    return sorted(path.name for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")


def taken_under(root):
    """What the disk has given, and not what the sizes of files say."""
    return sum(path.lstat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


def on_disk(root):
    """Every valid record of events under *root*, by place."""
    found = {}
    for name in names(root):
        for segment_id in segment.ids(root / name, fmt.EVENTS):
            data = segment.path_of(root / name, fmt.EVENTS, segment_id).read_bytes()
            for record in fmt.scan(data, fmt.seed(int(name, 16), segment_id, fmt.EVENTS)):
                found[name, segment_id, record.at] = record.payload
    return found


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


def fill_up(made):
    """Put until nothing more fits; return how many did."""
    for n in range(1_000):
        try:
            if not made.put(b"%05d" % n + b"x" * 59_995):
                return n
        except (QueueFullError, NoRoomError):
            return n
    raise AssertionError("this queue has no bound")


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


def run_threads(work, count=THREADS):
    """Run *work* in threads at once; what one of them raises is raised here."""
    failures = []
    together = threading.Barrier(count)

    def main(n):
        together.wait()
        try:
            work(n)
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=main, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    return threads, failures


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


# Files


def test_what_was_accepted_is_in_a_file_before_put_returns(make, root):
    made = make()
    for n in range(100):
        made.put(b"%d" % n)
        assert b"%d" % n in on_disk(root).values()


def test_files_and_directories_are_their_owners_alone(make, root):
    before = os.umask(0)
    try:
        made = make()
        fill(made, 10)
    finally:
        os.umask(before)
    (name,) = names(root)
    assert {path.stat().st_mode & 0o777 for path in (root, root / name)} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in (root / name).iterdir()} == {0o600}


@pytest.mark.parametrize("size", [100, 200_000, fmt.MAX_PAYLOAD_BYTES])
def test_events_go_through_many_segments_and_few_are_there_at_a_time(make, root, size):
    made = make(max_journal_bytes=16 * MIB)
    total, most = 0, 0
    while total < 24 * MIB:
        for n in range(min(2_000, max(1, 3 * MIB // size))):
            assert made.put((b"%d:" % n).ljust(size, b"x"))
            total += size
        assert {len(record) for record in made.drain()} == {size}
        most = max(most, len(files(root)))
    assert made.queue.counts()[2] == 0
    # The open one, spares, what a burst needed, and two of the ledger.
    assert most <= 3 + SPARES + 3 + 2
    assert len(files(root)) <= 1 + SPARES + 2


def test_the_directory_is_gone_when_all_is_settled_and_released(make, root):
    made = make()
    fill(made, 20_000)
    made.drain()
    made.queue.release()
    assert list(root.iterdir()) == []


def test_a_queue_that_nobody_used_leaves_nothing(make, root):
    made = make()
    made.maintain()
    made.queue.release()
    assert list(root.iterdir()) == []


def test_what_is_not_settled_stays_and_only_that(make, root):
    made = make()
    for _ in range(3):
        fill(made, 3_000)
        made.drain()
        for _ in range(20):
            made.put(b"x" * 60_000)
        made.drain()
    fill(made, 5)
    made.queue.ack(made.take(Limits(2, 500_000, 1.0)))
    made.queue.release()
    after = make()
    assert after.drain() == [b"2", b"3", b"4"]
    assert after.queue.adopted == 3
    after.queue.release()
    assert list(root.iterdir()) == []


def test_discard_leaves_on_disk_what_is_there(make, root):
    made = make()
    fill(made, 150)
    leased, returned = made.take(), made.take(Limits(20, 500_000, 1.0))
    made.queue.nack(returned)
    assert made.queue.discard() == []
    assert made.queue.counts() == (150, 0, 150, 100)
    made.queue.ack(leased)
    made.queue.release()
    after = make()
    batch = after.take()
    assert (batch.key, batch.records) == (returned.key, list(returned.records))
    after.queue.ack(batch)
    assert after.drain() == [b"%d" % n for n in range(120, 150)]


def test_the_ledger_turns_over_and_never_forgets_what_is_under_way(make, root):
    """Thousands of batches: only the newest of its files is needed, and only that is there."""
    made = make()
    fill(made, 3)
    kept = made.take(Limits(3, 500_000, 1.0))
    seen = set()
    for _ in range(100):
        fill(made, 150)
        assert len(made.drain(ONE)) == 150
        seen.update(name for name in files(root) if name.endswith(".ledger"))
    assert len(seen) >= 3
    assert len([name for name in files(root) if name.endswith(".ledger")]) <= 2
    crash(made)
    after = make()
    batch = after.take()
    assert (batch.key, batch.records) == (kept.key, list(kept.records))
    after.queue.ack(batch)
    assert after.drain() == []
    after.queue.release()
    assert list(root.iterdir()) == []


def test_two_queues_of_one_process_share_a_directory_and_leave_each_other_alone(make, root):
    one, two = make(), make()
    fill(one, 10)
    fill(two, 20, start=100)
    assert len(names(root)) == 2
    assert two.drain() == [b"%d" % n for n in range(100, 120)]
    assert one.drain() == [b"%d" % n for n in range(10)]
    one.queue.release()
    two.queue.release()
    assert list(root.iterdir()) == []


# After a kill


def test_after_a_kill_all_that_was_not_settled_is_there_in_order(make, root):
    made = make()
    fill(made, 5_000)
    for _ in range(7):
        made.queue.ack(made.take())
    crash(made)
    after = make()
    assert after.drain() == [b"%d" % n for n in range(700, 5_000)]
    assert after.queue.counts() == (4_300, 0, 0, 0)
    assert after.queue.adopted == 4_300
    after.queue.release()
    assert list(root.iterdir()) == []


def test_after_a_kill_what_was_leased_goes_out_again_under_its_key(make):
    made = make()
    fill(made, 500)
    leased = [made.take() for _ in range(4)]
    made.queue.ack(leased.pop(1))
    made.queue.nack(leased[1])
    crash(made)
    after = make()
    batches = [after.take() for _ in range(4)]
    assert [(each.key, list(each.records)) for each in batches[:3]] == [
        (each.key, list(each.records)) for each in leased
    ]
    assert list(batches[3].records) == [b"%d" % n for n in range(400, 500)]
    assert after.take() is None


def test_after_a_kill_halves_go_out_again_under_their_keys(make):
    made = make()
    fill(made, 9)
    whole = made.take()
    made.queue.split(whole)
    first, second = made.take(), made.take()
    made.queue.ack(first)
    made.queue.split(second)
    made.queue.ack(made.take())
    crash(made)
    after = make()
    batch = after.take()
    assert batch.key == f"{whole.key}-1-1"
    assert batch.records == [b"6", b"7", b"8"]
    after.queue.ack(batch)
    assert after.take() is None


def test_a_second_kill_while_adopting_doubles_nothing(make, root):
    made = make()
    fill(made, 2_500)
    leased = made.take()
    crash(made)
    bodies = {leased.key: list(leased.records)}
    settled = []
    for turn in itertools.count():
        after = make()
        batch = None
        for _ in range(3):
            batch = after.take()
            if batch is None:
                break
            assert bodies.setdefault(batch.key, list(batch.records)) == list(batch.records)
            settled += batch.records
            after.queue.ack(batch)
        if batch is None:
            break
        held = after.take()  # on its way when the next kill comes
        if held is not None:
            bodies.setdefault(held.key, list(held.records))
        crash(after)
        assert turn < 50
    assert turn >= 7
    assert sorted(map(int, settled)) == list(range(2_500))
    after.queue.release()
    assert list(root.iterdir()) == []


def test_what_is_adopted_moves_no_position_of_what_waits(make):
    """Else a flush that is on its way ends before the events that it waits for are sent."""
    dead = make()
    fill(dead, 130)
    dead.take()
    crash(dead)
    made = make()
    fill(made, 50, start=1_000)
    target = made.queue.next_position()
    assert made.queue.unsettled_before(target) == 50
    adopted = made.take()
    assert len(adopted) == 100
    assert made.queue.unsettled_before(target) >= 50
    made.queue.ack(adopted)
    assert made.queue.unsettled_before(target) == 50
    own = made.take()
    assert [int(record) for record in own.records] == list(range(1_000, 1_050))
    assert made.queue.unsettled_before(target) == 50
    made.queue.ack(own)
    assert made.queue.unsettled_before(target) == 0
    assert made.queue.counts() == (180, 0, 30, 0)
    # Whoever flushes now waits for the rest of what was adopted too.
    assert made.queue.unsettled_before(made.queue.next_position()) == 30


def test_journals_of_several_dead_processes_are_read_one_after_the_other(make, root):
    dead = [make() for _ in range(5)]
    for n, made in enumerate(dead):
        fill(made, 30, start=100 * n)
        made.take(Limits(10, 500_000, 1.0))
    living = make()
    assert living.take() is None  # for none of them was dead when it looked
    living.queue.release()
    for made in dead:
        crash(made)
    after = make()
    assert sorted(map(int, after.drain())) == [100 * n + m for n in range(5) for m in range(30)]
    after.queue.release()
    assert list(root.iterdir()) == []


# The bound


def test_the_bound_holds_for_all_directories_together(make, root):
    made = make(max_journal_bytes=8 * MIB)
    fill_up(made)
    crash(made)
    after = make(max_journal_bytes=8 * MIB)
    fill_up(after)
    assert taken_under(root) <= 8 * MIB


def test_what_was_adopted_and_sent_makes_room(make, root):
    """Else a journal that was full when its process died would leave no room to the next one, ever."""
    made = make(max_journal_bytes=8 * MIB)
    count = fill_up(made)
    crash(made)
    after = make(max_journal_bytes=8 * MIB)
    assert len(after.drain()) >= count
    assert fill_up(after) >= count - 16
    assert taken_under(root) <= 8 * MIB


def test_what_another_process_sent_makes_room_too(make, root):
    other = make(max_journal_bytes=8 * MIB)
    fill_up(other)
    made = make(max_journal_bytes=8 * MIB)
    fill_up(made)
    assert taken_under(root) <= 8 * MIB
    assert not made.put(b"x" * 60_000)
    other.drain()
    other.queue.release()
    deadline = time.monotonic() + 10
    while not made.put(b"x" * 60_000):
        made.maintain()
        assert time.monotonic() < deadline
    assert made.drain()[-1] == b"x" * 60_000


# Callers


WATCHED = ("open", "os.", "mmap.", "shutil.", "fcntl.", "socket.")
audited = []
watching = []


def watch(event, arguments):
    if watching and event.startswith(WATCHED):
        audited.append((event, arguments))


@pytest.fixture(scope="module")
def audit_hook():
    sys.addaudithook(watch)  # there is no way to remove it, so it is one that can be told to rest


def test_put_makes_no_file_operation_once_segments_are_ready(make, audit_hook, monkeypatch):
    made = make()
    made.put(b"the first")
    made.maintain()
    for name in ("pwrite", "write", "pread", "read", "fsync"):  # these raise no audit event
        monkeypatch.setattr(os, name, lambda *_, name=name: audited.append(name))
    audited.clear()
    watching.append(True)
    try:
        accepted = [made.put(b"%0500d" % n) for n in range(5_000)]  # two and a half segments
    finally:
        watching.clear()
    monkeypatch.undo()
    assert accepted == [True] * 5_000
    assert audited == []
    watching.append(True)
    made.maintain()
    watching.clear()
    assert audited  # they are noticed, as here, where new spares are made


def test_spares_are_made_by_the_drain_side_before_callers_need_them(make, audit_hook):
    made = make()
    made.put(b"the first")
    audited.clear()
    for n in range(40):
        made.maintain()
        watching.append(True)
        made.put(b"%d" % n * 300_000)
        watching.clear()
        made.drain()
    assert audited == []


class StruckError(BaseException):
    """Raised into a thread from outside."""


def strike(ident):
    assert (
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(StruckError)) == 1
    )


class Struck:
    """Threads that put without pause, and are struck again and again."""

    def __init__(self, put, count):
        self._put = put
        self._stop = threading.Event()
        self._ready, self._hits = [False] * count, [0] * count
        self.attempts = [0] * count
        self.accepted = [[] for _ in range(count)]
        self.errors = []
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def _put_on(self, which):
        self._ready[which] = True  # from here on it is left only by being struck
        while not self._stop.is_set():
            self.attempts[which] += 1
            record = b"%d:%d" % (which, self.attempts[which])
            if self._put(record):
                self.accepted[which].append(record)
            if self.attempts[which] % 30 == 0:
                time.sleep(2e-5)  # so that who strikes gets a turn

    def _work(self, which):
        while not self._stop.is_set():
            try:
                self._put_on(
                    which
                )  # no loop in here: in Python 3.13 the jump back of one is outside of the `try`
            except StruckError:
                self._ready[which] = False
                self._hits[which] += 1
            except BaseException as error:  # noqa: BLE001 - nothing else may come out of put
                self.errors.append(error)
                return

    def strike(self, which):
        self._wait_until(lambda: self._ready[which])
        before = self._hits[which]
        strike(self._threads[which].ident)
        self._wait_until(lambda: self._hits[which] > before)

    def _wait_until(self, check):
        while not check():
            assert not self.errors
            time.sleep(0)

    def end(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self.errors == []
        return sum(self._hits)


def test_exceptions_from_outside_lose_nothing_that_was_accepted(make, root, eager_switches):
    """What a greenlet's kill, a timeout or Ctrl-C may do to a caller, 600 times."""
    made = make(max_journal_bytes=256 * MIB)
    threads, strikes = 2, 600
    struck = Struck(made.put, threads)
    rng = random.Random(4)
    taken = []
    for _ in range(strikes):
        struck.strike(rng.randrange(threads))
        batch = made.take() if rng.random() < 0.3 else None
        if batch is not None:
            taken += batch.records
            made.queue.ack(batch)
    assert struck.end() == strikes
    taken += made.drain()
    # No segment went away with the thread that held it.
    made.queue.maintain()()
    own = made.queue.writer
    unsealed = [each for each in own.segments.values() if not each.is_sealed]
    assert sorted(each.segment_id for each in unsealed) == sorted(
        each.segment_id for each in (*own.open, *own.spares)
    )
    if sys.version_info >= (
        3,
        11,
    ):  # before that an exception may strike in any step, and leave an event behind
        assert len(own.segments) == len(unsealed)
    crash(made)
    after = make()
    later = after.drain()
    assert after.queue.lost == 0
    assert set(itertools.chain(*struck.accepted)) <= {*taken, *later}
    # Of an event whose put did not return nobody knows whether it was accepted, but it comes once or never.
    assert [record for record, times in Counter(taken + later).items() if times > 1] == []
    known = [record.split(b":") for record in taken + later]
    assert all(1 <= int(n) <= struck.attempts[int(which)] for which, n in known)
    after.queue.release()
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("where", ["payload", "header"])
def test_an_exception_in_the_middle_of_a_put_leaves_the_segment_usable(make, root, monkeypatch, where):
    made = make()
    fill(made, 3)
    calls = []

    def struck(*arguments):
        calls.append(arguments)
        raise StruckError

    monkeypatch.setattr(f"windback.queue.journal.{'crc32' if where == 'payload' else '_pack'}", struck)
    with pytest.raises(StruckError):
        made.put(b"x" * 5_000)
    monkeypatch.undo()
    assert calls
    fill(made, 3, start=3)
    assert made.queue.counts()[2] == 6
    assert made.queue.size_bytes == 6
    assert len(made.queue.writer.open) == 1
    crash(made)
    # Nothing of what was half written is taken for damage later.
    after = make()
    assert after.drain() == [b"%d" % n for n in range(6)]
    assert after.queue.lost == 0
    after.queue.release()
    assert list(root.iterdir()) == []


def test_a_put_that_the_close_overtakes_is_refused_or_kept(make, root, monkeypatch):
    """Another thread closed the client while this one was in the middle of a put."""
    made = make()
    fill(made, 3)
    made.drain()
    crc32 = fmt.crc32

    def overtaken(*arguments):
        made.queue.close("closed")
        made.queue.release()
        return crc32(*arguments)

    monkeypatch.setattr("windback.queue.journal.crc32", overtaken)
    was_accepted = made.put(b"late")
    monkeypatch.undo()
    crash(made)
    assert (b"late" in make().drain()) == was_accepted


def test_a_put_that_finds_the_journal_released_is_refused(make, root):
    """It saw an open queue, lost the processor, and comes back when all is over."""
    made = make()
    made.queue.release()
    made.queue.refusals.closed = (
        "closed"  # and not `close`, which moves the bound that this caller has read already
    )
    assert made.put(b"late") is False
    assert list(root.iterdir()) == []


def test_the_end_waits_for_who_tends_the_files(make, root, monkeypatch):
    made = make()
    fill(made, 3)
    made.drain()
    entered, go_on = threading.Event(), threading.Event()
    maintain = made.queue.writer.maintain

    def slow():
        entered.set()
        assert go_on.wait(10)
        maintain()

    monkeypatch.setattr(made.queue.writer, "maintain", slow)
    tending = threading.Thread(target=made.queue.maintain)
    tending.start()
    assert entered.wait(10)
    ending = threading.Thread(target=made.queue.release)
    ending.start()
    ending.join(0.1)
    assert ending.is_alive()
    go_on.set()
    tending.join()
    ending.join()
    assert list(root.iterdir()) == []
    made.queue.maintain()()  # and nothing is made after it
    assert list(root.iterdir()) == []


# Without a mapping, and trouble


@pytest.fixture
def unmapped(monkeypatch):
    """A file system where a store into a mapping is not safe: records are written by pwrite."""
    monkeypatch.setattr("windback.journal.directory._MAPPED", frozenset())


def test_without_a_mapping_everything_holds_too(make, root, unmapped):
    made = make()
    for n in range(10_000):
        assert made.put(b"%0200d" % n)
    assert made.queue.writer.open[-1].memory is None
    assert [int(record) for record in (made.take() or []).records] == list(range(100))
    crash(made)
    after = make()
    records = after.drain()
    assert [int(record) for record in records] == list(range(10_000))
    after.queue.release()
    assert list(root.iterdir()) == []


def test_a_write_that_ends_early_accepts_nothing(make, root, unmapped, monkeypatch, caplog):
    """The disk is full after all, as it may be where blocks are copied on write."""
    made = make(max_events=10)
    fill(made, 3)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[: len(data) // 2], at))
    assert made.put(b"x" * 1_000)  # in memory
    assert "events are kept only in memory for now" in caplog.text
    monkeypatch.undo()
    fill(made, 2, start=3)
    assert sorted(on_disk(root).values()) == [b"0", b"1", b"2", b"3", b"4"]
    assert sorted(made.drain()) == [b"0", b"1", b"2", b"3", b"4", b"x" * 1_000]
    crash(made)
    assert make().drain() == []


def test_while_the_disk_has_trouble_events_wait_in_memory_up_to_its_bounds(make, root, monkeypatch, caplog):
    caplog.set_level("INFO", "windback")
    monkeypatch.setattr("windback.journal.writer._RETRY_FIRST_S", 0.0)
    made = make(max_events=20)
    fill(made, 5)
    made.drain()
    fill_segments(made, monkeypatch)
    held = made.queue.counts()[2]
    accepted = fill(made, 30)
    assert accepted == [True] * (20 - held) + [False] * (10 + held)
    assert not made.queue.has_room_for(1)
    assert len([line for line in caplog.messages if "events are kept only in memory for now" in line]) == 1
    monkeypatch.undo()
    made.maintain()
    assert "events are written to the disk again" in caplog.text
    assert made.put(b"on disk")
    assert b"on disk" in on_disk(root).values()
    assert made.drain()[-1] == b"on disk"


def fill_segments(made, monkeypatch):
    """Have no segment left and none made."""

    def refused(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("windback.journal.segment.create", refused)
    own = made.queue.writer
    while own.open or own.spares:
        assert made.put(b"x" * (fmt.MAX_PAYLOAD_BYTES - 100))
        made.drain()


def test_dead_letters_hold_what_was_rejected(make, root):
    from windback.journal import dead
    from windback.stats import DeliveryReport

    made = make()
    made.put(b'{"event":"login"}')
    made.put(b'{"event":"logout"}')
    batch = made.take()
    report = DeliveryReport("rejected", 2, "invalid", 422, "no such event", batch.key, batch.records)
    assert made.queue.reject(batch, report) is True
    assert made.queue.counts()[2] == 0
    (path,) = dead.files(root)
    letters = list(dead.read(path))
    assert [letter.event for letter in letters] == [{"event": "login"}, {"event": "logout"}]
    assert {letter[1:5] for letter in letters} == {("invalid", 422, "no such event", batch.key)}
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_the_ids_of_a_directory_are_used_once(make, root, eager_switches):
    """By callers that make segments and by the drain side that makes ledgers, at the same time."""
    own = JournalWriter(root, 1 << 40)
    own.maintain()
    made = []

    def work(_):
        for _ in range(10):
            made.append(own._home.new_segment(fmt.EVENTS if len(made) % 2 else fmt.LEDGER))

    threads, failures = run_threads(work)
    for thread in threads:
        thread.join()
    assert failures == []
    assert len({each.segment_id for each in made}) == THREADS * 10
    for each in made:
        each.unlink()
    own.release()


def test_a_ledger_of_a_dead_process_goes_on_in_the_same_file(root):
    root.mkdir()
    home = JournalDirectory.create(root, mapped=True, synced=False, drains=True)
    ledger = Ledger.start(home)
    ledger.lease("one", [(1, 64, 88, 1)])
    ledger.lease("two", [(1, 88, 112, 1)])
    ledger.close()
    home.close()
    again = JournalDirectory.adopt(root, home.name)
    resumed = Ledger.resume(again)
    resumed.done("one")
    resumed.close()
    again.close()
    last = JournalDirectory.adopt(root, home.name)
    state = Ledger.resume(last).state
    assert state.leases == {"two": [(1, 88, 112, 1)]}
    assert 64 in state.done[1]
    assert 88 not in state.done[1]
    last.close()


def test_a_segment_that_cannot_be_removed_is_not_an_error_and_does_not_come_again(
    make, root, monkeypatch, caplog
):
    made = make()
    for n in range(40):
        made.put(b"%d" % n * 50_000)

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("windback.journal.segment.remove", refused)
    assert len(made.drain()) == 40
    assert len([line for line in caplog.messages if "Permission denied" in line]) == 1
    made.queue.release()
    monkeypatch.undo()
    assert files(root)
    after = make()
    assert after.drain() == []
    after.queue.release()
    assert list(root.iterdir()) == []


def test_a_ledger_that_would_be_too_long_is_an_error_of_the_disk(root):
    """Nothing makes one; but if something did, delivery would go on."""
    root.mkdir()
    home = JournalDirectory.create(root, mapped=True, synced=False, drains=True)
    ledger = Ledger.start(home)
    for n in range(80_000):
        ledger.state.leases[f"{n:032x}"] = [(1, 64, 88, 1)]

    def lease_on():
        while True:
            ledger.lease("one", [(1, 64, 88, 1)] * 1_000)

    with pytest.raises(OSError, match="too large"):
        lease_on()
    ledger.close()
    home.close()
    again = JournalDirectory.adopt(root, home.name)
    assert list(Ledger.resume(again).state.leases) == ["one"]
    again.close()
