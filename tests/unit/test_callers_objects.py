"""Any method of a caller's object may raise anything: that is an InvalidEventError, and nothing is sent."""

from __future__ import annotations

import copy
import datetime as dt
import pickle

import anyio
import orjson
import pytest
import respx
from inside import engine_of

import windback
from windback.event import encode
from windback.testing import capturing

KEY = "sk_live_abcdef"
NAME, EMAIL = "login", "jane@example.com"
BASE = "https://api.example.com/v1"


@pytest.fixture
def router():
    """A network in which nothing may be sent."""
    with respx.mock(assert_all_called=False) as router:
        yield router


class RudeError(Exception):
    """What a caller's object raises."""


def raises(*_, **__):
    raise RudeError("no")


def rude_methods(names, *bases):
    return type("Odd", bases or (object,), dict.fromkeys(names, raises))


class NoTime(dt.datetime):
    """As pandas.NaT: a datetime that is none, unequal to itself, and raises if it is asked for its offset."""

    def __eq__(self, other):
        return False

    def __ne__(self, other):
        return True

    def __hash__(self):
        return 0

    def utcoffset(self):
        raise ValueError("NaTType does not support utcoffset")

    def __str__(self):
        return "NaT"


class NoZone(dt.tzinfo):
    def utcoffset(self, _):
        raise RudeError("no")


ODD_CALLS = {
    "a timestamp that is none": ("timestamp", (NAME, EMAIL, None), NoTime(2025, 1, 1)),
    "a zone that raises": ("timestamp", (NAME, EMAIL, None), dt.datetime(2025, 1, 1, tzinfo=NoZone())),
    "a time that UTC does not have": (
        "timestamp",
        (NAME, EMAIL, None),
        dt.datetime.min.replace(tzinfo=dt.timezone(dt.timedelta(seconds=30))),
    ),
}


@pytest.mark.parametrize("tracks", ["sync", "async", "list"])
@pytest.mark.parametrize(("path", "arguments", "timestamp"), ODD_CALLS.values(), ids=ODD_CALLS)
def test_what_a_method_of_the_callers_raises_is_an_invalid_event(router, path, arguments, timestamp, tracks):
    event, email, properties = arguments
    client = windback.Windback(KEY, base_url=BASE)
    given = {"event": event, "customer_email": email, "properties": properties, "timestamp": timestamp}
    calls = {
        "sync": lambda: client.track_event(*arguments, timestamp=timestamp),
        "async": lambda: anyio.run(
            lambda: windback.AsyncWindback(KEY, base_url=BASE).track_event(*arguments, timestamp=timestamp)
        ),
        "list": lambda: client.track_events([given]),
    }
    with pytest.raises(windback.InvalidEventError) as caught:
        calls[tracks]()
    assert caught.value.path.startswith(path)
    assert caught.value.__cause__ is None
    assert not router.calls


@pytest.mark.parametrize("method", ["__len__", "__bool__", "__str__", "__contains__", "__iter__", "__eq__"])
def test_a_string_whose_methods_raise_is_sent_as_its_text(method):
    """Its own methods are not asked: they could say anything."""
    rude = rude_methods([method, "__hash__"], str)
    with capturing() as events:
        assert windback.Windback(KEY, base_url=BASE).track_event(rude(NAME), rude(EMAIL))
    assert [(each.event, each.customer_email) for each in events] == [(NAME, EMAIL)]


class Classless:
    @property
    def __class__(self):
        raise RudeError("no")


class Untellable:
    def __getattr__(self, name):
        raise RudeError(name)


class UnprintableError(Exception):
    def __str__(self):
        raise RudeError("no")


class Dumped:
    def model_dump(self):
        raise UnprintableError


class Key:
    def __str__(self):
        raise RudeError("no")

    __repr__ = __str__


VALUES = {
    "attributes": Untellable,
    "an error without text": Dumped,
    "a key": lambda: {Key(): 1},
    "no time": lambda: NoTime(2025, 1, 1),
    "nested": lambda: [{"x": {Untellable()}}],
    "class": Classless,
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_a_property_whose_methods_raise_is_an_invalid_event(router, make):
    client = windback.Windback(KEY, base_url=BASE)
    with pytest.raises(windback.InvalidEventError, match="properties") as caught:
        client.track_event(NAME, EMAIL, {"value": make(), "object": object()})
    assert caught.value.__cause__ is None
    assert not router.calls


@pytest.mark.parametrize("offset_s", [1172, -17762, 0.5])
def test_an_offset_with_seconds_is_sent_in_utc(offset_s):
    """RFC 3339 has no such offsets; zones had them before they were standardised."""
    zone = dt.timezone(dt.timedelta(seconds=offset_s))
    moment = dt.datetime(1925, 1, 1, 12, tzinfo=zone)
    record = encode.encode(NAME, EMAIL, {"at": moment}, moment, 65_536)
    fields = orjson.loads(record)
    utc = moment.astimezone(dt.timezone.utc).isoformat()
    assert (fields["timestamp"], fields["properties"]["at"]) == (utc, utc)


def test_an_offset_of_minutes_stays():
    moment = dt.datetime(2025, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(minutes=345)))
    assert (
        orjson.loads(encode.encode(NAME, EMAIL, {}, moment, 65_536))["timestamp"]
        == "2025-01-01T12:00:00+05:45"
    )


# -- copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [windback.Windback, windback.AsyncWindback])
@pytest.mark.parametrize(
    "copying", [pickle.dumps, copy.deepcopy, lambda client: copy.deepcopy({"a": [client]})]
)
def test_a_client_that_is_pickled_or_deep_copied_reports_what_to_do(client, copying):
    made = client(KEY, base_url=BASE)
    with pytest.raises(
        TypeError, match=f"{client.__name__} can't be pickled or deep-copied: .* share the one"
    ):
        copying(made)


def test_a_shallow_copy_shares_everything():
    made = windback.Windback(KEY, base_url=BASE)
    assert engine_of(copy.copy(made)) is engine_of(made)
    assert engine_of(made.with_options(timeout=3)) is engine_of(made)
