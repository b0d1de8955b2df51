"""The clients, one function each: how it is set up, how an application calls it, how it is flushed.

Each is set up as its documentation says, with three exceptions. Its queue is large enough for the burst, as
nothing may be dropped. It sends to the sink and to nowhere else, and what it would do besides (fetch
settings, report on itself) is off. Its own log is off.

Each set-up imports what it needs, so a cold start loads this file and one client.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

if TYPE_CHECKING:
    import subprocess
    from typing import Literal

EVENT = "feature_used"
EMAIL = "user@example.com"
PROPERTIES = '{"plan": "pro", "feature": "export", "duration_ms": i, "team": "growth"}'
ENCODED = (
    'dumps({{"event": EVENT, "customer_email": EMAIL, "timestamp": now(utc), "properties": {properties}}})'
)

#: More events than any measurement makes, and more bytes.
PLENTY = 10_000_000
PLENTY_OF_BYTES = JOURNAL_BYTES = 1 << 33
#: The statement that is timed.
TRACK = "client.track_event(event=EVENT, customer_email=EMAIL, properties=p)"


class Client(NamedTuple):
    """A client that is ready to be called."""

    #: The call, in the words of an application; `p` is what `prepare` made. Compiled into the measuring
    #: loop, as timeit does it, so that no wrapper is measured.
    statement: str
    #: What the statement refers to.
    names: dict[str, Any]
    #: Blocks until everything is delivered or so many seconds are over.
    flush: Callable[[float], object]
    #: What is made before the clock starts.
    prepare: str = PROPERTIES
    #: How many events it holds, where it delivers none.
    held: Callable[[], int] | None = None
    #: A process that sends for it and is ended after the measurement, and the directory where it reads.
    relay: subprocess.Popen[bytes] | None = None
    journal: str | None = None


class Adapter(NamedTuple):
    setup: Callable[..., Client]
    #: The distribution, for its version.
    package: str
    #: What an application imports; None: its import is not measured.
    imports: str | None = None
    #: Events of an end to end measurement: about a second's worth.
    burst: int = 0
    #: False: there is nothing that it could deliver to, so only the call is measured.
    delivers: bool = True
    #: The statement is a coroutine, so it is measured in an event loop only.
    is_async: bool = False
    #: Another package has its name: this version is installed in an environment of its own.
    alone: str | None = None
    #: False: it keeps no queue, so a call may wait for the server.
    queues: bool = True
    #: Of the calls of a measurement it makes this share, as each of them is a request.
    share: float = 1.0


def floor(url: str) -> Client:
    from floor import Floor

    client = Floor(url)
    return Client(
        "track_event(event=EVENT, customer_email=EMAIL, properties=p)",
        {"track_event": client.track_event},
        client.flush,
    )


def windback(url: str, max_in_flight: int = 4, **options: object) -> Client:
    from windback import Windback

    return _windback(Windback, TRACK, url, max_in_flight=max_in_flight, **options)


def windback_async_task(url: str) -> Client:
    """The loop does the sending, too."""
    return _windback_async(url, "task")


def windback_async_thread(url: str) -> Client:
    """A thread sends."""
    return _windback_async(url, "thread")


def _windback_async(url: str, worker: Literal["task", "thread"]) -> Client:
    from windback import AsyncWindback

    return _windback(AsyncWindback, f"await {TRACK}", url, worker=worker)


def _windback(make: Callable[..., Any], call: str, url: str, **options: object) -> Client:
    client = make(
        **options,
        api_key="sk_test_bench",
        project_slug="bench",
        base_url=url,
        max_queue_size=PLENTY,
        max_queue_bytes=PLENTY_OF_BYTES,
    )
    return Client(call, {"client": client}, lambda timeout: client.flush(timeout=timeout))


def windback_journal(url: str, **options: object) -> Client:
    """What was accepted survives `kill -9`, in files where temporary files are."""
    import tempfile

    journal = tempfile.mkdtemp(prefix="windback-bench-")
    client = windback(url, journal=journal, max_journal_bytes=JOURNAL_BYTES, **options)
    return client._replace(journal=journal)


def windback_fsync(url: str) -> Client:
    """The same, brought to the disk itself each second."""
    return windback_journal(url, fsync="interval")


def windback_process(url: str) -> Client:
    """A journal in shared memory, and another process sends."""
    return windback(url, worker="process", max_journal_bytes=JOURNAL_BYTES)


def windback_relay(url: str) -> Client:
    """A journal in files, and `windback relay` sends, on one core."""
    import subprocess
    import sys

    client = windback_journal(url, worker=None)
    relay = subprocess.Popen(
        [sys.executable, "-c", "import sys; from windback.cli import main; sys.exit(main())", "relay"],
        env={
            **os.environ,
            "WINDBACK_JOURNAL": str(client.journal),
            "WINDBACK_API_KEY": "sk_test_bench",
            "WINDBACK_BASE_URL": url,
        },
        stderr=subprocess.DEVNULL,
    )
    os.sched_setaffinity(relay.pid, {min(os.sched_getaffinity(0))})
    return client._replace(relay=relay)


def confluent_kafka(_url: str) -> Client:
    """An event made, encoded and queued, as for the floor. There is no broker, so it stays in the queue."""
    producer, names = _producer()
    return Client(
        f"producer.produce(TOPIC, {ENCODED.format(properties='p')})",
        names,
        lambda _: None,
        held=producer.__len__,
    )


def confluent_kafka_produce(_url: str) -> Client:
    """The C call by itself: the bytes were made before the clock started."""
    producer, names = _producer()
    return Client(
        "producer.produce(TOPIC, p)",
        names,
        lambda _: None,
        prepare=ENCODED.format(properties=PROPERTIES),
        held=producer.__len__,
    )


def _producer() -> tuple[Any, dict[str, Any]]:
    from datetime import datetime, timezone

    import orjson
    from confluent_kafka import Producer

    producer = Producer(
        {
            "log_level": 0,
            "queue.buffering.max.messages": PLENTY,
            "queue.buffering.max.kbytes": 2_147_483_647,
        }
    )
    names = {
        "producer": producer,
        "TOPIC": "events",
        "dumps": orjson.dumps,
        "now": datetime.now,
        "utc": timezone.utc,
    }
    return producer, names


def statsig(url: str) -> Client:
    """The user is made once, which an application with more than one user could not do."""
    from statsig_python_core import Statsig, StatsigOptions, StatsigUser

    # It reports its own failures to its makers, over TLS and from Rust, where Python cannot refuse it.
    os.environ["HTTPS_PROXY"] = "http://127.0.0.1:9"
    client = Statsig(
        "secret-bench",
        StatsigOptions(
            specs_url=f"{url}/v1/download_config_specs",
            log_event_url=f"{url}/v1/log_event",
            specs_sync_interval_ms=3_600_000,
            event_logging_max_pending_batch_queue_size=PLENTY,
            enable_id_lists=False,
            disable_country_lookup=True,
            disable_disk_access=True,
            fallback_to_statsig_api=False,
            output_log_level="none",
        ),
    )
    client.initialize().wait()
    return Client(
        "client.log_event(user, EVENT, None, p)",
        {"client": client, "user": StatsigUser(EMAIL)},
        lambda _: client.flush_events().wait(),
    )


def posthog(url: str) -> Client:
    from posthog import Posthog

    client = Posthog("phc_bench", host=url, max_queue_size=PLENTY)
    return Client(
        "client.capture(EVENT, distinct_id=EMAIL, properties=p)",
        {"client": client},
        lambda timeout: client.flush(timeout_seconds=timeout),
    )


def segment(url: str) -> Client:
    from segment.analytics import Client as Segment

    client = Segment("bench", host=url, max_queue_size=PLENTY)
    return Client("client.track(EMAIL, EVENT, p)", {"client": client}, lambda _: client.flush())


def sentry(url: str) -> Client:
    import sentry_sdk
    from sentry_sdk import logger
    from sentry_sdk._log_batcher import LogBatcher
    from sentry_sdk.integrations.atexit import AtexitIntegration

    LogBatcher.MAX_BEFORE_DROP = PLENTY  # not an option
    sentry_sdk.init(
        dsn=url.replace("://", "://key@") + "/1",
        enable_logs=True,
        transport_queue_size=PLENTY,
        default_integrations=False,
        integrations=[AtexitIntegration(callback=lambda _pending, _timeout: None)],
        auto_session_tracking=False,
        enable_backpressure_handling=False,
        send_client_reports=False,
    )
    return Client(
        'logger.info(EVENT, attributes={"customer_email": EMAIL, **p})',
        {"logger": logger},
        lambda timeout: sentry_sdk.flush(timeout=timeout),
    )


def opentelemetry(url: str) -> Client:
    from opentelemetry._logs import SeverityNumber
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    provider = LoggerProvider()
    provider.add_log_record_processor(
        BatchLogRecordProcessor(OTLPLogExporter(endpoint=f"{url}/v1/logs"), max_queue_size=PLENTY)
    )
    return Client(
        "logger.emit(timestamp=time_ns(), severity_number=INFO, body=EVENT,"
        ' attributes={"customer_email": EMAIL, **p})',
        {"logger": provider.get_logger("bench"), "time_ns": time.time_ns, "INFO": SeverityNumber.INFO},
        lambda _: provider.force_flush(),
    )


def amplitude(url: str) -> Client:
    from amplitude import Amplitude, BaseEvent, Config

    client = Amplitude("bench", Config(server_url=f"{url}/2/httpapi"))

    def flush(_timeout: float) -> None:
        for future in filter(None, client.flush()):
            future.result()

    return Client(
        "client.track(BaseEvent(EVENT, user_id=EMAIL, event_properties=p))",
        {"client": client, "BaseEvent": BaseEvent},
        flush,
    )


def mixpanel(url: str) -> Client:
    """It has no thread: each 50th call sends what was buffered, and waits for the answer."""
    import threading

    from mixpanel import BufferedConsumer, Mixpanel

    consumer = BufferedConsumer(events_url=f"{url}/track")
    # Threads may not share the buffer (two of them send the same events), so each call holds a lock.
    return Client(
        "with lock: client.track(EMAIL, EVENT, p)",
        {"client": Mixpanel("bench", consumer=consumer), "lock": threading.Lock()},
        lambda _: consumer.flush(),
    )


def rudderstack(url: str) -> Client:
    from rudderstack.analytics.client import Client as Rudderstack

    client = Rudderstack("bench", host=url, max_queue_size=PLENTY)
    return Client("client.track(EMAIL, EVENT, p)", {"client": client}, lambda _: client.flush())


def snowplow(url: str) -> Client:
    """JSON as it is: in base64, its default, the sink could not count the events."""
    import logging

    from snowplow_tracker import AsyncEmitter, SelfDescribing, SelfDescribingJson, Subject, Tracker

    logging.getLogger("snowplow_tracker").setLevel(logging.CRITICAL)
    emitter = AsyncEmitter(url, protocol="http", buffer_capacity=PLENTY)
    client = Tracker("bench", emitter, subject=Subject().set_user_id(EMAIL), encode_base64=False)
    return Client(
        "client.track(SelfDescribing(SelfDescribingJson(SCHEMA, p)))",
        {
            "client": client,
            "SelfDescribing": SelfDescribing,
            "SelfDescribingJson": SelfDescribingJson,
            "SCHEMA": f"iglu:com.bench/{EVENT}/jsonschema/1-0-0",
        },
        lambda _: emitter.sync_flush(),
    )


def libhoney(url: str) -> Client:
    from libhoney.client import Client as Honeycomb
    from libhoney.transmission import Transmission

    client = Honeycomb("bench", "bench", api_host=url, transmission_impl=Transmission(max_pending=PLENTY))
    return Client(
        'client.new_event({"event": EVENT, "customer_email": EMAIL, **p}).send()',
        {"client": client},
        lambda _: client.flush(),
    )


def windback_pypi(url: str) -> Client:
    """Another package of this name. It has no queue, so a call is a request."""
    from windback import Windback

    client = Windback("sk_test_bench", project_slug="bench", base_url=url)
    return Client(
        "client.track_churn(email=EMAIL, provider=EVENT, mrr=i, plan_name='pro', notes='export growth')",
        {"client": client},
        lambda _: None,
    )


#: This package in its set-ups.
OWN = (
    *("windback", "windback-journal", "windback-fsync", "windback-process", "windback-relay"),
    *("windback-async-task", "windback-async-thread"),
)
#: In the order of the tables.
ADAPTERS = {
    "floor": Adapter(floor, "orjson", "import orjson", 200_000),
    "windback": Adapter(windback, "windback", "import windback", 200_000),
    "windback-journal": Adapter(windback_journal, "windback", burst=200_000),
    "windback-fsync": Adapter(windback_fsync, "windback", burst=200_000),
    "windback-process": Adapter(windback_process, "windback", burst=200_000),
    "windback-relay": Adapter(windback_relay, "windback", burst=200_000),
    "windback-async-task": Adapter(windback_async_task, "windback", burst=100_000, is_async=True),
    "windback-async-thread": Adapter(windback_async_thread, "windback", burst=100_000, is_async=True),
    "confluent-kafka": Adapter(
        confluent_kafka, "confluent-kafka", "from confluent_kafka import Producer", delivers=False
    ),
    "confluent-kafka-produce": Adapter(confluent_kafka_produce, "confluent-kafka", delivers=False),
    "statsig": Adapter(statsig, "statsig-python-core", "from statsig_python_core import Statsig", 100_000),
    "opentelemetry-logs": Adapter(
        opentelemetry,
        "opentelemetry-exporter-otlp-proto-http",
        "from opentelemetry.sdk._logs.export import BatchLogRecordProcessor; "
        "from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter",
        20_000,
    ),
    "sentry-logs": Adapter(sentry, "sentry-sdk", "import sentry_sdk", 20_000),
    "segment": Adapter(segment, "segment-analytics-python", "from segment.analytics import Client", 15_000),
    "posthog": Adapter(posthog, "posthog", "from posthog import Posthog", 10_000),
    "amplitude": Adapter(amplitude, "amplitude-analytics", "from amplitude import Amplitude", 10_000),
    "mixpanel": Adapter(mixpanel, "mixpanel", "from mixpanel import Mixpanel", 10_000, queues=False),
    "rudderstack": Adapter(
        rudderstack, "rudder-sdk-python", "from rudderstack.analytics.client import Client", 10_000
    ),
    "snowplow": Adapter(snowplow, "snowplow-tracker", "from snowplow_tracker import Tracker", 2_000),
    "libhoney": Adapter(libhoney, "libhoney", "from libhoney.client import Client", 10_000),
    "pypi-windback": Adapter(windback_pypi, "windback", burst=200, alone="0.2.0", queues=False, share=0.04),
}


def silence() -> None:
    import logging

    logging.disable(logging.CRITICAL)
