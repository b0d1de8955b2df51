"""While something holds delivery up, `problem` says what and for how long, from the first answer on."""

from __future__ import annotations

import contextlib
import re
import threading

import anyio
import pytest
from tracking import JANE

from windback import AsyncWindback, Windback
from windback.relay import Relay

OPTIONS = {"api_key": "sk_test_1", "project_slug": "my-project", "shutdown_timeout": 0}
WORKERS = ["thread", "journal", "process", "relay"]

THROTTLES = {
    "429": {"status": 429, "retry_after": 200},
    "503 with Retry-After": {"status": 503, "retry_after": 200},
}


@contextlib.contextmanager
def opened(worker, tmp_path, base_url, **options):
    given = {**OPTIONS, "base_url": base_url, **options}
    root = tmp_path / "journal"
    if worker == "relay":
        relay = Relay(
            root, "sk_test_1", base_url=base_url, flush_interval=0.01, **options, shutdown_timeout=0
        )
        thread = threading.Thread(target=relay.run)
        thread.start()
        client = Windback(**given, worker=None, journal=root)
    elif worker == "journal":
        client = Windback(**given, worker="thread", journal=root)
    else:
        client = Windback(**given, worker=worker)
    try:
        yield client
    finally:
        client.close(0)
        if worker == "relay":
            relay.stop()
            thread.join()


def seconds_in(problem):
    """The seconds until the next try, as *problem* says; None if it says nothing of it."""
    found = re.search(r"; the next try is in (\d+) s$", problem or "")
    return None if found is None else int(found[1])


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("fault", list(THROTTLES.values()), ids=list(THROTTLES))
def test_a_server_that_asks_to_wait(server, tmp_path, eventually, worker, fault):
    server.faults([{"path": "/track", **fault}])
    with opened(worker, tmp_path, server.url) as client:
        client.track_event("login", JANE)
        eventually(lambda: seconds_in(client.stats().problem) is not None)
        stats = client.stats()
        assert stats.problem.startswith(f"{fault['status']}")
        assert 100 < seconds_in(stats.problem) <= 200
        result = client.flush(0.3)
        assert result.problem.startswith(f"{fault['status']}")
        assert 100 < seconds_in(result.problem) <= 200
        eventually(lambda: seconds_in(client.stats().problem) < seconds_in(stats.problem))
        assert server.counts().requests == 1


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("status", [401, 402, 403, 404, 407, 302])
def test_a_pause_until_somebody_fixes_it(server, tmp_path, eventually, worker, status):
    server.faults([{"path": "/track", "status": status}])
    with opened(worker, tmp_path, server.url) as client:
        client.track_event("login", JANE)
        eventually(lambda: seconds_in(client.stats().problem) is not None)
        assert 200 < seconds_in(client.stats().problem) <= 300


@pytest.mark.parametrize("worker", WORKERS)
def test_an_outage(dead_url, tmp_path, eventually, worker):
    with opened(worker, tmp_path, dead_url, max_retries=0) as client:
        client.track_event("login", JANE)
        eventually(lambda: seconds_in(client.stats().problem) is not None)
        problem = client.stats().problem
        assert problem.startswith("could not connect")
        assert 0 < seconds_in(problem) <= 60


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize(
    "fault", [{"status": 500}, {"status": 429, "retry_after": 0.01}], ids=lambda f: f["status"]
)
def test_it_is_over_with_the_next_success(server, tmp_path, eventually, worker, fault):
    server.faults([{"path": "/track", **fault, "times": 2}])
    with opened(worker, tmp_path, server.url) as client:
        client.track_event("login", JANE)
        assert client.flush(30)
        eventually(lambda: client.stats().problem is None)


@pytest.mark.parametrize("worker", WORKERS)
def test_tries_that_go_on_are_named_before_the_last_of_them(server, tmp_path, eventually, worker):
    server.faults([{"path": "/track", "status": 500}])
    with opened(worker, tmp_path, server.url, max_retries=50) as client:
        client.track_event("login", JANE)
        eventually(lambda: re.match("500.*; trying again$", client.stats().problem or ""))


@pytest.mark.parametrize("worker", ["thread", "journal", "process"])
def test_a_flush_without_a_timeout_waits_for_a_server_that_asks_for_little(server, tmp_path, worker):
    """Being asked to slow down is named, and is no reason to give up."""
    server.faults([{"path": "/track", "status": 429, "retry_after": 1, "times": 2}])
    with opened(worker, tmp_path, server.url) as client:
        client.track_event("login", JANE)
        assert client.flush()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("worker", ["task", "thread"])
def test_an_async_client(server, backend, worker):
    async def main():
        client = AsyncWindback(**OPTIONS, base_url=server.url, worker=worker)
        await client.track_event("login", JANE)
        result = await client.flush(1)
        while not client.stats().requests:
            result = await client.flush(1)
        assert result.problem.startswith("429")
        assert 100 < seconds_in(result.problem) <= 200
        assert 100 < seconds_in(client.stats().problem) <= 200
        await client.close(0)

    server.faults([{"path": "/track", **THROTTLES["429"]}])
    anyio.run(main, backend=backend)
