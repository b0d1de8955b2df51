"""The local server over real sockets: tracking, keys, sizes, compression and idempotency."""

from __future__ import annotations

import gzip
import json
import re
import time
import tracemalloc
from contextlib import closing
from typing import Iterator

import pytest
from devserver_calls import EVENT, FLOW, PUBLIC, SECRET, batch, call, track

from windback.devserver import DevServer
from windback.devserver.body import decode
from windback.devserver.errors import ApiError
from windback.devserver.limits import Limits
from windback.devserver.store import Store
from windback.devserver.tracked import Arrival
from windback.devserver.validation import track_rows


@pytest.fixture(scope="module")
def running() -> Iterator[DevServer]:
    with DevServer(max_body_bytes=100_000, generate_s=0.1) as server:
        yield server
        assert server.log() == "", "the server printed warnings or tracebacks"


# Tracking


def test_one_event_is_stored_as_it_was_sent(server):
    event = {
        "event": "feature_used",
        "customer_email": "jane@example.com",
        "customer_name": "Jane",
        "customer_id": "c1",
        "properties": {"feature": "exports", "deep": {"list": [1, 2.5, None, "é"]}},
        "timestamp": "2025-12-01T10:00:00.123+02:00",
    }
    reply = track(server, event, headers={"idempotency-key": "k1"})
    assert (reply.status, reply.json) == (200, {"status": "ok"})
    assert reply.headers["content-type"] == "application/json"
    (stored,) = server.events()
    assert stored.event == "feature_used"
    assert (stored.customer_email, stored.customer_name, stored.customer_id) == (
        "jane@example.com",
        "Jane",
        "c1",
    )
    assert stored.properties == event["properties"]
    assert stored.timestamp == "2025-12-01T10:00:00.123+02:00"
    assert stored.idempotency_key == "k1"


def test_a_batch_is_stored_in_order_and_times_default_to_arrival(server):
    assert track(server, batch(100)).status == 200
    events = server.events()
    assert [event.properties["n"] for event in events] == list(range(100))
    assert {event.timestamp for event in events} == {events[0].received_at}
    assert len({event.batch_id for event in events}) == 1


def test_events_and_distinct_events_are_counted_apart(server):
    track(server, batch(3))
    track(server, batch(4))
    assert server.counts().events == 7
    assert server.distinct_events() == 4


def test_more_events_than_a_page_are_all_listed(server):
    for _ in range(51):
        assert track(server, batch(100)).status == 200
    assert len(server.events()) == server.counts().events == 5_100


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"event": ""}, "event:"),
        ({"event": "  "}, "event:"),
        ({"event": 7}, "event:"),
        ({"event": None}, "event:"),
        ({"customer_email": "jane"}, "customer_email:"),
        ({"customer_email": "a b@c"}, "customer_email:"),
        ({"customer_email": 3}, "customer_email:"),
        ({"customer_email": None}, "customer_email: is missing"),
        ({"customer_id": 3}, "customer_id:"),
        ({"customer_name": 3}, "customer_name:"),
        ({"timestamp": "2025-12-01T10:00:00"}, "timestamp:"),
        ({"timestamp": "2025-02-30T10:00:00Z"}, "timestamp: is not a time"),
        ({"timestamp": "2025-12-01T24:00:00Z"}, "timestamp: is not a time"),
        ({"timestamp": "yesterday"}, "timestamp:"),
        ({"timestamp": 1764583200}, "timestamp:"),
        ({"timestamp": None}, "timestamp:"),
        ({"occurred_at": "never"}, "occurred_at:"),
        ({"timestamp": "2025-12-01T10:00:00Z", "occurred_at": "2025-12-01T10:00:00Z"}, "occurred_at:"),
        ({"properties": [1]}, "properties:"),
        ({"properties": None}, "properties:"),
    ],
    ids=str,
)
def test_a_bad_event_refuses_the_batch_whole_and_is_named(server, change, place):
    bad = {**EVENT, **change}
    reply = track(server, {"events": [EVENT, EVENT, bad, EVENT]})
    assert reply.status == 400
    assert reply.json["code"] == "VALIDATION_ERROR"
    assert reply.json["error"].startswith(f"events[2].{place}")
    alone = track(server, bad)
    assert alone.status == 400
    assert alone.json["error"].startswith(place)
    counts = server.counts()
    assert (counts.events, counts.rejected, counts.by_status) == (0, 2, {400: 2})


