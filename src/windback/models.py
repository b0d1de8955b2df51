"""The API's answers, as frozen values.

Every model keeps the whole answer in `.raw`, so a field that the server adds is not lost. A status or
reason that this version does not know remains a plain string. Missing fields become None, or an empty
string for `id` and `status`: the editions of the API's docs differ in what they send.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Callable, Literal, Mapping, Optional, Tuple, Type, TypeVar

JSONObject = Mapping[str, object]
#: The values that the API accepts (docs page "Churn Events"). Its answers may have more, and remain text.
EventType = Literal["cancellation", "payment_failed"]


def _text(raw: JSONObject, name: str) -> Optional[str]:
    value = raw.get(name)
    return value if value is None or isinstance(value, str) else str(value)


def _integer(raw: JSONObject, name: str) -> Optional[int]:
    value = raw.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(raw: JSONObject, name: str) -> Optional[float]:
    value = raw.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _flag(raw: JSONObject, name: str) -> Optional[bool]:
    value = raw.get(name)
    return value if isinstance(value, bool) else None


# Before Python 3.11 datetime.fromisoformat reads neither "Z" nor other than 3 or 6 digits of a second.
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:?\d\d)?", re.IGNORECASE)


def parse_time(text: str) -> Optional[datetime]:
    """Read an ISO 8601 time.

    Args:
        text: The time. UTC if it has no zone.

    Returns:
        An aware datetime; None if *text* is not a time.
    """
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    if zone is None or zone in "Zz":
        zone = "+00:00"
    elif ":" not in zone:
        zone = f"{zone[:3]}:{zone[3:]}"
    try:
        at = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '0')[:6]:0<6}{zone}")
    except ValueError:
        return None
    return at


def _time(raw: JSONObject, name: str) -> Optional[datetime]:
    value = raw.get(name)
    return parse_time(value) if isinstance(value, str) else None


#: How a field is read, by its type as it is written in its model. A model reads its other fields itself.
_READERS: Mapping[str, Callable[[JSONObject, str], object]] = {
    "str": lambda raw, name: _text(raw, name) or "",
    "Optional[str]": _text,
    "Optional[int]": _integer,
    "Optional[float]": _number,
    "Optional[bool]": _flag,
    "Optional[datetime]": _time,
    "JSONObject": lambda raw, _: raw,
}
_Model = TypeVar("_Model", bound="_Answer")


class _Answer:
    """A dataclass whose fields have the names of the API's. Each is read by its type."""

    @classmethod
    def from_json(cls: Type[_Model], raw: JSONObject) -> _Model:
        """Read an answer.

        Args:
            raw: The decoded JSON object. Unknown fields stay in `.raw`; missing ones become None.

        Returns:
            The model.
        """
        make: Callable[..., _Model] = cls
        readers = ((each.name, _READERS.get(str(each.type))) for each in fields(cls))  # type: ignore[arg-type]
        return make(**{name: read(raw, name) for name, read in readers if read is not None})


@dataclass(frozen=True)
class Variant(_Answer):
    """A recovery email to a customer, with one strategy (docs page "Recovery").

    Attributes:
        strategy: "value_recap", "unused_feature", "downgrade_offer", "pause_option", "founder_email",
            "pain_point_fix", "social_proof", "feedback_request" or "discount". The API may add others.
        body: Plain text or HTML.
        coupon_percent: 1 to 100.
        sent_at: An aware datetime, as all times. None if it has not happened.
    """

    id: str
    churn_event_id: Optional[str] = None
    strategy: Optional[str] = None
    subject: Optional[str] = None
    body: Optional[str] = None
    status: Optional[str] = None
    recommended: Optional[bool] = None
    coupon_code: Optional[str] = None
    coupon_percent: Optional[int] = None
    sent_at: Optional[datetime] = None
    opened_at: Optional[datetime] = None
    clicked_at: Optional[datetime] = None
    created_at: Optional[datetime] = None
    raw: JSONObject = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class ChurnEvent(_Answer):
    """A customer about to leave, or who could not pay (docs page "Churn Events").

    Attributes:
        status: "new", "processing", "variants_generated", "email_sent", "recovered" or "lost". The API may
            add others.
        mrr: Monthly revenue in integer minor units of `currency`: 4999 for 49.99.
        created_at: An aware datetime, as all times. None if it has not happened.
        variants: The emails generated for it. Only get_churn_event returns them.
    """

    id: str
    status: str
    project_id: Optional[str] = None
    customer_email: Optional[str] = None
    customer_name: Optional[str] = None
    event_type: Optional[str] = None
    cancel_reason: Optional[str] = None
    mrr: Optional[int] = None
    currency: Optional[str] = None
    plan_name: Optional[str] = None
    tenure_days: Optional[int] = None
    provider: Optional[str] = None
    created_at: Optional[datetime] = None
    updated_at: Optional[datetime] = None
    variants: Tuple[Variant, ...] = ()
    raw: JSONObject = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, raw: JSONObject) -> ChurnEvent:
        """Read an answer.

        Args:
            raw: The decoded JSON object. Unknown fields stay in `.raw`; missing ones become None.

        Returns:
            The churn event.
        """
        event = super().from_json(raw)
        rows = raw.get("variants")
        return replace(
            event,
            mrr=_integer(raw, "mrr_cents") if event.mrr is None else event.mrr,
            variants=tuple(Variant.from_json(row) for row in rows if isinstance(row, dict))
            if isinstance(rows, list)
            else (),
        )


