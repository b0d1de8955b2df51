"""Libraries that freeze time in tests: deadlines go on, and events carry the frozen time."""

from __future__ import annotations

import pytest

FREEZEGUN = """\
import freezegun

def freeze():
    return freezegun.freeze_time({}, auto_tick_seconds={})
"""
FREEZERS = {
    "freezegun": ("2030-01-02", FREEZEGUN.format("'2030-01-02'", 0)),
    # The clock of event loops is then behind any timer that they have.
    "freezegun in the past": ("1970-01-02", FREEZEGUN.format("'1970-01-02'", 0)),
    "freezegun that ticks": ("2030-01-02", FREEZEGUN.format("'2030-01-02'", 0.01)),
    "time-machine": (
        "2030-01-02",
        "import time_machine\nfreeze = lambda: time_machine.travel('2030-01-02', tick=False)\n",
    ),
    "mock": (
        "2001-09-09",
        """\
import contextlib
from unittest import mock

@contextlib.contextmanager
def freeze():
    with mock.patch("time.monotonic", return_value=1.0), mock.patch("time.perf_counter", return_value=1.0):
        with mock.patch("windback.event.encode.wall_clock", return_value=1e9):
            yield

""",
    ),
}
TOOLS = """\
import sys, tempfile, threading
from windback import AsyncWindback, Windback, WindbackTimeoutError

def make(worker, **options):
    if worker == "journal":
        return Windback(worker="thread", journal=tempfile.mkdtemp(), **options)
    if worker == "relay":
        return Windback(worker=None, journal=tempfile.mkdtemp(), **options)
    return Windback(worker=worker, **options)

def track(client, n=0):
    return client.track_event("login", "jane@example.com", {"n": n})

"""


@pytest.fixture(params=FREEZERS)
def when(request):
    """The day on which time is frozen."""
    return FREEZERS[request.param][0]


@pytest.fixture
def freezer(request, when):
    """The beginning of a script, with freeze()."""
    del when
    return FREEZERS[request.node.callspec.params["when"]][1] + TOOLS


@pytest.mark.parametrize("worker", ["thread", "journal", "process", "relay"])
def test_flush_and_close_keep_their_deadline_while_the_server_is_down(dead_url, run, freezer, worker):
    code = f"""\
client = make({worker!r}, shutdown_timeout=0.5)
with freeze():
    track(client)
    result = client.flush(0.5)
    print(bool(result), result.pending)
    client.close(0.5)
    print("closed")
"""
    ended = run(freezer + code, url=dead_url)
    assert (ended.status, ended.out) == (0, ["False 1", "closed"]), ended.err


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_events_are_delivered_and_stamped_with_the_frozen_time(server, run, freezer, when, worker):
    code = f"""\
client = make({worker!r}, flush_interval=0.1)
track(client, 0)
client.flush(20)
with freeze():
    track(client, 1)
    print(bool(client.flush(20)))
    track(client, 2)  # nobody flushes this one, and the interval passes
    while client.stats().pending:
        threading.Event().wait(0.01)
track(client, 3)
print(bool(client.close(20)))
"""
    ended = run(freezer + code, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["True", "True"], "")
    stamps = {each.properties["n"]: each.timestamp for each in server.events()}
    assert sorted(stamps) == [0, 1, 2, 3]
    assert [stamps[n].startswith(when) for n in range(4)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("worker", "backend"),
    [("task", "asyncio"), ("task", "trio"), ("thread", "asyncio"), ("process", "asyncio")],
)
def test_the_async_client_keeps_its_deadlines(dead_url, run, freezer, worker, backend):
    code = f"""\
import anyio
async def main():
    client = AsyncWindback(worker={worker!r}, shutdown_timeout=0.5)
    with freeze():
        await track(client)
        result = await client.flush(0.5)
        print(bool(result), result.pending)
        await client.close(0.5)
        print("closed")
anyio.run(main, backend={backend!r})
"""
    ended = run(freezer + code, url=dead_url)
    assert (ended.status, ended.out) == (0, ["False 1", "closed"]), ended.err


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_async_client_delivers_in_frozen_time_and_after_it(server, run, freezer, backend):
    code = f"""\
import anyio
async def main():
    client = AsyncWindback(flush_interval=0.1)
    await track(client, 0)
    with freeze():
        await track(client, 1)
        print(bool(await client.flush(20)))
        await track(client, 2)  # its worker parks with a timer while time is frozen
        await anyio.lowlevel.checkpoint()
    await track(client, 3)
    while client.stats().pending:
        await anyio.sleep(0.01)
    print(bool(await client.close(20)))
anyio.run(main, backend={backend!r})
"""
    ended = run(freezer + code, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["True", "True"], "")
    assert sorted(each.properties["n"] for each in server.events()) == [0, 1, 2, 3]


def test_a_plain_call_times_out_at_a_silent_server(silent_url, run, freezer):
    code = """\
import anyio
async def main():
    client = AsyncWindback(timeout=0.5, max_retries=0)
    try:
        await client.get_recovery_stats()
    except WindbackTimeoutError:
        print("async")
with freeze():
    try:
        Windback(timeout=0.5, max_retries=0).get_recovery_stats()
    except WindbackTimeoutError:
        print("sync")
    anyio.run(main)
"""
    ended = run(freezer + code, url=silent_url)
    assert (ended.status, ended.out) == (0, ["sync", "async"]), ended.err


def test_a_full_queue_blocks_for_its_timeout_only(dead_url, run, freezer):
    code = """\
client = make("thread", overflow="block", block_timeout=0.2, max_queue_size=1, shutdown_timeout=0)
with freeze():
    while track(client):
        pass
print("refused")
"""
    ended = run(freezer + code, url=dead_url)
    assert (ended.status, ended.out) == (0, ["refused"]), ended.err


def test_a_program_that_ends_in_frozen_time_ends(dead_url, run, freezer):
    code = """\
freezing = freeze()
getattr(freezing, "start", freezing.__enter__)()
client = make("thread", shutdown_timeout=0.5)
track(client)
print("tracked")
"""
    ended = run(freezer + code, url=dead_url)
    assert (ended.status, ended.out) == (0, ["tracked"]), ended.err


def test_windback_may_be_imported_while_time_is_frozen(dead_url, run):
    code = """\
import freezegun
with freezegun.freeze_time("2030-01-02"):
    from windback import Windback
    client = Windback(shutdown_timeout=0)
    client.track_event("login", "jane@example.com")
    print(bool(client.flush(0.5)))
print(bool(client.flush(0.5)))
"""
    ended = run(code, url=dead_url)
    assert (ended.status, ended.out) == (0, ["False", "False"]), ended.err
