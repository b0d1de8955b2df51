"""What a client does under each kind of trouble that HTTP can bring: one test a row, every kind of client.

The server is a real one, on a real socket, unless it can't be made to misbehave in the way that is wanted.
While a test runs a thread of its own watches the client's counters, which must add up at every instant;
at the end they must agree with what the calls returned and with what the server stored.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import threading
import time
from contextlib import ExitStack, closing
from email.utils import formatdate

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from deadlines import SLACK_S
from inside import engine_of
from raw_server import RawServer, response

import windback
from windback import outage
from windback.api import answer
from windback.delivery import gate, retry
from windback.delivery.connections import Connections
from windback.devserver import DevServer
from windback.http import wire as wires
from windback.models import parse_time

KEY = "sk_test_contract"
EMAIL = "jane@example.com"
#: This server takes it for no email address, the client does: the poison in a batch.
POISON = "no address@example.com"
KINDS = ("sync", "sync with httpx", "asyncio", "trio", "async in a thread")


def until(check, within_s=10.0):
    """Wait until *check* holds; fail if it does not in time."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


class Driver:
    """One client of any kind, called from plain threads, with a watch on the law of its counters."""

    def __init__(self, kind, base_url, **options):
        options = {"flush_interval": 0.01, "timeout": 5.0, "shutdown_timeout": 2.0, **options}
        self._exit = ExitStack()
        self.portal = None
        make = windback.Windback
        if not kind.startswith("sync"):
            backend = "trio" if kind == "trio" else "asyncio"
            self.portal = self._exit.enter_context(start_blocking_portal(backend))
            make = functools.partial(
                windback.AsyncWindback, worker="thread" if kind == "async in a thread" else "task"
            )
        self.client = make(KEY, "shop", base_url=base_url, **options)
        #: Calls of track_event that were started, that returned True, and that raised QueueFullError.
        self.started = self.accepted = self.raised = 0
        #: What the test expects the server to have from track_events.
        self.sent_directly = 0
        self._broken = []
        self._looks = 0
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look_on)
        self._watch.start()

    def call(self, name, *args, **keywords):
        method = functools.partial(getattr(self.client, name), *args, **keywords)
        return method() if self.portal is None else self.portal.call(method)

    def track(self, count=1, email=EMAIL, **properties):
        """Track *count* events and return the answers."""
        if self.portal is None:
            return [self._note(functools.partial(self._track, n, email, properties)) for n in range(count)]
        return self.portal.call(self._track_async, count, email, properties)

    def _note(self, call):
        self.started += 1
        answer = call()
        self.accepted += answer
        return answer

    def _track(self, n, email, properties):
        return self.client.track_event("seen", email, {"n": n, **properties})

    async def _track_async(self, count, email, properties):
        answers = []
        for n in range(count):
            self.started += 1
            answers.append(await self._track(n, email, properties))
            self.accepted += answers[-1]
        return answers

    def flush(self, timeout=10.0):
        return self.call("flush", timeout)

    @property
    def stats(self):
        return self.client.stats()

    def _look_on(self):
        while not self._over.wait(0.001):
            at_least = self.accepted
            seen = self.stats
            at_most = self.started
            self._looks += 1
            if not (adds_up(seen) and at_least <= seen.accepted <= at_most):
                self._broken.append((at_least, seen, at_most))

    def finish(self):
        """Close the client and check the law once more."""
        try:
            self.call("close")
            until(lambda: self._looks > 0)
        finally:
            self._over.set()
            self._watch.join()
            self._exit.close()
        assert not self._broken, self._broken[0]
        seen = self.stats
        assert adds_up(seen)
        assert seen.pending == seen.in_flight == seen.pending_bytes == 0
        assert seen.accepted == self.accepted
        assert self.started == seen.accepted + sum(seen.refused.values())


