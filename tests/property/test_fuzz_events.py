"""Whatever is tracked, or answered, ends in a result or in a documented error, within bounded time.

Each test is a target of `make fuzz`, which feeds it new values for minutes. Here each gets a few, always the
same.
"""

from __future__ import annotations

import contextlib
import json
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest
from fuzzing import (
    JANE,
    bodies,
    dumped,
    json_leaves,
    mixed,
    odd_texts,
    target,
    texts,
    zones,
)
from hypothesis import strategies as st

from windback import InvalidEventError, WindbackError, scrub
from windback.api import endpoints
from windback.api.answer import RETRY_AFTER_CAP_S, Answer, Failure, error_of, retry_after_s
from windback.event.encode import encode
from windback.event.scrubbing import Scrubbing, scrub_event
from windback.http.wire import unpacked
from windback.models import OfferAcceptance, RecoveryStats, RecoveryTemplate, Variant

# -- Events --------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BAD = object()


class Rude:
    """Raises whatever is done with it."""

    def __getattr__(self, name):
        raise (AttributeError if name.startswith("_repr") else RuntimeError)(name)

    def _fail(self, *_):
        raise RuntimeError("rude")

    __str__ = __hash__ = __eq__ = __bool__ = __len__ = _fail


class LooksLikeAModel:
    def __init__(self, value):
        self.value = value

    def model_dump(self):
        if isinstance(self.value, str):
            raise KeyError(self.value)
        return self.value


values = st.one_of(
    json_leaves,
    odd_texts,
    st.integers(),
    st.floats(),
    st.binary(max_size=20),
    st.decimals(),
    st.fractions(),
    st.complex_numbers(),
    st.datetimes(timezones=zones),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.sampled_from(
        [
            *Colour,
            Rude,
            object(),
            len,
            Path("/x"),
            Fraction(1, 3),
            Decimal("sNaN"),
            type,
            ...,
            date.max,
            datetime.min,  # noqa: DTZ901 - the naive one
            time_of_day.max,
            bytearray(b"x"),
            memoryview(b"y"),
            range(3),
            NotImplemented,
        ]
    ),
    json_leaves.map(LooksLikeAModel),
    st.builds(Rude),
)
names = st.one_of(
    st.text(max_size=8), odd_texts, st.integers(), st.booleans(), st.none(), st.uuids(), st.binary()
)
anything = st.recursive(
    values,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(names, inner, max_size=4),
        st.dictionaries(st.text(max_size=5), inner, max_size=3).map(MappingProxyType),
        inner.map(LooksLikeAModel),
    ),
    max_leaves=15,
)
properties_ = st.one_of(st.dictionaries(names, anything, max_size=5), anything)


def is_event(record):
    assert isinstance(record, bytes)
    assert len(record) <= 65_536
    event = json.loads(record.decode("utf-8"), parse_constant=pytest.fail)
    assert isinstance(event["event"], str)
    assert "@" in event["customer_email"]
    return event


@target(
    st.one_of(st.just("login"), odd_texts, values),
    st.one_of(st.just(JANE), odd_texts, values),
    properties_,
    st.one_of(st.none(), st.none(), odd_texts, st.datetimes(timezones=zones).map(str), values),
)
def test_event(event, email, properties, timestamp):
    try:
        record = encode(event, email, properties, timestamp, 65_536)
    except InvalidEventError:
        return
    is_event(record)


def deep(kind, depth):
    value: object = 1
    for _ in range(depth):
        value = (
            {"a": value}
            if kind is dict
            else kind((value,))
            if kind is not Decimal
            else MappingProxyType({"a": value})
        )
    return value


@target(st.sampled_from([dict, list, tuple, Decimal]), st.integers(1, 3_000))
def test_deep_event(kind, depth):
    try:
        is_event(encode("login", JANE, {"a": deep(kind, depth)}, None, 65_536))
    except InvalidEventError:
        assert depth > 100


secrets = st.sampled_from(
    [
        "4111 1111 1111 1111",
        "sk_live_0123456789",
        "bob@example.com",
        "password=hunter2",
        "10.0.0.1",
        "password",
        "pin",
    ]
)


around = st.sampled_from(["", " ", ", ", "(", "x: ", "\n", '"', "é ", "; "])


