"""Who may be connected to: everybody, unless a test says otherwise. Light, so that `windback.testing` is."""

from __future__ import annotations

from typing import Callable, Optional

#: Gets the host of each connection that is about to be opened; what it returns is why not.
refuse: Optional[Callable[[str], Optional[str]]] = None


class RefusedError(Exception):
    """A connection that the guard refused."""


def check(host: object) -> None:
    """Raise RefusedError if *host* may not be connected to."""
    why = None if refuse is None else refuse(host.decode() if isinstance(host, bytes) else str(host))
    if why is not None:
        raise RefusedError(why)
