"""The life of a churn event: which step may follow which, and what each does.

The API and the board of the page go the same way through here.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Tuple

from . import recovery
from .clock import iso
from .errors import ApiError, bad_state
from .store import Store

Doc = Dict[str, object]

#: In order; the last two end it (Churn Events page).
STATUSES = ("new", "processing", "variants_generated", "email_sent", "recovered", "lost")
FINAL_STATUSES = STATUSES[4:]

#: Where an event can go from each status. No step is skipped, but an end may come at any time.
NEXT: Mapping[str, Tuple[str, ...]] = {
    "new": ("processing", *FINAL_STATUSES),
    "processing": ("variants_generated", *FINAL_STATUSES),
    "variants_generated": ("email_sent", *FINAL_STATUSES),
    "email_sent": FINAL_STATUSES,
    "recovered": (),
    "lost": (),
}


def end(store: Store, doc: Doc, status: str, now: float) -> None:
    """End an event as "recovered" or "lost"; raises `ApiError` 400 when it has ended already."""
    _check_open(doc)
    doc["status"] = status
    store.update_churn_event(doc, now)


def begin_generation(store: Store, doc: Doc, now: float) -> None:
    """Start to write the emails; raises `ApiError` 400 when it is too late for that."""
    _check_can_generate(doc)
    doc["status"] = "processing"
    store.update_churn_event(doc, now)


def finish_generation(store: Store, slug: Optional[str], doc: Doc, now: float) -> List[Doc]:
    """The emails are written; raises `ApiError` 400 when somebody was faster."""
    _check_can_generate(doc)
    template = None if slug is None else store.active_template(slug, doc["cancel_reason"])
    variants = store.add_variants(str(doc["id"]), recovery.write(doc, template), now)
    doc["status"] = "variants_generated"
    store.update_churn_event(doc, now)
    return variants


def check_can_send(doc: Doc) -> None:
    """Raises `ApiError` 400 when no email can be sent for an event."""
    _check_open(doc)
    if doc["status"] not in ("variants_generated", "email_sent"):
        raise bad_state("variants must be generated before sending emails")


def send(store: Store, doc: Doc, variant: Doc, now: float, *, has_email: bool) -> None:
    """Send one variant, once; raises `ApiError` 500 when there is no email service."""
    check_unsent(variant)
    if not has_email:
        raise ApiError(500, "EMAIL_NOT_CONFIGURED", "email service is not configured")
    variant.update(status="sent", sent_at=iso(now))
    store.update_variant(variant)
    doc["status"] = "email_sent"
    store.update_churn_event(doc, now)


def check_unsent(variant: Doc) -> None:
    """Raises `ApiError` 400 when a variant has been sent."""
    if variant["sent_at"] is not None:
        raise bad_state("this variant has already been sent")


def _check_open(doc: Doc) -> None:
    if doc["status"] in FINAL_STATUSES:
        raise bad_state(f"the churn event is {doc['status']} already")


def _check_can_generate(doc: Doc) -> None:
    if doc["status"] not in ("new", "processing"):
        raise bad_state(f"variants cannot be generated for a churn event that is {doc['status']}")
