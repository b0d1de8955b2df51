"""Waiting for events: `GET /_dev/wait`. After its timeout it returns the nearest misses."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections import Counter
from typing import Dict, List, NamedTuple, Optional

from starlette.types import Receive

from .errors import ApiError
from .query import Query, Term
from .stream import Watch, gone, until
from .tracked import Event, Tracked

#: Events that are searched for near misses, from the newest; and how many misses are returned.
_LOOKED_AT, _TOLD = 10_000, 5

#: How like two names must be to be taken for one with a mistake in it (difflib's ratio).
_SIMILAR = 0.75


class Wanted(NamedTuple):
    """What somebody waits for."""

    query: Query
    inbox: Optional[str]
    number: int
    #: Only events after this id.
    since: int
    timeout_s: float
    #: For so long there must not be more than *number*; None: more are fine.
    for_s: Optional[float]

    def takes(self, event: Event) -> bool:
        """Whether an event that matches counts: an ignored one only for who asks for a status."""
        return event.problems is None or "status" in self.query.fields


async def wait(watch: Watch, wanted: Wanted, receive: Receive) -> Dict[str, object]:
    """Wait until all have come; the answer as JSON.

    Raises `ApiError` 504 when they do not in time, 409 when there are too many, 503 when the server stops.
    """
    listener = watch.hub.listen()
    left = asyncio.ensure_future(gone(receive))
    try:
        found, complete = await _collect(watch, wanted, listener, left)
    finally:
        watch.hub.leave(listener)
        left.cancel()
    data = [event.describe() for event in found]
    answer: Dict[str, object] = {"data": data, "count": len(found), "cursor": watch.store.tracked.last_id}
    if wanted.for_s is not None and len(found) > wanted.number:
        raise ApiError(
            409, "TOO_MANY", f"{len(found)} came where {wanted.number} should have, at most", extra=answer
        )
    if not complete:
        misses = _misses(watch.store.tracked, wanted)
        text = f"{len(found)} of {wanted.number} came within {wanted.timeout_s:g} s"
        for miss in misses:
            text += f"; {miss['count']} x {miss['text']}"
        raise ApiError(504, "TIMEOUT", text, extra={**answer, "misses": misses})
    return answer


class _Found(NamedTuple):
    events: List[Event]
    complete: bool


async def _collect(
    watch: Watch, wanted: Wanted, listener: asyncio.Event, left: asyncio.Future[None]
) -> _Found:
    tracked = watch.store.tracked
    found: List[Event] = []
    at = wanted.since
    started = time.monotonic()
    reached: Optional[float] = None
    # One more than wanted is enough to know that there are too many.
    most = wanted.number if wanted.for_s is None else wanted.number + 1
    while True:
        listener.clear()
        while at < tracked.last_id and len(found) < most:
            events, at = tracked.news(wanted.query, wanted.inbox, at)
            found += [event for event in events if wanted.takes(event)][: most - len(found)]
            await asyncio.sleep(0)
        now = time.monotonic()
        if len(found) > wanted.number:
            return _Found(found, complete=True)
        if len(found) == wanted.number and reached is None:
            reached = now
        ends = started + wanted.timeout_s if reached is None else reached + (wanted.for_s or 0.0)
        if now >= ends:
            return _Found(found, complete=reached is not None)
        if not await watch.waits.wait(until(listener, left, ends - now)):
            raise ApiError(503, "STOPPING", "the server is being stopped")
        if left.done():
            return _Found(found, complete=True)  # the client has left


def _misses(tracked: Tracked, wanted: Wanted) -> List[Dict[str, object]]:
    """What came and nearly matched, the most frequent first."""
    everything = Query(())
    texts: Counter[str] = Counter()
    low = max(0, tracked.last_id - _LOOKED_AT)
    for events in tracked.search(everything, None, after=low):
        for event in events:
            text = _miss(event, wanted)
            if text is not None:
                texts[text] += 1
    return [{"text": text, "count": count} for text, count in texts.most_common(_TOLD)]


def _miss(event: Event, wanted: Wanted) -> Optional[str]:
    """Why an event does not count, if it is for one reason alone."""
    reasons: List[Optional[str]] = [_reason(event, term, wanted) for term in wanted.query.failing(event)]
    if wanted.inbox not in (None, event.inbox):
        reasons.append(f"in the inbox {event.inbox}")
    if event.id <= wanted.since:
        reasons.append("before the mark")
    if not wanted.takes(event):
        problem = event.describe()["problems"]
        path = problem[0]["path"] if isinstance(problem, list) else ""
        reasons.append(f"ignored by the real API because of {path}")
    return f"`{event.event}`: {reasons[0]}" if len(reasons) == 1 and reasons[0] else None


def _reason(event: Event, term: Term, wanted: Wanted) -> Optional[str]:
    """How far an event is from one term; None when it has nothing to do with it."""
    if term.field != "event" or term.negated:
        return f"all but {term.source}"
    if event.event.lower() == term.value.lower():
        return "the case differs"
    if difflib.SequenceMatcher(None, event.event.lower(), term.value.lower()).ratio() >= _SIMILAR:
        return "a similar name"
    return f"all but {term.source}" if len(wanted.query.terms) > 1 else None
