"""The inbox of the local server over real sockets: customers, the board, numbers, and faults."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import threading
import time
from contextlib import closing
from typing import Iterator, List
from urllib.parse import quote

import pytest
from calls import Reply, call, eventually
from inbox_calls import _number, create, get, move, track

from windback.devserver import DevServer
from windback.devserver.labels import label


@pytest.fixture
def key() -> str:
    """A key of this test alone: an inbox of its own."""
    return f"sk_test_inbox_{os.getpid()}_{next(_number)}"


@pytest.fixture(scope="module")
def server() -> Iterator[DevServer]:
    """One for all tests, which keep out of each other's way by their keys."""
    with DevServer(strict=False, generate_s=0.05) as running:
        yield running
        assert running.log() == "", "the server printed warnings or tracebacks"


# Customers, board, series


def test_customers_have_their_events_and_churn_events(server, key):
    track(server, key, {"event": "login", "customer_email": "Zoe@Acme.com", "customer_name": "Zoe"})
    track(
        server,
        key,
        {"event": "login", "customer_email": "zoe@acme.com"},
        {"event": "bad", "customer_email": 1},
    )
    track(server, key, {"event": "login", "customer_email": None, "customer_id": "c/1"})
    create(server, key, customer_email="ZOE@acme.com", mrr=4900, currency="eur")
    create(server, key, customer_email="new@acme.com")
    page = get(server, "customers", key=key)
    assert page["total"] == 3
    zoe = next(row for row in page["data"] if row["events"] == 2)
    assert (zoe["customer_name"], zoe["mrr"], zoe["open_churn_events"]) == ("Zoe", {"EUR": 4900}, 1)
    assert zoe["first_at"] < zoe["last_at"]
    found_ids = [row["customer_id"] for row in get(server, "customers", key=key, q="c/")["data"]]
    assert found_ids == ["c/1"]
    assert get(server, "customers", key=key, q="%")["total"] == 0
    assert len(get(server, "customers", key=key, limit=1, offset=2)["data"]) == 1
    whole = get(server, "customers/zoe@acme.com", key=key)
    assert (whole["data"], len(whole["events"])) == (zoe, 2)
    assert whole["churn_events"][0]["next"] == ["processing", "recovered", "lost"]
    assert len(get(server, "customers/" + quote("c/1"), key=key)["events"]) == 1
    assert call(server, "GET", f"/_dev/customers/nobody?key={key}").status == 404


def test_the_board_moves_along_legal_steps_only(server, key):
    event = create(server, key, mrr=4900, cancel_reason="too_expensive")
    create(server, key, mrr=100, currency="eur")
    columns = {column["status"]: column for column in get(server, "board", key=key)["columns"]}
    assert list(columns) == ["new", "processing", "variants_generated", "email_sent", "recovered", "lost"]
    assert (columns["new"]["count"], columns["new"]["mrr"]) == (2, {"EUR": 100, "USD": 4900})
    card = columns["new"]["cards"][1]
    assert (card["id"], card["reason"], card["next"]) == (
        event["id"],
        "too_expensive",
        ["processing", "recovered", "lost"],
    )
    reply = move(server, event, "email_sent")
    assert (reply.status, reply.json["code"]) == (400, "INVALID_STATE")
    assert reply.json["error"] == (
        "a churn event that is new goes to processing, recovered, lost, not to email_sent"
    )
    assert move(server, event, "processing").json["data"]["status"] == "processing"
    whole = lambda: get(server, f"churn-events/{event['id']}")  # noqa: E731 - read again and again
    eventually(lambda: whole()["data"]["status"] == "variants_generated")
    assert (len(whole()["variants"]), whole()["slug"]) == (9, "p")
    assert move(server, event, "email_sent").status == 200
    sent = [variant["strategy"] for variant in whole()["variants"] if variant["sent_at"]]
    assert sent == ["discount"]
    assert move(server, event, "recovered").status == 200
    assert whole()["next"] == []
    assert move(server, event, "lost").status == 400
    other = create(server, key)
    assert move(server, other, "processing").status == 200
    assert move(server, other, "variants_generated").status == 200
    assert move(server, other, "lost").status == 200
    assert [move(server, other, to).status for to in ("sideways", "new")] == [400, 400]
    assert move(server, {"id": "evt_x"}, "lost").status == 404
    columns = {column["status"]: column for column in get(server, "board", key=key)["columns"]}
    assert columns["recovered"]["mrr"] == {"USD": 4900}
    assert columns["lost"]["cards"][0]["since"] > columns["recovered"]["cards"][0]["since"]


