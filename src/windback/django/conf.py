"""The setting WINDBACK, and the client that it describes.

All keys are optional. What is absent comes from the environment, as for `Windback()`.

    WINDBACK = {
        "API_KEY": "sk_…",
        "PROJECT_SLUG": "shop",
        "BASE_URL": "https://…",
        "ENABLED": True,
        "ON_COMMIT": True,             # events inside `atomic` are sent on commit
        "CUSTOMER": "path.to.find",    # gets the request, returns an address or None; sync or async
        "REQUEST_EVENT": "api_call",   # an event for each request that has a customer
        "OPTIONS": {"journal": "…"},   # other arguments of Windback
    }

It is read at each use, so that `override_settings` works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, List, Mapping, Optional, cast

from django.conf import settings
from django.utils.module_loading import import_string

from ..client import Windback
from ..default import check_settings, client_from, client_or_none
from ..errors import ConfigurationError

if TYPE_CHECKING:
    from django.http import HttpRequest

#: Gets the request and returns the customer's address, None, or an awaitable of one.
FindCustomer = Callable[["HttpRequest"], object]

KEYS = (
    *("API_KEY", "PROJECT_SLUG", "BASE_URL", "ENABLED"),
    *("ON_COMMIT", "CUSTOMER", "REQUEST_EVENT", "OPTIONS"),
)
_PLACE = 'WINDBACK["{}"]'


def get(key: str) -> object:
    """Return the value of a key as it is now; None if it is not set."""
    given: object = getattr(settings, "WINDBACK", None)
    return cast("Mapping[str, object]", given).get(key) if isinstance(given, Mapping) else None


def unknown_keys() -> List[str]:
    """Return the keys that do not exist."""
    given: object = getattr(settings, "WINDBACK", None)
    return [str(key) for key in given if key not in KEYS] if isinstance(given, Mapping) else []


def _check_is_dict() -> None:
    if not isinstance(getattr(settings, "WINDBACK", None), (Mapping, type(None))):
        raise ConfigurationError(f"WINDBACK must be a dict, not {type(settings.WINDBACK).__name__}")


def get_client() -> Windback:
    """Return the client of the project. Raises ConfigurationError."""
    _check_is_dict()
    return client_from(get, _PLACE)


def get_client_or_none() -> Optional[Windback]:
    """Return the client; None, with one WARNING, if the settings allow none."""
    return client_or_none(get_client)


def check_client() -> None:
    """Raise what `get_client` would raise; make no client."""
    _check_is_dict()
    check_settings(get, _PLACE)


def sends_on_commit() -> bool:
    """Whether an event inside `atomic` waits for the commit."""
    wanted = get("ON_COMMIT")
    return wanted is None or bool(wanted)


def request_event() -> Optional[str]:
    """Return the name of the event of each request, or None."""
    name = get("REQUEST_EVENT")
    return None if not name else str(name)


def find_customer() -> Optional[FindCustomer]:
    """Return CUSTOMER, imported if it is a path. Raises ConfigurationError, and what its module raises."""
    given = get("CUSTOMER")
    if isinstance(given, str):
        try:
            given = import_string(given)
        except ImportError as error:
            raise ConfigurationError(f'WINDBACK["CUSTOMER"] can\'t be imported: {error}') from error
    if given is not None and not callable(given):
        raise ConfigurationError(
            'WINDBACK["CUSTOMER"] must be a function that gets the request, or the path of one'
        )
    return given
