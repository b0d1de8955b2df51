"""For tests of applications that track events: capture events, or send them to a local server of the test.

With pytest these are fixtures, from the plugin `windback.testing.plugin`. With unittest derive from
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
