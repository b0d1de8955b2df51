"""The stream of server-sent events about everything that happens."""

from __future__ import annotations

import asyncio
import time
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

import orjson
from starlette.types import Message, Receive, Scope, Send

from .connections import Connections
from .faults import Faults
from .hub import Hub
from .query import Query
from .request_log import Journal
from .store import Store
from .tracked import Event
from .waits import Waits

#: Seconds between two messages of a stream at least, and between two signs of life at most.
PACE_S, HEARTBEAT_S = 0.2, 15.0

#: Events and requests in one message, and how far a stream may be behind before it leaves some out.
PAGE, MOST_BEHIND = 1_000, 10_000

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
]


class Cursor(NamedTuple):
    """How far somebody has read, as ``events.requests.churn.run``; *run* is one life of the server."""

    event: int
    request: int
    churn: int
    run: str

    def __str__(self) -> str:
        return f"{self.event}.{self.request}.{self.churn}.{self.run}"

    @classmethod
    def read(cls, text: str) -> Optional[Cursor]:
        """The cursor in *text*, or None."""
        *numbers, run = text.split(".")
        if len(numbers) != 3 or not all(
            each.isascii() and each.isdigit() and len(each) < 16 for each in numbers
        ):
            return None
        event, request, churn = map(int, numbers)
        return cls(event, request, churn, run)


class Watch:
    """The parts of the server that are watched."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        faults: Faults,
        hub: Hub,
        waits: Waits,
        connections: Connections,
        counts: Callable[[Optional[str]], Dict[str, object]],
        about: Dict[str, object],
    ) -> None:
        self.store = store
        self.journal = journal
        self.faults = faults
        self.hub = hub
        self.waits = waits
        self.connections = connections
        self.counts = counts
        #: What does not change while the server runs; `started_at` names the run.
        self.about = about
        self.run = format(time.time_ns(), "x")[-10:]

    def now(self) -> Cursor:
        """How far all has come."""
        return Cursor(self.store.tracked.last_id, self.journal.finished, self.store.churn_changes, self.run)

    def resume(self, cursor: Cursor) -> Cursor:
        """Where to go on from a cursor, maybe of an earlier run: only a file has the same events again."""
        if cursor.run == self.run:
            return cursor
        known = self.about["db"] is not None and cursor.event <= self.store.tracked.last_id
        return Cursor(cursor.event if known else 0, 0, 0, self.run)

    def state(self, inbox: Optional[str]) -> Dict[str, object]:
        """Faults and counts."""
        return {
            "faults": self.faults.describe(time.monotonic(), time.time(), inbox),
            "counts": self.counts(inbox),
            **self.about,
        }


async def gone(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """ASGI application: one open stream from *cursor* on."""

    def __init__(self, watch: Watch, cursor: Cursor, query: Query, inbox: Optional[str]) -> None:
        self._watch = watch
        self._cursor = cursor
        self._query = query
        self._inbox = inbox
        self._faults = -1
        self._counts: Dict[str, object] = {}
        self._deletions = watch.store.tracked.deletions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what happens until the client leaves or the server stops."""
        listener = self._watch.hub.listen()
        left = asyncio.ensure_future(gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            while await self._turn(send, listener, left):
                pass
            if not left.done():  # the server stops
                await self._finish(scope, send, left)
        finally:
            self._watch.hub.leave(listener)
            left.cancel()

    async def _turn(self, send: Send, listener: asyncio.Event, left: asyncio.Future[None]) -> bool:
        """Send the news and wait for more; whether to go on."""
        waits = self._watch.waits
        listener.clear()
        text = "".join(self._news())
        # A client that does not read must not keep the server from stopping.
        if text and not (await waits.wait(send(_chunk(text))) and await waits.sleep(PACE_S)):
            return False
        if not self._is_behind and not listener.is_set():
            if not await waits.wait(until(listener, left, HEARTBEAT_S)):
                return False
            quiet = not listener.is_set() and not left.done()
            if quiet and not await waits.wait(send(_chunk(": still here\n\n"))):
                return False
        return not left.done()

    async def _finish(self, scope: Scope, send: Send, left: asyncio.Future[None]) -> None:
        try:
            await asyncio.wait_for(send({"type": "http.response.body", "body": b""}), PACE_S)
        except asyncio.TimeoutError:
            self._watch.connections.abort(tuple(scope["client"]))
            await left

    def _news(self) -> Iterable[str]:
        """The messages about all news; the cursor of each is the state after it."""
        watch = self._watch
        counts = watch.counts(self._inbox)
        changed, self._counts = counts != self._counts, counts
        if watch.store.tracked.deletions != self._deletions:
            self._deletions = watch.store.tracked.deletions
            yield self._message("cleared", {"counts": counts})
        requests, skipped = watch.journal.finished_since(self._cursor.request, PAGE)
        self._cursor = self._cursor._replace(request=watch.journal.finished)
        shown = [
            exchange.describe()
            for exchange in requests
            if self._inbox in (None, exchange.inbox) and self._query.matches(exchange)
        ]
        if shown or skipped:
            yield self._message("requests", {"data": shown, "skipped": skipped})
        churn = watch.store.changed_since(self._cursor.churn, self._inbox)
        self._cursor = self._cursor._replace(churn=watch.store.churn_changes)
        if churn:
            yield self._message("churn", {"data": churn})
        events, skipped = self._new_events()
        if events or skipped:
            data = [event.describe() for event in events]
            yield self._message("events", {"data": data, "counts": counts, "skipped": skipped})
        if watch.faults.changes != self._faults or (changed and not events):
            self._faults = watch.faults.changes
            yield self._message("state", watch.state(self._inbox))

    def _message(self, name: str, data: Dict[str, object]) -> str:
        return f"id: {self._cursor}\nevent: {name}\ndata: {orjson.dumps(data).decode()}\n\n"

    def _new_events(self) -> Tuple[List[Event], int]:
        """The next events that match, and how many are left out because this stream is too far behind."""
        tracked = self._watch.store.tracked
        skipped = max(0, tracked.last_id - self._cursor.event - MOST_BEHIND)
        found, end = tracked.news(self._query, self._inbox, self._cursor.event + skipped)
        self._cursor = self._cursor._replace(event=end)
        return found, skipped

    @property
    def _is_behind(self) -> bool:
        last: int = self._watch.store.tracked.last_id
        return self._cursor.event < last


def _chunk(text: str) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}


async def _heard(listener: asyncio.Event) -> None:
    await listener.wait()


async def until(listener: asyncio.Event, left: asyncio.Future[None], timeout_s: float) -> None:
    """Until there is something new, the client has left, or the time is over."""
    news = asyncio.ensure_future(_heard(listener))
    try:
        await asyncio.wait([news, left], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        news.cancel()
