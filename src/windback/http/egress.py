"""Which hosts may be connected to: all, unless a test refuses some. As light as `windback.testing` is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Optional, Protocol, Set

if TYPE_CHECKING:
    from ..config import Config

#: Gets the host of each connection that is about to be opened; what it returns is why not.
refuse: Optional[Callable[[str], Optional[str]]] = None


class RefusedError(Exception):
    """A connection that was refused."""


class Sender(Protocol):
    """What sends the events of a client beside its own workers: a process, or a thread that outlives it."""

    config: Config

    def end_process(self) -> None:
        """End the process, in which nothing is refused; a thread of this process sends from then on."""

    def wait_if_closed(self, deadline_s: float) -> None:
        """Wait until it is done, if its client is closed already."""


#: Those that run.
senders: Set[Sender] = set()


def check(host: object) -> None:
    """Raise RefusedError if *host* may not be connected to."""
    why = None if refuse is None else refuse(host.decode() if isinstance(host, bytes) else str(host))
    if why is not None:
        raise RefusedError(why)
