"""Every endpoint: arguments to a request, answer to a model.

Pure: nothing here sends. Paths, fields and answers are those of the docs pages named at each
function; "assumed" marks details that no page has. Arguments are checked here, before a request is
made, and a wrong one raises ValidationError with its name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Type, TypeVar
from urllib.parse import parse_qsl, quote

import orjson

from ..errors import NotFoundError, ValidationError, WindbackError
from ..event import batch as batching
from ..event.scrubbing import Scrubbing, dumped
from ..models import (
    CancelFlowResult,
    ChurnEvent,
    Offer,
    OfferAcceptance,
    RecoveryStats,
    RecoveryTemplate,
    Variant,
)
from .answer import Answer

#: report_cancel_reason without an id reads at most this many pages. A listing reads at most this many in a
#: row that contain nothing new.
MAX_PAGES = 50
#: The unit of an amount, in a message.
CENTS = "cents, such as 4999 for 49.99"
Model = TypeVar("Model", Variant, OfferAcceptance, RecoveryStats, RecoveryTemplate)
PAGE_SIZE = 100  # the documented maximum (docs-tree page "API Reference")


class Request(NamedTuple):
    """One HTTP request before it has a host, a key or a connection.

    query: already encoded; public: uses the public key where the client has one; once_only: must
    not be repeated if the first try may have been processed; call: the client's method, for scrubbing; "" if
    its texts are not a caller's, or are scrubbed already.
    """

    method: str
    path: str
    body: bytes = b""
    query: str = ""
    idempotency_key: Optional[str] = None
    gzip: bool = False
    public: bool = False
    once_only: bool = False
    call: str = ""


def scrubbed(request: Request, scrubbing: Optional[Scrubbing]) -> Request:
    """Return a plain call with its texts scrubbed, but for ids. Raises ValidationError."""
    if scrubbing is None or not request.call:
        return request
    if request.query:
        pairs = [
            (name, scrubbing.text(value, request.call, (name,), "number" if value.isdigit() else "text"))
            for name, value in parse_qsl(request.query, keep_blank_values=True)
        ]
        request = request._replace(query="&".join(f"{name}={quote(value, safe='')}" for name, value in pairs))
    fields = scrubbing.fields(request.call, request.body) if request.body else None
    if fields is None:
        return request
    if "customer_email" in fields:
        _email(fields["customer_email"])
    return request._replace(body=dumped(fields))


def track(records: Sequence[bytes], idempotency_key: str, *, gzip: bool = False) -> Request:
    """POST /track with a batch (docs page "Event Tracking"; the Idempotency-Key is assumed)."""
    body = batching.join(records)
    if gzip:
        from gzip import compress

        # Without a time in the header, the same batch becomes the same bytes at every retry.
        body = compress(body, 5, mtime=0)
    return Request("POST", "/track", body, idempotency_key=idempotency_key, gzip=gzip)


def create_churn_event(slug: str, idempotency_key: str, **fields: object) -> Request:
    """POST /projects/{slug}/churn-events (docs page "Churn Events")."""
    body = _body(fields, "event_type")
    path = f"/projects/{slug}/churn-events"
    return Request("POST", path, body, idempotency_key=idempotency_key, call="create_churn_event")


def submit_cancel_flow(idempotency_key: str, **fields: object) -> Request:
    """POST /cancel-flow/submit (docs page "Cancel Flow").

    feedback_text and selected_offer are those of the SDK page (their names on the wire are assumed), the
    others those of the docs-tree page.
    """
    body = _body(fields, "cancel_reason")
    key, call = idempotency_key, "submit_cancel_flow"
    return Request("POST", "/cancel-flow/submit", body, idempotency_key=key, public=True, call=call)


def get_offer(reason: str) -> Request:
    """GET /cancel-flow/offers (docs-tree page "Cancel Flow")."""
    query = f"reason={quote(_text('reason', reason), safe='')}"
    return Request("GET", "/cancel-flow/offers", query=query, public=True, call="get_offer")


def accept_offer(idempotency_key: str, **fields: object) -> Request:
    """POST /cancel-flow/accept-offer (docs-tree page "Cancel Flow")."""
    body = _body(fields, "cancel_reason", "offer_type")
    key, call = idempotency_key, "accept_offer"
    return Request("POST", "/cancel-flow/accept-offer", body, idempotency_key=key, public=True, call=call)


def report_cancel_reason(slug: str, event_id: str, reason: str) -> Request:
    """PATCH like `update_cancel_reason`, with the SDK page's name for the argument."""
    request = update_cancel_reason(slug, event_id, _text("reason", reason), None)
    return request._replace(call="report_cancel_reason")


