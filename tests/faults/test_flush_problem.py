"""A flush that leaves something says why: the last failure, or that time ran out first."""

from __future__ import annotations

import anyio
import pytest
from tracking import JANE

from windback import AsyncWindback, Windback

pytestmark = pytest.mark.usefixtures("way")

OPTIONS = {"api_key": "sk_test_1", "project_slug": "my-project", "shutdown_timeout": 0}
WORKERS = ["thread", "journal", "process"]


@pytest.fixture
def make(tmp_path):
    def make(worker, **options):
        given = {**OPTIONS, **options}
        if worker == "journal":
            return Windback(**given, worker="thread", journal=tmp_path / "journal")
        return Windback(**given, worker=worker)

    return make


def flushed(client, timeout):
    """Flush with a timeout that is long enough for one try, however busy the machine is."""
    client.track_event("login", JANE)
    result = client.flush(timeout)
    while not client.stats().requests and timeout > 1:
        result = client.flush(timeout)
    assert not result
    return result


@pytest.mark.parametrize("worker", WORKERS)
def test_no_server(dead_url, make, worker):
    client = make(worker, base_url=dead_url)
    assert "connect" in flushed(client, 2).problem
    client.close(0)


@pytest.mark.parametrize("worker", WORKERS)
def test_a_server_that_fails(server, make, worker):
    server.faults([{"path": "/track", "status": 503}])
    client = make(worker, base_url=server.url)
    assert "503" in flushed(client, 2).problem
    client.close(0)


@pytest.mark.parametrize("worker", WORKERS)
def test_a_server_that_sends_nothing(silent_url, make, worker):
    client = make(worker, base_url=silent_url, timeout=60)
    assert flushed(client, 0.3).problem == "time ran out before the first answer"
    client.close(0)


def test_a_server_that_is_slow(held, make):
    client = make("thread", base_url=held.url, batch_size=1, max_in_flight=1)
    for _ in range(5):
        client.track_event("login", JANE)
    held.answer(2)
    held.wait_until_seen(3)
    result = client.flush(0.3)
    while not result.delivered and not result.problem.startswith("time ran out before"):
        result = client.flush(0.3)
    assert result.pending == 3
    assert result.problem.startswith("time ran out")
    client.close(0)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_client(dead_url, backend):
    async def main():
        client = AsyncWindback(**OPTIONS, base_url=dead_url)
        await client.track_event("login", JANE)
        result = await client.flush(2)
        while not client.stats().requests:
            result = await client.flush(2)
        assert "connect" in result.problem
        await client.close(0)

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("worker", WORKERS)
def test_a_failure_that_is_over_is_not_named(server, make, worker):
    server.faults([{"path": "/track", "status": 503, "times": 1}])
    client = make(worker, base_url=server.url)
    client.track_event("login", JANE)
    result = client.flush(30)
    assert (bool(result), result.problem) == (True, None)
    client.close(0)
