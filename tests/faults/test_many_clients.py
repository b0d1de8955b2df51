"""Clients that nobody refers to any more deliver what they accepted, and go."""

from __future__ import annotations

import pytest
from calls import ending_faults
from tracking import numbers

TOOLS = """\
import asyncio, gc, os, sys, tempfile, threading, time
from pathlib import Path
from windback import AsyncWindback, Windback
from windback.process import lifecycle

def make(kind, worker, **options):
    if worker == "journal":
        return kind(worker="thread", journal=tempfile.mkdtemp(), **options)
    return kind(worker=worker, **options)

def eventually(check, what):
    deadline_s = time.monotonic() + 25
    while not check():
        assert time.monotonic() < deadline_s, what()
        time.sleep(0.01)

def threads():
    return len(os.listdir("/proc/self/task"))

def sockets():
    links = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(each))
        except OSError:
            pass
    return sum(link.startswith("socket:") for link in links)

"""
MANY = "clients are open in this process"


@pytest.mark.parametrize(("worker", "count"), [("thread", 60), ("journal", 30), ("process", 4)])
def test_a_client_in_each_view_leaves_nothing(server, run, eventually, worker, count):
    # Nothing is answered until each view is over, so that all clients are open together.
    server.faults([{"path": "/track", "latency": 50}])
    code = f"""
before = threads(), sockets()

def view(n):
    assert make(Windback, {worker!r}).track_event("login", "jane@example.com", {{"n": n}})

for n in range({count}):
    view(n)
{ending_faults(server.port)}
eventually(lambda: not lifecycle.engines(), lambda: lifecycle.engines())
eventually(lambda: (threads(), sockets()) <= before, lambda: (threads(), sockets(), before))
print("gone")
"""
    ended = run(TOOLS + code, "-X", "dev", url=server.url, within_s=60)
    assert (ended.status, ended.out) == (0, ["gone"]), ended.err
    assert [MANY in line for line in ended.err.splitlines()] == [True] * (count >= 20)
    eventually(lambda: numbers(server) == list(range(count)))  # a sender process may still be at it


