"""worker=None: the application writes its journal and a relay delivers, whichever of the two dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import trio
from deadlines import SLACK_S
from inside import queue_of
from relays import running
from tracking import JANE, TOOLS, adds_up, numbers, track

import windback
from windback import AsyncWindback, ConfigurationError, Windback
from windback.relay import Relay

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")

OPTIONS = {"api_key": "sk_test_1", "worker": None}
#: This server takes it for no email address, the client does.
POISON = "jane@"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def make(server, root):
    with contextlib.ExitStack() as stack:

        def make(**options):
            client = Windback(**{**OPTIONS, "base_url": server.url, "journal": root, **options})
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def relaying(server, root):
    """Have a relay run in a thread while a block of code does."""

    @contextlib.contextmanager
    def relaying(**options):
        relay = Relay(
            root, **{"api_key": "sk_test_1", "base_url": server.url, "flush_interval": 0.01, **options}
        )
        with running(relay):
            yield relay

    return relaying


def start_relay(root, server):
    package = str(Path(windback.__file__).resolve().parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", "from windback.cli import main; main()", "relay", "--journal", str(root)],
        env={
            **os.environ,
            "PYTHONPATH": package,
            "WINDBACK_API_KEY": "sk_test_1",
            "WINDBACK_BASE_URL": server.url,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_relay_delivers_for_running_processes_which_see_it(make, server, relaying):
    client = make()
    with relaying():
        track(client, range(1000))
        result = client.flush(20)
    assert (result.pending, result.delivered) == (0, 1000)
    stats = client.stats()
    assert (stats.accepted, stats.delivered, stats.pending, stats.workers) == (1000, 1000, 0, 0)
    assert stats.problem is None
    assert numbers(server) == list(range(1000))


def test_what_waits_is_sent_without_a_pause(make, server, relaying, eventually):
    """It reads no more than some batches ahead, and goes on as these are sent, not at its next look."""
    client = make()
    track(client, range(20_000))
    with relaying(poll_interval=3600):
        eventually(lambda: server.counts().events == 20_000)
    assert numbers(server) == list(range(20_000))


def test_the_application_loads_no_http_client_and_connects_to_nobody(run, dead_url, root):
    code = f"""\
    client = Windback(worker=None, journal={str(root)!r})
    track(client, range(1000))
    print(sorted(name for name in ("httpx", "anyio", "tenacity") if name in sys.modules))
    print(*sorted(thread.name for thread in threading.enumerate()))
    """
    ended = run(TOOLS + code, url=dead_url)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out[0] == "[]"
    assert set(ended.out[1].split()) <= {"MainThread", "windback-maintenance"}


def test_without_a_relay_flush_gives_up_and_reports_it(make, root):
    client = make()
    track(client, range(10))
    result = client.flush()
    assert (result.pending, result.delivered) == (10, 0)
    wanted = rf"no relay sends from the journal \(for \d+ s\); start `windback relay --journal {root}`"
    assert re.fullmatch(wanted, result.problem)
    started_s = time.monotonic()
    assert client.flush(0.3).pending == 10
    assert 0.3 <= time.monotonic() - started_s < 5
    assert re.fullmatch(wanted, client.stats().problem)
    assert adds_up(client.stats())


def test_close_and_exit_wait_for_nothing_and_a_later_relay_delivers(run, server, root):
    code = f"""\
    client = Windback(worker=None, journal={str(root)!r}, shutdown_timeout=60)
    track(client, range(1000))
    if sys.argv[1:]:
        result = client.close()
        assert result.pending == 1000, result
        stats = client.stats()
        assert (stats.accepted, stats.pending) == (1000, 1000), stats
    """
    for how in ("exit", "close"):
        code = code.replace("sys.argv[1:]", str(how == "close"))
        ended = run(TOOLS + code, url=server.url, timed=True)
        assert (ended.status, ended.err) == (0, "")
        assert ended.took_s < SLACK_S
    assert numbers(server) == []
    relay = Relay(root, "sk_test_1", base_url=server.url)
    assert relay.drain(20)
    assert relay.close()
    assert numbers(server) == sorted([*range(1000)] * 2)
    assert list(root.iterdir()) == []


def test_what_a_killed_application_accepted_arrives(run, server, root, relaying, eventually):
    code = f"""\
    client = Windback(worker=None, journal={str(root)!r})
    track(client, range(1000))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with relaying():
        assert run(TOOLS + code, url=server.url).status == -signal.SIGKILL
        eventually(lambda: len(server.events()) == 1000)
        eventually(lambda: list(root.iterdir()) == [])
    assert numbers(server) == list(range(1000))


