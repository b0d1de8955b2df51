"""What a request body must look like. Pure: a parsed JSON value in, a checked value or `ApiError` out.

The rules are those of the public API pages; where the two editions of the documentation disagree, both
spellings are taken (`customer_id` in place of `customer_email`, `occurred_at` in place of `timestamp`).
Unknown fields are ignored. An event that breaks a rule is one that the API takes and drops without a word;
here it gets a reason; or, in strict mode, the whole batch is refused, with the index and the field in the
message.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, cast

import orjson

from .errors import invalid

#: Events in one `POST /track` (Tracking API page).
MAX_BATCH = 100

#: Churn Events and Custom Webhook pages.
EVENT_TYPES = ("cancellation", "payment_failed", "payment_recovered")

#: The largest amount of cents and number of days that is taken: sums of many of them stay within 64 bits.
MAX_COUNT = 10**12

#: Named one by one: what counts as blank differs between this language and readers of the OpenAPI document.
BLANKS = " \t\n\r\f\v"

#: What an Idempotency-Key and an email address must look like, as regular expressions.
IDEMPOTENCY_KEY = "[!-~]{1,255}"
EMAIL = r"[^@ \t\n\r\f\v]+@[^@ \t\n\r\f\v]+"

#: Retention Offers page.
OFFER_TYPES = ("discount", "extension", "downgrade", "feature_unlock", "custom")

_email = re.compile(EMAIL).fullmatch
_timestamp = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-](?:[01]\d|2[0-3]):?[0-5]\d)", re.ASCII
).fullmatch
is_idempotency_key = re.compile(IDEMPOTENCY_KEY).fullmatch
_currency = re.compile(r"[A-Za-z]{3}").fullmatch


_NO_NAME = "must be a string that is not empty"
_NO_OBJECT = "must be an object"
_NO_ADDRESS = "must look like name@host"
_MISSING = "is missing"
_TWO_TIMES = "must not be given together with timestamp"
_NO_SUCH_TIME = "is not a time that exists"
#: What an event should have had instead, where the problem has no "must be".
_EXPECTED = {
    _NO_ADDRESS: "an address such as name@host",
    _MISSING: "an address such as name@host, or a customer_id",
    _TWO_TIMES: "either timestamp or occurred_at",
    _NO_SUCH_TIME: "a time that exists",
}
_NOTHING = object()
_NO_PROBLEMS: Mapping[int, str] = {}


class EventRow(NamedTuple):
    """One tracked event as it is stored; `timestamp` is None when the client gave none."""

    event: str
    customer_email: Optional[str]
    customer_id: Optional[str]
    customer_name: Optional[str]
    timestamp: Optional[str]
    properties: str


class Batch(NamedTuple):
    """The events of a request, and by their place in it why the API would not keep some: JSON lists."""

    rows: List[EventRow]
    problems: Mapping[int, str]


class ChurnFields(NamedTuple):
    """The fields of a new churn event."""

    customer_email: str
    customer_name: Optional[str]
    event_type: str
    cancel_reason: Optional[str]
    cancel_reason_text: Optional[str]
    mrr: int
    currency: str
    plan_name: Optional[str]
    tenure_days: Optional[int]
    provider: str


class TemplateFields(NamedTuple):
    """The fields of a new recovery template."""

    cancel_reason: str
    name: str
    subject: str
    body: str
    is_active: bool


class CancelFlowFields(NamedTuple):
    """A cancel-flow submission: the churn event it makes, and the customer's words and choice."""

    churn: ChurnFields
    feedback_text: Optional[str]
    selected_offer: Optional[str]


class Acceptance(NamedTuple):
    """A customer took an offer."""

    customer_email: str
    cancel_reason: str
    offer_type: str


class Alert(NamedTuple):
    """What a webhook is to tell."""

    project_id: str
    customer_email: str
    risk_score: int
    risk_level: str
    signals: List[Dict[str, object]]


