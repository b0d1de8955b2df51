"""The client of a process that nobody has to pass around: `get_client` and `set_client`."""

from __future__ import annotations

import logging
from typing import Optional

from .client import Windback
from .errors import ConfigurationError
from .process import lifecycle

logger = logging.getLogger("windback")

_client: Optional[Windback] = None
_is_warned = False


def get_client() -> Windback:
    """Return the client of this process, which the first call makes from the environment.

    Integrations use it if they are given no client of their own. Safe in threads and after a fork.

    Returns:
        The same client at each call, also once it was closed, until `set_client` replaces it.

    Raises:
        ConfigurationError: The environment has no usable settings, such as no WINDBACK_API_KEY.
    """
    if _client is not None:
        return _client
    with lifecycle.loading:  # one thread makes it, and no fork happens halfway
        if _client is None:
            set_client(Windback())
    assert _client is not None
    return _client


def set_client(client: Optional[Windback]) -> None:
    """Make *client* the one that `get_client` returns.

    The client before is neither closed nor flushed; it delivers what it has as before.

    Args:
        client: A client; None makes the next `get_client` make one from the environment.

    Raises:
        ConfigurationError: It is not a `Windback`. An `AsyncWindback` is passed to an integration itself.
    """
    global _client  # noqa: PLW0603 - it is what a process has one of
    if client is not None and not isinstance(client, Windback):
        message = f"set_client takes a Windback, not {_kind(client)}"
        raise ConfigurationError(message)
    _client = client


def client_or_none() -> Optional[Windback]:
    """Return `get_client()` for an integration: one WARNING and None where the settings allow no client."""
    global _is_warned  # noqa: PLW0603 - one line for a process
    try:
        return get_client()
    except ConfigurationError as error:
        if not _is_warned:
            _is_warned = True
            logger.warning("events are not sent, because no client could be made: %s", error)
        return None


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"an {name}" if name[:1] in "AEIOUaeiou" else f"a {name}"
