"""The inbox of the local server over real sockets: what arrives is found, waited for, told and kept."""

from __future__ import annotations

import base64
import csv
import gzip
import http.client
import io
import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional
from urllib.parse import quote, urlencode

import pytest
from calls import Reply, call, eventually

from windback.devserver import DevServer, DevServerError
from windback.devserver.labels import label

SOURCE = Path(__file__).resolve().parents[2] / "src"
COMMAND = [sys.executable, "-m", "windback.devserver"]

_number = itertools.count()


@pytest.fixture
def key() -> str:
    """A key of this test alone: an inbox of its own."""
    return f"sk_test_inbox_{os.getpid()}_{next(_number)}"


def get(server: DevServer, path: str, **query: object):
    """The JSON of an answer of the control plane that must be 200."""
    reply = call(server, "GET", f"/_dev/{path}?{urlencode(query)}")
    assert reply.status == 200, reply.raw
    return reply.json


def track(server: DevServer, key: str, *events: Mapping[str, object], **headers: str) -> Reply:
    """Send events, each with an email unless it says otherwise."""
    body = {"events": [{"customer_email": "jane@example.com", **event} for event in events]}
    return call(
        server,
        "POST",
        "/api/v1/track",
        body,
        {"x-api-key": key, **{name.replace("_", "-"): value for name, value in headers.items()}},
    )


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


