"""Events that are captured in memory, in the place of being queued and sent."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Generator, Iterable, List, Mapping, Optional, Tuple, Union
from unittest import mock

import orjson

from ..client import AsyncWindback, Windback
from ..config import MAX_BATCH_SIZE
from ..delivery.track_events import Encode, encode_all
from ..event.encode import Event, Properties, Timestamp
from ..models import TrackResult
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

    def add(self, records: Iterable[Optional[bytes]]) -> int:
        """Take in encoded events; None is one that before_send refused."""
        taken = [CapturedEvent(**orjson.loads(record)) for record in records if record is not None]
        self.extend(taken)
        return len(taken)


@contextlib.contextmanager
def capturing() -> Generator[CapturedEvents, None, None]:
    """Capture what all clients track, those made before included; nothing is queued or sent.

    Events are checked and pass `before_send` as usual. Plain calls are not captured: they need an answer.
    """
    events = CapturedEvents()

    def capture(
        self: Union[Windback, AsyncWindback],
        event: str,
        customer_email: str,
        properties: Optional[Properties] = None,
        *,
        timestamp: Optional[Timestamp] = None,
    ) -> bool:
        encode, max_event_bytes = _encoder(self)
        return events.add([encode(event, customer_email, properties, timestamp, max_event_bytes)]) == 1

    async def capture_async(
        self: AsyncWindback,
        event: str,
        customer_email: str,
        properties: Optional[Properties] = None,
        *,
        timestamp: Optional[Timestamp] = None,
    ) -> bool:
        return capture(self, event, customer_email, properties, timestamp=timestamp)

    def capture_all(self: Union[Windback, AsyncWindback], many: Iterable[Event]) -> TrackResult:
        records = encode_all(many, *_encoder(self))
        sent = events.add(records)
        return TrackResult(sent=sent, requests=-(-sent // MAX_BATCH_SIZE), refused=len(records) - sent)

    async def capture_all_async(self: AsyncWindback, many: Iterable[Event]) -> TrackResult:
        return capture_all(self, many)

    with contextlib.ExitStack() as stack:
        for kind, name, stand_in in (
            (Windback, "track_event", capture),
            (Windback, "track_events", capture_all),
            (AsyncWindback, "track_event", capture_async),
            (AsyncWindback, "track_events", capture_all_async),
        ):
            stack.enter_context(mock.patch.object(kind, name, stand_in))
        yield events


def _encoder(client: Union[Windback, AsyncWindback]) -> Tuple[Encode, int]:
    return client._encoder()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # methods of theirs, in effect
