"""The inbox of the local server over real sockets: what arrives is found, waited for and streamed."""

from __future__ import annotations

import base64
import csv
import gzip
import http.client
import io
import json
import os
import socket
import threading
import time
from contextlib import closing
from typing import Dict, Iterator, List, Mapping
from urllib.parse import quote, urlencode

import pytest
from calls import call
from inbox_calls import Stream, _number, create, get, move, track

from windback.devserver import DevServer, DevServerError
from windback.devserver.labels import label


@pytest.fixture
def key() -> str:
    """A key of this test alone: an inbox of its own."""
    return f"sk_test_inbox_{os.getpid()}_{next(_number)}"


def names(events: List[Mapping[str, object]]) -> List[object]:
    return [event["event"] for event in events]


def found(server: DevServer, key: str, query: str) -> List[object]:
    return names(get(server, "events", q=query, key=key)["data"])


@pytest.fixture(scope="module")
def server() -> Iterator[DevServer]:
    """One for all tests, which keep out of each other's way by their keys."""
    with DevServer(strict=False, generate_s=0.05) as running:
        yield running
        assert running.log() == "", "the server printed warnings or tracebacks"


# Search


EVENTS: List[Dict[str, object]] = [
    {"event": "login", "properties": {"plan": "pro", "mrr": 4900, "tags": ["a", "b"], "note": 'say "hi"'}},
    {"event": "Login", "customer_email": "Bob@Acme.com", "customer_id": "c_17", "customer_name": "Bob Ross"},
    {"event": "api_call", "properties": {"plan": "free", "mrr": 9900, "deep": {"list": {"x": True}}}},
    {"event": "feature_used", "customer_email": "zoe@acme.com", "properties": {"status": "active", "n": 0.5}},
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [0, 1, 2, 3]),
        ("*", [0, 1, 2, 3]),
        ("event:login", [0]),
        ("event:*ogin", [0, 1]),
        ('event:"log*"', []),
        ("-event:api_call", [0, 1, 3]),
        ("email:*@acme.com", [1, 3]),
        ("email:JANE@example.com", [0, 2]),
        ("customer:c_17", [1]),
        ('name:"Bob Ross"', [1]),
        ("plan:pro", [0]),
        ("plan:pro mrr>=4900", [0]),
        ("mrr>5000", [2]),
        ("mrr<5000", [0]),
        ("mrr:4900.0", [0]),
        ("mrr>5000 -plan:free", []),
        ("tags:b", [0]),
        ("deep.list.x:true", [2]),
        ("properties.status:active", [3]),
        ("n:0.5", [3]),
        ("has:plan", [0, 2]),
        ("-has:plan", [1, 3]),
        ("has:customer_id", [1]),
        ("status:stored", [0, 1, 2, 3]),
        ("status:ignored", []),
        ("status:429", []),
        ("status:2xx", [0, 1, 2, 3]),
        ("after:-10m", [0, 1, 2, 3]),
        ("before:-10m", []),
        ("after:2020-01-01 before:2999-01-01T00:00:00Z", [0, 1, 2, 3]),
        ("after:1000000000", [0, 1, 2, 3]),
        ("attempt:1", [0, 1, 2, 3]),
        ("attempt>1", []),
        ("FEATURE_", [3]),
        ('"say \\"hi"', []),
        ('note:"say \\"hi\\""', [0]),
        ("zoe", [3]),
        ("z*e", [3]),
        ("_", [1, 2, 3]),
        ("%", []),
        ("event:f*d email:z*.com", [3]),
        ("event:*", [0, 1, 2, 3]),
        ('event:"*"', []),
        ("plan:*r*", [0, 2]),
        ("properties.deep.list.x:true has:deep", [2]),
        ("-zoe -jane", [1]),
    ],
)
def test_the_search_language(server, key, query, expected):
    track(server, key, *EVENTS)
    assert found(server, key, query) == [EVENTS[index]["event"] for index in expected]
    assert get(server, "events", q=query, key=key)["total"] == len(expected)
    assert get(server, "count", q=query, key=key)["count"] == len(expected)
    assert server.count(query, key=key) == len(server.events(query, key=key)) == len(expected)