class Stream:
    """An open stream; its messages as (event, data), and the last id."""

    def __init__(self, server: DevServer, query: str = "", last_id: Optional[str] = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        headers = {} if last_id is None else {"last-event-id": last_id}
        self._connection.request("GET", "/_dev/stream" + query, headers=headers)
        # Before the head is read: http.client gives its socket away to an answer without a length.
        self.socket = self._connection.sock
        self.response = self._connection.getresponse()
        assert self.response.status == 200
        self.last_id = last_id

    def __iter__(self):
        name, data = "", ""
        for raw in self.response:
            line = raw.decode().rstrip("\n")
            if line.startswith("id: "):
                self.last_id = line[4:]
            elif line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data += line[6:]
            elif not line and data:
                yield name, json.loads(data)
                name, data = "", ""

    def until(self, wanted: str):
        """The data of the next message of this kind."""
        for name, data in self:
            if name == wanted:
                return data
        raise AssertionError("the stream has ended")

    def close(self) -> None:
        self.response.close()
        self._connection.close()


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


# Customers, board, series


def create(server: DevServer, key: str, slug: str = "p", **fields: object) -> Dict[str, object]:
    body = {"customer_email": "jane@example.com", **fields}
    reply = call(server, "POST", f"/api/v1/projects/{slug}/churn-events", body, {"x-api-key": key})
    assert reply.status == 201, reply.raw
    return reply.json["data"]


def move(server: DevServer, event: Mapping[str, object], to: str) -> Reply:
    return call(server, "POST", f"/_dev/churn-events/{event['id']}/move", {"to": to})


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


# What is kept


def test_the_cap_evicts_the_oldest_and_never_refuses_and_counts_stay_right(key):
    with DevServer(keep_events=200) as small:
        for first in range(0, 1_000, 50):
            events = ({"event": f"e{n % 2}", "properties": {"n": first + n}} for n in range(50))
            assert track(small, key, *events, idempotency_key=f"k{first}").status == 200
        counts = small.counts()
        assert (counts.events, counts.stored + counts.evicted) == (1_000, 1_000)
        assert 150 <= counts.stored <= 200
        kept = small.events()
        assert [event.properties["n"] for event in kept] == list(range(1_000 - len(kept), 1_000))
        page = get(small, "events", limit=1)
        assert (page["total"], page["stored"], page["evicted"]) == (len(kept), len(kept), 1_000 - len(kept))
        assert (small.count(), small.count("event:e0"), small.count("-event:e0", key=key)) == (
            1_000,
            500,
            500,
        )
        assert small.count("event:e0", key="sk_other") == 0
        exact = get(small, "count", q="n>-1")
        assert (exact["count"], exact["exact"]) == (len(kept), False)
        assert get(small, "names")["data"][0] == {"event": "e0", "count": 500, "ignored": 0}
        gone = call(small, "GET", "/_dev/events/1").json
        assert (gone["evicted"], gone["neighbours"]) == (True, {"newer": kept[0].id, "older": None})
        small.clear("event:e0")
        assert (small.count(), small.counts().events) == (500, 500)


def test_the_cap_may_be_one_of_bytes(key):
    with DevServer(keep_bytes=100_000) as small:
        for n in range(40):
            track(small, key, {"event": "e", "properties": {"n": n, "text": "x" * 10_000}})
        assert (small.counts().events, small.counts().stored) == (40, 9)
        track(small, key, {"event": "huge", "properties": {"text": "x" * 300_000}})
        assert [event.event for event in small.events()] == ["huge"]
        track(small, key, {"event": "small"})
        assert [event.event for event in small.events()] == ["small"]
        assert small.counts().events == 42


def test_a_file_survives_a_kill_and_is_for_its_owner_alone(tmp_path, key):
    path = tmp_path / "dev.db"
    dev = DevServer(db=path, keep_events=100, strict=False)
    with dev:
        for n in range(150):
            track(dev, key, {"event": "e", "properties": {"n": n}}, {"event": ""})
        create(dev, key)
        before, events, mark = dev.counts(), dev.events(), dev.mark()
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        dev.kill()
        dev.start()
        after = dev.counts()
        assert (after.events, after.ignored, after.stored, after.evicted, after.churn_events) == (
            *(before.events, before.ignored, before.stored, before.evicted),
            1,
        )
        assert dev.events() == events
        track(dev, key, {"event": "new"})
        assert dev.events()[-1].id == mark + 1
        assert dev.events()[-1].request_id not in {event.request_id for event in events}
        assert dev.count("event:e") == 150


@pytest.mark.skipif(sys.platform == "win32", reason="nothing keeps a second server out there")
def test_a_file_is_used_by_one_server_at_a_time(tmp_path, key):
    path = tmp_path / "dev.db"
    with DevServer(db=path) as first:
        track(first, key, {"event": "one"})
        with pytest.raises(DevServerError, match=r"dev\.db as database: another windback dev is using it"):
            DevServer(db=path).start()
        assert first.count() == 1
    with DevServer(db=path) as second:
        assert second.count() == 1


def test_a_file_that_is_not_ours_keeps_its_mode(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("notes")
    path.chmod(0o644)
    with pytest.raises(DevServerError, match=r"notes\.txt as database"):
        DevServer(db=path).start()
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("notes", 0o644)


def test_a_file_of_another_version_is_set_aside_and_named(tmp_path, key):
    path = tmp_path / "dev.db"
    with DevServer(db=path) as dev:
        track(dev, key, {"event": "old"})
    old = set_version(path, 99)
    (tmp_path / "dev.db.schema-99").write_text("somebody's")
    with Command("--port", "0", "--db", str(path)) as running:
        assert running.server.events() == []
        assert f"the database was of another version and now lies in {path}.schema-99.1" in running.banner
    assert (tmp_path / "dev.db.schema-99.1").read_bytes() == old
    set_version(path, 98)
    with DevServer(db=path) as quiet:
        assert quiet.log() == (
            f"windback dev: the database was of another version and now lies in {path}.schema-98\n"
        )
    assert (tmp_path / "dev.db.schema-99").read_text() == "somebody's"


def set_version(path: Path, version: int) -> bytes:
    with closing(sqlite3.connect(str(path))) as database:
        database.execute("PRAGMA journal_mode=DELETE")
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()
    return path.read_bytes()


# The command


def environment() -> Dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


class Command:
    """`windback dev` with some options; its banner, once it serves."""

    def __init__(self, *arguments: str) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*COMMAND, "--until-stdin-closes", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def __enter__(self) -> Command:
        self.banner = ""
        while "faults " not in self.banner:
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(self.process.stderr.read())
            self.banner += line
        self.server = DevServer(port=int(re.search(r":(\d+)/", self.banner)[1]))
        return self

    def __exit__(self, *_) -> None:
        with self.process:
            _, self.errors = self.process.communicate(timeout=30)


def test_the_banner_reports_all_that_one_needs():
    with Command("--port", "0") as running:
        port = running.server.port
        url = f"http://127.0.0.1:{port}"
        assert running.banner.splitlines()[0] == f"windback dev server on {url}/api/v1"
        lines = {" ".join(line.split()) for line in running.banner.splitlines()}
        assert f"page {url}/" in lines
        assert f"paste export WINDBACK_BASE_URL={url}/api/v1" in lines
        assert "export WINDBACK_API_KEY=sk_test_local" in lines
        assert "export WINDBACK_PROJECT_SLUG=my-project" in lines
        memory = (
            "data in memory, gone when this ends (--db FILE keeps it); the newest 10,000 events or 200 MB"
        )
        assert memory in lines
        assert any(line.startswith("faults off") for line in lines)
        health = get(running.server, "health")
        assert (health["status"], health["base_url"], health["page_url"]) == (
            "ok",
            url + "/api/v1",
            url + "/",
        )
        assert (health["db"], health["strict"], health["keep_events"]) == (None, False, 10_000)
        assert track(running.server, "sk_test_local", {"event": ""}).status == 200
        if Path("/proc").is_dir():
            # Of its own time: how busy the machine is beside it is no property of the server.
            assert cpu_seconds(running.process.pid) < 1
            assert health["ready_in_s"] > 0
        with pytest.raises(OSError, match=r"refused|No route|unreachable|Cannot assign"):
            socket.create_connection((other_address(), port), timeout=5).close()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def other_address() -> str:
    """An address of this machine that is not the one the server listens on."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            address = probe.getsockname()[0]
        except OSError:  # no network
            address = "127.0.0.2"
    return "127.0.0.2" if address == "127.0.0.1" else address


def test_a_database_file_is_named_in_the_banner(tmp_path):
    path = tmp_path / "dev.db"
    with Command("--port", "0", "--db", str(path), "--keep-events", "0", "--keep-bytes", "0") as running:
        assert f"  data      in {path}; all events\n" in running.banner
        assert get(running.server, "health")["db"] == str(path)


def test_a_taken_port_is_answered_with_the_next_one_and_by_whom():
    holder = take_default_port()
    try:
        with Command() as running:
            assert running.server.port != 8787
            assert f"export WINDBACK_BASE_URL=http://127.0.0.1:{running.server.port}/api/v1" in running.banner
            assert "note      port 8787 is taken" in running.banner
            if holder is not None and Path("/proc").is_dir():
                assert f"(pid {os.getpid()})" in running.banner
    finally:
        if holder is not None:
            holder.close()


def take_default_port() -> Optional[socket.socket]:
    """Listen on the default port, unless somebody does already."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind(("127.0.0.1", 8787))
    except OSError:
        holder.close()
        return None
    holder.listen()
    return holder


def test_a_named_port_that_is_taken_ends_it_with_2_and_reports_by_whom(server):
    done = subprocess.run(
        [*COMMAND, "--port", str(server.port)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"cannot listen on 127.0.0.1 port {server.port}: " in done.stderr
    assert "--port 0" in done.stderr
    if Path("/proc").is_dir():
        assert f"by another windback dev (pid {server.pid})" in done.stderr


def test_a_ready_file_shows_a_test_where_and_when(tmp_path):
    path = tmp_path / "ready.json"
    with Command("--port", "0", "--ready-file", str(path)) as running:
        ready = json.loads(path.read_text())
        assert ready == get(running.server, "health")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--host", "192.0.2.1"], "--allow-host"),
        (["--allow-host", "http://x"], "not the name or address of a host"),
        (["--allow-host", "*"], "not the name or address of a host"),
        (["--allow-origin", "x"], "not a URL"),
        (["--allow-origin", "http://x/path"], "not an origin"),
        (["--keep-events", "-1"], "not a whole number"),
        (["--keep-bytes", "many"], "not a whole number"),
    ],
    ids=" ".join,
)
def test_an_option_that_makes_no_sense_is_a_usage_error(arguments, text):
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )
    assert done.returncode == 2
    assert text in done.stderr


def test_help_lists_what_lan_and_docker_need():
    done = subprocess.run(
        [*COMMAND, "--help"], capture_output=True, text=True, timeout=60, env=environment(), check=True
    )
    for option in (
        "--allow-host",
        "--allow-origin",
        "--keep-events",
        "--keep-bytes",
        "--strict",
        "--ready-file",
    ):
        assert option in done.stdout


def test_ctrl_c_ends_it_immediately_with_streams_and_waits_open(key):
    running = Command("--port", "0")
    with running:
        stream = Stream(running.server)
        stream.until("state")
        running.server.faults([{"hang": True, "times": 1}])
        ends: List[object] = []

        def hold(path: str, method: str = "GET") -> None:
            try:
                body = {"event": "e", "customer_email": "a@b.c"} if method == "POST" else None
                ends.append(call(running.server, method, path, body, {"x-api-key": key}).status)
            except (http.client.HTTPException, ConnectionError) as error:
                ends.append(type(error).__name__)

        held = [
            threading.Thread(target=hold, args=("/_dev/wait?event=never&timeout=600",)),
            threading.Thread(target=hold, args=("/api/v1/track", "POST")),
        ]
        # One that never reads, with more to hear than the buffers between the two hold.
        deaf = socket.create_connection(("127.0.0.1", running.server.port))
        deaf.sendall(b"GET /_dev/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        idle = http.client.HTTPConnection("127.0.0.1", running.server.port)
        idle.request("GET", "/_dev/health")
        assert idle.getresponse().read()  # and is kept open
        for thread in held:
            thread.start()
        eventually(lambda: running.server.counts().requests == 1)
        large = [{"event": "e", "properties": {"text": "x" * 9_000}}] * 100
        for _ in range(12):
            assert track(running.server, key, *large).status == 200
        running.process.send_signal(signal.SIGINT)
        # Within a second, on a machine that has time for it; not after the minutes that the wait would take.
        running.process.wait(30)
        for thread in held:
            thread.join(30)
        assert running.process.returncode == 0
        assert len(ends) == 2
        with closing(stream), suppress(http.client.HTTPException, ConnectionError):
            assert all(name != "nothing" for name, _ in stream)  # it ends
        deaf.close()
        idle.close()
    assert "Traceback" not in running.errors
    assert "ASGI" not in running.errors


# Who may ask


@pytest.mark.parametrize(
    "path", ["/", "/plain", "/page/app.js", "/_dev/events", "/_dev/stream", "/api/v1/track"]
)
def test_a_foreign_host_is_refused_everywhere(server, key, path):
    for host in ("evil.example", "127.0.0.1.evil.example:80", "[2001:db8::1]:80", ""):
        if not host and path.startswith("/api"):
            continue
        reply = call(server, "GET", path, None, {"host": host, "x-api-key": key})
        assert reply.status == 421, host
        assert reply.json["code"] == "MISDIRECTED"
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "127.1.2.3:80", "[::1]:99"):
        if path != "/_dev/stream":
            assert call(server, "GET", path, None, {"host": host, "x-api-key": key}).status != 421
    assert server.count(key=key) == 0


def test_a_foreign_origin_is_refused_everywhere_but_in_the_cancel_flow(server, key):
    own = f"http://127.0.0.1:{server.port}"
    for origin in (
        "https://evil.example",
        "http://localhost:3000",
        "null",
        f"https://127.0.0.1:{server.port}",
    ):
        for method, path in (
            ("POST", "/api/v1/track"),
            ("GET", "/_dev/events"),
            ("GET", "/_dev/stream"),
            ("POST", "/_dev/reset"),
            ("DELETE", "/_dev/faults"),
        ):
            reply = call(server, method, path, {}, {"origin": origin, "x-api-key": key})
            assert (reply.status, reply.json["code"]) == (403, "FORBIDDEN"), (origin, path)
            assert "access-control-allow-origin" not in reply.headers
    assert call(server, "GET", "/_dev/events", None, {"origin": own}).status == 200
    body = {"event": "e", "customer_email": "a@b.c"}
    assert call(server, "POST", "/api/v1/track", body, {"origin": own, "x-api-key": key}).status == 200


def test_pages_of_this_machine_may_use_the_cancel_flow(server):
    page = {"origin": "http://localhost:3000", "x-api-key": "pub_test_1"}
    offers = "/api/v1/cancel-flow/offers?reason=x"
    reply = call(server, "GET", offers, None, page)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, page["origin"])
    assert reply.headers["vary"] == "origin"
    asks = {"origin": page["origin"], "access-control-request-method": "POST"}
    allowed = call(server, "OPTIONS", "/api/v1/cancel-flow/submit", None, asks)
    assert (allowed.status, allowed.headers["access-control-allow-methods"]) == (204, "GET, POST")
    assert "x-api-key" in allowed.headers["access-control-allow-headers"]
    refused = call(server, "OPTIONS", "/api/v1/track", None, asks)
    assert refused.status == 403
    assert "access-control-allow-origin" not in refused.headers
    assert call(server, "GET", offers, None, {**page, "origin": "http://evil.example"}).status == 403
    no_key = call(server, "GET", offers, None, {"origin": page["origin"]})
    assert (no_key.status, no_key.headers["access-control-allow-origin"]) == (401, page["origin"])


