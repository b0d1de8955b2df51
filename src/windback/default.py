"""The default client of a process: `get_client` and `set_client`, so that it need not be passed around."""

from __future__ import annotations

import inspect
import logging
from typing import Callable, Dict, List, Mapping, Optional, Tuple, cast

from .client import Windback
from .config import resolve
from .errors import ConfigurationError
from .process import lifecycle
from .secrets import hidden_option
from .wording import nearest, with_article

logger = logging.getLogger("windback")

_client: Optional[Windback] = None
_is_warned = False


def get_client() -> Windback:
    """Return the default client of this process. The first call makes it from the environment.

    Integrations use it if no client is passed to them. Safe in threads and after a fork.

    Returns:
        The same client at each call, even after it was closed, until `set_client` replaces it.

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

    The previous client is neither closed nor flushed. It still delivers its events.

    Args:
        client: A client. None: the next `get_client` makes one from the environment.

    Raises:
        ConfigurationError: It is not a `Windback`. An `AsyncWindback` is passed to an integration itself.
    """
    global _client  # noqa: PLW0603 - a process has one
    if client is not None and not isinstance(client, Windback):
        raise ConfigurationError(f"set_client takes a Windback, not {with_article(type(client).__name__)}")
    _client = client


#: Settings of a framework that describe a client: arguments of `Windback`; "OPTIONS" has the others.
_ARGUMENTS = ("API_KEY", "PROJECT_SLUG", "BASE_URL", "ENABLED")
SETTINGS = (*_ARGUMENTS, "OPTIONS")

#: Returns a setting by its name, such as "API_KEY"; None if it is not set.
GetSetting = Callable[[str], object]

#: Clients that were made from settings, and the arguments of each: equal settings share one client.
_made: List[Tuple[Mapping[str, object], Windback]] = []
#: The same by the identity of the settings, which is all that is looked at for an event. The settings are
#: kept, so that no other object can have the identity of one.
_found: Dict[Tuple[int, ...], Tuple[Windback, List[object]]] = {}
_MOST_FOUND = 100


def client_from(get: GetSetting, place: str) -> Windback:
    """Return the client that settings describe, made at the first call; `get_client()` if there are none.

    Args:
        get: Returns a setting.
        place: How users of the framework write a setting, with "{}" for its name.

    Returns:
        The client.

    Raises:
        ConfigurationError: The settings allow no client. No frame of it has a key as text.
    """
    ids = tuple([id(get(name)) for name in SETTINGS])
    found = _found.get(ids)
    if found is not None:
        return found[0]
    arguments = _read_arguments(get, place)
    if not arguments:
        return get_client()
    client = _find_or_make(arguments)
    if len(_found) >= _MOST_FOUND:
        _found.clear()
    _found[ids] = client, [get(name) for name in SETTINGS]
    return client


def check_settings(get: GetSetting, place: str) -> None:
    """Raise what `client_from` would raise; make no client."""
    arguments = _read_arguments(get, place)
    _check_names(arguments)
    resolve(is_async=False, **arguments)


def _read_arguments(get: GetSetting, place: str) -> Dict[str, object]:
    """Return the arguments of `Windback` that the settings have, with keys hidden."""
    if not isinstance(get("OPTIONS"), (Mapping, type(None))):
        kind = with_article(type(get("OPTIONS")).__name__)
        raise ConfigurationError(
            f"{place.format('OPTIONS')} must be a dict of arguments of Windback, not {kind}"
        )
    given = {name.lower(): get(name) for name in _ARGUMENTS if get(name) is not None}
    given.update(cast("Mapping[str, object]", get("OPTIONS") or {}))
    return {name: hidden_option(name, value) for name, value in given.items()}


def _find_or_make(arguments: Mapping[str, object]) -> Windback:
    with lifecycle.loading:  # one thread makes it, and no fork happens halfway
        for made_from, client in _made:
            if made_from == arguments:
                return client
        _check_names(arguments)
        client = Windback(**arguments)  # type: ignore[arg-type]  # it checks them itself
        _made.append((arguments, client))
        return client


def _check_names(arguments: Mapping[str, object]) -> None:
    options = inspect.signature(Windback).parameters
    for name in arguments:
        if name not in options:
            raise ConfigurationError(f"Windback has no argument {name!r}{nearest(name, options)}")


def client_or_none(make: Callable[[], Windback] = get_client) -> Optional[Windback]:
    """Return what *make* makes; None, with one WARNING, if the settings allow no client.

    A request must not fail because of settings.
    """
    global _is_warned  # noqa: PLW0603 - one line per process
    try:
        return make()
    except ConfigurationError as error:
        if not _is_warned:
            _is_warned = True
            logger.warning("events are not sent, because no client could be made: %s", error)
        return None
