"""The embedded server over real sockets: every endpoint, every refusal, every fault."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import http.client
import http.server
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.parse
from contextlib import closing
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Tuple

import calls
import pytest
from calls import Reply, eventually
from deadlines import SLACK_S

from windback.devserver import DevServer, DevServerError, WebhookDelivery
from windback.devserver.body import decode
from windback.devserver.errors import ApiError
from windback.devserver.limits import Limits
from windback.devserver.options import Options
from windback.devserver.recovery import write
from windback.devserver.store import Store
from windback.devserver.tracked import Arrival
from windback.devserver.validation import alert_fields, track_rows

SECRET = "sk_test_1"
PUBLIC = "pub_test_1"
EVENT: Dict[str, object] = {"event": "login", "customer_email": "jane@example.com"}
SOURCE = Path(__file__).resolve().parents[2] / "src"


def call(
    server: DevServer,
    method: str,
    path: str,
    body: object = None,
    *,
    key: Optional[str] = SECRET,
    headers: Optional[Mapping[str, Optional[str]]] = None,
) -> Reply:
    """One request to the API with a key; a path under /_dev goes to the control plane."""
    where = path if path.startswith("/_dev") else "/api/v1" + path
    return calls.call(server, method, where, body, {"x-api-key": key, **(headers or {})})


def track(server: DevServer, body: object = EVENT, **options) -> Reply:
    return call(server, "POST", "/track", body, **options)


def batch(count: int) -> Dict[str, object]:
    return {"events": [{**EVENT, "properties": {"n": n}} for n in range(count)]}


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


# Churn events


def create(server: DevServer, slug: str = "p", **fields: object) -> Dict[str, object]:
    body = {"customer_email": "jane@example.com", "event_type": "cancellation", **fields}
    reply = call(server, "POST", f"/projects/{slug}/churn-events", body)
    assert reply.status == 201
    return reply.json["data"]


def test_a_churn_event_comes_back_whole(server):
    created = create(
        server,
        customer_name="Jane Smith",
        cancel_reason="Missing integrations we need",
        mrr=4999,
        currency="eur",
        plan_name="Team Pro",
        tenure_days=180,
    )
    assert created["status"] == "new"
    assert created["mrr"] == 4999
    assert created["currency"] == "eur"
    assert created["provider"] == "api"
    assert created["created_at"] == created["updated_at"]
    path = f"/projects/p/churn-events/{created['id']}"
    assert call(server, "GET", path).json == {"data": created}
    assert call(server, "GET", path.replace("/p/", "/other/")).status == 404


def test_only_the_email_is_required_of_a_churn_event(server):
    reply = call(server, "POST", "/projects/p/churn-events", {"customer_email": "jane@example.com"})
    data = reply.json["data"]
    assert (data["event_type"], data["mrr"], data["currency"], data["tenure_days"]) == (
        "cancellation",
        0,
        "usd",
        None,
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"customer_email": None}, "customer_email"),
        ({"customer_email": "jane"}, "customer_email"),
        ({"event_type": "boredom"}, "event_type"),
        ({"mrr": -1}, "mrr"),
        ({"mrr": 1.5}, "mrr"),
        ({"mrr": True}, "mrr"),
        ({"currency": "dollars"}, "currency"),
        ({"mrr": 10**12 + 1}, "mrr"),
        ({"mrr": 2**63}, "mrr"),
        ({"tenure_days": "long"}, "tenure_days"),
        ({"plan_name": 5}, "plan_name"),
    ],
    ids=str,
)
def test_a_bad_churn_event_is_400_and_names_the_field(server, change, field):
    body = {"customer_email": "jane@example.com", **change}
    reply = call(server, "POST", "/projects/p/churn-events", body)
    assert reply.status == 400
    assert reply.json["error"].startswith(field + ":")
    assert server.counts().churn_events == 0


def test_the_list_is_paged_newest_first(server):
    ids = [create(server)["id"] for _ in range(25)][::-1]
    create(server, slug="other")
    first = call(server, "GET", "/projects/p/churn-events").json
    assert (first["total"], first["limit"], first["offset"]) == (25, 20, 0)
    assert [event["id"] for event in first["data"]] == ids[:20]
    rest = call(server, "GET", "/projects/p/churn-events?limit=100&offset=20").json
    assert [event["id"] for event in rest["data"]] == ids[20:]


def test_the_list_is_filtered_by_status(server):
    first, second = create(server), create(server)
    path = f"/projects/p/churn-events/{first['id']}/recovered"
    assert call(server, "POST", path).json["data"]["status"] == "recovered"
    assert call(server, "POST", path).status == 400
    for status, expected in (("new", second), ("recovered", first)):
        page = call(server, "GET", f"/projects/p/churn-events?status={status}").json
        assert ([event["id"] for event in page["data"]], page["total"]) == ([expected["id"]], 1)


def test_a_churn_event_ends_once_as_recovered_or_as_lost(server):
    first, second = create(server), create(server)
    server.mark_lost(first["id"])
    assert call(server, "GET", f"/projects/p/churn-events/{first['id']}").json["data"]["status"] == "lost"
    assert call(server, "POST", f"/projects/p/churn-events/{first['id']}/recovered").json == {
        "error": "the churn event is lost already",
        "code": "INVALID_STATE",
    }
    call(server, "POST", f"/projects/p/churn-events/{second['id']}/recovered")
    with pytest.raises(DevServerError, match="the churn event is recovered already"):
        server.mark_lost(second["id"])
    with pytest.raises(DevServerError, match="churn event not found"):
        server.mark_lost("evt_x")


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=ten", "limit=", "offset=-1", "offset=" + "9" * 5000, "status=sad"],
)
def test_a_bad_query_is_400(server, query):
    reply = call(server, "GET", f"/projects/p/churn-events?{query}")
    assert reply.status == 400
    assert reply.json["error"].startswith(query.partition("=")[0] + ":")


def test_the_cancel_reason_is_changed(server):
    created = create(server)
    path = f"/projects/p/churn-events/{created['id']}/cancel-reason"
    changed = call(server, "PATCH", path, {"cancel_reason": "other", "cancel_reason_text": "moving"}).json[
        "data"
    ]
    assert (changed["cancel_reason"], changed["cancel_reason_text"]) == ("other", "moving")
    assert changed["updated_at"] > created["updated_at"]
    assert call(server, "GET", f"/projects/p/churn-events/{created['id']}").json["data"] == changed
    assert call(server, "PATCH", path, {}).json["error"] == "cancel_reason: is missing"
    assert call(server, "PATCH", path.replace("evt_", "evt_x"), {"cancel_reason": "other"}).status == 404


# Variants


def test_an_event_is_processing_while_its_variants_are_generated():
    with DevServer(generate_s=1.0) as slow:
        event = f"/projects/p/churn-events/{create(slow)['id']}"
        replies = []
        thread = threading.Thread(target=lambda: replies.append(call(slow, "POST", event + "/generate")))
        thread.start()
        eventually(lambda: call(slow, "GET", event).json["data"]["status"] == "processing")
        assert call(slow, "GET", event + "/variants").json == {"data": []}
        thread.join()
        assert replies[0].status == 200
        assert (replies[0].json["data"]["status"], len(replies[0].json["data"]["variants"])) == (
            "variants_generated",
            9,
        )


def test_one_of_two_generations_at_the_same_time_wins(server):
    event = f"/projects/p/churn-events/{create(server)['id']}"
    replies = []
    threads = [
        threading.Thread(target=lambda: replies.append(call(server, "POST", event + "/generate").status))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(replies) == [200, 400]
    assert len(call(server, "GET", event + "/variants").json["data"]) == 9


def test_a_repeat_under_the_same_key_gets_the_variants_again(server):
    event = f"/projects/p/churn-events/{create(server)['id']}"
    first, second = (
        call(server, "POST", event + "/generate", headers={"idempotency-key": "k1"}) for _ in range(2)
    )
    assert (first.status, first.raw) == (second.status, second.raw)


def test_stop_does_not_wait_for_a_generation():
    server = DevServer(generate_s=600)
    server.start()
    event = f"/projects/p/churn-events/{create(server)['id']}"
    replies = []
    thread = threading.Thread(target=lambda: replies.append(call(server, "POST", event + "/generate")))
    thread.start()
    eventually(lambda: call(server, "GET", event).json["data"]["status"] == "processing")
    started = time.monotonic()
    server.stop()
    thread.join()
    assert time.monotonic() - started < SLACK_S
    assert (replies[0].status, replies[0].json["code"], server.log()) == (503, "STOPPING", "")


def test_without_an_email_service_sending_is_the_documented_500():
    with DevServer(generate_s=0, email=False) as server:
        event = f"/projects/p/churn-events/{create(server)['id']}"
        variant = call(server, "POST", event + "/generate").json["data"]["variants"][0]
        reply = call(server, "POST", f"{event}/variants/{variant['id']}/send")
        assert (reply.status, reply.json["error"]) == (500, "email service is not configured")
        assert call(server, "GET", event).json["data"]["status"] == "variants_generated"


@pytest.mark.parametrize("change", [{}, {"subject": ""}, {"body": 7}, [], {"status": "sent"}], ids=str)
def test_a_bad_change_of_a_variant_is_400(server, change):
    reply = call(server, "PATCH", "/projects/p/churn-events/evt_x/variants/var_x", change)
    assert (reply.status, reply.json["code"]) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("reason", "strategy"),
    [
        ("too_expensive", "discount"),
        ("missing_features", "unused_feature"),
        ("not_using_enough", "value_recap"),
        ("switching_competitor", "social_proof"),
        ("technical_issues", "pain_point_fix"),
        ("poor_support", "founder_email"),
        ("dont_need_anymore", "pause_option"),
        ("other", "feedback_request"),
        ("Too expensive for our team", "feedback_request"),
        (None, "feedback_request"),
        ("switched_to_competitor", "social_proof"),
        ("bad_support", "founder_email"),
        ("temporary_pause", "pause_option"),
    ],
)
def test_each_reason_has_the_documented_strategy(reason, strategy):
    event = {"customer_email": "a@b", "customer_name": None, "plan_name": None, "cancel_reason": reason}
    emails = write(event, None)
    assert len(emails) == 9
    assert [email["strategy"] for email in emails if email["recommended"]] == [strategy]


# Recovery templates


TEMPLATE = {
    "cancel_reason": "too_expensive",
    "name": "Save",
    "subject": "Hi {{customer_name}}",
    "body": "Stay",
}


def test_a_template_is_created_and_listed(server):
    reply = call(server, "POST", "/projects/p/recovery-templates", TEMPLATE)
    assert reply.status == 201
    data = reply.json["data"]
    assert data["is_active"] is True
    assert {name: data[name] for name in TEMPLATE} == TEMPLATE
    assert call(server, "GET", "/projects/p/recovery-templates").json == {"data": [data]}
    assert call(server, "GET", "/projects/q/recovery-templates").json == {"data": []}


def test_a_second_template_for_a_reason_is_409(server):
    assert call(server, "POST", "/projects/p/recovery-templates", TEMPLATE).status == 201
    assert call(server, "POST", "/projects/p/recovery-templates", TEMPLATE).status == 409
    assert call(server, "POST", "/projects/q/recovery-templates", TEMPLATE).status == 201
    assert server.counts().templates == 2


@pytest.mark.parametrize(
    "change", [{"name": ""}, {"subject": None}, {"body": 5}, {"is_active": "yes"}], ids=str
)
def test_a_bad_template_is_400_and_names_the_field(server, change):
    reply = call(server, "POST", "/projects/p/recovery-templates", {**TEMPLATE, **change})
    assert reply.status == 400
    assert reply.json["error"].startswith(next(iter(change)) + ":")


def test_a_template_is_changed_in_part_and_deleted(server):
    data = call(server, "POST", "/projects/p/recovery-templates", TEMPLATE).json["data"]
    path = f"/projects/p/recovery-templates/{data['id']}"
    assert call(server, "GET", path).json == {"data": data}
    changed = call(server, "PUT", path, {"subject": "Bye", "is_active": False, "cancel_reason": "other"}).json
    assert changed["data"] == {
        **data,
        "subject": "Bye",
        "is_active": False,
        "updated_at": changed["data"]["updated_at"],
    }
    reply = call(server, "DELETE", path)
    assert (reply.status, reply.raw) == (204, b"")
    assert "content-type" not in reply.headers
    for method, body in (("GET", None), ("PUT", {"name": "n"}), ("DELETE", None)):
        assert call(server, method, path, body).json == {
            "error": "recovery template not found",
            "code": "NOT_FOUND",
        }


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({}, "body:"),
        ({"cancel_reason": "other"}, "body:"),
        ([], "body:"),
        ({"name": ""}, "name:"),
        ({"body": None}, "body:"),
        ({"is_active": 1}, "is_active:"),
    ],
    ids=str,
)
def test_a_bad_change_of_a_template_is_400(server, change, place):
    reply = call(server, "PUT", "/projects/p/recovery-templates/tpl_x", change)
    assert reply.status == 400
    assert reply.json["error"].startswith(place)


# Cancel flow


FLOW = {
    "customer_email": "jane@example.com",
    "cancel_reason": "Too expensive for our team",
    "feedback_text": "Love the product",
    "selected_offer": "downgrade",
}


def test_the_cancel_flow_creates_a_churn_event_of_every_project(server):
    answer = call(server, "POST", "/cancel-flow/submit", FLOW).json
    assert (answer["success"], answer["offer"]) == (True, None)
    (event,) = call(server, "GET", "/projects/any/churn-events").json["data"]
    assert (event["id"], event["cancel_reason"]) == (answer["event_id"], FLOW["cancel_reason"])
    path = f"/projects/any/churn-events/{event['id']}/cancel-reason"
    assert call(server, "PATCH", path, {"cancel_reason": "other"}).status == 200


def test_a_repeat_within_a_day_is_202_and_creates_nothing(server):
    assert call(server, "POST", "/cancel-flow/submit", FLOW).status == 200
    repeat = call(server, "POST", "/cancel-flow/submit", {**FLOW, "customer_email": "JANE@example.com"})
    assert (repeat.status, repeat.json["event_id"]) == (202, None)
    assert (
        call(server, "POST", "/cancel-flow/submit", {**FLOW, "customer_email": "b@example.com"}).status == 200
    )
    counts = server.counts()
    assert (counts.churn_events, counts.cancel_flows) == (2, 2)


def test_after_a_day_the_customer_may_submit_again(tmp_path):
    path = tmp_path / "dev.db"
    server = DevServer(db=path)
    with server:
        assert call(server, "POST", "/cancel-flow/submit", FLOW).status == 200
    with closing(sqlite3.connect(str(path))) as database:
        database.execute("UPDATE cancel_flows SET created_at = created_at - 24 * 3600 - 1")
        database.commit()
    with server:
        assert call(server, "POST", "/cancel-flow/submit", FLOW).status == 200
        assert call(server, "POST", "/cancel-flow/submit", FLOW).status == 202


@pytest.mark.parametrize("field", ["customer_email", "cancel_reason"])
def test_the_cancel_flow_needs_email_and_reason(server, field):
    body = {name: value for name, value in FLOW.items() if name != field}
    reply = call(server, "POST", "/cancel-flow/submit", body)
    assert (reply.status, reply.json["error"]) == (400, f"{field}: is missing")


def test_offers_are_configured_and_offered(server):
    assert call(server, "GET", "/cancel-flow/offers?reason=other", key=PUBLIC).json == {"offer": None}
    server.offers([{"cancel_reason": "other", "offer_type": "extension", "extension_days": 14}])
    offer = {"offer_type": "extension", "extension_days": 14, "is_active": True}
    assert call(server, "GET", "/cancel-flow/offers?reason=other", key=PUBLIC).json == {"offer": offer}
    assert call(server, "GET", "/_dev/offers").json == {"data": [{"cancel_reason": "other", **offer}]}
    server.reset()
    assert call(server, "GET", "/_dev/offers").json == {"data": []}


@pytest.mark.parametrize("query", ["", "?reason=", "?other=x"])
def test_offers_need_a_reason(server, query):
    reply = call(server, "GET", "/cancel-flow/offers" + query, key=PUBLIC)
    assert (reply.status, reply.json["error"]) == (400, "reason: is missing")


@pytest.mark.parametrize(
    ("offers", "message"),
    [
        ({}, "offers: must be a list"),
        (["x"], "offers[0].body: must be an object"),
        ([{"offer_type": "discount"}], "offers[0].cancel_reason: is missing"),
        ([{"cancel_reason": "x", "offer_type": "gift"}], "offers[0].offer_type: must be one of"),
        (
            [{"cancel_reason": "x", "offer_type": "discount", "discount_percent": 0}],
            "offers[0].discount_percent",
        ),
        (
            [{"cancel_reason": "x", "offer_type": "discount", "discount_percent": 101}],
            "offers[0].discount_per",
        ),
        (
            [{"cancel_reason": "x", "offer_type": "discount", "extension_days": "1"}],
            "offers[0].extension_days",
        ),
        ([{"cancel_reason": "x", "offer_type": "discount", "is_active": 1}], "offers[0].is_active"),
        (
            [{"cancel_reason": "x", "offer_type": "custom"}] * 2,
            "offers[1].cancel_reason: x has an offer already",
        ),
    ],
    ids=str,
)
def test_offers_that_make_no_sense_are_refused_and_change_nothing(server, offers, message):
    server.offers([{"cancel_reason": "other", "offer_type": "custom"}])
    reply = call(server, "PUT", "/_dev/offers", offers)
    assert reply.status == 400
    assert reply.json["error"].startswith(message)
    assert len(call(server, "GET", "/_dev/offers").json["data"]) == 1


@pytest.mark.parametrize("field", ["customer_email", "cancel_reason", "offer_type"])
def test_an_acceptance_needs_all_its_fields(server, field):
    body = {"customer_email": "a@b", "cancel_reason": "other", "offer_type": "custom"}
    body.pop(field)
    reply = call(server, "POST", "/cancel-flow/accept-offer", body, key=PUBLIC)
    assert (reply.status, reply.json["error"]) == (400, f"{field}: is missing")


def test_no_request_declines_an_offer(server):
    body = {"customer_email": "a@b", "cancel_reason": "other", "offer_type": "custom"}
    assert call(server, "POST", "/cancel-flow/decline-offer", body, key=PUBLIC).status == 404


# Webhooks


class Receiver:
    """Takes webhooks on a socket of its own, and answers the statuses it is given, then 200."""

    def __init__(self, *statuses: int, delay_s: float = 0.0) -> None:
        self.taken: List[Tuple[Dict[str, str], bytes]] = []
        self.statuses = list(statuses)
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.taken.append((headers, body))
                time.sleep(delay_s)
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook?x=1"

    def __enter__(self) -> Receiver:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


def settled(server: DevServer) -> WebhookDelivery:
    """The one webhook of the server, once it is on its way no more."""
    eventually(lambda: [each.state for each in server.webhooks()] not in ([], ["pending"]))
    (delivery,) = server.webhooks()
    return delivery


def test_an_alert_is_signed_over_its_raw_bytes():
    with Receiver() as receiver, DevServer(webhook_url=receiver.url, webhook_secret=SECRET + "é") as server:
        sent = server.send_alert("jane@example.com", 92, signals=[{"name": "logins_down", "weight": 0.6}])
        assert (sent.state, sent.attempts) == ("pending", ())
        delivery = settled(server)
        ((headers, body),) = receiver.taken
        assert server.log() == ""
    assert (
        headers["x-windback-signature"] == hmac.new((SECRET + "é").encode(), body, hashlib.sha256).hexdigest()
    )
    assert headers["content-type"] == "application/json"
    assert (delivery.state, delivery.id, delivery.body) == ("delivered", sent.id, body.decode())
    assert [(attempt.status, attempt.error) for attempt in delivery.attempts] == [(200, None)]
    alert = json.loads(body)
    assert alert.pop("triggered_at").endswith("Z")
    assert alert == {
        "event": "churn_risk.alert",
        "project_id": "prj_dev",
        "customer_email": "jane@example.com",
        "risk_score": 92,
        "risk_level": "critical",
        "signals": [{"name": "logins_down", "weight": 0.6}],
        "opaque_id": sent.id,
    }


def test_an_alert_is_retried_with_the_same_bytes_until_it_is_taken():
    with Receiver(500, 302) as receiver, DevServer(
        webhook_url=receiver.url, webhook_delays=[0.1, 0.2, 5]
    ) as server:
        server.send_alert("jane@example.com", 50)
        delivery = settled(server)
    assert [attempt.status for attempt in delivery.attempts] == [500, 302, 200]
    assert len({body for _, body in receiver.taken}) == 1
    assert len({headers["x-windback-signature"] for headers, _ in receiver.taken}) == 1


def test_an_alert_is_given_up_after_three_retries():
    with DevServer(webhook_url="http://127.0.0.1:9/", webhook_delays=[0.01, 0.01, 0.01]) as server:
        server.send_alert("jane@example.com", 1)
        delivery = settled(server)
    assert (delivery.state, len(delivery.attempts)) == ("failed", 4)
    assert {attempt.status for attempt in delivery.attempts} == {None}
    assert all(attempt.error for attempt in delivery.attempts)


def test_the_documented_delays_are_the_default():
    assert Options().webhook_delays_s == (10, 60, 300)
    with Receiver(503) as receiver, DevServer(webhook_url=receiver.url) as server:
        server.send_alert("jane@example.com", 1)
        eventually(lambda: len(server.webhooks()[0].attempts) == 1)
        (delivery,) = server.webhooks()
        assert 9 < delivery.next_at - time.time() <= 10
        started = time.monotonic()
        server.stop()  # does not wait for the retry
        assert time.monotonic() - started < SLACK_S
        assert server.log() == ""


def test_a_receiver_that_takes_too_long_is_not_an_answer():
    with Receiver(delay_s=7) as receiver, DevServer(webhook_url=receiver.url, webhook_delays=[]) as server:
        server.send_alert("jane@example.com", 1)
        delivery = settled(server)
        (attempt,) = delivery.attempts
        assert (delivery.state, attempt.status, attempt.error) == ("failed", None, "no answer within 5 s")
        assert attempt.duration_s > 4.9


def test_an_alert_that_waits_for_its_retry_survives_a_kill_but_not_a_reset(tmp_path):
    with Receiver(503, 503) as receiver:
        server = DevServer(db=tmp_path / "dev.db", webhook_url=receiver.url, webhook_delays=[1, 1, 1])
        with server:
            server.send_alert("jane@example.com", 1)
            eventually(lambda: len(server.webhooks()[0].attempts) == 1)
            server.kill()
            server.start()
            eventually(lambda: len(server.webhooks()[0].attempts) == 2)
            server.reset()
            assert server.webhooks() == []
            time.sleep(1.5)
        assert len(receiver.taken) == 2


def test_without_an_address_no_alert_is_sent(server):
    with pytest.raises(DevServerError, match="the server was started without --webhook-url"):
        server.send_alert("jane@example.com", 1)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"customer_email": "jane"}, "customer_email"),
        ({"risk_score": 101}, "risk_score"),
        ({"risk_score": -1}, "risk_score"),
        ({"risk_score": 1.5}, "risk_score"),
        ({"risk_score": None}, "risk_score"),
        ({"risk_level": 3}, "risk_level"),
        ({"signals": {}}, "signals"),
        ({"signals": ["x"]}, "signals"),
        ({"project_id": 3}, "project_id"),
    ],
    ids=str,
)
def test_a_bad_alert_is_400_and_names_the_field(server, change, field):
    body = {"customer_email": "jane@example.com", "risk_score": 50, **change}
    reply = call(server, "POST", "/_dev/webhooks", body)
    assert reply.status == 400
    assert reply.json["error"].startswith(field + ":")


@pytest.mark.parametrize(("score", "level"), [(90, "critical"), (89, "high"), (69, "medium"), (39, "low")])
def test_the_level_of_a_risk_follows_from_its_score(score, level):
    assert alert_fields({"customer_email": "a@b", "risk_score": score}).risk_level == level
    assert alert_fields({"customer_email": "a@b", "risk_score": score, "risk_level": "x"}).risk_level == "x"


# Faults


def raw_request(server: DevServer, body: object = EVENT) -> bytes:
    """Everything that a bare socket receives until the server closes it; a reset counts as the end."""
    raw = json.dumps(body).encode()
    head = f"POST /api/v1/track HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {SECRET}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    received = b""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=20)) as connection:
        connection.sendall(head.encode() + raw)
        try:
            while True:
                chunk = connection.recv(65536)
                if not chunk:
                    return received
                received += chunk
        except ConnectionResetError:
            return received


def test_a_drop_before_closes_without_a_byte_and_stores_nothing(server):
    server.faults([{"path": "/track", "drop": "before", "times": 1}])
    assert raw_request(server, batch(3)) == b""
    assert server.counts().events == 0
    (record,) = server.requests()
    assert (record.status, record.fault, record.events) == (None, "drop before", 3)
    assert track(server).status == 200


def test_a_drop_after_closes_without_a_byte_but_has_stored(server):
    server.faults([{"drop": "after", "times": 1}])
    assert raw_request(server, batch(3)) == b""
    counts = server.counts()
    assert (counts.events, counts.faults, counts.by_status) == (3, 1, {})


def test_a_retry_after_a_lost_answer_stores_once(server):
    server.faults([{"drop": "after", "times": 1}])
    key = {"idempotency-key": "k1"}
    with pytest.raises(http.client.RemoteDisconnected):
        track(server, batch(3), headers=key)
    assert track(server, batch(3), headers=key).status == 200
    counts = server.counts()
    assert (counts.events, counts.duplicates) == (3, 1)


def test_a_status_is_answered_with_what_goes_with_it(server):
    server.faults(
        [
            {
                "status": 503,
                "retry_after": 1.5,
                "body": "<h1>no</h1>",
                "content_type": "text/html",
                "headers": {"X-Proxy": "edge"},
            }
        ]
    )
    reply = track(server, batch(2))
    assert (reply.status, reply.raw) == (503, b"<h1>no</h1>")
    assert (reply.headers["retry-after"], reply.headers["content-type"]) == ("1.5", "text/html")
    assert reply.headers["x-proxy"] == "edge"
    counts = server.counts()
    assert (counts.events, counts.rejected, counts.faults, counts.by_status) == (0, 0, 1, {503: 1})
    server.faults([{"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}])
    assert track(server).headers["location"] == "http://127.0.0.1:1/"
    server.faults([{"status": 500}])
    assert track(server).json["code"] == "FAULT"
    server.faults([{"status": 502, "body": ""}])
    assert track(server).raw == b""
    server.faults([{"status": 204}])
    assert track(server).raw == b""


def test_latency_delays_alone_and_beside_an_effect(server):
    server.faults([{"latency": 0.2}, {"path": "/track", "status": 503, "latency": 0.1}])
    started = time.monotonic()
    assert track(server).status == 503
    assert time.monotonic() - started >= 0.3
    assert server.requests()[-1].fault == "latency+latency+status 503"
    server.faults([{"latency": 0.2}])
    started = time.monotonic()
    assert track(server).status == 200
    assert time.monotonic() - started >= 0.2


def test_the_rate_limit_answers_429_with_retry_after(server):
    server.faults([{"rate_limit": {"rate": 0.1, "burst": 2}}])
    replies = [track(server) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert 1 <= int(replies[2].headers["retry-after"]) <= 10
    assert replies[2].json["code"] == "RATE_LIMITED"
    assert server.counts().events == 2
    server.faults([{"rate_limit": {"rate": 1000, "burst": 1}}])
    track(server)
    eventually(lambda: track(server).status == 200)


def test_a_hanging_request_is_taken_and_never_answered(server):
    server.faults([{"hang": True, "times": 1}])
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.3)) as connection:
        headers = {"x-api-key": SECRET, "content-type": "application/json"}
        connection.request("POST", "/api/v1/track", json.dumps(EVENT), headers)
        with pytest.raises(socket.timeout):
            connection.getresponse()
        assert server.requests()[-1].fault == "hang"
    assert track(server).status == 200
    assert server.counts().events == 1


def test_path_method_and_times_choose_the_requests(server):
    server.faults([{"path": "/projects", "method": "post", "status": 500, "times": 1}])
    assert track(server).status == 200
    assert call(server, "GET", "/projects/p/churn-events").status == 200
    assert call(server, "POST", "/projects/p/churn-events", {}).status == 500
    assert call(server, "POST", "/projects/p/churn-events", {}).status == 400
    (rule,) = call(server, "GET", "/_dev/faults").json["data"]
    assert rule["hits"] == 1


def test_a_seeded_rate_hits_its_share_the_same_each_time(server):
    runs: List[List[int]] = []
    for _ in range(2):
        server.faults([{"status": 503, "rate": 0.2, "seed": 7}])
        runs.append([track(server).status for _ in range(100)])
    assert runs[0] == runs[1]
    assert 10 <= runs[0].count(503) <= 30
    server.faults([{"status": 503, "rate": 0}])
    assert {track(server).status for _ in range(20)} == {200}


def test_faults_are_cleared_and_do_not_touch_the_control_plane(server):
    server.faults([{"status": 503}])
    assert track(server).status == 503
    assert server.counts().requests == 1
    server.clear_faults()
    assert track(server).status == 200


@pytest.mark.parametrize(
    ("rules", "place"),
    [
        ({}, "faults: must be a list"),
        ([3], "faults[0]: must be an object"),
        ([{}], "faults[0]: needs an effect"),
        ([{"status": 503}, {"staus": 503}], "faults[1].staus: is not known"),
        ([{"status": 100}], "faults[0].status"),
        ([{"status": 600}], "faults[0].status"),
        ([{"status": True}], "faults[0].status"),
        ([{"status": 503, "hang": True}], "faults[0]: has more than one effect: status, hang"),
        ([{"latency": 1, "retry_after": 1}], "faults[0].retry_after: needs a status"),
        ([{"status": 503, "retry_after": [1]}], "faults[0].retry_after"),
        ([{"status": 503, "retry_after": "1\r\nx: y"}], "faults[0].retry_after"),
        ([{"status": 503, "headers": {"x": "1\r\ny: z"}}], "faults[0].headers.x"),
        ([{"status": 503, "headers": {"no name": "1"}}], "faults[0].headers.no name"),
        ([{"status": 503, "headers": {"Content-Length": "1"}}], "faults[0].headers.Content-Length"),
        ([{"status": 503, "content_type": "a\nb"}], "faults[0].content_type"),
        ([{"status": 503, "body": 5}], "faults[0].body"),
        ([{"status": 503, "rate": 2}], "faults[0].rate"),
        ([{"status": 503, "rate": "half"}], "faults[0].rate"),
        ([{"status": 503, "seed": 1.5}], "faults[0].seed"),
        ([{"status": 503, "times": 0}], "faults[0].times"),
        ([{"status": 503, "path": "track"}], "faults[0].path: must start with a slash"),
        ([{"latency": -1}], "faults[0].latency"),
        ([{"drop": "sometimes"}], "faults[0].drop"),
        ([{"hang": 1}], "faults[0].hang"),
        ([{"rate_limit": {"rate": 5}}], "faults[0].rate_limit"),
        ([{"rate_limit": {"rate": 0, "burst": 1}}], "faults[0].rate_limit.rate"),
    ],
    ids=str,
)
def test_a_rule_that_makes_no_sense_is_400_and_changes_nothing(server, rules, place):
    server.faults([{"status": 503, "path": "/kept"}])
    reply = call(server, "PUT", "/_dev/faults", rules)
    assert (reply.status, reply.json["code"]) == (400, "INVALID_FAULT")
    assert reply.json["error"].startswith(place)
    assert [rule["path"] for rule in call(server, "GET", "/_dev/faults").json["data"]] == ["/kept"]
    if isinstance(rules, list):
        with pytest.raises(DevServerError, match=re.escape(place)):
            server.faults(rules)


# The control plane


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1234", "127.9.9.9", "[::1]:80", "LOCALHOST"])
def test_the_control_plane_answers_to_loopback_names(server, host):
    assert call(server, "GET", "/_dev/counts", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["example.com", "127.0.0.1.example.com", "localhost.evil", "10.0.0.1", "[::2]"]
)
def test_the_control_plane_refuses_any_other_name(server, host):
    track(server)
    for method, path in (("GET", "counts"), ("GET", "events"), ("POST", "reset"), ("DELETE", "faults")):
        assert call(server, method, f"/_dev/{path}", headers={"host": host}).status == 421
    assert server.counts().events == 1


def test_a_request_is_logged_without_its_key(server):
    track(server, batch(2), headers={"idempotency-key": "k1", "user-agent": "tests/1", "cookie": "secret"})
    reply = track(server, key=PUBLIC)
    raw = call(server, "GET", "/_dev/requests").raw
    assert SECRET.encode() not in raw
    assert PUBLIC.encode() not in raw
    first, second = server.requests()
    assert (first.method, first.path, first.status) == ("POST", "/api/v1/track", 200)
    assert (first.idempotency_key, first.events) == ("k1", 2)
    assert first.body_bytes == len(json.dumps(batch(2)))
    assert first.headers["x-api-key"] == "sk_***"
    assert first.headers["user-agent"] == "tests/1"
    assert "cookie" not in first.headers
    assert (second.status, second.headers["x-api-key"]) == (403, "pub_***")
    assert second.request_id == reply.headers["x-request-id"]


def test_the_lists_of_the_control_plane_are_paged(server):
    track(server, batch(10))
    page = call(server, "GET", "/_dev/events?limit=3&offset=8").json
    assert ([event["properties"]["n"] for event in page["data"]], page["total"]) == ([8, 9], 10)
    track(server)
    assert [record.events for record in server.requests(limit=1)] == [1]
    assert call(server, "GET", "/_dev/events?limit=0").status == 400


def test_reset_forgets_everything(server):
    create(server)
    track(server, headers={"idempotency-key": "k1"})
    call(server, "POST", "/cancel-flow/submit", FLOW)
    call(server, "POST", "/projects/p/recovery-templates", TEMPLATE)
    server.faults([{"status": 503, "path": "/nothing"}])
    server.reset()
    counts = server.counts()
    assert (counts.requests, counts.events, counts.churn_events, counts.templates) == (0, 0, 0, 0)
    assert (counts.cancel_flows, counts.by_status) == (0, {})
    assert (server.events(), server.requests()) == ([], [])
    assert call(server, "GET", "/_dev/faults").json == {"data": []}
    assert track(server, {**EVENT, "event": "other"}, headers={"idempotency-key": "k1"}).status == 200


def test_a_request_under_way_is_not_stored_after_a_reset(server):
    server.faults([{"latency": 0.5}])
    caught = []

    def send():
        try:
            track(server)
        except ConnectionError as error:
            caught.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    eventually(lambda: len(server.requests()) == 1)
    server.reset()
    thread.join()
    assert len(caught) == 1
    counts = server.counts()
    assert (counts.requests, counts.events, counts.faults, counts.by_status) == (0, 0, 0, {})


# The process


def test_an_outage_can_be_played_on_one_port_and_a_file_outlives_it(tmp_path):
    server = DevServer(db=str(tmp_path / "dev.db"))
    with server:
        url = server.url
        assert track(server, batch(5), headers={"idempotency-key": "k1"}).status == 200
        server.kill()
        with pytest.raises(ConnectionRefusedError):
            track(server)
        with pytest.raises(DevServerError, match="cannot be reached"):
            server.counts()
        server.start()
        assert server.url == url
        assert track(server, batch(5), headers={"idempotency-key": "k1"}).status == 200
        counts = server.counts()
        assert (counts.events, counts.duplicates) == (5, 1)


def test_stop_and_kill_may_come_again(server):
    other = DevServer()
    other.stop()
    other.kill()
    with other:
        with pytest.raises(DevServerError, match="running already"):
            other.start()
        other.stop()
        other.stop()
    with pytest.raises(DevServerError, match="not running"):
        assert other.pid


def test_a_server_that_cannot_start_gives_the_reason(server, tmp_path):
    with pytest.raises(DevServerError, match=f"cannot listen on 127.0.0.1 port {server.port}"):
        DevServer(port=server.port).start()
    no_database = tmp_path / "notes.txt"
    no_database.write_text("these are only notes, and quite a few of them\n" * 50)
    with pytest.raises(DevServerError, match=r"cannot use .* as database"):
        DevServer(db=no_database).start()
    assert no_database.read_text().startswith("these are only notes")


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "dev.db"
    with DevServer(db=path) as server:
        assert track(server).status == 200
    with closing(sqlite3.connect(str(path))) as database:
        database.execute("PRAGMA application_id = 7")
        database.execute("PRAGMA journal_mode=DELETE")
        database.commit()
    before = path.read_bytes()
    with pytest.raises(DevServerError, match=r"cannot use .*dev\.db as database: it is not of this server"):
        DevServer(db=path).start()
    assert path.read_bytes() == before


def test_stop_does_not_wait_for_requests_that_hang_or_are_slow():
    with DevServer() as server:
        server.faults([{"hang": True, "times": 1}, {"latency": 600}])
        threads = [threading.Thread(target=raw_request, args=(server,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        eventually(lambda: server.counts().requests == 2)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 4
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
    assert server.log() == ""


def environment() -> Dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


def test_the_server_dies_with_its_parent():
    script = (
        "import os, sys\n"
        "from windback.devserver import DevServer\n"
        "server = DevServer(); server.start()\n"
        "print(server.port, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    with parent:
        port = int(parent.stdout.readline())
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        parent.kill()

    def gone() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    eventually(gone)


COMMANDS = {
    "module": [sys.executable, "-m", "windback.devserver"],
    "command": [sys.executable, "-c", "import sys; from windback.cli import main; sys.exit(main())", "dev"],
}


@pytest.fixture(params=sorted(COMMANDS))
def command(request) -> List[str]:
    return COMMANDS[request.param]


def run(command: List[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_the_command_prints_one_ready_line_and_a_signal_ends_it_quietly(command, sent):
    process = subprocess.Popen(
        [*command, "--port", "0", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with process:
        ready = process.stdout.readline()
        found = re.fullmatch(r"windback dev server on (http://127\.0\.0\.1:\d+/api/v1)\n", ready)
        assert found, ready
        port = urllib.parse.urlsplit(found.group(1)).port
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")


def test_the_command_prints_a_line_for_each_request_unless_quiet(command):
    process = subprocess.Popen(
        [*command, "--port", "0", "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with process:
        port = urllib.parse.urlsplit(process.stdout.readline().split()[-1]).port
        server = DevServer(port=port)
        assert track(server, batch(3)).status == 200
        assert track(server, key=None).status == 401
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err.splitlines() == ["POST /api/v1/track 200 3 events", "POST /api/v1/track 401"]


def test_a_port_in_use_is_a_clear_error(command, server):
    done = run(command, "--port", str(server.port))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"cannot listen on 127.0.0.1 port {server.port}: Address already in use" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--host", "0.0.0.0"], "not a loopback address"),  # noqa: S104 - it is refused
        (["--host", "example.com"], "not a loopback address"),
        (["--port", "65536"], "not a port"),
        (["--port", "-1"], "not a port"),
        (["--key", "secret"], "starts with sk_ or pub_"),
        (["--expired-key", "secret"], "starts with sk_ or pub_"),
        (["--max-body-bytes", "0"], "not a whole number above 0"),
        (["--gzip", "500"], "invalid choice"),
        (["--webhook-url", "ftp://example.com"], "is not a URL"),
        (["--webhook-url", "http://127.0.0.1:x/"], "is not a URL"),
        (["--webhook-url", "http:///hook"], "is not a URL"),
        (["--webhook-delays", "1,x"], "not a number of seconds"),
        (["--generate-seconds", "-1"], "not a number of seconds"),
        (["--generate-seconds", "nan"], "not a number of seconds"),
        (["--generate-seconds", "soon"], "not a number of seconds"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_makes_no_sense_is_a_usage_error(command, arguments, text):
    done = run(command, *arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_without_the_extra_the_command_names_what_to_install(command, tmp_path):
    # A module that cannot be found, as when it is not installed.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'uvicorn':\n"
        "            raise ModuleNotFoundError('No module named ' + name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    done = subprocess.run(
        [*command, "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(SOURCE)])},
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "windback dev: uvicorn is not installed; run: pip install 'windback[dev-server]'\n"


def test_importing_the_package_loads_no_web_framework():
    script = (
        "import sys, windback.devserver, windback.cli\n"
        "print([m for m in ('starlette', 'uvicorn', 'asyncio') if m in sys.modules])"
    )
    assert run([sys.executable, "-c", script]).stdout == "[]\n"