def adds_up(stats):
    return stats.accepted == stats.delivered + stats.rejected + stats.dropped + stats.pending


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Back off in milliseconds; what Retry-After and a refusal ask for stays as it is."""
    monkeypatch.setattr(retry, "BACKOFF_BASE_S", 0.005)
    monkeypatch.setattr(retry, "BACKOFF_CAP_S", 0.02)
    monkeypatch.setattr(gate, "OUTAGE_CAP_S", 0.05)


@pytest.fixture(scope="module")
def servers():
    """Start the servers that are asked for, each set of options once."""
    running = {}
    with ExitStack() as stack:

        def get(name="", **options):
            if name not in running:
                running[name] = stack.enter_context(DevServer(**options))
            running[name].reset()
            return running[name]

        yield get
    logs = [each.log() for each in running.values()]
    assert not any(logs), "a server printed warnings or tracebacks"


@pytest.fixture
def server(servers):
    return servers()


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    if request.param == "sync with httpx":
        monkeypatch.setattr(Connections, "_batch_way", Connections.transport)
    return request.param


@pytest.fixture
def drive(kind, caplog):
    """Make a driver for a server (or for a URL); when the test is over, check both against each other."""
    caplog.set_level(logging.INFO, "windback")
    made = []

    def make(server, **options):
        driver = Driver(kind, server if isinstance(server, str) else server.url, **options)
        made.append((driver, server))
        return driver

    yield make
    for _, server in made:
        if isinstance(server, DevServer):
            server.clear_faults()
    for driver, server in made:
        driver.finish()
        if isinstance(server, DevServer):
            assert server.counts().events == driver.stats.delivered + driver.sent_directly


@pytest.fixture
def wire(monkeypatch):
    """Every try's request, in order, seen when its headers are made."""
    tries = []
    headers = wires.Wire.headers

    def record(self, request):
        tries.append(request)
        return headers(self, request)

    monkeypatch.setattr(wires.Wire, "headers", record)
    return tries


def tracks(server):
    """The requests to /track so far."""
    return [each for each in server.requests() if each.path.endswith("/track")]


def at(record):
    return parse_time(record.received_at).timestamp()


def lines(caplog, level):
    return [each.getMessage() for each in caplog.records if each.levelno == level]


# Server down, 408, 425, 5xx: the batch stays; the caller's own calls give up


@pytest.fixture(scope="module")
def mortal():
    """A server that tests may stop and start."""
    server = DevServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def living(mortal):
    mortal.reset()
    return mortal


def test_a_server_that_is_down_gets_every_event_once_it_is_back(living, drive):
    driver = drive(living, max_retries=1)
    driver.track(10)
    assert driver.flush()
    living.kill()
    try:
        driver.track(150)
        until(lambda: driver.stats.problem is not None)
        answered = driver.flush(None)
        assert not answered
        assert answered.pending == driver.stats.pending == 150
        assert "connect" in answered.problem
    finally:
        living.start()  # with an empty database
    assert driver.flush()
    seen = driver.stats
    assert (seen.delivered, seen.pending, seen.problem) == (160, 0, None)
    assert living.counts().events == 150
    driver.sent_directly = -10  # those that died with the first server


def test_calls_of_the_caller_give_up_on_a_server_that_is_down(server, drive):
    driver = drive("http://127.0.0.1:9", max_retries=2)
    with pytest.raises(windback.WindbackConnectionError, match="could not connect"):
        driver.call("track_events", [{"event": "seen", "customer_email": EMAIL}])
    with pytest.raises(windback.WindbackConnectionError, match="could not connect"):
        driver.call("create_churn_event", EMAIL)


@pytest.mark.parametrize("status", [408, 425, 500, 502, 503, 504])
def test_a_failure_that_passes_keeps_the_batch_and_delivers_it(server, drive, status):
    server.faults([{"path": "/track", "status": status, "times": 7}])
    driver = drive(server, max_retries=1)  # so 7 failures are several rounds
    driver.track(30)
    until(lambda: driver.stats.pending == 0)
    records = tracks(server)
    assert [each.status for each in records] == [status] * 7 + [200]
    assert {each.idempotency_key for each in records} == {records[0].idempotency_key}
    assert (driver.stats.delivered, driver.stats.requests, driver.stats.retries) == (30, 8, 7)


