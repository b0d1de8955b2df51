"""OpenTelemetry: metrics of clients and relays, and the trace of an event in its properties.

    from windback.opentelemetry import instrument

    instrument(client)

The counters are read when a metric reader asks; `track_event` does nothing for it. See docs/monitoring.md.
"""

from __future__ import annotations

import inspect
import time
from importlib import metadata
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Set, Tuple, Union
from weakref import WeakKeyDictionary

from .api.answer import Answer
from .default import get_client
from .delivery.engine import Engine
from .errors import ConfigurationError
from .event.encode import Encode, Properties, Timestamp
from .observed import AnyRelay, Client, Observed, OnEngine, Seen, check_client
from .options import naming_options
from .process import lifecycle
from .relay import BrokerRelay, Relay

try:
    from opentelemetry.context import Context
    from opentelemetry.metrics import (
        CallbackOptions,
        Histogram,
        Meter,
        MeterProvider,
        Observation,
        get_meter_provider,
    )
    from opentelemetry.trace import (
        SpanKind,
        Status,
        StatusCode,
        TracerProvider,
        format_span_id,
        format_trace_id,
        get_current_span,
    )
except ImportError as error:
    raise ImportError(
        'windback.opentelemetry needs OpenTelemetry: pip install "windback[opentelemetry]"'
    ) from error

__all__ = ["instrument"]

_Value = Tuple[float, Mapping[str, str]]
_Read = Callable[[Seen], Iterable[_Value]]

#: The bounds that OpenTelemetry's conventions give the durations of requests (seconds).
_BOUNDS_S = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]


@naming_options
def instrument(
    client: Union[Client, AnyRelay, None] = None,
    *,
    meter_provider: Optional[MeterProvider] = None,
    tracer_provider: Optional[TracerProvider] = None,
    trace_properties: bool = False,
) -> None:
    """Report the counters of a client or a relay as metrics. A second call for the same one does nothing.

    Clients of one project are added up; the attribute `windback.project` is the project's slug. The client is
    not kept alive: what it had counted stays in the sums.

    Args:
        client: The client, or a relay. None: `windback.get_client()`, as it is when the metrics are read.
        meter_provider: Where the metrics go. None: the global one.
        tracer_provider: Where each request for a batch becomes a span, "windback.send", a trace of its own.
            None: these requests make no spans, also where HTTP is instrumented.
        trace_properties: Add `trace_id` and `span_id` of the current span to the properties of each event
            that is tracked inside one. A property of that name that the call gives wins. For a client.

    Raises:
        ConfigurationError: An argument is of the wrong kind; or, with tracer_provider or trace_properties and
            without a client, the environment has no usable settings.
    """
    relay = client if isinstance(client, (Relay, BrokerRelay)) else None
    of_client = None if isinstance(client, (Relay, BrokerRelay)) else client
    check_client(of_client)
    provider = get_meter_provider() if meter_provider is None else meter_provider
    if not isinstance(provider, MeterProvider):
        raise ConfigurationError(
            f"meter_provider must be a MeterProvider of OpenTelemetry, not {type(provider).__name__}"
        )
    if tracer_provider is not None and not isinstance(tracer_provider, TracerProvider):
        raise ConfigurationError(
            f"tracer_provider must be a TracerProvider of OpenTelemetry, not {type(tracer_provider).__name__}"
        )
    if relay is not None and trace_properties:
        raise ConfigurationError(
            "trace_properties is for a client: the events of a relay were tracked elsewhere"
        )
    with lifecycle.loading:  # one thread makes the instruments
        if relay is None and (trace_properties or tracer_provider is not None):
            of_client = get_client() if of_client is None else of_client
        metrics = _metrics.get(provider)
        if metrics is None:
            metrics = _metrics[provider] = _Metrics(provider)
        _add(metrics.of_clients, metrics.of_relays, of_client, relay)
        if tracer_provider is not None:
            spans = _spans.get(tracer_provider)
            if spans is None:
                spans = _spans[tracer_provider] = Observed(_span_maker(tracer_provider))
            _add(spans, spans, of_client, relay)
        if trace_properties and of_client is not None:
            _trace(of_client)


def _add(
    of_clients: Observed, of_relays: Observed, client: Optional[Client], relay: Optional[AnyRelay]
) -> None:
    if relay is None:
        of_clients.add(client)
    else:
        of_relays.add_relay(relay)


