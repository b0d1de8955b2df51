"""The relay's HTTP server for monitoring: /healthz, /readyz, and /metrics for Prometheus.

Healthy: its threads check for events. Ready: its source can be reached, its events are accepted, and it
is not stopping. The answer contains the reason otherwise.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
from itertools import repeat
from typing import Container, Generator, Iterable, List, Mapping, Optional, Protocol, Tuple, Type

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from .. import clock
from ..broker.layout import Numbers
from ..stats import Stats

#: A relay that has not checked for this long hangs (seconds): one check waits for Redis a few times, 5 s
#: each.
STALE_S = 60.0
#: How long a client may take to send its request (seconds).
_PATIENCE_S = 10.0


class Observed(Protocol):
    """The parts of a relay that are monitored."""

    @property
    def looked_s(self) -> float:
        """When it last checked for events."""
        ...

    @property
    def is_stopping(self) -> bool:
        """Whether it is stopping."""
        ...

    def by_project(self) -> Mapping[str, Stats]:
        """Return the counts of the events that it read."""
        ...

    def claimed(self) -> Mapping[str, int]:
        """Return how many batches it took over from others."""
        ...

    def standing(self) -> Optional[List[Numbers]]:
        """Return the contents of the broker; None if it can't be asked."""
        ...


def health(relay: Observed) -> Tuple[int, Mapping[str, object]]:
    """Answer /healthz."""
    silent_s = clock.now_s() - relay.looked_s
    if silent_s > STALE_S:
        return 503, {"status": "hangs", "looked_s": round(silent_s, 1)}
    return 200, {"status": "ok"}


def readiness(relay: Observed) -> Tuple[int, Mapping[str, object]]:
    """Answer /readyz."""
    if relay.is_stopping:
        return 503, {"status": "draining"}
    stats = relay.by_project()
    problems = {project: each.problem for project, each in stats.items() if each.problem is not None}
    if problems:
        return 503, {"status": "held up", "problems": problems}
    return 200, {"status": "ready"}


class _Collector(Collector):
    """Makes metrics of a relay's numbers at each scrape."""

    def __init__(self, relay: Observed) -> None:
        self._relay = relay

    def describe(self) -> Iterable[Metric]:
        """Yield nothing: the metrics would have to be read from Redis."""
        return ()

    def collect(self) -> Generator[Metric, None, None]:
        """Yield all metrics."""
        stats = self._relay.by_project()
        yield from _of_events(stats)
        yield _counter(
            "windback_relay_claimed_batches",
            "Batches taken over from exited relays.",
            self._relay.claimed(),
        )
        standing = self._relay.standing()
        yield GaugeMetricFamily(
            "windback_broker_up", "Whether the broker answers.", value=0.0 if standing is None else 1.0
        )
        found = {each.project: each for each in standing or ()}
        yield _gauge(
            "windback_broker_batches",
            "Batches in the broker: the lag.",
            {project: each.batches for project, each in found.items()},
        )
        yield _gauge(
            "windback_broker_oldest_seconds",
            "Age of the oldest of them, 0 if there is none.",
            {project: each.oldest_s or 0.0 for project, each in found.items()},
        )
        yield _gauge(
            "windback_broker_dead_letters",
            "Events that the API rejected and that are kept.",
            {project: each.dead_letters for project, each in found.items()},
        )


#: The counts of events in a relay and in a client: the end of the name, the help, the field of `Stats`.
_COUNTERS = (
    ("sent_events", "Events that the API accepted.", "delivered"),
    ("dropped_events", "Events discarded here.", "dropped"),
    ("requests", "HTTP requests sent.", "requests"),
)
_REPEATED = ("repeated_requests", "Requests that repeated one.", "retries")
_GAUGES = (
    ("pending_events", "Events not delivered yet.", "pending"),
    ("in_flight_events", "Events in a request now.", "in_flight"),
)
_REASONS = (("rejected_events", "Events that the API rejected.", "rejected_by_reason"),)
#: Only in one of the two.
_OF_RELAY = (("read_events", "Events read.", "adopted"),)
_OF_CLIENT = (
    (
        "accepted_events",
        "Events that track_event accepted, and those taken over from exited processes.",
        "accepted",
    ),
)
#: A program in order has none of these, so they begin with the first: a series costs each scrape 4 us.
_RARE_OF_CLIENT = (
    _REPEATED,
    ("worker_deaths", "Workers that ended with an exception, and were replaced.", "worker_deaths"),
    (
        "hook_errors",
        "Exceptions of before_send, on_delivery and the functions that find a customer.",
        "hook_errors",
    ),
)
_GAUGES_OF_CLIENT = (("pending_bytes", "Bytes of events not delivered yet.", "pending_bytes"),)
_JOURNAL = ("windback_client_journal_bytes", "Bytes in this process's segments of the journal.")
_OLDEST = (
    "windback_client_oldest_event_seconds",
    "Age of the oldest event not delivered yet, 0 if there is none.",
)
_REASONS_OF_CLIENT = (("refused_events", "Events that track_event refused.", "refused"),)