def test_the_series_reports_what_happened_each_second(server, key):
    for n in range(10):
        track(server, key, {"event": f"e{n}"}, {"event": "often"}, {"event": "dropped", "customer_email": 1})
    call(server, "POST", "/api/v1/track", b"{", {"x-api-key": key})
    server.faults([{"drop": "before", "times": 1}], key=key)
    with pytest.raises(http.client.RemoteDisconnected):
        track(server, key, {"event": "x"})
    series = get(server, "series", seconds=60, key=key)
    assert {len(series[name]) for name in ("events", "rejected", "rest", "p50_ms", "p95_ms")} == {60}
    assert (sum(series["events"]), sum(series["rejected"])) == (20, 1)
    assert {name: sum(counts) for name, counts in series["status"].items()} == {
        "2xx": 10,
        "3xx": 0,
        "4xx": 1,
        "5xx": 0,
        "none": 1,
    }
    by_name = {row["event"]: sum(row["counts"]) for row in series["names"]}
    assert (by_name["often"], len(by_name), sum(series["rest"])) == (10, 8, 3)
    assert {row["reason"]: row["count"] for row in series["reasons"]} == {
        "INVALID_JSON": 1,
        "fault: drop before": 1,
    }
    known = [(low, high) for low, high in zip(series["p50_ms"], series["p95_ms"]) if low is not None]
    assert known
    assert all(0 < low <= high for low, high in known)
    assert call(server, "GET", "/_dev/series?seconds=-1").status == 400
    hour = get(server, "series", seconds=3600, key=key)
    assert (hour["step"], len(hour["events"]), sum(hour["events"])) == (60, 60, 20)
    kept = get(server, "series", seconds=0, key=key)
    assert (kept["step"], sum(kept["events"]), kept["reasons"]) == (60, 20, hour["reasons"])
    assert kept["last_at"] == get(server, "events", key=key, limit=1, order="desc")["data"][0]["received_at"]


def test_a_pause_before_a_good_answer_is_not_a_reason_and_one_before_an_error_is(server, key):
    server.faults([{"latency": 0.01, "times": 1}, {"latency": 0.01, "status": 503, "times": 1}], key=key)
    assert [track(server, key, {"event": "x"}).status for _ in range(2)] == [503, 200]
    assert len(get(server, "series", seconds=60, key=key)["reasons"]) == 1


def test_the_series_and_the_overview_outlive_the_server(tmp_path):
    with DevServer(db=tmp_path / "kept.db") as server:
        track(server, "sk_test_1", {"event": "login"}, {"event": "login"}, {"event": "export"})
        server.stop()
        server.start()
        series = get(server, "series", seconds=0)
        assert {each["event"]: sum(each["counts"]) for each in series["names"]} == {"login": 2, "export": 1}
        assert get(server, "overview")["events"] == 3


def test_the_overview_counts_today_and_finds_what_changed_about_properties(server, key):
    for n in range(150):
        track(server, key, {"event": "login", "properties": {"seats": n, "session": f"s{n}", "gone": None}})
    track(server, key, {"event": "login", "properties": {"seats": "7", "team_size": 2, "Session": "s"}})
    track(server, key, {"event": "export", "properties": {"ok": True}}, {"event": "bad", "customer_email": 1})
    create(server, key, mrr=4900)
    seen = get(server, "overview", key=key)
    assert (seen["events"], seen["rejected"], seen["requests"]["2xx"]) == (152, 0, 153)
    assert seen["money"] == {"at_risk": {"USD": 4900}, "recovered": {}, "lost": {}}
    assert [(each["event"], each["count"], each["is_new"]) for each in seen["names"]] == [
        ("login", 151, False),
        ("export", 1, False),
    ]
    assert {(each["property"], each["kind"]): each["text"] for each in seen["drift"]} == {
        ("seats", "type"): "is also text: number (150), text (1)",
        ("team_size", "new"): "new after 150 events without it",
        ("Session", "new"): "new after 150 events without it; there is 'session' already",
        ("session", "values"): "100 or more different texts in 150 events",
    }
    call(server, "DELETE", f"/_dev/events?key={key}")
    assert (get(server, "overview", key=key)["names"], get(server, "overview", key=key)["drift"]) == ([], [])


# Faults


