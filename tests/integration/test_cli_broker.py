"""`windback broker`, run as a program against a real Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import windback
from windback import Windback
from windback.broker.layout import keys_of
from windback.relay import BrokerRelay

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it runs no redis-server")

JANE = "jane@example.com"
#: Of applications without a project.
EVENTS, DEAD, _ = keys_of(None)
SHOP = keys_of("shop")
#: This server takes it for no email address, the client does.
POISON = "jane@"


@pytest.fixture
def run(redis_server):
    def run(*arguments, broker=redis_server.url):
        return subprocess.run(
            [
                *(sys.executable, "-c", "from windback.cli import main; raise SystemExit(main())", "broker"),
                *arguments,
            ],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]),
                "WINDBACK_BROKER": broker,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    return run


@pytest.fixture
def send(server, redis_server):
    """Have a relay deliver what is there."""

    def send():
        relay = BrokerRelay(
            redis_server.url, api_keys={"": "sk_test_1", "shop": "sk_test_2"}, base_url=server.url
        )
        assert relay.drain(20)
        relay.close()
        return relay.stats()

    return send


@pytest.fixture
def rejected(redis_server, send):
    """One event that was rejected, and one entry that is not ours."""
    with Windback(broker=redis_server.url, project_slug="shop") as client:
        assert client.track_event("login", POISON, {"n": 12345678901234567})
        assert client.track_event("login", JANE, {"n": 2})
    redis_server.client.xadd(EVENTS, {"hello": "world"})
    assert send().rejected == 1


def test_stats_count_what_stands_there(run, redis_server, rejected):
    del rejected
    redis_server.client.xadd(EVENTS, {"hello": "world"})
    done = run("stats")
    assert (done.returncode, done.stderr) == (0, "")
    head, nameless, shop, batches, letters = done.stdout.splitlines()
    assert head.split() == ["project", "batches", "oldest", "dead", "letters"]
    assert nameless.split()[:2] == ["-", "1"]
    assert shop.split() == ["shop", "0", "-", "1"]
    assert batches.startswith("batches: 1, 0 of them taken by relays, the oldest for ")
    assert letters == "dead letters: 2"
    found = json.loads(run("stats", "--json").stdout)
    assert (found["batches"], found["held"], found["dead_letters"]) == (1, 0, 2)
    assert 0 <= found["oldest_s"] < 30
    assert found["relays"] == []


def test_stats_of_a_redis_with_nothing_in_it(run):
    assert run("stats").stdout == "batches: 0, 0 of them taken by relays\ndead letters: 0\n"
    assert run("dead").stdout.splitlines() == ["rejected  status  reason  event  message"]
    assert run("replay").stdout == "replayed: 0, kept: 0\n"


def test_dead_lists_and_exports(run, rejected):
    del rejected
    done = run("dead")
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["rejected", "status", "reason", "event", "message"]
    by_reason = {row.split()[2]: row for row in rows}
    assert set(by_reason) == {"invalid", "foreign"}
    assert by_reason["invalid"].split()[1:4] == ["400", "invalid", "login"]
    assert POISON not in done.stdout
    (line,) = run("dead", "--json", "--reason", "invalid").stdout.splitlines()
    letter = json.loads(line)
    assert letter["event"]["customer_email"] == POISON
    assert '"n":12345678901234567' in line
    assert (letter["status"], letter["project"], letter["fields"]) == (400, "shop", {})
    (line,) = run("dead", "--json", "--reason", "foreign").stdout.splitlines()
    assert json.loads(line)["fields"] == {"hello": "world"}


def test_replay_puts_events_back_and_keeps_the_rest(run, redis_server, send, rejected):
    del rejected
    assert run("replay", "--reason", "too_large").stdout == "replayed: 0, kept: 2\n"
    assert run("replay").stdout == "replayed: 1, kept: 1\n"
    assert (redis_server.client.xlen(SHOP.events), redis_server.client.xlen(SHOP.dead)) == (1, 0)
    assert redis_server.client.xlen(DEAD) == 1
    assert send().rejected == 1  # nobody mended it, so it is a letter again
    assert json.loads(run("replay", "--json").stdout) == {"replayed": 1, "kept": 1}


@pytest.mark.parametrize(
    ("broker", "says"),
    [
        ("", "--broker is required: give the URL of a Redis, or set WINDBACK_BROKER"),
        ("http://:s3cret@h", "broker must be a URL that starts with redis:// or rediss://"),
        ("redis://:s3cret@127.0.0.1:1", "broker redis://127.0.0.1:1/0: Error 111 connecting"),
    ],
)
@pytest.mark.parametrize("command", ["stats", "dead", "replay"])
def test_what_can_not_be_done_is_one_line_and_status_2(run, command, broker, says):
    done = run(command, broker=broker)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
    assert "s3cret" not in done.stderr
