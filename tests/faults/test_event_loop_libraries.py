"""Event loops that others run: uvloop's, a notebook's, pytest-asyncio's; loops that stop; cancellation."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio
from tracking import JANE, OPTIONS, adds_up, numbers

import windback
from windback import AsyncWindback

each_worker = pytest.mark.parametrize("worker", ["task", "thread"])
posix = pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not run there")


async def track(client, numbers):
    for n in numbers:
        assert await client.track_event("login", JANE, {"n": n})


# -- uvloop --------------------------------------------------------------------------------------


CANCEL_TASKS = """\
    import asyncio

    def cancel_tasks(loop):
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.run_until_complete(loop.shutdown_asyncgens())

"""
UVLOOP = """\
    import uvloop
    from windback import AsyncWindback

    async def main():
        {body}

    loop = uvloop.new_event_loop()
    assert loop.__class__.__module__.startswith("uvloop")
    asyncio.set_event_loop(loop)
    loop.run_until_complete(main())
    cancel_tasks(loop)
    loop.close()
"""
BODIES = {
    "async-with": """\
async with AsyncWindback(batch_size=10, worker={worker!r}) as client:
            for n in range(95):
                assert await client.track_event("login", "jane@example.com", {{"n": n}})
""",
    "flush": """\
client = AsyncWindback(batch_size=10, flush_interval=3600, worker={worker!r})
        for n in range(95):
            assert await client.track_event("login", "jane@example.com", {{"n": n}})
        assert await client.flush(10)
""",
    "left-behind": """\
client = AsyncWindback(batch_size=10, flush_interval=3600, worker={worker!r})
        for n in range(95):
            assert await client.track_event("login", "jane@example.com", {{"n": n}})
""",
}


@posix
@each_worker
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_uvloop(server, run, worker, body):
    ended = run(CANCEL_TASKS + UVLOOP.format(body=body.format(worker=worker)), "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(95))


@posix
@pytest.mark.parametrize("module", ["asyncio", "uvloop"])
def test_a_closing_that_is_cancelled_leaves_no_connection_open(server, run, module):
    """Whoever cancels all tasks of a loop may meet it at any of its steps."""
    server.faults([{"latency": 0.05}])
    code = f"""\
    import {module}
    from windback import AsyncWindback

    async def main(turns):
        client = AsyncWindback(batch_size=10, flush_interval=3600)
        for n in range(95):
            assert await client.track_event("login", "jane@example.com", {{"n": n}})
        assert await client.flush(10)
        closing = asyncio.ensure_future(client.close())
        for _ in range(turns):
            await asyncio.sleep(0)

    for turns in range(8):
        loop = {module}.new_event_loop()
        loop.run_until_complete(main(turns))
        cancel_tasks(loop)
        loop.close()
    """
    ended = run(CANCEL_TASKS + code, "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert len(numbers(server)) == 8 * 95


# -- loops that stop, and others in between ------------------------------------------------------


@each_worker
@pytest.mark.parametrize("cancels", [True, False], ids=["cancels-its-tasks", "just-closes"])
def test_a_loop_that_is_stopped_with_requests_under_way(server, run, worker, cancels):
    """What it leaves behind is sent at exit; a batch that the server has already is known by its key."""
    server.faults([{"latency": 0.3}])
    code = f"""\
    from windback import AsyncWindback

    client = AsyncWindback(batch_size=10, flush_interval=0.01, worker={worker!r}, shutdown_timeout=20)

    async def main():
        for n in range(95):
            assert await client.track_event("login", "jane@example.com", {{"n": n}})

    loop = asyncio.new_event_loop()
    loop.create_task(main())

    def stop_when_under_way():
        if client.stats().in_flight:
            loop.stop()
        else:
            loop.call_later(0.005, stop_when_under_way)

    loop.call_soon(stop_when_under_way)
    loop.run_forever()
    assert client.stats().pending
    if {cancels}:
        cancel_tasks(loop)
    loop.close()
    """
    # Who closes a loop over its tasks hears of that from asyncio, not from us.
    ended = run(CANCEL_TASKS + code, "-W", "ignore", url=server.url)
    said = [line for line in ended.err.splitlines() if "destroyed" not in line and "task: <Task" not in line]
    assert (ended.status, said if cancels else 0) == (0, [] if cancels else 0)
    assert numbers(server) == list(range(95))


@each_worker
def test_asyncio_and_trio_in_turn_with_one_client(server, worker):
    client = AsyncWindback(**OPTIONS, base_url=server.url, worker=worker, flush_interval=0.01)
    for turn in range(6):

        async def main(turn=turn):
            await track(client, range(10 * turn, 10 * turn + 10))
            if turn % 3 == 2:
                assert await client.flush(10)

        trio.run(main) if turn % 2 else asyncio.run(main())
    assert asyncio.run(client.close(10))
    assert client.stats().delivered == 60
    assert numbers(server) == list(range(60))


# -- cancelled at every await --------------------------------------------------------------------


class Counted:
    """Awaits a coroutine, and cancels the current task at its *at*-th suspension."""

    def __init__(self, coroutine, at):
        self._coroutine = coroutine
        self._at = at
        self.suspended = 0

    def __await__(self):
        steps = self._coroutine.__await__()
        try:
            future = next(steps)
            while True:
                self.suspended += 1
                if self.suspended == self._at:
                    asyncio.current_task().cancel()
                try:
                    sent = yield future
                except BaseException as error:  # noqa: BLE001 - it is for the coroutine
                    future = steps.throw(error)
                else:
                    future = steps.send(sent)
        except StopIteration as end:
            return end.value


def cancelled_at(at, coroutine):
    """Return a task's coroutine that tells whether it got to the end before its *at*-th suspension."""

    async def run():
        counted = Counted(coroutine, at)
        try:
            await counted
        except asyncio.CancelledError:
            return False
        return counted.suspended < at

    return run()