@pytest.mark.parametrize("status", [408, 500, 503])
def test_calls_of_the_caller_give_up_after_max_retries(server, drive, status):
    server.faults([{"status": status}])
    driver = drive(server, max_retries=2)
    with pytest.raises(windback.WindbackError) as caught:
        driver.call("track_events", [{"event": "seen", "customer_email": EMAIL}])
    assert caught.value.status == status
    assert len(server.requests()) == 3
    with pytest.raises(windback.WindbackError) as caught:
        driver.call("create_churn_event", EMAIL)
    assert caught.value.status == status
    assert len(server.requests()) == 6
    assert len({each.idempotency_key for each in server.requests()}) == 2


def test_a_call_that_fails_twice_succeeds_at_the_third_try(server, drive):
    server.faults([{"status": 500, "times": 2}])
    driver = drive(server)
    assert driver.call("create_churn_event", EMAIL).status == "new"
    assert [each.status for each in server.requests()] == [500, 500, 201]


def test_a_server_that_never_answers_times_out_and_gets_the_batch_again(server, drive):
    server.faults([{"path": "/track", "hang": True, "times": 1}])
    driver = drive(server, timeout=0.2)
    driver.track(5)
    assert driver.flush()
    assert [each.status for each in tracks(server)] == [None, 200]


def test_a_connection_that_breaks_before_the_request_was_taken_is_tried_again(server, drive):
    server.faults([{"path": "/track", "drop": "before", "times": 3}])
    driver = drive(server)
    driver.track(5)
    assert driver.flush()
    assert [each.status for each in tracks(server)] == [None, None, None, 200]
    assert server.counts().duplicates == 0


# 429, and 503 with Retry-After: obeyed for the whole queue, capped; one request at a time, then more again


def test_retry_after_in_seconds_holds_up_the_whole_queue(server, drive):
    server.faults([{"path": "/track", "status": 429, "retry_after": 1, "times": 1}])
    driver = drive(server, batch_size=10)
    driver.track()
    until(lambda: driver.stats.requests == 1)
    driver.track(40)  # full batches, which would be sent at once
    until(lambda: driver.stats.delivered == 41)
    refused, *others = tracks(server)
    assert refused.status == 429
    assert min(map(at, others)) - at(refused) >= 1.0


def test_retry_after_as_a_date_holds_up_the_whole_queue(server, drive):
    date = math.ceil(time.time() + 0.4)  # a date has whole seconds
    server.faults(
        [{"path": "/track", "status": 503, "retry_after": formatdate(date, usegmt=True), "times": 1}]
    )
    driver = drive(server, batch_size=10)
    driver.track()
    until(lambda: driver.stats.requests == 1)
    driver.track(40)
    until(lambda: driver.stats.delivered == 41)
    _, *others = tracks(server)
    assert min(map(at, others)) >= date


def test_retry_after_is_capped(server, drive, monkeypatch):
    monkeypatch.setattr(answer, "RETRY_AFTER_CAP_S", 0.3)
    server.faults([{"path": "/track", "status": 429, "retry_after": 86_400, "times": 1}])
    driver = drive(server)
    driver.track()
    until(lambda: driver.stats.delivered == 1)
    refused, taken = tracks(server)
    assert at(taken) - at(refused) >= 0.3


def test_a_flush_does_not_cut_short_what_retry_after_asks_for(server, drive):
    server.faults([{"path": "/track", "status": 429, "retry_after": 0.5, "times": 1}])
    driver = drive(server)
    driver.track()
    until(lambda: driver.stats.requests == 1)
    assert driver.flush()
    refused, taken = tracks(server)
    assert at(taken) - at(refused) >= 0.5


def test_the_success_of_an_earlier_request_does_not_end_what_retry_after_asks_for(server, drive):
    server.faults(
        [
            {"path": "/track", "status": 429, "retry_after": 0.8, "latency": 0.1, "times": 1},
            {"path": "/track", "latency": 0.3},
        ]
    )
    driver = drive(server, batch_size=10, max_in_flight=2, flush_interval=5.0)
    driver.track(40)
    until(lambda: driver.stats.delivered == 40)
    refused, *others = sorted(tracks(server), key=lambda each: each.status != 429)
    answered_at = at(refused) + 0.1
    assert any(at(each) < answered_at for each in others), "nothing was in flight beside the refused one"
    later = [each for each in others if at(each) > answered_at]
    assert min(map(at, later)) - answered_at >= 0.8


