"""A local server for tests: one process for all tests, and an inbox for each of them."""

from __future__ import annotations

import os
from typing import Dict, List, Mapping, Optional, cast

from .. import clock
from ..devserver.process import DevServer, DevServerError
from ..devserver.records import FaultRule, RequestRecord, StoredEvent
from .matching import Wanted, complaint, table


class Inbox:
    """The requests with one API key that no other test has: their events, records and faults.

    Attributes:
        key: The API key for clients, such as ``Windback(inbox.key, "shop", base_url=inbox.url)``.
        url: The base URL for clients.
    """

    def __init__(self, server: DevServer) -> None:
        self.server = server
        self.key = f"sk_test_{os.urandom(12).hex()}"

    @property
    def url(self) -> str:
        """The base URL for clients."""
        return self.server.url

    @property
    def environment(self) -> Dict[str, str]:
        """Return the environment variables for clients without arguments, here or in a child process.

        Returns:
            The variables by name.
        """
        return {"WINDBACK_API_KEY": self.key, "WINDBACK_BASE_URL": self.url}

    def events(self, query: str = "") -> List[StoredEvent]:
        """Return the events that arrived, in that order.

        Args:
            query: A search, such as "event:login". Empty: all events.

        Returns:
            The events.
        """
        return self.server.events(query, key=self.key)

    def requests(self) -> List[RequestRecord]:
        """Return every try of every request, oldest first.

        Returns:
            The requests.
        """
        return self.server.requests(key=self.key)

    def wait(
        self, event: Optional[str] = None, *, count: int = 1, query: str = "", timeout: float = 5.0
    ) -> List[StoredEvent]:
        """Wait until events with this name have arrived. Earlier ones count, too.

        Args:
            event: The name. None: any.
            count: How many.
            query: A search, such as "-email:*@example.com". Empty: all events.
            timeout: Seconds to wait at most.

        Returns:
            The events.

        Raises:
            AssertionError: They did not arrive in time. The message shows those that did.
        """
        try:
            return self.server.wait(event, count=count, query=query, timeout=timeout, key=self.key)
        except DevServerError as error:
            raise AssertionError("\n".join([str(error), *table(self.events())])) from None

    def assert_tracked(
        self,
        event: str,
        *,
        customer_email: Optional[str] = None,
        properties: Optional[Mapping[str, object]] = None,
        count: Optional[int] = None,
        timeout: float = 5.0,
    ) -> List[StoredEvent]:
        """Wait for matching events.

        Args:
            event: The name.
            customer_email: The customer's address. None: any.
            properties: Properties that an event must have; it may have others. None: any.
            count: How many events must match. None: one or more.
            timeout: Seconds to wait at most.

        Returns:
            The events that match.

        Raises:
            AssertionError: They did not arrive in time, or there are more. The message shows all events, and
                why the nearest ones don't match.
        """
        wanted = Wanted(event, customer_email, properties or {})
        until_s = clock.now_s() + timeout
        while True:
            events = self.events()
            found = wanted.of(events)
            left_s = until_s - clock.now_s()
            if len(found) >= (1 if count is None else count) or left_s <= 0:
                break
            try:
                self.server.wait(count=len(events) + 1, timeout=left_s, key=self.key)
            except DevServerError:
                until_s = 0.0  # a last check
        if len(found) != count if count is not None else not found:
            raise AssertionError(complaint(wanted, events, count=count, found=len(found)))
        return found

    def faults(
        self,
        *rules: FaultRule,
        status: Optional[int] = None,
        times: Optional[int] = None,
        retry_after: Optional[float] = None,
        latency: Optional[float] = None,
        drop: Optional[str] = None,
        path: str = "/",
    ) -> None:
        """Make requests with this key fail. Earlier faults are replaced.

        For example ``faults(status=503, times=2)`` makes the next two requests fail.

        Args:
            *rules: Further rules; see docs/dev-server.md.
            status: The HTTP status of the answer.
            times: How many requests fail. None: all.
            retry_after: Seconds for the header Retry-After.
            latency: Seconds before the answer.
            drop: Close the connection ``"before"`` or ``"after"`` the events are stored.
            path: The start of the paths that fail.
        """
        given = {
            "status": status,
            "times": times,
            "retry_after": retry_after,
            "latency": latency,
            "drop": drop,
        }
        rule = {name: value for name, value in given.items() if value is not None}
        own = [cast("FaultRule", {"path": path, **rule})] if rule else []
        self.server.faults([*rules, *own], key=self.key)

    def clear_faults(self) -> None:
        """Remove all faults of this key."""
        self.server.clear_faults(key=self.key)
