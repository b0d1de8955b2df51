"""One event: arguments, checked and stamped, to the JSON bytes that are sent.

An event is encoded once, in the call that made it. What cannot be encoded therefore fails in the
line that wrote it, later changes to the caller's objects do not leak in, and byte limits are exact.
The first function here is the hot path; all that follows runs only when something is unusual.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timezone
from decimal import Decimal
from enum import Enum
from functools import partial
from gc import get_referents
from itertools import islice
from math import isfinite
from time import time as wall_clock
from typing import Callable, Collection, Dict, List, Mapping, NoReturn, Optional, Tuple, Union
from uuid import UUID

import orjson
from orjson import dumps

from ..errors import InvalidEventError
from ..wording import with_article

Properties = Mapping[str, object]
Timestamp = Union[datetime, str]
Event = Mapping[str, object]
#: Makes the bytes of an event, of what `encode` takes; None for one that a hook refused.
Encode = Callable[[str, str, Optional[Properties], Optional[Timestamp], int], Optional[bytes]]
#: Gets a new event as a dict and returns what to send in its place, or None to refuse it.
BeforeSend = Callable[[Dict[str, object]], Optional[Event]]

FIELDS = ("event", "customer_email", "properties", "timestamp")
# Two types that orjson must hand to `_to_jsonable`: a naive datetime has to be an error, and dataclasses in
# lists in dataclasses escape the limit on depth of orjson 3.9 to 3.11, so deep ones would end the process.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
_MAX_DEPTH = 200  # a cycle must end somewhere
_MAX_CONVERTED_DEPTH = 60  # in one converted value; 254 of those may be in one another
# Types of values that contain no other ones.
_ATOMS = frozenset((str, int, float, bool, type(None), datetime, date, time, Decimal, bytes))
_ONLY_DICTS = {dict}
_TOO_MANY = "has more values than max_event_bytes allows bytes"

# A millisecond that begins, the next one, and the text of the first: formatting a time costs more than
# encoding an event. Each of these is read and replaced as one tuple, so no thread sees halves of two.
_stamp: Tuple[float, float, str] = (0.0, 0.0, "")
# A second, and the text of it up to the fraction.
_second: Tuple[int, str] = (0, "")
_FRACTIONS = [f".{millisecond:03d}Z" for millisecond in range(1000)]


def encode(
    event: str,
    customer_email: str,
    properties: Optional[Properties],
    timestamp: Optional[Timestamp],
    max_event_bytes: int,
) -> bytes:
    """Return the event as exactly the JSON bytes that go into a batch.

    timestamp: an aware datetime or an ISO 8601 string with a zone; None stamps the call, in UTC and
    milliseconds. Raises InvalidEventError, naming the path, for anything that can't be sent.
    """
    if (
        type(event) is not str
        or not event
        or type(customer_email) is not str
        or "@" not in customer_email
        or not customer_email.isprintable()
        or (type(properties) is not dict and properties is not None)
        or timestamp is not None
    ):
        return encode_built(build(event, customer_email, properties, timestamp), max_event_bytes)
    now = wall_clock()
    since, until, text = _stamp
    if not since <= now < until:
        text = _stamp_of(now)
    payload: Dict[str, object] = {"event": event, "customer_email": customer_email, "timestamp": text}
    if properties is not None:
        payload["properties"] = properties
        for value in properties.values():
            kind = type(value)
            # Not by `in`, which takes three times as long. The difference is NaN for NaN and infinity.
            if not (
                kind is str
                or kind is int
                or kind is bool
                or value is None
                or (kind is float and value - value == 0.0)
            ):
                return _encode_any(payload, properties.values(), max_event_bytes, kind)
    try:
        data = dumps(payload)
    except Exception:  # noqa: BLE001 - a key that is not a string, or text that is not valid
        data = _encode_unusual(payload, max_event_bytes)
    if len(data) > max_event_bytes:
        _refuse_size(len(data), max_event_bytes)
    # orjson's result keeps its whole working buffer alive; an exact copy costs a tenth of the memory.
    return b"%b" % data


def check_fields(event: object) -> Event:
    """Return *event* if it is a mapping with no unknown field; raise InvalidEventError otherwise."""
    if not isinstance(event, Mapping):
        raise InvalidEventError(
            f"an event is a mapping with {', '.join(FIELDS)}, not {_kind(event)}", path=""
        )
    for name in event:
        if name not in FIELDS:
            raise InvalidEventError(f"unknown field; an event has {', '.join(FIELDS)}", path=_name_of(name))
    return event


def now_text() -> str:
    """Return this moment as the timestamp an event would get."""
    return _stamp_of(wall_clock())


def _to_jsonable(room: List[int], value: object) -> object:
    """Do what `_convert` does, for orjson: raise TypeError too for what must not reach it.

    room: an int, how many values there may be, and how many are left afterwards.
    """
    found = _convert(value, room[0])
    if type(value) is not Decimal:  # whose fragment is a number
        room[0] = _inspect((found,), _MAX_CONVERTED_DEPTH, room[0])
    return found


def _convert(value: object, room: int) -> object:  # noqa: C901, PLR0911 - one line a type
    """Turn a value that orjson does not know into one it does; TypeError for an unknown type.

    Sets become lists, Decimals exact numbers, paths and dates text, bytes base64; dataclasses, attrs classes
    and pydantic models become objects, numpy scalars and arrays what `.tolist()` gives.
    """
    if hasattr(type(value), "__dataclass_fields__"):
        return _fields_of(value)
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise _UnfitError("a naive datetime: which zone is it in? Give it a tzinfo, such as timezone.utc")
        return iso(value)
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        if not Decimal.is_finite(value):
            raise _UnfitError(f"{value} is not a JSON number")
        text = Decimal.__str__(value)  # a subclass may write itself in another way
        if not isfinite(float(text)):  # a reader would refuse it, and its batch with it
            raise _UnfitError(
                "is a Decimal beyond 1.8e308, the largest number of most readers; send it as a string"
            )
        return orjson.Fragment(text.encode())
    if isinstance(value, (set, frozenset)):
        return _in_order(frozenset(value))  # a subclass may have an endless iterator
    if isinstance(value, Mapping):
        return dict_of(value, room + 1)
    if isinstance(value, (bytes, bytearray, memoryview)):
        from base64 import b64encode

        return b64encode(value).decode()
    return _to_jsonable_by_protocol(value)


def dict_of(value: Mapping[object, object], most: int) -> Dict[object, object]:
    """Return a mapping as a dict, but no more than *most* items: its iterator may be endless."""
    return dict(islice(((key, value[key]) for key in value), most))


def _to_jsonable_by_protocol(value: object) -> object:
    """The types that are recognised by what they offer, so that none of their packages is imported."""
    if hasattr(value, "__fspath__"):
        return str(value)
    dump = getattr(value, "model_dump", None)  # pydantic 2
    if callable(dump) and not isinstance(value, type):
        return dump()
    attributes = getattr(type(value), "__attrs_attrs__", None)
    if attributes is not None:
        return {attribute.name: getattr(value, attribute.name) for attribute in attributes}
    to_list = getattr(value, "tolist", None) if type(value).__module__ == "numpy" else None
    if to_list is not None and type(value).__name__ not in ("datetime64", "timedelta64"):
        return to_list()
    dump = getattr(value, "dict", None) if hasattr(value, "__fields_set__") else None  # pydantic 1
    if callable(dump) and not isinstance(value, type):
        return dump()
    if isinstance(value, float):  # subclasses, which orjson does not take
        return float(value)
    raise _UnfitError(f"{_kind(value)} can't be encoded as JSON; convert it first, or drop it in before_send")


class _UnfitError(TypeError):
    """Why one value can't be encoded; orjson hides the text, `_locate` finds it again."""


