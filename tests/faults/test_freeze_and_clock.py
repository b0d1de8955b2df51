"""A process that stands still, a clock that jumps, a system without threads: nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from deadlines import SLACK_S
from ports import free_port
from tracking import numbers

import windback
from windback.devserver import DevServer

posix = pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGSTOP and no limit of threads")
#: Seconds that a process is frozen; 30 or 3600 only take longer.
FREEZE_S = float(os.environ.get("WINDBACK_TEST_FREEZE_S", "2"))

STEPS = """\
import sys, time
from windback import Windback

client = Windback(flush_interval=0.02, batch_size=10, shutdown_timeout=20)

def track(start, count=20):
    for n in range(start, start + count):
        assert client.track_event("login", "jane@example.com", {"n": n})

def done(what):
    print(what, flush=True)

def go():
    sys.stdin.readline()
"""


class Steps:
    """A script that goes on when it is told to, and can be frozen in between."""

    def __init__(self, code, url):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", STEPS + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")},
                "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]),
                "WINDBACK_API_KEY": "sk_test_1",
                "WINDBACK_BASE_URL": url,
            },
        )

    def wait_for(self, what):
        line = self.process.stdout.readline().decode().strip()
        assert line == what, self.process.stderr.read().decode()

    def go(self):
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)
        # Stopped only when the system says so.
        assert os.WIFSTOPPED(os.waitpid(self.process.pid, os.WUNTRACED)[1])

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def end(self):
        self.process.stdin.close()
        err = self.process.stderr.read().decode()
        return self.process.wait(30), err

    def close(self):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(OSError):
                pipe.close()


@pytest.fixture
def steps():
    started = []

    def start(code, url):
        started.append(Steps(code, url))
        return started[-1]

    yield start
    for each in started:
        each.close()


# -- frozen --------------------------------------------------------------------------------------


@posix
def test_connections_that_died_during_a_freeze_are_replaced_immediately(steps):
    """The server is another one after the thaw; it knows nothing of the connections of the first."""
    port = free_port()
    code = """\
track(0)
assert client.flush(10)
done("warm")
go()
started_s = time.monotonic()
track(100)
assert client.flush(10)
done("thawed" if time.monotonic() - started_s < 2 else "slow")
go()
"""
    with DevServer(port=port) as server:
        script = steps(code, server.url)
        script.wait_for("warm")
        assert numbers(server) == list(range(20))
        script.freeze()
    time.sleep(FREEZE_S)
    with DevServer(port=port) as server:
        script.thaw()
        script.go()
        script.wait_for("thawed")
        script.go()
        assert script.end() == (0, "")
        assert numbers(server) == list(range(100, 120))


@posix
def test_a_freeze_with_a_request_under_way_loses_and_doubles_nothing(steps, server):
    """The server answers into a process that stands still; the answer is there after the thaw."""
    code = """\
client.track_event("warm", "jane@example.com", {"n": -1})
assert client.flush(10)
done("warm")
go()
track(0)
done("tracked")
go()
assert client.flush(20)
stats = client.stats()
assert stats.accepted == stats.delivered + stats.rejected + stats.dropped + stats.pending, stats
"""
    script = steps(code, server.url)
    script.wait_for("warm")
    server.faults([{"latency": 0.5}])
    script.go()
    script.wait_for("tracked")
    deadline = time.monotonic() + 15
    while server.counts().requests < 2:  # the first of them is the warm one
        assert time.monotonic() < deadline
        time.sleep(0.005)
    script.freeze()
    time.sleep(FREEZE_S)
    server.faults([])
    script.thaw()
    script.go()
    assert script.end() == (0, "")
    assert numbers(server) == [-1, *range(20)]


@posix
def test_a_flush_that_was_frozen_beyond_its_deadline_returns_immediately(steps, silent_url):
    code = """\
client._engine.connections.transport()
track(0, 5)
done("flushing")
started_s = time.monotonic()
result = client.flush(1)
took_s = time.monotonic() - started_s
done("%d %.3f" % (result.pending, took_s))
client.close(0)
"""
    script = steps(code, silent_url)
    script.wait_for("flushing")
    script.freeze()
    time.sleep(FREEZE_S)
    thawed_s = time.monotonic()
    script.thaw()
    pending, took_s = script.process.stdout.readline().split()
    assert int(pending) == 5
    assert time.monotonic() - thawed_s <= 1.0 + SLACK_S
    assert float(took_s) >= 1.0
    assert script.end() == (0, "")


@posix
def test_a_freeze_in_a_backoff_is_followed_by_one_try_and_no_storm(steps):
    port = free_port()
    code = """\
track(0)
while client.stats().requests < 2:
    time.sleep(0.005)
done("in a backoff")
go()
deadline = time.monotonic() + 20
while client.stats().delivered < 20:
    assert time.monotonic() < deadline, client.stats()
    time.sleep(0.005)
