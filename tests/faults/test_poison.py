"""A batch that a server can't take, or that is no batch at all, does not hold up what is behind it."""

from __future__ import annotations

import http.server
import json
import sys
import threading

import pytest
from relays import running
from tracking import JANE

from windback import Windback
from windback.broker.layout import keys_of
from windback.relay import BrokerRelay

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="it runs no redis-server"),
    pytest.mark.usefixtures("no_environment"),
]

EVENTS, DEAD, _ = keys_of(None)
GOOD = '{"event":"ok","customer_email":"a@b.co","timestamp":"2026-01-01T00:00:00Z","properties":{}}'


class Api:
    """A server that answers 500 to what is no JSON, and to every batch with an event named "poison"."""

    def __init__(self):
        self.taken = []
        self.refused = []
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    events = json.loads(body)["events"]
                    status = 500 if any(event["event"] == "poison" for event in events) else 200
                except (ValueError, KeyError, TypeError):
                    status, events = 500, []
                (api.taken if status == 200 else api.refused).append(body)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def api():
    made = Api()
    yield made
    made.server.shutdown()
    made.server.server_close()


def add(redis_server, key, events, count=1):
    fields = {"v": "1", "key": key, "count": str(count), "project": "", "events": events}
    redis_server.client.xadd(EVENTS, fields)


@pytest.mark.parametrize(
    "bad",
    [
        "this is not JSON",
        "[1, 2]",
        '"text"',
        "null",
        '{"event":"a"},{"event":"b"}',
        '{"event":"a"}],"more":[{}',
        '{"event":NaN}',
        "[" * 100_000,
    ],
    ids=lambda bad: str(bad)[:20],
)
def test_an_entry_whose_events_are_not_objects_is_a_dead_letter_before_it_is_sent(
    redis_server, api, eventually, bad
):
    """As many of them as requests fly at once, in front of good ones."""
    for n in range(4):
        add(redis_server, f"bad{n}", bad)
    for n in range(50):
        add(redis_server, f"good{n}", GOOD)
    relay = BrokerRelay(redis_server.url, "sk_test_1", base_url=api.url, concurrency=4)
    with running(relay):
        eventually(lambda: redis_server.client.xlen(EVENTS) == 0)
    assert (len(api.taken), api.refused) == (50, [])
    letters = [fields for _, fields in redis_server.client.xrange(DEAD)]
    assert [letter["reason"] for letter in letters] == ["foreign"] * 4
    assert all("not a JSON object" in letter["message"] for letter in letters)


@pytest.mark.timeout(180)
def test_batches_that_fail_again_and_again_let_the_others_through(redis_server, api, eventually):
    for n in range(4):
        add(redis_server, f"bad{n}", GOOD.replace('"ok"', '"poison"'))
    for n in range(100):
        add(redis_server, f"good{n}", GOOD)
    relay = BrokerRelay(
        redis_server.url, "sk_test_1", base_url=api.url, concurrency=4, max_retries=0, shutdown_timeout=0.1
    )
    with running(relay):
        eventually(lambda: redis_server.client.xlen(EVENTS) == 4, 120)
        assert len(api.taken) == 100
        assert len(api.refused) < 60  # and they are not tried for each of the others
    assert redis_server.client.xlen(EVENTS) == 4  # kept, as in an outage


@pytest.mark.timeout(180)
@pytest.mark.parametrize("journal", [False, True])
def test_so_it_is_in_an_application(api, eventually, tmp_path, journal, way):
    client = Windback(
        "sk_test_1",
        base_url=api.url,
        max_retries=0,
        batch_size=1,
        flush_interval=0.01,
        journal=tmp_path / "journal" if journal else None,
    )
    assert client.track_event("poison", JANE)
    for _ in range(50):
        assert client.track_event("ok", JANE)
    eventually(lambda: len(api.taken) == 50, 120)
    eventually(lambda: client.stats().pending == 1)
    assert client.stats().accepted == 51
    client.close(0.1)