@pytest.mark.parametrize(
    ("query", "column", "text"),
    [
        ("event:", 7, "a value is missing after event:"),
        ("plan:pro event: x", 16, "a value is missing"),
        ("mrr>lots", 5, "needs a number here, not lots"),
        ('a "b c', 3, "the closing quote is missing"),
        ('"a"b', 4, "a blank is missing"),
        ("x - y", 3, "a term is missing after the minus"),
        ("after:soon", 7, "needs a time"),
        ("after:-1e9d", 7, "needs a time"),
        ("after>3", 1, "is followed by a colon"),
        ("event>3", 1, "event has no order; use event:3"),
        ("status:odd", 8, "a status is stored"),
        ("properties.:x", 1, "the name of a property is missing"),
        ("attempt>nan", 9, "needs a number"),
        ("x" * 2_001, 2_001, "is longer than 2000 characters"),
    ],
)
@pytest.mark.parametrize("path", ["events", "count", "wait", "requests", "stream"])
def test_a_bad_query_reports_at_which_column(server, path, query, column, text):
    reply = call(server, "GET", f"/_dev/{path}?q={quote(query)}")
    assert (reply.status, reply.json["code"], reply.json["column"]) == (400, "INVALID_QUERY", column)
    assert reply.json["error"].startswith(f"column {column}: ")
    assert text in reply.json["error"]


def test_many_stars_cost_no_time(server, key):
    track(server, key, {"event": "a" * 5_000})
    started = time.monotonic()
    assert found(server, key, "event:" + "*a" * 200 + "b") == []
    assert time.monotonic() - started < 5


def test_the_newest_match_comes_in_one_call(server, key):
    track(server, key, {"event": "login", "properties": {"n": 1}})
    track(server, key, {"event": "login", "properties": {"n": 2}}, {"event": "other"})
    page = get(server, "events", q="event:login", key=key, limit=1, order="desc")
    assert ([event["properties"] for event in page["data"]], page["total"]) == ([{"n": 2}], 2)
    event = page["data"][0]
    assert event["inbox"] == label(key)
    assert (event["status"], event["problems"], event["attempt"], event["delay_s"]) == ("stored", [], 1, None)
    before = get(server, "events", key=key, before=event["id"])["data"]
    after = get(server, "events", key=key, after=event["id"])["data"]
    assert (names(before), names(after)) == (["login"], ["other"])
    assert names(get(server, "events", key=key, offset=1, limit=1)["data"]) == ["login"]
    assert call(server, "GET", "/_dev/events?order=up").status == 400


def test_client_stamp_and_arrival_are_both_kept(server, key):
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() - 60)) + "+00:00"
    track(server, key, {"event": "late", "timestamp": stamp})
    (event,) = get(server, "events", key=key)["data"]
    assert event["timestamp"] == stamp
    assert 59 < event["delay_s"] < 120
    assert found(server, key, "delay>30") == ["late"]


def test_one_event_comes_with_its_request_and_its_neighbours(server, key):
    track(server, key, {"event": "one"}, {"event": "two"}, {"event": "three"})
    first, middle, last = get(server, "events", key=key)["data"]
    whole = get(server, f"events/{middle['id']}")
    assert whole["data"] == middle
    assert whole["request"]["request_id"] == middle["request_id"]
    assert whole["neighbours"] == {"newer": last["id"], "older": first["id"]}
    server.clear("event:two", key=key)
    gone = call(server, "GET", f"/_dev/events/{middle['id']}")
    assert (gone.status, gone.json["evicted"]) == (404, True)
    assert gone.json["neighbours"] == {"newer": last["id"], "older": first["id"]}
    for number in ("0", "999999999", "9" * 50):
        never = call(server, "GET", f"/_dev/events/{number}")
        assert (never.status, never.json["evicted"]) == (404, False)


