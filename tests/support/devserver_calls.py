"""Requests to the local server, for the tests of its endpoints."""

from __future__ import annotations

from typing import Dict, Mapping, Optional

import calls
from calls import Reply

from windback.devserver import DevServer

SECRET = "sk_test_1"
PUBLIC = "pub_test_1"
EVENT: Dict[str, object] = {"event": "login", "customer_email": "jane@example.com"}


def call(
    server: DevServer,
    method: str,
    path: str,
    body: object = None,
    *,
    key: Optional[str] = SECRET,
    headers: Optional[Mapping[str, Optional[str]]] = None,
) -> Reply:
    """One request to the API with a key; a path under /_dev goes to the control plane."""
    where = path if path.startswith("/_dev") else "/api/v1" + path
    return calls.call(server, method, where, body, {"x-api-key": key, **(headers or {})})


def track(server: DevServer, body: object = EVENT, **options) -> Reply:
    return call(server, "POST", "/track", body, **options)


def batch(count: int) -> Dict[str, object]:
    return {"events": [{**EVENT, "properties": {"n": n}} for n in range(count)]}


def create(server: DevServer, slug: str = "p", **fields: object) -> Dict[str, object]:
    body = {"customer_email": "jane@example.com", "event_type": "cancellation", **fields}
    reply = call(server, "POST", f"/projects/{slug}/churn-events", body)
    assert reply.status == 201
    return reply.json["data"]


TEMPLATE = {
    "cancel_reason": "too_expensive",
    "name": "Save",
    "subject": "Hi {{customer_name}}",
    "body": "Stay",
}


FLOW = {
    "customer_email": "jane@example.com",
    "cancel_reason": "Too expensive for our team",
    "feedback_text": "Love the product",
    "selected_offer": "downgrade",
}
