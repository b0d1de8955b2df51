"""The endpoints of the API: one function for each, from a checked call to an answer."""

from __future__ import annotations

from typing import Callable, Dict, Mapping, NamedTuple, Union

import orjson

from . import churn, validation
from .churn import FINAL_STATUSES, STATUSES
from .errors import ApiError, invalid, not_found
from .exchange import Exchange
from .options import Options
from .store import Store
from .tracked import Arrival

#: A second cancel-flow submission of a customer within this time creates nothing (Widget Installation page).
CANCEL_FLOW_WINDOW_S = 24 * 3600

#: Bounds of a page of a list (API Reference page).
DEFAULT_LIMIT, MAX_LIMIT, MAX_OFFSET = 20, 100, 2**31


class Answer(NamedTuple):
    """Status and JSON body; empty: no body."""

    status: int
    body: bytes


class Later(NamedTuple):
    """No answer yet: writes are kept, and the handler is called again after a while."""

    delay_s: float


class Call(NamedTuple):
    """A request whose key has been checked and whose body is parsed."""

    store: Store
    options: Options
    exchange: Exchange
    params: Mapping[str, str]
    query: Mapping[str, str]
    body: object
    now: float
    #: Whether the handler is called again because it answered `Later`.
    resumed: bool
    #: Whether the subscription of the key's account has expired.
    expired: bool


Handler = Callable[[Call], Union[Answer, Later]]

NO_CONTENT = Answer(204, b"")
_OK = orjson.dumps({"status": "ok"})


def _data(value: object, status: int = 200) -> Answer:
    return Answer(status, orjson.dumps({"data": value}))


def track(call: Call) -> Answer:
    """`POST /track`: store one event or a batch."""
    exchange = call.exchange
    exchange.events = validation.count_events(call.body)
    batch = validation.track_rows(call.body, strict=call.options.strict)
    exchange.names = call.store.tracked.add(
        batch,
        Arrival(
            received_at=call.now,
            idempotency_key=exchange.headers.get("idempotency-key"),
            inbox=exchange.inbox or "",
            request=exchange.number,
            attempt=exchange.attempt,
            answered=None if exchange.is_lost else 200,
        ),
    )
    exchange.ignored = len(batch.problems)
    return Answer(200, _OK)


def create_churn_event(call: Call) -> Answer:
    """`POST /projects/{slug}/churn-events`."""
    fields = validation.churn_fields(call.body)
    return _data(call.store.add_churn_event(call.params["slug"], fields, call.now, _inbox(call)), 201)


def _inbox(call: Call) -> str:
    return call.exchange.inbox or ""


def list_churn_events(call: Call) -> Answer:
    """`GET /projects/{slug}/churn-events`, newest first."""
    limit = number(call.query, "limit", 1, MAX_LIMIT, DEFAULT_LIMIT)
    offset = number(call.query, "offset", 0, MAX_OFFSET, 0)
    status = call.query.get("status")
    if status is not None and status not in STATUSES:
        raise invalid("status: must be one of " + ", ".join(STATUSES))
    data, total = call.store.churn_events(call.params["slug"], status, limit, offset)
    return Answer(200, orjson.dumps({"data": data, "total": total, "limit": limit, "offset": offset}))


def _churn_event(call: Call) -> Dict[str, object]:
    doc = call.store.churn_event(call.params["slug"], call.params["id"])
    if doc is None:
        raise not_found("churn event")
    return doc


def get_churn_event(call: Call) -> Answer:
    """`GET /projects/{slug}/churn-events/{id}`, with its variants when there are any."""
    doc = _churn_event(call)
    variants = call.store.variants(str(doc["id"]))
    return _data({**doc, "variants": variants} if variants else doc)


def set_cancel_reason(call: Call) -> Answer:
    """`PATCH /projects/{slug}/churn-events/{id}/cancel-reason`."""
    fields = validation.cancel_reason_fields(call.body)
    doc = _churn_event(call)
    doc.update(fields)
    call.store.update_churn_event(doc, call.now)
    return _data(doc)


def mark_recovered(call: Call) -> Answer:
    """`POST /projects/{slug}/churn-events/{id}/recovered`; 400 when the event is in a final state already."""
    doc = _churn_event(call)
    churn.end(call.store, doc, "recovered", call.now)
    return _data(doc)


def generate_variants(call: Call) -> Union[Answer, Later]:
    """`POST /projects/{slug}/churn-events/{id}/generate`: `processing` now, the emails after a while."""
    doc = _churn_event(call)
    if not call.resumed:
        churn.begin_generation(call.store, doc, call.now)
        return Later(call.options.generate_s)
    variants = churn.finish_generation(call.store, call.params["slug"], doc, call.now)
    return _data({"event_id": doc["id"], "status": doc["status"], "variants": variants})


def list_variants(call: Call) -> Answer:
    """`GET /projects/{slug}/churn-events/{id}/variants`."""
    return _data(call.store.variants(str(_churn_event(call)["id"])))


def _variant(call: Call, event: Mapping[str, object]) -> Dict[str, object]:
    doc = call.store.variant(str(event["id"]), call.params["vid"])
    if doc is None:
        raise not_found("variant")
    return doc


