"""The queue on disk beside a model of it, through puts, answers and crashes in any order.

A crash is one at any byte: the last record, an event's or the ledger's, is cut to any part of it, and the
removal of files may stop before any of them. What is held against the model are the invariants

- I1 what was accepted and not acked is recovered, and nothing that was acked and recorded is;
- I2 what is recovered is what was accepted, byte for byte, once, and in order;
- I5 recovering and crashing again changes nothing;
- I6 no key is ever seen with two different bodies.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from inside import ledger_of, reader_of
from sides import journal_queue

from windback.event.batch import Limits
from windback.journal import format as fmt
from windback.journal import segment
from windback.journal.directory import names
from windback.journal.ledger import OFFSET_BITS

pytest.importorskip("fcntl", reason="this system has no flock")

MIB = 1 << 20


class KilledError(BaseException):
    """Stands for the end of the process, so nothing may catch it."""


#: Where a record is cut: in its payload, in its header behind the whole payload, or anywhere in both in the
#: order in which they stand in the file, as where `pwrite` writes them.
CUTS = st.tuples(st.sampled_from(["payload", "header", "front"]), st.floats(0, 1))


def cut(path, at, until, how):
    """Leave of the record from *at* to *until* what a writer had written when it was killed."""
    kind, part = how
    with path.open("r+b") as file:
        file.seek(at)
        whole = file.read(until - at)
        length = fmt.RECORD.unpack_from(whole)[0]
        head, payload = whole[: fmt.RECORD_BYTES], whole[fmt.RECORD_BYTES : fmt.RECORD_BYTES + length]
        if kind == "payload":
            head, payload = b"", payload[: int(part * length)]
        elif kind == "header":
            head = head[: int(part * fmt.RECORD_BYTES)]
        else:
            both = (head + payload)[: int(part * (fmt.RECORD_BYTES + length))]
            head, payload = both[: fmt.RECORD_BYTES], both[fmt.RECORD_BYTES :]
        file.seek(at)
        file.write((head.ljust(fmt.RECORD_BYTES, b"\0") + payload).ljust(until - at, b"\0"))


ANSWERS = ["ack", "ack", "nack", "split", "hold"]
ENDS = [
    "between_calls",
    "in_a_put",
    "in_a_lease",
    "in_an_ack",
    "in_a_split",
    "while_files_are_removed",
    "while_it_is_released",
    "while_files_are_made",
    "in_good_order",
]


class JournalMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp(prefix="windback-"))
        self.root = self.folder / "journal"
        self.number = 0
        #: Accepted and not acked. What is in doubt was cut: it may be there or not, but not both in turn.
        self.accepted, self.in_doubt, self.gone = set(), set(), set()
        self.hands = []
        self.bodies = {}
        self.open()

    def teardown(self):
        if hasattr(self, "queue"):
            self.crash()
            self.drain()
            self.queue.release()
            # A header that was cut is damage: nobody can tell that it was never whole.
            assert {path.name for path in self.root.iterdir()} <= {"bad"}
            shutil.rmtree(self.folder)

    # -- the world -----------------------------------------------------------------------------

    def open(self):
        with mock.patch("windback.journal.writer.SPARES", 1):
            self.queue = journal_queue(
                100, MIB, "drop_newest", lambda: None, lambda _: None, self.root, 256 * MIB
            )
            self.queue.writer.prepare()

    def crash(self):
        self.queue.reset()
        self.hands = []
        self.open()

    def maintain(self):
        with mock.patch("windback.journal.writer.SPARES", 1):
            while self.queue.needs_maintenance:
                self.queue.maintain()()

    def take(self, most):
        self.maintain()
        return self.queue.take(Limits(most, 4 * MIB, 1.0))

    def receive(self, batch):
        """Check what was taken against the model."""
        assert self.bodies.setdefault(batch.key, tuple(batch.records)) == tuple(batch.records), "I6"
        assert len(batch.records) == len(batch.locations)
        numbers = [int(record.split(b":")[0]) for record in batch.records]
        assert numbers == sorted(numbers), "I2: in order"
        for record in batch.records:
            assert record not in self.gone, "I1: it was acked, or was not there a moment ago"
            assert all(record not in other.records for other in self.hands), "I2: once"
            if record in self.in_doubt:
                self.in_doubt.discard(record)
                self.accepted.add(record)
            assert record in self.accepted, "I2: as it was accepted"
        self.hands.append(batch)

    def record(self, size):
        self.number += 1
        return b"%d:" % self.number + os.urandom(size).hex().encode()[:size]

    # -- the rules -----------------------------------------------------------------------------

    @rule(count=st.integers(1, 12), size=st.sampled_from([0, 1, 7, 40, 300]))
    def put(self, count, size):
        for _ in range(count):
            record = self.record(size)
            assert self.queue.put(record) is True
            self.accepted.add(record)

    @rule(size=st.sampled_from([200_000, 524_288]))
    def put_much(self, size):
        record = self.record(size)
        assert self.queue.put(record) is True
        self.accepted.add(record)

    @rule(answers=st.lists(st.tuples(st.integers(1, 20), st.sampled_from(ANSWERS)), min_size=1, max_size=6))
    def work(self, answers):
        """Take batches, and answer each, or another that was held; or hold it."""
        for most, answer in answers:
            batch = self.take(most)
            if batch is not None:
                self.receive(batch)
            if self.hands and answer != "hold":
                self.answer(self.hands[most % len(self.hands)], answer)

    def answer(self, batch, answer):
        self.hands.remove(batch)
        if answer == "nack":
            self.queue.nack(batch)
        elif answer == "split" and len(batch) > 1:
            self.queue.split(batch)
        else:
            self.queue.ack(batch)
            self.accepted.difference_update(batch.records)
            self.gone.update(batch.records)

    @rule()
    def drain(self):
        """Take everything there is, and find exactly what the model has."""
        for batch in reversed(self.hands):
            self.queue.nack(batch)
        self.hands = []
        found = set()
        batch = self.take(100)
        while batch is not None:
            self.receive(batch)
            self.hands = []
            self.queue.ack(batch)
            self.gone.update(batch.records)
            found.update(batch.records)
            batch = self.take(100)
        assert found == self.accepted, "I1"
        self.gone |= self.in_doubt
        self.accepted, self.in_doubt = set(), set()

    # -- ends ----------------------------------------------------------------------------------

    @rule(kind=st.sampled_from(ENDS), how=CUTS, size=st.sampled_from([1, 7, 40]))
    def end(self, kind, how, size):
        getattr(self, kind)(how=how, size=size)
        self.crash()

    def between_calls(self, **_):
        """Nothing is cut."""

    def in_a_put(self, how, size):
        record = self.record(size)
        assert self.queue.put(record) is True
        place = self.queue._places[-1]
        path = self.queue.writer.segments[place >> OFFSET_BITS].path
        at = place & (fmt.SEGMENT_BYTES - 1)
        self.in_doubt.add(record)
        cut(path, at, at + fmt.padded(len(record)), how)

    def in_a_lease(self, how, size):
        """The batch was not sent, so its key was not seen."""
        self.maintain()
        before = self.ledgers()
        self.queue.take(Limits(size, 4 * MIB, 1.0))
        self.cut_ledger(before, how)

    def in_an_ack(self, how, size):
        before = self.ledgers()
        if self.hands:
            batch = self.hands[size % len(self.hands)]
            self.queue.ack(batch)
            self.accepted.difference_update(batch.records)
            self.in_doubt.update(batch.records)
        self.cut_ledger(before, how)

    def in_a_split(self, how, size):
        before = self.ledgers()
        batches = [batch for batch in self.hands if len(batch) > 1]
        if batches:
            self.queue.split(batches[size % len(batches)])
        self.cut_ledger(before, how)

    def while_files_are_removed(self, size, **_):
        self.remove_some(size % 7, lambda: None)

    def while_it_is_released(self, size, **_):
        self.remove_some(size % 7, self.queue.release)

    def remove_some(self, operations, end):
        left = [operations]
        remove = segment.remove
        home = self.queue.writer._home

        def removing(path):
            if not left[0]:
                raise KilledError
            left[0] -= 1
            remove(path)

        with mock.patch("windback.journal.segment.remove", removing):
            try:
                self.maintain()
                end()
            except KilledError:
                home.close()  # as the kernel does; for once it is in nobody's hands

    def while_files_are_made(self, **_):
        """What is left then has another name, and is in nobody's way."""
        for name in names(self.root):
            for suffix in (".seg", ".ledger"):
                ids = [int(path.stem) for path in (self.root / name).glob("*" + suffix)]
                for segment_id in range(max(ids, default=0) + 1, max(ids, default=0) + 4):
                    (self.root / name / f"{segment_id:08d}{suffix}.tmp").write_bytes(b"unfinished")

    def in_good_order(self, **_):
        self.queue.discard()
        self.queue.release()

    def ledgers(self):
        """Where each ledger ends, by its file."""
        sources = [self.queue.writer, *(filter(None, [reader_of(self.queue)]))]
        return {ledger_of(source).path: ledger_of(source).end for source in sources}

    def cut_ledger(self, before, how):
        for path, until in self.ledgers().items():
            at = before.get(path, until)
            if until > at:
                cut(path, at, until, how)

    @invariant()
    def numbers_fit(self):
        if hasattr(self, "queue"):
            accepted, evicted, pending, leased = self.queue.counts()
            assert evicted == 0
            assert leased == sum(map(len, self.hands))
            assert leased <= pending <= accepted
            assert pending <= len(self.accepted) + len(self.in_doubt)


JournalMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# Long enough to shrink what fails.
TestJournal = pytest.mark.timeout(600)(JournalMachine.TestCase)