def test_what_the_api_rejects_is_counted_also_by_the_next_relay(make, relaying):
    client = make()
    for some in (range(20), range(20, 40)):
        with relaying():
            track(client, some)
            assert client.track_event("login", POISON)
            result = client.flush(20)
            assert (result.pending, result.delivered, result.rejected) == (0, 20, 1)
    stats = client.stats()
    assert (stats.accepted, stats.delivered, stats.rejected) == (42, 40, 2)
    assert stats.rejected_by_reason == {"invalid": 2}


def test_an_outage_is_seen(make, relaying, dead_url, eventually):
    client = make()
    with relaying(base_url=dead_url, max_retries=0, shutdown_timeout=0):
        track(client, range(10))
        eventually(lambda: client.stats().problem is not None)
        result = client.flush()
        assert result.pending == 10
        assert "could not connect" in result.problem
    assert "no relay" in client.stats().problem


@pytest.mark.parametrize("fault", ["refused", "429"])
def test_while_nothing_gets_through_it_looks_for_events_at_its_usual_pace_however_many_wait(
    make, server, relaying, dead_url, eventually, fault
):
    server.faults([{"status": 429, "retry_after": 60}])
    client = make()
    track(client, range(1_500))
    with relaying(base_url=dead_url if fault == "refused" else server.url, max_retries=0) as relay:
        eventually(lambda: relay.stats().problem and relay.stats().pending >= 1_000)
        looks = 0
        looked_s, until_s = relay.looked_s, time.monotonic() + 2
        while time.monotonic() < until_s:
            time.sleep(0.001)
            looks += relay.looked_s != looked_s
            looked_s = relay.looked_s
        assert looks < 100  # 40 by its poll_interval of 50 ms; a busy one looks 500 times a second


def test_relays_that_are_killed_lose_nothing_and_the_counts_add_up(make, server, root):
    server.faults(
        [
            {"path": "/track", "status": 503, "rate": 0.1, "seed": 1},
            {"path": "/track", "drop": "after", "rate": 0.1, "seed": 2},
            {"path": "/track", "latency": 0.005},
        ]
    )
    client = make()
    stop = threading.Event()
    wrong = []

    def watch():
        last = client.stats()
        while not stop.is_set():
            stats = client.stats()
            falls = [
                name
                for name in ("accepted", "delivered", "rejected")
                if getattr(stats, name) < getattr(last, name)
            ]
            if falls or not adds_up(stats) or min(stats.delivered, stats.pending) < 0:
                wrong.append((falls, last, stats))
            last = stats
            stop.wait(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for turn in range(4):
        arrived = len(server.events())
        relay = start_relay(root, server)
        track(client, range(2000 * turn, 2000 * turn + 2000))
        deadline = time.monotonic() + 20
        while len(server.events()) < arrived + 300:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        relay.kill()
        relay.wait()
    relay = start_relay(root, server)
    assert client.flush(40), client.stats()
    track(client, range(8000, 8010))  # nobody else can deliver these
    assert client.flush(40), client.stats()
    stop.set()
    watcher.join()
    relay.terminate()
    assert relay.wait(20) == 0
    assert wrong == []
    assert numbers(server) == list(range(8010))
    stats = client.stats()
    assert (stats.accepted, stats.delivered) == (8010, 8010)


def test_a_fork_has_a_directory_of_its_own(run, server, root, relaying):
    code = f"""\
    client = Windback(worker=None, journal={str(root)!r})
    track(client, range(100))
    pid = os.fork()
    if not pid:
        assert client.stats().accepted == 0
        track(client, range(100, 200))
        assert client.flush(20)
        assert client.stats().delivered == 100
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert client.flush(20)
    assert client.stats().delivered == 100
    """
    with relaying():
        ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(200))


