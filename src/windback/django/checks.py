"""System checks of the setting WINDBACK: `manage.py check` reports what would go wrong."""

from __future__ import annotations

from typing import List, Optional, Sequence

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import connections

from ..config import OPTIONS, PREFIX
from ..errors import ConfigurationError
from ..wording import nearest
from . import conf, testing

MIDDLEWARE = "windback.django.WindbackMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"


def check_settings(app_configs: object = None, **_: object) -> List[CheckMessage]:
    """Check all but what needs a database."""
    del app_configs
    found: List[CheckMessage] = [
        Error(f"WINDBACK has no key {key!r}{_where(key)}", id="windback.E002") for key in conf.unknown_keys()
    ]
    found += [
        CheckWarning(f"nothing reads the setting {name}{_where(name[len(PREFIX) :])}", id="windback.W004")
        for name in dir(settings)
        if name.startswith(PREFIX) and _where(name[len(PREFIX) :])  # others are not our business
    ]
    found += _check_client()
    found += _check_customer()
    found += _check_middleware()
    if conf.request_event() is not None and any(
        database.get("ATOMIC_REQUESTS") for database in settings.DATABASES.values()
    ):
        found.append(
            CheckWarning(
                "REQUEST_EVENT tracks a request also when ATOMIC_REQUESTS rolled it back",
                hint="its property status has the result; silence this check if that is intended",
                id="windback.W003",
            )
        )
    return found


def _where(key: str) -> str:
    """Return the end of a message about a name that nothing reads."""
    if key in conf.KEYS:
        return f'; write WINDBACK = {{"{key}": …}}'
    if key.lower() in OPTIONS:
        return f'; write WINDBACK = {{"OPTIONS": {{"{key.lower()}": …}}}}'
    return nearest(key, conf.KEYS)


def _check_client() -> List[CheckMessage]:
    """Look whether the settings allow a client. Tests need none."""
    if testing.is_testing() or testing.is_test_command():
        return []
    try:
        conf.check_client()
    except ConfigurationError as error:
        if error.code != "MISSING_API_KEY":
            return [Error(error.message, id="windback.E002")]
        hint = 'in settings: WINDBACK["API_KEY"], or WINDBACK["ENABLED"] = False to send nothing'
        return [Error(error.message, hint=hint, id="windback.E001")]
    return []


def _check_customer() -> List[CheckMessage]:
    try:
        conf.find_customer()
    except ConfigurationError as error:
        return [Error(error.message, id="windback.E003")]
    return []


def _check_middleware() -> List[CheckMessage]:
    installed: Sequence[str] = list(settings.MIDDLEWARE)
    if MIDDLEWARE not in installed or conf.get("CUSTOMER") is not None:
        return []
    hint: Optional[str] = None
    if AUTHENTICATION not in installed:
        hint = 'add it, or set WINDBACK["CUSTOMER"]'
    elif installed.index(AUTHENTICATION) > installed.index(MIDDLEWARE):
        hint = "move WindbackMiddleware below it"
    if hint is None:
        return []
    message = (
        "WindbackMiddleware finds the customer by request.user, which AuthenticationMiddleware sets later"
    )
    return [CheckWarning(message, hint=hint, id="windback.W001")]


def check_databases(
    app_configs: object = None, databases: Optional[Sequence[str]] = None, **_: object
) -> List[CheckMessage]:
    """Check that there are transactions to wait for; run by `check --database` and by `migrate`."""
    del app_configs
    if not conf.sends_on_commit():
        return []
    return [
        CheckWarning(
            f"the database {alias!r} has no transactions, so its events are sent also if the work fails",
            hint='WINDBACK["ON_COMMIT"] = False confirms that this is intended',
            id="windback.W002",
        )
        for alias in databases or ()
        if not connections[alias].features.supports_transactions
    ]
