"""The connections that threads use: those of plain calls, and what batches go to."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Optional, Union

from .. import log
from ..config import Config
from ..process import lifecycle
from .sink import ApiSink, Sink

if TYPE_CHECKING:
    from ..broker.sink import RedisSink
    from ..http.lane import Lane
    from ..http.transport import SyncTransport


class Connections:
    """The HTTP connections of one client, and those to its broker. Each is made at its first use."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._transport: Optional[SyncTransport] = None
        self._sink: Optional[Sink] = None
        if config.broker is not None:
            # redis-py loads it, which fails once the interpreter goes down: it registers an exit handler.
            importlib.import_module("concurrent.futures.thread")

    def reset(self) -> None:
        """Forget the connections, as in a forked child, where they are the parent's."""
        for each in (self._transport, self._sink):
            if each is not None:
                each.abandon()
        self._transport = self._sink = None

    @property
    def are_open(self) -> bool:
        """Whether any were made."""
        return self._transport is not None or self._sink is not None

    def transport(self) -> SyncTransport:
        """Return the HTTP connections."""
        if self._transport is None:
            # No lock of ours is held: an import may switch to another greenlet, which would wait for it.
            with lifecycle.loading:
                from ..http.transport import SyncTransport  # loads httpx, which no importer should

                transport = SyncTransport(self._config)
                if transport.broken is not None:  # the next one may find the file that is missing
                    return transport
                if self._transport is None:  # else another was faster; this one has no connection yet
                    self._transport = transport
            log.write()
        return self._transport

    def sink(self) -> Sink:
        """Return where batches go: to the API, or to a broker."""
        sink = self._sink
        if sink is None:
            sink = ApiSink(self._batch_way()) if self._config.broker is None else self._broker_sink()
            if sink.is_broken:  # as above
                return sink
            if self._sink is None:
                self._sink = sink
        return self._sink or sink

    def _batch_way(self) -> Union[Lane, SyncTransport]:
        """Return how batches reach the API: by the lane if that can be, else as plain calls do."""
        with lifecycle.loading:
            from ..http.lane import Lane

            lane = Lane(self._config) if Lane.fits(self._config) else None
        log.write()
        return lane or self.transport()

    def _broker_sink(self) -> RedisSink:
        with lifecycle.loading:
            from ..broker.sink import RedisSink

            return RedisSink(self._config)

    def close(self) -> None:
        """Close them all."""
        for each in (self._sink, self._transport):
            if each is not None:
                each.close()
        self._transport = self._sink = None