@target(
    st.recursive(
        st.one_of(json_leaves, secrets, st.tuples(around, secrets, around).map("".join)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.one_of(secrets, st.text(max_size=8)), inner, max_size=4),
        ),
        max_leaves=12,
    )
)
def test_scrubbed_event(value):
    try:
        record = encode("login", JANE, {"value": value}, None, 65_536)
    except InvalidEventError:
        return
    errors = []
    scrubbing = Scrubbing([*scrub.STANDARD, scrub.ip_addresses], lambda _, error: errors.append(error))
    scrubbed = scrub_event(record, scrubbing, 65_536)
    assert not errors
    event = is_event(scrubbed)
    assert event["customer_email"] == JANE
    for secret in ("4111 1111 1111 1111", "sk_live_0123456789", "bob@example.com", "hunter2"):
        assert secret not in scrubbed.decode()


# -- Answers -------------------------------------------------------------------------------------------

READERS = [
    endpoints.read_churn_event,
    partial(endpoints.read_list, Variant),
    endpoints.read_generated,
    endpoints.read_cancel_flow,
    endpoints.read_offer,
    *(partial(endpoints.read, model) for model in (OfferAcceptance, RecoveryStats, RecoveryTemplate)),
    partial(endpoints.read_list, RecoveryTemplate),
    lambda answer: endpoints.read_variant(answer, "v"),
    lambda answer: endpoints.ChurnEventPages("s").feed(answer),
    lambda answer: endpoints.OpenEventSearch("s", JANE).feed(answer),
]
FIELDS = (
    "id",
    "status",
    "data",
    "total",
    "created_at",
    "customer_email",
    "mrr",
    "variants",
    "offer",
    "error",
    "message",
    "code",
    "type",
    "currency",
    "tenure_days",
    "is_active",
    "recovered",
    "rate",
    "by_status",
)


@target(
    st.sampled_from(READERS),
    st.one_of(
        bodies,
        mixed(*FIELDS).map(dumped),
        st.lists(mixed(*FIELDS), max_size=3).map(dumped),
        st.lists(mixed(*FIELDS), max_size=3).map(lambda rows: dumped({"data": rows})),
        mixed(*FIELDS).map(lambda row: dumped({"data": row})),
    ),
    st.integers(200, 204),
)
def test_answer(read, body, status):
    with contextlib.suppress(WindbackError):
        repr(read(Answer(status, {}, body)))


@target(
    st.one_of(st.none(), st.integers(100, 999)),
    st.dictionaries(st.sampled_from(["retry-after", "location", "x-request-id"]), texts),
    st.one_of(bodies, mixed(*FIELDS).map(dumped)),
    st.sampled_from([None, *Failure]),
)
def test_failed_answer(status, headers, body, failure):
    error = error_of(Answer(status, headers, body, failure, "detail"), 1.8e9, lambda text: text)
    assert isinstance(error, WindbackError)
    assert len(str(error)) < 2_000
    assert isinstance(error.code, (str, type(None)))


@target(
    st.one_of(
        texts,
        st.from_regex(r"\A[-+]?[0-9.eE_]{1,30}\Z"),
        st.from_regex(
            r"\A(Mon|X), [0-9]{1,3} (Jan|Foo) [0-9]{1,6} [0-9]{1,2}(:[0-9]{1,2}){2} (GMT|[+-][0-9]{1,6}|)\Z"
        ),
        st.sampled_from(["nan", "inf", "-inf", "1e400", "9" * 5_000, "1_0", "٣"]),
    ),
    st.sampled_from([429, 503]),
)
def test_retry_after(text, status):
    wait_s = retry_after_s(Answer(status, {"retry-after": text}), 1.8e9)
    assert wait_s is None or 0 <= wait_s <= RETRY_AFTER_CAP_S


@target(
    st.binary(max_size=300),
    st.sampled_from(["gzip", "deflate", "x-gzip", "br", "identity", "gzip, gzip", "\xff", ""]),
    st.booleans(),
)
def test_encoded_body(raw, encoding, is_packed):
    import gzip
    import zlib

    packed = raw
    if is_packed:
        packed = zlib.compress(raw) if encoding == "deflate" else gzip.compress(raw * 1_000)
    body = unpacked(packed, {"content-encoding": encoding})
    assert body is None or len(body) <= 32 * 1024 * 1024
