"""An event's arguments become exactly its JSON bytes, or an error that names the place."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import json
import pathlib
import re
import types
import uuid
from decimal import Decimal
from typing import ClassVar

import attrs
import numpy as np
import orjson
import pydantic
import pytest

from windback.errors import InvalidEventError
from windback.event import encode as module
from windback.event.encode import check_fields, encode

EMAIL = "jane@example.com"
LIMIT = 65_536
UTC = dt.timezone.utc


def sent(properties=None, timestamp=None, event="login", email=EMAIL, limit=LIMIT):
    return json.loads(encode(event, email, properties, timestamp, limit), parse_float=Decimal)


class Plan(enum.Enum):
    PRO = "pro"


class Level(enum.IntEnum):
    TWO = 2


@dataclasses.dataclass
class Item:
    name: str
    price: object


@dataclasses.dataclass
class Order(Item):
    kind: ClassVar[str] = "order"
    note: object = dataclasses.field(init=False)
    _secret: str = "hidden"


@attrs.define
class Cart:
    items: object
    size: int = 1


class Customer(pydantic.BaseModel):
    name: str
    score: float


class Text(str):
    __slots__ = ()


WHEN = dt.datetime(2025, 12, 1, 10, 0, 0, 123456, tzinfo=UTC)

TYPES = {
    "string": ("é", "é"),
    "string subclass": (Text("x"), "x"),
    "integer": (2**63, 2**63),
    "smallest integer": (-(2**63), -(2**63)),
    "largest integer": (2**64 - 1, 2**64 - 1),
    "float": (1.5, Decimal("1.5")),
    "boolean": (True, True),
    "none": (None, None),
    "list": ([1, [2]], [1, [2]]),
    "tuple": ((1, 2), [1, 2]),
    "aware datetime": (WHEN, "2025-12-01T10:00:00.123456+00:00"),
    "date": (dt.date(2025, 12, 1), "2025-12-01"),
    "time": (dt.time(10, 30), "10:30:00"),
    "UUID": (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    "Decimal": (Decimal("12345678901234567890.1234567890"), Decimal("12345678901234567890.1234567890")),
    "Decimal with an exponent": (Decimal("1E+3"), Decimal("1E+3")),
    "Enum": (Plan.PRO, "pro"),
    "IntEnum": (Level.TWO, 2),
    "set": ({3, 1, 2}, [1, 2, 3]),
    "frozenset": (frozenset({"b", "a"}), ["a", "b"]),
    "set of one that can't be sorted": ({None}, [None]),
    "Path": (pathlib.PurePosixPath("/a/b"), "/a/b"),
    "dataclass": (Item("pen", Decimal("1.10")), {"name": "pen", "price": Decimal("1.10")}),
    "dataclass with an unset, a private and a class field": (
        Order("pen", Item("cap", 1)),
        {"name": "pen", "price": {"name": "cap", "price": 1}},
    ),
    "attrs": (Cart([Plan.PRO]), {"items": ["pro"], "size": 1}),
    "pydantic": (Customer(name="Jane", score=1.5), {"name": "Jane", "score": Decimal("1.5")}),
    "numpy integer": (np.int64(7), 7),
    "numpy float": (np.float64(1.5), Decimal("1.5")),
    "numpy small float": (np.float32(0.5), Decimal("0.5")),
    "numpy boolean": (np.bool_(True), True),
    "numpy array": (np.arange(3), [0, 1, 2]),
    "bytes": (b"\x00\xff", "AP8="),
    "bytearray": (bytearray(b"abc"), "YWJj"),
    "memoryview": (memoryview(b"abc"), "YWJj"),
    "mapping that is no dict": (types.MappingProxyType({"a": 1}), {"a": 1}),
    "ordered dict": (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "keys that are no strings": ({1: "a", uuid.UUID(int=0): "b"}, {"1": "a", str(uuid.UUID(int=0)): "b"}),
    "none beside the others": ({"a": None, "b": {1}}, {"a": None, "b": [1]}),
}


@pytest.mark.parametrize(("value", "expected"), TYPES.values(), ids=TYPES)
def test_a_common_type_is_encoded(value, expected):
    assert sent({"value": value})["properties"] == {"value": expected}
    assert sent({"deep": [{"value": value}]})["properties"] == {"deep": [{"value": expected}]}


def test_a_decimal_keeps_every_digit():
    data = encode("login", EMAIL, {"price": Decimal("0.1000")}, None, LIMIT)
    assert b'"price":0.1000}' in data


def test_the_fields_are_those_of_the_api_and_no_others():
    assert set(sent({"plan": "pro"})) == {"event", "customer_email", "timestamp", "properties"}
    assert set(sent()) == {"event", "customer_email", "timestamp"}
    assert sent({})["properties"] == {}


def test_without_a_timestamp_the_call_is_stamped_in_utc_and_milliseconds():
    before = dt.datetime.now(UTC)
    stamps = [sent({})["timestamp"], sent()["timestamp"], module.now_text()]
    after = dt.datetime.now(UTC)
    for stamp in stamps:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp)
        at = dt.datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        assert before - dt.timedelta(milliseconds=1) <= at <= after


def test_a_stamp_is_that_of_its_millisecond_also_when_the_clock_jumps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "wall_clock", lambda: now[0])
    ten = 1_764_583_200  # 2025-12-01T10:00:00Z
    for moment, text in (
        (ten, "10:00:00.000Z"),
        (ten + 0.0004, "10:00:00.000Z"),
        (ten + 0.0011, "10:00:00.001Z"),
        (ten + 0.9996, "10:00:00.999Z"),
        (ten + 1, "10:00:01.000Z"),
        (ten + 3600.25, "11:00:00.250Z"),
        (ten + 0.5, "10:00:00.500Z"),
        (ten + 59.75, "10:00:59.750Z"),
    ):
        now[0] = moment
        assert sent({})["timestamp"] == f"2025-12-01T{text}"
        assert sent({})["timestamp"] == f"2025-12-01T{text}"
        assert sent()["timestamp"] == f"2025-12-01T{text}"


TIMESTAMPS = {
    "aware datetime": (WHEN, "2025-12-01T10:00:00.123456+00:00"),
    "another zone": (
        dt.datetime(2025, 12, 1, 10, tzinfo=dt.timezone(dt.timedelta(hours=-5))),
        "2025-12-01T10:00:00-05:00",
    ),
    "Z": ("2025-12-01T10:00:00Z",) * 2,
    "offset": ("2025-12-01T10:00:00.5+01:00",) * 2,
    "offset without a colon": ("2025-12-01T10:00:00+0100",) * 2,
    "a space for the T": ("2025-12-01 10:00:00Z",) * 2,
}


@pytest.mark.parametrize(("timestamp", "expected"), TIMESTAMPS.values(), ids=TIMESTAMPS)
@pytest.mark.parametrize("properties", [None, {}], ids=["bare", "with properties"])
def test_a_timestamp_is_sent_as_given(timestamp, expected, properties):
    assert sent(properties, timestamp)["timestamp"] == expected


def test_the_result_is_a_copy_of_its_own_size():
    data = encode("login", EMAIL, {"a": "b"}, None, LIMIT)
    assert type(data) is bytes
    assert json.loads(data)["properties"] == {"a": "b"}


def test_later_changes_do_not_leak_in():
    properties = {"tags": ["a"]}
    data = encode("login", EMAIL, properties, None, LIMIT)
    properties["tags"].append("b")
    assert json.loads(data)["properties"] == {"tags": ["a"]}


@pytest.mark.parametrize("properties", [{}, None], ids=["fast path", "slow path"])
def test_the_byte_limit_is_exact(properties):
    size = len(encode("login", EMAIL, properties, None, LIMIT))
    assert len(encode("login", EMAIL, properties, None, size)) == size
    with pytest.raises(InvalidEventError, match=f"event: {size} bytes as JSON, and max_event_bytes is"):
        encode("login", EMAIL, properties, None, size - 1)


UNFIT = {
    "object": (object(), "properties.a", "an object can't be encoded"),
    "function": (len, "properties.a", "can't be encoded as JSON; convert it first"),
    "class": (Customer, "properties.a", "can't be encoded"),
    "deep object": ({"items": [1, {"price": object()}]}, "properties.a.items[1].price", "can't be encoded"),
    "complex": (1j, "properties.a", "a complex can't be encoded"),
    "NaN": (float("nan"), "properties.a", "nan is not a JSON number"),
    "infinity": ([1.0, float("inf")], "properties.a[1]", "inf is not a JSON number"),
    "minus infinity": ({"b": -float("inf")}, "properties.a.b", "-inf is not a JSON number"),
    "NaN beside a None": ([None, float("nan")], "properties.a[1]", "not a JSON number"),
    "Decimal NaN": (Decimal("NaN"), "properties.a", "NaN is not a JSON number"),
    "Decimal infinity": (Decimal("Infinity"), "properties.a", "Infinity is not a JSON number"),
    "numpy NaN": (np.float64("nan"), "properties.a", "nan is not a JSON number"),
    "small numpy NaN": (np.float32("nan"), "properties.a", "nan is not a JSON number"),
    "NaN in a numpy array": (np.array([1.0, float("nan")]), "properties.a[1]", "not a JSON number"),
    "NaN in a dataclass": (Item("pen", float("nan")), "properties.a.price", "not a JSON number"),
    "NaN in an attrs class": (Cart(float("inf")), "properties.a.items", "not a JSON number"),
    "NaN in a pydantic model": (
        Customer(name="Jane", score=float("nan")),
        "properties.a.score",
        "not a JSON number",
    ),
    "numpy date": (np.datetime64("2025-12-01"), "properties.a", "a datetime64 can't be encoded"),
    "naive datetime": (dt.datetime(2025, 12, 1), "properties.a", "which zone is it in"),  # noqa: DTZ001
    "naive datetime in a set": ({dt.datetime(2025, 12, 1)}, "properties.a[0]", "which zone"),  # noqa: DTZ001
    "lone surrogate": ("ab\ud800", "properties.a", "a lone surrogate at position 2"),
    "lone surrogate in a key": ({"\udfff": 1}, "properties.a.\\udfff", "is not a key for a JSON object"),
    "integer of 65 bits": (2**64, "properties.a", "an integer of more than 64 bits; send it as a string"),
    "negative integer of 65 bits": (-(2**63) - 1, "properties.a", "more than 64 bits"),
    "object as a key": ({(1, 2): 1}, "properties.a.(1, 2)", "is not a key for a JSON object"),
}


@pytest.mark.parametrize(("value", "path", "reason"), UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("timestamp", [None, WHEN], ids=["fast path", "slow path"])
def test_what_cannot_be_encoded_is_named_by_its_path(value, path, reason, timestamp):
    with pytest.raises(InvalidEventError) as caught:
        encode("login", EMAIL, {"fine": None, "a": value}, timestamp, LIMIT)
    assert caught.value.path == path
    assert reason in caught.value.message
    assert str(caught.value).startswith(f"INVALID_EVENT: {path}: ")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_value_that_contains_itself_is_an_error():
    value = []
    value.append(value)
    with pytest.raises(InvalidEventError, match="nested too deeply, or contains itself"):
        sent({"a": value})


def test_a_value_nested_too_deeply_is_an_error():
    value = 1
    for _ in range(300):
        value = [value]
    with pytest.raises(InvalidEventError, match="nested too deeply"):
        sent({"a": value})


class Failing(collections.UserDict):
    def __iter__(self):
        raise RuntimeError("from the value")


class FailingPath:
    def __fspath__(self):
        return "x"

    def __str__(self):
        raise ValueError("from the value")


@pytest.mark.parametrize("value", [Failing(a=1), FailingPath()], ids=["mapping", "path"])
def test_a_value_whose_own_conversion_fails_is_named(value):
    with pytest.raises(InvalidEventError, match="from the value") as caught:
        sent({"a": [value]})
    assert caught.value.path == "properties.a[0]"


def test_a_null_in_a_text_is_not_a_reason_to_refuse():
    assert sent({"a": "null", "b": None})["properties"] == {"a": "null", "b": None}


def test_an_unknown_field_is_named():
    with pytest.raises(
        InvalidEventError, match="unknown field; an event has event, customer_email"
    ) as caught:
        check_fields({"event": "login", "email": EMAIL})
    assert caught.value.path == "email"


def test_a_mapping_with_known_fields_passes_unchanged():
    event = {"event": "login", "customer_email": EMAIL, "properties": {}, "timestamp": "x"}
    assert check_fields(event) is event


class Name(str, enum.Enum):
    SIGNUP = "signup"


class Shown(str):
    """Shows something else than it is."""

    __slots__ = ()

    def __str__(self):
        return ""

    def __iter__(self):
        return iter("jane@example.com")

    __contains__ = isprintable = lambda *_: True


def test_a_name_of_a_string_enum_is_its_value():
    record = encode(Name.SIGNUP, Shown("jane@example.com"), None, None, 1000)
    assert orjson.loads(record)["event"] == "signup"
    assert orjson.loads(record)["customer_email"] == "jane@example.com"


@pytest.mark.parametrize("address", ["jane", "jane\x1b@example.com"])
def test_an_address_is_checked_by_its_text_whatever_its_class_says(address):
    with pytest.raises(InvalidEventError):
        encode("login", Shown(address), None, None, 1000)
