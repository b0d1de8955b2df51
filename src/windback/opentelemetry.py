"""OpenTelemetry: the metrics of clients, and the trace of an event in its properties.

    from windback.opentelemetry import instrument

    instrument(client)

The counters are read when a metric reader asks; `track_event` does nothing for it. See docs/monitoring.md.
"""

from __future__ import annotations

from importlib import metadata
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Set, Tuple
from weakref import WeakKeyDictionary

from .default import get_client
from .delivery.track_events import Encode
from .errors import ConfigurationError
from .event.encode import Properties, Timestamp
from .observed import Client, Observed, Seen, check_client
from .process import lifecycle

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
    from opentelemetry.trace import format_span_id, format_trace_id, get_current_span
except ImportError as error:
    message = 'windback.opentelemetry needs OpenTelemetry: pip install "windback[opentelemetry]"'
    raise ImportError(message) from error

__all__ = ["instrument"]

_Value = Tuple[float, Mapping[str, str]]
_Read = Callable[[Seen], Iterable[_Value]]


def instrument(
    client: Optional[Client] = None,
    *,
    meter_provider: Optional[MeterProvider] = None,
    trace_properties: bool = False,
) -> None:
    """Report the counters of a client as metrics. A second call for the same client does nothing.

    Clients of one project are added up; the attribute `windback.project` is the project's slug. The client is
    not kept alive: what it had counted at the last reading stays in the sums.

    Args:
        client: The client; `windback.get_client()`, as it is when the metrics are read, if None.
        meter_provider: Where the metrics go; the global one if None.
        trace_properties: Add `trace_id` and `span_id` of the current span to the properties of each event
            that is tracked inside one. A property of that name that the call gives wins.

    Raises:
        ConfigurationError: An argument is of the wrong kind; or, with trace_properties and without a client,
            the environment has no usable settings.
    """
    check_client(client)
    provider = get_meter_provider() if meter_provider is None else meter_provider
    if not isinstance(provider, MeterProvider):
        message = f"meter_provider must be a MeterProvider of OpenTelemetry, not {type(provider).__name__}"
        raise ConfigurationError(message)
    with lifecycle.loading:  # one thread makes the instruments
        metrics = _metrics.get(provider)
        if metrics is None:
            metrics = _metrics[provider] = _Metrics(provider)
        metrics.clients.add(client)
        if trace_properties:
            _trace(get_client() if client is None else client)


class _Metrics:
    """The instruments of one meter provider, and the clients that they report."""

    def __init__(self, provider: MeterProvider) -> None:
        self.clients = Observed()
        #: What the instruments report, and which of them did: all of one reading report the same moment.
        self._now: Dict[str, Seen] = {}
        self._reported: Set[str] = set()
        meter = provider.get_meter("windback", metadata.version("windback"))
        for name, unit, description, read in _COUNTERS:
            meter.create_observable_counter(name, [self._callback(name, read)], unit, description)
        for name, unit, description, read in _SUMS:
            meter.create_observable_up_down_counter(name, [self._callback(name, read)], unit, description)
        for name, unit, description, read in _GAUGES:
            meter.create_observable_gauge(name, [self._callback(name, read)], unit, description)

    def _callback(self, name: str, read: _Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
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
            self._now = self.clients.by_project()
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


#: Name, unit, description, and the values. accepted = the sum of events + queue.size.
_COUNTERS: List[Tuple[str, str, str, _Read]] = [
    ("windback.client.accepted", "{event}", "Events that track_event accepted.", _plain("accepted")),
    ("windback.client.events", "{event}", "Events with an outcome.", _outcomes),
    ("windback.client.refused", "{event}", "Events that track_event refused.", _refusals),
    ("windback.client.requests", "{request}", "HTTP requests made for batches.", _plain("requests")),
    ("windback.client.retries", "{request}", "Requests that repeated one.", _plain("retries")),
]
_SUMS: List[Tuple[str, str, str, _Read]] = [
    ("windback.client.queue.size", "{event}", "Events not delivered yet.", _plain("pending")),
    ("windback.client.queue.bytes", "By", "Their encoded size.", _plain("pending_bytes")),
]
_GAUGES: List[Tuple[str, str, str, _Read]] = [
    (
        "windback.client.queue.oldest_age",
        "s",
        "Age of the oldest event not delivered yet, 0 if there is none.",
        lambda seen: [(seen.oldest_s, {})],
    ),
]


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
