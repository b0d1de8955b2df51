"""A sink for Redis instead of HTTP: a batch becomes an entry of a stream, and relays deliver it.

An answer of Redis, or the lack of one, becomes an Answer. So retries, the gate, the log lines of an
outage and the counts work as with an HTTP server.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Awaitable, Callable

from .. import clock
from ..api.answer import Answer, Failure
from ..config import Config
from ..untraced import untraced
from .connection import Connection
from .layout import APPEND, PROJECTS, BrokerError, fields_of, keys_of

if TYPE_CHECKING:
    from ..event.batch import Batch

#: Calls a slow function in a thread, for a task.
InThread = Callable[[Callable[[], Answer]], Awaitable[Answer]]

_TAKEN = Answer(200)
#: A Redis without persistence may be restarted (seconds).
_NAMED_EVERY_S = 60.0


class RedisSink:
    """Appends batches to a stream. Safe to share between threads."""

    is_broken = False

    def __init__(self, config: Config) -> None:
        assert config.broker is not None
        self._place = config.broker.place
        self._most = config.max_broker_entries
        self._project = config.project_slug
        self._events = keys_of(self._project).events
        self._connection = Connection(config.broker, config.timeout)
        self._is_checked = False
        self._named_s = float("-inf")

    def attempt(self, batch: Batch, timeout_s: float, *, gzip: bool = False) -> Answer:
        """Make one try to append a batch. After a repeat the stream may hold it twice, under one key."""
        del gzip  # the relay compresses what it sends
        with untraced():
            return self._append(batch, timeout_s)

    def _append(self, batch: Batch, timeout_s: float) -> Answer:
        fields = fields_of(batch.records, batch.key, self._project)
        try:
            connection = self._connection.within(timeout_s)
            try:
                entry_id = connection.script(APPEND, (self._events,), self._most, *fields)
            finally:
                if connection is not self._connection:
                    connection.close()
        except BrokerError as error:
            return Answer(None, failure=error.failure, detail=error.text)
        if entry_id is None:
            detail = (
                f"{self._place}: {self._most:,} batches wait there for a relay "
                "(max_broker_entries); start more relays"
            )
            return Answer(None, failure=Failure.FULL, detail=detail)
        if not self._is_checked:
            self._is_checked = True
            self._connection.warn_of_eviction()
        self._name_project()
        return _TAKEN

    def _name_project(self) -> None:
        """Announce that this project has events, for people and for relays without a key for it."""
        now_s = clock.now_s()
        if now_s - self._named_s >= _NAMED_EVERY_S:
            self._named_s = now_s
            with contextlib.suppress(BrokerError):  # it can be announced later; nothing else needs it
                self._connection.call("SADD", PROJECTS, self._project or "")

    def abandon(self) -> None:
        """Drop the sockets in a forked child: redis-py closes them there without a shutdown."""

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()


class AsyncRedisSink:
    """The same for tasks: each try is made in a thread, because redis-py does not support trio."""

    def __init__(self, sink: RedisSink, in_thread: InThread) -> None:
        self._sink = sink
        self._in_thread = in_thread

    async def attempt(self, batch: Batch, timeout_s: float, *, gzip: bool = False) -> Answer:
        """Make one try to append a batch."""
        return await self._in_thread(lambda: self._sink.attempt(batch, timeout_s, gzip=gzip))

    async def aclose(self) -> None:
        """Close the connections."""
        self._sink.close()
