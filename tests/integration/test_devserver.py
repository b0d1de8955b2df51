"""The local server over real sockets: webhooks, faults, the control plane and the process."""

from __future__ import annotations

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
import urllib.parse
from contextlib import closing
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest
from calls import eventually
from deadlines import SLACK_S
from devserver_calls import EVENT, FLOW, PUBLIC, SECRET, TEMPLATE, batch, call, create, track

from windback.devserver import DevServer, DevServerError, WebhookDelivery
from windback.devserver.options import Options
from windback.devserver.validation import alert_fields


@pytest.fixture(scope="module")
def running() -> Iterator[DevServer]:
    with DevServer(max_body_bytes=100_000, generate_s=0.1) as server:
        yield server
        assert server.log() == "", "the server printed warnings or tracebacks"


SOURCE = Path(__file__).resolve().parents[2] / "src"


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
