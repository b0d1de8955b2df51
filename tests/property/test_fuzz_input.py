"""Entries of Redis, webhooks, searches and imports end in a result or a documented error, in bounded time.

Each test is a target of `make fuzz`, which feeds it new values for minutes. Here each gets a few, always the
same.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fuzzing import (
    JANE,
    bodies,
    dumped,
    json_values,
    mixed,
    target,
    texts,
    zones,
)
from hypothesis import strategies as st

from windback import WebhookError, webhooks
from windback.broker import layout
from windback.cli import main
from windback.devserver import query
from windback.devserver.errors import ApiError
from windback.event.batch import join

# -- Redis, webhooks, searches, imports ----------------------------------------------------------------

field_names = st.sampled_from([b"v", b"key", b"count", b"project", b"events", b"x"])
good_entry = st.fixed_dictionaries(
    {
        b"v": st.sampled_from([b"1", b"2", b""]),
        b"key": st.one_of(st.just(b"k"), st.binary(max_size=8)),
        b"count": st.one_of(st.just(b"1"), st.just(b"2"), st.binary(max_size=3)),
        b"project": st.one_of(st.just(b"shop"), st.just(b""), st.binary(max_size=4)),
        b"events": st.one_of(
            bodies, st.lists(mixed("event", "customer_email").map(dumped), max_size=3).map(b"\n".join)
        ),
    }
)


@target(
    st.one_of(good_entry, st.dictionaries(field_names, st.binary(max_size=20))),
    st.sampled_from(["shop", None]),
)
def test_redis_entry(fields, project):
    try:
        entry = layout.entry_of(b"1-1", fields, project)
    except layout.ForeignError as error:
        layout.foreign_letter(b"1-1", fields, str(error))
        return
    body = json.loads(join(entry.records), strict=False)
    assert list(body) == ["events"]
    assert len(body["events"]) == len(entry.records)
    assert all(isinstance(event, dict) for event in body["events"])
    httpx.Headers({"Idempotency-Key": entry.key})


ALERT = (
    "risk_score",
    "risk_level",
    "customer_email",
    "customer_id",
    "signals",
    "triggered_at",
    "timestamp",
    "subject",
    "email",
    "body_html",
    "opaque_id",
    "customer",
    "project_id",
    "event",
    "data",
    "name",
    "weight",
    "description",
)
SECRET = "whsec_test_0123456789"


@target(
    st.one_of(
        bodies,
        mixed(*ALERT).map(dumped),
        st.tuples(
            mixed(*ALERT),
            st.one_of(st.floats(allow_nan=True), st.integers()),
            st.one_of(texts, st.datetimes(timezones=zones).map(str)),
            st.lists(mixed(*ALERT), max_size=3),
        ).map(
            lambda each: dumped(
                {
                    **each[0],
                    "risk_score": each[1],
                    "customer_email": JANE,
                    "triggered_at": each[2],
                    "signals": each[3],
                }
            )
        ),
    ),
    st.booleans(),
)
def test_webhook(body, is_signed):
    signature = webhooks.sign(body, SECRET) if is_signed else "0" * 64
    for tolerance in (None, timedelta(minutes=10)):
        try:
            alert = webhooks.parse(body, signature, SECRET, tolerance=tolerance)
        except WebhookError:
            continue
        assert is_signed
        assert alert.risk_score == alert.risk_score
        hash(alert.id)
        assert alert.triggered_at is None or alert.triggered_at.utcoffset() is not None


@target(
    st.one_of(st.none(), st.text(st.characters(), max_size=70), st.binary(max_size=70), st.integers()),
    st.binary(max_size=20),
)
def test_webhook_signature(signature, body):
    with pytest.raises(WebhookError):
        webhooks.verify(body, signature, SECRET)


class Subject:
    def __init__(self, properties):
        self._properties = properties

    def values(self, _):
        return [JANE, 3, None, "x"]

    def properties(self):
        return [self._properties]

    def text(self):
        return json.dumps(self._properties)


query_parts = st.one_of(
    st.sampled_from(
        [
            "event:",
            "email:",
            "-",
            '"',
            "*",
            "?",
            ">",
            "<",
            ">=",
            "=",
            ":",
            "a.b",
            "plan",
            "5",
            "-10m",
            "after:",
            "before:",
            "status:",
            " ",
            "(",
            "|",
            "1e999",
            "nan",
            "now",
            "2025-12-01",
            "has:",
            "inbox:",
            "\\",
            "properties.",
            "9" * 30,
            "-99999999999d",
            "is:",
        ]
    ),
    st.text(max_size=4),
)


@target(
    st.one_of(
        texts,
        st.lists(query_parts, max_size=12).map("".join),
        st.sampled_from(["*a" * 40 + "b", "-" * 5_000, '"' * 999]),
    ),
    st.dictionaries(st.text(max_size=5), json_values, max_size=4),
)
def test_search(text, properties):
    try:
        parsed = query.parse(text, 1.8e9)
    except ApiError:
        return
    subject = Subject({**properties, "plan": "a" * 60, "a": {"b": [1, None]}})
    assert parsed.matches(subject) is not bool(parsed.failing(subject))


cells = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.sampled_from(
        [
            JANE,
            "login",
            "",
            '"',
            "1e999",
            "NaN",
            "2025-12-01",
            "2025-12-01T10:00:00Z",
            "9" * 50,
            "{",
            '{"a":1}',
            "\0",
            "true",
            "0001-01-01",
        ]
    ),
)
csv_files = st.lists(st.lists(cells, max_size=6).map(",".join), max_size=6).map(
    lambda rows: "\n".join(["customer_email,event,timestamp,n,properties", *rows]).encode()
)
json_files = st.lists(
    st.one_of(
        json_values.map(dumped), mixed("customer_email", "event", "timestamp", "properties", "n").map(dumped)
    ),
    max_size=5,
).map(b"\n".join)


@target(
    st.one_of(st.binary(max_size=300), csv_files, json_files, bodies),
    st.sampled_from(["a.csv", "a.jsonl", "a.tsv"]),
    st.lists(
        st.sampled_from(
            [
                "--utc",
                "--map=n:int",
                "--map=n:json",
                "--map=n:bool",
                "--map=n:float",
                "--event=x",
                "--encoding=latin-1",
                "--encoding=utf-16",
                "--encoding=nope",
                "--delimiter=;",
                "--scrub=standard",
                "--encoding=punycode",
                "--encoding=utf-7",
                "--encoding=base64",
            ]
        ),
        max_size=3,
    ),
)
def test_import_file(content, name, options):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        out = io.TextIOWrapper(io.BytesIO(), "utf-8")
        err = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["import", str(path), "--dry-run", "--json", *options])
        assert status in (0, 1, 2)
        out.flush()
        written = out.buffer.getvalue()
        if status != 2:
            json.loads(written)
        assert "Traceback" not in err.getvalue()