@pytest.mark.parametrize("worker", ["task", "thread"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_client_in_each_view_leaves_nothing(server, run, worker, backend):
    code = f"""
import anyio

async def view(n):
    client = AsyncWindback(worker={worker!r})
    assert await client.track_event("login", "jane@example.com", {{"n": n}})

async def main():
    await view(0)
    while lifecycle.engines():
        await anyio.sleep(0.01)
    before = threads(), sockets()
    for n in range(1, 30):
        await view(n)
    with anyio.fail_after(25):
        while lifecycle.engines() or sockets() > before[1] or threads() > before[0]:
            await anyio.sleep(0.01)
    if {backend!r} == "asyncio":
        with anyio.fail_after(25):  # tasks that closed the last connections have a few steps left
            while len(asyncio.all_tasks()) > 1:
                await anyio.sleep(0.01)
    print("gone")

anyio.run(main, backend={backend!r})
"""
    ended = run(TOOLS + code, "-X", "dev", url=server.url, within_s=60)
    assert (ended.status, ended.out) == (0, ["gone"]), ended.err
    assert numbers(server) == list(range(30))


def test_what_a_dropped_client_accepted_outlives_an_outage(server, run):
    server.faults([{"status": 503, "times": 3}])
    code = """
def view():
    client = Windback(flush_interval=3600)
    for n in range(250):
        assert client.track_event("login", "jane@example.com", {"n": n})

view()
eventually(lambda: not lifecycle.engines(), lambda: lifecycle.engines()[0].stats())
"""
    ended = run(TOOLS + code, url=server.url, within_s=60)
    assert ended.status == 0, ended.err
    assert numbers(server) == list(range(250))


@pytest.mark.parametrize("kind", ["Windback", "AsyncWindback"])
def test_the_end_of_the_process_delivers_what_dropped_clients_hold(server, run, kind):
    code = f"""
async def view(n):
    client = {kind}(flush_interval=3600, shutdown_timeout=25)
    accepted = client.track_event("login", "jane@example.com", {{"n": n}})
    assert accepted if {kind} is Windback else await accepted

async def main():
    for n in range(5):
        await view(n)

asyncio.run(main())
"""
    ended = run(TOOLS + code, "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(5))


def test_a_client_of_which_a_copy_a_method_or_a_listing_is_left_stays(server, run):
    code = """
import gc
kept = [
    Windback().with_options(max_retries=0).track_event,
    Windback().track_event,
    Windback(project_slug="p").list_churn_events(),
]
gc.collect()
time.sleep(0.3)
assert len(lifecycle.engines()) == 3
assert kept[0]("login", "jane@example.com", {"n": 0}) and kept[1]("login", "jane@example.com", {"n": 1})
assert list(kept.pop()) == []
eventually(lambda: len(lifecycle.engines()) == 2, lifecycle.engines)
kept.clear()
eventually(lambda: len(lifecycle.engines()) == 0, lifecycle.engines)
"""
    ended = run(TOOLS + code, "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == [0, 1]


def test_a_client_in_a_cycle_is_dropped_while_a_lock_of_another_is_held(server, run):
    """The collector calls the finalizer in whichever frame allocates; no lock may be waited for there."""
    code = """
class View:
    def __init__(self, n):
        self.me = self
        self.client = Windback()
        self.client.track_event("login", "jane@example.com", {"n": n})

gc.disable()
for n in range(5):
    View(n)
other = Windback()
other.track_event("login", "jane@example.com", {"n": 5})
with other._engine.scheduler.lock:
    gc.collect()
eventually(lambda: len(lifecycle.engines()) == 1, lifecycle.engines)
"""
    ended = run(TOOLS + code, "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == [0, 1, 2, 3, 4, 5]


def test_a_forked_child_drops_its_own(server, run):
    code = """
client = Windback()
client.track_event("login", "jane@example.com", {"n": 0})
client.flush()
dropped = [Windback() for _ in range(3)]
dropped.clear()
eventually(lambda: len(lifecycle.engines()) == 1, lifecycle.engines)
pid = os.fork()
if pid == 0:
    client.track_event("login", "jane@example.com", {"n": 1})
    del client
    eventually(lambda: not lifecycle.engines(), lifecycle.engines)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == [0, 1]


def test_twenty_clients_are_one_warning_and_fewer_none(dead_url, run):
    code = """
clients = [Windback() for _ in range(19)]
print(len(lifecycle.engines()), flush=True)
clients[0].close()
clients += [Windback() for _ in range(30)]
"""
    ended = run(TOOLS + code, url=dead_url)
    assert (ended.status, ended.out) == (0, ["19"])
    (line,) = ended.err.splitlines()
    assert line.startswith("20 windback clients are open in this process")
    assert "make one at start-up" in line


def test_a_client_that_is_dropped_as_the_last_thing_of_all_logs_nothing(server, run):
    """What lives as long as the interpreter is finalized when the names of modules are None already."""
    code = """
client = lifecycle.kept = Windback(flush_interval=3600)
client.track_event("login", "jane@example.com", {"n": 0})
"""
    ended = run(TOOLS + code, "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == [0]


def test_an_exit_starts_no_more_threads_for_clients_that_were_dropped(server, run):
    """The exit delivers; a thread that starts while the interpreter goes down can crash it."""
    code = """
import _thread, atexit, threading, time

started = []
start = _thread.start_new_thread

def counting(function, *arguments):
    if at_exit:
        started.append(function)
    return start(function, *arguments)

def look():  # after the package's own exit handler
    time.sleep(0.3)
    print(len(started), flush=True)

at_exit = []
atexit.register(look)
from windback import Windback
Windback(shutdown_timeout=25)
atexit.register(at_exit.append, 1)  # before it
_thread.start_new_thread = counting
Windback(shutdown_timeout=25).track_event("login", "jane@example.com", {"n": 0})
"""
    ended = run(code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert int(ended.out[0]) <= 1  # a worker
    assert numbers(server) == [0]
