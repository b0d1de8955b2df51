"""Whatever grows has a bound, and says when something is dropped."""

from __future__ import annotations

import http.client
import json
import logging
import sys
from contextlib import closing

import pytest

import windback
from windback.devserver import DevServer, faults
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
