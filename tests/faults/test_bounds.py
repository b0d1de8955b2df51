"""Whatever grows has a bound, and says when something is dropped."""

from __future__ import annotations

import http.client
import json
import logging
import sys
from contextlib import closing

import pytest

import windback
from windback.devserver import DevServer, faults, request_log, store, tracked
from windback.devserver.exchange import Exchange
from windback.devserver.limits import KEPT_KEYS, Limits
from windback.devserver.validation import Acceptance, ChurnFields, TemplateFields
from windback.devserver.web import MAX_BODY_BYTES

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def server():
    with DevServer() as started:
        yield started


def send(server, method, path, body, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with closing(connection):
        connection.request(method, path, body, {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.mark.parametrize("path", ["/_dev/faults", "/_dev/webhooks", "/_dev/send"])
@pytest.mark.parametrize("is_chunked", [True, False], ids=["chunked", "with a length"])
def test_a_control_call_of_the_local_server_has_a_limit(server, path, is_chunked):
    body = b"[" + b" " * 3 * MAX_BODY_BYTES + b"]"
    status, said = send(server, "POST", path, iter([body]) if is_chunked else body)
    assert status == 413, said
    assert send(server, "GET", "/_dev/counts", None)[0] == 200


def test_a_local_server_takes_so_many_rules(server):
    rule = {"status": 500, "path": "/nowhere"}
    status, said = send(server, "PUT", "/_dev/faults", json.dumps([rule] * (faults.MAX_RULES + 1)))
    assert (status, "there are at most 1,000 rules" in str(said)) == (400, True)
    assert send(server, "PUT", "/_dev/faults", json.dumps([rule] * faults.MAX_RULES))[0] == 200
    status, said = send(server, "POST", "/_dev/faults", json.dumps(rule))
    assert (status, "DELETE some first" in str(said)) == (400, True)
    send(server, "DELETE", "/_dev/faults", None)


def test_a_local_server_refuses_a_long_head(server):
    try:
        status: object = send(server, "GET", "/api/v1/track", None, **{"x-long": "x" * 200_000})[0]
    except (OSError, http.client.HTTPException, ValueError):
        status = "the connection is closed"
    assert status in (400, 431, "the connection is closed")
    assert send(server, "GET", "/_dev/counts", None)[1]["requests"] == 0


def test_a_local_server_reports_how_many_requests_it_does_not_keep():
    from windback.devserver.request_log import KEPT_INBOXES, KEPT_REQUESTS, Journal

    log = Journal()
    for number in range(KEPT_REQUESTS + 7):
        exchange = log.start("POST", "/api/v1/track", b"", [(b"x-api-key", b"sk_test_%d" % number)])
        log.finish(exchange)
    assert len(log.recent) == KEPT_REQUESTS
    assert log.forgotten == 7
    assert len(log.tallies) == KEPT_INBOXES
    assert log.forgotten_inboxes == 7
    assert log.total.requests == KEPT_REQUESTS + 7
    log.reset()
    assert log.forgotten == 0


def test_a_local_server_says_how_many_it_does_not_keep_of_each_kind(monkeypatch):
    """Answers to a repeat, churn events and the like; what is kept is the newest."""
    monkeypatch.setattr(store, "KEPT_ANSWERS", 5)
    monkeypatch.setattr(store, "KEPT_ROWS", 5)
    with closing(store.Store()) as kept:
        for number in range(12):
            kept.keep_answer("POST /track", str(number), store.StoredAnswer(b"", 200, b"{}", 1))
            fields = ChurnFields(f"{number}@b.co", None, "cancel", None, None, 1, "USD", None, None, "x")
            event = kept.add_churn_event("p", fields, 1.0, "inbox")
            kept.add_variants(str(event["id"]), [{"subject": "x"}], 1.0)
            kept.add_cancel_flow(f"{number}@b.co", str(event["id"]), None, None, 1.0)
            kept.add_acceptance(Acceptance(f"{number}@b.co", "price", "discount"), 1.0)
            kept.add_template("p", TemplateFields(str(number), "x", "y", "z", is_active=True), 1.0)
        seven = ("answers", "churn_events", "variants", "cancel_flows", "accepted_offers", "templates")
        assert kept.forgotten() == dict.fromkeys(seven, 7)
        assert kept.answer_for("POST /track", "6") is None
        assert kept.answer_for("POST /track", "7") is not None
        assert kept.counts()["churn_events"] == kept.counts()["templates"] == 5
        kept.reset()
        assert kept.forgotten() == {}


def test_each_table_of_the_local_server_has_a_bound():
    growing = {*store.GROWING, "answers", "answer_keys", "webhooks"}
    # These have bounds of their own: --keep-events, and one offer for each reason in one body.
    assert {*store.TABLES} - growing == {*tracked.TABLES, "offers"}


def test_limits_and_statistics_of_many_keys_have_a_bound():
    limits = Limits()
    for number in range(KEPT_KEYS + 3):
        limits.take(str(number), 1.0)
        limits.take_cancel_flow(str(number), 1.0)
    assert limits.forgotten == 6
    spans = request_log.Spans(1, 600, 100)
    for number in range(1_000):
        span = spans.at(1.0, str(number))
        exchange = exchange_of(number)
        exchange.names = {f"{number}-{each}": 1 for each in range(10)}
        span.add(exchange)
    shown = list(spans.of(None))
    assert len(shown) <= request_log.KEPT_INBOXES_OF_A_SPAN + 1
    assert max(len(span.names) for span in shown) <= 2 * request_log.KEPT_NAMES
    assert sum(sum(span.by_class.values()) for span in shown) == 1_000


def exchange_of(number):
    exchange = Exchange(number, "POST", "/api/v1/track", b"", [])
    exchange.status = 200
    return exchange


def test_counts_have_what_is_not_kept(server):
    assert server.counts().forgotten == {}


@pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")
@pytest.mark.parametrize("worker", ["thread", "process"])
def test_dead_letters_take_a_quarter_of_the_journal(tmp_path, caplog, worker):
    """Of all processes together: each has a file of its own."""
    caplog.set_level(logging.WARNING, "windback")
    rejected = 0
    with DevServer() as server:
        for _ in range(3):  # each a directory of its own, as processes are
            client = windback.Windback(
                "sk_test_1",
                base_url=server.url,
                journal=tmp_path,
                max_journal_bytes=8 * MIB,
                worker=worker,
                batch_size=5,
            )
            for number in range(25):
                client.track_event("login", "jane@", {"n": number, "text": "x" * 60_000})
                if number % 5 == 4:
                    client.flush(30)
            rejected += client.stats().rejected
            client.close(20)
    assert rejected == 75
    letters = list((tmp_path / "dead").iterdir())
    size = sum(path.stat().st_size for path in letters)
    assert MIB < size <= 2 * MIB
    said = [
        record.getMessage() for record in caplog.records if "which is all they may" in record.getMessage()
    ]
    assert len(said) >= 1
    assert "dead letters take 2.1 MB" in said[0]
    if worker == "thread":
        assert len(said) == 1
