"""Whatever is in a journal ends in a result or in a documented error, within bounded time.

Each test is a target of `make fuzz`, which feeds it new values for minutes. Here each gets a few, always the
same.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

from fuzzing import (
    bodies,
    dumped,
    json_leaves,
    json_values,
    mixed,
    target,
)
from hypothesis import strategies as st

from windback.event.batch import Batch
from windback.journal import dead, inspect, ledger
from windback.journal import format as fmt
from windback.journal.directory import JournalDirectory
from windback.journal.reader import Reader
from windback.remote.counters import Block, Counters

# -- Files ---------------------------------------------------------------------------------------------

NONCE = 7


def segment_bytes(kind, payloads):
    """Return the bytes of a segment of ours that has these records."""
    start = fmt.seed(NONCE, 1, kind)
    data = bytearray(fmt.pack_header(fmt.Header(kind, 1, NONCE, 1, 1)))
    for number, payload in enumerate(payloads):
        at = len(data)
        data += fmt.pack_record(start, at, number, payload) + payload
        data += b"\0" * (-len(data) % 8)
    return bytes(data)


records = st.lists(st.binary(min_size=1, max_size=60), max_size=8)
damages = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "zero", "insert", "swap"]),
        st.integers(0, 800),
        st.binary(max_size=40),
    ),
    max_size=4,
)


def damaged(data, damage):
    for how, place, more in damage:
        at = place % max(1, len(data))
        if how == "flip":
            data = data[:at] + bytes([(data[at] if at < len(data) else 0) ^ (1 << (at % 8))]) + data[at + 1 :]
        elif how == "cut":
            data = data[:at]
        elif how == "zero":
            data = data[:at] + bytes(len(more)) + data[at + len(more) :]
        elif how == "insert":
            data = data[:at] + more + data[at:]
        else:
            data = data[at:] + data[:at]
    return data


@target(records, damages, st.integers(0, 3))
def test_segment(payloads, damage, kind):
    whole = segment_bytes(kind, payloads)
    data = damaged(whole, damage)
    start = fmt.seed(NONCE, 1, kind)
    found = list(fmt.scan(data, start))
    assert [each.payload for each in found if each.payload not in payloads] == []
    assert len(found) <= len(payloads)
    assert list(fmt.prefix(data, start)) == found[: len(list(fmt.prefix(data, start)))]
    with contextlib.suppress(fmt.ForeignError):
        fmt.read_header(data)
    if data == whole:
        assert [each.payload for each in found] == payloads


extent = st.one_of(
    st.lists(st.integers(0, 2**21), min_size=4, max_size=4), st.lists(json_leaves, max_size=5), json_leaves
)
entries = st.one_of(
    st.fixed_dictionaries(
        {
            "leases": st.dictionaries(st.text(max_size=3), st.lists(extent, max_size=3)),
            "segments": st.dictionaries(
                st.one_of(st.integers(0, 9).map(str), st.text(max_size=2)),
                st.one_of(json_values, st.lists(st.lists(st.integers(0, 99), max_size=3))),
            ),
        }
    ),
    st.fixed_dictionaries(
        {"lease": st.one_of(st.text(max_size=3), json_leaves), "extents": st.lists(extent, max_size=3)}
    ),
    st.fixed_dictionaries({"done": st.one_of(st.text(max_size=3), json_leaves)}),
    st.fixed_dictionaries(
        {
            "split": st.text(max_size=3),
            "halves": st.lists(st.tuples(st.text(max_size=3), st.lists(extent, max_size=2))),
        }
    ),
    json_values,
)


@target(st.lists(entries, max_size=5))
def test_ledger(found):
    payloads = [dumped(entry) for entry in found]
    scanned = list(fmt.scan(segment_bytes(fmt.LEDGER, payloads), fmt.seed(NONCE, 1, fmt.LEDGER)))
    state = ledger.state_of(scanned)
    if state is None:
        return
    for key in list(state.leases):  # as the next owner does
        assert isinstance(key, str)
        for segment_id, start, end, count in state.leases[key]:
            assert {int} >= {type(segment_id), type(start), type(end), type(count)}
        state.settle(key)
    for segment_id, ranges in state.done.items():
        assert isinstance(segment_id, int)
        assert 64 not in ranges or ranges.parts


@target(
    st.dictionaries(
        st.sampled_from(["0000000000000007", "dead", "x", "bad"]),
        st.dictionaries(
            st.integers(0, 7),
            st.one_of(
                st.binary(max_size=200),
                records.map(lambda each: segment_bytes(1, each)),
                st.lists(entries, max_size=3).map(lambda each: segment_bytes(2, list(map(dumped, each)))),
                bodies,
            ),
            max_size=4,
        ),
        max_size=3,
    )
)
def test_journal_directory(tree):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, files in tree.items():
            (root / name).mkdir(mode=0o700)
            for number, content in files.items():
                path = fmt_path(root / name, number)
                path.write_bytes(content[: 1 << 16])
        root.chmod(0o700)
        list(inspect.events(root))
        list(inspect.check(root))
        list(map(inspect.directory, inspect.homes(root)))
        for path in dead.files(root):
            list(dead.read(path))
        home = JournalDirectory.adopt(root, "0000000000000007")
        if home is not None:
            read_all(home)


def read_all(home):
    """Drain a directory, as its next owner does."""
    try:
        reader = Reader(home)
    except (OSError, fmt.NewerError):
        home.close()
        return
    try:
        batches = reader.leased()
        found = reader.read(100)
        batches.append(
            Batch(
                [each.payload for each in found],
                0,
                "k",
                source=reader,
                locations=[each.location for each in found],
            )
        )
        for batch in batches:
            reader.lease(batch)
            reader.settle(batch)
    finally:
        reader.close()


def fmt_path(folder, number):
    from windback.journal import segment

    if number < 6:
        return segment.path_of(folder, (fmt.EVENTS, fmt.LEDGER)[number % 2], number // 2)
    return folder / ("rejected.jsonl", "counters")[number % 2]


@target(
    st.lists(
        st.one_of(
            bodies.map(lambda line: line[:2_000]),
            mixed("rejected_at", "reason", "status", "message", "idempotency_key", "event").map(dumped),
        ),
        max_size=4,
    )
)
def test_dead_letters(lines):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_bytes(b"\n".join(lines))
        for letter, event in dead.read(path):
            json.loads(event)
            assert isinstance(letter, dead.Letter)
        dead.count(path)


@target(st.one_of(bodies, mixed(*Counters._fields, "newer").map(dumped)))
def test_counters(body):
    from zlib import crc32

    block = Block.create()
    data = body[:60_000]
    os.pwrite(block.descriptor, len(data).to_bytes(4, "little") + crc32(data).to_bytes(4, "little") + data, 0)
    counters = block.read()
    for name, kind in (
        ("settled", dict),
        ("rejected_by_reason", dict),
        ("seen", int),
        ("adopted", int),
        ("in_flight", int),
    ):
        assert isinstance(getattr(counters, name), kind), name
    assert isinstance(counters.problem, (str, type(None)))
    assert all(
        type(count) is int for count in (*counters.settled.values(), *counters.rejected_by_reason.values())
    )