def _fields_of(value: object) -> Dict[str, object]:
    """Return the fields of a dataclass that are set, but for those whose name begins with an underscore."""
    from dataclasses import fields

    names = [field.name for field in fields(value)]  # type: ignore[arg-type]  # the caller looked
    return {name: getattr(value, name) for name in names if not name.startswith("_") and hasattr(value, name)}


def _inspect(values: Collection[object], levels: int, room: int) -> int:
    """Raise TypeError for anything in *values*, down to *levels*, that must not reach orjson.

    orjson ends the process for an Enum or a UUID which raises when its value is read, and in 3.12.0 and
    3.13.0 for tuples that are nested too deeply. It copies a Fragment as it is, which may add to the batch.
    And objects that contain another one twice can be endless without being deep.

    room: how many values there may be. Returns how many are left. The types in a container are compared by
    one expression, because lines of Python for each value would take longer than to encode it.
    """
    for value in values:
        kind = type(value)
        if kind is dict:
            parts: Collection[object] = value.values()  # type: ignore[attr-defined]
        elif kind is list:
            parts = value  # type: ignore[assignment]
        elif kind in _ATOMS:
            continue
        else:
            parts = _parts_of(value)
        room -= len(parts)
        if room < 0:
            raise _UnfitError(_TOO_MANY)
        kinds = set(map(type, parts))
        if kinds <= _ATOMS:
            continue
        if not levels:
            raise _UnfitError("is nested too deeply, or contains itself")
        if kinds == _ONLY_DICTS and len(parts) > 1:  # rows: looked at together
            count = sum(map(len, parts))  # type: ignore[arg-type]
            # The referents of a dict are its values, and its keys if one is not a string.
            if count <= room and set(map(type, get_referents(*parts))) <= _ATOMS:
                room -= count
                continue
        room = _inspect(parts, levels - 1, room)
    return room