def statuses(server: DevServer, key: str, times: int, event: str = "e") -> List[int]:
    return [track(server, key, {"event": event}).status for _ in range(times)]


def raw_answer(server: DevServer, key: str) -> bytes:
    """All that comes back on a bare socket until it is closed."""
    body = json.dumps({"event": "e", "customer_email": "a@b.c"}).encode()
    head = f"POST /api/v1/track HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    received = b""
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=20)) as connection:
        connection.sendall(head.encode() + body)
        while True:
            chunk = connection.recv(65_536)
            if not chunk:
                return received
            received += chunk


def test_faults_match_event_and_key_and_say_whom_they_hit(server, key):
    server.faults([{"event": "log*", "status": 503}], key=key)
    assert statuses(server, key, 1, "login") == [503]
    assert statuses(server, key, 1, "other") == [200]
    assert statuses(server, key + "_b", 1, "login") == [200]
    rule = next(rule for rule in get(server, "faults")["data"] if rule["key"] == label(key))
    struck = server.requests(key=key)[0]
    assert (rule["hits"], rule["last_request_id"]) == (1, struck.request_id)
    assert (struck.rule, struck.fault) == (rule["id"], "status 503")
    server.clear_faults(key=key)


def test_faults_say_when(server, key):
    server.faults([{"status": 503, "every": 3}], key=key)
    assert statuses(server, key, 6) == [200, 200, 503] * 2
    server.faults([{"status": 503, "times": 2}], key=key)
    assert statuses(server, key, 3) == [503, 503, 200]
    server.faults([{"status": 503, "until": 2}], key=key)
    assert statuses(server, key, 1) == [503]
    eventually(lambda: statuses(server, key, 1) == [200])
    server.faults([{"status": 503, "until": 3600}], key=key)
    (rule,) = [rule for rule in get(server, "faults")["data"] if rule.get("key") == label(key)]
    assert rule["ends_at"] > time.strftime("%Y-%m-%dT%H:%M", time.gmtime())
    server.faults([{"status": 429, "above": 0.001}], key=key)
    assert statuses(server, key, 3) == [200, 429, 429]
    server.clear_faults(key=key)


def test_chance_is_none_all_or_the_same_again(server, key):
    server.faults([{"status": 503, "rate": 0}], key=key)
    assert set(statuses(server, key, 20)) == {200}
    server.faults([{"status": 503, "rate": 1}], key=key)
    assert set(statuses(server, key, 20)) == {503}
    runs = []
    for _ in range(2):
        server.faults([{"status": 503, "rate": 0.5, "seed": 7}], key=key)
        runs.append(statuses(server, key, 40))
    assert runs[0] == runs[1]
    assert {200, 503} == set(runs[0])
    server.clear_faults(key=key)


def test_the_request_after_the_answer_sees_the_new_rules(server, key):
    for _ in range(20):
        server.faults([{"status": 503}], key=key)
        assert statuses(server, key, 1) == [503]
        server.clear_faults(key=key)
        assert statuses(server, key, 1) == [200]


@pytest.mark.parametrize(
    ("rule", "status", "code"),
    [
        ({"expired": True}, 402, "SUBSCRIPTION_EXPIRED"),
        ({"max_bytes": 10}, 413, "BODY_TOO_LARGE"),
        ({"max_bytes": 10_000}, 200, None),
        ({"refuse_gzip": True}, 200, None),
        ({"redirect": "http://127.0.0.1:1/"}, 307, None),
        ({"status": 429, "retry_after": 3}, 429, "FAULT"),
    ],
    ids=str,
)
def test_faults_answer_for_the_api(server, key, rule, status, code):
    server.faults([rule], key=key)
    reply = track(server, key, {"event": "e"})
    assert reply.status == status
    if code is not None:
        assert reply.json["code"] == code
    assert reply.headers.get("location") == rule.get("redirect")
    assert reply.headers.get("retry-after") == ("3" if "retry_after" in rule else None)
    packed = gzip.compress(json.dumps({"event": "e", "customer_email": "a@b.c"}).encode())
    zipped = call(server, "POST", "/api/v1/track", packed, {"x-api-key": key, "content-encoding": "gzip"})
    assert zipped.status == (415 if "refuse_gzip" in rule else status)
    server.clear_faults(key=key)