def overlaps(records, seconds):
    """The most of *records* that were with the server at once, if each of them stayed for *seconds*."""
    starts = sorted(map(at, records))
    return max(sum(start <= other < start + seconds for other in starts) for start in starts)


def test_after_429_one_request_is_in_flight_and_then_ever_more(server, drive):
    server.faults(
        [
            {"path": "/track", "status": 429, "retry_after": 0.3, "latency": 0.2, "times": 4},
            {"path": "/track", "latency": 0.1},
        ]
    )
    driver = drive(server, batch_size=10, max_in_flight=4, flush_interval=5.0)
    driver.track(300)
    until(lambda: driver.stats.delivered == 300)
    records = sorted(tracks(server), key=at)
    refused = [each for each in records if each.status == 429]
    assert len(refused) == 4
    assert overlaps(refused, 0.2) > 1, "there was never more than one in flight"
    taken = [each for each in records if each.status == 200 and at(each) > at(refused[-1])]
    assert overlaps(taken[:2], 0.1) == 1, "the first request after the wait was not alone"
    assert overlaps(taken, 0.1) >= 3


# 413: halves; a single event is rejected


def test_a_batch_that_is_too_large_is_split_until_it_fits(servers, drive):
    server = servers("small", max_body_bytes=3_000)
    driver = drive(server, flush_interval=5.0)
    driver.track(100)
    assert driver.flush()
    assert driver.stats.delivered == 100
    statuses = [each.status for each in tracks(server)]
    assert statuses[0] == 413
    assert statuses.count(200) >= 4
    assert sorted(each.properties["n"] for each in server.events()) == list(range(100))


def test_an_event_that_is_too_large_alone_is_rejected_and_the_others_are_delivered(servers, drive):
    reports = []
    server = servers("small", max_body_bytes=3_000)
    driver = drive(server, flush_interval=5.0, on_delivery=reports.append)
    driver.track(20)
    driver.track(text="x" * 4_000)
    driver.track(20)
    assert driver.flush()
    seen = driver.stats
    assert (seen.delivered, seen.rejected, seen.rejected_by_reason) == (40, 1, {"too_large": 1})
    until(lambda: sum(each.count for each in reports) == 41)
    (rejection,) = (each for each in reports if each.outcome == "rejected")
    assert (rejection.count, rejection.reason, rejection.status) == (1, "too_large", 413)
    assert rejection.events[0]["properties"]["text"] == "x" * 4_000


def test_track_events_splits_what_is_too_large(servers, drive):
    server = servers("small", max_body_bytes=3_000)
    driver = drive(server)
    result = driver.call("track_events", [{"event": "seen", "customer_email": EMAIL}] * 100)
    driver.sent_directly = 100
    assert result.sent == 100
    assert result.requests >= 4


# 400, 422: bisected until the poison stands alone


def test_400_bisects_a_batch_down_to_the_poison(server, drive, caplog):
    reports = []
    driver = drive(server, flush_interval=5.0, on_delivery=reports.append)
    driver.track(37)
    driver.track(email=POISON)
    driver.track(50)
    driver.track(email=POISON)
    driver.track(11)
    assert driver.flush()
    seen = driver.stats
    assert (seen.delivered, seen.rejected, seen.rejected_by_reason) == (98, 2, {"invalid": 2})
    assert server.counts().by_status[400] <= 2 * 7 + 1  # log2 of 100 levels for each of them
    until(lambda: sum(each.count for each in reports) == 100)
    rejected = [each for each in reports if each.outcome == "rejected"]
    assert [(each.count, each.status) for each in rejected] == [(1, 400), (1, 400)]
    assert {each.events[0]["customer_email"] for each in rejected} == {POISON}
    warnings = lines(caplog, logging.WARNING)
    assert len(warnings) == 1
    assert "customer_email" in warnings[0]
    assert POISON not in caplog.text


