"""For tests of applications that track: capture events, or have them reach a server of the test's own.

With pytest all of it is there as fixtures, by the plugin `windback.testing.plugin`; with unittest derive from
`WindbackTestCase` or `LocalServerTestCase`. See docs/testing.md.
"""

from .captured import CapturedEvent, CapturedEvents, capturing
from .cases import LocalServerTestCase, WindbackTestCase
from .local import Inbox

__all__ = [
    "CapturedEvent",
    "CapturedEvents",
    "Inbox",
    "LocalServerTestCase",
    "WindbackTestCase",
    "capturing",
]