@dataclass(frozen=True)
class Offer(_Answer):
    """An offer that may make a customer stay (docs page "Retention Offers")."""

    offer_type: str
    title: Optional[str] = None
    description: Optional[str] = None
    cta_button_text: Optional[str] = None
    discount_percent: Optional[int] = None
    extension_days: Optional[int] = None
    raw: JSONObject = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class CancelFlowResult:
    """The answer to submit_cancel_flow.

    Attributes:
        created: False if the API answered 202 and created nothing: the same customer submitted within 24
            hours, or the subscription has expired (docs page "Widget Installation").
        event_id: The id of the churn event. None if nothing was created.
        offer: The offer for this reason. None if none is configured.
    """

    created: bool
    event_id: Optional[str] = None
    status: Optional[str] = None
    message: Optional[str] = None
    offer: Optional[Offer] = None
    raw: JSONObject = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, raw: JSONObject, *, created: bool) -> CancelFlowResult:
        """Read any of the three documented forms of the answer.

        Args:
            raw: The decoded JSON object. Unknown fields stay in `.raw`; missing ones become None.
            created: Whether the status was that of a new event, and not 202.

        Returns:
            The result.
        """
        offer = raw.get("offer")
        return cls(
            created=created,
            event_id=_text(raw, "event_id") or _text(raw, "churn_event_id"),
            status=_text(raw, "status"),
            message=_text(raw, "message"),
            offer=Offer.from_json(offer) if isinstance(offer, Mapping) else None,
            raw=raw,
        )


@dataclass(frozen=True)
class OfferAcceptance(_Answer):
    """The answer to accept_offer (docs-tree page "Cancel Flow")."""

    success: Optional[bool] = None
    message: Optional[str] = None
    raw: JSONObject = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class RecoveryTemplate(_Answer):
    """Your own recovery email for one cancel reason (docs page "API Reference")."""

    id: str
    project_id: Optional[str] = None
    cancel_reason: Optional[str] = None
    name: Optional[str] = None
    subject: Optional[str] = None
    body: Optional[str] = None
    is_active: Optional[bool] = None
    created_at: Optional[datetime] = None
    updated_at: Optional[datetime] = None
    raw: JSONObject = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class RecoveryStats(_Answer):
    """The numbers of a project's churn events (docs-tree page "Stats").

    Amounts are integer minor units: 4999 for 49.99. recovery_rate is a percentage, 0 to 100.
    """

    total_events: Optional[int] = None
    new_events: Optional[int] = None
    recovered_events: Optional[int] = None
    lost_events: Optional[int] = None
    total_mrr_at_risk: Optional[int] = None
    recovered_mrr: Optional[int] = None
    recovery_rate: Optional[float] = None
    raw: JSONObject = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class TrackResult:
    """The result of track_events.

    A success does not prove that the API stored each event: by the docs-tree edition of "Tracking API" it
    ignores invalid ones silently.

    Attributes:
        sent: Events in requests that the API answered with a success.
        requests: How many requests these were.
        refused: Events that `before_send` dropped.
    """

    sent: int
    requests: int
    refused: int = 0
