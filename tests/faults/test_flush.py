"""flush tells the truth within its time, close comes once, and what comes after close is a clear error."""

from __future__ import annotations

import asyncio
import threading
import time

import anyio
import pytest
from deadlines import SLACK_S
from inside import engine_of, scheduler_of
from tracking import JANE, OPTIONS

from windback import AsyncWindback, ClosedError, Windback, WindbackError

pytestmark = pytest.mark.usefixtures("way")

#: What a call may take beyond its timeout.

CALLS = {
    "track_events": lambda client: client.track_events([{"event": "login", "customer_email": JANE}]),
    "create_churn_event": lambda client: client.create_churn_event(customer_email=JANE),
    "submit_cancel_flow": lambda client: client.submit_cancel_flow(JANE, "too_expensive"),
    "report_cancel_reason": lambda client: client.report_cancel_reason(JANE, "too_expensive"),
    "report_cancel_reason-id": lambda client: client.report_cancel_reason(JANE, "other", event_id="1"),
    "create_recovery_template": lambda client: client.create_recovery_template("other", "a", "b", "c"),
    "flush": lambda client: client.flush(),
    "with_options": lambda client: client.with_options(max_retries=0),
}


@pytest.fixture
def quick(monkeypatch):
    """Backoffs of no length; how long they are is not the matter here."""
    monkeypatch.setattr("windback.delivery.retry.backoff_s", lambda *_, **__: 0.0)


class Clock:
    def __enter__(self):
        self._started_s = time.monotonic()
        return self

    def __exit__(self, *_):
        self.took_s = time.monotonic() - self._started_s


def drop(client):
    """Close without waiting for a server that will never answer."""
    client.close(timeout=0)


# -- flush ---------------------------------------------------------------------------------------


def test_flush_is_true_only_if_the_server_has_everything(server):
    with Windback(**OPTIONS, base_url=server.url, batch_size=10, flush_interval=3600) as client:
        for n in range(1, 301):
            client.track_event("login", JANE, {"n": n})
            if n % 15 == 0:
                before = client.stats().delivered
                result = client.flush(10)
                assert result
                assert (result.pending, result.rejected, result.dropped, result.problem) == (0, 0, 0, None)
                assert server.counts().events == n == client.stats().delivered == before + result.delivered


def test_flush_of_nothing_is_true_immediately_and_starts_nothing(dead_url):
    with Windback(**OPTIONS, base_url=dead_url) as client, Clock() as clock:
        assert client.flush()
        assert client.flush(0)
        assert client.stats().workers == 0
    assert clock.took_s < SLACK_S


def test_flush_does_not_wait_for_what_is_tracked_after_it_began(held):
    """Else it would never end in an app that goes on."""
    client = Windback(**OPTIONS, base_url=held.url, batch_size=10, flush_interval=3600, max_in_flight=1)
    for _ in range(10):
        client.track_event("login", JANE)
    held.wait_until_holding(1)
    results = []
    thread = threading.Thread(target=lambda: results.append(client.flush(10)))
    thread.start()
    while not scheduler_of(client).flushes.are_urgent:
        time.sleep(0.001)
    for _ in range(10):
        client.track_event("login", JANE)
    held.answer(1)
    thread.join(10)
    (result,) = results
    assert result
    assert client.stats().pending == 10
    held.answer()
    assert client.close(10)


@pytest.mark.parametrize("timeout", [0, 0.3], ids=["zero", "short"])
@pytest.mark.parametrize("endpoint", ["silent_url", "dripping_url", "dead_url"])
def test_flush_obeys_its_timeout_and_counts_what_is_left(request, endpoint, timeout):
    client = Windback(**OPTIONS, base_url=request.getfixturevalue(endpoint), batch_size=10)
    engine_of(client).connections.transport()  # loads its modules, which takes longer on a cold start
    for _ in range(95):
        client.track_event("login", JANE)
    with Clock() as clock:
        result = client.flush(timeout)
    assert not result
    assert result.pending == 95
    assert clock.took_s <= timeout + SLACK_S
    with Clock() as clock:
        closed = client.close(timeout)
    assert not closed
    assert clock.took_s <= timeout + SLACK_S