def test_422_bisects_a_batch_down_to_the_poison(drive):
    stored = []

    def answer(connection, request):
        events = json.loads(request.partition(b"\r\n\r\n")[2])["events"]
        if any(each["customer_email"] == POISON for each in events):
            connection.sendall(response("422 Unprocessable Content", b'{"error": "one of them is poison"}'))
            return
        stored.extend(events)
        connection.sendall(response("200 OK"))

    server = RawServer(answer)
    with closing(server):
        driver = drive(server.url(), flush_interval=5.0)
        driver.track(60)
        driver.track(email=POISON)
        driver.track(39)
        assert driver.flush()
    seen = driver.stats
    assert (seen.delivered, seen.rejected, seen.rejected_by_reason) == (99, 1, {"invalid": 1})
    assert len(stored) == 99


# 401, 402, 403: a long pause, one line, flush says so


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_refused_key_pauses_for_long_with_one_line_and_flush_reports_it(server, drive, caplog, status):
    server.faults([{"path": "/track", "status": status, "body": '{"error": "no", "code": "NOT_YOU"}'}])
    driver = drive(server, batch_size=10, max_in_flight=1)
    driver.track(10)
    until(lambda: "next try" in (driver.stats.problem or ""))
    driver.track(90)  # full batches, each of which would be sent at once
    answer = driver.flush()
    assert not answer
    assert answer.pending == 100
    assert answer.problem.startswith(f"{status} NOT_YOU: no; the next try is in ")
    assert len(tracks(server)) == 2, "one of the worker's own accord, one because of the flush"
    assert engine_of(driver.client).scheduler.gate.blocked_s(time.monotonic()) > 60
    until(lambda: lines(caplog, logging.WARNING))
    assert lines(caplog, logging.WARNING) == [
        (
            f"cannot deliver: {status} NOT_YOU: no; 10 events queued, retrying; "
            "events are refused only if the queue fills up"
        )
    ]
    server.clear_faults()
    assert driver.flush()
    assert (driver.stats.delivered, driver.stats.problem) == (100, None)


def test_a_refused_key_is_tried_again_after_the_pause(server, drive, monkeypatch):
    monkeypatch.setattr(gate, "REFUSED_PAUSE_S", 0.1)
    server.faults([{"path": "/track", "status": 401, "times": 3}])
    driver = drive(server)
    driver.track(10)
    until(lambda: driver.stats.delivered == 10)
    records = tracks(server)
    assert [each.status for each in records] == [401, 401, 401, 200]
    times = [at(each) for each in records]
    assert min(later - earlier for earlier, later in zip(times, times[1:])) >= 0.1


@pytest.mark.parametrize(
    ("status", "kind_of_error"),
    [
        (401, windback.AuthenticationError),
        (402, windback.SubscriptionExpiredError),
        (403, windback.PermissionDeniedError),
    ],
)
def test_a_refused_key_is_an_error_of_its_own_in_calls_of_the_caller(server, drive, status, kind_of_error):
    server.faults([{"status": status}])
    driver = drive(server)
    for name, argument in (
        ("create_churn_event", EMAIL),
        ("track_events", [{"event": "seen", "customer_email": EMAIL}]),
    ):
        with pytest.raises(kind_of_error) as caught:
            driver.call(name, argument)
        assert (caught.value.status, caught.value.code) == (status, "FAULT")
    assert len(server.requests()) == 2


# The answer is lost after the server took the request


def test_a_lost_answer_repeats_the_same_bytes_under_the_same_key(server, drive, wire):
    server.faults([{"path": "/track", "drop": "after", "times": 2}])
    driver = drive(server)
    driver.track(25)
    assert driver.flush()
    assert len(wire) == 3
    assert len({(each.body, each.idempotency_key) for each in wire}) == 1
    counts = server.counts()
    assert (counts.events, counts.duplicates, counts.duplicate_events) == (25, 2, 50)
    sent = [each["timestamp"] for each in json.loads(wire[0].body)["events"]]
    assert [each.timestamp for each in server.events()] == sent


