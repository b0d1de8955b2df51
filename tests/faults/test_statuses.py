"""What a status code leads to, with a real server: nothing but a single event at fault is ever given up."""

from __future__ import annotations

import http.server
import json
import threading
from contextlib import contextmanager

import pytest

from windback import ConflictError, Windback

pytestmark = pytest.mark.usefixtures("way")


class Idempotent(http.server.BaseHTTPRequestHandler):
    """Never answers the first request, says twice that it still runs, and then takes the same key."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        state, key = self.server.state, self.headers["Idempotency-Key"]
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not state.keys:
            state.keys.append(key)
            state.end.wait()
            return
        state.keys.append(key)
        if len(state.keys) <= 3:
            self.say(409)
        else:
            state.stored += body["events"]
            self.say(200)

    def say(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *arguments):
        pass


class State:
    def __init__(self):
        self.keys = []
        self.stored = []
        self.end = threading.Event()


@contextmanager
def serving(handler, state):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.state = state
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api/v1"
    finally:
        state.end.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_batch_whose_first_try_still_runs_at_the_server_is_sent_again_until_it_is_taken():
    state = State()
    with serving(Idempotent, state) as url:
        client = Windback("sk_test_1", "shop", base_url=url, timeout=0.5, flush_interval=0.01)
        for n in range(100):
            assert client.track_event("login", "jane@example.com", {"n": n})
        assert client.flush(30)
        assert (client.stats().delivered, client.stats().rejected) == (100, 0)
        assert [event["properties"]["n"] for event in state.stored] == list(range(100))
        assert len(state.keys) == 4
        assert len(set(state.keys)) == 1
        client.close()


@pytest.mark.parametrize("status", [407, 409, 411, 415, 421, 423, 431, 451, 501, 505, 511])
def test_a_status_that_is_not_about_an_event_keeps_all_of_them(server, status):
    server.faults([{"path": "/track", "status": status, "times": 1}])
    with Windback("sk_test_1", "shop", base_url=server.url, max_retries=0) as client:
        for n in range(10):
            client.track_event("login", "jane@example.com", {"n": n})
        assert not client.flush()
        assert client.stats().pending == 10
        assert client.flush()  # tries again immediately
        assert server.counts().events == client.stats().delivered == 10


def test_a_plain_call_whose_first_try_is_a_conflict_raises_it(server):
    server.faults([{"status": 409}])
    with Windback("sk_test_1", "shop", base_url=server.url) as client:
        with pytest.raises(ConflictError):
            client.create_churn_event("jane@example.com")
    assert len(server.requests()) == 1