def test_a_program_that_seeds_random_gets_the_numbers_it_expects(dead_url, run):
    code = """\
    import random
    import httpx  # loads rich, if it is there, which takes one
    from windback import Windback
    random.seed(1)
    state = random.getstate()
    client = Windback(max_retries=1)
    client.track_event("login", "jane@example.com")
    print(bool(client.flush(1)), client.stats().retries > 0, random.getstate() == state)
    """
    ended = run(code, url=dead_url, WINDBACK_SHUTDOWN_TIMEOUT="0.1")
    assert (ended.status, ended.out) == (0, ["False True True"]), ended.err


@pytest.mark.parametrize("worker", ["task", "thread"])
@pytest.mark.parametrize("endpoint", ["silent_url", "dripping_url", "dead_url"])
def test_async_flush_obeys_its_timeout_and_counts_what_is_left(request, endpoint, worker):
    async def main():
        client = AsyncWindback(
            **OPTIONS, base_url=request.getfixturevalue(endpoint), batch_size=10, worker=worker
        )
        await engine_of(client).loops.transport()
        engine_of(client).connections.transport()
        for _ in range(95):
            await client.track_event("login", JANE)
        with Clock() as clock:
            result = await client.flush(0.3)
        assert not result
        assert result.pending == 95
        assert clock.took_s <= 0.3 + SLACK_S
        with Clock() as clock:
            closed = await client.close(0.3)
        assert not closed
        assert clock.took_s <= 0.3 + SLACK_S
        if worker == "task":  # nothing of it runs on, and what was under way is counted
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert (client.stats().pending, client.stats().dropped) == (0, 95)

    with Clock() as clock:
        asyncio.run(main())
    assert clock.took_s <= 3 + SLACK_S


def test_a_timeout_that_is_too_short_loses_nothing(held):
    client = Windback(**OPTIONS, base_url=held.url, batch_size=10)
    for _ in range(95):
        client.track_event("login", JANE)
    assert client.flush(0.05).pending == 95
    held.answer(1)
    result = client.flush(0.3)
    assert (result.pending, result.delivered) in ((85, 10), (90, 5))
    held.answer()
    assert client.flush(10)
    assert client.stats().delivered == 95
    assert client.close()


def test_flush_without_a_timeout_gives_up_after_one_round_of_retries(quick, dead_url):
    client = Windback(**OPTIONS, base_url=dead_url, max_retries=3, max_in_flight=1)
    for _ in range(5):
        client.track_event("login", JANE)
    with Clock() as clock:
        result = client.flush()
    assert not result
    assert (result.pending, result.delivered, result.dropped) == (5, 0, 0)
    assert "could not connect" in result.problem
    assert client.stats().requests == 4
    assert clock.took_s < 5
    drop(client)


def test_async_flush_without_a_timeout_gives_up_after_one_round_of_retries(quick, dead_url):
    async def main():
        client = AsyncWindback(**OPTIONS, base_url=dead_url, max_retries=3, max_in_flight=1)
        for _ in range(5):
            await client.track_event("login", JANE)
        result = await client.flush()
        assert not result
        assert result.pending == 5
        assert "could not connect" in result.problem
        assert client.stats().requests == 4
        await client.close(0)

    asyncio.run(main())


def test_flush_is_false_when_the_key_is_refused_and_gives_the_reason(server):
    server.faults([{"path": "/track", "status": 401}])
    client = Windback(**OPTIONS, base_url=server.url)
    client.track_event("login", JANE)
    with Clock() as clock:
        result = client.flush(30)
    assert not result
    assert "401" in result.problem
    assert clock.took_s < 10
    drop(client)


