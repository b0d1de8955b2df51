"""A client as monitoring sees it: its counters are read while it lives, and remembered when it is gone."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional, Union
from weakref import ref

from .client import AsyncWindback, Windback
from .delivery.engine import Engine
from .errors import ConfigurationError
from .process import lifecycle
from .stats import Stats

Client = Union[Windback, AsyncWindback]


def check_client(client: Optional[Client]) -> None:
    """Raise ConfigurationError unless *client* is a client, or None for the default one."""
    if client is not None and not isinstance(client, (Windback, AsyncWindback)):
        message = f"client must be a Windback or an AsyncWindback, not {type(client).__name__}"
        raise ConfigurationError(message)


def engine_of(client: Client) -> Engine:
    """Return the engine that a client and its copies share."""
    return client._engine  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class Observed:
    """The engine of a client and its copies, which is not kept alive, and what it counted."""

    def __init__(self, client: Client) -> None:
        self._engine = ref(engine_of(client))
        self.project = client._config.project_slug or ""  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        self._last = Stats()

    def is_of(self, client: Client) -> bool:
        """Whether it is that client, or a copy of it."""
        return self._engine() is engine_of(client)

    def stats(self) -> Stats:
        """Return the counters. If the client is gone: the last ones, with no pending events."""
        engine = self._engine()
        if engine is None:
            return replace(
                self._last, pending=0, in_flight=0, pending_bytes=0, journal_bytes=0, workers=0, problem=None
            )
        lifecycle.notice_fork()
        self._last = engine.stats()
        return self._last