def test_allow_host_and_allow_origin_let_others_in(key):
    arguments = ("--host", "0.0.0.0", "--allow-host", "dev.lan", "--allow-origin", "http://app.lan:3000")  # noqa: S104
    with Command("--port", "0", *arguments) as running:
        dev = running.server
        assert call(dev, "GET", "/_dev/events", None, {"host": "dev.lan:80"}).status == 200
        for host in ("other.lan", f"0.0.0.0:{dev.port}"):
            assert call(dev, "GET", "/_dev/events", None, {"host": host}).status == 421
        app = {"origin": "http://app.lan:3000", "x-api-key": key}
        assert track(dev, key, {"event": "e"}, origin="http://app.lan:3000").status == 200
        assert call(dev, "GET", "/_dev/events", None, app).status == 200
        offers = call(dev, "GET", "/api/v1/cancel-flow/offers?reason=x", None, app)
        assert offers.headers["access-control-allow-origin"] == "http://app.lan:3000"
        assert call(dev, "GET", "/_dev/events", None, {"origin": "http://app.lan:3001"}).status == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "reset"),
        ("POST", "mark"),
        ("POST", "send"),
        ("PUT", "faults"),
        ("POST", "faults"),
        ("PATCH", "faults/fault_1"),
        ("PUT", "offers"),
        ("POST", "webhooks"),
        ("POST", "churn-events/evt_x/move"),
        ("POST", "churn-events/evt_x/lost"),
    ],
)
def test_what_changes_something_needs_json_which_no_form_can_send(server, method, path):
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = call(server, method, f"/_dev/{path}", b"{}", {"content-type": content_type})
        assert (reply.status, reply.json["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


def test_the_page_may_load_nothing_from_elsewhere(server):
    for path in ("/", "/plain", "/page/index.html"):
        reply = call(server, "GET", path)
        assert reply.status == 200
        policy = dict(
            part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";")
        )
        assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == (
            "'none'",
            "'self'",
            "'self'",
        )
        assert (policy["base-uri"], policy["frame-ancestors"]) == ("'none'", "'none'")
        assert reply.headers["x-content-type-options"] == "nosniff"
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/x.js", "/page/"):
        assert call(server, "GET", path).status == 404
    events = call(server, "GET", "/_dev/events")
    assert (events.headers["content-type"], events.headers["x-content-type-options"]) == (
        "application/json",
        "nosniff",
    )


def test_what_events_say_is_text_in_the_list_without_scripts(server, key):
    evil = '<img src=x onerror="alert(1)">'
    track(
        server,
        key,
        {"event": evil, "customer_email": f"{evil.replace(' ', '')}@x", "properties": {evil: evil}},
        {"event": evil, "customer_email": evil},
    )
    page = call(server, "GET", f"/plain?q={quote(f'key:{label(key)}')}")
    text = page.raw.decode()
    assert "<img" not in text
    assert text.count("&lt;img") >= 4
    assert "ignored by the real API: events[1].customer_email: expected an address" in text
    assert 'value="&quot;&gt;&lt;script"' in call(server, "GET", "/plain?q=%22%3E%3Cscript").raw.decode()
    assert "column 1: the closing quote is missing" in call(server, "GET", "/plain?q=%22").raw.decode()
