"""Clients and relays as monitoring sees them: read while they exist; then their last counters remain."""

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
from .relay import BrokerRelay, Relay
from .stats import Stats, sum_of_stats

Client = Union[Windback, AsyncWindback]
AnyRelay = Union[Relay, BrokerRelay]

#: Receives each engine that is observed from now on, with its project.
OnEngine = Callable[[Engine, str], object]


class Seen(NamedTuple):
    """The counters of a project, and the age of its oldest event (seconds; 0 if there is none).

    has_journal: it has had bytes in a journal.
    """

    stats: Stats
    oldest_s: float = 0.0
    has_journal: bool = False


def check_client(client: Optional[Client]) -> None:
    """Raise ConfigurationError unless *client* is a client, or None for the default one."""
    if client is not None and not isinstance(client, (Windback, AsyncWindback)):
        raise ConfigurationError(
            f"client must be a Windback or an AsyncWindback, not {type(client).__name__}"
        )


def engine_of(client: Client) -> Engine:
    """Return the engine that a client and its copies share."""
    return client._engine  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class Observed:
    """The clients, or the relays, that one monitor reports. None of them is kept alive."""

    def __init__(self, on_engine: OnEngine = lambda *_: None) -> None:
        self._found: List[_Engine] = []
        self._relays: List[ref[AnyRelay]] = []
        self._has_default = False
        self._on_engine = on_engine

    def add(self, client: Optional[Client]) -> None:
        """Add a client, unless it or a copy of it is there; None is the default one."""
        if client is None:
            self._has_default = True
        else:
            self._add(engine_of(client), client._config.project_slug or "")  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    def add_relay(self, relay: AnyRelay) -> None:
        """Add a relay, unless it is there."""
        if all(each() is not relay for each in self._relays):
            self._relays.append(ref(relay))
            self._look_around()

    def _add(self, engine: Engine, project: str) -> None:
        if all(each.engine() is not engine for each in self._found):
            self._found.append(_Engine(engine, project))
            self._on_engine(engine, project)

    def _look_around(self) -> None:
        """Add the default client, and the projects that relays have found."""
        default = client_or_none() if self._has_default else None
        if default is not None:
            self.add(default)
        for relay in [each() for each in self._relays]:
            if relay is not None:
                for project, engine in relay._engines().items():  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
                    self._add(engine, project)

    def by_project(self) -> Dict[str, Seen]:
        """Return what there is to report now; clients of one project are added up."""
        lifecycle.notice_fork()
        self._look_around()
        found: Dict[str, List[Seen]] = {}
        for each in list(self._found):
            found.setdefault(each.project, []).append(each.look())
        return {project: _sum(several) for project, several in found.items()}


def _sum(several: List[Seen]) -> Seen:
    if len(several) == 1:
        return several[0]
    return Seen(
        sum_of_stats(each.stats for each in several),
        max(each.oldest_s for each in several),
        any(each.has_journal for each in several),
    )


class _Engine:
    """The engine of a client and its copies, or of a relay, and the counters at the last look."""

    def __init__(self, engine: Engine, project: str) -> None:
        self.engine: Callable[[], Optional[Engine]] = ref(engine)
        self.project = project
        self._last = Stats()
        self._has_journal = False
        self._pid = os.getpid()
        _watched.add(self)
        if _look_at_last not in lifecycle.on_close:
            lifecycle.on_close.append(_look_at_last)

    def look(self) -> Seen:
        """Return the counters. If the engine is gone: the last ones, with no pending events."""
        engine = self.engine()
        if self._pid != os.getpid():  # what was counted before a fork is the parent's
            self._pid, self._last = os.getpid(), Stats()
            if engine is not None and not lifecycle.is_open(engine):  # closed before that, so not reset
                self.engine, engine = _nothing, None
        if engine is None:
            gone = replace(
                self._last, pending=0, in_flight=0, pending_bytes=0, journal_bytes=0, workers=0, problem=None
            )
            return Seen(gone, has_journal=self._has_journal)
        stats, oldest_s = engine.stats(), 0.0
        if stats.pending:
            report = engine.report()
            stats, oldest_s = report.stats, report.oldest_s or 0.0
        self._last = stats
        self._has_journal = self._has_journal or stats.journal_bytes > 0
        return Seen(stats, oldest_s, self._has_journal)


def _nothing() -> None:
    return None


_watched: WeakSet[_Engine] = WeakSet()


def _look_at_last(engine: lifecycle.Engine) -> None:
    """Remember what a client counted when it was closed: nobody may refer to it a moment later."""
    for each in list(_watched):
        if each.engine() is engine:
            each.look()
