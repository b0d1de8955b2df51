"""A logging handler, a hook and a lock of the application: none of them ever runs under a lock of the client.

A handler that ships log lines as events calls the client from the line that the client writes. It may also
wait for a lock that another thread has while that thread calls the client.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import ExitStack, nullcontext

import pytest
from inside import locks_held
from relays import running
from tracking import JANE, OPTIONS

from windback import AsyncWindback, Windback
from windback.relay import BrokerRelay, Relay

#: This server takes it for no email address, the client does.
POISON = "jane@"


class Loop:
    """An AsyncWindback in a loop of its own, to be called like a Windback."""

    def __init__(self, **options):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._client = AsyncWindback(**options)
        self.stats = self._client.stats

    def _run(self, call):
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(60)

    def track_event(self, *arguments):
        call = self._client.track_event(*arguments)
        if threading.current_thread() is self._thread:  # a line of the loop: nothing can be waited for
            self._tracking = self._loop.create_task(call)
        else:
            self._run(call)

    def flush(self, timeout=None):
        return self._run(self._client.flush(timeout))

    def close(self):
        self._run(self._client.close())
        self._run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Handler(logging.Handler):
    """Tracks each line as an event, under a lock that the application also holds around its calls."""

    def __init__(self):
        super().__init__()
        self.application = self.around_lines = threading.Lock()
        self.track = None
        self.lines = []
        self.held = set()
        self._inside = threading.local()

    def emit(self, record):
        self.hold()
        self.lines.append(record.getMessage())
        track = self.track
        if track is None or getattr(self._inside, "it", False):
            return
        self._inside.it = True
        try:
            with self.around_lines:
                track("line", JANE, {"text": record.getMessage()})
        finally:
            self._inside.it = False

    def hold(self, *_):
        """Note which locks of the package the calling thread has."""
        self.held |= locks_held()


@pytest.fixture
def handler():
    handler = Handler()
    logger = logging.getLogger("windback")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


KINDS = ["memory", "task", "journal", "process", "relay", "broker"]


@pytest.fixture
def make(server, tmp_path, request):
    """Make a client of a kind, and start what sends for it."""
    with ExitStack() as stack:

        def make(kind, **options):
            shared = {"max_retries": 0, "on_delivery": options.get("on_delivery")}
            options = {**OPTIONS, **shared, "flush_interval": 0.01, "base_url": server.url}
            if kind in ("journal", "process", "relay"):
                options["journal"] = tmp_path / "journal"
            if kind == "process":
                options["worker"] = "process"
            if kind == "relay":
                options.update(worker=None, on_delivery=None)
                relay = Relay(options["journal"], "sk_test_1", base_url=server.url, **shared)
                stack.enter_context(running(relay))
            if kind == "broker":
                url = request.getfixturevalue("redis_server").url
                options["broker"] = url
                relay = BrokerRelay(
                    url, "sk_test_1", project_slug="my-project", base_url=server.url, **shared
                )
                stack.enter_context(running(relay))
            client = (Loop if kind == "task" else Windback)(**options)
            stack.callback(client.close)
            return client

        yield make


def fail_and_reject(client, server, handler, eventually):
    """Let a batch fail and one be rejected; the handler gets a line of each."""
    server.faults([{"path": "/track", "status": 503}])
    client.track_event("login", JANE)
    eventually(lambda: any("cannot deliver" in line for line in handler.lines))
    server.faults([])
    client.flush(10)
    client.track_event("login", POISON)
    eventually(lambda: any("rejects events" in line for line in handler.lines))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_ships_log_lines_as_events_never_waits(server, handler, make, eventually, kind):
    client = make(kind, on_delivery=handler.hold)
    handler.track = client.track_event
    if kind == "task":  # a loop whose lines wait for a lock would wait for itself
        handler.around_lines = nullcontext()
    is_over = threading.Event()

    def call_under_the_lock():
        while not is_over.is_set():
            with handler.application:
                client.track_event("call", JANE)
                client.stats()
                client.flush(0.001)
            is_over.wait(0.002)

    application = threading.Thread(target=call_under_the_lock)
    application.start()
    try:
        fail_and_reject(client, server, handler, eventually)
    finally:
        is_over.set()
        application.join()
        handler.track = None
    assert client.flush(30)
    assert handler.held == set()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_raises_stops_nothing(server, handler, make, eventually, kind):
    """Neither a worker, nor the thread that hears from a sender, nor a call."""
    reports = []
    client = make(kind, on_delivery=reports.append)

    def fail(*_):
        message = "the handler's own fault"
        raise RuntimeError(message)

    handler.track = fail
    fail_and_reject(client, server, handler, eventually)
    reports.clear()
    client.track_event("login", JANE)
    assert client.flush(30)
    eventually(lambda: any(report.outcome == "delivered" for report in reports))
    assert client.stats().worker_deaths == 0
    handler.track = None
