"""The same for unittest: test cases to derive from, alone or together with another such as Django's."""

from __future__ import annotations

import contextlib
import os
import unittest
from typing import List, Mapping, Optional
from unittest import mock

from ..devserver.process import DevServer
from .blocking import Blocking
from .captured import CapturedEvent, CapturedEvents, capturing
from .local import Inbox


class WindbackTestCase(unittest.TestCase):
    """Captures the events of each test, as `windback_events`, and sends nothing to other machines."""

    windback_events: CapturedEvents

    def setUp(self) -> None:
        """Start to capture."""
        super().setUp()
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        blocking = Blocking()
        blocking.begin()
        stack.callback(self._fail_if, blocking)
        self.windback_events = stack.enter_context(capturing())

    def _fail_if(self, blocking: Blocking) -> None:
        hosts = blocking.end()
        if hosts is not None:
            self.fail(f"this test would have sent to {hosts}")

    def assert_tracked(
        self,
        event: str,
        *,
        customer_email: Optional[str] = None,
        properties: Optional[Mapping[str, object]] = None,
        count: Optional[int] = None,
    ) -> List[CapturedEvent]:
        """Check that matching events were tracked; see `CapturedEvents.assert_tracked`.

        Args:
            event: The name.
            customer_email: The customer's address. None: any.
            properties: Properties that an event must have; it may have others. None: any.
            count: How many events must match. None: one or more.

        Returns:
            The events that match.
        """
        return self.windback_events.assert_tracked(
            event, customer_email=customer_email, properties=properties, count=count
        )

    def assert_not_tracked(
        self,
        event: str,
        *,
        customer_email: Optional[str] = None,
        properties: Optional[Mapping[str, object]] = None,
    ) -> None:
        """Check that no matching event was tracked; see `CapturedEvents.assert_not_tracked`.

        Args:
            event: The name.
            customer_email: The customer's address. None: any.
            properties: Properties that an event must have; it may have others. None: any.
        """
        self.windback_events.assert_not_tracked(event, customer_email=customer_email, properties=properties)


class LocalServerTestCase(unittest.TestCase):
    """Has a local server for all tests of the class, and an inbox for each test, `windback_dev`.

    Clients without a key and an address find it in the environment.
    """

    windback_dev: Inbox
    _server: DevServer

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server."""
        super().setUpClass()
        cls._server = DevServer()
        cls._server.start()
        cls.addClassCleanup(cls._server.stop)

    def setUp(self) -> None:
        """Open an inbox."""
        super().setUp()
        self.windback_dev = Inbox(self._server)
        patch = mock.patch.dict(os.environ, self.windback_dev.environment)
        patch.start()
        self.addCleanup(patch.stop)
        self.addCleanup(self.windback_dev.clear_faults)
