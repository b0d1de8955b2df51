"""track_event after close() returns False and is counted; calls that need an answer raise ClosedError."""

from __future__ import annotations

import logging
import sys
import threading
import time

import anyio
import pytest
from inside import scheduler_of
from tracking import JANE, adds_up

from windback import AsyncWindback, ClosedError, Windback

OPTIONS = {"api_key": "sk_test_1", "project_slug": "my-project"}
SYNC = ["thread", "journal", "process", "relay"]
ASYNC = ["task", "thread", "process"]


def options(kind, tmp_path):
    if kind == "journal":
        return {**OPTIONS, "worker": "thread", "journal": tmp_path / "journal"}
    if kind in ("process", "relay"):
        worker = "process" if kind == "process" else None
        return {**OPTIONS, "worker": worker, "journal": tmp_path / "journal"}
    return {**OPTIONS, "worker": kind}


def lines(caplog):
    return [each for each in caplog.records if "after this client was closed" in each.getMessage()]


@pytest.mark.parametrize("kind", SYNC)
@pytest.mark.parametrize("overflow", ["drop_newest", "block", "raise"])
def test_it_returns_false_and_counts_and_reports_it_once(server, tmp_path, caplog, kind, overflow):
    client = Windback(**options(kind, tmp_path), base_url=server.url, overflow=overflow)
    copy = client.with_options(max_retries=0)
    assert client.track_event("login", JANE) is True
    client.close(0 if kind == "relay" else 20)
    for each in (client, copy, client):
        assert each.track_event("login", JANE) is False
    stats = client.stats()
    assert (stats.accepted, dict(stats.refused)) == (1, {"closed": 3})
    assert adds_up(stats)
    assert [each.levelno for each in lines(caplog)] == [logging.WARNING]
    for call in (client.flush, client.get_recovery_stats, lambda: client.track_events([])):
        with pytest.raises(ClosedError, match="closed"):
            call()


@pytest.mark.parametrize("kind", ASYNC)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_async_client_does_the_same(server, tmp_path, caplog, kind, backend):
    async def main():
        client = AsyncWindback(**options(kind, tmp_path), base_url=server.url)
        assert await client.track_event("login", JANE) is True
        await client.close(20)
        for _ in range(3):
            assert await client.track_event("login", JANE) is False
        stats = client.stats()
        assert (stats.accepted, dict(stats.refused)) == (1, {"closed": 3})
        with pytest.raises(ClosedError, match="closed"):
            await client.flush()
        with pytest.raises(ClosedError, match="closed"):
            await client.get_recovery_stats()

    anyio.run(main, backend=backend)
    assert len(lines(caplog)) == 1


def test_drop_oldest_makes_no_room_in_a_closed_client(server):
    client = Windback(**OPTIONS, base_url=server.url, overflow="drop_oldest")
    client.close()
    assert client.track_event("login", JANE) is False
    assert dict(client.stats().refused) == {"closed": 1}


def test_a_waiting_caller_gets_false_when_the_client_is_closed(held):
    client = Windback(
        **OPTIONS, base_url=held.url, batch_size=5, max_queue_size=5, max_in_flight=1, overflow="block",
        block_timeout=3600,
    )  # fmt: skip
    for _ in range(5):
        client.track_event("login", JANE)
    held.wait_until_holding(1)
    for _ in range(5):
        client.track_event("login", JANE)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(client.track_event("login", JANE)))
    thread.start()
    while not scheduler_of(client).parking.callers:
        time.sleep(0.001)
    client.close(0.1)
    thread.join(10)
    assert answers == [False]
    assert client.stats().accepted == 10
    assert dict(client.stats().refused) == {"closed": 1}


def test_a_disabled_client_goes_on_to_count_disabled(dead_url, caplog):
    client = Windback(enabled=False, base_url=dead_url)
    client.close()
    assert client.track_event("login", JANE) is False
    assert dict(client.stats().refused) == {"disabled": 1}
    assert lines(caplog) == []


def test_a_web_application_that_closes_early_answers_all_its_requests(server, run):
    """A documented lifespan closes the client at shutdown, while requests still run."""
    code = """\
    import asyncio, logging
    from windback import AsyncWindback

    async def main():
        client = AsyncWindback()
        closed = asyncio.Event()

        async def request(n):
            if n >= 5:
                await closed.wait()
            return await client.track_event("login", "jane@example.com", {"n": n})

        requests = [asyncio.create_task(request(n)) for n in range(10)]
        await asyncio.sleep(0)
        await client.close(20)
        closed.set()
        print(await asyncio.gather(*requests))
        print(dict(client.stats().refused))

    asyncio.run(main())
    """
    ended = run(code, url=server.url)
    assert (ended.status, ended.out) == (0, [str([True] * 5 + [False] * 5), "{'closed': 5}"])
    assert ended.err.count("after this client was closed") == 1
    assert server.counts().events == 5


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "block"])
def test_what_threads_track_while_the_client_is_closed_is_counted(overflow):
    """The end takes what waits out of the queue while callers append, and with drop_oldest pop, too."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            client = Windback(
                **OPTIONS,
                base_url="http://127.0.0.1:9",
                overflow=overflow,
                max_queue_size=50 if overflow == "drop_oldest" else 100_000,
                shutdown_timeout=0,
            )
            accepted = track_until_refused(client)
            stats = client.stats()
            assert stats.accepted == accepted
            assert adds_up(stats)
    finally:
        sys.setswitchinterval(before_s)


def track_until_refused(client):
    """Track in four threads while the client is closed; return how many calls returned True."""
    counts = [0] * 4
    begun = threading.Barrier(5)

    def track(thread):
        begun.wait()
        while client.track_event("login", JANE):
            counts[thread] += 1
            if not counts[thread] % 10:
                time.sleep(0)

    threads = [threading.Thread(target=track, args=(thread,)) for thread in range(4)]
    for each in threads:
        each.start()
    begun.wait()
    time.sleep(0.001)
    client.close(0)
    for each in threads:
        each.join()
    return sum(counts)
