"""Events that are captured in memory, in the place of being queued and sent."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Generator, Iterable, List, Mapping, Optional

import orjson

from ..client import set_capture
from .matching import Wanted, complaint


@dataclass(frozen=True)
class CapturedEvent:
    """An event as it would have been sent; `timestamp` is its ISO 8601 text."""

    event: str
    customer_email: str
    properties: Mapping[str, object] = field(default_factory=dict)
    timestamp: str = ""


class CapturedEvents(List[CapturedEvent]):
    """All events of a test, in the order of the calls."""

    def named(self, event: str) -> List[CapturedEvent]:
        """Return those called *event*."""
        return [each for each in self if each.event == event]

    def one(self, event: str) -> CapturedEvent:
        """Return the only one called *event*; AssertionError, saying what there is, unless there is one."""
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
        """Return the events that match, one or more, or exactly *count*; AssertionError if they don't.

        properties: those that must be there and equal; an event may have others. The message shows all
        events, and what kept the nearest ones from matching.
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
        """AssertionError, showing them all, if there is an event that matches."""
        self.assert_tracked(event, customer_email=customer_email, properties=properties, count=0)

    def add(self, records: Iterable[bytes]) -> None:
        """Append encoded events."""
        self.extend(CapturedEvent(**orjson.loads(record)) for record in records)


@contextlib.contextmanager
def capturing() -> Generator[CapturedEvents, None, None]:
    """Capture what all clients track, those made before included; nothing is queued or sent.

    Events are checked and pass `before_send` as usual, and it does not matter how they are tracked: by a
    bound method that a module keeps, `prepare(...).send()`, `track`. Plain calls are not captured: they need
    an answer, which the local server of `windback_dev` gives.
    """
    events = CapturedEvents()
    earlier = set_capture(events.add)
    try:
        yield events
    finally:
        set_capture(earlier)