def test_a_batch_that_outlives_its_retries_keeps_its_key(server, drive, wire):
    server.faults([{"path": "/track", "drop": "after", "times": 6}])
    driver = drive(server, max_retries=0)
    driver.track(25)
    until(lambda: driver.stats.delivered == 25)
    assert len(wire) == 7
    assert len({(each.body, each.idempotency_key) for each in wire}) == 1
    assert server.counts().events == 25


# A server that refuses gzip


@pytest.mark.parametrize("status", ["400", "415"])
def test_a_refusal_of_gzip_sends_the_same_plain_once_and_plain_from_then_on(servers, drive, status, caplog):
    server = servers(f"gzip {status}", gzip=status)
    driver = drive(server, compress=True)
    driver.track(50)
    assert driver.flush()
    refused, taken = tracks(server)
    assert (refused.status, refused.headers.get("content-encoding")) == (int(status), "gzip")
    assert (taken.status, taken.headers.get("content-encoding")) == (200, None)
    assert refused.idempotency_key == taken.idempotency_key
    driver.track(50)
    assert driver.flush()
    assert [each.headers.get("content-encoding") for each in tracks(server)] == ["gzip", None, None]
    assert driver.stats.delivered == 100
    assert lines(caplog, logging.WARNING) == []
    assert len(lines(caplog, logging.INFO)) == 1


def test_a_server_that_takes_gzip_gets_it_and_stores_the_same(server, drive):
    driver = drive(server, compress=True, flush_interval=5.0)
    driver.track(100)
    assert driver.flush()
    (record,) = tracks(server)
    assert record.headers["content-encoding"] == "gzip"
    assert [each.properties["n"] for each in server.events()] == list(range(100))


def test_a_poisoned_batch_that_was_gzipped_is_sent_plain_and_bisected(server, drive):
    driver = drive(server, compress=True, flush_interval=5.0)
    driver.track(9)
    driver.track(email=POISON)
    assert driver.flush()
    assert (driver.stats.delivered, driver.stats.rejected) == (9, 1)


def test_track_events_falls_back_to_plain_too(servers, drive):
    server = servers("gzip 415", gzip="415")
    driver = drive(server, compress=True)
    result = driver.call("track_events", [{"event": "seen", "customer_email": EMAIL}] * 3)
    driver.sent_directly = 3
    assert result.sent == 3
    assert [each.status for each in tracks(server)] == [415, 200]


# Redirects


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_is_not_followed_and_no_key_goes_to_the_other_host(server, servers, drive, status):
    other = servers("other")
    location = {"location": f"{other.url}/track"}
    server.faults([{"status": status, "headers": location}])
    driver = drive(server)
    driver.track(10)
    answer = driver.flush()
    assert not answer
    assert answer.pending == 10
    assert "redirect" in answer.problem
    assert other.url in answer.problem
    with pytest.raises(windback.WindbackError, match="redirects are not followed"):
        driver.call("create_churn_event", EMAIL)
    assert other.counts().requests == 0
    server.clear_faults()
    assert driver.flush()
    assert driver.stats.delivered == 10


def test_a_client_of_the_users_own_that_follows_redirects_follows_none_for_us(server, servers, drive, kind):
    if kind == "async in a thread":
        with pytest.raises(windback.ConfigurationError, match="http_client can't be used by worker='thread'"):
            drive(server, http_client=httpx.AsyncClient(follow_redirects=True))
        return
    other = servers("other")
    server.faults([{"status": 307, "headers": {"location": f"{other.url}/track"}}])
    make = httpx.Client if kind.startswith("sync") else httpx.AsyncClient
    http_client = make(follow_redirects=True)
    driver = drive(server, http_client=http_client)
    driver.track(10)
    answer = driver.flush()
    assert "redirect" in answer.problem
    assert other.counts().requests == 0
    server.clear_faults()
    assert driver.flush()
    assert not http_client.is_closed
    if kind.startswith("sync"):
        http_client.close()
    else:
        driver.portal.call(http_client.aclose)


