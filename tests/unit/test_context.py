"""windback.context: who is bound, when an address is looked up, and what `track` makes of it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import anyio
import pytest

from windback import AsyncWindback, InvalidEventError, QueueFullError, Windback, context
from windback.context import bind, bound, clear
from windback.testing import capturing

JANE = "jane@example.com"
JOE = "joe@example.com"
OPTIONS = {"api_key": "sk_test_1", "base_url": "http://127.0.0.1:9/api/v1", "shutdown_timeout": 0.0}


@pytest.fixture
def events():
    with capturing() as events:
        yield events


@pytest.fixture(params=[Windback, AsyncWindback])
def track(request, events):
    """Track with either client, from sync code."""
    client = request.param(**OPTIONS)

    def track(*args, **named):
        answer = client.track(*args, **named)
        return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer

    track.client = client
    return track


def seen(events):
    return [(each.event, each.customer_email, each.properties) for each in events]


def refused(client):
    return dict(client.stats().refused)


def test_track_reads_what_is_bound_and_the_call_wins(track, events):
    with bound(customer_email=JANE, plan="free", region="eu"):
        assert track("export", {"rows": 3, "plan": "pro"}) is True
        assert track("login", timestamp="2026-01-01T00:00:00Z") is True
        assert bind(plan="team", seats=2) is True
        assert track("invite") is True
        with bound(customer_email=JOE, region="us"):
            assert track("inner") is True
        with bound(step=1):
            assert track("step") is True
        assert track("outer") is True
    assert seen(events) == [
        ("export", JANE, {"plan": "pro", "region": "eu", "rows": 3}),
        ("login", JANE, {"plan": "free", "region": "eu"}),
        ("invite", JANE, {"plan": "team", "region": "eu", "seats": 2}),
        ("inner", JOE, {"plan": "team", "region": "us", "seats": 2}),
        ("step", JANE, {"plan": "team", "region": "eu", "seats": 2, "step": 1}),
        ("outer", JANE, {"plan": "team", "region": "eu", "seats": 2}),
    ]
    assert events[1].timestamp == "2026-01-01T00:00:00Z"


def test_an_event_without_bound_properties_is_as_that_of_track_event(track, events):
    with bound(customer_email=JANE):
        track("login")
        track("login", {})
    assert seen(events) == [("login", JANE, {})] * 2


def test_without_a_customer_it_is_false_and_counted_and_nothing_raises(track, events, caplog):
    caplog.set_level(logging.DEBUG, "windback")
    assert track("outside") is False
    with bound(plan="pro"):
        assert track("anonymous") is False
    with bound(customer_email=lambda: None):
        assert track("nobody") is False
        assert track("nobody") is False
    with bound(customer_email=JANE):
        clear()
        assert track("logged_out") is False
        assert bind(customer_email=JOE) is True
        assert track("login") is True
    assert refused(track.client) == {"no_customer": 5}
    assert seen(events) == [("login", JOE, {})]
    assert track.client.stats().hook_errors == 0
    assert ["outside of a scope" in each for each in caplog.messages] == [True]


def test_bind_outside_of_a_scope_is_false_with_a_debug_line(caplog):
    caplog.set_level(logging.DEBUG, "windback")
    assert bind(customer_email=JANE) is False
    clear()
    assert [(each.levelno, "bind was called outside" in each.getMessage()) for each in caplog.records] == [
        (logging.DEBUG, True)
    ]


@pytest.mark.parametrize("open_scope", [bind, bound])
@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"customer_email": "jane"}, "customer_email"),
        ({"customer_email": 5}, "customer_email"),
        ({"customer_email": ""}, "customer_email"),
        ({"plan": object()}, "properties.plan"),
        ({"plan": float("nan")}, "properties.plan"),
        ({"plan": {"a": [1, {1, object()}]}}, "properties.plan.a"),
    ],
)
def test_bind_and_bound_check_at_the_call(open_scope, given, path):
    with bound(customer_email=JANE), pytest.raises(InvalidEventError) as raised:
        open_scope(**given)
    assert raised.value.path.startswith(path)


@pytest.mark.parametrize("properties", ["text", 5, [1]])
def test_properties_that_are_no_mapping_are_an_error(track, properties):
    for given in ({}, {"plan": "pro"}):
        with bound(customer_email=JANE, **given), pytest.raises(InvalidEventError, match="mapping"):
            track("login", properties)


def test_an_address_is_looked_up_once_at_the_first_event(track, events):
    resolver = mock.Mock(return_value=JANE)
    with bound(customer_email=resolver):
        assert resolver.call_count == 0
        track("a")
        with bound(n=1):
            track("b")
        track("c")
    assert resolver.call_count == 1
    assert [each.customer_email for each in events] == [JANE] * 3


def test_the_line_about_an_address_without_an_at_sign_says_that_and_not_the_address(track, caplog):
    with bound(customer_email=lambda: "jane.example"):
        assert not track("login")
    (line,) = caplog.messages
    assert "not a text without an @" in line
    assert "jane" not in line


@pytest.mark.parametrize("found", [RuntimeError("no database"), 42, "jane", b"jane@example.com"])
def test_a_resolver_that_fails_is_counted_and_logged_once(track, caplog, found):
    resolver = mock.Mock(side_effect=found if isinstance(found, Exception) else [found])
    with bound(customer_email=resolver):
        assert track("a") is False
        assert track("b") is False
    assert (resolver.call_count, track.client.stats().hook_errors) == (1, 1)
    assert refused(track.client) == {"no_customer": 2}
    (line,) = caplog.messages
    assert line.startswith("customer raised")
    assert "jane" not in line


def test_an_empty_address_is_that_of_a_user_without_one(track):
    with bound(customer_email=lambda: ""):
        assert track("a") is False
    assert track.client.stats().hook_errors == 0


def test_an_async_resolver_is_awaited_at_the_end_of_the_scope_for_the_sync_client(events):
    client = Windback(**OPTIONS)
    calls = []

    async def resolver():
        calls.append(1)
        await anyio.sleep(0)
        return JANE

    async def main():
        rows = [1]
        async with bound(customer_email=resolver, plan="pro"):
            assert client.track("a", {"rows": rows}) is True
            rows.append(2)
            with bound(n=1):
                assert client.track("b") is True
            with pytest.raises(InvalidEventError):
                client.track("c", {"bad": object()})
            assert (calls, events) == ([], [])
        assert client.track("outside") is False

    asyncio.run(main())
    assert seen(events) == [("a", JANE, {"plan": "pro", "rows": [1]}), ("b", JANE, {"plan": "pro", "n": 1})]
    assert calls == [1]


def test_an_async_resolver_is_awaited_by_the_async_client_immediately(events):
    client = AsyncWindback(**OPTIONS)

    async def resolver():
        await anyio.sleep(0.01)
        return JANE

    async def main():
        async with bound(customer_email=resolver):
            assert all(await asyncio.gather(client.track("a"), client.track("a"), client.track("a")))
            assert await client.track("b") is True
            assert len(events) == 4

    asyncio.run(main())
    assert {each.customer_email for each in events} == {JANE}


@pytest.mark.parametrize("how", ["raises", "returns nobody", "is slow", "is cancelled"])
def test_events_of_an_async_resolver_that_fails_are_counted(monkeypatch, events, how):
    monkeypatch.setattr(context, "RESOLVE_S", 0.05)
    client = Windback(**OPTIONS)

    async def resolver():
        if how == "raises":
            raise RuntimeError
        if how in ("is slow", "is cancelled"):
            await anyio.sleep(3600)

    async def main():
        async with bound(customer_email=resolver):
            assert client.track("a") is True
            assert client.track("b") is True
            if how == "is cancelled":
                asyncio.current_task().cancel()

    if how == "is cancelled":
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(main())
    else:
        asyncio.run(main())
    assert events == []
    assert refused(client) == {"no_customer": 2}
    assert client.stats().hook_errors == (1 if how in ("raises", "is slow") else 0)


def test_an_async_resolver_in_a_sync_with_is_an_error_that_reports_what_to_write(events, caplog):
    client = Windback(**OPTIONS)

    async def resolver():
        return JANE

    with bound(customer_email=resolver):
        assert client.track("a") is True
    assert events == []
    assert refused(client) == {"no_customer": 1}
    assert "async with" in caplog.text


def test_threads_that_track_at_the_same_time_look_the_address_up_once(events):
    client = Windback(**OPTIONS)
    barrier, calls = threading.Barrier(8), []

    def resolver():
        calls.append(1)
        barrier.wait(10)  # the others track meanwhile
        return JANE

    def work(n):
        if n:
            while not calls:
                pass
        answer = client.track("a", {"n": n})
        if n:
            barrier.wait(10)
        return answer

    with bound(customer_email=resolver), ThreadPoolExecutor(8) as pool:
        contexts = [contextvars.copy_context() for _ in range(8)]
        assert all(pool.map(lambda n: contexts[n].run(work, n), range(8)))
    assert len(calls) == 1
    assert sorted(each.properties["n"] for each in events) == list(range(8))
    assert {each.customer_email for each in events} == {JANE}


def test_tasks_do_not_see_each_others_scope(events):
    client = Windback(**OPTIONS)

    async def job(n):
        async with bound(customer_email=f"{n}@example.com", n=n):
            for _ in range(5):
                await asyncio.sleep(0)
                bind(again=n)
                client.track("a")

    async def main():
        await asyncio.gather(*(job(n) for n in range(50)))

    asyncio.run(main())
    assert len(events) == 250
    for each in events:
        assert each.customer_email == f"{each.properties['n']}@example.com"
        assert each.properties["again"] == each.properties["n"]


def test_before_send_sees_the_merged_event_also_after_a_wait(events):
    given = []

    def before_send(event):
        given.append((event["customer_email"], dict(event["properties"])))
        return {**event, "event": event["event"].upper()}

    client = Windback(**OPTIONS, before_send=before_send)

    async def main():
        async with bound(customer_email=resolver, plan="pro"):
            client.track("a", {"n": 1})

    async def resolver():
        return JANE

    asyncio.run(main())
    with bound(customer_email=JOE, plan="pro"):
        client.track("b")
    assert given == [(JANE, {"plan": "pro", "n": 1}), (JOE, {"plan": "pro"})]
    assert [each.event for each in events] == ["A", "B"]


def test_a_full_queue_is_as_full_for_track():
    client = Windback(**OPTIONS, max_queue_size=1, flush_interval=3600, overflow="raise")
    with bound(customer_email=lambda: JANE):
        assert client.track("a") is True
        with pytest.raises(QueueFullError):
            client.track("b")
    client.close(0)
    assert client.stats().accepted == 1
