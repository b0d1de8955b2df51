"""Requests as httpx takes them, for its transport and for a client of the user's."""

from __future__ import annotations

from typing import AsyncIterator, Dict, Iterator, Union

import httpx

from ..api.endpoints import Request
from .wire import Wire

_PHASES = ("connect", "read", "write", "pool")


class HttpxRequests:
    """Builds the requests to one address."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._urls: Dict[str, httpx.URL] = {}
        self.extensions: Dict[str, object] = {}

    def build(self, request: Request, timeout_s: float) -> httpx.Request:
        """Return the request for a transport of our own."""
        # With `stream` httpx adds no headers and copies no body; each of ours is already there.
        return httpx.Request(
            request.method,
            self._url(request),
            headers=self._wire.headers(request),
            stream=_Body(request.body),
            extensions={**self.extensions, "timeout": dict.fromkeys(_PHASES, timeout_s)},
        )

    def build_for(
        self, client: Union[httpx.Client, httpx.AsyncClient], request: Request, timeout_s: float
    ) -> httpx.Request:
        """Return the request for a client of the user's, with the headers and cookies that it adds."""
        return client.build_request(
            request.method,
            str(self._url(request)),  # the class of URLs is the client's own
            headers=self._wire.headers(request),
            content=request.body,
            timeout=timeout_s,
            extensions=self.extensions,
        )

    def _url(self, request: Request) -> httpx.URL:
        address = self._wire.url(request)
        url = self._urls.get(address)
        if url is None:
            if len(self._urls) > 100:
                self._urls.clear()
            url = self._urls[address] = httpx.URL(address)
        return url


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request's body. The iterators are not generators, which warn if a loop ends in the middle."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return iter((self._body,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._body)


class _Once:
    def __init__(self, body: bytes) -> None:
        self._left = [body]

    def __aiter__(self) -> _Once:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()
