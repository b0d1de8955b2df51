"""When a batch is due, and how much goes into it."""

from __future__ import annotations

import json
import random

import pytest

from windback.event.batch import Limits, chunks, cut, join, wait_s

LIMITS = Limits(max_events=10, max_bytes=1_000, interval_s=2.0)


@pytest.mark.parametrize(
    ("count", "size", "age", "expected"),
    [
        (0, 0, 99.0, None),
        (1, 10, 0.0, 2.0),
        (1, 10, 0.5, 1.5),
        (1, 10, 2.0, 0.0),
        (1, 10, 99.0, 0.0),
        (9, 999, 0.0, 2.0),
        (10, 10, 0.0, 0.0),
        (11, 10, 0.0, 0.0),
        (2, 1_000, 0.0, 0.0),
    ],
    ids=["nothing", "new", "young", "due", "overdue", "nearly full", "full", "more", "full by bytes"],
)
def test_a_batch_is_due_when_it_is_full_or_its_first_event_has_waited(count, size, age, expected):
    assert wait_s(count, size, age, LIMITS) == expected


def test_a_batch_takes_no_more_events_than_the_limit():
    assert cut([b"x"] * 25, LIMITS) == 10
    assert cut([b"x"] * 3, LIMITS) == 3
    assert cut([], LIMITS) == 0


def test_a_batch_fills_the_byte_limit_exactly():
    # 13 bytes of frame, five records and four commas.
    records = [b"x" * 100] * 5
    body = len(join(records))
    assert body == 13 + 500 + 4
    assert cut(records, Limits(10, body, 1.0)) == 5
    assert cut(records, Limits(10, body - 1, 1.0)) == 4


def test_an_event_too_large_for_any_batch_travels_alone():
    assert cut([b"x" * 5_000, b"y"], LIMITS) == 1
    assert cut([b"y", b"x" * 5_000], LIMITS) == 1


def test_chunks_lose_nothing_keep_the_order_and_keep_the_limits():
    rng = random.Random(7)
    for _ in range(200):
        records = [b"%d" % n * rng.randint(1, 40) for n in range(rng.randint(0, 50))]
        limits = Limits(rng.randint(1, 12), rng.randint(20, 300), 1.0)
        parts = chunks(records, limits)
        assert [each for part in parts for each in part] == records
        for part, following in zip(parts, [*parts[1:], []]):
            assert 1 <= len(part) <= limits.max_events
            assert len(part) == 1 or len(join(part)) <= limits.max_bytes
            if following:  # as few as the limits allow: the next one would not have fitted
                grown = [*part, following[0]]
                assert len(grown) > limits.max_events or len(join(grown)) > limits.max_bytes


def test_a_body_is_the_documented_json():
    assert json.loads(join([b'{"event":"a"}', b'{"event":"b"}'])) == {
        "events": [{"event": "a"}, {"event": "b"}]
    }