def test_an_answer_is_cut_short_spoilt_or_slow_after_the_event_is_stored(server, key):
    server.faults([{"answer": "truncated"}], key=key)
    head, _, body = raw_answer(server, key).partition(b"\r\n\r\n")
    assert b"content-length: 15" in head
    assert body == b'{"statu'
    server.faults([{"answer": "malformed"}], key=key)
    reply = track(server, key, {"event": "e"})
    assert (reply.status, len(reply.raw)) == (200, 15)
    with pytest.raises(json.JSONDecodeError):
        reply.json  # noqa: B018 - it must not be JSON
    server.faults([{"drip": 0.4}], key=key)
    started = time.monotonic()
    assert track(server, key, {"event": "e"}).json == {"status": "ok"}
    assert time.monotonic() - started >= 0.4
    assert server.counts(key=key).events == 3
    assert [record.fault for record in server.requests(key=key)] == ["truncated", "malformed", "drip"]
    server.clear_faults(key=key)


def test_jitter_goes_both_ways_and_not_below_nothing(server, key):
    server.faults([{"latency": 0.05, "jitter": 0.05, "seed": 3}], key=key)
    taken = []
    for _ in range(8):
        started = time.monotonic()
        assert statuses(server, key, 1) == [200]
        taken.append(time.monotonic() - started)
    assert max(taken) - min(taken) > 0.01
    server.clear_faults(key=key)


@pytest.mark.parametrize("rule", [{"latency": 600}, {"hang": True}, {"latency": 600, "status": 503}], ids=str)
def test_who_waits_for_a_fault_goes_on_when_it_ends(server, key, rule):
    server.faults([rule], key=key)
    replies: List[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(track(server, key, {"event": "e"})))
    thread.start()
    eventually(lambda: server.counts(key=key).requests == 1)
    eventually(
        lambda: [each for each in get(server, "faults")["data"] if each["hits"] and each["key"] == label(key)]
    )
    server.clear_faults(key=key)
    thread.join(20)
    assert [reply.status for reply in replies] == [200]
    assert server.counts(key=key).events == 1


def test_rules_are_added_changed_and_ended_one_by_one(server, key):
    added = call(server, "POST", "/_dev/faults", {"key": key, "status": 503, "name": "deploy"})
    rule = added.json["data"]
    assert (added.status, rule["enabled"], rule["hits"], rule["name"]) == (201, True, 0, "deploy")
    assert rule["key"] == label(key)
    path = f"/_dev/faults/{rule['id']}"
    assert statuses(server, key, 1) == [503]
    assert call(server, "PATCH", path, {"enabled": False}).json["data"]["hits"] == 1
    assert statuses(server, key, 1) == [200]
    changed = call(server, "PATCH", path, {"enabled": True, "status": None, "expired": True}).json["data"]
    assert (changed["id"], "status" in changed) == (rule["id"], False)
    assert statuses(server, key, 1) == [402]
    assert call(server, "PATCH", path, {"rate": 2}).status == 400
    assert statuses(server, key, 1) == [402]
    left = call(server, "DELETE", path).json["data"]
    assert rule["id"] not in [each["id"] for each in left]
    assert statuses(server, key, 1) == [200]
    assert [call(server, method, path, {}).status for method in ("PATCH", "DELETE")] == [404, 404]


@pytest.mark.parametrize(
    ("rule", "place"),
    [
        ({"status": 503, "every": 0}, "fault.every"),
        ({"status": 503, "until": -1}, "fault.until"),
        ({"status": 503, "above": 0}, "fault.above"),
        ({"status": 503, "enabled": 1}, "fault.enabled"),
        ({"status": 503, "event": 7}, "fault.event"),
        ({"status": 503, "key": 7}, "fault.key"),
        ({"status": 503, "name": 7}, "fault.name"),
        ({"latency": 1, "jitter": "a"}, "fault.jitter"),
        ({"answer": "sometimes"}, "fault.answer"),
        ({"drip": -1}, "fault.drip"),
        ({"refuse_gzip": 1}, "fault.refuse_gzip"),
        ({"expired": "yes"}, "fault.expired"),
        ({"max_bytes": -1}, "fault.max_bytes"),
        ({"max_bytes": None}, "fault.max_bytes"),
        ({"redirect": "x\ny"}, "fault.redirect"),
        ({"expired": True, "hang": True}, "fault: has more than one effect"),
    ],
    ids=str,
)
def test_a_new_rule_that_makes_no_sense_is_400(server, rule, place):
    reply = call(server, "POST", "/_dev/faults", rule)
    assert (reply.status, reply.json["code"]) == (400, "INVALID_FAULT")
    assert reply.json["error"].startswith(place)