def test_what_is_found_can_be_exported_and_sent_again(server, key):
    evil = {"event": '=cmd()"', "properties": {"a": "1,2"}, "timestamp": "2025-12-01T10:00:00Z"}
    track(server, key, evil, {"event": "x", "customer_email": None, "customer_id": "c"}, {"event": "not"})
    query = urlencode({"key": key, "q": "-event:not"})
    reply = call(server, "GET", f"/_dev/export?{query}")
    assert reply.headers["content-disposition"] == 'attachment; filename="events.jsonl"'
    first, second = map(json.loads, reply.raw.splitlines())
    assert first == {**evil, "customer_email": "jane@example.com"}
    assert (second["event"], second["customer_id"], "customer_email" in second) == ("x", "c", False)
    again = call(server, "POST", "/api/v1/track", {"events": [first, second]}, {"x-api-key": key + "_again"})
    assert (again.status, server.counts(key=key + "_again").events) == (200, 2)
    table = call(server, "GET", f"/_dev/export?format=csv&{query}").raw.decode()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["event"] for row in rows] == ["'=cmd()\"", "x"]
    assert json.loads(rows[0]["properties"]) == {"a": "1,2"}
    assert call(server, "GET", "/_dev/export?format=xml").status == 400


# Waiting


def later(act, delay_s: float = 0.2) -> threading.Thread:
    thread = threading.Timer(delay_s, act)
    thread.start()
    return thread


def test_wait_blocks_until_enough_have_come(server, key):
    track(server, key, {"event": "login", "properties": {"n": 1}})
    sender = later(
        lambda: [
            track(server, key, {"event": "login", "properties": {"n": n}}, {"event": "x"}) for n in (2, 3)
        ]
    )
    answer = get(server, "wait", event="login", count=3, timeout=20, key=key)
    sender.join()
    assert [event["properties"]["n"] for event in answer["data"]] == [1, 2, 3]
    assert answer["count"] == 3
    events = server.wait("login", count=2, query="n>1", key=key)
    assert [event.properties["n"] for event in events] == [2, 3]


def test_wait_reports_at_its_end_what_came_and_what_nearly_did(server, key):
    mark = server.mark()
    other = key + "_other"
    track(server, key, {"event": "login"}, {"event": "Login"}, {"event": "logn"}, {"event": "else"})
    track(server, key, {"event": "login", "customer_email": "nobody"})
    track(server, other, {"event": "login"})
    path = f"/_dev/wait?event=login&count=2&timeout=0.2&key={key}&since={mark}"
    reply = call(server, "GET", path)
    assert (reply.status, reply.json["code"], reply.json["count"]) == (504, "TIMEOUT", 1)
    assert names(reply.json["data"]) == ["login"]
    assert reply.json["error"].startswith("1 of 2 came within 0.2 s; 1 x ")
    assert {miss["text"]: miss["count"] for miss in reply.json["misses"]} == {
        "`Login`: the case differs": 1,
        "`logn`: a similar name": 1,
        "`login`: ignored by the real API because of events[0].customer_email": 1,
        f"`login`: in the inbox {label(other)}": 1,
    }
    with pytest.raises(DevServerError, match=r"0 of 1 came .*1 x `else`: all but plan:pro"):
        server.wait("else", query="plan:pro", timeout=0.1, key=key)
    after = server.mark()
    with pytest.raises(DevServerError, match="`else`: before the mark"):
        server.wait("else", since=after, timeout=0.1, key=key)


def test_a_mark_counts_what_came_after_it_and_before_the_wait(server, key):
    track(server, key, {"event": "login", "properties": {"n": 1}})
    mark = server.mark()
    track(server, key, {"event": "login", "properties": {"n": 2}})
    (event,) = server.wait("login", since=mark, key=key)
    assert event.properties == {"n": 2}
    assert [event.properties["n"] for event in server.wait("login", count=2, key=key)] == [1, 2]


def test_wait_for_nothing_proves_that_nothing_came(server, key):
    started = time.monotonic()
    assert server.wait("login", count=0, quiet=0.3, key=key) == []
    assert time.monotonic() - started >= 0.3
    sender = later(lambda: track(server, key, {"event": "login"}), 0.1)
    reply = call(server, "GET", f"/_dev/wait?event=login&count=0&for=20&key={key}")
    sender.join()
    assert (reply.status, reply.json["code"], names(reply.json["data"])) == (409, "TOO_MANY", ["login"])
    with pytest.raises(DevServerError, match="1 came where 0 should have"):
        server.wait("login", count=0, key=key)
    assert len(server.wait("login", count=1, quiet=0.1, key=key)) == 1


