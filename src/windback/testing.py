"""The pytest plugin: tests send nothing to the real API, and see what was tracked.

It is active wherever windback and pytest are installed. A test in which a client connects, or wants to
connect, to another machine fails, unless it is marked `windback_live`; servers on this machine and mocked
ones are nobody's business. The fixture `windback_events` captures instead of sending.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Generator, Iterable, List, Mapping, Optional, Tuple, Union
from urllib.parse import urlsplit

import orjson
import pytest

from . import guard, lifecycle
from .client import AsyncWindback, Windback
from .config import MAX_BATCH_SIZE, is_loopback
from .core import Core
from .direct import Encode, encode_all
from .event import Event, Properties, Timestamp
from .models import TrackResult

_MARK = "windback_live"
#: What still waits when a test ends gets this long (seconds) to show where it wants to go.
_GRACE_S = 2.0


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
            names = ", ".join(repr(each.event) for each in self) or "none at all"
            message = f"{len(found)} events called {event!r}, not one; there are: {names}"
            raise AssertionError(message)
        return found[0]

    def add(self, records: Iterable[Optional[bytes]]) -> int:
        """Take in encoded events; None is one that before_send refused."""
        taken = [CapturedEvent(**orjson.loads(record)) for record in records if record is not None]
        self.extend(taken)
        return len(taken)


class _Guard:
    """What was tried in the test that runs, and must not be."""

    def __init__(self) -> None:
        self.tried: List[str] = []

    def refuse(self, host: str) -> Optional[str]:
        if is_loopback(host):
            return None
        self.tried.append(host)
        return f"tests send nothing to {host}; see windback.testing"

    def end(self) -> Optional[str]:
        """Make clients that aim at another machine try now; say which."""
        for core in lifecycle.cores():
            if isinstance(core, Core) and self._holds_events_for_others(core):
                waits = core.flush_from_outside(time.monotonic() + _GRACE_S)
                waits()
                if self.tried:
                    core.reset()  # the next test has nothing to do with them
        hosts, self.tried = sorted(set(self.tried)), []
        return ", ".join(hosts) or None

    @staticmethod
    def _holds_events_for_others(core: Core) -> bool:
        broker = core.config.broker
        hosts = [urlsplit(core.config.base_url).hostname or ""]
        if broker is not None:
            hosts = [host for host, _ in broker.nodes]
        return core.dispatcher.stats().pending > 0 and not all(map(is_loopback, hosts))


_guard = _Guard()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", f"{_MARK}: this test may send to the real Windback API")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Refuse connections to other machines while a test runs; fail it if there were any."""
    if item.get_closest_marker(_MARK) is not None:
        return (yield)
    guard.refuse = _guard.refuse
    hosts: Optional[str] = None
    try:
        try:
            result = yield
        finally:
            hosts = _guard.end()
    finally:
        guard.refuse = None
    if hosts is not None:
        pytest.fail(
            f"this test would have sent events to {hosts}: use the windback_events fixture, point the client "
            f"at a server of your own, pass enabled=False, or mark the test with {_MARK}",
            pytrace=False,
        )
    return result


@pytest.fixture
def windback_events(monkeypatch: pytest.MonkeyPatch) -> CapturedEvents:
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

    monkeypatch.setattr(Windback, "track_event", capture)
    monkeypatch.setattr(Windback, "track_events", capture_all)
    monkeypatch.setattr(AsyncWindback, "track_event", capture_async)
    monkeypatch.setattr(AsyncWindback, "track_events", capture_all_async)
    return events


def _encoder(client: Union[Windback, AsyncWindback]) -> Tuple[Encode, int]:
    return client._encoder()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # methods of theirs, in effect