CALLS = {
    "flush": lambda client: client.flush(10),
    "close": lambda client: client.close(10),
    "track_events": lambda client: client.track_events([{"event": "direct", "customer_email": JANE}] * 3),
    "track_event": lambda client: client.track_event("login", JANE, {"n": 1000}),
    "plain": lambda client: client.create_churn_event(JANE),
}


# asyncio and anyio forget to close a connection that was cancelled just when it stood; no event is in it.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)
@each_worker
@pytest.mark.parametrize("name", CALLS)
def test_cancelled_at_any_await_it_loses_and_doubles_no_accepted_event(server, worker, name):
    async def main(at):
        client = AsyncWindback(
            **OPTIONS,
            base_url=server.url,
            worker=worker,
            batch_size=5,
            flush_interval=0.01 if name == "track_event" else 3600,
            max_queue_size=20,
            overflow="block",
            block_timeout=10,
        )
        await track(client, range(20))  # the queue is full now, so that the next event waits
        is_over = await asyncio.ensure_future(cancelled_at(at, CALLS[name](client)))
        assert adds_up(client.stats())
        if name != "close":
            assert await client.flush(10)
        assert await client.close(10)
        stats = client.stats()
        assert adds_up(stats)
        assert (stats.delivered, stats.pending, stats.dropped) == (stats.accepted, 0, 0)
        assert stats.accepted >= 20
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return is_over, stats.accepted

    at = 0
    is_over = False
    while not is_over:
        at += 1
        assert at < 60, "it is suspended again and again"
        server.reset()
        is_over, accepted = asyncio.run(main(at))
        gc.collect()  # what is forgotten shows here, and in no other test
        arrived = [each.properties["n"] for each in server.events() if each.event == "login"]
        assert sorted(arrived)[:20] == list(range(20)), at
        assert len(arrived) == len(set(arrived)) == accepted, at


# -- a notebook ----------------------------------------------------------------------------------

CELLS = """\
import asyncio, time
from windback import AsyncWindback, Windback
client = AsyncWindback(flush_interval=0.05)

await client.track_event("login", "jane@example.com", {"n": 0})

deadline = time.monotonic() + 10
while not client.stats().delivered and time.monotonic() < deadline: await asyncio.sleep(0.01)
assert client.stats().delivered == 1, client.stats()

for n in range(1, 10): await client.track_event("login", "jane@example.com", {"n": n})
assert await client.flush(10)

sync = Windback(flush_interval=3600)
assert sync.track_event("login", "jane@example.com", {"n": 10})

assert sync.flush(10)

late = AsyncWindback(flush_interval=3600)
await late.track_event("login", "jane@example.com", {"n": 11})
sync.track_event("login", "jane@example.com", {"n": 12})
"""


def test_a_notebook_delivers_between_cells_and_at_its_end(server, tmp_path, monkeypatch):
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(windback.__file__).resolve().parents[1]))
    monkeypatch.setenv("WINDBACK_API_KEY", "sk_test_1")
    monkeypatch.setenv("WINDBACK_BASE_URL", server.url)
    from jupyter_client.manager import KernelManager  # looks at the environment when it is loaded

    manager = KernelManager(kernel_name="python3")
    manager.kernel_spec.argv[0] = sys.executable
    manager.start_kernel()
    kernel = manager.client()
    kernel.start_channels()
    said = []

    def hear(message):
        if message["msg_type"] in ("stream", "error"):
            said.append(message["content"])

    try:
        kernel.wait_for_ready(timeout=40)
        for cell in CELLS.split("\n\n"):
            reply = kernel.execute_interactive(cell, timeout=30, output_hook=hear)
            assert reply["content"]["status"] == "ok", (cell, said)
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel()
    assert said == []
    assert numbers(server) == list(range(13))


# -- pytest-asyncio ------------------------------------------------------------------------------

SUITE = """\
import pytest, pytest_asyncio
from windback import AsyncWindback

@pytest_asyncio.fixture(scope={scope!r}, loop_scope={scope!r})
async def client():
    async with AsyncWindback(flush_interval=3600, worker={worker!r}) as client:
        yield client

@pytest.mark.asyncio(loop_scope={scope!r})
class TestClient:
    async def test_first(self, client):
        assert await client.track_event("login", "jane@example.com", {{"n": 1}})

    async def test_second(self, client):
        assert await client.track_event("login", "jane@example.com", {{"n": 2}})
        assert await client.flush(10)

    async def test_third(self, client):
        assert await client.track_event("login", "jane@example.com", {{"n": 3}})
"""


@each_worker
@pytest.mark.parametrize("scope", ["function", "class", "module", "session"])
def test_a_fixture_of_pytest_asyncio(server, tmp_path, scope, worker):
    (tmp_path / "test_app.py").write_text(
        textwrap.dedent(SUITE.format(scope=scope, worker=worker)), encoding="utf-8"
    )
    options = "-q -p no:cacheprovider -p pytest_asyncio.plugin -W error"
    options += " -o asyncio_default_fixture_loop_scope=function"
    if sys.version_info < (
        3,
        10,
    ):  # the pytest-asyncio there leaves a loop open behind each test, and says so
        options += " -W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options.split(), "-c", os.devnull, "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")},
            "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]),
            "WINDBACK_API_KEY": "sk_test_1",
            "WINDBACK_BASE_URL": server.url,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # other plugins take seconds to load
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"3 passed in", ended.stdout), ended.stdout
    assert numbers(server) == [1, 2, 3]
