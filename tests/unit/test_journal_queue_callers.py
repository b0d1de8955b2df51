"""What only a queue on disk promises its callers, without a mapping and in trouble, too."""

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
from made_queues import MIB, THREADS, crash, files, fill, making_queues, on_disk, run_threads

from windback.journal import format as fmt
from windback.journal.directory import JournalDirectory
from windback.journal.ledger import Ledger
from windback.journal.writer import JournalWriter

pytest.importorskip("fcntl", reason="this system has no flock")


@pytest.fixture
def make(root):
    with making_queues(root) as make:
        yield make


@pytest.fixture
def root(tmp_path):
    return tmp_path / "journal"


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
    letters = [letter for letter, _ in dead.read(path)]
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
