"""What only a queue on disk promises: its files, a kill, and the bound."""

from __future__ import annotations

import itertools
import os
import time

import pytest
from made_queues import MIB, crash, files, fill, fill_up, making_queues, on_disk

from windback.event.batch import Limits
from windback.journal import format as fmt
from windback.journal.directory import names
from windback.journal.writer import SPARES

pytest.importorskip("fcntl", reason="this system has no flock")


ONE = Limits(1, 500_000, 1.0)


@pytest.fixture
def make(root):
    with making_queues(root) as make:
        yield make


@pytest.fixture
def root(tmp_path):
    return tmp_path / "journal"


def taken_under(root):
    """What the disk has given, and not what the sizes of files say."""
    return sum(path.lstat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


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


@pytest.mark.parametrize("of", ["this process", "an exited process"])
def test_a_batch_counts_once_though_it_is_settled_again(make, root, of):
    """An error in the middle of `ack` does that: the batch is given back, taken and settled once more."""
    made = make()
    fill(made, 4)
    if of == "an exited process":
        crash(made)
        made = make()
        made.maintain()
    batch = made.take(ONE)
    batch.source.settle(batch)
    made.queue.ack(batch)
    assert made.drain() == [b"1", b"2", b"3"]
    made.queue.release()
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
