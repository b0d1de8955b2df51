"""Clients as monitoring sees them: read while they exist, and the last counters when they are gone."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Callable, Dict, List, NamedTuple, Optional, Union
from weakref import WeakSet, ref

from .client import AsyncWindback, Windback
from .default import client_or_none
from .delivery.engine import Engine
from .errors import ConfigurationError
from .process import lifecycle
from .stats import Stats, sum_of_stats

Client = Union[Windback, AsyncWindback]


class Seen(NamedTuple):
    """The counters of a project, and the age of its oldest event (seconds; 0 if there is none)."""

    stats: Stats
    oldest_s: float = 0.0


def check_client(client: Optional[Client]) -> None:
    """Raise ConfigurationError unless *client* is a client, or None for the default one."""
    if client is not None and not isinstance(client, (Windback, AsyncWindback)):
        message = f"client must be a Windback or an AsyncWindback, not {type(client).__name__}"
        raise ConfigurationError(message)


def engine_of(client: Client) -> Engine:
    """Return the engine that a client and its copies share."""
    return client._engine  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class Observed:
    """The clients that one monitor reports. None of them is kept alive."""

    def __init__(self) -> None:
        self._clients: List[_Client] = []
        self._has_default = False

    def add(self, client: Optional[Client]) -> None:
        """Add a client, unless it or a copy of it is there; None is the default one."""
        if client is None:
            self._has_default = True
        elif not any(each.engine() is engine_of(client) for each in self._clients):
            self._clients.append(_Client(client))

    def by_project(self) -> Dict[str, Seen]:
        """Return what there is to report now; clients of one project are added up."""
        lifecycle.notice_fork()
        default = client_or_none() if self._has_default else None
        if default is not None:
            self.add(default)
        found: Dict[str, List[Seen]] = {}
        for client in list(self._clients):
            found.setdefault(client.project, []).append(client.look())
        return {project: _sum(each) for project, each in found.items()}


def _sum(several: List[Seen]) -> Seen:
    if len(several) == 1:
        return several[0]
    return Seen(sum_of_stats(each.stats for each in several), max(each.oldest_s for each in several))


class _Client:
    """The engine of a client and its copies, and the counters at the last look."""

    def __init__(self, client: Client) -> None:
        self.engine: Callable[[], Optional[Engine]] = ref(engine_of(client))
        self.project = client._config.project_slug or ""  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        self._last = Stats()
        self._pid = os.getpid()
        _watched.add(self)
        if _look_at_last not in lifecycle.on_close:
            lifecycle.on_close.append(_look_at_last)

    def look(self) -> Seen:
        """Return the counters. If the client is gone: the last ones, with no pending events."""
        engine = self.engine()
        if self._pid != os.getpid():  # what was counted before a fork is the parent's
            self._pid, self._last = os.getpid(), Stats()
            if engine is not None and not lifecycle.is_open(engine):  # closed before that, so not reset
                self.engine, engine = _nothing, None
        if engine is None:
            return Seen(
                replace(
                    self._last,
                    pending=0,
                    in_flight=0,
                    pending_bytes=0,
                    journal_bytes=0,
                    workers=0,
                    problem=None,
                )
            )
        report = engine.report()
        self._last = report.stats
        return Seen(report.stats, report.oldest_s or 0.0)


def _nothing() -> None:
    return None


_watched: WeakSet[_Client] = WeakSet()


def _look_at_last(engine: lifecycle.Engine) -> None:
    """Remember what a client counted when it was closed: nobody may refer to it a moment later."""
    for each in list(_watched):
        if each.engine() is engine:
            each.look()
