"""Whether an event matches a test's expectation; and if none does, a message for people.

Pure: it compares and writes text, whatever the source of the events.
"""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Iterable, List, Mapping, NamedTuple, Optional, Protocol, Sequence, TypeVar

#: Rows of the table in a message: the last ones, because a test is usually about these.
_ROWS = 30
_NEAREST = 3
#: Names less similar than this are not misspellings.
_ALIKE = 0.6


class Tracked(Protocol):
    """An event, captured or from a server."""

    @property
    def event(self) -> str:
        """Return its name."""
        ...

    @property
    def customer_email(self) -> Optional[str]:
        """Return the customer's address."""
        ...

    @property
    def properties(self) -> Mapping[str, object]:
        """Return the properties."""
        ...


One = TypeVar("One", bound=Tracked)


class Wanted(NamedTuple):
    """The expectation of a test: a name, and optionally a customer and some of the properties."""

    event: str
    customer_email: Optional[str]
    properties: Mapping[str, object]

    def __str__(self) -> str:
        customer = f" of {self.customer_email}" if self.customer_email is not None else ""
        return f"{self.event!r}{customer}" + (f" with {_shown(self.properties)}" if self.properties else "")

    def of(self, events: Iterable[One]) -> List[One]:
        """Return the events that match."""
        return [each for each in events if not self.differences(each)]

    def differences(self, found: Tracked) -> List[str]:
        """Return why *found* does not match, each reason in a few words."""
        texts = []
        if found.event != self.event:
            texts.append(_unlike("event", found.event, self.event))
        if self.customer_email is not None and found.customer_email != self.customer_email:
            texts.append(_unlike("customer_email", found.customer_email, self.customer_email))
        for name, value in self.properties.items():
            if name not in found.properties:
                texts.append(f"there is no {name}")
            elif found.properties[name] != value:
                texts.append(_unlike(name, found.properties[name], value))
        return texts

    def distance(self, found: Tracked) -> Optional[float]:
        """Return how different *found* is; None if it is unrelated."""
        alike = SequenceMatcher(None, found.event.lower(), self.event.lower()).ratio()
        if alike < _ALIKE:
            return None
        return len(self.differences(found)) + 2 * (1 - alike)


def complaint(wanted: Wanted, events: Sequence[Tracked], *, count: Optional[int], found: int) -> str:
    """Return why a test fails: the expectation, the events, and the nearest misses.

    count: how many were expected; None: one or more.
    """
    times = f"{found} time{'' if found == 1 else 's'}"
    if count is None:
        head = f"{wanted} was not tracked"
    elif count == 0:
        head = f"{wanted} was tracked {times}, and should not have been"
    else:
        head = f"{wanted} was tracked {times}, not {count}"
    lines = [f"{head}; {_number(len(events))}", *table(events)]
    if count is None or found < count:
        lines += _nearest(wanted, events)
    return "\n".join(lines)


def _number(count: int) -> str:
    return "no event was" if count == 0 else "1 event was:" if count == 1 else f"{count} events were:"


def table(events: Sequence[Tracked]) -> List[str]:
    """Return events as lines of text, numbered from 1."""
    rows = [
        (f"{number}", each.event, each.customer_email or "-", _shown(each.properties))
        for number, each in enumerate(events, 1)
    ]
    left_out = len(rows) - _ROWS
    rows = rows[-_ROWS:]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [f"  ({left_out} earlier ones are left out)"] if left_out > 0 else []
    for number, *cells in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths[1:])]
        lines.append(f"  {number.rjust(widths[0])}  {'  '.join(padded)}".rstrip())
    return lines


def _nearest(wanted: Wanted, events: Sequence[Tracked]) -> List[str]:
    misses = []
    for number, each in enumerate(events, 1):
        distance = wanted.distance(each)
        if distance is not None and wanted.differences(each):
            misses.append((distance, number, each))
    misses.sort(key=lambda miss: miss[:2])
    if not misses:
        return []
    return [
        "nearest:",
        *(f"  {number}: {'; '.join(wanted.differences(each))}" for _, number, each in misses[:_NEAREST]),
    ]


def _unlike(name: str, found: object, wanted: object) -> str:
    text = f"{name} is {found!r}, not {wanted!r}"
    if isinstance(found, str) and isinstance(wanted, str) and found.lower() == wanted.lower():
        return f"{text} (the case differs)"
    if type(found) is not type(wanted) and str(found) == str(wanted):
        return f"{text} (the type differs)"
    return text


def _shown(properties: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value!r}" for name, value in properties.items())
