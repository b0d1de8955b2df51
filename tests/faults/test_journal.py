"""A journal and the processes around it: killed at any instant, ended in order, forked, started together."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from pathlib import Path

import pytest
import trio
from inside import adopt_later, journal_of, queue_of, scheduler_of
from tracking import JANE, TOOLS, adds_up, left_in, numbers, track

from windback import AsyncWindback, Windback

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")

OPTIONS = {"api_key": "sk_test_1"}
#: So often is a writer killed here; `make torture` does it 200 times.
KILLS = int(os.environ.get("WINDBACK_TEST_KILLS", "8"))
TOOLS += """\
    def wait_for_requests(count):
        # Until the server has seen so many, whatever it answers.
        import json
        from urllib.request import ProxyHandler, build_opener
        url = os.environ["WINDBACK_BASE_URL"].replace("/api/v1", "/_dev/counts")
        while json.load(build_opener(ProxyHandler({})).open(url))["track_requests"] < count:
            time.sleep(0.002)

    def take(client):
        # As a worker does: another one may be at it, too.
        scheduler = client._engine.scheduler
        with scheduler.lock:
            scheduler.queue.take(scheduler._limits)

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

"""


def torture():
    path = Path(__file__).resolve().parents[1] / "torture.py"
    spec = importlib.util.spec_from_file_location("torture", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    return tmp_path / "journal"


def deliver_all(server, root, eventually, **options):
    """Start a client whose first event has it look for what others left; return its last numbers."""
    options = {"flush_interval": 0.01, **options}
    with Windback(**OPTIONS, **options, base_url=server.url, journal=root) as client:
        track(client, [-1])
        eventually(lambda: left_in(root) == [journal_of(client).name] and not client.stats().pending)
        stats = client.stats()
    assert adds_up(stats)
    assert left_in(root) == []
    return stats


# Kills


@pytest.mark.timeout(60 + 20 * KILLS)
def test_a_writer_killed_at_random_loses_nothing_and_doubles_nothing(server, tmp_path):
    torturer = torture().Torturer(server, tmp_path, random.randrange(1 << 30), long_runs=0)
    runs = [torturer.run("writer") for _ in range(KILLS)]
    assert [run for run in runs if not run.is_clean] == []
    assert sum(run.accepted for run in runs) > 8 * KILLS
    server.clear_faults()


def requests(server):
    """Key and size of each batch, in the order in which they came."""
    return [
        (each.idempotency_key, each.body_bytes) for each in server.requests() if each.path.endswith("/track")
    ]


@pytest.mark.parametrize("fault", [{"latency": 30.0}, {"drop": "before"}], ids=["no answer", "not taken"])
def test_what_was_under_way_goes_out_again_under_its_key(server, run, root, eventually, fault):
    """Killed between the lease and the answer: the server sees the same bytes under the same key again."""
    code = f"""\
    client = Windback(journal={str(root)!r}, batch_size=20, flush_interval=0.01, max_in_flight=2)
    track(client, range(50))
    wait_for_requests(2)
    kill()
    """
    server.faults([{"path": "/track", **fault}])
    assert run(TOOLS + code, url=server.url).status == -signal.SIGKILL
    before = requests(server)
    assert len({key for key, _ in before}) >= 1
    server.clear_faults()
    deliver_all(server, root, eventually)
    after = requests(server)[len(before) :]
    assert {key for key, _ in before} <= {key for key, _ in after}
    # With a size of 0: the kill came while it was sent.
    assert {(key, size) for key, size in before if size} <= set(after)
    assert numbers(server) == [-1, *range(50)]


def test_an_answer_that_a_kill_swallowed_makes_no_event_come_twice(server, run, root, eventually):
    """The server took the batches, and the application was gone before it heard of it."""
    code = f"""\
    client = Windback(journal={str(root)!r}, batch_size=10, flush_interval=0.01)
    track(client, range(40))
    wait_for_requests(4)
    kill()
    """
    server.faults([{"path": "/track", "drop": "after"}])
    assert run(TOOLS + code, url=server.url).status == -signal.SIGKILL
    taken = numbers(server)
    assert taken
    server.clear_faults()
    stats = deliver_all(server, root, eventually)
    assert numbers(server) == [-1, *range(40)]
    assert server.counts().duplicates > 0
    assert stats.adopted == 40


def test_halves_of_a_batch_keep_their_keys_through_a_kill(server, run, root, eventually):
    code = f"""\
    client = Windback(journal={str(root)!r}, batch_size=8, flush_interval=0.01, max_in_flight=1)
    track(client, range(8))
    wait_for_requests(2)
    kill()
    """
    server.faults([{"path": "/track", "status": 413, "times": 1}, {"path": "/track", "drop": "before"}])
    assert run(TOOLS + code, url=server.url).status == -signal.SIGKILL
    keys = [key for key, _ in requests(server)]
    assert keys[1].startswith(keys[0] + "-")
    server.clear_faults()
    before = len(requests(server))
    deliver_all(server, root, eventually)
    after = [key for key, _ in requests(server)[before:]]
    assert {f"{keys[0]}-0", f"{keys[0]}-1"} <= set(after)
    assert keys[0] not in after
    assert numbers(server) == [-1, *range(8)]


def test_a_backlog_that_is_killed_again_and_again_is_delivered_once(server, run, root, eventually):
    code = f"""\
    client = Windback(journal={str(root)!r}, flush_interval=3600)
    track(client, range(3000))
    kill()
    """
    assert run(TOOLS + code, url=server.url).status == -signal.SIGKILL
    again = f"""\
    client = Windback(journal={str(root)!r}, flush_interval=0.01)
    client.track_event("start", "jane@example.com", {{"n": -1}})
    while client.stats().delivered < 400:
        time.sleep(0.0005)
    kill()
    """
    server.faults([{"path": "/track", "latency": 0.01}])
    for _ in range(3):
        assert run(TOOLS + again, url=server.url).status == -signal.SIGKILL
    deliver_all(server, root, eventually)
    assert [n for n in numbers(server) if n >= 0] == list(range(3000))


# Ends in good order


def test_an_exit_without_a_server_leaves_all_to_the_next_start(server, run, root, dead_url, eventually):
    code = f"""\
    client = Windback(journal={str(root)!r}, shutdown_timeout=0.2)
    track(client, range(250))
    """
    ended = run(TOOLS + code, url=dead_url)
    assert ended.status == 0
    assert "250 events were not delivered before the process ended" in ended.err
    stats = deliver_all(server, root, eventually)
    assert stats.adopted == 250
    assert numbers(server) == [-1, *range(250)]


def test_close_without_a_server_drops_nothing(server, root, dead_url, eventually):
    reports = []
    client = Windback(
        **OPTIONS, base_url=dead_url, journal=root, on_delivery=reports.append, flush_interval=0.01
    )
    track(client, range(100))
    result = client.close(0.2)
    assert (bool(result), result.pending, result.dropped) == (False, 100, 0)
    stats = client.stats()
    assert (stats.accepted, stats.dropped, stats.pending) == (100, 0, 100)
    assert reports == []
    deliver_all(server, root, eventually)
    assert numbers(server) == [-1, *range(100)]


def test_an_unhandled_exception_and_sys_exit_leave_nothing_behind(server, run, root):
    for end in ("raise ValueError", "sys.exit(3)", ""):
        code = f"""\
    client = Windback(journal={str(root)!r})
    track(client, range(120))
    {end}
    """
        run(TOOLS + code, url=server.url)
        assert left_in(root) == []
    assert numbers(server) == sorted(list(range(120)) * 3)


def test_os_exit_is_a_kill_like_any_other(server, run, root, eventually):
    code = f"""\
    client = Windback(journal={str(root)!r}, flush_interval=3600)
    track(client, range(20))
    os._exit(0)
    """
    assert run(TOOLS + code, url=server.url).status == 0
    assert deliver_all(server, root, eventually).adopted == 20
    assert numbers(server) == [-1, *range(20)]


# Forks


FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")
QUIET = ("-W", "error")


@FORK
def test_a_forked_child_has_a_directory_of_its_own_and_leaves_its_parents(server, run, root):
    code = f"""\
    client = Windback(journal={str(root)!r}, flush_interval=3600, shutdown_timeout=20)
    track(client, range(50))
    own = client._engine.queue.writer
    parents = own.name
    before = {{path: path.read_bytes() for path in own._home.folder.glob("*.seg")}}
    pids = []
    for child in range(3):
        pid = os.fork()
        if pid == 0:
            assert client.stats().pending == 0
            track(client, range(100 * child + 100, 100 * child + 150))
            assert client._engine.queue.writer.name != parents
            assert client._engine.queue.writer.name in os.listdir({str(root)!r})
            assert {{path: path.read_bytes() for path in before}} == before
            sys.exit(0)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    assert {{path: path.read_bytes() for path in before}} == before
    assert client.stats().pending == 50
    """
    ended = run(TOOLS + code, *QUIET, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert left_in(root) == []
    assert numbers(server) == [*range(50), *range(100, 150), *range(200, 250), *range(300, 350)]


@FORK
def test_forks_beside_threads_that_track_leave_the_parents_events_alone(server, run, root):
    code = f"""\
    sys.setswitchinterval(0.0005)
    client = Windback(journal={str(root)!r}, flush_interval=0.01, shutdown_timeout=20)
    stop = threading.Event()
    counts = [0] * 8

    def work(thread):
        while not stop.is_set():
            track(client, [thread * 1_000_000 + counts[thread]])
            counts[thread] += 1
            time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for child in range(12):
        pid = os.fork()
        if pid == 0:
            track(client, [-1 - child])
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    for thread in threads:
        thread.join()
    assert client.close()
    for thread, count in enumerate(counts):
        print(thread * 1_000_000, thread * 1_000_000 + count)
    """
    ended = run(TOOLS + code, *QUIET, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    expected = list(range(-12, 0))
    for line in ended.out:
        expected += range(*map(int, line.split()))
    assert numbers(server) == sorted(expected)
    assert left_in(root) == []


@FORK
@pytest.mark.parametrize("uses_it", [True, False], ids=["a child that tracks", "a child that does not"])
def test_a_running_child_does_not_keep_its_dead_parents_events(server, root, tmp_path, eventually, uses_it):
    """The kernel frees a lock when its last copy is closed, and the child has one of its parent's."""
    code = f"""\
import os, signal, sys, time
from windback import Windback

def track(numbers):
    for n in numbers:
        assert client.track_event("login", "jane@example.com", {{"n": n}})

client = Windback(journal={str(root)!r}, flush_interval=3600)
track(range(30))
if os.fork():
    signal.pause()
if {uses_it}:
    track(range(30, 60))
    while client._engine.queue._to_adopt is None:  # it looked for dead processes, and found none
        time.sleep(0.001)
print(os.getpid(), flush=True)
sys.stdin.read()
client.close()
"""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(sys.modules["windback"].__file__).resolve().parents[1]),
        "WINDBACK_API_KEY": "sk_test_1",
        "WINDBACK_BASE_URL": server.url,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    child = int(process.stdout.readline())
    process.kill()
    try:
        assert process.wait(20) == -signal.SIGKILL
        with Windback(**OPTIONS, base_url=server.url, journal=root, flush_interval=0.01) as client:
            track(client, [-1])
            eventually(lambda: client.stats().adopted == 30)
            assert client.flush(20)
        os.kill(child, 0)  # it lives
        # Its own events are its own: nobody took those.
        assert len(left_in(root)) == uses_it
        assert numbers(server) == [-1, *range(30)]
    finally:
        process.stdin.close()  # the child ends
        process.stdout.read()
        process.stdout.close()
    eventually(lambda: left_in(root) == [])
    assert numbers(server) == [-1, *range(60 if uses_it else 30)]


