"""/healthz, /readyz and /metrics of relays that run: what they say is so."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import relays
from inside import engine_of, projects_of
from prometheus_client.parser import text_string_to_metric_families
from tracking import track

import windback
from windback import Windback
from windback.broker.layout import keys_of
from windback.relay import BrokerRelay, Relay
from windback.relay.health import answering

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="it runs no redis-server, and has no flock"),
    pytest.mark.usefixtures("no_environment"),
]

#: This server takes it for no email address, the client does.
POISON = "jane@"


def get(url, path):
    answer = httpx.get(url + path, timeout=20)
    return answer.status_code, answer.text


def ready(url):
    status, body = get(url, "/readyz")
    return status, json.loads(body)


def metrics(url):
    status, body = get(url, "/metrics")
    assert status == 200
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


@contextlib.contextmanager
def running(relay):
    """Have a relay run in a thread and answer; its URL."""
    with answering(relay, "127.0.0.1", 0) as url, relays.running(relay):
        yield url


@contextlib.contextmanager
def command(*options, **environment):
    """Run `windback relay --listen 0` with more options; the process and its URL."""
    with subprocess.Popen(
        [
            *(sys.executable, "-c", "from windback.cli import main; raise SystemExit(main())"),
            *("relay", "--listen", "0", *options),
        ],
        env={**os.environ, "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]), **environment},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            for line in process.stderr:
                found = re.search(r"on (http://127\.0\.0\.1:\d+)$", line.strip())
                if found:
                    yield process, found[1]
                    break
        finally:
            process.kill()


def test_the_command_shows_what_became_of_the_events_of_each_project(redis_server, server, eventually):
    with Windback(broker=redis_server.url, project_slug="shop", batch_size=10) as client:
        track(client, range(100))
        assert client.track_event("login", POISON)
        assert client.flush(20)
    with Windback(broker=redis_server.url) as client:
        track(client, range(100, 150))
    keys = {"WINDBACK_API_KEYS": "shop=sk_test_1,=sk_test_2,idle=sk_test_3"}
    with command("--broker", redis_server.url, "--base-url", server.url, **keys) as (process, url):
        eventually(lambda: metrics(url)["windback_broker_batches", "shop"] == 0)
        eventually(lambda: metrics(url)["windback_broker_batches", ""] == 0)
        found = metrics(url)
        assert ready(url) == (200, {"status": "ready"})
        assert get(url, "/healthz") == (200, '{"status": "ok"}')
        assert get(url, "/other")[0] == 404
        process.terminate()
        assert process.wait(20) == 0
    assert found["windback_broker_up",] == 1
    assert {
        project: found["windback_relay_read_events_total", project] for project in ("shop", "", "idle")
    } == {
        "shop": 101,
        "": 50,
        "idle": 0,
    }
    assert found["windback_relay_sent_events_total", "shop"] == 100
    assert found["windback_relay_sent_events_total", ""] == 50
    assert found["windback_relay_rejected_events_total", "shop", "invalid"] == 1
    assert found["windback_broker_dead_letters", "shop"] == 1
    assert found["windback_relay_dropped_events_total", "shop"] == 0
    assert found["windback_relay_requests_total", "shop"] >= 11
    for name in ("pending_events", "in_flight_events", "held_up", "repeated_requests_total"):
        assert found[f"windback_relay_{name}", "shop"] == 0, name
    assert found["windback_relay_claimed_batches_total", "shop"] == 0
    assert len(server.events()) == 150


def test_lag_age_and_what_is_in_flight(redis_server, held, eventually):
    with Windback(broker=redis_server.url, batch_size=10, flush_interval=60) as client:
        track(client, range(100))
    (first, _), *_ = redis_server.client.xrange(keys_of(None).events)
    relay = BrokerRelay(
        redis_server.url, "sk_test_1", base_url=held.url, concurrency=1, shutdown_timeout=0, claim_after=3600
    )
    with running(relay) as url:
        held.wait_until_holding(1)
        eventually(lambda: metrics(url)["windback_relay_in_flight_events", ""] == 10)
        found = metrics(url)
        assert found["windback_broker_batches", ""] == 10
        assert found["windback_relay_pending_events", ""] == 80  # as far as it reads ahead
        now_s, micros = redis_server.client.time()
        assert found["windback_broker_oldest_seconds", ""] <= now_s + micros / 1e6 - int(first[:-2]) / 1e3
        eventually(lambda: metrics(url)["windback_broker_oldest_seconds", ""] > 0.5)


def test_not_ready_while_redis_is_away(make_redis, server, eventually):
    redis_server = make_redis()
    relay = BrokerRelay(redis_server.url, "sk_test_1", base_url=server.url, shutdown_timeout=0)
    with running(relay) as url:
        eventually(lambda: ready(url)[0] == 503)
        _, said = ready(url)
        assert said["status"] == "held up"
        assert said["problems"][""].startswith(redis_server.url)
        assert metrics(url)["windback_broker_up",] == 0
        assert get(url, "/healthz")[0] == 200  # a restart would not help
        redis_server.start()
        eventually(lambda: ready(url)[0] == 200, 20)
        assert metrics(url)["windback_broker_up",] == 1
        redis_server.kill()
        eventually(lambda: ready(url)[0] == 503)


def test_not_ready_while_the_api_fails(redis_server, server, eventually):
    server.faults([{"path": "/track", "status": 500}])
    relay = BrokerRelay(redis_server.url, "sk_test_1", base_url=server.url, max_retries=0, shutdown_timeout=0)
    with running(relay) as url:
        assert ready(url)[0] == 200
        with Windback(broker=redis_server.url) as client:
            track(client, range(10))
        eventually(lambda: ready(url)[0] == 503)
        assert "500" in ready(url)[1]["problems"][""]
        assert metrics(url)["windback_relay_held_up", ""] == 1
        server.faults([])
        engine_of(projects_of(relay)[""]).flush(20)  # which does not wait for the end of a pause
        eventually(lambda: ready(url)[0] == 200, 20)
    assert len(server.events()) == 10


def test_not_ready_while_it_ends(redis_server, held, eventually):
    with Windback(broker=redis_server.url) as client:
        track(client, range(10))
    options = ("--broker", redis_server.url, "--base-url", held.url, "--shutdown-timeout", "40")
    with command(*options, WINDBACK_API_KEY="sk_test_1") as (process, url):
        held.wait_until_holding(1)
        assert ready(url)[0] == 200
        process.terminate()
        eventually(lambda: ready(url) == (503, {"status": "draining"}))
        assert get(url, "/healthz")[0] == 200
        held.answer()
        assert process.wait(20) == 0
    assert redis_server.client.xlen(keys_of(None).events) == 0


def test_not_healthy_when_it_does_not_look_any_more(redis_server, server, eventually, monkeypatch):
    relay = BrokerRelay(redis_server.url, "sk_test_1", base_url=server.url, shutdown_timeout=0)
    with running(relay) as url:
        eventually(lambda: get(url, "/healthz")[0] == 200)
        redis_server.signal(signal.SIGSTOP)
        try:
            monkeypatch.setattr("windback.relay.health.STALE_S", 0.5)
            eventually(lambda: get(url, "/healthz")[0] == 503)
            assert json.loads(get(url, "/healthz")[1])["looked_s"] >= 0.5
        finally:
            redis_server.signal(signal.SIGCONT)
        eventually(lambda: get(url, "/healthz")[0] == 200)


def test_what_was_taken_over_is_counted(redis_server, server, held, eventually):
    with Windback(broker=redis_server.url, batch_size=10, flush_interval=60) as client:
        track(client, range(100))
    options = ("--broker", redis_server.url, "--base-url", held.url)
    with command(*options, WINDBACK_API_KEY="sk_test_1") as (process, url):
        held.wait_until_holding(1)
        eventually(lambda: metrics(url)["windback_relay_pending_events", ""] == 100)
        process.kill()
        process.wait()
    relay = BrokerRelay(redis_server.url, "sk_test_1", base_url=server.url, claim_after=0.5)
    with running(relay) as url:
        eventually(lambda: metrics(url)["windback_relay_claimed_batches_total", ""] == 10)
        eventually(lambda: len(server.events()) == 100)


def test_a_relay_of_journals_has_the_same(tmp_path, server, eventually):
    relay = Relay(tmp_path, "sk_test_1", base_url=server.url, flush_interval=0.01)
    with running(relay) as url:
        with Windback(journal=tmp_path, worker=None, api_key="sk_test_1") as client:
            track(client, range(100))
            assert client.track_event("login", POISON)
            eventually(lambda: metrics(url)["windback_relay_sent_events_total", ""] == 100)
            eventually(lambda: metrics(url).get(("windback_relay_rejected_events_total", "", "invalid")) == 1)
        assert ready(url)[0] == 200
        assert get(url, "/healthz")[0] == 200
        assert not any(name[0] == "windback_broker_batches" for name in metrics(url))


@pytest.mark.parametrize(
    ("listen", "says"),
    [
        ("here", "--listen must be a port, or HOST:PORT, not 'here'"),
        ("127.0.0.1:70000", "--listen must be a port, or HOST:PORT, not '127.0.0.1:70000'"),
        (None, "can't listen on 127.0.0.1:"),
    ],
)
def test_where_it_can_not_listen_is_one_line_and_status_2(tmp_path, listen, says):
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = listen or f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [
                *(sys.executable, "-c", "from windback.cli import main; raise SystemExit(main())"),
                *("relay", "--journal", str(tmp_path), "--listen", listen),
            ],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]),
                "WINDBACK_API_KEY": "sk_test_1",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=40,
        )
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