class _Metrics:
    """The instruments of one meter provider, and what they report."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter("windback", metadata.version("windback"))
        self.of_clients = _reported(meter, "windback.client", _OF_CLIENTS)
        self.of_relays = _reported(meter, "windback.relay", _OF_RELAYS)


def _reported(meter: Meter, prefix: str, counters: List[_Described]) -> Observed:
    """Make the instruments of clients or of relays, and return who is reported by them."""
    observed = Observed(_timer(_histogram(meter, f"{prefix}.send.duration")))
    reading = _Reading(observed)
    for name, unit, text, read in [*counters, *_COUNTERS]:
        meter.create_observable_counter(f"{prefix}.{name}", [reading.callback(name, read)], unit, text)
    for name, unit, text, read in _SUMS:
        meter.create_observable_up_down_counter(
            f"{prefix}.{name}", [reading.callback(name, read)], unit, text
        )
    for name, unit, text, read in _GAUGES:
        meter.create_observable_gauge(f"{prefix}.{name}", [reading.callback(name, read)], unit, text)
    return observed


class _Reading:
    """What the instruments report. All instruments of one reading report the same moment."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed
        self._now: Dict[str, Seen] = {}
        #: Which of them have reported it.
        self._reported: Set[str] = set()

    def callback(self, name: str, read: _Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """Return what an instrument calls."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [
                Observation(value, {"windback.project": project, **attributes})
                for project, each in self._seen_by(name).items()
                for value, attributes in read(each)
            ]

        return observe

    def _seen_by(self, name: str) -> Dict[str, Seen]:
        if not self._now or name in self._reported:
            self._reported.clear()
            self._now = self._observed.by_project()
        self._reported.add(name)
        return self._now


def _plain(name: str) -> _Read:
    return lambda seen: [(getattr(seen.stats, name), {})]


def _outcomes(seen: Seen) -> Iterable[_Value]:
    stats = seen.stats
    yield stats.delivered, {"outcome": "delivered"}
    for reason, count in stats.rejected_by_reason.items():
        yield count, {"outcome": "rejected", "error.type": reason}
    for reason, count in stats.dropped_by_reason.items():
        yield count, {"outcome": "dropped", "error.type": reason}


def _refusals(seen: Seen) -> Iterable[_Value]:
    return [(count, {"reason": reason}) for reason, count in seen.stats.refused.items()]


#: The end of the name, the unit, the description, and the values.
_Described = Tuple[str, str, str, _Read]
#: accepted, or read = the sum of events + queue.size.
_OF_CLIENTS: List[_Described] = [
    ("accepted", "{event}", "Events that track_event accepted.", _plain("accepted")),
    ("refused", "{event}", "Events that track_event refused.", _refusals),
]
_OF_RELAYS: List[_Described] = [("read", "{event}", "Events that the relay read.", _plain("adopted"))]
_COUNTERS: List[_Described] = [
    ("events", "{event}", "Events with an outcome.", _outcomes),
    ("requests", "{request}", "HTTP requests made for batches.", _plain("requests")),
    ("retries", "{request}", "Requests that repeated one.", _plain("retries")),
]
_SUMS: List[_Described] = [
    ("queue.size", "{event}", "Events not delivered yet.", _plain("pending")),
    ("queue.bytes", "By", "Their encoded size.", _plain("pending_bytes")),
]
_GAUGES: List[_Described] = [
    (
        "queue.oldest_age",
        "s",
        "Age of the oldest event not delivered yet, 0 if there is none.",
        lambda seen: [(seen.oldest_s, {})],
    ),
]


# -- requests ---------------------------------------------------------------------------------------


def _histogram(meter: Meter, name: str) -> Histogram:
    text = "Duration of a request for a batch."
    if "explicit_bucket_boundaries_advisory" in inspect.signature(meter.create_histogram).parameters:
        return meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=_BOUNDS_S)
    return meter.create_histogram(name, "s", text)  # before 1.30 a view sets the bounds


def _error_type(answer: Answer) -> Optional[str]:
    """Return the value of `error.type`: the status, or the kind of failure; None for a success."""
    if answer.ok:
        return None
    if answer.status is not None:
        return str(answer.status)
    return "other" if answer.failure is None else answer.failure.name.lower()


def _timer(histogram: Histogram) -> OnEngine:
    """Return what adds the duration of each request of an engine to a histogram."""

    def watch(engine: Engine, project: str) -> None:
        def tried(_: int, answer: Answer, duration_s: float) -> None:
            error_type = _error_type(answer)
            failed = {} if error_type is None else {"error.type": error_type}
            histogram.record(duration_s, {"windback.project": project, **failed})

        engine.hooks.on_try.append(tried)

    return watch


def _span_maker(provider: TracerProvider) -> OnEngine:
    """Return what makes a span of each request of an engine."""
    tracer = provider.get_tracer("windback", metadata.version("windback"))

    def watch(engine: Engine, project: str) -> None:
        def tried(count: int, answer: Answer, duration_s: float) -> None:
            end_ns = time.time_ns()
            span = tracer.start_span(
                "windback.send",
                Context(),  # of its own: its events may be of many traces
                SpanKind.CLIENT,
                {"windback.project": project, "windback.batch.size": count},
                start_time=end_ns - int(duration_s * 1e9),
            )
            if answer.status is not None:
                span.set_attribute("http.response.status_code", answer.status)
            error_type = _error_type(answer)
            if error_type is not None:
                span.set_attribute("error.type", error_type)
                span.set_status(Status(StatusCode.ERROR))
            span.end(end_ns)

        engine.hooks.on_try.append(tried)

    return watch


# -- the trace of an event --------------------------------------------------------------------------


def _trace(client: Client) -> None:
    encode = client._encode  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if not isinstance(getattr(encode, "__self__", None), _TracedEncoder):
        client._encode = _TracedEncoder(encode).encode  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class _TracedEncoder:
    """Encodes as before, with the current span in the properties."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode

    def encode(
        self,
        event: str,
        customer_email: str,
        properties: Optional[Properties],
        timestamp: Optional[Timestamp],
        max_event_bytes: int,
    ) -> Optional[bytes]:
        """Return the event's bytes; None if before_send refused it."""
        span = get_current_span().get_span_context()
        if span.is_valid and (properties is None or isinstance(properties, Mapping)):
            trace = {"trace_id": format_trace_id(span.trace_id), "span_id": format_span_id(span.span_id)}
            properties = {**trace, **(properties or {})}
        return self._encode(event, customer_email, properties, timestamp, max_event_bytes)


_metrics: WeakKeyDictionary[MeterProvider, _Metrics] = WeakKeyDictionary()
_spans: WeakKeyDictionary[TracerProvider, Observed] = WeakKeyDictionary()