# Several at once


def test_two_processes_that_start_together_deliver_five_directories_once(server, run, root, eventually):
    code = f"""\
    for n in range(5):  # more of them would be merged
        if os.fork() == 0:
            client = Windback(journal={str(root)!r}, flush_interval=3600)
            track(client, range(240 * n, 240 * n + 240))
            os._exit(0)
        assert os.wait()[1] == 0
    """
    assert run(TOOLS + code, *QUIET, url=server.url).status == 0
    assert len(left_in(root)) == 5
    together = f"""\
    if os.fork() == 0:
        os.setpgid(0, 0)
    client = Windback(journal={str(root)!r}, flush_interval=0.01, shutdown_timeout=20)
    while not Path({str(root / "go")!r}).exists():
        time.sleep(0.0005)
    track(client, [-1])
    root = Path({str(root)!r})
    while client.stats().pending or len([path for path in root.iterdir() if path.is_dir()]) > 2:
        time.sleep(0.005)
    stats = client.stats()
    assert stats.accepted == stats.delivered == stats.adopted + 1
    assert client.close()
    os.write(1, f"{{stats.adopted}}\\n".encode())  # in one piece, beside the other's
    """
    starter = threading.Timer(1.0, (root / "go").touch)
    starter.start()
    ended = run(TOOLS + together, *QUIET, url=server.url)
    starter.join()
    assert (ended.status, ended.err) == (0, "")
    assert sum(map(int, ended.out)) == 1200
    assert numbers(server) == [-1, -1, *range(1200)]
    (root / "go").unlink()
    eventually(lambda: left_in(root) == [])