"""
    script = steps(code, f"http://127.0.0.1:{port}/api/v1")
    script.wait_for("in a backoff")
    script.freeze()
    time.sleep(FREEZE_S)
    with DevServer(port=port) as server:
        script.thaw()
        script.go()
        status, err = script.end()
        # A busy machine may make all tries before the freeze.
        lines = [
            line for line in err.splitlines() if not line.startswith("cannot deliver: could not connect")
        ]
        assert (status, [line for line in lines if "delivery" not in line]) == (0, [])
        assert numbers(server) == list(range(20))
        assert server.counts().track_requests <= 4


# -- the wall clock jumps ------------------------------------------------------------------------

CLOCK = """\
    import time
    real, offset = time.time, 0.0
    time.time = lambda: real() + offset  # before windback is imported, so that it sees nothing else
    from windback import Windback

    def track(client, count=10):
        for n in range(count):
            assert client.track_event("login", "jane@example.com", {"n": n})

"""
JUMPS = {"an hour back": -3600.0, "a day forward": 86400.0, "before 1970": -3e9}


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_intervals_and_deadlines_do_not_know_the_wall_clock(server, run, jump):
    code = f"""\
    client = Windback(flush_interval=0.3)
    track(client)
    offset = {jump}
    track(client)
    deadline = time.monotonic() + 5
    while client.stats().delivered < 20:
        assert time.monotonic() < deadline, client.stats()
        time.sleep(0.01)
    offset = 0.0
    track(client)
    assert client.flush(5)
    """
    ended = run(CLOCK + code, "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert len(numbers(server)) == 30


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_a_flush_and_an_exit_keep_their_deadlines_through_a_jump(silent_url, run, jump):
    code = f"""\
    import threading
    client = Windback(shutdown_timeout=1)
    client._engine.connections.transport()
    track(client)

    def leap():
        global offset
        offset = {jump}

    threading.Timer(0.2, leap).start()
    started_s = time.monotonic()
    result = client.flush(0.6)
    assert 0.5 <= time.monotonic() - started_s <= 0.6 + {SLACK_S}, time.monotonic() - started_s
    assert result.pending == 10
    """
    ended = run(CLOCK + code, "-W", "error", url=silent_url, timed=True)
    assert (ended.status, ended.err) == (0, "10 events were not delivered before the process ended\n")
    assert ended.took_s <= 1.0 + SLACK_S


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_a_backoff_does_not_wait_for_the_wall_clock(server, run, jump):
    server.faults([{"status": 503, "times": 2}])
    code = f"""\
    client = Windback(flush_interval=0.01)
    track(client)
    while not client.stats().requests:
        time.sleep(0.001)
    offset = {jump}
    deadline = time.monotonic() + 10
    while client.stats().delivered < 10:
        assert time.monotonic() < deadline, client.stats()
        time.sleep(0.01)
    """
    ended = run(CLOCK + code, "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")


# -- too many threads, too many events -----------------------------------------------------------


@posix
@pytest.mark.parametrize("ends", ["flushes", "exits"])
def test_a_limit_of_threads_makes_the_caller_send(server, run, ends):
    """A real limit. It does not bind root, so the script becomes nobody once all its modules are loaded."""
    code = f"""\
    import os, resource, sys, threading
    import httpx, httpcore, tenacity, anyio, h11, logging, ssl, encodings.idna, socket
    import windback.http.transport, windback.delivery.workers.threads, email.utils
    from windback import Windback

    client = Windback(batch_size=10)
    client._engine.connections.transport()
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    try:
        threading.Thread(target=print).start()
    except RuntimeError:
        pass
    else:
        sys.exit("the limit does not bind")
    for n in range(95):
        assert client.track_event("login", "jane@example.com", {{"n": n}})
    assert client.stats().workers == 0
    if {ends!r} == "flushes":
        assert client.flush(10)
    """
    ended = run(code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(95))


def test_calls_stay_fast_while_nobody_answers_and_the_queue_is_full(silent_url):
    """As fast as calls of a client that only checks events, and none waits for the network."""
    threads = threading.active_count()
    client = windback.Windback("sk_test_1", base_url=silent_url, max_queue_size=1000)
    checking = windback.Windback(enabled=False)
    durations, baseline = [], []
    answers = set()
    for _ in range(20_000):
        started_s = time.perf_counter()
        accepted = client.track_event("login", "jane@example.com", {"plan": "pro"})
        between_s = time.perf_counter()
        checking.track_event("login", "jane@example.com", {"plan": "pro"})
        durations.append(between_s - started_s)
        baseline.append(time.perf_counter() - between_s)
        answers.add(accepted)
    stats = client.stats()
    assert answers == {True, False}
    assert stats.accepted == stats.delivered + stats.rejected + stats.dropped + stats.pending
    assert stats.accepted + stats.refused["queue_full"] == 20_000
    assert sorted(durations)[10_000] < 10 * sorted(baseline)[10_000]
    assert max(durations) < SLACK_S
    client.close(0)
    assert threading.active_count() < threads + 10
