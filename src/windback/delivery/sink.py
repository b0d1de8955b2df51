"""Where the batches of workers go: to the API over HTTP, or to a broker. A sink makes one try."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..api.answer import Answer
from ..api.endpoints import Request, track
from ..event.batch import Batch
from ..untraced import untraced

if TYPE_CHECKING:
    from ..http.transport import AsyncTransport


class Sink(Protocol):
    """For threads. Nothing here raises for what a network or a server does."""

    def attempt(self, batch: Batch, timeout_s: float, *, gzip: bool) -> Answer:
        """Make one try to send *batch*, of at most *timeout_s* seconds."""
        ...


class AsyncSink(Protocol):
    """The same for tasks."""

    async def attempt(self, batch: Batch, timeout_s: float, *, gzip: bool) -> Answer:
        """Make one try to send *batch*, of at most *timeout_s* seconds."""
        ...


class Way(Protocol):
    """How requests reach the API from threads: `http.lane.Lane`, or `http.transport.SyncTransport`."""

    def attempt(self, request: Request, timeout_s: float) -> Answer:
        """Make one try, of at most *timeout_s* seconds."""
        ...


class ApiSink:
    """The API: a batch becomes a request."""

    def __init__(self, way: Way) -> None:
        self._way = way

    def attempt(self, batch: Batch, timeout_s: float, *, gzip: bool) -> Answer:
        """Make one try to send *batch*, of at most *timeout_s* seconds."""
        with untraced():
            return self._way.attempt(track(batch.records, batch.key, gzip=gzip), timeout_s)


class AsyncApiSink:
    """The same for tasks."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def attempt(self, batch: Batch, timeout_s: float, *, gzip: bool) -> Answer:
        """Make one try to send *batch*, of at most *timeout_s* seconds."""
        with untraced():
            return await self._transport.attempt(track(batch.records, batch.key, gzip=gzip), timeout_s)
