"""The decorator for serverless handlers: a flush within the time that is left, whatever the handler does."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from types import SimpleNamespace
from unittest import mock

import pytest
from deadlines import SLACK_S

from windback import AsyncWindback, ConfigurationError, Windback, aws_lambda, serverless
from windback.devserver import DevServer
from windback.serverless import flush_after

JANE = "jane@example.com"


class Context:
    def __init__(self, milliseconds):
        self._milliseconds = milliseconds

    def get_remaining_time_in_millis(self):
        return self._milliseconds


@pytest.fixture(scope="module")
def server():
    with DevServer() as server:
        yield server


@pytest.fixture
def client(server):
    server.reset()
    with Windback("sk_test_1", "shop", base_url=server.url, flush_interval=3600) as client:
        yield client
        server.faults([])


def test_the_old_import_path_stays():
    assert aws_lambda.flush_after is serverless.flush_after


def test_what_the_handler_tracked_is_delivered_when_it_returns(client, server):
    @flush_after(client)
    def handler(payload, _context):
        """Answer."""
        client.track_event("login", JANE)
        return payload["n"] + 1

    assert handler({"n": 1}, Context(30_000)) == 2
    assert server.counts().events == 1
    assert (handler.__name__, handler.__doc__) == ("handler", "Answer.")


@pytest.mark.parametrize("decorate", [flush_after, flush_after(), flush_after(timeout=5)])
def test_without_a_client_all_of_the_process_are_flushed(client, server, decorate):
    @decorate
    def handler(first, *, second):
        client.track_event("login", JANE)
        return first, second

    assert handler(1, second=2) == (1, 2)
    assert server.counts().events == 1
    assert str(inspect.signature(handler)) == "(first, *, second)"


def test_an_async_function(client, server):
    @flush_after
    async def handler(payload):
        client.track_event("login", JANE)
        return payload

    assert inspect.iscoroutinefunction(handler)
    assert asyncio.run(handler(1)) == 1
    assert server.counts().events == 1


def test_an_async_client_in_an_async_function(server):
    server.reset()

    async def main():
        async with AsyncWindback("sk_test_1", base_url=server.url, flush_interval=3600) as client:

            @flush_after(client)
            async def handler():
                await client.track_event("login", JANE)

            await handler()
            return server.counts().events

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("worker", ["task", "thread"])
def test_an_async_client_in_a_function(server, worker):
    server.reset()
    client = AsyncWindback("sk_test_1", base_url=server.url, flush_interval=3600, worker=worker)

    @flush_after(client)
    def handler():
        return asyncio.run(client.track_event("login", JANE))

    assert [handler(), handler()] == [True, True]
    assert server.counts().events == 2
    asyncio.run(client.close())


def test_a_generator(client, server):
    @flush_after
    def handler():
        client.track_event("login", JANE)
        got = yield "first"
        client.track_event("login", JANE)
        yield got
        return "end"

    assert inspect.isgeneratorfunction(handler)
    items = handler()
    assert (next(items), items.send("got")) == ("first", "got")
    assert server.counts().events == 0
    with pytest.raises(StopIteration, match="end"):
        next(items)
    assert server.counts().events == 2


def test_a_generator_that_is_left_early(client, server):
    @flush_after
    def handler():
        client.track_event("login", JANE)
        yield 1
        yield 2

    items = handler()
    assert next(items) == 1
    items.close()
    assert server.counts().events == 1


def test_an_async_generator(client, server):
    seen = []

    @flush_after
    async def handler():
        client.track_event("login", JANE)
        got = yield "first"
        try:
            yield got
        except KeyError as error:
            seen.append(error)
            yield "caught"

    async def main():
        items = handler()
        got = [await items.__anext__(), await items.asend("got"), await items.athrow(KeyError("mine"))]
        with pytest.raises(StopAsyncIteration):
            await items.__anext__()
        return got

    assert inspect.isasyncgenfunction(handler)
    assert asyncio.run(main()) == ["first", "got", "caught"]
    assert len(seen) == 1
    assert server.counts().events == 1


def test_an_async_generator_that_is_left_early(client, server):
    ended = []

    @flush_after
    async def handler():
        try:
            client.track_event("login", JANE)
            yield 1
        finally:
            ended.append(client.track_event("logout", JANE))

    async def main():
        items = handler()
        assert await items.__anext__() == 1
        await items.aclose()

    asyncio.run(main())
    assert ended == [True]
    assert server.counts().events == 2


def hiding(function):
    """Decorate as many do: what is returned is no async function, though it returns a coroutine."""

    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


def test_kinds_that_another_decorator_hides(client, server):
    @flush_after
    @hiding
    async def coroutine():
        await asyncio.sleep(0)
        return client.track_event("login", JANE)

    @flush_after
    @hiding
    def generator():
        yield client.track_event("login", JANE)

    assert asyncio.run(coroutine()) is True
    assert list(generator()) == [True]
    assert server.counts().events == 2


class Adapter:
    """As Mangum: an object that is called with the event and the context."""

    def __init__(self, client):
        self._client = client

    def __call__(self, event, _context):
        self._client.track_event("login", JANE)
        return event

    def method(self, event):
        self._client.track_event("login", JANE)
        return event

    decorated = flush_after(method)


class AsyncAdapter(Adapter):
    async def __call__(self, event, _context):
        return self.method(event)


def test_objects_methods_and_partials(client, server):
    adapter = Adapter(client)
    assert flush_after(adapter)("an event", Context(30_000)) == "an event"
    assert adapter.decorated(1) == 1
    assert flush_after(functools.partial(adapter, "partial"))(Context(30_000)) == "partial"
    assert asyncio.run(flush_after(AsyncAdapter(client))(2, Context(30_000))) == 2
    assert server.counts().events == 4


@pytest.mark.parametrize("kind", ["function", "async", "generator"])
def test_a_handler_that_raises_is_flushed_too(client, server, kind):
    def fail():
        client.track_event("login", JANE)
        message = "the handler's own"
        raise KeyError(message)

    async def fail_async():
        fail()

    def generate():
        yield fail()

    calls = {
        "function": flush_after(fail),
        "async": lambda: asyncio.run(flush_after(fail_async)()),
        "generator": lambda: list(flush_after(generate)()),
    }
    with pytest.raises(KeyError, match="the handler's own"):
        calls[kind]()
    assert server.counts().events == 1


@pytest.mark.parametrize(
    ("milliseconds", "timeout", "at_most_s"), [(900, 5, 0.4), (100, 5, 0.0), (60_000, 0.3, 0.3)]
)
@pytest.mark.parametrize("by_name", [False, True])
def test_the_flush_ends_before_the_invocation_does(
    server, client, caplog, milliseconds, timeout, at_most_s, by_name
):
    server.faults([{"latency": 8.0}])

    @flush_after(client, timeout=timeout, margin=0.5)
    def handler(event, context):
        client.track_event("login", JANE)
        return time.monotonic()

    context = Context(milliseconds)
    ended_s = handler({}, context=context) if by_name else handler({}, context)
    assert time.monotonic() - ended_s <= at_most_s + SLACK_S
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("1 event waits for the next invocation of this process: ")


@pytest.mark.parametrize(
    "argument",
    [
        object(),
        mock.MagicMock(),
        SimpleNamespace(get_remaining_time_in_millis=None),
        SimpleNamespace(get_remaining_time_in_millis=lambda: "soon"),
        SimpleNamespace(get_remaining_time_in_millis=lambda: 1 / 0),
    ],
    ids=["none", "a mock", "not a method", "not a number", "it raises"],
)
def test_an_argument_that_is_no_context_is_not_asked(server, client, argument):
    @flush_after(timeout=30)
    def handler(_):
        client.track_event("login", JANE)

    handler(argument)
    assert server.counts().events == 1


def test_what_is_left_is_delivered_by_the_next_invocation(server, client):
    server.faults([{"latency": 0.5, "times": 1}])

    @flush_after(client, timeout=30)
    def handler(count, _context):
        for _ in range(count):
            client.track_event("login", JANE)

    handler(3, Context(500))  # there is no time for a flush, so this is not a failure
    handler(0, Context(60_000))
    assert server.counts().events == 3


@pytest.mark.parametrize("kind", ["function", "async"])
def test_an_outage_is_waited_for_once_and_its_end_is_noticed(server, client, kind):
    server.faults([{"latency": 60.0}])
    waited_s = []

    @flush_after(timeout=2.0)
    def function():
        client.track_event("login", JANE)
        waited_s.append(time.monotonic())

    @flush_after(timeout=2.0)
    async def coroutine():
        client.track_event("login", JANE)
        waited_s.append(time.monotonic())

    for _ in range(10):
        asyncio.run(coroutine()) if kind == "async" else function()
        waited_s[-1] = time.monotonic() - waited_s[-1]
    assert waited_s[0] >= 1.9
    # Nine times 0.1 s, and what a busy machine adds.
    assert sum(waited_s[1:]) <= 9 * 0.2 + SLACK_S
    server.faults([])
    deadline_s = time.monotonic() + 30
    while server.counts().events < 10 and time.monotonic() < deadline_s:
        function()
    # It is over: a slow answer is waited for again.
    client.flush(10)
    server.faults([{"latency": 0.5, "times": 1}])
    before = client.stats().delivered
    function()
    assert client.stats().delivered == before + 1


def test_a_client_that_was_down_is_not_what_another_waits_less_for(server, client, dead_client):
    dead_client.track_event("login", JANE)
    flush_after(timeout=0.2)(lambda: None)()
    server.faults([{"latency": 0.5, "times": 1}])
    flush_after(timeout=30)(lambda: client.track_event("login", JANE))()
    assert server.counts().events == 1


@pytest.fixture
def dead_client():
    client = Windback("sk_test_1", base_url="http://127.0.0.1:9/api/v1", shutdown_timeout=0)
    yield client
    client.close(0)


def test_a_closed_client_does_not_fail_the_invocation(client, caplog):
    handler = flush_after(client)(lambda *_: "answer")
    client.close()
    assert handler({}, Context(30_000)) == "answer"
    assert "nothing was flushed after the handler: its client is closed" in caplog.text


@pytest.mark.parametrize("wrong", [{"timeout": -1}, {"margin": -0.1}, {"timeout": None}, {"margin": "1"}])
def test_a_time_that_is_none_is_an_error(client, wrong):
    with pytest.raises(ConfigurationError, match="seconds and not negative"):
        flush_after(client, **wrong)


@pytest.mark.parametrize("wrong", [1, "client", {}, Windback, [AsyncWindback]])
def test_misuse_is_an_error_when_the_module_is_loaded(client, wrong):
    with pytest.raises(ConfigurationError, match="flush_after decorates a function"):
        flush_after(wrong)
    with pytest.raises(ConfigurationError, match="flush_after decorates a function"):
        flush_after(client)(wrong)
