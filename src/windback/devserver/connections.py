"""The open connections of the server, so that one can be closed without an answer.

ASGI has no way to do that. uvicorn accepts a custom protocol class. This one uses only what asyncio documents
for a protocol (`connection_made`, `connection_lost`) and ASGI for a scope (`client`).
"""

from __future__ import annotations

import asyncio
from typing import Dict, Optional, Tuple, Type

from uvicorn.protocols.http.h11_impl import H11Protocol

Address = Tuple[str, int]


class Connections:
    """Open connections by the address of the client."""

    def __init__(self) -> None:
        self._open: Dict[Address, asyncio.Transport] = {}

    def add(self, transport: asyncio.Transport) -> None:
        """A client has connected."""
        self._open[_address(transport)] = transport

    def discard(self, transport: asyncio.Transport) -> None:
        """A connection is gone."""
        self._open.pop(_address(transport), None)

    def abort(self, client: Address) -> None:
        """Close the socket to *client* immediately; unsent bytes are lost."""
        transport = self._open.get(client)
        if transport is not None:
            transport.abort()

    def abort_all(self) -> None:
        """Close all of them so."""
        for transport in list(self._open.values()):
            transport.abort()


def _address(transport: asyncio.BaseTransport) -> Address:
    peer = transport.get_extra_info("peername")  # two items for IPv4, four for IPv6
    return str(peer[0]), int(peer[1])


def protocol_class(connections: Connections) -> Type[asyncio.Protocol]:
    """The HTTP/1.1 protocol of uvicorn over h11, which also keeps *connections* up to date."""

    class TrackedProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
            connections.add(transport)
            super().connection_made(transport)

        def connection_lost(self, exc: Optional[Exception]) -> None:
            connections.discard(self.transport)
            super().connection_lost(exc)

    return TrackedProtocol