def _of_events(stats: Mapping[str, Stats]) -> Generator[Metric, None, None]:
    return _families("windback_relay", stats, (*_OF_RELAY, *_COUNTERS, _REPEATED), _GAUGES, _REASONS)


def client_metrics(
    stats: Mapping[str, Stats], oldest_s: Mapping[str, float], journals: Container[str]
) -> Generator[Metric, None, None]:
    """Yield the metrics of clients, whose stats and oldest events are given by project.

    journals: the projects with a client that has had a journal.
    """
    yield _gauge(*_OLDEST, oldest_s)
    yield _gauge(*_JOURNAL, {key: each.journal_bytes for key, each in stats.items() if key in journals})
    for name, text, field in _RARE_OF_CLIENT:
        found = {key: getattr(each, field) for key, each in stats.items()}
        yield _counter(f"windback_client_{name}", text, {key: n for key, n in found.items() if n})
    yield from _families(
        "windback_client",
        stats,
        _OF_CLIENT + _COUNTERS,
        _GAUGES + _GAUGES_OF_CLIENT,
        _REASONS + _REASONS_OF_CLIENT,
    )


_Names = Tuple[Tuple[str, str, str], ...]


def _families(
    prefix: str, stats: Mapping[str, Stats], counters: _Names, gauges: _Names, reasons: _Names
) -> Generator[Metric, None, None]:
    for name, text, field in counters:
        yield _counter(f"{prefix}_{name}", text, {key: getattr(each, field) for key, each in stats.items()})
    for name, text, field in reasons:
        family = CounterMetricFamily(f"{prefix}_{name}", text, labels=("project", "reason"))
        for project, each in stats.items():
            for reason, count in getattr(each, field).items():
                family.add_metric((project, reason), count)
        yield family
    for name, text, field in gauges:
        yield _gauge(f"{prefix}_{name}", text, {key: getattr(each, field) for key, each in stats.items()})
    held_up = {project: each.problem is not None for project, each in stats.items()}
    yield _gauge(f"{prefix}_held_up", "1 if events can't be delivered now, else 0.", held_up)


def _counter(name: str, text: str, values: Mapping[str, float]) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=("project",)), f"{name}_total", values)


def _gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=("project",)), name, values)


def _filled(family: Metric, name: str, values: Mapping[str, float]) -> Metric:
    """Add a value for each project. Less work than `add_metric`, for an application with many clients."""
    labels = ({"project": project} for project in values)
    family.samples += map(Sample, repeat(name), labels, values.values())
    return family


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that went away."""


@contextlib.contextmanager
def answering(relay: Observed, host: str, port: int) -> Generator[str, None, None]:
    """Answer requests while a block of code runs. Yields the URL. Port 0: a free one. Raises OSError."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(relay))
    kind = _Server6 if ":" in host else _Server
    with kind((host, port), _handler(relay, registry)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            shown = f"[{host}]" if ":" in host else host
            yield f"http://{shown}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _Server6(_Server):
    address_family = socket.AF_INET6


def _handler(relay: Observed, registry: CollectorRegistry) -> Type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _PATIENCE_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
            elif path in ("/healthz", "/readyz"):
                status, said = health(relay) if path == "/healthz" else readiness(relay)
                self._answer(status, json.dumps(said).encode(), "application/json")
            else:
                self._answer(404, b"/healthz, /readyz, /metrics\n", "text/plain")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server calls it so
            """Log nothing: scrapes every few seconds are not worth a line."""

    return Handler