def test_wait_ends_when_nobody_listens_any_more(server, key):
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.3)) as connection:
        connection.request("GET", f"/_dev/wait?event=never&timeout=600&key={key}")
        with pytest.raises(socket.timeout):
            connection.getresponse()
    assert server.count(key=key) == 0


# Inboxes


def test_each_key_is_an_inbox_of_its_own(server, key):
    mine, theirs = key + "_a", key + "_b"
    track(server, mine, {"event": "login"}, {"event": "x"})
    track(server, theirs, {"event": "login"})
    track(server, theirs, {"event": ""})
    server.faults([{"status": 503, "times": 5}], key=mine)
    assert track(server, mine, {"event": "y"}).status == 503
    assert track(server, theirs, {"event": "y"}).status == 200
    assert (found(server, mine, ""), found(server, theirs, "event:*")) == (["login", "x"], ["login", "", "y"])
    assert (server.counts(key=mine).events, server.counts(key=theirs).events) == (2, 2)
    assert (server.counts(key=mine).requests, server.counts(key=theirs).requests) == (2, 3)
    assert (server.counts(key=mine).faults, server.counts(key=theirs).ignored) == (1, 1)
    assert [record.status for record in server.requests(key=mine)] == [200, 503]
    assert len(server.wait("login", key=theirs)) == 1
    inboxes = {row["inbox"]: row for row in get(server, "inboxes")["data"]}
    assert (inboxes[label(mine)]["events"], inboxes[label(theirs)]["events"]) == (2, 3)
    assert get(server, "names", key=theirs)["data"][0] == {"event": "login", "count": 1, "ignored": 0}
    server.clear_faults(key=theirs)
    assert track(server, mine, {"event": "y"}).status == 503
    server.clear_faults(key=mine)
    assert track(server, mine, {"event": "y"}).status == 200


def test_clear_takes_one_inbox_or_what_a_search_finds_and_never_more(server, key):
    mine, theirs = key + "_a", key + "_b"
    for inbox in (mine, theirs):
        track(server, inbox, {"event": "login"}, {"event": "x"}, {"event": "x", "customer_email": 5})
    assert server.clear("event:x", key=mine) == 2
    assert (found(server, mine, ""), server.counts(key=mine).events) == (["login"], 1)
    assert server.clear(key=mine) == 1
    assert (server.counts(key=mine).events, server.counts(key=theirs).events) == (0, 2)
    assert server.counts(key=theirs).ignored == 1
    reply = call(server, "DELETE", "/_dev/events")
    assert (reply.status, reply.json["error"].partition(":")[0]) == (400, "key or q")
    assert server.clear(f"key:{theirs}") == 3
    with DevServer() as other:
        track(other, mine, {"event": "x"})
        last = other.mark()
        assert other.clear("*") == 1
        track(other, mine, {"event": "y"})
        assert other.events()[0].id == last + 1


def test_no_key_is_shown_anywhere(server, key):
    secret = key + "_very_secret"
    events = {"events": [{"event": "leak", "customer_email": "a@b.c", "properties": {"key": secret}}]}
    call(server, "POST", f"/api/v1/track?key={secret}", events, {"x-api-key": secret, "cookie": "c00kie"})
    bearer = {"authorization": f"Bearer {secret}"}
    call(server, "GET", "/api/v1/cancel-flow/offers?reason=x", None, bearer)
    records = server.requests(key=secret)
    assert len(records) == 2
    for path in [f"requests/{record.id}" for record in records] + ["requests", "inboxes", "counts", "health"]:
        raw = call(server, "GET", f"/_dev/{path}").raw
        assert secret.encode() not in raw, path
        assert b"c00kie" not in raw
    assert records[1].inbox == label(secret) == records[0].inbox
    whole = get(server, f"requests/{records[0].id}")["data"]
    assert (whole["headers"]["x-api-key"], whole["headers"]["cookie"]) == ("sk_***", "***")


