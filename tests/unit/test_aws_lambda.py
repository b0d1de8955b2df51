"""The decorator for Lambda handlers: a flush within the time that is left, whatever the handler does."""

from __future__ import annotations

import time

import pytest
from deadlines import SLACK_S

from windback import ConfigurationError, Windback
from windback.aws_lambda import flush_after
from windback.devserver import DevServer

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


def test_what_the_handler_tracked_is_delivered_when_it_returns(client, server):
    @flush_after(client)
    def handler(payload, _context):
        """Answer."""
        client.track_event("login", JANE)
        return payload["n"] + 1

    assert handler({"n": 1}, Context(30_000)) == 2
    assert server.counts().events == 1
    assert (handler.__name__, handler.__doc__) == ("handler", "Answer.")


def test_a_handler_that_raises_is_flushed_too(client, server):
    @flush_after(client)
    def handler(*_):
        client.track_event("login", JANE)
        message = "the handler's own"
        raise KeyError(message)

    with pytest.raises(KeyError, match="the handler's own"):
        handler({}, Context(30_000))
    assert server.counts().events == 1


@pytest.mark.parametrize(
    ("milliseconds", "timeout", "at_most_s"), [(900, 5, 0.4), (100, 5, 0.0), (60_000, 0.3, 0.3)]
)
def test_the_flush_ends_before_the_invocation_does(server, client, caplog, milliseconds, timeout, at_most_s):
    server.faults([{"latency": 8.0}])

    @flush_after(client, timeout=timeout, margin=0.5)
    def handler(*_):
        client.track_event("login", JANE)
        return time.monotonic()

    assert time.monotonic() - handler({}, Context(milliseconds)) <= at_most_s + SLACK_S
    assert caplog.messages == ["1 events wait for the next invocation of this process"]


def test_what_is_left_is_delivered_by_the_next_invocation(server, client):
    server.faults([{"latency": 0.5, "times": 1}])

    @flush_after(client)
    def handler(count, _context):
        for _ in range(count):
            client.track_event("login", JANE)

    handler(3, Context(500))
    handler(0, Context(30_000))
    assert server.counts().events == 3


def test_a_closed_client_does_not_fail_the_invocation(client, caplog):
    handler = flush_after(client)(lambda *_: "answer")
    client.close()
    assert handler({}, Context(30_000)) == "answer"
    assert "nothing was flushed after the handler: this client is closed" in caplog.text


@pytest.mark.parametrize("wrong", [{"timeout": -1}, {"margin": -0.1}])
def test_a_negative_time_is_an_error(client, wrong):
    with pytest.raises(ConfigurationError, match="seconds and not negative"):
        flush_after(client, **wrong)
