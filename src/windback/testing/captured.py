"""Events that are captured in memory instead of being queued and sent."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Generator, Iterable, List, Mapping, Optional

import orjson

from ..client import set_capture
from .matching import Wanted, complaint


@dataclass(frozen=True)
class CapturedEvent:
    """An event as it would have been sent.

    Attributes:
        event: The name.
        customer_email: The customer's address.
        properties: The properties.
        timestamp: The time, as ISO 8601 text.
    """

    event: str
    customer_email: str
    properties: Mapping[str, object] = field(default_factory=dict)
    timestamp: str = ""


class CapturedEvents(List[CapturedEvent]):
    """All events of a test, in the order of the calls."""

    def named(self, event: str) -> List[CapturedEvent]:
        """Return the events with this name.

        Args:
            event: The name.

        Returns:
            The events, in the order of the calls.
        """
        return [each for each in self if each.event == event]

    def one(self, event: str) -> CapturedEvent:
        """Return the only event with this name.

        Args:
            event: The name.

        Returns:
            The event.

        Raises:
            AssertionError: There is none or more than one. The message shows all events.
        """
        found = self.named(event)
        if len(found) != 1:
            raise AssertionError(complaint(Wanted(event, None, {}), self, count=1, found=len(found)))
        return found[0]

    def assert_tracked(
        self,
        event: str,
        *,
        customer_email: Optional[str] = None,
        properties: Optional[Mapping[str, object]] = None,
        count: Optional[int] = None,
    ) -> List[CapturedEvent]:
        """Check that matching events were tracked.

        Args:
            event: The name.
            customer_email: The customer's address. None: any.
            properties: Properties that an event must have; it may have others. None: any.
            count: How many events must match. None: one or more.

        Returns:
            The events that match.

        Raises:
            AssertionError: There are others. The message shows all events, and why the nearest ones don't
                match.
        """
        wanted = Wanted(event, customer_email, properties or {})
        found = wanted.of(self)
        if len(found) != count if count is not None else not found:
            raise AssertionError(complaint(wanted, self, count=count, found=len(found)))
        return found

    def assert_not_tracked(
        self,
        event: str,
        *,
        customer_email: Optional[str] = None,
        properties: Optional[Mapping[str, object]] = None,
    ) -> None:
        """Check that no matching event was tracked.

        Args:
            event: The name.
            customer_email: The customer's address. None: any.
            properties: Properties that an event must have; it may have others. None: any.

        Raises:
            AssertionError: There is one. The message shows all events.
        """
        self.assert_tracked(event, customer_email=customer_email, properties=properties, count=0)

    def add(self, records: Iterable[bytes]) -> None:
        """Append encoded events.

        Args:
            records: The events, as JSON.
        """
        self.extend(CapturedEvent(**orjson.loads(record)) for record in records)


@contextlib.contextmanager
def capturing() -> Generator[CapturedEvents, None, None]:
    """Capture the events of all clients, also of those made before. Nothing is queued or sent.

    Events are checked and pass `before_send` as usual. All ways to track are captured: bound methods that a
    module keeps, `prepare(...).send()`, `track`. Plain calls are not captured: they need
    an answer, which the local server of `windback_dev` gives.

    Returns:
        A context manager, whose value has the captured events.
    """
    events = CapturedEvents()
    earlier = set_capture(events.add)
    try:
        yield events
    finally:
        set_capture(earlier)
