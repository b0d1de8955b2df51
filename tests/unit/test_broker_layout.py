"""What stands in a stream is what a worker had, byte for byte, and anything else is told."""

from __future__ import annotations

import os
from collections import deque

import pytest

from windback.broker.layout import Entry, ForeignError, entry_of, fields_of, foreign_letter, letters_of
from windback.broker.stream import Held
from windback.event.batch import Batch, Limits
from windback.event.encode import encode
from windback.queue.line import Line
from windback.queue.outbox import Outbox
from windback.stats import DeliveryReport


def stored(values):
    """Return fields as Redis gives them back."""
    texts = [value if isinstance(value, bytes) else str(value).encode() for value in values]
    return dict(zip(texts[::2], texts[1::2]))


def test_a_batch_comes_back_byte_for_byte():
    records = [
        encode("login", "jane@example.com", {"text": text, "n": n}, None, 65_536)
        for n, text in enumerate(["plain", "two\nlines\r\n", "\u2028 \x85 \x00", '"quoted"', "{}"])
    ]
    entry = entry_of(b"1-0", stored(fields_of(records, "key", "shop")), "shop")
    assert entry == (b"1-0", "key", "shop", records)
    assert entry_of(b"1-0", stored(fields_of(records[:1], "key", None)), None).project == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({b"v": None}, "no field 'v'"),
        ({b"events": None}, "no field 'events'"),
        ({b"v": b"2"}, "version"),
        ({b"count": b"1"}, "count"),
        ({b"count": b"x"}, "count"),
        ({b"events": b"a\n\nb"}, "count"),
        ({b"key": b""}, "its key is not an Idempotency-Key"),
        ({b"key": b"x" * 201}, "its key is not an Idempotency-Key"),
        ({b"key": b"a\r\nX-Header: b"}, "its key is not an Idempotency-Key"),
        ({b"key": b"\xff"}, "not an Idempotency-Key"),
        ({b"project": b"\xff"}, "another"),
        ({b"project": b"blog"}, "it belongs to the project b'blog', whose stream is another"),
        ({b"project": b""}, "another"),
    ],
)
def test_what_is_not_ours_is_reported(changes, says):
    fields = {**stored(fields_of([b"{}", b"{}"], "key", "shop")), **changes}
    fields = {name: value for name, value in fields.items() if value is not None}
    with pytest.raises(ForeignError, match=says):
        entry_of(b"1-0", fields, "shop")


def test_any_bytes_at_all_are_read_or_told():
    for _ in range(200):
        fields = {name: os.urandom(8) for name in (b"v", b"key", b"count", b"project", b"events")}
        fields[b"v"], fields[b"count"] = b"1", b"%d" % (fields[b"events"].count(b"\n") + 1)
        try:
            entry_of(b"1-0", fields, "shop")
        except ForeignError:
            continue


def test_an_entry_is_done_once_all_its_events_are_settled_however_it_was_split():
    done, wakes = deque(), []
    entry = Entry(b"1-0", "key", "shop", [b"{}"] * 5)
    held = Held(entry, done, lambda: wakes.append(1))
    outbox = Outbox(Line(100))
    first, second = Batch(entry.records, 0, source=held).halves()
    quarters = second.halves()
    for _ in range(2):
        held.split(second, quarters)
    outbox.add_batches([first, *quarters])
    batches = [outbox.take(Limits(100, 500_000, 1.0)) for _ in range(3)]
    assert batches == [first, *quarters]
    held.settle(first)  # an error comes in between, and the batch is sent again
    outbox.ack(first)
    outbox.ack(quarters[0])
    assert not done
    held.settle(quarters[1])
    outbox.ack(quarters[1])
    assert (list(done), len(wakes)) == ([held], 1)


def test_a_dead_letter_reports_all_there_is_to_say():
    entry = entry_of(b"1-0", stored(fields_of([b"{}", b'{"n":2}'], "key", "shop")), "shop")
    report = DeliveryReport("rejected", 1, "invalid", 422, "no such plan")
    (letter,) = letters_of(entry, [b'{"n":2}'], "key-1", report)
    assert stored(letter) == {
        b"reason": b"invalid",
        b"status": b"422",
        b"message": b"no such plan",
        b"key": b"key-1",
        b"project": b"shop",
        b"entry": b"1-0",
        b"event": b'{"n":2}',
    }


def test_of_an_entry_that_is_not_ours_a_bounded_part_is_kept():
    fields = {b"%d" % n: b"x" for n in range(5000)}
    letter = stored(foreign_letter(b"1-0", fields, "why"))
    assert len(letter) == 103
    assert letter[b"of:0"] == b"x"
