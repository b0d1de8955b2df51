"""Prometheus: the metrics of clients, read when they are scraped. They cost `track_event` nothing.

    from windback.prometheus import register

    register(client)

The names are those of the relay's metrics, with the prefix `windback_client_`; see docs/monitoring.md.

In multiprocess mode a scrape reads the files of all processes and no collectors. So a thread moves real
counters and gauges there, every few seconds.
"""

from __future__ import annotations

import logging
from typing import Dict, Generator, Iterable, Literal, Mapping, Optional, Tuple, Union
from weakref import WeakKeyDictionary

from .delivery.workers.maintenance import MaintenanceThread
from .errors import ConfigurationError
from .observed import Client, Observed, check_client
from .options import naming_options
from .process import lifecycle

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, values
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        'windback.prometheus needs prometheus-client: pip install "windback[metrics]"'
    ) from error

from .relay.health import client_metrics

__all__ = ["register"]

logger = logging.getLogger("windback")

#: How often the files of multiprocess mode are written (seconds).
_WRITE_S = 5.0
#: Gauges that are not added up over the processes.
_HIGHEST = ("windback_client_held_up", "windback_client_oldest_event_seconds")


@naming_options
def register(client: Optional[Client] = None, registry: Optional[CollectorRegistry] = None) -> None:
    """Add the metrics of a client to a registry. A second call for the same client does nothing.

    Clients of one project are added up; the label `project` is the project's slug. The client is not kept
    alive: its last counts stay in the sums.

    In prometheus_client's multiprocess mode the metrics are in its files, and up to 5 s old. Its
    `MultiProcessCollector` reads them; the registry is not used.

    Args:
        client: The client. None: `windback.get_client()`, at the time when the metrics are read.
        registry: The registry. None: prometheus_client's own.

    Raises:
        ConfigurationError: An argument is of the wrong kind.
    """
    check_client(client)
    target: object = REGISTRY if registry is None else registry
    if not isinstance(target, CollectorRegistry):
        raise ConfigurationError(
            f"registry must be a CollectorRegistry of prometheus_client, not {type(target).__name__}"
        )
    with lifecycle.loading:  # one thread makes the collector
        if getattr(values.ValueClass, "_multiprocess", False):
            _write_files(client)
            return
        collector = _collectors.get(target)
        if collector is None:
            collector = _collectors[target] = _Collector()
            target.register(collector)
        collector.clients.add(client)


class _Collector(Collector):
    """Makes metrics of the registered clients at each scrape."""

    def __init__(self) -> None:
        self.clients = Observed()

    def describe(self) -> Iterable[Metric]:
        """Return the families without values: reading them now would make the default client."""
        return client_metrics({}, {}, ())

    def collect(self) -> Generator[Metric, None, None]:
        """Yield all metrics."""
        return _metrics(self.clients)


def _metrics(clients: Observed) -> Generator[Metric, None, None]:
    found = clients.by_project()
    stats = {project: each.stats for project, each in found.items()}
    oldest_s = {project: each.oldest_s for project, each in found.items()}
    journals = {project for project, each in found.items() if each.has_journal}
    return client_metrics(stats, oldest_s, journals)


_collectors: WeakKeyDictionary[CollectorRegistry, _Collector] = WeakKeyDictionary()


# -- multiprocess mode ------------------------------------------------------------------------------


class _Files:
    """Real counters and gauges, whose values prometheus_client has in a file of each process."""

    def __init__(self) -> None:
        self.clients = Observed()
        self._metrics: Dict[str, Union[Counter, Gauge]] = {}
        self._reset()

    def _reset(self) -> None:
        #: The values of the counters, as they were written.
        self._written: Dict[Tuple[str, Tuple[str, ...]], float] = {}
        self._thread = MaintenanceThread(
            self.write, "windback-metrics", look=self.write, rest_s=lambda: _WRITE_S
        )

    def start(self) -> None:
        """Write now, and every few seconds."""
        if not self._thread.wake():
            logger.warning("the metrics of multiprocess mode are written only at exit: no thread may run")

    def start_in_child(self) -> None:
        """Start in a forked child, which has counted nothing yet."""
        self._reset()
        self.start()

    def write(self) -> None:
        """Move the counters by what was counted since the last time."""
        try:
            # A fork waits for this: prometheus_client has a lock that a child would never get.
            with lifecycle.loading:
                for family in _metrics(self.clients):
                    for sample in family.samples:
                        self._write_one(family, sample.labels, sample.value)
        except OSError as error:  # the disk is full, or no directory
            logger.debug("the metrics of multiprocess mode can't be written", exc_info=error)

    def _write_one(self, family: Metric, labels: Mapping[str, str], value: float) -> None:
        metric = self._metrics.get(family.name)
        if metric is None:
            metric = self._metrics[family.name] = _real(family, tuple(labels))
        if isinstance(metric, Gauge):
            metric.labels(**labels).set(value)
            return
        key = family.name, tuple(labels.values())
        before = self._written.get(key, -1.0)
        if value > before:  # a counter that is 0 is shown, too
            self._written[key] = value  # first: what fails halfway must not count twice
            metric.labels(**labels).inc(value - max(0.0, before))


def _real(family: Metric, labels: Tuple[str, ...]) -> Union[Counter, Gauge]:
    """Return the counter or gauge of a family. It is in no registry: a scrape reads its file."""
    if family.type == "counter":
        return Counter(family.name, family.documentation, labels, registry=None)
    mode: Literal["livemax", "livesum"] = "livemax" if family.name in _HIGHEST else "livesum"
    return Gauge(family.name, family.documentation, labels, registry=None, multiprocess_mode=mode)


_files: Optional[_Files] = None


def _write_files(client: Optional[Client]) -> None:
    global _files  # noqa: PLW0603 - a process has one set of files
    if _files is None:
        _files = _Files()
        lifecycle.in_child.append(_files.start_in_child)
        lifecycle.after_exit.append(_files.write)
    _files.clients.add(client)
    _files.start()