def _parts_of(value: object) -> Collection[object]:
    """Return what orjson would go into. Methods of subclasses are not asked: orjson does not either."""
    if isinstance(value, dict):
        return list(dict.values(value))
    if isinstance(value, list):
        return value if type(value) is list else list(list.__iter__(value))
    if isinstance(value, tuple):
        return tuple(tuple.__iter__(value))
    if type(value) is orjson.Fragment:
        _check_fragment(value)
        return ()
    if not isinstance(value, (Enum, UUID)):
        return ()
    try:
        return (value.value,) if isinstance(value, Enum) else (int.to_bytes(value.int, 16, "big"),)
    except Exception as error:  # noqa: BLE001 - see above
        raise _UnfitError(_failed("reading", value, error)) from None


def _check_fragment(value: object) -> None:
    """Raise TypeError for a fragment that is anything but one JSON value."""
    try:
        orjson.loads(orjson.dumps(value))
    except Exception as error:  # noqa: BLE001 - orjson's, of several types
        raise _UnfitError(f"is an orjson.Fragment, and not one valid JSON value: {error}") from None


def _in_order(values: Union[set[object], frozenset[object]]) -> List[object]:
    try:
        return sorted(values)  # type: ignore[type-var]  # the TypeError is caught
    except TypeError:
        return list(values)


def _stamp_of(now: float) -> str:
    """Format a time, seconds since the epoch, in UTC and milliseconds, and keep it for the next calls."""
    global _stamp, _second  # noqa: PLW0603 - caches; see above
    millisecond = int(now * 1000)
    whole = millisecond // 1000
    second, prefix = _second
    if second != whole:
        # Not strftime, which imports a module: too late in a finalizer when the interpreter goes down.
        prefix = datetime.fromtimestamp(whole, timezone.utc).isoformat()[:19]
        _second = (whole, prefix)
    text = prefix + _FRACTIONS[millisecond % 1000]
    _stamp = (millisecond / 1000, (millisecond + 1) / 1000, text)
    return text


def build(event: object, customer_email: object, properties: object, timestamp: object) -> Dict[str, object]:
    """Return the event as a dict, with each argument looked at and the stamp in place.

    Raises InvalidEventError for what can't be right, whatever it would encode to.
    """
    payload: Dict[str, object] = {
        "event": _checked("event", _check_name, event),
        "customer_email": _checked("customer_email", _check_email, customer_email),
        "timestamp": now_text() if timestamp is None else _checked("timestamp", _check_timestamp, timestamp),
    }
    if properties is not None:
        payload["properties"] = _checked("properties", _check_properties, properties)
    return payload


def _checked(path: str, check: Callable[[object], object], value: object) -> object:
    """Return what *check* does; any method of a caller's object may raise anything."""
    try:
        return check(value)
    except InvalidEventError:
        raise
    except Exception as error:  # noqa: BLE001 - see above
        # `from None`: the chain would print the value, which is the caller's data.
        raise InvalidEventError(_failed("reading", value, error), path=path) from None


def _failed(doing: str, value: object, error: Exception) -> str:
    return f"{doing} {_kind(value)} failed with {type(error).__name__}: {_text_of(error)}"


def _text_of(error: Exception) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the error is the caller's as well
        return "it can't be shown"


def _check_properties(properties: object) -> object:
    if not isinstance(properties, Mapping):
        raise InvalidEventError(
            f"must be a mapping such as {{'plan': 'pro'}}, not {_kind(properties)}", path="properties"
        )
    return properties


def encode_built(payload: Dict[str, object], max_event_bytes: int) -> bytes:
    """Encode what `build` made, of whatever types."""
    return _encode_any(payload, payload.values(), max_event_bytes, type(payload.get("properties")))


