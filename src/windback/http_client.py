"""What a user's own HTTP client must have. httpx's has it, and so has that of its successor, httpx2.

A client is recognised by what it can do and not by its class, so either package works. Pure.
"""

from __future__ import annotations

from typing import Callable, Protocol, Union

from .errors import ConfigurationError
from .secrets import kind_of


class SyncHttpClient(Protocol):
    """httpx.Client or httpx2.Client, or another with these methods."""

    @property
    def build_request(self) -> Callable[..., object]:
        """Make a request with the client's own headers and cookies."""
        ...

    @property
    def send(self) -> Callable[..., object]:
        """Send it; returns a response whose body is read as a stream."""
        ...

    def close(self) -> None:
        """Close the connections; windback never calls it."""


class AsyncHttpClient(Protocol):
    """httpx.AsyncClient or httpx2.AsyncClient, or another with these methods."""

    @property
    def build_request(self) -> Callable[..., object]:
        """Make a request with the client's own headers and cookies."""
        ...

    @property
    def send(self) -> Callable[..., object]:
        """Send it; awaited, returns a response whose body is read as a stream."""
        ...

    async def aclose(self) -> None:
        """Close the connections; windback never calls it."""


HttpClient = Union[SyncHttpClient, AsyncHttpClient]


def check_http_client(value: object, *, is_async: bool) -> None:
    """Raise ConfigurationError unless *value* is a client of the right kind."""
    wanted, end, other = ("AsyncClient", "aclose", "close") if is_async else ("Client", "close", "aclose")
    has_all = all(callable(getattr(value, name, None)) for name in ("build_request", "send", end))
    if not has_all or callable(getattr(value, other, None)):
        raise ConfigurationError(f"http_client must be an httpx.{wanted}, not {kind_of(value)}")