def test_flush_counts_what_the_server_rejected_and_is_true(server):
    """It is settled, and nothing that the client could do would help."""
    server.faults([{"path": "/track", "event": "wrong", "status": 400}])
    with Windback(**OPTIONS, base_url=server.url, batch_size=10, max_in_flight=1) as client:
        for n in range(20):
            client.track_event("wrong" if n % 2 else "login", JANE)
        result = client.flush(10)
        assert result
        assert (result.delivered, result.rejected) == (10, 10)
        assert server.counts().events == 10


def test_flushes_of_many_threads_all_end(server):
    with Windback(**OPTIONS, base_url=server.url, batch_size=10) as client:
        results = []

        def work():
            for _ in range(20):
                client.track_event("login", JANE)
                results.append(client.flush(20))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 160
        assert all(results)
        assert server.counts().events == 160


def test_a_flush_hurries_a_worker_that_waits_out_a_backoff(server, monkeypatch, eventually):
    monkeypatch.setattr("windback.delivery.retry.backoff_s", lambda *_, **__: 3600.0)
    server.faults([{"path": "/track", "status": 500, "times": 1}])
    with Windback(**OPTIONS, base_url=server.url, flush_interval=0.001) as client:
        client.track_event("login", JANE)
        eventually(lambda: client.stats().requests == 1)
        assert client.flush(10)
        assert client.stats().retries == 1


# -- close ---------------------------------------------------------------------------------------


def test_close_is_idempotent(server):
    client = Windback(**OPTIONS, base_url=server.url)
    client.track_event("login", JANE)
    first = client.close()
    assert first
    assert first.delivered == 1
    assert client.close() == first
    with pytest.raises(ClosedError), client:
        client.flush()
    assert client.close(0) == first
    assert client.stats().delivered == server.counts().events == 1


def test_what_is_delivered_before_an_async_flush_can_sleep_counts(server, eventually, monkeypatch):
    client = AsyncWindback(**OPTIONS, base_url=server.url, worker="thread")
    waker = engine_of(client).loops.waker

    async def late():
        eventually(lambda: client.stats().delivered == 1)
        return await waker()

    async def main():
        await client.track_event("login", JANE)
        monkeypatch.setattr(engine_of(client).loops, "waker", late)
        flushed = await client.flush(20)
        assert (flushed.delivered, flushed.pending) == (1, 0)
        await client.close()

    asyncio.run(main())


def test_async_close_is_idempotent(server):
    client = AsyncWindback(**OPTIONS, base_url=server.url)

    async def main():
        await client.track_event("login", JANE)
        first = await client.close()
        assert first.delivered == 1
        assert await client.close() == first
        async with client:
            pass
        return first

    first = asyncio.run(main())

    async def later():
        return await client.close()

    assert asyncio.run(later()) == first
    assert client.stats().delivered == server.counts().events == 1


