"""OpenTelemetry: the counters of clients as metrics, no spans of background workers, the trace in events."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import subprocess
import sys
import weakref

import anyio
import pytest
from calls import eventually
from inside import engine_of, way_of
from opentelemetry.instrumentation import httpx as opentelemetry_httpx
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

import windback
from windback import opentelemetry, prometheus
from windback.relay import BrokerRelay, Relay

#: Whether each httpx.Client is instrumented; before 0.49b0, only those made by the name httpx.Client.
INSTRUMENTS_ALL = hasattr(opentelemetry_httpx, "wrap_function_wrapper")
#: Whether an instrument can suggest its bounds, from 1.30 on.
HAS_ADVICE = "explicit_bucket_boundaries_advisory" in inspect.signature(Meter.create_histogram).parameters


class Metrics:
    """A meter provider, and what its reader finds."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def _all(self):
        data = self.reader.get_metrics_data()
        return [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def read(self):
        """Return the values by name and attributes."""
        return {
            (metric.name, *sorted(point.attributes.items())): point.value
            for metric in self._all()
            for point in metric.data.data_points
            if hasattr(point, "value")
        }

    def histogram(self, name):
        """Return the points of a histogram."""
        return [point for metric in self._all() if metric.name == name for point in metric.data.data_points]


def value(found, name, **attributes):
    labels = {key.replace("_", "."): each for key, each in attributes.items()}
    return found.get((f"windback.client.{name}", *sorted({"windback.project": "shop", **labels}.items())), 0)


@pytest.fixture
def metrics():
    metrics = Metrics()
    yield metrics
    metrics.provider.shutdown()


@pytest.fixture
def spans():
    """Spans that are made while HTTP and Redis are instrumented."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for instrumentor in (HTTPXClientInstrumentor(), RedisInstrumentor()):
        instrumentor.instrument(tracer_provider=provider)
    exporter.provider = provider
    yield exporter
    for instrumentor in (HTTPXClientInstrumentor(), RedisInstrumentor()):
        instrumentor.uninstrument()


def make(server, slug="shop", **options):
    return windback.Windback("sk_test_1", slug, base_url=server.url, **options)


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_the_metrics_are_the_counters_of_the_client(server, metrics, worker):
    with make(server, worker=worker, before_send=lambda e: e if e["event"] == "login" else None) as client:
        opentelemetry.instrument(client, meter_provider=metrics.provider)
        for _ in range(250):
            client.track_event("login", "jane@example.com")
        client.track_event("noise", "jane@example.com")
        assert client.flush(30)
        found, stats = metrics.read(), client.stats()
        assert value(found, "accepted") == 250 == value(found, "events", outcome="delivered")
        assert value(found, "requests") == stats.requests > 0
        assert value(found, "refused", reason="before_send") == 1
        assert value(found, "queue.size") == value(found, "queue.bytes") == 0


def test_what_was_accepted_is_the_sum_of_the_events_and_the_queue_while_events_are_tracked(server, metrics):
    server.faults([{"status": 400, "rate": 0.3, "seed": 1}, {"latency": 0.01}])
    with make(server, max_queue_size=50, overflow="drop_oldest") as client:
        opentelemetry.instrument(client, meter_provider=metrics.provider)
        for n in range(300):
            client.track_event("login", "jane@example.com", {"n": n})
            if n % 20 == 0:
                found = metrics.read()
                outcomes = [each for key, each in found.items() if key[0] == "windback.client.events"]
                assert value(found, "accepted") == sum(outcomes) + value(found, "queue.size")


def test_an_outcome_other_than_delivered_has_a_type_of_error(metrics):
    client = windback.Windback("sk_test_1", "shop", base_url="http://127.0.0.1:9", worker="thread")
    opentelemetry.instrument(client, meter_provider=metrics.provider)
    client.track_event("login", "jane@example.com")
    client.close(0)
    found = metrics.read()
    assert value(found, "events", outcome="dropped", error_type="closed") + value(found, "queue.size") == 1
    assert not [key for key in found if ("outcome", "delivered") in key and "error.type" in dict(key[1:])]


def test_instrumenting_again_changes_nothing(server, metrics):
    with make(server) as client:
        for each in (client, client, client.with_options(timeout=3)):
            opentelemetry.instrument(each, meter_provider=metrics.provider, trace_properties=True)
        client.track_event("login", "jane@example.com")
        assert value(metrics.read(), "accepted") == 1


def test_the_default_client_is_the_one_at_the_time_of_a_reading(server, metrics, no_environment):
    opentelemetry.instrument(meter_provider=metrics.provider)
    assert value(metrics.read(), "accepted") == 0
    with make(server) as client:
        windback.set_client(client)
        try:
            client.track_event("login", "jane@example.com")
            assert value(metrics.read(), "accepted") == 1
        finally:
            windback.set_client(None)


def test_batches_make_no_spans_and_a_plain_call_is_within_the_span_of_its_caller(server, spans):
    tracer = spans.provider.get_tracer("test")
    with make(server) as client:
        with tracer.start_as_current_span("request") as request:
            client.track_event("login", "jane@example.com")
            client.create_churn_event("jane@example.com")
        assert client.flush(30)
    assert server.count() == 1
    *calls, outer = spans.get_finished_spans()
    assert outer.name == "request"
    parents = [call.parent.span_id for call in calls]
    assert parents == ([request.get_span_context().span_id] if INSTRUMENTS_ALL else [])


def test_batches_of_tasks_make_no_spans(server, spans):
    async def main():
        async with windback.AsyncWindback("sk_test_1", "shop", base_url=server.url) as client:
            await client.track_event("login", "jane@example.com")
            assert await client.flush(30)

    anyio.run(main)
    assert server.count() == 1
    assert spans.get_finished_spans() == ()


def test_events_have_the_trace_that_they_were_tracked_in(server, spans, metrics):
    tracer = spans.provider.get_tracer("test")
    with make(server) as client:
        opentelemetry.instrument(client, meter_provider=metrics.provider, trace_properties=True)
        with tracer.start_as_current_span("request") as span:
            client.track_event("inside", "jane@example.com", {"plan": "pro"})
            client.track_event("named", "jane@example.com", {"trace_id": "mine"})
            with pytest.raises(windback.InvalidEventError, match="properties"):
                client.track_event("wrong", "jane@example.com", "properties")
        client.track_event("outside", "jane@example.com")
    inside, named, outside = server.events()
    context = span.get_span_context()
    assert inside.properties == {
        "plan": "pro",
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
    }
    assert named.properties["trace_id"] == "mine"
    assert not outside.properties


def test_a_log_handler_that_exports_does_not_call_itself(server, metrics, caplog):
    caplog.set_level(logging.DEBUG)
    with make(server) as client:
        opentelemetry.instrument(client, meter_provider=metrics.provider)
        client.track_event("login", "jane@example.com")
        assert client.flush(30)
        for _ in range(3):
            metrics.read()
    assert len([record for record in caplog.records if record.name == "windback"]) < 20


def test_nothing_on_the_way_of_an_event_is_another_with_metrics(server, metrics):
    with make(server) as client:
        before = way_of(client)
        opentelemetry.instrument(client, meter_provider=metrics.provider)
        prometheus.register(client, CollectorRegistry())
        assert way_of(client) == before
        assert way_of(client)[1] is before[1]


#: Sentry's and OpenTelemetry's handlers on the root logger at DEBUG; each export makes a request, too.
HANDLERS = """\
import logging, sys, threading
import httpx, sentry_sdk
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader, ConsoleMetricExporter
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from sentry_sdk.integrations.logging import LoggingIntegration
import windback
from windback.opentelemetry import instrument

url = sys.argv[1]
exported, records = [], []

class Exporter:
    def export(self, batch):
        exported.extend(batch)
        httpx.get(url + "/nowhere")
        return None
    def shutdown(self):
        pass
    def force_flush(self, timeout_millis=30000):
        return True

class Counting(logging.Handler):
    def emit(self, record):
        records.append(record.name)

sentry_sdk.init(
    dsn=url.replace("http://", "http://key@").replace("/api/v1", "/1"), traces_sample_rate=1.0,
    integrations=[LoggingIntegration(level=logging.DEBUG, event_level=logging.WARNING)],
)
logs = LoggerProvider()
logs.add_log_record_processor(BatchLogRecordProcessor(Exporter(), schedule_delay_millis=100))
logging.basicConfig(level=logging.DEBUG, handlers=[LoggingHandler(logging.DEBUG, logs), Counting()])
HTTPXClientInstrumentor().instrument()
reader = PeriodicExportingMetricReader(ConsoleMetricExporter(out=open("/dev/null", "w")), 100)
metrics = MeterProvider([reader])
client = windback.Windback("sk_test_1", "shop", base_url=url, debug=True, max_retries=1)
instrument(client, meter_provider=metrics)
for n in range(100):
    client.track_event("login", "jane@example.com", {"n": n})
assert client.flush(30)
client.close()
metrics.shutdown()
print(client.stats().delivered, records.count("windback"))
"""


def test_handlers_of_sentry_and_opentelemetry_at_debug_make_no_log_line_of_a_log_line(server, tmp_path):
    server.faults([{"status": 503, "times": 1, "path": "/track"}])
    done = subprocess.run(
        [sys.executable, "-c", HANDLERS, server.url],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        # sentry-sdk imports eventlet, whose own DNS does not load beside httpcore2.
        env={**os.environ, "EVENTLET_NO_GREENDNS": "yes"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "RecursionError" not in done.stderr
    delivered, lines = map(int, done.stdout.split())
    assert delivered == 100
    assert 200 <= lines < 260, "two lines for each event with debug=True, and a few others"


@pytest.mark.parametrize("kind", [windback.Windback, windback.AsyncWindback])
@pytest.mark.parametrize("status", [200, 503])
def test_the_duration_of_each_request_is_in_a_histogram(server, metrics, kind, status):
    async def main():
        client = kind("sk_test_1", "shop", base_url=server.url, max_retries=1)
        opentelemetry.instrument(client, meter_provider=metrics.provider)
        opentelemetry.instrument(client, meter_provider=metrics.provider)
        if kind is windback.Windback:
            client.track_event("login", "jane@example.com")
            client.flush(30)
            client.close(0)
        else:
            await client.track_event("login", "jane@example.com")
            await client.flush(30)
            await client.close(0)
        return client.stats().requests

    if status != 200:
        server.faults([{"status": status, "times": 1}])
    requests = anyio.run(main)
    points = metrics.histogram("windback.client.send.duration")
    failed = {} if status == 200 else {"error.type": "503"}
    assert {tuple(sorted(each.attributes.items())) for each in points} == {
        tuple(sorted({"windback.project": "shop", **more}.items())) for more in ({}, failed)
    }
    assert sum(each.count for each in points) == requests
    assert all(0 < each.sum < 60 for each in points)
    if HAS_ADVICE:
        assert points[0].explicit_bounds[0] == 0.005, "seconds, not milliseconds"


def test_a_tracer_provider_gets_a_span_of_each_request_which_is_of_no_other_trace(server, spans):
    server.faults([{"status": 503, "times": 1}])
    with make(server) as client:
        for _ in range(2):
            opentelemetry.instrument(client, tracer_provider=spans.provider)
        with spans.provider.get_tracer("test").start_as_current_span("request"):
            client.track_event("login", "jane@example.com")
        assert client.flush(30)
    made = [span for span in spans.get_finished_spans() if span.name == "windback.send"]
    assert [span.attributes["http.response.status_code"] for span in made] == [503, 200]
    assert [span.attributes.get("error.type") for span in made] == ["503", None]
    assert all(span.parent is None and span.start_time < span.end_time for span in made)
    assert {span.name for span in spans.get_finished_spans()} == {"windback.send", "request"}


def test_a_relay_reports_what_it_sends(server, metrics, spans, tmp_path):
    with windback.Windback("sk_test_1", "shop", base_url=server.url, worker=None, journal=tmp_path) as client:
        for _ in range(5):
            client.track_event("login", "jane@example.com")
    relay = Relay(tmp_path, "sk_test_1", base_url=server.url)
    for _ in range(2):
        opentelemetry.instrument(relay, meter_provider=metrics.provider, tracer_provider=spans.provider)
    assert relay.drain(30)
    # Read first: an earlier SDK gives only what a histogram got since it was read last.
    assert sum(each.count for each in metrics.histogram("windback.relay.send.duration")) == 1
    found = metrics.read()
    assert found["windback.relay.read", ("windback.project", "")] == 5
    assert found["windback.relay.events", ("outcome", "delivered"), ("windback.project", "")] == 5
    assert [span.name for span in spans.get_finished_spans()] == ["windback.send"]
    assert not [key for key in found if key[0].startswith("windback.client")]
    relay.close()
    with pytest.raises(windback.ConfigurationError, match="trace_properties"):
        opentelemetry.instrument(relay, trace_properties=True)


def test_a_relay_of_a_broker_reports_each_project(server, metrics, redis_server):
    for slug in ("one", "two"):
        with make(server, slug, broker=redis_server.url) as client:
            client.track_event("login", "jane@example.com")
            assert client.flush(30)
    relay = BrokerRelay(
        redis_server.url, api_keys={"one": "sk_test_1", "two": "sk_test_2"}, base_url=server.url
    )
    opentelemetry.instrument(relay, meter_provider=metrics.provider)
    assert relay.drain(30)
    found = metrics.read()
    for slug in ("one", "two"):
        assert found["windback.relay.events", ("outcome", "delivered"), ("windback.project", slug)] == 1
    relay.close()


def test_a_forked_child_reports_its_own_events(server, metrics):
    with make(server) as client:
        opentelemetry.instrument(client, meter_provider=metrics.provider)
        client.track_event("login", "jane@example.com")
        assert client.flush(30)
        child = os.fork()
        if child == 0:
            for _ in range(2):
                client.track_event("login", "jane@example.com")
            os._exit(int(value(metrics.read(), "accepted")))
        assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 2
        assert value(metrics.read(), "accepted") == 1


def test_metrics_keep_no_client_alive(server, metrics, spans):
    client = make(server)
    opentelemetry.instrument(
        client, meter_provider=metrics.provider, tracer_provider=spans.provider, trace_properties=True
    )
    client.track_event("login", "jane@example.com")
    client.close()
    engine = weakref.ref(engine_of(client))
    del client
    eventually(lambda: gc.collect() is not None and engine() is None)
    assert value(metrics.read(), "events", outcome="delivered") == 1


@pytest.mark.parametrize("worker", ["process", None])
def test_requests_that_another_process_makes_have_no_durations_and_those_of_a_sender_are_counted(
    server, metrics, worker, tmp_path
):
    with make(server, worker=worker, journal=tmp_path) as client:
        opentelemetry.instrument(client, meter_provider=metrics.provider)
        client.track_event("login", "jane@example.com")
        if worker is None:
            relay = Relay(tmp_path, "sk_test_1", base_url=server.url)
            assert relay.drain(30)
            relay.close()
        assert client.flush(30)
        found = metrics.read()
        assert value(found, "requests") == client.stats().requests == (worker == "process")
        assert value(found, "events", outcome="delivered") == 1
        assert metrics.histogram("windback.client.send.duration") == []


@pytest.mark.parametrize(
    "arguments", [{"client": "client"}, {"meter_provider": "provider"}, {"tracer_provider": "provider"}]
)
def test_an_argument_of_the_wrong_kind_is_named(arguments):
    with pytest.raises(windback.ConfigurationError, match=next(iter(arguments))):
        opentelemetry.instrument(**arguments)