@pytest.mark.parametrize(
    "event",
    [
        {"event": "login", "customer_id": "c1"},
        {**EVENT, "occurred_at": "2025-12-01T10:00:00Z"},
        {**EVENT, "something_new": [1]},
    ],
    ids=["customer_id alone", "occurred_at", "unknown field"],
)
def test_the_other_documented_forms_of_an_event_are_taken(server, event):
    assert track(server, event).status == 200
    assert server.counts().events == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"events": []}, "events: must be a list of at least one"),
        ({"events": {}}, "events: must be a list"),
        (batch(101), "events: at most 100 in one request, 101 given"),
        ({"events": [EVENT, "login"]}, "events[1]: must be an object"),
        ([EVENT], "body: must be an event or an object"),
        (b"", "body: is empty"),
        (b'{"event":', "body is not valid JSON"),
        (b'{"event": NaN}', "body is not valid JSON"),
        (b'{"event": "\\ud800"}', "body is not valid JSON"),
        (b"\xff\xfe", "body is not valid JSON"),
    ],
    ids=[
        "empty",
        "no list",
        "101",
        "no object",
        "bare list",
        "nothing",
        "cut",
        "NaN",
        "surrogate",
        "no UTF-8",
    ],
)
def test_a_body_that_is_not_a_batch_is_refused(server, body, text):
    reply = track(server, body)
    assert reply.status == 400
    assert reply.json["error"].startswith(text)
    assert server.counts().events == 0


# Keys, methods, types, sizes


@pytest.mark.parametrize("key", [None, "nonsense", "live_sk_1"])
def test_a_missing_or_wrong_key_is_401(server, key):
    reply = track(server, key=key)
    assert (reply.status, reply.json["code"]) == (401, "INVALID_API_KEY")
    assert server.counts().events == 0


def test_a_public_key_opens_the_cancel_flow_and_nothing_else(server):
    assert track(server, key=PUBLIC).status == 403
    assert call(server, "GET", "/projects/p/churn-events", key=PUBLIC).status == 403
    body = {"customer_email": "jane@example.com", "cancel_reason": "too_expensive"}
    assert call(server, "POST", "/cancel-flow/submit", body, key=PUBLIC).status == 200


def test_exact_keys_are_the_only_ones_taken():
    with DevServer(keys=["sk_one", "pub_one"]) as server:
        assert track(server, key="sk_one").status == 200
        assert track(server, key="sk_two").status == 401
        assert track(server, key="pub_one").status == 403
        assert track(server, key="pub_two").status == 401


def test_a_public_key_may_come_as_a_bearer_token_to_the_cancel_flow(server):
    bearer = {"authorization": f"Bearer {PUBLIC}"}
    assert call(server, "GET", "/cancel-flow/offers?reason=x", key=None, headers=bearer).status == 200
    assert track(server, key=None, headers=bearer).status == 401
    for value in ("Bearer nonsense", f"Basic {PUBLIC}", f"xBearer {PUBLIC}", "Bearer ", "Bearer"):
        reply = call(
            server, "GET", "/cancel-flow/offers?reason=x", key=None, headers={"authorization": value}
        )
        assert (reply.status, reply.json["code"]) == (401, "INVALID_API_KEY")