def test_close_from_many_threads_at_the_same_time(server):
    client = Windback(**OPTIONS, base_url=server.url, batch_size=10)
    for _ in range(95):
        client.track_event("login", JANE)
    together = threading.Barrier(8)
    results = []

    def close():
        together.wait()
        results.append(client.close(10))

    threads = [threading.Thread(target=close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(results)
    assert client.stats().delivered == server.counts().events == 95


def test_close_drops_what_is_left_and_counts_it(held):
    reports = []
    client = Windback(
        **OPTIONS, base_url=held.url, batch_size=10, max_in_flight=2, on_delivery=reports.append
    )
    for _ in range(95):
        client.track_event("login", JANE)
    held.wait_until_holding(2)
    result = client.close(0.1)
    assert not result
    assert (result.pending, result.delivered) == (95, 0)
    stats = client.stats()
    assert (stats.dropped_by_reason, stats.pending, stats.in_flight) == ({"closed": 75}, 20, 20)
    assert stats.accepted == 95
    assert sum(report.count for report in reports if report.reason == "closed") == 75


def test_what_was_under_way_at_the_deadline_is_settled_by_its_answer(held, eventually):
    client = Windback(**OPTIONS, base_url=held.url, batch_size=10, max_in_flight=2)
    for _ in range(95):
        client.track_event("login", JANE)
    held.wait_until_holding(2)
    client.close(0.1)
    held.answer()
    eventually(lambda: client.stats().pending == 0)
    stats = client.stats()
    assert (stats.delivered, stats.dropped) == (20, 75)
    eventually(lambda: client.stats().workers == 0)


@pytest.mark.parametrize("kind", ["memory", "journal"])
def test_after_a_close_that_gave_up_nothing_is_tried_again_or_logged(
    dead_url, tmp_path, eventually, caplog, kind
):
    """What waits out a backoff at the deadline: with ten retries that would go on for half a minute."""
    client = Windback(
        **OPTIONS,
        base_url=dead_url,
        batch_size=10,
        max_retries=10,
        journal=tmp_path / "journal" if kind == "journal" else None,
    )
    for _ in range(20):
        client.track_event("login", JANE)
    eventually(lambda: client.stats().requests >= 2)
    under_way = client.stats().in_flight // 10
    assert not client.close(0)
    at_close = client.stats().requests
    eventually(lambda: client.stats().workers == 0, 5)
    stats = client.stats()
    assert stats.requests <= at_close + under_way
    left = 20 if kind == "journal" else 0
    assert (stats.pending, stats.dropped, stats.in_flight) == (left, 20 - left, 0)
    assert caplog.messages == []


@pytest.mark.parametrize("call", CALLS)
def test_use_after_close_raises(dead_url, call):
    client = Windback(**OPTIONS, base_url=dead_url)
    copy = client.with_options(max_retries=0)
    client.close()
    for each in (client, copy):
        with pytest.raises(ClosedError, match="closed"):
            CALLS[call](each)
    assert client.stats().accepted == 0


@pytest.mark.parametrize("call", CALLS)
def test_use_after_async_close_raises(dead_url, call):
    async def main():
        client = AsyncWindback(**OPTIONS, base_url=dead_url)
        await client.close()
        with pytest.raises(ClosedError, match="closed"):
            await CALLS[call](client)

    asyncio.run(main())


# -- in a hook -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["flush", "close"])
def test_waiting_in_on_delivery_is_an_error_and_no_hang(server, call):
    errors = []

    def hook(_):
        try:
            getattr(client, call)()
        except WindbackError as error:
            errors.append(error)

    client = Windback(**OPTIONS, base_url=server.url, on_delivery=hook, flush_interval=0.001)
    client.track_event("login", JANE)
    while not errors:
        time.sleep(0.001)
    assert errors[0].code == "FLUSH_IN_HOOK"
    # An error is no close: the client goes on.
    assert client.track_event("login", JANE)
    assert client.close(10)
    assert server.counts().events == 2


def test_waiting_in_on_delivery_is_an_error_where_the_caller_sends(server, monkeypatch):
    """No thread can be started, so the hook runs in the very thread that flushes."""
    errors = []

    def hook(_):
        try:
            client.flush()
        except WindbackError as error:
            errors.append(error)

    client = Windback(**OPTIONS, base_url=server.url, on_delivery=hook)
    monkeypatch.setattr("_thread.start_new_thread", refuse)
    client.track_event("login", JANE)
    assert client.flush(10)
    assert [error.code for error in errors] == ["FLUSH_IN_HOOK"]
    assert client.close()


def refuse(*_):
    message = "can't start new thread"
    raise RuntimeError(message)


# -- cancelled -----------------------------------------------------------------------------------


def test_a_cancelled_plain_call_leaves_the_client_usable(held, server):
    async def main():
        client = AsyncWindback(**OPTIONS, base_url=held.url)
        with anyio.move_on_after(0.05) as scope:
            await client.create_churn_event(customer_email=JANE)
        assert scope.cancelled_caught
        held.answer()
        result = await client.track_events([{"event": "login", "customer_email": JANE}])
        assert result is not None
        assert await client.close()

    asyncio.run(main())