def _encode_any(
    payload: Dict[str, object], values: Collection[object], max_event_bytes: int, kind: type
) -> bytes:
    """Encode *payload*, in which *values* are to be looked at. kind: the type of one that is not plain."""
    try:
        room = _inspect(values, _MAX_DEPTH, max_event_bytes)
        try:
            # Containers seldom have something to convert, and a partial costs more than to look at them.
            data = dumps(
                payload, None if kind is dict or kind is list else partial(_to_jsonable, [room]), _OPTIONS
            )
        except TypeError:
            data = dumps(payload, partial(_to_jsonable, [room]), _OPTIONS)
    except Exception:  # noqa: BLE001 - methods of the caller's objects
        data = _encode_unusual(payload, max_event_bytes)
    # orjson writes NaN and infinity as null; a null is the only trace of them. (`find` takes twice as long.)
    if data.rpartition(b"null")[1]:
        _refuse_nonfinite(payload, max_event_bytes)
    if len(data) > max_event_bytes:
        _refuse_size(len(data), max_event_bytes)
    return b"%b" % data


def _check_name(event: object) -> str:
    if not isinstance(event, str):
        raise InvalidEventError(f"must be a string such as 'feature_used', not {_kind(event)}", path="event")
    # What a subclass shows may differ: a member of an Enum shows its class and name.
    text = str.__str__(event)
    if not text:
        raise InvalidEventError("is empty; name what happened, such as 'feature_used'", path="event")
    return text


def _check_email(customer_email: object) -> str:
    if not isinstance(customer_email, str):
        raise InvalidEventError(
            f"must be a string such as 'jane@example.com', not {_kind(customer_email)}", path="customer_email"
        )
    text = str.__str__(customer_email)
    # A lone surrogate is not printable either; the encoding names it.
    hidden = [each for each in text if not (each.isprintable() or "\ud800" <= each <= "\udfff")]
    if hidden:
        raise InvalidEventError(
            f"has the character U+{ord(hidden[0]):04X}; an address has no control or invisible characters",
            path="customer_email",
        )
    if "@" not in text:
        # The value itself stays out of the message: it may be a person's name, and messages get logged.
        raise InvalidEventError("has no '@', so it is not an email address", path="customer_email")
    return text


def iso(moment: datetime) -> str:
    """Return an aware time as ISO 8601, whose offsets have no seconds, as some of the 19th century do."""
    offset = moment.utcoffset()
    if offset is not None and (offset.microseconds or offset.seconds % 60):
        moment = moment.astimezone(timezone.utc)
    return moment.isoformat()


_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d)(:\d\d)?(?:\.\d+)?([Zz]|[+-](?:[01]\d|2[0-3]):?[0-5]\d)?", re.ASCII
)


def _check_timestamp(timestamp: object) -> str:
    if isinstance(timestamp, datetime):
        if timestamp != timestamp:  # noqa: PLR0124 - as NaN does
            raise InvalidEventError(
                f"is {timestamp}, which is not a time; without a timestamp an event has that of the call",
                path="timestamp",
            )
        if timestamp.utcoffset() is None:
            raise InvalidEventError(
                f"{timestamp.isoformat()} has no time zone; pass an aware datetime, "
                "such as datetime.now(timezone.utc)",
                path="timestamp",
            )
        return iso(timestamp)
    if not isinstance(timestamp, str):
        raise InvalidEventError(
            f"must be an aware datetime or an ISO 8601 string with a zone, not {_kind(timestamp)}",
            path="timestamp",
        )
    match = _TIMESTAMP.fullmatch(timestamp)
    if match is None:
        raise InvalidEventError(
            f"{timestamp[:40]!r} is not an ISO 8601 time such as '2025-12-01T10:00:00Z'", path="timestamp"
        )
    day, minute, second, zone = match.groups()
    if zone is None:
        raise InvalidEventError(
            f"{timestamp!r} has no time zone; end it with 'Z' or an offset such as '+01:00'", path="timestamp"
        )
    try:
        datetime.fromisoformat(f"{day}T{minute}{second or ':00'}")
    except ValueError as error:
        raise InvalidEventError(
            f"{timestamp!r} is not a time that exists: {error}", path="timestamp"
        ) from None
    return timestamp


def _encode_unusual(payload: Dict[str, object], max_event_bytes: int) -> bytes:
    """Encode what was refused at first: keys that are not strings are fine, the rest is an error."""
    found = _locate_any(payload, max_event_bytes)  # also what would crash orjson
    if found is None:
        try:
            to_jsonable = partial(_to_jsonable, [max_event_bytes])
            return dumps(payload, to_jsonable, _OPTIONS | orjson.OPT_NON_STR_KEYS)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - methods of the caller's objects
            found = "properties", f"can't be encoded as JSON: {_text_of(error)}"
    path, reason = found
    # `from None`: the chain would print the value, which is the caller's data.
    raise InvalidEventError(reason, path=path) from None


