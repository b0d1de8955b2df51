"""The client of a process that nobody has to pass around: `get_client` and `set_client`."""

from __future__ import annotations

import inspect
import logging
from typing import Callable, Iterable, List, Mapping, Optional, Tuple

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


#: Clients made from the settings of a framework, and these settings: equal ones share one client.
_made: List[Tuple[Mapping[str, object], Windback]] = []


def client_from(settings: Mapping[str, object]) -> Windback:
    """Return the client with these arguments, made at the first call; `get_client()` if there are none.

    Raises ConfigurationError, also for an option that does not exist.
    """
    if not settings:
        return get_client()
    made = _find_made(settings)  # without the lock: each event of a request comes here
    if made is not None:
        return made
    with lifecycle.loading:
        made = _find_made(settings)
        if made is not None:
            return made
        options = inspect.signature(Windback).parameters
        for name in settings:
            if name not in options:
                message = f"there is no option {name!r}{nearest(name, options)}"
                raise ConfigurationError(message)
        client = Windback(**settings)  # type: ignore[arg-type]  # it checks them itself
        _made.append((dict(settings), client))
        return client


def _find_made(settings: Mapping[str, object]) -> Optional[Windback]:
    return next((client for made_from, client in _made if made_from == settings), None)


def client_or_none(make: Callable[[], Windback] = get_client) -> Optional[Windback]:
    """Return what *make* makes; None, with one WARNING, if the settings allow no client.

    A request must not fail because of settings.
    """
    global _is_warned  # noqa: PLW0603 - one line for a process
    try:
        return make()
    except ConfigurationError as error:
        if not _is_warned:
            _is_warned = True
            logger.warning("events are not sent, because no client could be made: %s", error)
        return None


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the end of an error about *name*: the most similar of *names*, if there is one."""
    from difflib import get_close_matches

    found = get_close_matches(name, list(names), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"an {name}" if name[:1] in "AEIOUaeiou" else f"a {name}"