def test_a_full_journal_makes_the_caller_wait_until_a_relay_made_room(make, server, relaying):
    big = "x" * 60_000
    client = make(overflow="block", block_timeout=20, max_journal_bytes=8 << 20)
    accepted = 0
    while queue_of(client).intake.has_room_for(70_000):
        assert client.track_event("big", JANE, {"n": accepted, "big": big})
        accepted += 1
        assert accepted < 200
    with relaying():
        for _ in range(100):
            assert client.track_event("big", JANE, {"n": accepted, "big": big})
            accepted += 1
        assert client.flush(20)
    stats = client.stats()
    assert (stats.accepted, stats.delivered, dict(stats.refused)) == (accepted, accepted, {})
    assert numbers(server) == list(range(accepted))


@pytest.mark.parametrize("damage", ["removed", "cut", "foreign", "a directory"])
def test_a_file_of_counters_with_damage_costs_no_event(make, server, root, relaying, damage, eventually):
    client = make()
    with relaying():
        track(client, range(100))
        assert client.flush(20)
        (path,) = root.glob("*/counters")
        if damage == "removed":
            path.unlink()
        elif damage == "cut":
            os.truncate(path, 3)
        elif damage == "foreign":
            path.write_bytes(b"nothing of yours" * 100)
        else:
            path.unlink()
            path.mkdir()
        track(client, range(100, 200))
        eventually(lambda: len(server.events()) == 200)
        if damage != "a directory":
            assert client.flush(20)
    assert adds_up(client.stats())
    assert numbers(server) == list(range(200))


@pytest.mark.parametrize("backend", [asyncio, trio], ids=["asyncio", "trio"])
def test_an_async_client(server, root, relaying, backend, eventually):
    async def main():
        async with AsyncWindback(**OPTIONS, base_url=server.url, journal=root) as client:
            for n in range(95):
                assert await client.track_event("login", JANE, {"n": n})
            assert await client.flush(20)
            assert client.stats().delivered == 95
            for n in range(95, 100):
                assert await client.track_event("login", JANE, {"n": n})

    with relaying():
        backend.run(main() if backend is asyncio else main)
        eventually(lambda: len(server.events()) == 100)
    assert numbers(server) == list(range(100))


def test_several_applications_and_several_relays(make, server, relaying):
    clients = [make() for _ in range(4)]
    with relaying(), relaying():
        for number, client in enumerate(clients):
            track(client, range(100 * number, 100 * number + 100))
        for client in clients:
            assert client.flush(20)
            assert client.stats().delivered == 100
    assert Counter(numbers(server)) == Counter(range(400))


def test_plain_calls_and_track_events_go_out_from_here(make, server):
    client = make(project_slug="my-project")
    assert client.track_events([{"event": "login", "customer_email": JANE, "properties": {"n": 1}}])
    client.submit_cancel_flow(JANE, "too_expensive")
    assert numbers(server) == [1]
    assert client.stats().accepted == 0


def test_options_that_can_not_work_are_errors(root):
    with pytest.raises(ConfigurationError, match="worker=None needs journal=DIRECTORY"):
        Windback("sk_test_1", worker=None)
    with pytest.raises(ConfigurationError, match="on_delivery is never called with worker=None"):
        Windback("sk_test_1", worker=None, journal=root, on_delivery=print)


def test_disabled_it_needs_no_journal():
    client = Windback("sk_test_1", worker=None, enabled=False)
    assert not client.track_event("login", JANE)
    assert client.close()
