"""What exited processes left is delivered by a client that tracks nothing, and by a sender while it runs."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading

import pytest
from relays import running
from tracking import LEAVE, adds_up, left_in, numbers, track

from windback import AsyncWindback, Windback
from windback.relay import Relay

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")

OPTIONS = {"api_key": "sk_test_1"}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def leave(run, root, dead_url):
    """Have a process track events and be killed."""

    def leave(start, end):
        code = LEAVE.format(root=str(root), start=start, end=end)
        assert run(code, url=dead_url).status == -signal.SIGKILL

    return leave


@pytest.mark.parametrize("worker", ["thread", "process"])
@pytest.mark.parametrize("how", ["flush", "close"])
def test_a_client_that_tracks_nothing_delivers_what_others_left(server, root, leave, eventually, worker, how):
    leave(0, 50)
    leave(50, 2_500)
    client = Windback(**OPTIONS, base_url=server.url, journal=root, worker=worker)
    result = client.flush(60) if how == "flush" else client.close(60)
    assert result, result
    assert numbers(server) == list(range(2_500))
    stats = client.stats()
    assert (stats.accepted, stats.adopted, stats.pending) == (2_500, 2_500, 0)
    assert adds_up(stats)
    client.close()
    eventually(lambda: not left_in(root))  # its sender, if it has one, ends a little later


def test_an_async_client_does_so_too(server, root, leave):
    leave(0, 50)

    async def work():
        async with AsyncWindback(**OPTIONS, base_url=server.url, journal=root) as client:
            assert await client.flush(60)

    asyncio.run(work())
    assert numbers(server) == list(range(50))


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_a_flush_that_could_not_deliver_what_others_left_is_not_true(server, root, leave, dead_url, worker):
    leave(0, 50)
    client = Windback(
        **OPTIONS, base_url=dead_url, journal=root, worker=worker, max_retries=0, shutdown_timeout=0.1
    )
    result = client.flush(10)
    assert not result
    assert result.pending == 50
    assert client.stats().pending == 50
    assert not client.flush()  # which gives up once the server can't be reached
    client.close(0.1)


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_where_other_processes_run_or_nothing_is_left_a_flush_is_done_immediately(server, root, run, worker):
    """No worker is started for it, and no sender process."""
    other = Windback(**OPTIONS, base_url=server.url, journal=root, worker=None)
    track(other, range(3))
    client = Windback(**OPTIONS, base_url=server.url, journal=root, worker=worker)
    assert client.flush(0.0)
    assert client.stats().workers == 0
    client.close()
    other.close(0)


def test_nothing_is_started_before_the_first_flush(server, root, leave):
    leave(0, 5)
    before = threading.active_count()
    client = Windback(**OPTIONS, base_url=server.url, journal=root)
    assert client.stats().workers == 0
    assert threading.active_count() == before
    assert server.events() == []
    assert client.close(20)


def test_an_exit_without_an_event_does_not_take_over_what_others_left(server, root, leave, run):
    """A command that only imports the application ends at once, and another process delivers."""
    leave(0, 5)
    ended = run(f"from windback import Windback\nWindback(journal={str(root)!r})\n", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == []


@pytest.mark.parametrize("tracks", [True, False])
def test_a_running_application_has_delivered_what_its_exited_children_left(server, run, root, tracks):
    """`os._exit` right after an event: the child's own sender is not there yet."""
    code = f"""\
import os, sys, time
from windback import Windback
client = Windback(worker="process", journal={str(root)!r})
if {tracks}:
    client.track_event("login", "jane@example.com", {{"n": -1}})
for n in range(20):
    if not os.fork():
        client.track_event("login", "jane@example.com", {{"n": n}})
        os._exit(0)
for n in range(20):
    os.wait()
until = time.monotonic() + 60
while os.listdir({str(root)!r}) != [client._engine.queue.writer.name] and time.monotonic() < until:
    time.sleep(0.02)
stats = client.stats()
print(stats.adopted == stats.accepted - {int(tracks)}, time.monotonic() < until)
os._exit(0)
"""
    ended = run(code, url=server.url)
    assert (ended.status, ended.out) == (0, ["True True"]), ended
    assert numbers(server) == [*([-1] if tracks else []), *range(20)]