def test_the_subscription_of_a_key_can_have_expired():
    with DevServer(expired_keys=["sk_old", "pub_old"]) as server:
        for method, path in (
            ("POST", "/track"),
            ("GET", "/projects/p/churn-events"),
            ("GET", "/projects/p/recovery-templates"),
        ):
            reply = call(server, method, path, EVENT if method == "POST" else None, key="sk_old")
            assert (reply.status, reply.json) == (
                402,
                {"error": "subscription expired", "code": "SUBSCRIPTION_EXPIRED"},
            )
        assert call(server, "GET", "/projects/p/churn-events", key="pub_old").status == 403
        assert call(server, "POST", "/cancel-flow/submit", FLOW, key="pub_old").status == 202
        assert call(server, "POST", "/cancel-flow/submit", {}, key="pub_old").status == 400
        assert server.counts().churn_events == 0
        assert track(server).status == 200


def test_the_documented_rate_limits_hold_for_each_key():
    with DevServer(rate_limits=True) as server:
        replies = [call(server, "GET", "/projects/p/stats") for _ in range(50)]
        refused = [reply for reply in replies if reply.status == 429]
        assert {reply.status for reply in replies[:30]} == {200}
        assert refused
        assert (refused[0].json["code"], refused[0].headers["retry-after"]) == ("RATE_LIMITED", "1")
        assert call(server, "GET", "/projects/p/stats", key="sk_test_2").status == 200
        assert {track(server).status for _ in range(50)} == {200}
        flow = [call(server, "GET", "/cancel-flow/offers?reason=x", key=PUBLIC) for _ in range(11)]
        assert [reply.status for reply in flow] == [200] * 10 + [429]
        assert 10 < int(flow[-1].headers["retry-after"]) <= 15


def test_a_limit_frees_itself_as_time_goes_by():
    limits = Limits()
    for now in range(10):
        limits.take_cancel_flow(SECRET, float(now))
    with pytest.raises(ApiError) as caught:
        limits.take_cancel_flow(SECRET, 14.9)
    assert caught.value.headers == {"retry-after": "1"}
    limits.take_cancel_flow(SECRET, 15.0)
    with pytest.raises(ApiError):
        limits.take_cancel_flow(SECRET, 15.5)
    limits.take_cancel_flow(SECRET, 16.0)


@pytest.mark.parametrize("path", ["/nothing", "/track/", "/projects/p/churn-events/evt_1/nothing"])
def test_an_unknown_path_is_404(server, path):
    reply = call(server, "POST", path, {})
    assert (reply.status, reply.json["code"]) == (404, "NOT_FOUND")