class _BadFieldError(Exception):
    """A field breaks a rule; the caller adds the place of the object."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem


def track_rows(body: object, *, strict: bool) -> Batch:
    """The events of a `POST /track` body: one event, or ``{"events": [1 to 100 events]}``.

    One that breaks a rule has problems. If *strict*, and for a body that is not a batch at all, it raises
    `ApiError` 400 whose text starts with the place, such as ``events[3].customer_email``.
    """
    if type(body) is not dict:
        raise invalid("body: must be an event or an object with a list of events")
    fields = cast("Dict[str, object]", body)
    if "events" not in fields:
        try:
            return Batch([_event_row(fields)], _NO_PROBLEMS)
        except _BadFieldError as bad:
            if strict or "event" not in fields:
                raise invalid(f"{bad.field}: {bad.problem}") from None
            return Batch([_ignored_row(fields)], {0: _problems(fields, "")})
    value = fields["events"]
    if type(value) is not list or not value:
        raise invalid("events: must be a list of at least one event")
    events = cast("List[object]", value)
    if len(events) > MAX_BATCH:
        raise invalid(f"events: at most {MAX_BATCH} in one request, {len(events)} given")
    rows: List[EventRow] = []
    problems: Dict[int, str] = {}
    for item in events:
        try:
            rows.append(_event_row(item))
        except _BadFieldError as bad:
            place = f"events[{len(rows)}]"
            if strict:
                raise invalid(f"{place}{bad.field and '.'}{bad.field}: {bad.problem}") from None
            problems[len(rows)] = _problems(item, place)
            rows.append(_ignored_row(item))
    return Batch(rows, problems)


def _ignored_row(item: object) -> EventRow:
    """What can be read of an event that the API takes and does not keep."""
    fields = cast("Dict[str, object]", item) if type(item) is dict else {}
    texts = {name: fields.get(name) for name in EventRow._fields[:5]}
    properties = fields.get("properties")
    return EventRow(
        **{  # type: ignore[arg-type]  # the first five are texts
            **{name: value if type(value) is str else None for name, value in texts.items()},
            "event": texts["event"] if type(texts["event"]) is str else "",
        },
        properties=orjson.dumps(properties if type(properties) is dict else {}).decode(),
    )


def _problems(item: object, place: str) -> str:
    """All that is wrong with an event, as a JSON list."""
    return orjson.dumps(_found_problems(item, place)).decode()


def _found_problems(item: object, place: str) -> List[Dict[str, str]]:
    if type(item) is not dict:
        return [_problem(place, _NO_OBJECT, item)]
    fields = cast("Dict[str, object]", item)
    found: List[Dict[str, str]] = []
    for check in _CHECKS:
        try:
            check(fields)
        except _BadFieldError as bad:
            path = f"{place}{place and '.'}{bad.field}"
            found.append(_problem(path, bad.problem, fields.get(bad.field, _NOTHING)))
    return found


def _problem(path: str, problem: str, got: object) -> Dict[str, str]:
    shown = "nothing" if got is _NOTHING else orjson.dumps(got).decode()
    expected = problem[len("must be ") :] if problem.startswith("must be ") else _EXPECTED[problem]
    return {"path": path, "expected": expected, "got": shown if len(shown) <= 80 else shown[:79] + "…"}


def count_events(body: object) -> int:
    """How many events a `POST /track` body carries, valid or not; 0 for any other body."""
    if type(body) is not dict:
        return 0
    fields = cast("Dict[str, object]", body)
    events = fields.get("events")
    if type(events) is list:
        return len(cast("List[object]", events))
    return 1 if "event" in fields else 0


def _event_row(item: object) -> EventRow:
    # The hot path of the server: no helper calls for what every event has and gets right.
    if type(item) is not dict:
        raise _BadFieldError("", "must be an object")
    fields = cast("Dict[str, object]", item)
    get = fields.get
    event = get("event")
    if type(event) is not str or not event.strip(BLANKS):
        raise _BadFieldError("event", _NO_NAME)
    email = get("customer_email")
    if type(email) is not str or not _email(email):
        _check_no_email(fields)
        email = None
    timestamp = get("timestamp")
    if type(timestamp) is str and "occurred_at" not in fields:
        _check_time("timestamp", timestamp)
    else:
        timestamp = _other_time(fields)
    properties = get("properties")
    if type(properties) is dict:
        encoded = orjson.dumps(properties).decode()
    elif "properties" in fields:
        raise _BadFieldError("properties", _NO_OBJECT)
    else:
        encoded = "{}"
    customer_id = _optional_text(fields, "customer_id")
    return EventRow(event, email, customer_id, _optional_text(fields, "customer_name"), timestamp, encoded)


def _check_no_email(fields: Dict[str, object]) -> None:
    """An event may name its customer by `customer_id` alone."""
    if fields.get("customer_email") is not None:
        raise _BadFieldError("customer_email", _NO_ADDRESS)
    if not fields.get("customer_id"):
        raise _BadFieldError("customer_email", _MISSING)


def _other_time(fields: Dict[str, object]) -> Optional[str]:
    """No time, or the other spelling of it."""
    if "occurred_at" not in fields:
        return _check_time("timestamp", fields["timestamp"]) if "timestamp" in fields else None
    if "timestamp" in fields:
        raise _BadFieldError("occurred_at", _TWO_TIMES)
    return _check_time("occurred_at", fields["occurred_at"])


def _check_time(field: str, value: object) -> str:
    if type(value) is not str or not _timestamp(value):
        raise _BadFieldError(field, "must be an ISO 8601 time with a zone, such as 2025-12-01T10:00:00Z")
    try:
        # The calendar is checked without fraction and zone, which fromisoformat of Python 3.8 cannot read.
        datetime.fromisoformat(value[:10] + "T" + value[11:19])
    except ValueError:
        raise _BadFieldError(field, _NO_SUCH_TIME) from None
    return value


def _check_name(fields: Dict[str, object]) -> None:
    event = fields.get("event")
    if type(event) is not str or not event.strip(BLANKS):
        raise _BadFieldError("event", _NO_NAME)


def _check_customer(fields: Dict[str, object]) -> None:
    email = fields.get("customer_email")
    if type(email) is not str or not _email(email):
        _check_no_email(fields)


def _check_when(fields: Dict[str, object]) -> None:
    _other_time(fields)


def _check_properties(fields: Dict[str, object]) -> None:
    if type(fields.get("properties", {})) is not dict:
        raise _BadFieldError("properties", _NO_OBJECT)


def _check_texts(name: str) -> Callable[[Dict[str, object]], object]:
    return lambda fields: _optional_text(fields, name)


#: The rules of `_event_row` one by one, to find all that is wrong with an event that broke one.
_CHECKS: Tuple[Callable[[Dict[str, object]], object], ...] = (
    *(_check_name, _check_customer, _check_when, _check_properties),
    *(_check_texts("customer_id"), _check_texts("customer_name")),
)


def churn_fields(body: object) -> ChurnFields:
    """The checked body of `POST /projects/{slug}/churn-events`; raises `ApiError` 400."""
    try:
        return _churn_fields(_object(body))
    except _BadFieldError as bad:
        raise invalid(f"{bad.field}: {bad.problem}") from None


def cancel_flow_fields(body: object) -> CancelFlowFields:
    """The checked body of `POST /cancel-flow/submit`; raises `ApiError` 400."""
    try:
        fields = _object(body)
        _text(fields, "cancel_reason")
        return CancelFlowFields(
            churn=_churn_fields(fields),
            feedback_text=_optional_text(fields, "feedback_text"),
            selected_offer=_optional_text(fields, "selected_offer"),
        )
    except _BadFieldError as bad:
        raise invalid(f"{bad.field}: {bad.problem}") from None


def cancel_reason_fields(body: object) -> Dict[str, str]:
    """`cancel_reason` and, when given, `cancel_reason_text`; raises `ApiError` 400."""
    try:
        fields = _object(body)
        checked = {"cancel_reason": _text(fields, "cancel_reason")}
        detail = _optional_text(fields, "cancel_reason_text")
    except _BadFieldError as bad:
        raise invalid(f"{bad.field}: {bad.problem}") from None
    if detail is not None:
        checked["cancel_reason_text"] = detail
    return checked


def acceptance_fields(body: object) -> Acceptance:
    """The checked body of `POST /cancel-flow/accept-offer`; raises `ApiError` 400."""
    try:
        fields = _object(body)
        return Acceptance(
            customer_email=_required_email(fields),
            cancel_reason=_text(fields, "cancel_reason"),
            offer_type=_text(fields, "offer_type"),
        )
    except _BadFieldError as bad:
        raise invalid(f"{bad.field}: {bad.problem}") from None


def configured_offers(body: object) -> Dict[str, Dict[str, object]]:
    """The offers of `PUT /_dev/offers` by their cancel reason; raises `ApiError` 400."""
    if type(body) is not list:
        raise invalid("offers: must be a list")
    offers: Dict[str, Dict[str, object]] = {}
    for index, item in enumerate(cast("List[object]", body)):
        try:
            fields = _object(item)
            reason = _text(fields, "cancel_reason")
            offer = _offer(fields)
        except _BadFieldError as bad:
            raise invalid(f"offers[{index}].{bad.field}: {bad.problem}") from None
        if reason in offers:
            raise invalid(f"offers[{index}].cancel_reason: {reason} has an offer already")
        offers[reason] = offer
    return offers


def _offer(fields: Dict[str, object]) -> Dict[str, object]:
    offer_type = _text(fields, "offer_type")
    if offer_type not in OFFER_TYPES:
        raise _BadFieldError("offer_type", "must be one of " + ", ".join(OFFER_TYPES))
    percent = _optional_count(fields, "discount_percent")
    if percent is not None and not 1 <= percent <= 100:
        raise _BadFieldError("discount_percent", "must be a whole number from 1 to 100")
    texts = {name: _optional_text(fields, name) for name in ("title", "description", "cta_button_text")}
    days = _optional_count(fields, "extension_days")
    offer = {"offer_type": offer_type, **texts, "discount_percent": percent, "extension_days": days}
    given = {name: value for name, value in offer.items() if value is not None}
    return {**given, "is_active": _flag(fields, "is_active", default=True)}


def alert_fields(body: object) -> Alert:
    """The checked body of `POST /_dev/webhooks`; raises `ApiError` 400."""
    try:
        fields = _object(body)
        score = _optional_count(fields, "risk_score")
        if score is None or score > 100:
            raise _BadFieldError("risk_score", "must be a whole number from 0 to 100")  # noqa: TRY301 - as all others
        return Alert(
            project_id=_optional_text(fields, "project_id") or "prj_dev",
            customer_email=_required_email(fields),
            risk_score=score,
            risk_level=_optional_text(fields, "risk_level") or _risk_level(score),
            signals=_signals(fields),
        )
    except _BadFieldError as bad:
        raise invalid(f"{bad.field}: {bad.problem}") from None


def _risk_level(score: int) -> str:
    """The names are documented, their bounds are not."""
    return "critical" if score >= 90 else "high" if score >= 70 else "medium" if score >= 40 else "low"


def _signals(fields: Dict[str, object]) -> List[Dict[str, object]]:
    value = fields.get("signals", [])
    if type(value) is not list or not all(type(item) is dict for item in cast("List[object]", value)):
        raise _BadFieldError("signals", "must be a list of objects")
    return cast("List[Dict[str, object]]", value)


def template_fields(body: object) -> TemplateFields:
    """The checked body of `POST /projects/{slug}/recovery-templates`; raises `ApiError` 400."""
    try:
        fields = _object(body)
        return TemplateFields(
            cancel_reason=_text(fields, "cancel_reason"),
            name=_text(fields, "name"),
            subject=_text(fields, "subject"),
            body=_text(fields, "body"),
            is_active=_flag(fields, "is_active", default=True),
        )
    except _BadFieldError as bad:
        raise invalid(f"{bad.field}: {bad.problem}") from None


def template_changes(body: object) -> Dict[str, object]:
    """The fields that `PUT /projects/{slug}/recovery-templates/{id}` changes; raises `ApiError` 400."""
    try:
        fields = _object(body)
        changes: Dict[str, object] = _texts(fields, "name", "subject", "body")
        if "is_active" in fields:
            changes["is_active"] = _flag(fields, "is_active", default=True)
        _check_any(changes, "name, subject, body, is_active")
    except _BadFieldError as bad:
        raise invalid(f"{bad.field}: {bad.problem}") from None
    return changes


def variant_changes(body: object) -> Dict[str, object]:
    """The fields that `PATCH …/variants/{vid}` changes; raises `ApiError` 400."""
    try:
        changes = _texts(_object(body), "subject", "body")
        _check_any(changes, "subject, body")
    except _BadFieldError as bad:
        raise invalid(f"{bad.field}: {bad.problem}") from None
    return changes


def _churn_fields(fields: Dict[str, object]) -> ChurnFields:
    email = _required_email(fields)
    event_type = _optional_text(fields, "event_type")
    if event_type is not None and event_type not in EVENT_TYPES:
        raise _BadFieldError("event_type", "must be one of " + ", ".join(EVENT_TYPES))
    currency = _optional_text(fields, "currency")
    if currency is not None and not _currency(currency):
        raise _BadFieldError("currency", "must be a code of three letters")
    return ChurnFields(
        customer_email=email,
        customer_name=_optional_text(fields, "customer_name"),
        event_type=event_type or "cancellation",
        cancel_reason=_optional_text(fields, "cancel_reason"),
        cancel_reason_text=_optional_text(fields, "cancel_reason_text"),
        mrr=_optional_count(fields, "mrr") or 0,
        currency=currency or "usd",
        plan_name=_optional_text(fields, "plan_name"),
        tenure_days=_optional_count(fields, "tenure_days"),
        provider=_optional_text(fields, "provider") or "api",
    )


def _object(body: object) -> Dict[str, object]:
    if type(body) is not dict:
        raise _BadFieldError("body", "must be an object")
    return cast("Dict[str, object]", body)


def _text(fields: Dict[str, object], name: str) -> str:
    value = fields.get(name)
    if type(value) is not str or not value.strip(BLANKS):
        raise _BadFieldError(name, "is missing" if value is None else "must be a string that is not empty")
    return value


def _required_email(fields: Dict[str, object]) -> str:
    email = fields.get("customer_email")
    if type(email) is not str or not _email(email):
        raise _BadFieldError("customer_email", "is missing" if email is None else "must look like name@host")
    return email


def _texts(fields: Dict[str, object], *names: str) -> Dict[str, object]:
    """Those of the texts that are given; they may not be empty."""
    return {name: _text(fields, name) for name in names if name in fields}


def _check_any(changes: Dict[str, object], names: str) -> None:
    if not changes:
        raise _BadFieldError("body", f"must have at least one of {names}")


def _flag(fields: Dict[str, object], name: str, *, default: bool) -> bool:
    value = fields.get(name, default)
    if type(value) is not bool:
        raise _BadFieldError(name, "must be true or false")
    return value


def _optional_text(fields: Dict[str, object], name: str) -> Optional[str]:
    value = fields.get(name)
    if value is not None and type(value) is not str:
        raise _BadFieldError(name, "must be a string")
    return value


def _optional_count(fields: Dict[str, object], name: str) -> Optional[int]:
    value = fields.get(name)
    if value is None:
        return None
    # A bool is not an int here; 5.0 is one in JSON.
    whole = type(value) is int or (type(value) is float and value.is_integer())
    if not whole or not 0 <= cast("float", value) <= MAX_COUNT:
        raise _BadFieldError(name, f"must be a whole number from 0 to {MAX_COUNT}")
    return int(cast("float", value))