def update_variant(call: Call) -> Answer:
    """`PATCH /projects/{slug}/churn-events/{id}/variants/{vid}`: subject or body, until it is sent."""
    changes = validation.variant_changes(call.body)
    doc = _variant(call, _churn_event(call))
    churn.check_unsent(doc)
    doc.update(changes)
    call.store.update_variant(doc)
    return _data(doc)


def send_variant(call: Call) -> Answer:
    """`POST /projects/{slug}/churn-events/{id}/variants/{vid}/send`; each variant is sent once."""
    event = _churn_event(call)
    churn.check_can_send(event)
    doc = _variant(call, event)
    churn.send(call.store, event, doc, call.now, has_email=call.options.email)
    return _data(doc)


def get_stats(call: Call) -> Answer:
    """`GET /projects/{slug}/stats`; all zero without events (Stats page). What is at risk is still open."""
    by_status = call.store.events_by_status(call.params["slug"])
    total = sum(count for count, _ in by_status.values())
    recovered, recovered_mrr = by_status.get("recovered", (0, 0))
    stats = {
        "total_events": total,
        "new_events": by_status.get("new", (0, 0))[0],
        "recovered_events": recovered,
        "lost_events": by_status.get("lost", (0, 0))[0],
        "total_mrr_at_risk": sum(
            mrr for status, (_, mrr) in by_status.items() if status not in FINAL_STATUSES
        ),
        "recovered_mrr": recovered_mrr,
        "recovery_rate": round(100 * recovered / total, 2) if total else 0,
    }
    return Answer(200, orjson.dumps(stats))


def create_template(call: Call) -> Answer:
    """`POST /projects/{slug}/recovery-templates`; one for each cancel reason."""
    fields = validation.template_fields(call.body)
    doc = call.store.add_template(call.params["slug"], fields, call.now)
    if doc is None:
        raise ApiError(409, "CONFLICT", f"there is a template for {fields.cancel_reason} already")
    return _data(doc, 201)


def list_templates(call: Call) -> Answer:
    """`GET /projects/{slug}/recovery-templates`."""
    return _data(call.store.templates(call.params["slug"]))


def _template(call: Call) -> Dict[str, object]:
    doc = call.store.template(call.params["slug"], call.params["id"])
    if doc is None:
        raise not_found("recovery template")
    return doc


def get_template(call: Call) -> Answer:
    """`GET /projects/{slug}/recovery-templates/{id}`."""
    return _data(_template(call))


def update_template(call: Call) -> Answer:
    """`PUT /projects/{slug}/recovery-templates/{id}`: any of the fields but the cancel reason."""
    changes = validation.template_changes(call.body)
    doc = _template(call)
    doc.update(changes)
    call.store.update_template(doc, call.now)
    return _data(doc)


def delete_template(call: Call) -> Answer:
    """`DELETE /projects/{slug}/recovery-templates/{id}`."""
    if not call.store.delete_template(call.params["slug"], call.params["id"]):
        raise not_found("recovery template")
    return NO_CONTENT


def submit_cancel_flow(call: Call) -> Answer:
    """`POST /cancel-flow/submit`: creates a churn event.

    It answers 202 and creates nothing within 24 hours of the customer's last submission, and when the
    subscription has expired.
    """
    fields = validation.cancel_flow_fields(call.body)
    email = fields.churn.customer_email
    if call.expired:
        return _nothing_created("the subscription has expired")
    if call.store.cancel_flow_since(email, call.now - CANCEL_FLOW_WINDOW_S):
        return _nothing_created("this customer has submitted the cancel flow within the last 24 hours")
    event_id = str(call.store.add_churn_event(None, fields.churn, call.now, _inbox(call))["id"])
    call.store.add_cancel_flow(email, event_id, fields.feedback_text, fields.selected_offer, call.now)
    offer = call.store.active_offer(str(fields.churn.cancel_reason))
    return Answer(200, orjson.dumps({"success": True, "event_id": event_id, "offer": offer}))


def _nothing_created(why: str) -> Answer:
    return Answer(202, orjson.dumps({"success": True, "event_id": None, "offer": None, "message": why}))


def get_offer(call: Call) -> Answer:
    """`GET /cancel-flow/offers?reason=`: the offer, or null."""
    reason = call.query.get("reason")
    if not reason:
        raise invalid("reason: is missing")
    return Answer(200, orjson.dumps({"offer": call.store.active_offer(reason)}))


def accept_offer(call: Call) -> Answer:
    """`POST /cancel-flow/accept-offer`: recorded; what the API does with it then is not documented."""
    fields = validation.acceptance_fields(call.body)
    offer = call.store.active_offer(fields.cancel_reason)
    if offer is None or offer["offer_type"] != fields.offer_type:
        raise not_found(f"an offer of type {fields.offer_type} for {fields.cancel_reason}")
    call.store.add_acceptance(fields, call.now)
    return Answer(200, orjson.dumps({"success": True, "message": "the offer has been accepted"}))


def number(query: Mapping[str, str], name: str, low: int, high: int, default: int) -> int:
    """The whole number *name* of a query; raises `ApiError` 400 outside *low* to *high*."""
    text = query.get(name)
    if text is None:
        return default
    # The length first: turning endless digits into a number takes endless time.
    if len(text) <= 10 and text.isascii() and text.isdigit() and low <= int(text) <= high:
        return int(text)
    raise invalid(f"{name}: must be a whole number from {low} to {high}")