def check_reason(reason: object) -> None:
    """Raise ValidationError for a reason that can't be sent, before anything is requested."""
    _text("reason", reason)


def get_churn_event(slug: str, event_id: str) -> Request:
    """GET /projects/{slug}/churn-events/{id} (docs page "API Overview")."""
    return Request("GET", _event_path(slug, event_id))


def mark_recovered(slug: str, idempotency_key: str, event_id: str) -> Request:
    """POST /projects/{slug}/churn-events/{id}/recovered (docs page "API Overview")."""
    return Request("POST", _event_path(slug, event_id, "/recovered"), idempotency_key=idempotency_key)


def update_cancel_reason(
    slug: str, event_id: str, cancel_reason: str, cancel_reason_text: Optional[str]
) -> Request:
    """PATCH /projects/{slug}/churn-events/{id}/cancel-reason (docs page "API Overview"; body assumed).

    The call may start an email to the customer, so it is not repeated if the first may have arrived.
    """
    fields = {"cancel_reason": cancel_reason, "cancel_reason_text": cancel_reason_text}
    path = _event_path(slug, event_id, "/cancel-reason")
    return Request("PATCH", path, _body(fields, "cancel_reason"), once_only=True, call="update_cancel_reason")


def create_recovery_template(slug: str, idempotency_key: str, **fields: object) -> Request:
    """POST /projects/{slug}/recovery-templates (docs-tree page "API Reference")."""
    body = _body(fields, "cancel_reason", "name", "subject", "body")
    path = f"/projects/{slug}/recovery-templates"
    return Request("POST", path, body, idempotency_key=idempotency_key, call="create_recovery_template")


def generate_variants(slug: str, idempotency_key: str, event_id: str) -> Request:
    """POST /projects/{slug}/churn-events/{id}/generate (docs page "Recovery")."""
    return Request("POST", _event_path(slug, event_id, "/generate"), idempotency_key=idempotency_key)


def list_variants(slug: str, event_id: str) -> Request:
    """GET /projects/{slug}/churn-events/{id}/variants (docs page "API Overview")."""
    return Request("GET", _event_path(slug, event_id, "/variants"))


def update_variant(
    slug: str, event_id: str, variant_id: str, *, subject: Optional[str], body: Optional[str]
) -> Request:
    """PATCH /projects/{slug}/churn-events/{id}/variants/{vid} (docs page "Recovery")."""
    path = _event_path(slug, event_id, f"/variants/{_part('variant_id', variant_id)}")
    changes = _encode_changes(_texts(subject=subject, body=body))
    return Request("PATCH", path, changes, call="update_variant")


def send_variant(slug: str, event_id: str, variant_id: str) -> Request:
    """POST /projects/{slug}/churn-events/{id}/variants/{vid}/send (docs page "Recovery").

    It is an email to a customer, so it is not repeated if the first may have arrived.
    """
    path = _event_path(slug, event_id, f"/variants/{_part('variant_id', variant_id)}/send")
    return Request("POST", path, once_only=True)


def get_recovery_stats(slug: str) -> Request:
    """GET /projects/{slug}/stats (docs page "API Overview"; fields from the docs-tree page "Stats")."""
    return Request("GET", f"/projects/{slug}/stats")


def list_recovery_templates(slug: str) -> Request:
    """GET /projects/{slug}/recovery-templates (docs-tree page "API Reference")."""
    return Request("GET", f"/projects/{slug}/recovery-templates")


def get_recovery_template(slug: str, template_id: str) -> Request:
    """GET /projects/{slug}/recovery-templates/{id} (docs-tree page "API Reference")."""
    return Request("GET", _template_path(slug, template_id))


def update_recovery_template(
    slug: str,
    template_id: str,
    *,
    name: Optional[str],
    subject: Optional[str],
    body: Optional[str],
    is_active: Optional[bool],
) -> Request:
    """PUT /projects/{slug}/recovery-templates/{id} (docs-tree page "API Reference")."""
    if is_active is not None:
        _flag("is_active", is_active)
    changes = {**_texts(name=name, subject=subject, body=body), "is_active": is_active}
    path = _template_path(slug, template_id)
    return Request("PUT", path, _encode_changes(changes), call="update_recovery_template")


def delete_recovery_template(slug: str, template_id: str) -> Request:
    """DELETE /projects/{slug}/recovery-templates/{id} (docs-tree page "API Reference")."""
    return Request("DELETE", _template_path(slug, template_id))


def read_churn_event(answer: Answer, *, event_id: str = "", status: str = "") -> ChurnEvent:
    """Read a success. Raises WindbackError if it is not the documented JSON object.

    event_id, status: used if the answer has no body (202 and 204 are assumed).
    """
    if not answer.body:
        return ChurnEvent(event_id, status)
    return ChurnEvent.from_json(_object(answer))


