"""A local server for tests: one process for all of them, and for each test an inbox that is its own."""

from __future__ import annotations

import os
from typing import Dict, List, Mapping, Optional, cast

from .. import clock
from ..devserver.process import DevServer, DevServerError
from ..devserver.records import FaultRule, RequestRecord, StoredEvent
from .matching import Wanted, complaint, table


class Inbox:
    """What is sent with one API key, which no other test has: its events, requests and faults.

    url, key: for clients, such as ``Windback(inbox.key, "shop", base_url=inbox.url)``.
    """

    def __init__(self, server: DevServer) -> None:
        self.server = server
        self.key = f"sk_test_{os.urandom(12).hex()}"

    @property
    def url(self) -> str:
        """Base URL for clients."""
        return self.server.url

    @property
    def environment(self) -> Dict[str, str]:
        """Return what a client that is told nothing has to find, here or in a child process."""
        return {"WINDBACK_API_KEY": self.key, "WINDBACK_BASE_URL": self.url}

    def events(self, query: str = "") -> List[StoredEvent]:
        """Return all that came, in the order of arrival; query: only those that a search finds."""
        return self.server.events(query, key=self.key)

    def requests(self) -> List[RequestRecord]:
        """Return every try of every request, oldest first."""
        return self.server.requests(key=self.key)

    def wait(
        self, event: Optional[str] = None, *, count: int = 1, query: str = "", timeout: float = 5.0
    ) -> List[StoredEvent]:
        """Wait until *count* events of this name came, and return them; else AssertionError.

        Those that came before count, too. timeout: seconds. The message shows what did come.
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
        """Wait for events that match, one or more, or exactly *count*, and return them.

        properties: those that must be there and equal; an event may have others. AssertionError after
        *timeout* seconds, or when there are more: the message shows all events, and what kept the nearest
        ones from matching.
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
                until_s = 0.0  # one last look
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
        """Have requests with this key fail, in place of how they failed before.

        Such as ``faults(status=503, times=2)``: the next two are answered so. drop: ``"before"`` or
        ``"after"`` the events are stored. *rules*: whatever else docs/dev-server.md has.
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
        """Have nothing fail any more."""
        self.server.clear_faults(key=self.key)
