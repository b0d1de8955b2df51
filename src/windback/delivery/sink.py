"""Where the batches of workers go: to the API over HTTP, or to a broker. A sink makes one try."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Union

from ..api.answer import Answer
from ..api.endpoints import track
from ..event.batch import Batch
from ..untraced import untraced

if TYPE_CHECKING:
    from ..http.lane import Lane
    from ..http.transport import AsyncTransport, SyncTransport


class Sink(Protocol):
    """For threads. Nothing here raises for what a network or a server does."""

    def attempt(self, batch: Batch, timeout_s: float, *, gzip: bool) -> Answer:
        """Make one try to send *batch*, of at most *timeout_s* seconds."""
        ...

    @property
    def is_broken(self) -> bool:
        """Whether no connection can be made at all, so that it is to be made anew."""
        ...

    def abandon(self) -> None:
        """Drop the sockets in a forked child, where they are the parent's."""

    def close(self) -> None:
        """Close the connections."""


class AsyncSink(Protocol):
    """The same for tasks."""

    async def attempt(self, batch: Batch, timeout_s: float, *, gzip: bool) -> Answer:
        """Make one try to send *batch*, of at most *timeout_s* seconds."""
        ...


class ApiSink:
    """The API: a batch becomes a request."""

    def __init__(self, way: Union[Lane, SyncTransport]) -> None:
        self._way = way
        self.abandon, self.close = way.abandon, way.close

    @property
    def is_broken(self) -> bool:
        """Whether no connection can be made at all, such as without the file of certificates."""
        return self._way.broken is not None

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
