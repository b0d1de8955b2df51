"""What takes batches off a worker's hands: the API over HTTP, or a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Awaitable, Callable, Optional, Protocol

from ..api.answer import Answer
from ..event.batch import Batch
from .retry import Tries

if TYPE_CHECKING:
    from .retry_loop import OnTry


class Sink(Protocol):
    """For threads. Nothing here raises for what a network or a server does."""

    def deliver(
        self,
        batch: Batch,
        tries: Tries,
        sleep: Callable[[float], None],
        on_try: Optional[OnTry],
        *,
        gzip: bool,
    ) -> Answer:
        """Send a batch, trying again as `tries` says; the last answer."""
        ...

    def abandon(self) -> None:
        """Let go of the sockets in a forked child, where they are the parent's."""

    def close(self) -> None:
        """Close the connections."""


class AsyncSink(Protocol):
    """The same for tasks."""

    async def deliver(
        self,
        batch: Batch,
        tries: Tries,
        sleep: Callable[[float], Awaitable[object]],
        on_try: Optional[OnTry],
        *,
        gzip: bool,
    ) -> Answer:
        """Send a batch, trying again as `tries` says; the last answer."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
