"""Under gevent and eventlet, patched before windback is imported or after: all arrives."""

from __future__ import annotations

import sys

import pytest
from tracking import numbers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="eventlet does not run there")

PATCH = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}
SPAWN = {
    "gevent": "gevent.joinall([gevent.spawn(track, 100 * i) for i in range(5)], raise_error=True)",
    "eventlet": "[each.wait() for each in [eventlet.spawn(track, 100 * i) for i in range(5)]]",
}
# httpcore loads trio where it is installed, and trio does not load under eventlet. Eventlet's own DNS,
# which no test needs, loads httpcore2 where it is installed, and does not load with that.
NO_TRIO = "import os, sys; sys.modules['trio'] = None; os.environ['EVENTLET_NO_GREENDNS'] = 'yes'"
# Both warn of modules that were loaded first, which is what is tried here.
QUIET = ("-W", "ignore")


def script(library, when, rest):
    return f"""
{NO_TRIO if library == "eventlet" else ""}
{PATCH[library] if when == "before the import" else ""}
import time
from windback import Windback
{PATCH[library] if when == "after the import" else ""}
client = Windback(batch_size=10, flush_interval=0.05, shutdown_timeout=10)
{PATCH[library] if when == "after the client was made" else ""}
import {library}

def track(start):
    for n in range(start, start + 95):
        assert client.track_event("login", "jane@example.com", {{"n": n}})

{rest}
"""


each_library = pytest.mark.parametrize("library", PATCH)
each_moment = pytest.mark.parametrize(
    "when", ["before the import", "after the import", "after the client was made"]
)
MANY = [100 * i + n for i in range(5) for n in range(95)]


@each_moment
@each_library
def test_the_exit_delivers(server, run, library, when):
    ended = run(script(library, when, "track(0)"), *QUIET, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(95))


@each_moment
@each_library
def test_flush_delivers_what_many_greenlets_track(server, run, library, when):
    rest = f"""
{SPAWN[library]}
result = client.flush(10)
assert result, (result, client.stats())
assert client.stats().delivered == 475
"""
    ended = run(script(library, when, rest), *QUIET, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == MANY


@each_moment
@each_library
def test_a_worker_delivers_while_greenlets_go_on(server, run, library, when):
    rest = f"""
{SPAWN[library]}
deadline = time.monotonic() + 15
while client.stats().delivered < 475:
    assert time.monotonic() < deadline, client.stats()
    time.sleep(0.01)
"""
    ended = run(script(library, when, rest), *QUIET, url=server.url)
    assert (ended.status, ended.err) == (0, "")


@each_library
def test_a_flush_lets_other_greenlets_run(held, run, library):
    rest = f"""
import threading
ticks = []

def tick():
    while True:
        ticks.append(1)
        time.sleep(0.01)

{library}.spawn(tick)
track(0)
deadline = time.monotonic() + 20
while not client.stats().in_flight and time.monotonic() < deadline:
    client.flush(0.05)  # loads httpx, which holds up all greenlets
ticks.clear()
assert not client.flush(1)
assert len(ticks) > 20, len(ticks)
client.close(0)
"""
    ended = run(script(library, "before the import", rest), *QUIET, url=held.url)
    assert (ended.status, ended.err) == (0, "")


@each_library
def test_a_caller_who_waits_for_room_lets_other_greenlets_run(server, run, library):
    rest = f"""
small = Windback(max_queue_size=10, overflow="block", block_timeout=10, flush_interval=0.01)
client = small
{SPAWN[library]}
assert small.flush(10)
assert small.stats().delivered == 475, small.stats()
"""
    ended = run(script(library, "before the import", rest), *QUIET, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == MANY


def test_a_fork_of_gevents(server, run):
    rest = """
import os
track(0)
pid = os.fork()
if pid == 0:
    track(1000)
    assert client.flush(10)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    ended = run(script("gevent", "before the import", rest), *QUIET, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == [*range(95), *range(1000, 1095)]
