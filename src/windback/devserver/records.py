"""What a `DevServer` answers, and the fault rules it takes, as types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Optional, Tuple, TypedDict, Union


class RateLimit(TypedDict):
    """At most `rate` requests per second after a burst of `burst`."""

    rate: float
    burst: float


class FaultRule(TypedDict, total=False):
    """A fault: which requests (`path` to `key`), when (`rate` to `above`), and one effect.

    `latency` and `jitter` may be used alone or with any effect. Rules are checked in order; the first with an
    effect decides.
    """

    #: What people call it.
    name: str
    #: False: it waits to be switched on (default True).
    enabled: bool
    #: Prefix of the path below the base path, such as "/track"; without it every request matches.
    path: str
    method: str
    #: Name of an event that the body must carry; a star matches anything.
    event: str
    #: The API key that the request must come with, or the label of its inbox.
    key: str
    #: Share of the matching requests that are hit, 0 to 1 (default 1).
    rate: float
    #: Makes the choice of the hit requests the same in every run.
    seed: int
    #: How many requests are hit before the rule is spent.
    times: int
    #: Hit each nth of the requests that match.
    every: int
    #: Seconds from now until the rule ends.
    until: float
    #: Hit only what exceeds so many requests a second.
    above: float
    #: Seconds to wait before anything else happens, and how much it may be off either way.
    latency: float
    jitter: float
    #: Answer with this status and do not process the request; the next four go with it.
    status: int
    #: Value of a Retry-After header: seconds, or an HTTP date.
    retry_after: Union[float, str]
    headers: Mapping[str, str]
    body: str
    content_type: str
    #: "before" or "after": close the connection without an answer, before the request is processed or after.
    drop: str
    #: 429 with Retry-After above this rate.
    rate_limit: RateLimit
    #: True: take the request and never answer.
    hang: bool
    #: "truncated" or "malformed": process the request and spoil the answer.
    answer: str
    #: Seconds that the answer takes, byte by byte.
    drip: float
    #: True: 415 to bodies that are compressed.
    refuse_gzip: bool
    #: 307 to this URL.
    redirect: str
    #: True: 402 `SUBSCRIPTION_EXPIRED`.
    expired: bool
    #: 413 to bodies with more bytes.
    max_bytes: int


class _Offered(TypedDict):
    cancel_reason: str
    #: "discount", "extension", "downgrade", "feature_unlock" or "custom".
    offer_type: str


class ConfiguredOffer(_Offered, total=False):
    """An offer for a cancel reason, as one configures it on the dashboard (Retention Offers page)."""

    title: str
    description: str
    cta_button_text: str
    #: 1 to 100.
    discount_percent: int
    extension_days: int
    #: False: it is not offered (default True).
    is_active: bool


@dataclass(frozen=True)
class Counts:
    """What the server has seen since its start or its last reset.

    `events`, `churn_events`, `templates` and `cancel_flows` count what is in its database.
    """

    #: Requests to the API, whatever became of them.
    requests: int
    #: Those of them that were `POST /track`.
    track_requests: int
    #: `POST /track` that the server itself refused with 4xx (no fault rule).
    rejected: int
    #: Requests answered from their Idempotency-Key without being processed again.
    duplicates: int
    #: Events in those requests.
    duplicate_events: int
    #: Requests that a fault rule did something to.
    faults: int
    #: Answers by status; a dropped connection is in none.
    by_status: Mapping[int, int]
    #: Events stored, those among them that are evicted by now.
    events: int
    #: Events that the API would take and drop.
    ignored: int
    #: Events, of all kinds, that made room for newer ones, and those that are still there.
    evicted: int
    stored: int
    churn_events: int
    templates: int
    #: Cancel-flow submissions that created a churn event.
    cancel_flows: int
    #: Offers that customers took.
    accepted_offers: int
    #: How many of each kind ("requests", "inboxes", "answers", "churn_events", …) made room for newer ones.
    forgotten: Mapping[str, int]


@dataclass(frozen=True)
class StoredEvent:
    """One tracked event. `timestamp` is the text that the client sent, or the time of arrival."""

    id: int
    batch_id: int
    event: str
    customer_email: Optional[str]
    customer_id: Optional[str]
    customer_name: Optional[str]
    timestamp: str
    properties: Mapping[str, object]
    received_at: str
    idempotency_key: Optional[str]
    #: The API key that brought it, masked.
    inbox: str
    request_id: str
    #: "stored", or "ignored" for one that the API takes and drops; `problems` say why.
    status: str
    problems: Tuple[Mapping[str, str], ...]
    #: Arrival minus the client's stamp, in seconds; None without a stamp.
    delay_s: Optional[float]
    #: Which try of the same request brought it.
    attempt: int
    #: The status its request was answered with; None when a fault kept the answer back.
    answered: Optional[int]


@dataclass(frozen=True)
class WebhookAttempt:
    """One try to deliver a webhook: the `status` of the receiver's answer, or an `error` in place of one."""

    at: str
    status: Optional[int]
    error: Optional[str]
    duration_s: float


@dataclass(frozen=True)
class WebhookDelivery:
    """An alert on its way, or what became of it."""

    #: Its `opaque_id`.
    id: str
    #: "pending", "delivered" or "failed".
    state: str
    attempts: Tuple[WebhookAttempt, ...]
    #: Seconds since the epoch: when the next try is due, or the last one was.
    next_at: float
    #: What is sent and signed, to the byte.
    body: str


@dataclass(frozen=True)
class RequestRecord:
    """One request to the API. `status` is None when there was no answer (yet); the API key is redacted."""

    request_id: str
    received_at: str
    method: str
    path: str
    status: Optional[int]
    #: What a fault rule did, such as "status 503" or "latency+drop after"; None when nothing.
    fault: Optional[str]
    headers: Mapping[str, str]
    idempotency_key: Optional[str]
    #: Size of the body as it was sent, compressed or not.
    body_bytes: int
    #: Events in a `/track` body, stored or not.
    events: int
    duplicate: bool
    id: int
    query: str
    #: Code of a refusal, such as "VALIDATION_ERROR".
    reason: Optional[str]
    #: Id of the fault rule that struck.
    rule: Optional[str]
    #: The API key that it came with, masked.
    inbox: Optional[str]
    #: Size of all of it, head included.
    wire_bytes: int
    gzip: bool
    #: Events of the body that the API would take and drop.
    ignored: int
    #: None while it goes on.
    duration_ms: Optional[float]
    #: Name and version of the client, if it is one of Windback.
    sdk: Optional[str]
    #: Which try it is: of the same Idempotency-Key, or of the same bytes.
    attempt: int