def test_events_of_many_processes_are_not_sent_one_flush_interval_after_the_other(
    server, root, run, eventually
):
    """A batch holds events of one journal; those of the next are due as well."""
    clients = [Windback(**OPTIONS, base_url=server.url, journal=root, worker=None) for _ in range(30)]
    for n, client in enumerate(clients):
        track(client, [n])
    relay = Relay(root, "sk_test_1", base_url=server.url, flush_interval=3.0)
    with running(relay):
        eventually(lambda: len(server.events()) == 30)  # which waits for less than 30 intervals
    for client in clients:
        client.close(0)
    assert numbers(server) == list(range(30))


# A relay with few descriptors

APPLICATIONS = """\
import sys
from windback import Windback
root, count, start = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
clients = [Windback("sk_test_1", journal=root, worker=None) for _ in range(count)]
for n, client in enumerate(clients, start):
    for _ in range(3):
        assert client.track_event("login", "jane@example.com", {"n": n})
print("up", flush=True)
for line in sys.stdin:
    for n, client in enumerate(clients, start):
        client.track_event("login", "jane@example.com", {"n": n})
    print("ok", flush=True)
"""
RELAY = """\
import logging, resource, sys
logging.basicConfig(level="INFO", format="%(message)s")
logging.getLogger("httpx").setLevel("WARNING")
import httpx
from windback.relay import Relay
relay = Relay(sys.argv[1], "sk_test_1", base_url=sys.argv[2], flush_interval=0.05)
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
relay.run()
"""


@pytest.fixture
def start():
    """Start a program; all are killed at the end."""
    started = []

    def start(code, *arguments, **options):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(subprocess.Popen(command, text=True, **options))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("limit", "applications"), [(40, 12), (128, 120), (1_024, 400)])
def test_a_relay_serves_more_applications_than_it_has_descriptors_for(
    server, root, start, tmp_path, eventually, limit, applications
):
    """Each costs it two; where they are short applications take turns, and one log line says so."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    half = applications // 2
    running = [start(APPLICATIONS, root, half, n * half, **pipes) for n in range(2)]
    for each in running:
        assert each.stdout.readline() == "up\n"
    said = tmp_path / "said"
    with said.open("w") as file:
        start(RELAY, root, server.url, limit, stderr=file)
    eventually(lambda: len(server.events()) == 3 * applications, 120)
    for each in running:
        each.stdin.write("more\n")
        each.stdin.flush()
        assert each.stdout.readline() == "ok\n"
    eventually(lambda: len(server.events()) == 4 * applications, 120)
    assert numbers(server) == sorted([*range(applications)] * 4)
    lines = said.read_text().splitlines()
    is_short = 2 * applications > limit - 24
    assert len([line for line in lines if "Too many open files" in line]) == is_short, lines
    assert not [line for line in lines if "left alone" in line]


def test_a_relay_that_is_short_of_descriptors_reports_it(server, root, monkeypatch, eventually):
    client = Windback(**OPTIONS, base_url=server.url, journal=root, worker=None)
    track(client, [1])
    relay = Relay(root, "sk_test_1", base_url=server.url, flush_interval=0.01)
    monkeypatch.setattr("windback.relay.queue._SPARE_DESCRIPTORS", 1 << 30)
    relay.poll()
    assert relay.stats().problem == f"journal {root}: Too many open files; 1 application must wait"
    assert "no relay sends" in client.flush(0.1).problem
    monkeypatch.undo()
    eventually(lambda: not relay.poll() and relay.stats().problem is None and len(server.events()) == 1)
    relay.close()
    client.close(0)