def read_variant(answer: Answer, variant_id: str) -> Variant:
    """Read a success. *variant_id* is used if the answer has none. Raises as `read_churn_event`."""
    variant = Variant.from_json(_object(answer))
    return variant if variant.id else replace(variant, id=variant_id)


def read_generated(answer: Answer) -> List[Variant]:
    """Read the generated variants; a 202 may have none yet (assumed). Raises as `read_churn_event`."""
    rows = _object(answer).get("variants")
    return [Variant.from_json(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def read_cancel_flow(answer: Answer) -> CancelFlowResult:
    """Read a success; 202 means that nothing was created. Raises as `read_churn_event`."""
    return CancelFlowResult.from_json(_object(answer), created=answer.status != 202)


def read_offer(answer: Answer) -> Optional[Offer]:
    """Read an offer; None if none is configured. Raises as `read_churn_event`."""
    offer = _object(answer).get("offer")
    return Offer.from_json(offer) if isinstance(offer, dict) else None


def read(model: Type[Model], answer: Answer) -> Model:
    """Read a success, with the envelope or without; raises as `read_churn_event`."""
    return model.from_json(_object(answer))


def read_list(model: Type[Model], answer: Answer) -> List[Model]:
    """Read a list, with the envelope or without: the sources differ. Raises as `read_churn_event`."""
    return [model.from_json(row) for row in _rows(answer)]


class ChurnEventPages:
    """The churn events of a project, page by page (docs pages "Churn Events", "API Reference").

    The API counts pages by position and documents no order. An event that is created during the listing
    moves others to the next page: these are returned once.
    """

    def __init__(self, slug: str, status: Optional[str] = None, page_size: object = PAGE_SIZE) -> None:
        if isinstance(page_size, bool) or not isinstance(page_size, int) or not 1 <= page_size <= PAGE_SIZE:
            raise ValidationError(
                f"page_size must be a whole number from 1 to {PAGE_SIZE}, not {page_size!r}"
            )
        self._path = f"/projects/{slug}/churn-events"
        self._filter = "" if status is None else f"&status={quote(_text('status', status), safe='')}"
        self._page_size = page_size
        self._last_ids: Set[str] = set()
        self._stale = 0
        #: Rows of the pages so far.
        self.seen = 0
        #: Whether the last page has been read.
        self.done = False

    def next_request(self) -> Request:
        """Return the request for the next page."""
        query = f"limit={self._page_size}&offset={self.seen}{self._filter}"
        return Request("GET", self._path, query=query, call="list_churn_events")

    def feed(self, answer: Answer) -> List[ChurnEvent]:
        """Read a page; return its events without those of the page before.

        Raises WindbackError if the API returns the same page again and again.
        """
        page = _mapping(answer)
        data = page.get("data")
        rows: List[object] = data if isinstance(data, list) else []
        self.seen += len(rows)
        total = page.get("total")
        # A server may return smaller pages than requested, so its total decides, if there is one.
        is_last = self.seen >= total if isinstance(total, int) else len(rows) < self._page_size
        self.done = not rows or is_last
        events = [ChurnEvent.from_json(row) for row in rows if isinstance(row, dict)]
        new = [event for event in events if not event.id or event.id not in self._last_ids]
        self._last_ids = {event.id for event in events}
        self._stale = 0 if new else self._stale + 1
        if self._stale > MAX_PAGES:
            raise WindbackError(
                f"the API returned {self._stale} pages of churn events without a new one; it ignores the "
                "offset",
                status=answer.status,
                code="ENDLESS_LIST",
            )
        return new


class OpenEventSearch:
    """Find the newest open churn event of a customer in pages of events.

    No endpoint finds one by email, so the list is searched (assumed). No order of
    the list is documented, so the newest is found by `created_at`.
    """

    def __init__(self, slug: str, customer_email: str, scrubbing: Optional[Scrubbing] = None) -> None:
        email = _email(customer_email)
        if scrubbing is not None:  # the API knows the address as it was sent
            email = scrubbing.text(email, "report_cancel_reason", ("customer_email",))
        self._email = email.lower()
        self._found: List[ChurnEvent] = []
        self._pages = ChurnEventPages(slug)
        self._count = 0
        self.done = False

    def next_request(self) -> Request:
        """Return the request for the next page."""
        return self._pages.next_request()

    def feed(self, answer: Answer) -> None:
        """Read a page; `done` becomes True after the last one."""
        self._found += [event for event in self._pages.feed(answer) if self._is_candidate(event)]
        self._count += 1
        self.done = self._pages.done or self._count >= MAX_PAGES

    def result(self) -> str:
        """Return the id. Raises NotFoundError: nothing is created instead."""
        if not self._found:
            raise NotFoundError(
                f"no open churn event for this customer among the {self._pages.seen} events searched; "
                "create one with create_churn_event, or pass event_id",
                code="NO_OPEN_CHURN_EVENT",
            )
        newest = max(self._found, key=lambda event: event.created_at.timestamp() if event.created_at else 0.0)
        return newest.id

    def _is_candidate(self, event: ChurnEvent) -> bool:
        is_theirs = (event.customer_email or "").lower() == self._email
        return is_theirs and event.status not in ("recovered", "lost") and event.id != ""


def _event_path(slug: str, event_id: str, rest: str = "") -> str:
    return f"/projects/{slug}/churn-events/{_part('event_id', event_id)}{rest}"


def _part(name: str, value: object) -> str:
    """Return an id as one part of a path, whatever characters it has."""
    if value in (".", ".."):  # in a path these lead elsewhere
        raise ValidationError(f"{name} must be an id from the API, not {value!r}")
    return quote(_text(name, value), safe="")


def _template_path(slug: str, template_id: str) -> str:
    return f"/projects/{slug}/recovery-templates/{_part('template_id', template_id)}"


def _mapping(answer: Answer) -> Mapping[str, object]:
    """Return the JSON object of a success; an empty one for an empty body (202 and 204 have none)."""
    data = _json(answer) if answer.body else {}
    if not isinstance(data, dict):
        raise _unreadable(answer)
    return data


def _rows(answer: Answer) -> List[Mapping[str, object]]:
    """Return the objects of a list, which is bare or in "data"; other values are left out."""
    data = _json(answer) if answer.body else []
    listed = data.get("data") if isinstance(data, dict) else data
    if not isinstance(listed, list):
        raise _unreadable(answer)
    return [row for row in listed if isinstance(row, dict)]


def _json(answer: Answer) -> object:
    try:
        value: object = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        raise _unreadable(answer) from None
    return value


def _unreadable(answer: Answer) -> WindbackError:
    message = "a success, but not the JSON object that the API is documented to send; is base_url right?"
    return WindbackError(message, status=answer.status, code="UNREADABLE_ANSWER")


def _object(answer: Answer) -> Mapping[str, object]:
    """The same, without its `data` envelope: the editions of the docs differ in whether there is one."""
    data = _mapping(answer)
    inner = data.get("data")
    return inner if isinstance(inner, dict) else data


def _encode(fields: Mapping[str, object]) -> bytes:
    given: Dict[str, object] = {name: value for name, value in fields.items() if value is not None}
    return orjson.dumps(given)


def _encode_changes(changes: Mapping[str, object]) -> bytes:
    if all(value is None for value in changes.values()):
        raise ValidationError("nothing to change: give at least one of " + ", ".join(changes))
    return _encode(changes)


def _texts(**values: Optional[str]) -> Dict[str, Optional[str]]:
    """Check texts that may be None but not empty."""
    return {name: None if value is None else _text(name, value) for name, value in values.items()}


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValidationError(f"{name} must be True or False, not {value!r}")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValidationError(f"{name} must be a text that is not empty, not {value!r}")
    _check_unicode(name, value)
    return value


def _optional_text(name: str, value: object) -> Optional[str]:
    if value is not None and not isinstance(value, str):
        raise ValidationError(f"{name} must be a text, not {value!r}")
    if value is not None:
        _check_unicode(name, value)
    return value


def _check_unicode(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(
            f"{name} has a lone surrogate at position {error.start}, which is not valid text"
        ) from None


def _email(value: object) -> str:
    if not isinstance(value, str) or "@" not in value:
        raise ValidationError("customer_email must be an email address, a text with an '@'")
    _check_unicode("customer_email", value)
    return value


def _count(name: str, value: object, unit: str) -> Optional[int]:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValidationError(f"{name} must be a whole number of {unit}, at least 0, not {value!r}")
    if value >= 2**63:
        raise ValidationError(f"{name} has more than 63 bits: {value!r}")
    return value


#: How the fields of calls are checked that are not texts.
_CHECKS: Mapping[str, Callable[[str, object], object]] = {
    "customer_email": lambda _, value: _email(value),
    "mrr": lambda name, value: _count(name, value, CENTS),
    "tenure_days": lambda name, value: _count(name, value, "days"),
    "is_active": _flag,
}


def _body(fields: Mapping[str, object], *required: str) -> bytes:
    """Check the fields of a call, and encode those that are given. required: texts that must be given."""
    checks = {**dict.fromkeys(required, _text), **_CHECKS}
    return _encode({name: checks.get(name, _optional_text)(name, value) for name, value in fields.items()})
