"""track_events: which batch is next, and what an answer to it means."""

from __future__ import annotations

import pytest

import windback
from windback.api.answer import Answer, Failure
from windback.delivery.track_events import DirectSend, encode_all
from windback.event.batch import Limits
from windback.event.encode import encode

GOOD = {"event": "login", "customer_email": "jane@example.com"}
LIMITS = Limits(100, 500_000, 1.0)
OK = Answer(200)


def direct(count, limits=LIMITS, **options):
    return DirectSend([b'{"n":%d}' % n for n in range(count)], limits, **{"gzip": False, **options})


def settle(send, answer):
    batch = send.next_batch()
    send.settle(batch, answer, 0.0, lambda text: text)
    return batch


def test_all_events_are_encoded_before_any_is_sent():
    records = encode_all(iter([GOOD] * 3), encode, 65_536)
    assert len(records) == 3
    assert all(isinstance(each, bytes) for each in records)


def test_an_event_that_before_send_refused_is_counted_and_not_sent():
    send = DirectSend([b"{}", None, b"{}"], LIMITS, gzip=False)
    assert list(settle(send, OK).records) == [b"{}", b"{}"]
    assert send.next_batch() is None
    assert send.result() == windback.TrackResult(sent=2, requests=1, refused=1)


def test_as_few_requests_as_the_limits_ask_are_made_in_order():
    send = direct(250)
    sizes, seen = [], []
    while send.next_batch() is not None:
        batch = settle(send, OK)
        sizes.append(len(batch))
        seen += batch.records
    assert sizes == [100, 100, 50]
    assert seen == [b'{"n":%d}' % n for n in range(250)]
    assert send.result() == windback.TrackResult(sent=250, requests=3)


def test_each_batch_has_a_key_of_its_own_which_it_keeps():
    send = direct(150)
    first = send.next_batch()
    assert send.next_batch() is first
    assert settle(send, OK).key != settle(send, OK).key


def test_413_sends_the_halves_under_derived_keys():
    send = direct(4)
    whole = settle(send, Answer(413))
    halves = [settle(send, OK), settle(send, OK)]
    assert [list(each.records) for each in halves] == [list(whole.records[:2]), list(whole.records[2:])]
    assert [each.key for each in halves] == [f"{whole.key}-0", f"{whole.key}-1"]
    assert send.result() == windback.TrackResult(sent=4, requests=2)


def test_413_on_one_event_is_an_error():
    with pytest.raises(windback.ValidationError) as caught:
        settle(direct(1), Answer(413))
    assert caught.value.status == 413


def test_gzip_refused_sends_the_same_batch_plain():
    send = direct(3, gzip=True)
    first = settle(send, Answer(415))
    assert not send.gzip
    assert send.next_batch() is first
    settle(send, OK)
    assert send.result().sent == 3


def test_400_is_an_error_and_no_bisection():
    send = direct(3)
    with pytest.raises(windback.ValidationError, match="bad") as caught:
        settle(send, Answer(400, {}, b'{"error": "bad"}'))
    assert caught.value.message == "bad"


def test_an_error_in_the_middle_reports_how_many_were_delivered_before():
    send = direct(250)
    settle(send, OK)
    with pytest.raises(windback.WindbackConnectionError) as caught:
        settle(send, Answer(None, failure=Failure.CONNECT))
    assert caught.value.message == "could not connect (100 of 250 events were delivered before)"
    assert str(caught.value) == caught.value.message == caught.value.args[0]


def test_no_events_are_no_batch():
    send = direct(0)
    assert send.next_batch() is None
    assert send.result() == windback.TrackResult(sent=0, requests=0)
