"""For tests of Django projects: the tracked events, also those that wait for a commit."""

from __future__ import annotations

from typing import Iterable, List, Mapping, Optional

import orjson
from django.db import connections

from ..client import PreparedEvent
from ..testing.captured import CapturedEvent, CapturedEvents
from . import testing

__all__ = ["TrackedEventsMixin", "tracked_events"]


def tracked_events(sent: Optional[Iterable[CapturedEvent]] = None) -> CapturedEvents:
    """Return the tracked events: first the sent ones, then those that wait for a commit.

    The test cases of Django roll back, so there the commit never comes. The events of a savepoint that was
    rolled back are gone.

    Args:
        sent: The events that were sent, such as the fixture `windback_events`; None: those since the last
            `setUp` of a `TrackedEventsMixin`, or since the start of the tests.

    Returns:
        The events, with the assertions of `CapturedEvents`.
    """
    events = CapturedEvents(testing.outbox() if sent is None else sent)
    for connection in connections.all(initialized_only=True):
        for entry in connection.run_on_commit:
            prepared = getattr(entry[1], "__self__", None)
            if isinstance(prepared, PreparedEvent):
                # Those that were sent, as captureOnCommitCallbacks does, have none.
                events.extend(CapturedEvent(**orjson.loads(record)) for record in prepared._records)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return events


class TrackedEventsMixin:
    """For a TestCase of Django or unittest: assertions about what this test tracked."""

    def setUp(self) -> None:
        """Forget what earlier tests tracked."""
        super().setUp()  # type: ignore[misc]  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]  # it is a mixin
        testing.capture()
        testing.outbox().clear()

    @property
    def tracked_events(self) -> CapturedEvents:
        """The tracked events, also those that wait for a commit."""
        return tracked_events()

    def assert_tracked(
        self,
        event: str,
        *,
        customer_email: Optional[str] = None,
        properties: Optional[Mapping[str, object]] = None,
        count: Optional[int] = None,
    ) -> List[CapturedEvent]:
        """`CapturedEvents.assert_tracked` of this test."""
        return tracked_events().assert_tracked(
            event, customer_email=customer_email, properties=properties, count=count
        )

    def assert_not_tracked(
        self,
        event: str,
        *,
        customer_email: Optional[str] = None,
        properties: Optional[Mapping[str, object]] = None,
    ) -> None:
        """`CapturedEvents.assert_not_tracked` of this test."""
        tracked_events().assert_not_tracked(event, customer_email=customer_email, properties=properties)