def _refuse_nonfinite(payload: Dict[str, object], max_event_bytes: int) -> None:
    found = _locate_any(payload, max_event_bytes)
    if found is not None:
        path, reason = found
        raise InvalidEventError(reason, path=path)


def _refuse_size(size: int, limit: int) -> NoReturn:
    raise InvalidEventError(f"{size:,} bytes as JSON, and max_event_bytes is {limit:,}", path="event")


def _locate_any(payload: Dict[str, object], max_event_bytes: int) -> Optional[Tuple[str, str]]:
    """Return the path and the reason of the first value that can't be sent, or None."""
    try:
        return _Search(max_event_bytes).locate(payload, "", 0)
    except Exception as error:  # noqa: BLE001 - any method of a caller's object may raise anything
        return "properties", _failed("reading", payload.get("properties"), error)


def _locate_surrogate(text: str, path: str) -> Optional[Tuple[str, str]]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return path, f"has a lone surrogate at position {error.start}, which is not valid text"
    return None


class _Search:
    """Finds the first value that can't be sent, to name it in an error."""

    def __init__(self, max_event_bytes: int) -> None:
        self._room = [max_event_bytes]  # each value takes a byte at least

    def locate(  # noqa: C901, PLR0911 - a line for each type
        self, value: object, path: str, depth: int
    ) -> Optional[Tuple[str, str]]:
        """Return the path and the reason of the first value that can't be sent, or None."""
        if depth > _MAX_DEPTH:
            return path, "is nested too deeply, or contains itself"
        self._room[0] -= 1
        if self._room[0] < 0:
            return "properties", _TOO_MANY
        if isinstance(value, bool) or value is None:
            return None
        if isinstance(value, str):
            return _locate_surrogate(value, path)
        if isinstance(value, float):
            return (
                None
                if isfinite(value)
                else (path, f"{value} is not a JSON number; leave it out or send None")
            )
        if isinstance(value, int):
            fits = -(2**63) <= value < 2**64
            return None if fits else (path, "is an integer of more than 64 bits; send it as a string")
        if isinstance(value, Mapping):
            return self._locate_in_mapping(value, path, depth)
        if isinstance(value, (list, tuple)):
            for index, item in enumerate(_parts_of(value)):
                found = self.locate(item, f"{path}[{index}]", depth + 1)
                if found is not None:
                    return found
            return None
        return self._locate_in_other(value, path, depth)

    def _locate_in_mapping(
        self, value: Mapping[object, object], path: str, depth: int
    ) -> Optional[Tuple[str, str]]:
        try:
            # orjson does not ask a subclass of dict for its items.
            found_items = value if isinstance(value, dict) else dict_of(value, self._room[0] + 1)
            items = list(dict.items(found_items))
        except Exception as error:  # noqa: BLE001 - a mapping of the caller's own
            return path, _failed("reading", value, error)
        for key, item in items:
            place = f"{path}.{_name_of(key)}" if path else _name_of(key)
            try:
                _inspect((key,), _MAX_CONVERTED_DEPTH, self._room[0])
                if isinstance(key, (datetime, time)):
                    key.utcoffset()  # orjson ends the process if this raises
                dumps({key: 0}, option=_OPTIONS | orjson.OPT_NON_STR_KEYS)
            except Exception as error:  # noqa: BLE001 - methods of the caller's key
                return place.encode(
                    "ascii", "backslashreplace"
                ).decode(), f"is not a key for a JSON object: {error}"
            found = self.locate(item, place, depth + 1)
            if found is not None:
                return found
        return None

    def _locate_in_other(self, value: object, path: str, depth: int) -> Optional[Tuple[str, str]]:
        """Enums, which orjson takes apart itself, and what `_convert` knows."""
        try:
            if isinstance(value, orjson.Fragment):
                _check_fragment(value)
                return None
            if isinstance(value, (Enum, UUID)):
                return next((self.locate(part, path, depth + 1) for part in _parts_of(value)), None)
            return self.locate(_to_jsonable(self._room, value), path, depth + 1)
        except _UnfitError as error:
            return path, str(error)
        except Exception as error:  # noqa: BLE001 - a conversion of the value's own
            return path, _failed("converting", value, error)


def _name_of(key: object) -> str:
    """Return a key as text, for a path; of one that can't be written, or is long, as much as helps."""
    try:
        return str(key)[:100]
    except Exception:  # noqa: BLE001 - a method of the caller's object
        return f"<{type(key).__name__}>"


def _kind(value: object) -> str:
    return "None" if value is None else with_article(type(value).__name__)