# What the real API would ignore


def test_an_event_that_the_api_would_drop_is_taken_and_marked(server, key):
    bad = {"event": "", "customer_email": "jane", "timestamp": "soon", "properties": [1]}
    events = {"events": [{"event": "ok", "customer_email": "a@b.c"}, bad, "no object", {"event": "x"}]}
    reply = call(server, "POST", "/api/v1/track", events, {"x-api-key": key})
    assert (reply.status, reply.json) == (200, {"status": "ok"})
    kept = get(server, "events", key=key)["data"]
    assert [event["status"] for event in kept] == ["stored", "ignored", "ignored", "ignored"]
    assert kept[1]["problems"] == [
        {"path": "events[1].event", "expected": "a string that is not empty", "got": '""'},
        {"path": "events[1].customer_email", "expected": "an address such as name@host", "got": '"jane"'},
        {
            "path": "events[1].timestamp",
            "expected": "an ISO 8601 time with a zone, such as 2025-12-01T10:00:00Z",
            "got": '"soon"',
        },
        {"path": "events[1].properties", "expected": "an object", "got": "[1]"},
    ]
    assert kept[2]["problems"] == [{"path": "events[2]", "expected": "an object", "got": '"no object"'}]
    missing = "an address such as name@host, or a customer_id"
    assert kept[3]["problems"] == [
        {"path": "events[3].customer_email", "expected": missing, "got": "nothing"}
    ]
    counts = server.counts(key=key)
    assert (counts.events, counts.ignored, counts.stored, counts.rejected) == (1, 3, 4, 0)
    assert found(server, key, "status:ignored event:x") == ["x"]
    assert server.requests(key=key)[0].ignored == 3
    alone = call(server, "POST", "/api/v1/track", {"event": "y"}, {"x-api-key": key})
    assert alone.status == 200
    (event,) = get(server, "events", key=key, q="event:y")["data"]
    assert event["problems"][0]["path"] == "customer_email"


def test_strict_refuses_it_instead(key):
    with DevServer() as strict:
        reply = track(strict, key, {"event": "ok"}, {"event": ""})
        assert (reply.status, reply.json["code"]) == (400, "VALIDATION_ERROR")
        assert reply.json["error"].startswith("events[1].event: ")
        assert strict.counts().stored == 0
        record = strict.requests()[0]
        assert (record.status, record.reason) == (400, "VALIDATION_ERROR")
        items = call(strict, "GET", "/openapi.json").json["components"]["schemas"]["TrackBody"]["oneOf"][1]
        assert items["properties"]["events"]["items"] == {"$ref": "#/components/schemas/TrackEvent"}


# Requests


def test_every_attempt_is_kept_to_the_byte(server, key):
    body = gzip.compress(json.dumps({"events": [{"event": "login", "customer_email": "a@b.c"}]}).encode())
    headers = {
        "x-api-key": key,
        "content-encoding": "gzip",
        "idempotency-key": key,
        "user-agent": "windback-python/9.9 (test)",
        "x-extra": "kept",
    }
    server.faults([{"status": 503, "times": 1}, {"drop": "after", "times": 1}], key=key)
    assert call(server, "POST", "/api/v1/track?x=1", body, headers).status == 503
    with pytest.raises(http.client.RemoteDisconnected):
        call(server, "POST", "/api/v1/track?x=1", body, headers)
    assert call(server, "POST", "/api/v1/track?x=1", body, headers).status == 200
    records = server.requests(key=key)
    assert [(each.status, each.attempt, each.duplicate) for each in records] == [
        (503, 1, False),
        (None, 2, False),
        (200, 3, True),
    ]
    whole = get(server, f"requests/{records[2].id}")["data"]
    assert base64.b64decode(whole["body"]["base64"]) == body
    assert whole["decoded"] == gzip.decompress(body).decode()
    assert (whole["query"], whole["gzip"], whole["sdk"]) == ("x=1", True, "windback-python/9.9")
    assert whole["headers"]["x-extra"] == "kept"
    assert whole["response"]["body"] == {"text": '{"status":"ok"}'}
    assert whole["response"]["headers"]["x-request-id"] == records[2].request_id
    assert whole["body_bytes"] == len(body)
    assert len(body) < whole["wire_bytes"] < len(body) + 1_000
    assert whole["duration_ms"] > 0
    assert [each["id"] for each in whole["attempts"]] == [record.id for record in records]
    assert get(server, f"requests/{records[1].request_id}")["data"]["response"] is None
    (event,) = server.events(key=key)
    assert (event.request_id, event.attempt, event.answered) == (records[1].request_id, 2, None)
    assert get(server, f"requests/{records[1].id}")["data"]["event_ids"] == [event.id, event.id]
    assert found(server, key, "status:none") == ["login"]


