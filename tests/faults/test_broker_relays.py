"""Relays deliver what applications left in Redis, and keep what they cannot deliver."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from broker_clients import DEAD, EVENTS, MINE, PAUSE, POISON, making_clients, relay_of
from broker_torture import torture
from inside import projects_of, scheduler_of
from redis_server import KEEPS_ALL
from relays import running
from tracking import adds_up, numbers, track

import windback
from windback import Windback
from windback.broker.layout import GROUP
from windback.relay import BrokerRelay

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="it runs no redis-server"),
    pytest.mark.usefixtures("no_environment"),
]


@pytest.fixture
def make(redis_server, mark):
    with making_clients(redis_server, mark) as make:
        yield make


@pytest.fixture
def make_relay(server, redis_server):
    return functools.partial(relay_of, server, redis_server)


@pytest.fixture
def relaying(make_relay):
    return lambda **options: running(make_relay(**options))


def relay_process(server, broker, *options, stderr=subprocess.DEVNULL):
    package = str(Path(windback.__file__).resolve().parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", "from windback.cli import main; raise SystemExit(main())", "relay", *options],
        env={
            **os.environ,
            "PYTHONPATH": package,
            "WINDBACK_API_KEY": "sk_test_1",
            "WINDBACK_BASE_URL": server.url,
            "WINDBACK_BROKER": broker,
        },
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
    )


# Relays


def test_what_the_api_rejects_becomes_a_dead_letter_with_its_reason(make, redis_server, server, make_relay):
    client = make(project_slug="my-project")
    track(client, range(20))
    assert client.track_event("login", POISON, {"n": -1})
    track(client, range(20, 40))
    assert client.flush(20)
    relay = make_relay(project_slug="my-project")
    assert relay.drain(20)
    relay.close()
    stats = relay.stats()
    assert (stats.adopted, stats.delivered, stats.rejected) == (41, 40, 1)
    assert adds_up(stats)
    assert numbers(server) == list(range(40))
    assert redis_server.client.xlen(MINE.events) == 0
    ((_, letter),) = redis_server.client.xrange(MINE.dead)
    assert (letter["reason"], letter["status"], letter["project"]) == ("invalid", "400", "my-project")
    assert POISON in letter["event"]
    assert letter["message"]


def test_a_dead_letter_that_can_not_be_written_keeps_its_entry(
    make, redis_server, server, relaying, eventually
):
    """Nothing is removed before it is sure that the letter can be written."""
    client = make()
    track(client, range(10))
    assert client.track_event("login", POISON)
    assert client.flush(20)
    with relaying(shutdown_timeout=1) as relay:
        eventually(lambda: redis_server.client.xlen(EVENTS) == 0)
        assert redis_server.client.xlen(DEAD) == 1
        redis_server.client.delete(DEAD)
        redis_server.client.set(DEAD, "mine")
        assert client.track_event("login", POISON)
        assert client.flush(20)
        # Read once: while the relay tries again there is no problem.
        eventually(lambda: "contains something other than a stream" in (relay.stats().problem or ""))
        assert redis_server.client.xlen(EVENTS) == 1
        redis_server.client.delete(DEAD)
        eventually(lambda: redis_server.client.xlen(EVENTS) == 0)
    assert redis_server.client.xlen(DEAD) == 1
    assert relay.stats().rejected == 2


def test_a_drain_ends_only_when_what_became_of_the_last_batch_is_written(
    redis_server, server, eventually, monkeypatch
):
    with Windback(broker=redis_server.url) as client:
        assert client.track_event("login", POISON)
    server.faults([{"path": "/track", "latency": 0.3}])
    relay = BrokerRelay(redis_server.url, "sk_test_1", base_url=server.url)
    (project,) = projects_of(relay).values()
    look = project.poll
    looks = []

    def look_while_it_is_settled():
        is_busy = look()
        looks.append(is_busy)
        if len(looks) > 1:
            eventually(lambda: not project.stats().in_flight)
        return is_busy

    monkeypatch.setattr(project, "poll", look_while_it_is_settled)
    assert relay.drain(20)
    assert [each.dead_letters for each in relay.standing()] == [1]
    relay.close()


def test_a_drain_waits_for_a_batch_that_a_worker_takes_late(redis_server, server, eventually, monkeypatch):
    """It waits when the drain looks what is under way, and is taken while the drain looks for more."""
    with Windback(broker=redis_server.url) as client:
        assert client.track_event("login", POISON)
    server.faults([{"path": "/track", "latency": 0.5}])
    relay = BrokerRelay(redis_server.url, "sk_test_1", base_url=server.url)
    (project,) = projects_of(relay).values()
    scheduler, look = scheduler_of(project), project.poll
    next_step = scheduler.next_step
    is_read, may_take = threading.Event(), threading.Event()

    def look_while_it_is_taken():
        is_busy = look()
        if is_read.is_set():
            may_take.set()
            eventually(lambda: not project.queue.outbox.waiting().events)
        is_read.set()
        return is_busy

    def take_late(*arguments, **options):
        assert may_take.wait(30)
        return next_step(*arguments, **options)

    monkeypatch.setattr(project, "poll", look_while_it_is_taken)
    monkeypatch.setattr(scheduler, "next_step", take_late)
    assert relay.drain(30)
    assert [each.dead_letters for each in relay.standing()] == [1]
    relay.close()


def test_a_user_who_may_do_no_more_than_needed_is_enough(make_redis, server, eventually):
    """The commands and keys that the docs name."""
    redis_server = make_redis()
    redis_server.start()
    redis_server.client.acl_setuser(
        "app", True, passwords="+a", keys=["{windback*"], commands=["+eval", "+xadd", "+xlen", "+sadd"]
    )
    relay_commands = (
        *("+eval", "+type", "+xlen", "+xadd", "+xgroup", "+xinfo", "+xreadgroup", "+xautoclaim"),
        *("+xclaim", "+xpending", "+xack", "+xdel", "+pttl", "+set", "+del", "+smembers"),
        *("+xrange", "+time"),
    )
    redis_server.client.acl_setuser(
        "relay", True, passwords="+r", keys=["{windback*"], commands=list(relay_commands)
    )
    url = f"redis://{{}}@127.0.0.1:{redis_server.port}/0"
    relay = BrokerRelay(url.format("relay:r"), "sk_test_1", base_url=server.url)
    with Windback(broker=url.format("app:a")) as client:
        track(client, range(100))
        assert client.track_event("login", POISON)
        assert client.flush(20)
    assert relay.drain(20)
    assert [each.dead_letters for each in relay.standing()] == [1]
    relay.close()
    assert numbers(server) == list(range(100))
    assert (redis_server.client.xlen(EVENTS), redis_server.client.xlen(DEAD)) == (0, 1)
    assert redis_server.client.xinfo_consumers(EVENTS, GROUP) == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hello": "world"}, "it has no field 'v'"),
        ({"v": "2", "key": "k", "count": "1", "project": "", "events": "{}"}, "version"),
        ({"v": "1", "key": "k", "count": "2", "project": "", "events": "{}"}, "count"),
        ({"v": "1", "key": "a b", "count": "1", "project": "", "events": "{}"}, "key"),
        ({"v": "1", "key": "\u00e4", "count": "1", "project": "", "events": "{}"}, "not an Idempotency-Key"),
        ({"v": "1", "key": "k", "count": "1", "project": "", "events": ""}, "count"),
        ({f"field {n}": "x" for n in range(20_000)}, "it has no field 'v'"),
    ],
    ids=["other fields", "newer", "miscounted", "a key with a space", "no text", "nothing", "many fields"],
)
def test_an_entry_that_is_not_ours_is_set_aside_and_stops_nothing(
    make, redis_server, server, make_relay, caplog, fields, says
):
    redis_server.client.xadd(EVENTS, fields)
    client = make()
    track(client, range(10))
    assert client.flush(20)
    relay = make_relay()
    assert relay.drain(20)
    relay.close()
    assert numbers(server) == list(range(10))
    assert redis_server.client.xlen(EVENTS) == 0
    ((_, letter),) = redis_server.client.xrange(DEAD)
    assert letter["reason"] == "foreign"
    assert says in letter["message"]
    name, value = next(iter(fields.items()))
    assert letter[f"of:{name}"] == value
    assert "is not a valid batch: " in caplog.text
    assert adds_up(relay.stats())


def test_a_relay_waits_for_redis_and_goes_on_after_it_was_away(make_redis, server, eventually, caplog):
    caplog.set_level(logging.INFO)
    redis_server = make_redis()
    relay = BrokerRelay(redis_server.url, "sk_test_1", base_url=server.url, shutdown_timeout=1)
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        eventually(lambda: relay.stats().problem is not None)
        assert redis_server.url in relay.stats().problem
        redis_server.start()
        with Windback(broker=redis_server.url, flush_interval=0.01) as client:
            track(client, range(100))
            eventually(lambda: len(server.events()) == 100)
            redis_server.restart()
            track(client, range(100, 200))
            eventually(lambda: len(server.events()) == 200, 30)
        assert relay.stats().problem is None
        redis_server.client.flushall()  # as after the restart of a Redis that keeps nothing
        with Windback(broker=redis_server.url, flush_interval=0.01) as client:
            track(client, range(200, 300))
            eventually(lambda: len(server.events()) == 300, 30)
    finally:
        relay.stop()
        thread.join()
    assert numbers(server) == list(range(300))
    assert caplog.text.count("retrying until it answers") <= 3


def test_what_a_dead_relay_held_is_taken_over(make, redis_server, server, relaying, held, eventually):
    client = make(batch_size=10)
    track(client, range(100))
    assert client.flush(20)
    process = relay_process(held, redis_server.url)
    held.wait_until_holding(1)
    assert redis_server.client.xpending(EVENTS, GROUP)["pending"] == 10
    process.kill()
    process.wait()
    with relaying(claim_after=0.5):
        eventually(lambda: len(server.events()) == 100)
        eventually(lambda: redis_server.client.xlen(EVENTS) == 0)
    assert numbers(server) == list(range(100))


def test_a_relay_that_was_stopped_and_goes_on_sends_nothing_under_a_second_key(
    make, redis_server, server, relaying, held, eventually
):
    """SIGSTOP for longer than the others wait, as of a laptop or a machine that is moved."""
    client = make(batch_size=10)
    track(client, range(100))
    assert client.flush(20)
    process = relay_process(held, redis_server.url, "--claim-after", "1")
    try:
        held.wait_until_holding(1)
        process.send_signal(signal.SIGSTOP)
        with relaying(claim_after=1):
            eventually(lambda: len(server.events()) == 100)
            eventually(lambda: redis_server.client.xlen(EVENTS) == 0)
        process.send_signal(signal.SIGCONT)
        held.answer()  # and its requests are answered as well
        track(client, range(100, 110))
        assert client.flush(20)
        eventually(lambda: redis_server.client.xlen(EVENTS) == 0)  # it works on
    finally:
        process.kill()
        process.wait()
    assert numbers(server)[:100] == list(range(100))
    assert server.counts().by_status.get(409, 0) == 0  # no key came with another body


def test_what_a_running_relay_holds_in_an_outage_stays_its_own(
    make, redis_server, server, relaying, held, eventually
):
    client = make(batch_size=10)
    track(client, range(100))
    assert client.flush(20)
    # It tells that it lives three times as often; a starved machine may hold it up for more than a second.
    with relaying(base_url=held.url, claim_after=2, shutdown_timeout=0.1):
        held.wait_until_holding(1)
        with relaying(claim_after=2) as other:
            time.sleep(3)
            assert other.stats().adopted == 0
    with relaying(claim_after=3600):  # what was given back is there for the next one at once
        eventually(lambda: len(server.events()) == 100)
        eventually(lambda: redis_server.client.xlen(EVENTS) == 0)


def test_sigterm_ends_a_relay_in_time_and_leaves_the_rest_to_others(
    make, redis_server, server, relaying, held, eventually
):
    client = make(batch_size=10)
    track(client, range(100))
    assert client.flush(20)
    process = relay_process(held, redis_server.url, "--shutdown-timeout", "0.5", stderr=subprocess.PIPE)
    held.wait_until_holding(1)
    process.terminate()
    started_s = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - started_s < 10
    assert process.returncode == 0
    assert "100 events read, 0 delivered, 0 rejected, 100 left in the broker" in err
    with relaying(claim_after=3600):
        eventually(lambda: len(server.events()) == 100)
    assert numbers(server) == list(range(100))


def test_the_command_sends_what_there_is_once(make, redis_server, server):
    client = make()
    track(client, range(100))
    assert client.flush(20)
    process = relay_process(server, redis_server.url, "--once", "--concurrency", "2", stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert f"relay: sending the events that are written to {redis_server.url}" in err
    assert numbers(server) == list(range(100))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--journal", "x", "--broker", "redis://localhost"], "--journal and --broker can't be combined"),
        (["--broker", "redis://localhost", "--batch-size", "3"], "--batch-size has no effect with --broker"),
        (["--journal", "x", "--claim-after", "3"], "--claim-after has no effect with --journal"),
        (["--broker", "http://:secret@localhost"], "rediss+cluster://, not http://"),
        (["--broker", "redis://:secret@[::1"], "broker must look like redis://"),
    ],
)
def test_what_the_command_can_not_do_is_one_line_and_status_2(server, options, says):
    process = relay_process(server, "", *options, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert says in err
    assert len(err.splitlines()) == 1
    assert "secret" not in err


@pytest.mark.timeout(180)
def test_relays_that_are_killed_and_a_redis_that_is_restarted_lose_nothing(
    server, make_redis, tmp_path, capsys
):
    """Nothing is lost, and what comes twice comes under the same key. `make torture` does it for a minute."""
    redis_server = make_redis(*KEEPS_ALL)
    redis_server.start()
    result = torture(
        server, redis_server, tmp_path / "journal", events=10_000, seconds=6, kill_every_s=1, relays=3
    )
    with capsys.disabled():  # what was lost is said, and not only that the test passed
        sys.stdout.write(f"\n{result}\n")
    assert result.is_clean, result


# A server that asks to slow down


def arrivals(server):
    return [
        datetime.fromisoformat(request.received_at.replace("Z", "+00:00")) for request in server.requests()
    ]


def test_what_one_relay_is_asked_to_wait_all_of_them_wait(make, redis_server, server, relaying, eventually):
    server.faults([{"path": "/track", "status": 429, "retry_after": 3, "times": 1}])
    client = make(batch_size=10, max_in_flight=1, flush_interval=60)
    track(client, range(10))
    assert client.flush(20)
    with relaying(concurrency=1) as first:
        eventually(lambda: redis_server.client.pttl(PAUSE) > 0)
        track(client, range(10, 500))
        assert client.flush(20)
        with relaying() as second:
            while True:
                requests = second.stats().requests
                if redis_server.client.pttl(PAUSE) <= 0:
                    break
                assert requests == 0
                time.sleep(0.01)
            eventually(lambda: len(server.events()) == 500, 30)
            eventually(lambda: redis_server.client.xlen(EVENTS) == 0)
        assert second.stats().requests > 0
    told, *others = arrivals(server)
    assert (min(others) - told).total_seconds() > 2.9
    assert numbers(server) == list(range(500))
    assert first.stats().rejected == second.stats().rejected == 0


def test_a_relay_that_comes_later_waits_as_well(make, redis_server, server, relaying, eventually):
    """What one was told outlives it, and counts by the clock of Redis."""
    server.faults([{"path": "/track", "status": 503, "retry_after": 3, "times": 1}])
    client = make(flush_interval=60)
    track(client, range(10))
    assert client.flush(20)
    with relaying(shutdown_timeout=0.1):
        eventually(lambda: redis_server.client.pttl(PAUSE) > 0)
    process = relay_process(server, redis_server.url)
    try:
        eventually(lambda: len(server.events()) == 10, 30)
    finally:
        process.terminate()
        process.wait()
    told, again = arrivals(server)
    assert (again - told).total_seconds() > 2.9
    assert redis_server.client.pttl(PAUSE) == -2


def test_a_redis_that_is_out_of_memory_tells_relays_to_wait_as_well(
    make, redis_server, server, relaying, eventually
):
    server.faults([{"path": "/track", "status": 429, "retry_after": 3, "times": 1}])
    client = make()
    with relaying():
        pass  # there was one before
    track(client, range(10))
    assert client.flush(20)
    redis_server.client.config_set("maxmemory", "1")
    with relaying():
        eventually(lambda: redis_server.client.pttl(PAUSE) > 0)
        eventually(lambda: len(server.events()) == 10, 30)
        eventually(lambda: redis_server.client.xlen(EVENTS) == 0)
    redis_server.client.config_set("maxmemory", "0")


def test_relays_that_share_a_rate_limit_lose_nothing(make, redis_server, server, relaying, eventually):
    server.faults([{"path": "/track", "rate_limit": {"rate": 20, "burst": 10}}])
    client = make(batch_size=10)
    track(client, range(500))
    assert client.flush(20)
    with relaying() as first, relaying() as second:
        eventually(lambda: len(server.events()) == 500, 40)
        eventually(lambda: redis_server.client.xlen(EVENTS) == 0)
    assert numbers(server) == list(range(500))
    assert first.stats().delivered + second.stats().delivered == 500
