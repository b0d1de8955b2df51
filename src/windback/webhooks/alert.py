"""What an alert contains, and how the body of a webhook becomes one.

The two editions of the API's docs name its fields differently; both are read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from typing import Dict, Iterator, Mapping, Optional, Tuple

import orjson

from ..errors import WebhookError
from ..models import parse_time
from ..secrets import kind_of

_STATUS = {
    "bad_signature": 401,
    "missing_signature": 401,
    "too_old": 400,
    "bad_payload": 400,
    "too_large": 413,
}


def refusal(code: str, message: str) -> WebhookError:
    """Return an error with the HTTP status of its *code*."""
    return WebhookError(message, status=_STATUS[code], code=code)


@dataclass(frozen=True)
class Signal:
    """One reason for a risk score. The two editions of the API's docs describe it differently.

    Attributes:
        name: The name of the reason.
        weight: Its share of the score. None if it was not sent.
        description: The reason in words. None if it was not sent.
    """

    name: str
    weight: Optional[float] = None
    description: Optional[str] = None


@dataclass(frozen=True)
class ChurnRiskAlert:
    """A customer is likely to leave. Fields that were not sent are None; unknown fields are in `raw`.

    Attributes:
        id: Equal for all deliveries of one alert: the `opaque_id`, or the SHA-256 of the body.
        customer_email: The customer's address. Either this or `customer_id` is always set.
        customer_id: The customer's id, in the other edition of the docs.
        risk_score: 0 to 100.
        risk_level: "critical", "high", "medium" or "low". The API may add others.
        triggered_at: An aware datetime.
        subject: The subject of an email that the API suggests.
        body_html: The body of that email.
    """

    id: str
    risk_score: float
    risk_level: Optional[str] = None
    customer_email: Optional[str] = None
    customer_id: Optional[str] = None
    customer_name: Optional[str] = None
    project_id: Optional[str] = None
    signals: Tuple[Signal, ...] = ()
    triggered_at: Optional[datetime] = None
    subject: Optional[str] = None
    body_html: Optional[str] = None
    opaque_id: Optional[str] = None
    raw: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)


def read_alert(body: bytes) -> ChurnRiskAlert:
    """Return the alert in the body of a webhook. Raises WebhookError."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise refusal("bad_payload", f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise refusal("bad_payload", f"the body must be a JSON object, not {kind_of(found)}")
    payload: Dict[str, object] = found
    event = payload.get("event", "churn_risk.alert")
    if event != "churn_risk.alert":
        raise refusal("bad_payload", f'"event" must be "churn_risk.alert", not {_json(event)}')
    email, customer_id = _text(payload, "customer_email"), _text(payload, "customer_id")
    if not email and not customer_id:
        raise refusal("bad_payload", 'the alert has neither "customer_email" nor "customer_id"')
    if payload.get("risk_score") is None:
        raise refusal("bad_payload", 'the alert has no "risk_score"')
    opaque_id = _text(payload, "opaque_id")
    return ChurnRiskAlert(
        id=opaque_id or hashlib.sha256(body).hexdigest(),
        risk_score=_number(payload, "risk_score") or 0,
        risk_level=_text(payload, "risk_level"),
        customer_email=email,
        customer_id=customer_id,
        customer_name=_text(payload, "customer_name"),
        project_id=_text(payload, "project_id"),
        signals=tuple(_signals(payload)),
        triggered_at=_time(payload),
        subject=_text(payload, "subject"),
        body_html=_text(payload, "body_html"),
        opaque_id=opaque_id,
        raw=payload,
    )


def _signals(payload: Mapping[str, object]) -> Iterator[Signal]:
    signals = payload.get("signals")
    if signals is None:
        return
    if not isinstance(signals, list):
        raise refusal("bad_payload", f'"signals" must be a list, not {_json(signals)}')
    for number, signal in enumerate(signals):
        place = f"signals[{number}]"
        if not isinstance(signal, dict):
            raise refusal("bad_payload", f'"{place}" must be an object, not {_json(signal)}')
        name = _text(signal, "name", place)
        if name is None:
            raise refusal("bad_payload", f'"{place}" has no "name"')
        yield Signal(name, _number(signal, "weight", place), _text(signal, "description", place))


def _time(payload: Mapping[str, object]) -> Optional[datetime]:
    for name in ("triggered_at", "timestamp"):
        text = _text(payload, name)
        if text is not None:
            at = parse_time(text)
            if at is None:
                raise refusal("bad_payload", f'"{name}" must be a time in ISO 8601, not {_json(text)}')
            return at
    return None


def _text(values: Mapping[str, object], name: str, place: str = "") -> Optional[str]:
    value = values.get(name)
    if value is None or isinstance(value, str):
        return value
    raise _wrong(name, place, "a text", value)


def _number(values: Mapping[str, object], name: str, place: str = "") -> Optional[float]:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value):
        return value
    raise _wrong(name, place, "a number", value)


def _wrong(name: str, place: str, wanted: str, value: object) -> WebhookError:
    where = f"{place}.{name}" if place else name
    return refusal("bad_payload", f'"{where}" must be {wanted}, not {_json(value)}')


def _json(value: object) -> str:
    """Return a value of the payload for a message: shortened, without the contents of lists and objects."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else text[:40] + "…"