def test_the_same_bytes_are_attempts_at_the_same_thing(server, key):
    for _ in range(2):
        track(server, key, {"event": "login"})
    track(server, key, {"event": "other"})
    for _ in range(2):
        call(server, "GET", "/api/v1/projects/p/stats", None, {"x-api-key": key})
    assert [record.attempt for record in server.requests(key=key)] == [1, 2, 1, 1, 1]
    assert [event.attempt for event in server.events(key=key)] == [1, 2, 1]


def test_requests_are_searched_too(server, key):
    track(server, key, {"event": "login", "properties": {"plan": "pro"}})
    call(server, "POST", "/api/v1/track", b"{", {"x-api-key": key})
    call(server, "GET", "/api/v1/nothing", None, {"x-api-key": key})
    for query, expected in (
        ("status:4xx", [400, 404]),
        ("event:login", [200]),
        ("plan:pro", [200]),
        ("path:*/track -status:200", [400]),
        ("method:GET", [404]),
        ("jane", [200]),
        ("duration<60000", [200, 400, 404]),
        ("after:-1h", [200, 400, 404]),
        ("fault:*", []),
    ):
        assert [record.status for record in server.requests(query=query, key=key)] == expected, query
    first, second, third = server.requests(key=key)
    assert (second.reason, third.reason) == ("INVALID_JSON", "NOT_FOUND")
    assert [row["id"] for row in get(server, "requests", key=key, before=third.id)["data"]] == [
        first.id,
        second.id,
    ]
    assert [row["id"] for row in get(server, "requests", key=key, after=first.id, limit=1)["data"]] == [
        second.id
    ]
    assert call(server, "GET", "/_dev/requests/999999").status == 404
    assert call(server, "GET", "/_dev/requests/x").status == 404


def test_old_bodies_make_room_for_new_ones(key):
    with DevServer(keep_bytes=400_000) as small:
        for n in range(3):
            track(small, key, {"event": "big", "properties": {"n": n, "text": "x" * 45_000}})
        states = [get(small, f"requests/{record.id}")["data"]["body_state"] for record in small.requests()]
        assert states == ["forgotten", "kept", "kept"]
        assert small.counts().events == 3


# The stream


def test_an_event_is_sent_immediately_with_what_it_changed(server, key):
    with closing(Stream(server, f"?key={key}")) as stream:
        first = stream.until("state")
        assert (first["faults"], first["counts"]["events"]) == ([], 0)
        started = time.monotonic()
        track(server, key, {"event": "login"})
        message = stream.until("events")
        assert time.monotonic() - started < 5
        assert (names(message["data"]), message["counts"]["events"], message["skipped"]) == (["login"], 1, 0)
        track(server, key, {"event": "x"}, {"event": "y"})
        (request,) = stream.until("requests")["data"]
        assert (request["status"], request["events"], request["attempt"]) == (200, 2, 1)
        track(server, key + "_other", {"event": "not for us"})
        server.faults([{"name": "mine", "status": 503}], key=key)
        while not stream.until("state")["faults"]:
            pass
        server.clear_faults(key=key)
        server.clear(key=key)
        assert stream.until("cleared")["counts"]["events"] == 0