# Hooks that raise


@pytest.mark.parametrize("error", [ValueError, SystemExit], ids=lambda kind: kind.__name__)
def test_an_on_delivery_that_raises_is_counted_and_logged_once_and_delivery_goes_on(
    server, drive, caplog, error
):
    def hook(report):
        raise error("from the hook")

    driver = drive(server, on_delivery=hook, batch_size=10, flush_interval=5.0)
    driver.track(50)
    assert driver.flush()
    until(lambda: driver.stats.hook_errors == 5 and lines(caplog, logging.WARNING))
    assert (driver.stats.delivered, driver.stats.worker_deaths) == (50, 0)
    (warning,) = lines(caplog, logging.WARNING)
    assert warning.startswith(f"on_delivery raised {error.__name__}: from the hook")


def test_a_before_send_that_raises_is_counted_and_logged_once_and_delivery_goes_on(server, drive, caplog):
    def hook(event):
        if event["properties"]["n"] % 5 == 0:
            raise LookupError("from the hook")
        return event

    driver = drive(server, before_send=hook)
    answers = driver.track(50)
    assert answers == [n % 5 != 0 for n in range(50)]
    assert driver.flush()
    seen = driver.stats
    assert (seen.delivered, seen.refused, seen.hook_errors) == (40, {"before_send_error": 10}, 10)
    (warning,) = lines(caplog, logging.WARNING)
    assert warning.startswith("before_send raised LookupError: from the hook")


# The queue is full: each policy


@pytest.fixture
def stuck(server, drive, caplog):
    """Make a driver whose worker holds one event that it can't deliver, and room for 50 more."""

    def make(**options):
        server.faults([{"path": "/track", "status": 401}])
        driver = drive(server, max_queue_size=50, **options)
        driver.track()
        until(lambda: lines(caplog, logging.WARNING))  # the last thing that is done about a refusal
        caplog.clear()
        return driver

    return make


def test_a_full_queue_refuses_new_events_under_drop_newest(server, stuck, caplog):
    driver = stuck(overflow="drop_newest")
    assert driver.track(80) == [True] * 50 + [False] * 30
    assert driver.stats.refused == {"queue_full": 30}
    assert lines(caplog, logging.WARNING) == [
        "the queue is full, and new events are refused; they are counted in stats()"
    ]
    server.clear_faults()
    assert driver.flush()
    assert driver.stats.delivered == 51
    assert [each.properties["n"] for each in server.events()][1:] == list(range(50))
    caplog.clear()
    server.faults([{"path": "/track", "status": 401}])
    driver.track()
    until(lambda: driver.stats.problem is not None)
    driver.track(80)
    full = [line for line in lines(caplog, logging.WARNING) if line.startswith("the queue is full")]
    assert len(full) == 1, "one an episode"


def test_a_full_queue_discards_the_oldest_under_drop_oldest(server, stuck, caplog):
    reports = []
    driver = stuck(overflow="drop_oldest", on_delivery=reports.append)
    assert driver.track(80) == [True] * 80
    seen = driver.stats
    assert (seen.accepted, seen.dropped, seen.dropped_by_reason, seen.refused) == (
        81,
        30,
        {"queue_full": 30},
        {},
    )
    assert lines(caplog, logging.WARNING) == [
        "the queue is full, and the oldest events make room; they are counted in stats()"
    ]
    server.clear_faults()
    assert driver.flush()
    assert driver.stats.delivered == 51
    assert [each.properties["n"] for each in server.events()][1:] == list(range(30, 80))
    until(lambda: sum(each.count for each in reports) == 81)
    dropped = [each for each in reports if each.outcome == "dropped"]
    assert {(each.reason, tuple(each.events)) for each in dropped} == {("queue_full", ())}
    assert sum(each.count for each in dropped) == 30


