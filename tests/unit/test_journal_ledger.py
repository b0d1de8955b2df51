"""What a ledger's records add up to, and that what is not a ledger's is not used."""

from __future__ import annotations

import orjson
import pytest

from windback.journal import format as fmt
from windback.journal.ledger import state_of


def state(*entries):
    """Return the state of a ledger with these entries."""
    records, at = [], fmt.HEADER_BYTES
    for number, entry in enumerate(entries):
        payload = orjson.dumps(entry)
        records.append(fmt.Record(at, at + 8 * len(payload), number, payload))
        at = records[-1].until
    return state_of(records)


BEGIN = {"leases": {"a": [[1, 64, 128, 2]]}, "segments": {}}


def test_leases_are_taken_split_and_settled():
    lease = {"lease": "b", "extents": [[1, 128, 192, 3]]}
    split = {"split": "b", "halves": [["b-0", [[1, 128, 160, 1]]], ["b-1", [[1, 160, 192, 2]]]]}
    found = state(BEGIN, lease, split, {"done": "b-0"}, {"done": "a"})
    assert found.leases == {"b-1": [(1, 160, 192, 2)]}
    assert 64 in found.done[1]


TEXTS = ["", "a b", "a\r\nX-Admin: 1", "a\0", "\u00e4", "a" * 201]


@pytest.mark.parametrize("key", [None, 7, [], *TEXTS], ids=repr)
def test_a_key_that_can_not_be_sent_in_a_header_is_not_a_ledger_of_ours(key):
    extents = [[1, 64, 128, 2]]
    assert state(BEGIN, {"lease": key, "extents": extents}) is None
    assert state(BEGIN, {"split": "a", "halves": [[key, extents]]}) is None


@pytest.mark.parametrize("key", TEXTS, ids=repr)
def test_nor_is_a_snapshot_that_has_one(key):
    assert state({"leases": {key: [[1, 64, 128, 2]]}, "segments": {}}) is None