def test_many_running_processes_share_a_directory(server, run, root):
    code = f"""\
    pids = []
    for n in range(6):
        pid = os.fork()
        if pid == 0:
            client = Windback(journal={str(root)!r}, flush_interval=0.01, shutdown_timeout=20)
            track(client, range(1000 * n, 1000 * n + 500))
            sys.exit(0)
        pids.append(pid)
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    """
    ended = run(TOOLS + code, *QUIET, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == [1000 * n + m for n in range(6) for m in range(500)]
    assert left_in(root) == []


# Async clients


def run_on(backend, work):
    if backend == "asyncio":
        asyncio.run(work())
    else:
        trio.run(work)


@pytest.mark.parametrize("worker", ["task", "thread"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_client_has_a_journal_too(server, run, root, eventually, backend, worker):
    code = f"""\
    client = Windback(journal={str(root)!r}, flush_interval=3600)
    track(client, range(100))
    take(client)
    track(client, range(100, 150))
    kill()
    """
    assert run(TOOLS + code, url=server.url).status == -signal.SIGKILL
    seen = []

    async def work():
        async with AsyncWindback(
            **OPTIONS, base_url=server.url, journal=root, worker=worker, flush_interval=0.01, batch_size=30
        ) as client:
            for n in range(150, 600):
                assert await client.track_event("login", JANE, {"n": n})
            assert await client.flush(20)
            while client.stats().pending or client.stats().adopted < 150:
                await (asyncio.sleep if backend == "asyncio" else trio.sleep)(0.002)
                seen.append(client.stats())
            seen.append(client.stats())

    run_on(backend, work)
    assert all(adds_up(stats) for stats in seen)
    last = seen[-1]
    assert (last.accepted, last.delivered, last.adopted, last.pending) == (600, 600, 150, 0)
    assert numbers(server) == list(range(600))
    assert left_in(root) == []


@pytest.mark.parametrize("worker", ["task", "thread"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_client_that_closes_without_a_server_leaves_its_events(
    server, root, dead_url, eventually, backend, worker
):
    async def work():
        client = AsyncWindback(**OPTIONS, base_url=dead_url, journal=root, worker=worker)
        for n in range(70):
            assert await client.track_event("login", JANE, {"n": n})
        result = await client.close(0.1)
        assert result.pending == 70

    run_on(backend, work)
    deliver_all(server, root, eventually)
    assert numbers(server) == [-1, *range(70)]


# Flush and stats


def test_flush_waits_for_what_was_accepted_before_it_whatever_is_adopted_in_the_meantime(
    server, run, root, held
):
    """Events of a dead process are taken in between the call of flush and its end."""
    code = f"""\
    client = Windback(journal={str(root)!r}, flush_interval=3600)
    track(client, range(100))
    take(client)
    kill()
    """
    assert run(TOOLS + code, url=server.url).status == -signal.SIGKILL
    client = Windback(
        **OPTIONS, base_url=held.url, journal=root, flush_interval=3600, batch_size=100, max_in_flight=1
    )
    adopt_later(queue_of(client), deque())  # nothing, until the flush is on its way
    track(client, range(100, 150))
    flush = scheduler_of(client).begin_flush(Waker(), has_timeout=True)
    adopt_later(queue_of(client), None)
    scheduler_of(client).wake()
    held.wait_until_holding(1)
    held.answer(1)  # whichever batch it was
    held.wait_until_seen(2)
    assert not flush.done
    assert scheduler_of(client).end_flush(flush).pending > 0
    held.answer()
    assert client.flush(20)
    stats = client.stats()
    assert (stats.accepted, stats.delivered, stats.adopted) == (150, 150, 100)
    client.close()


class Waker:
    def release(self):
        """Nobody sleeps."""


@pytest.mark.parametrize("seed", [1, 2])
def test_the_counts_add_up_at_every_moment_while_a_journal_is_adopted_and_much_fails(
    server, run, root, monkeypatch, seed
):
    monkeypatch.setattr("windback.delivery.retry.backoff_s", lambda attempt, rng, **_: rng * 0.004 * attempt)
    monkeypatch.setattr("windback.delivery.gate.OUTAGE_CAP_S", 0.02)
    code = f"""\
    client = Windback(journal={str(root)!r}, flush_interval=3600)
    track(client, range(10_000, 12_000))
    take(client)
    kill()
    """
    assert run(TOOLS + code, url=server.url).status == -signal.SIGKILL
    kinds = [
        {"status": 500},
        {"status": 429, "retry_after": 0.01},
        {"drop": "before"},
        {"drop": "after"},
        {"status": 503},
    ]
    server.faults(
        [{**kind, "path": "/track", "rate": 0.06, "seed": seed + n} for n, kind in enumerate(kinds)]
    )
    reports = []
    client = Windback(
        **OPTIONS, base_url=server.url, journal=root, flush_interval=0.005, batch_size=20,
        on_delivery=reports.append,
    )  # fmt: skip
    stop = threading.Event()
    wrong = []

    def watch():
        last = client.stats()
        while not stop.is_set():
            stats = client.stats()
            falls = [
                name
                for name in ("accepted", "delivered", "rejected", "dropped", "adopted")
                if getattr(stats, name) < getattr(last, name)
            ]
            if falls or not adds_up(stats) or stats.in_flight > stats.pending or stats.pending_bytes < 0:
                wrong.append((falls, last, stats))
            last = stats

    watcher = threading.Thread(target=watch)
    watcher.start()
    threads = [threading.Thread(target=track, args=(client, range(n, 4000, 4))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline = threading.Event()
    while client.stats().adopted < 2000 or client.stats().pending:
        assert not deadline.wait(0.005)
    stop.set()
    watcher.join()
    stats = client.stats()
    assert client.close()
    assert wrong == []
    assert (stats.accepted, stats.delivered, stats.pending, stats.pending_bytes) == (6000, 6000, 0, 0)
    assert Counter(report.outcome for report in reports).keys() == {"delivered"}
    assert sum(report.count for report in reports) == 6000
    assert numbers(server) == [*range(4000), *range(10_000, 12_000)]
    assert left_in(root) == []


def test_a_rejected_event_of_a_dead_process_is_kept_as_a_dead_letter(server, run, root, eventually):
    code = f"""\
    client = Windback(journal={str(root)!r}, flush_interval=3600)
    track(client, range(9))
    client.track_event("login", "jane@", {{"n": 9}})
    kill()
    """
    assert run(TOOLS + code, url=server.url).status == -signal.SIGKILL
    (dead,) = left_in(root)
    stats = deliver_all(server, root, eventually)
    assert (stats.delivered, stats.rejected, stats.pending) == (10, 1, 0)
    letters = [json.loads(line) for line in (root / "dead" / f"{dead}.jsonl").read_text().splitlines()]
    assert [letter["event"]["properties"]["n"] for letter in letters] == [9]
    assert numbers(server) == [-1, *range(9)]
