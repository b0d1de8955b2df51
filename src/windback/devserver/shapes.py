"""What events look like: which names come, which properties each has, and what changed about them.

Computed from the stored events when somebody looks, never while a request waits. Each look goes on where the
last one ended.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Dict, List, Optional, Set

from .clock import moment_of
from .tracked import CHUNK, Doc, Event, Tracked

#: Events of a name before a property that make it a new one. A name is new if the first event came so many
#: seconds before it.
NEW_AFTER, NEW_AFTER_S = 20, 60.0
#: Different texts of one property that are many.
MANY_VALUES = 100
#: The newest events that are looked at, and what is kept of odd data.
MAX_EVENTS, MAX_NAMES, MAX_PROPERTIES = 100_000, 500, 200

_KINDS: Dict[type, str] = {
    str: "text",
    bool: "boolean",
    int: "number",
    float: "number",
    list: "list",
    dict: "object",
}


class Property:
    """One property of the events of one name. before: how many of these came without it."""

    def __init__(self, event: Event, before: int) -> None:
        self.first = event
        self.before = before
        #: Where each kind of value was first; a null is of no kind.
        self.kinds: Dict[str, Event] = {}
        self.counts: Counter[str] = Counter()
        self.texts: Set[str] = set()

    def add(self, event: Event, value: object) -> None:
        """Note the value of one event."""
        if value is None:
            return
        kind = _KINDS[type(value)]
        self.kinds.setdefault(kind, event)
        self.counts[kind] += 1
        if isinstance(value, str) and len(self.texts) < MANY_VALUES:
            self.texts.add(value)


class Shape:
    """The events of one name. is_new: other events came for a while before the first of them."""

    def __init__(self, event: Event, *, is_new: bool) -> None:
        self.first = self.last = event
        self.is_new = is_new
        self.count = 0
        self.properties: Dict[str, Property] = {}

    def add(self, event: Event) -> None:
        """Note one event."""
        for name, value in event.properties()[0].items():
            known = self.properties.get(name)
            if known is None:
                if len(self.properties) >= MAX_PROPERTIES:
                    continue
                known = self.properties[name] = Property(event, self.count)
            known.add(event, value)
        self.count += 1
        self.last = event

    def drift(self) -> List[Doc]:
        """What changed about the properties, each with the event that shows it first."""
        found: List[Doc] = []

        def note(name: str, kind: str, text: str, event: Event) -> None:
            place = {"event": event.event, "property": name, "kind": kind, "text": text}
            found.append({**place, "event_id": event.id, "at": event.received_at})

        for name, known in self.properties.items():
            if len(known.kinds) > 1:
                last = max(known.kinds, key=lambda kind: known.kinds[kind].id)
                others = ", ".join(f"{kind} ({count:,})" for kind, count in known.counts.most_common())
                note(name, "type", f"is also {last}: {others}", known.kinds[last])
            if known.before >= NEW_AFTER:
                note(
                    name,
                    "new",
                    f"new after {known.before:,} events without it{self._twin(name)}",
                    known.first,
                )
            if len(known.texts) >= MANY_VALUES:
                of = known.counts["text"]
                note(name, "values", f"{MANY_VALUES} or more different texts in {of:,} events", self.last)
        return found

    def _twin(self, name: str) -> str:
        """Name an older property that is written almost like *name*."""
        same = (each for each in self.properties if each != name and _plain(each) == _plain(name))
        twin = next(same, None)
        return "" if twin is None else f"; there is {twin!r} already"


def _is_later(event: Event, first: Optional[Event]) -> bool:
    came, began = moment_of(event.received_at), moment_of((first or event).received_at)
    return came is not None and began is not None and (came - began).total_seconds() >= NEW_AFTER_S


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


class Shapes:
    """The shapes of the kept events, of each inbox and of all."""

    def __init__(self, tracked: Tracked) -> None:
        self._tracked = tracked
        self._lock = asyncio.Lock()
        self._forget()

    def _forget(self) -> None:
        self._deletions = self._tracked.deletions
        self._last_id = max(0, self._tracked.last_id - MAX_EVENTS)
        self._first: Dict[Optional[str], Event] = {}
        self._by_inbox: Dict[Optional[str], Dict[str, Shape]] = {}

    async def of(self, inbox: Optional[str]) -> Dict[str, Shape]:
        """Return the shapes of an inbox, or of all events, by name."""
        async with self._lock:
            while True:
                if self._deletions != self._tracked.deletions:
                    self._forget()
                events = self._tracked.page(after=self._last_id, limit=CHUNK)
                for event in events:
                    self._add(event)
                if len(events) < CHUNK:
                    return self._by_inbox.get(inbox, {})
                await asyncio.sleep(0)

    def _add(self, event: Event) -> None:
        self._last_id = event.id
        if event.problems is not None:
            return
        for inbox in (None, event.inbox):
            shapes = self._by_inbox.setdefault(inbox, {})
            shape = shapes.get(event.event)
            if shape is None and len(shapes) < MAX_NAMES:
                shape = shapes[event.event] = Shape(event, is_new=_is_later(event, self._first.get(inbox)))
            if shape is not None:
                shape.add(event)
            self._first.setdefault(inbox, event)


def describe(shapes: Dict[str, Shape]) -> Dict[str, object]:
    """Return names and drift as JSON, the newest drift first."""
    names = [
        {
            "event": name,
            "count": shape.count,
            "first_at": shape.first.received_at,
            "last_at": shape.last.received_at,
            "first_id": shape.first.id,
            "is_new": shape.is_new,
        }
        for name, shape in sorted(shapes.items(), key=lambda item: -item[1].count)
    ]
    drift = [each for shape in shapes.values() for each in shape.drift()]
    drift.sort(key=lambda each: str(each["at"]), reverse=True)
    return {"names": names, "drift": drift}