def test_nothing_is_lost_or_sent_twice_over_a_cut_stream(server, key):
    told: List[object] = []
    last_id = None
    for round_number in range(4):
        stream = Stream(server, f"?key={key}", last_id)
        for n in range(5):
            track(server, key, {"event": "e", "properties": {"n": f"{round_number}.{n}.open"}})
        told += [event["properties"]["n"] for event in stream.until("events")["data"]]
        last_id = stream.last_id
        # Cut in the middle of whatever it has to tell.
        stream.socket.shutdown(socket.SHUT_RDWR)
        stream.close()
        track(server, key, {"event": "e", "properties": {"n": f"{round_number}.cut"}})
    with closing(Stream(server, f"?key={key}", last_id)) as stream:
        while len(told) < 24:
            told += [event["properties"]["n"] for event in stream.until("events")["data"]]
    assert told == [event.properties["n"] for event in server.events(key=key)]


def test_a_stream_goes_on_from_a_list(server, key):
    track(server, key, {"event": "listed"})
    cursor = get(server, "events", key=key)["cursor"]
    track(server, key, {"event": "later"}, {"event": "filtered"})
    with closing(Stream(server, f"?key={key}&since={cursor}&q=-event:filtered")) as stream:
        assert names(stream.until("events")["data"]) == ["later"]
    assert call(server, "GET", "/_dev/stream?since=nonsense").status == 400


def test_a_burst_is_sent_in_few_messages_and_whole(server, key):
    with closing(Stream(server, f"?key={key}")) as stream:
        stream.until("state")
        for first in range(0, 3_000, 100):
            track(server, key, *({"event": "e", "properties": {"n": first + n}} for n in range(100)))
        told, messages = [], 0
        while len(told) < 3_000:
            told += [event["properties"]["n"] for event in stream.until("events")["data"]]
            messages += 1
        assert told == list(range(3_000))
        assert messages <= 30


def test_a_change_of_a_churn_event_is_reported(server, key):
    with closing(Stream(server, f"?key={key}")) as stream:
        stream.until("state")
        event = create(server, key)
        assert stream.until("churn")["data"][0]["status"] == "new"
        move(server, event, "processing")
        told = []
        while "variants_generated" not in told:
            told += [each["status"] for each in stream.until("churn")["data"]]


@pytest.mark.parametrize("kept", [True, False], ids=["file", "memory"])
def test_a_stream_survives_a_restart_of_the_server(tmp_path, key, kept):
    dev = DevServer(db=tmp_path / "dev.db" if kept else None)
    with dev:
        with closing(Stream(dev)) as stream:
            track(dev, key, {"event": "before"}, {"event": "before"})
            stream.until("events")
            last_id = stream.last_id
        if kept:
            track(dev, key, {"event": "between"})
        dev.kill()
        dev.start()
        if not kept:  # its events have the ids of others of the earlier server
            track(dev, key, {"event": "between"})
        with closing(Stream(dev, "", last_id)) as stream:
            assert names(stream.until("events")["data"]) == ["between"]


# Sending by hand


def test_a_test_event_goes_the_way_of_every_event(server, key):
    body = {"events": [{"event": "hello", "customer_email": "a@b.c"}], "inbox": key}
    sent = call(server, "POST", "/_dev/send", body).json
    assert (sent["request"]["status"], sent["answer"], names(sent["data"])) == (
        200,
        {"status": "ok"},
        ["hello"],
    )
    assert sent["data"][0]["inbox"] == label(key)
    again = call(server, "POST", "/_dev/send", {**body, "inbox": label(key)}).json
    assert (again["data"][0]["inbox"], again["request"]["attempt"]) == (label(key), 2)
    server.faults([{"status": 500, "times": 1}, {"drop": "before", "times": 1}], key=key)
    for status in (500, None):
        refused = call(server, "POST", "/_dev/send", body).json
        assert (refused["request"]["status"], refused["data"]) == (status, [])
    alone = call(server, "POST", "/_dev/send", {"events": body["events"]}).json
    assert alone["data"][0]["inbox"] == label("sk_test_local")
    for wrong in ({}, {"events": []}, {"events": {}}, []):
        assert call(server, "POST", "/_dev/send", wrong).status == 400