def test_a_wrong_method_is_405_and_names_the_right_ones(server):
    reply = call(server, "DELETE", "/projects/p/churn-events")
    assert (reply.status, reply.json["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert {"GET", "POST"} <= set(re.split(r",\s*", reply.headers["allow"]))
    assert call(server, "HEAD", "/projects/p/churn-events").status == 200


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type_is_415(server, content_type):
    assert track(server, headers={"content-type": content_type}).status == 415
    assert track(server, headers={"content-type": "application/json; charset=utf-8"}).status == 200


def test_a_body_over_the_limit_is_413_even_when_it_is_far_over(server):
    event = {**EVENT, "properties": {"text": "x" * 100_000}}
    assert track(server, event).status == 413
    assert track(server, {**EVENT, "properties": {"text": "x" * 5_000_000}}).json["code"] == "BODY_TOO_LARGE"
    assert track(server, {**EVENT, "properties": {"text": "x" * 90_000}}).status == 200
    assert server.counts().events == 1


def test_a_body_of_exactly_the_limit_is_taken(server):
    head = json.dumps({**EVENT, "properties": {"text": ""}})
    for room, status in ((100_000, 200), (100_001, 413)):
        body = json.dumps({**EVENT, "properties": {"text": "x" * (room - len(head))}}).encode()
        assert len(body) == room
        assert track(server, body).status == status
        assert track(server, gzip.compress(body), headers={"content-encoding": "gzip"}).status == status


# Compression


def test_gzip_is_taken_in_one_or_several_members(server):
    raw = json.dumps(batch(20)).encode()
    for body in (gzip.compress(raw), gzip.compress(raw[:50]) + gzip.compress(raw[50:])):
        assert track(server, body, headers={"content-encoding": "gzip"}).status == 200
        assert server.requests()[-1].body_bytes == len(body)
    assert server.counts().events == 40


def test_a_gzip_bomb_is_413(server):
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    assert track(server, bomb, headers={"content-encoding": "gzip"}).status == 413


def test_a_gzip_bomb_is_not_unpacked_further_than_the_limit():
    bomb = gzip.compress(b" " * 50_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ApiError, match="larger than 100000 bytes"):
            decode(bomb, {"content-encoding": "gzip"}, limit=100_000, gzip="accept")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000  # other threads of the test run allocate, too


@pytest.mark.parametrize(
    "body", [b"no gzip", gzip.compress(b'{"event": "login"}')[:-4]], ids=["not", "cut short"]
)
def test_broken_gzip_is_400(server, body):
    reply = track(server, body, headers={"content-encoding": "gzip"})
    assert (reply.status, reply.json["code"]) == (400, "INVALID_ENCODING")


def test_another_encoding_is_415(server):
    assert track(server, headers={"content-encoding": "br"}).status == 415


@pytest.mark.parametrize("refusal", ["415", "400"])
def test_gzip_can_be_refused(refusal):
    with DevServer(gzip=refusal) as server:
        body = gzip.compress(json.dumps(EVENT).encode())
        assert track(server, body, headers={"content-encoding": "gzip"}).status == int(refusal)
        assert track(server).status == 200


# Idempotency


def test_the_same_key_and_body_answer_the_same_and_store_once(server):
    key = {"idempotency-key": "k1"}
    assert track(server, batch(5), headers=key).status == 200
    assert track(server, batch(5), headers=key).status == 200
    packed = gzip.compress(json.dumps(batch(5)).encode())
    assert track(server, packed, headers={**key, "content-encoding": "gzip"}).status == 200
    counts = server.counts()
    assert (counts.events, counts.duplicates, counts.duplicate_events) == (5, 2, 10)
    assert [record.duplicate for record in server.requests()] == [False, True, True]


def test_the_same_key_with_another_body_is_409(server):
    key = {"idempotency-key": "k1"}
    assert track(server, batch(5), headers=key).status == 200
    reply = track(server, batch(6), headers=key)
    assert (reply.status, reply.json["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert server.counts().events == 5


def test_a_key_counts_for_one_endpoint_and_one_account(server):
    key = {"idempotency-key": "k1"}
    assert track(server, headers=key).status == 200
    assert track(server, {**EVENT, "event": "other"}, headers=key, key="sk_other").status == 200
    body = {"customer_email": "jane@example.com"}
    first = call(server, "POST", "/projects/a/churn-events", body, headers=key)
    other = call(server, "POST", "/projects/b/churn-events", body, headers=key)
    again = call(server, "POST", "/projects/a/churn-events", body, headers=key)
    assert (first.status, other.status, again.status) == (201, 201, 201)
    assert again.raw == first.raw
    assert other.json["data"]["id"] != first.json["data"]["id"]
    assert server.counts().churn_events == 2


def test_a_refused_request_does_not_use_up_its_key(server):
    key = {"idempotency-key": "k1"}
    assert track(server, {"event": "login"}, headers=key).status == 400
    assert track(server, EVENT, headers=key).status == 200


def test_a_key_that_is_too_long_is_400(server):
    assert track(server, headers={"idempotency-key": "k" * 256}).status == 400
    assert track(server, headers={"idempotency-key": "k" * 255}).status == 200


def test_a_request_that_fails_half_way_leaves_nothing_behind():
    store = Store()
    with closing(store):
        rows, tracked = track_rows(batch(3), strict=True), store.tracked
        arrival = Arrival(time.time(), "k1", "sk_***1", request=1, attempt=1, answered=200)

        def fail_half_way() -> None:
            with store.transaction():
                tracked.add(rows, arrival)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_half_way()
        assert (tracked.taken, tracked.page(limit=10), tracked.names(None)) == (0, [], [])
        with store.transaction():
            tracked.add(rows, arrival)
        assert (tracked.taken, [event.id for event in tracked.page(limit=10)]) == (3, [1, 2, 3])
