"""Prometheus: the metrics of clients, read when they are scraped. They cost `track_event` nothing.

    from windback.prometheus import register

    register(client)

The names are those of the relay's metrics, with the prefix `windback_client_`; see docs/monitoring.md.
"""

from __future__ import annotations

import logging
import os
from typing import Dict, Generator, Iterable, List, Optional
from weakref import WeakKeyDictionary

from .default import client_or_none
from .errors import ConfigurationError
from .observed import Client, Observed, check_client
from .stats import Stats, sum_of_stats

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    message = 'windback.prometheus needs prometheus-client: pip install "windback[metrics]"'
    raise ImportError(message) from error

from .relay.health import client_metrics

__all__ = ["register"]

logger = logging.getLogger("windback")


def register(client: Optional[Client] = None, registry: Optional[CollectorRegistry] = None) -> None:
    """Add the metrics of a client to a registry. A second call for the same client does nothing.

    Clients of one project are added up; the label `project` is the project's slug. The client is not kept
    alive: the counts of its last scrape stay in the sums.

    Args:
        client: The client. None: `windback.get_client()`, at the time when the metrics are read.
        registry: The registry. None: prometheus_client's own.

    Raises:
        ConfigurationError: An argument is of the wrong kind.
    """
    check_client(client)
    target: object = REGISTRY if registry is None else registry
    if not isinstance(target, CollectorRegistry):
        message = f"registry must be a CollectorRegistry of prometheus_client, not {type(target).__name__}"
        raise ConfigurationError(message)
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        logger.warning(
            "prometheus_client is in multiprocess mode, which reads no collectors: "
            "the metrics of windback are missing there"
        )
    collector = _collectors.get(target)
    if collector is None:
        collector = _collectors[target] = _Collector()
        target.register(collector)
    collector.add(client)


class _Collector(Collector):
    """Makes metrics of the registered clients at each scrape."""

    def __init__(self) -> None:
        self._clients: List[Observed] = []
        self._has_default = False

    def add(self, client: Optional[Client]) -> None:
        """Add a client; None is the default one."""
        if client is None:
            self._has_default = True
        elif not any(each.is_of(client) for each in self._clients):
            self._clients.append(Observed(client))

    def describe(self) -> Iterable[Metric]:
        """Return the families without values: reading them now would make the default client."""
        return client_metrics({})

    def collect(self) -> Generator[Metric, None, None]:
        """Yield all metrics."""
        if self._has_default:
            default = client_or_none()
            if default is not None and not any(each.is_of(default) for each in self._clients):
                self._clients.append(Observed(default))
        found: Dict[str, List[Stats]] = {}
        for source in self._clients:
            found.setdefault(source.project, []).append(source.stats())
        yield from client_metrics({project: sum_of_stats(each) for project, each in found.items()})


_collectors: WeakKeyDictionary[CollectorRegistry, _Collector] = WeakKeyDictionary()
