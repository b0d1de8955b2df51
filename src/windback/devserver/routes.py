"""The endpoints of the API: one function for each, from a checked call to an answer."""

from __future__ import annotations

from typing import Callable, Dict, Mapping, NamedTuple

import orjson

from . import validation
from .errors import ApiError, bad_state, invalid, not_found
from .exchange import Exchange
from .store import Store

#: A second cancel-flow submission of a customer within this time creates nothing (Widget Installation page).
CANCEL_FLOW_WINDOW_S = 24 * 3600

#: The life of a churn event, in order; the last two end it (Churn Events page).
STATUSES = ("new", "processing", "variants_generated", "email_sent", "recovered", "lost")
FINAL_STATUSES = STATUSES[4:]

#: Bounds of a page of a list (API Reference page).
DEFAULT_LIMIT, MAX_LIMIT, MAX_OFFSET = 20, 100, 2**31


class Answer(NamedTuple):
    """Status and JSON body; an empty one is none."""

    status: int
    body: bytes


class Call(NamedTuple):
    """A request whose key has been checked and whose body is parsed."""

    store: Store
    exchange: Exchange
    params: Mapping[str, str]
    query: Mapping[str, str]
    body: object
    now: float


Handler = Callable[[Call], Answer]

NO_CONTENT = Answer(204, b"")
_OK = orjson.dumps({"status": "ok"})


def _data(value: object, status: int = 200) -> Answer:
    return Answer(status, orjson.dumps({"data": value}))


def track(call: Call) -> Answer:
    """`POST /track`: store one event or a batch."""
    call.exchange.events = validation.count_events(call.body)
    rows = validation.track_rows(call.body)
    call.store.add_events(rows, call.now, call.exchange.headers.get("idempotency-key"))
    return Answer(200, _OK)


def create_churn_event(call: Call) -> Answer:
    """`POST /projects/{slug}/churn-events`."""
    fields = validation.churn_fields(call.body)
    return _data(call.store.add_churn_event(call.params["slug"], fields, call.now), 201)


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
    """`GET /projects/{slug}/churn-events/{id}`."""
    return _data(_churn_event(call))


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
    if doc["status"] in FINAL_STATUSES:
        raise bad_state(f"the churn event is {doc['status']} already")
    doc["status"] = "recovered"
    call.store.update_churn_event(doc, call.now)
    return _data(doc)


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

    Within 24 hours of the customer's last submission it answers 202 and creates nothing.
    """
    fields = validation.cancel_flow_fields(call.body)
    email = fields.churn.customer_email
    if call.store.cancel_flow_since(email, call.now - CANCEL_FLOW_WINDOW_S):
        message = "this customer has submitted the cancel flow within the last 24 hours"
        return Answer(
            202, orjson.dumps({"success": True, "event_id": None, "offer": None, "message": message})
        )
    event_id = str(call.store.add_churn_event(None, fields.churn, call.now)["id"])
    call.store.add_cancel_flow(email, event_id, fields.feedback_text, fields.selected_offer, call.now)
    return Answer(200, orjson.dumps({"success": True, "event_id": event_id, "offer": None}))


def number(query: Mapping[str, str], name: str, low: int, high: int, default: int) -> int:
    """The whole number *name* of a query; raises `ApiError` 400 outside *low* to *high*."""
    text = query.get(name)
    if text is None:
        return default
    # The length first: turning endless digits into a number takes endless time.
    if len(text) <= 10 and text.isascii() and text.isdigit() and low <= int(text) <= high:
        return int(text)
    raise invalid(f"{name}: must be a whole number from {low} to {high}")
