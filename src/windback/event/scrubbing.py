"""Run scrubbers over the JSON of an event or of a call, after it is encoded and before it is queued or sent.

What is scrubbed is what would be sent, so no type of an application and no object of a caller is involved.
JSON in which nothing changes stays the same bytes.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Callable, Dict, Literal, NamedTuple, Optional, Sequence, Tuple, Union

import orjson

from ..errors import InvalidEventError
from .encode import Encode, Properties, Timestamp, build, encode_built

Path = Tuple[Union[str, int], ...]
#: What is sent in place of a value whose name is private, and of a text on which a scrubber failed.
SCRUBBED = "[scrubbed]"


Kind = Literal["text", "number", "name"]


class Place(NamedTuple):
    """Where a text is: which call sends it, and where in the JSON of that call.

    Attributes:
        call: The method that sends it, such as "submit_cancel_flow". All ways to track an event are
            "track_event".
        path: Names and indexes from the outside in, such as `("properties", "notes", 0)`.
        kind: "text"; "number", whose text is given; or "name", a key of an object inside `properties`, which
            is the last part of the path, too.
    """

    call: str
    path: Tuple[Union[str, int], ...]
    kind: Kind = "text"


#: Gets a text and its place, and returns what to send. A text that is returned as it is stays what it was.
Scrubber = Callable[[str, Place], str]
#: The name under which an error of a scrubber is counted and logged.
HOOK = "scrub"

#: A number that a float might not keep, such as one that was a Decimal.
_LONG_NUMBER = re.compile(rb"\d[\d.]{16}")


class Scrubbing:
    """The scrubbers of one client. Where one fails, the whole text is replaced, so that no error leaks it."""

    def __init__(
        self, scrubbers: Sequence[Scrubber], count_error: Callable[[str, BaseException], object]
    ) -> None:
        self._scrubbers = scrubbers
        self._count_error = count_error

    def fields(self, call: str, data: bytes) -> Optional[Dict[str, object]]:
        """Return the JSON object *data* with its texts scrubbed; None if nothing changed."""
        before = _parsed(data)
        after = {
            name: value if name == "timestamp" else self._value(value, call, (name,))
            for name, value in before.items()
        }
        return None if all(after[name] is before[name] for name in after) else after

    def text(self, text: str, call: str, path: Path, kind: Kind = "text") -> str:
        """Return *text* as it is to be sent."""
        place = Place(call, path, kind)
        try:
            for scrubber in self._scrubbers:
                scrubbed = scrubber(text, place)
                if scrubbed is not text:
                    text = _checked(scrubbed)
        except Exception as error:  # noqa: BLE001 - it is the user's function
            self._count_error(HOOK, error)
            return SCRUBBED
        return text

    def _value(self, value: object, call: str, path: Path) -> object:
        """Return *value* scrubbed: the same object if nothing changed."""
        if isinstance(value, str):
            text = self.text(value, call, path)
            return value if text == value else text
        if isinstance(value, dict):
            return self._object(value, call, path)
        if isinstance(value, list):
            items = [self._value(item, call, (*path, place)) for place, item in enumerate(value)]
            return value if all(map(_is, items, value)) else items
        if value is None or isinstance(value, bool):
            return value
        number = str(value)
        text = self.text(number, call, path, "number")
        return value if text == number else text

    def _object(self, value: Dict[str, object], call: str, path: Path) -> Dict[str, object]:
        found: Dict[str, object] = {}
        numbers: Dict[str, int] = {}
        is_same = True
        for name, item in value.items():
            below = (*path, name)
            new_name = self.text(name, call, below, "name")
            new_item = self._value(item, call, below)
            is_same = is_same and new_name == name and new_item is item
            if new_name != name:
                new_name = _free(new_name, numbers, found, value)
            found[new_name] = new_item
        return value if is_same else found


def _checked(scrubbed: object) -> str:
    if not isinstance(scrubbed, str):
        returned = "None" if scrubbed is None else f"a {type(scrubbed).__name__}"
        raise TypeError(f"it must return the text to send, not {returned}; is a `return` missing?")
    scrubbed.encode()  # a lone surrogate can't be sent
    return str(scrubbed)


def _is(left: object, right: object) -> bool:
    return left is right


def _free(name: str, numbers: Dict[str, int], *taken: Dict[str, object]) -> str:
    """Return *name*, with a number if it is taken: two addresses become "[email]" and "[email] 2"."""
    candidate = name
    while any(candidate in each for each in taken):
        numbers[name] = number = numbers.get(name, 1) + 1
        candidate = f"{name} {number}"
    return candidate


def _parsed(data: bytes) -> Dict[str, object]:
    if _LONG_NUMBER.search(data) is None:
        parsed: Dict[str, object] = orjson.loads(data)
    else:
        parsed = json.loads(data, parse_float=Decimal, parse_int=_parse_int)
    return parsed


def _parse_int(text: str) -> object:
    return int(text) if len(text) < 19 else Decimal(text)  # orjson encodes 64 bits


def _exact(value: object) -> object:
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value).encode())
    raise TypeError


def dumped(fields: Dict[str, object]) -> bytes:
    """Return the JSON of scrubbed fields."""
    return orjson.dumps(fields, _exact)


def scrub_event(record: bytes, scrubbing: Scrubbing, max_event_bytes: int) -> bytes:
    """Return an encoded event with its texts scrubbed.

    Raises InvalidEventError if it can't be sent any more: without the customer's address, or too large.
    """
    fields = scrubbing.fields("track_event", record)
    if fields is None:
        return record
    try:
        payload = build(
            fields["event"], fields["customer_email"], fields.get("properties"), fields["timestamp"]
        )
        return encode_built(payload, max_event_bytes)
    except InvalidEventError as error:
        raise InvalidEventError(f"{error.detail} (after it was scrubbed)", path=error.path) from None


class ScrubbedEncoder:
    """Encodes as *encode* does, and scrubs the result."""

    def __init__(
        self,
        encode: Encode,
        scrubbing: Scrubbing,
        refuse: Callable[[str], object],
        count_error: Callable[[str, BaseException], object],
    ) -> None:
        self._encode = encode
        self._scrubbing = scrubbing
        self._refuse = refuse
        self._count_error = count_error

    def encode(
        self,
        event: str,
        customer_email: str,
        properties: Optional[Properties],
        timestamp: Optional[Timestamp],
        max_event_bytes: int,
    ) -> Optional[bytes]:
        """Return the event's bytes, or None if it was refused. Raises InvalidEventError as *encode* does."""
        record = self._encode(event, customer_email, properties, timestamp, max_event_bytes)
        if record is None:
            return None
        try:
            return scrub_event(record, self._scrubbing, max_event_bytes)
        except Exception as error:  # noqa: BLE001 - an event that is not scrubbed is not sent
            self._refuse("scrub_error")
            self._count_error(HOOK, error)
            return None
