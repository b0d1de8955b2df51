"""For tests of applications that track events: capture events, or send them to a local server of the test.

With pytest these are fixtures, from the plugin `windback.testing.plugin`. With unittest derive from
`WindbackTestCase` or `LocalServerTestCase`. See docs/testing.md.

A name is loaded when it is first used: every pytest run where windback is installed imports this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .captured import CapturedEvent, CapturedEvents, capturing
    from .cases import LocalServerTestCase, WindbackTestCase
    from .local import Inbox

_HOMES = {
    **dict.fromkeys(("CapturedEvent", "CapturedEvents", "capturing"), "captured"),
    **dict.fromkeys(("LocalServerTestCase", "WindbackTestCase"), "cases"),
    "Inbox": "local",
}

__all__ = [
    "CapturedEvent",
    "CapturedEvents",
    "Inbox",
    "LocalServerTestCase",
    "WindbackTestCase",
    "capturing",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