def test_a_full_queue_makes_the_caller_wait_for_room_under_block(server, stuck):
    driver = stuck(overflow="block", block_timeout=10.0)
    assert driver.track(50) == [True] * 50
    answers = []
    waiting = threading.Thread(target=lambda: answers.extend(driver.track(5)))
    waiting.start()
    until(lambda: driver.started == 52)
    assert driver.stats.pending == 51
    server.clear_faults()
    assert driver.flush()
    waiting.join(10)
    assert answers == [True] * 5
    assert driver.flush()
    assert driver.stats.delivered == 56


def test_a_full_queue_refuses_after_block_timeout(stuck):
    driver = stuck(overflow="block", block_timeout=0.1)
    assert driver.track(50) == [True] * 50
    started = time.monotonic()
    assert driver.track() == [False]
    assert 0.1 <= time.monotonic() - started < 0.1 + SLACK_S
    assert driver.stats.refused == {"queue_full": 1}


def test_a_full_queue_is_an_error_under_raise(server, stuck):
    driver = stuck(overflow="raise")
    assert driver.track(50) == [True] * 50
    with pytest.raises(windback.QueueFullError, match="50 events wait, and max_queue_size") as caught:
        driver.track()
    assert caught.value.code == "QUEUE_FULL"
    assert driver.stats.refused == {"queue_full": 1}
    server.clear_faults()
    assert driver.flush()
    assert driver.stats.delivered == 51


# What an outage writes


def test_an_outage_writes_one_warning_and_one_line_with_counts_at_its_end(server, drive, caplog):
    server.faults([{"path": "/track", "status": 500, "times": 20}])
    driver = drive(server, max_retries=0)
    driver.track(10)
    until(lambda: driver.stats.requests >= 10)
    driver.track(5)
    assert driver.flush()
    assert driver.stats.delivered == 15
    (warning,) = lines(caplog, logging.WARNING)
    assert warning.startswith("cannot deliver: 500 FAULT: fault: status 500; 10 events queued, retrying")
    (line,) = lines(caplog, logging.INFO)
    # Those that were not tried yet may go first.
    assert re.fullmatch(
        r"delivering again after \d s: (10 events delivered, 5|5 events delivered, 10) queued", line
    )
    assert EMAIL not in caplog.text


def test_a_long_outage_writes_a_line_now_and_then(server, drive, caplog, monkeypatch):
    monkeypatch.setattr(outage.OutageLog, "EVERY_S", 0.1)
    server.faults([{"path": "/track", "status": 500}])
    driver = drive(server, max_retries=0)
    started = time.monotonic()
    driver.track(10)
    until(lambda: len(lines(caplog, logging.WARNING)) >= 4)
    lasted = time.monotonic() - started
    first, *others = lines(caplog, logging.WARNING)
    assert first.startswith("cannot deliver: ")
    assert all(line.startswith("still cannot deliver after ") for line in others)
    assert len(others) <= lasted / 0.1
    server.clear_faults()
    assert driver.flush()
    assert len(lines(caplog, logging.INFO)) == 1


def test_an_outage_ends_with_any_answer_to_a_batch_that_settles_it(server, drive, caplog):
    server.faults([{"path": "/track", "status": 500, "times": 2}])
    driver = drive(server, max_retries=0)
    driver.track(email=POISON)
    until(lambda: driver.stats.rejected == 1)
    until(lambda: lines(caplog, logging.INFO))
    assert len(lines(caplog, logging.INFO)) == 1
    assert driver.stats.problem is None


# Everything at once


def test_nothing_is_lost_while_a_third_of_the_requests_fails_in_some_way(server, drive):
    server.faults(
        [
            {"path": "/track", "rate": 0.08, "seed": 1, "status": 500},
            {"path": "/track", "rate": 0.08, "seed": 2, "drop": "before"},
            {"path": "/track", "rate": 0.08, "seed": 3, "drop": "after"},
            {"path": "/track", "rate": 0.08, "seed": 4, "status": 429, "retry_after": 0.01},
        ]
    )
    driver = drive(server, batch_size=10)
    for _ in range(10):
        driver.track(100)
    until(lambda: driver.stats.delivered == 1_000)
    assert server.counts().faults > 10
