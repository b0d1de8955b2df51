"""The OpenAPI document of this server: what it takes and answers, exactly.

Limits and names come from the modules that enforce them. Where a real API may answer more than this server
does (an event without an envelope, a 202), the document describes this server.
"""

from __future__ import annotations

from typing import Dict, Mapping, Optional, Sequence, Tuple

from . import churn, recovery, routes, validation
from .options import BASE_PATH
from .webhooks import SIGNATURE_HEADER

Schema = Dict[str, object]

#: Where the document is served.
PATH = "/openapi.json"

_ERRORS = {
    400: "A field breaks a rule, or the state of the thing does not allow the step",
    401: "The API key is missing or not known",
    402: "The subscription of the key's account has expired",
    403: "The endpoint needs a secret key",
    404: "There is no such thing",
    409: "There is such a thing already, or the Idempotency-Key was used with another body",
    413: "The body is too large",
    415: "The body is not JSON, or has an encoding that is not taken",
    429: "Too many requests",
    500: "The email service is not configured",
    503: "The server is being stopped",
}
#: What any request may be answered, and what one that changes something or has a body may be.
_ANY, _WRITE, _BODY = (401, 429), (400, 409), (413, 415)
#: What the endpoints of a project add to that.
_PROJECT = (402, 403)


def document(*, strict: bool = True) -> Schema:
    """The whole document, as JSON values; of a server that is not *strict*, any event is taken."""
    schemas = _SCHEMAS if strict else {**_SCHEMAS, "TrackBody": _track_body(_ANY_EVENT, _ANY_ONE_EVENT)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Windback API of the local server",
            "version": "1",
            "summary": "For development and tests. Written from public documentation; not an official file.",
        },
        "servers": [{"url": BASE_PATH}],
        "security": [{"secretKey": []}],
        "paths": _paths(),
        "webhooks": {"churnRiskAlert": {"post": _webhook()}},
        "components": {
            "securitySchemes": {
                "secretKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "sk_…"},
                "publicKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "pub_…"},
                "bearer": {"type": "http", "scheme": "bearer", "description": "either key"},
            },
            "headers": {
                "RetryAfter": {"description": "Seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
            },
            "responses": {f"Error{status}": _error(status) for status in _ERRORS},
            "schemas": schemas,
        },
    }


def _paths() -> Dict[str, Dict[str, Schema]]:
    churn, event = "/projects/{slug}/churn-events", "/projects/{slug}/churn-events/{id}"
    variant, templates = event + "/variants/{vid}", "/projects/{slug}/recovery-templates"
    both_keys: Schema = {"security": [{"publicKey": []}, {"secretKey": []}, {"bearer": []}]}
    return {
        "/track": {
            "post": _operation(
                "track", "Track one event or a batch", {200: "TrackAck"}, body="TrackBody", errors=_PROJECT
            )
        },
        churn: {
            "post": _operation(
                "createChurnEvent",
                "Create a churn event",
                {201: "ChurnEventAnswer"},
                body="ChurnEventCreate",
                parameters=["slug"],
                errors=_PROJECT,
            ),
            "get": _operation(
                "listChurnEvents",
                "List churn events, newest first",
                {200: "ChurnEventPage"},
                parameters=["slug", "limit", "offset", "status"],
                errors=(*_PROJECT, 400),
            ),
        },
        event: {
            "get": _operation(
                "getChurnEvent",
                "Get a churn event, with its variants if any",
                {200: "ChurnEventAnswer"},
                parameters=["slug", "id"],
                errors=(*_PROJECT, 404),
            )
        },
        event + "/recovered": {
            "post": _operation(
                "markRecovered",
                "Mark a churn event as recovered, once",
                {200: "ChurnEventAnswer"},
                parameters=["slug", "id"],
                errors=(*_PROJECT, 404, *_WRITE),
            )
        },
        event + "/cancel-reason": {
            "patch": _operation(
                "updateCancelReason",
                "Attach or change the cancel reason",
                {200: "ChurnEventAnswer"},
                body="CancelReasonUpdate",
                parameters=["slug", "id"],
                errors=(*_PROJECT, 404),
            )
        },
        event + "/generate": {
            "post": _operation(
                "generateVariants",
                "Generate the variants of a churn event",
                {200: "Generated"},
                parameters=["slug", "id"],
                errors=(*_PROJECT, 404, *_WRITE, 503),
                links=_VARIANT_LINKS,
            )
        },
        event + "/variants": {
            "get": _operation(
                "listVariants",
                "List the variants of a churn event",
                {200: "VariantList"},
                parameters=["slug", "id"],
                errors=(*_PROJECT, 404),
            )
        },
        variant: {
            "patch": _operation(
                "updateVariant",
                "Edit subject or body before it is sent",
                {200: "VariantAnswer"},
                body="VariantUpdate",
                parameters=["slug", "id", "vid"],
                errors=(*_PROJECT, 404),
            )
        },
        variant + "/send": {
            "post": _operation(
                *(
                    "sendVariant",
                    "Send a variant, once (no email leaves this server)",
                    {200: "VariantAnswer"},
                ),
                parameters=["slug", "id", "vid"],
                errors=(*_PROJECT, 404, *_WRITE, 500),
            )
        },
        "/projects/{slug}/stats": {
            "get": _operation(
                "getStats",
                "Churn and recovery statistics",
                {200: "Stats"},
                parameters=["slug"],
                errors=_PROJECT,
            )
        },
        templates: {
            "post": _operation(
                "createRecoveryTemplate",
                "Create a template for a cancel reason",
                {201: "TemplateAnswer"},
                body="TemplateCreate",
                parameters=["slug"],
                errors=_PROJECT,
            ),
            "get": _operation(
                "listRecoveryTemplates",
                "List the templates",
                {200: "TemplateList"},
                parameters=["slug"],
                errors=_PROJECT,
            ),
        },
        templates + "/{id}": {
            "get": _operation(
                "getRecoveryTemplate",
                "Get a template",
                {200: "TemplateAnswer"},
                parameters=["slug", "id"],
                errors=(*_PROJECT, 404),
            ),
            "put": _operation(
                "updateRecoveryTemplate",
                "Change any part of a template",
                {200: "TemplateAnswer"},
                body="TemplateUpdate",
                parameters=["slug", "id"],
                errors=(*_PROJECT, 404),
            ),
            "delete": _operation(
                "deleteRecoveryTemplate",
                "Delete a template",
                {204: None},
                parameters=["slug", "id"],
                errors=(*_PROJECT, 404, *_WRITE),
            ),
        },
        "/cancel-flow/submit": {
            "post": {
                **_operation(
                    "submitCancelFlow",
                    "Submit a cancellation, get the offer for its reason",
                    {200: "CancelFlowAnswer", 202: "CancelFlowAnswer"},
                    body="CancelFlowSubmit",
                ),
                **both_keys,
            }
        },
        "/cancel-flow/offers": {
            "get": {
                **_operation(
                    "getCancelFlowOffer",
                    "The offer for a reason, or null",
                    {200: "OfferAnswer"},
                    parameters=["reason"],
                    errors=(400,),
                ),
                **both_keys,
            }
        },
        "/cancel-flow/accept-offer": {
            "post": {
                **_operation(
                    *(
                        "acceptCancelFlowOffer",
                        "Record that the customer took the offer",
                        {200: "Acceptance"},
                    ),
                    body="OfferDecision",
                    errors=(404,),
                ),
                **both_keys,
            }
        },
    }


def _operation(
    name: str,
    summary: str,
    answers: Mapping[int, Optional[str]],
    *,
    body: Optional[str] = None,
    parameters: Sequence[str] = (),
    errors: Tuple[int, ...] = (),
    links: Optional[Schema] = None,
) -> Schema:
    """One operation: *answers* and *body* name schemas. Writes are those with a body or with a 409."""
    if body is not None:
        errors = (*errors, *_WRITE, *_BODY)
    responses: Dict[str, Schema] = {
        str(status): {
            "description": "Success",
            **({} if schema is None else {"content": {"application/json": {"schema": _ref(schema)}}}),
            **({} if links is None else {"links": links}),
        }
        for status, schema in answers.items()
    }
    for status in sorted({*_ANY, *errors}):
        responses[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    names = [*parameters, *(["Idempotency-Key"] if 409 in errors else [])]
    operation: Schema = {"operationId": name, "summary": summary, "responses": responses}
    if names:
        operation["parameters"] = [_PARAMETERS[each] for each in names]
    if body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(body)}},
        }
    return operation


def _webhook() -> Schema:
    return {
        "operationId": "onChurnRiskAlert",
        "summary": "Sent when the control plane asks for it; three retries unless a 2xx comes within 5 s",
        "security": [],
        "parameters": [
            {
                "name": SIGNATURE_HEADER,
                "in": "header",
                "required": True,
                "schema": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                "description": "HMAC-SHA256 of the raw body with the webhook's secret",
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("ChurnRiskAlert")}},
        },
        "responses": {"2XX": {"description": "Delivered"}},
    }


def _error(status: int) -> Schema:
    answer: Schema = {
        "description": _ERRORS[status],
        "content": {"application/json": {"schema": _ref("Error")}},
    }
    if status == 429:
        answer["headers"] = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
    return answer


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: Dict[str, Schema], optional: Optional[Dict[str, Schema]] = None) -> Schema:
    """An object with these properties; unknown ones are ignored, in both directions."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties}


def _data(schema: Schema) -> Schema:
    return _object({"data": schema})


def _path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query(name: str, schema: Schema, *, required: bool = False) -> Schema:
    return {"name": name, "in": "query", "required": required, "schema": schema}


_STRING: Schema = {"type": "string"}
_STRING_OR_NULL: Schema = {"type": ["string", "null"]}
_FLAG: Schema = {"type": "boolean"}
_INTEGER: Schema = {"type": "integer"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_TIME_OR_NULL: Schema = {"type": ["string", "null"], "format": "date-time"}
_COUNT: Schema = {"type": ["integer", "null"], "minimum": 0, "maximum": validation.MAX_COUNT}
#: Not blank.
_TEXT: Schema = {"type": "string", "pattern": r"[^ \t\n\r\f\v]"}
_EMAIL: Schema = {"type": "string", "pattern": f"^{validation.EMAIL}$"}
_STATUS: Schema = {"type": "string", "enum": list(churn.STATUSES)}
_OFFER_TYPE: Schema = {"type": "string", "enum": list(validation.OFFER_TYPES)}
_OFFER: Schema = {"oneOf": [_ref("Offer"), {"type": "null"}]}

_PARAMETERS: Dict[str, Schema] = {
    "slug": _path("slug"),
    "id": _path("id"),
    "vid": _path("vid"),
    "limit": _query(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": routes.MAX_LIMIT, "default": routes.DEFAULT_LIMIT},
    ),
    "offset": _query("offset", {"type": "integer", "minimum": 0, "maximum": routes.MAX_OFFSET, "default": 0}),
    "status": _query("status", _STATUS),
    "reason": _query("reason", {"type": "string", "minLength": 1}, required=True),
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "pattern": f"^{validation.IDEMPOTENCY_KEY}$"},
        "description": "The first answer is given again, and nothing is done twice",
    },
}

#: From the answer to a generation to what can be done with a variant.
_VARIANT_LINKS: Schema = {
    name: {
        "operationId": name,
        "parameters": {
            "slug": "$request.path.slug",
            "id": "$request.path.id",
            "vid": "$response.body#/data/variants/0/id",
        },
    }
    for name in ("updateVariant", "sendVariant")
}

_CHURN_FIELDS: Dict[str, Schema] = {
    "customer_name": _STRING_OR_NULL,
    "event_type": {"enum": [*validation.EVENT_TYPES, None]},
    "cancel_reason_text": _STRING_OR_NULL,
    "mrr": {**_COUNT, "description": "cents"},
    "currency": {"type": ["string", "null"], "pattern": "^[A-Za-z]{3}$"},
    "plan_name": _STRING_OR_NULL,
    "tenure_days": _COUNT,
    "provider": _STRING_OR_NULL,
}
_TRACK_FIELDS: Dict[str, Schema] = {
    "customer_name": _STRING_OR_NULL,
    "properties": {"type": "object"},
    "timestamp": _TIME,
    "occurred_at": {**_TIME, "description": "in place of timestamp"},
}
_TEMPLATE_TEXTS: Dict[str, Schema] = {"name": _TEXT, "subject": _TEXT, "body": _TEXT}


def _track_body(item: Schema, alone: Schema) -> Schema:
    return {
        "oneOf": [
            {"allOf": [alone, {"not": {"required": ["events"]}}]},
            _object(
                {
                    "events": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": validation.MAX_BATCH,
                        "items": item,
                    }
                }
            ),
        ]
    }


_ANY_EVENT: Schema = {"description": "One that is not a TrackEvent is accepted, and silently ignored"}
_ANY_ONE_EVENT: Schema = {"type": "object", "required": ["event"], **_ANY_EVENT}

_SCHEMAS: Dict[str, Schema] = {
    "Error": _object({"error": _STRING, "code": _STRING}),
    "TrackBody": _track_body(_ref("TrackEvent"), _ref("TrackEvent")),
    "TrackEvent": {
        "anyOf": [
            _object(
                {"event": _TEXT, "customer_email": _EMAIL}, {"customer_id": _STRING_OR_NULL, **_TRACK_FIELDS}
            ),
            _object(
                {"event": _TEXT, "customer_id": {"type": "string", "minLength": 1}},
                {"customer_email": {"type": "null"}, **_TRACK_FIELDS},
            ),
        ],
        "not": {"required": ["timestamp", "occurred_at"]},
    },
    "TrackAck": _object({"status": {"const": "ok"}}),
    "ChurnEventCreate": _object(
        {"customer_email": _EMAIL}, {"cancel_reason": _STRING_OR_NULL, **_CHURN_FIELDS}
    ),
    "ChurnEvent": _object(
        {
            "id": _STRING,
            "project_id": _STRING,
            "customer_email": _STRING,
            "customer_name": _STRING_OR_NULL,
            "event_type": {"enum": list(validation.EVENT_TYPES)},
            "cancel_reason": _STRING_OR_NULL,
            "cancel_reason_text": _STRING_OR_NULL,
            "mrr": _INTEGER,
            "currency": _STRING,
            "plan_name": _STRING_OR_NULL,
            "tenure_days": _COUNT,
            "provider": _STRING,
            "status": _STATUS,
            "created_at": _TIME,
            "updated_at": _TIME,
        },
        {"variants": {"type": "array", "items": _ref("Variant")}},
    ),
    "ChurnEventAnswer": _data(_ref("ChurnEvent")),
    "ChurnEventPage": _object(
        {
            "data": {"type": "array", "maxItems": routes.MAX_LIMIT, "items": _ref("ChurnEvent")},
            "total": _INTEGER,
            "limit": _INTEGER,
            "offset": _INTEGER,
        }
    ),
    "CancelReasonUpdate": _object({"cancel_reason": _TEXT}, {"cancel_reason_text": _STRING_OR_NULL}),
    "Variant": _object(
        {
            "id": _STRING,
            "churn_event_id": _STRING,
            "subject": _STRING,
            "body": _STRING,
            "strategy": {"enum": list(recovery.STRATEGIES)},
            "status": {"enum": ["draft", "sent"]},
            "recommended": _FLAG,
            "coupon_code": _STRING_OR_NULL,
            "coupon_percent": {"type": ["integer", "null"], "minimum": 1, "maximum": 100},
            "sent_at": _TIME_OR_NULL,
            "opened_at": _TIME_OR_NULL,
            "clicked_at": _TIME_OR_NULL,
            "created_at": _TIME,
        }
    ),
    "VariantAnswer": _data(_ref("Variant")),
    "VariantList": _data({"type": "array", "items": _ref("Variant")}),
    "VariantUpdate": {
        **_object({}, {"subject": _TEXT, "body": _TEXT}),
        "anyOf": [{"required": ["subject"]}, {"required": ["body"]}],
    },
    "Generated": _data(
        _object(
            {
                "event_id": _STRING,
                "status": _STATUS,
                "variants": {"type": "array", "items": _ref("Variant")},
            }
        )
    ),
    "Stats": _object(
        {
            "total_events": _INTEGER,
            "new_events": _INTEGER,
            "recovered_events": _INTEGER,
            "lost_events": _INTEGER,
            "total_mrr_at_risk": _INTEGER,
            "recovered_mrr": _INTEGER,
            "recovery_rate": {"type": "number", "minimum": 0, "maximum": 100},
        }
    ),
    "TemplateCreate": _object({"cancel_reason": _TEXT, **_TEMPLATE_TEXTS}, {"is_active": _FLAG}),
    "TemplateUpdate": {
        **_object({}, {**_TEMPLATE_TEXTS, "is_active": _FLAG}),
        "anyOf": [{"required": [name]} for name in (*_TEMPLATE_TEXTS, "is_active")],
    },
    "Template": _object(
        {
            "id": _STRING,
            "project_id": _STRING,
            "cancel_reason": _STRING,
            "name": _STRING,
            "subject": _STRING,
            "body": _STRING,
            "is_active": _FLAG,
            "created_at": _TIME,
            "updated_at": _TIME,
        }
    ),
    "TemplateAnswer": _data(_ref("Template")),
    "TemplateList": _data({"type": "array", "items": _ref("Template")}),
    "CancelFlowSubmit": _object(
        {"customer_email": _EMAIL, "cancel_reason": _TEXT},
        {"feedback_text": _STRING_OR_NULL, "selected_offer": _STRING_OR_NULL, **_CHURN_FIELDS},
    ),
    "CancelFlowAnswer": _object(
        {"success": _FLAG, "event_id": _STRING_OR_NULL, "offer": _OFFER}, {"message": _STRING}
    ),
    "Offer": _object(
        {"offer_type": _OFFER_TYPE, "is_active": _FLAG},
        {
            "title": _STRING,
            "description": _STRING,
            "cta_button_text": _STRING,
            "discount_percent": {"type": "integer", "minimum": 1, "maximum": 100},
            "extension_days": {"type": "integer", "minimum": 0},
        },
    ),
    "OfferAnswer": _object({"offer": _OFFER}),
    "OfferDecision": _object({"customer_email": _EMAIL, "cancel_reason": _TEXT, "offer_type": _TEXT}),
    "Acceptance": _object({"success": _FLAG, "message": _STRING}),
    "ChurnRiskAlert": _object(
        {
            "event": {"const": "churn_risk.alert"},
            "project_id": _STRING,
            "customer_email": _STRING,
            "risk_score": {"type": "integer", "minimum": 0, "maximum": 100},
            "risk_level": _STRING,
            "signals": {"type": "array", "items": {"type": "object"}},
            "triggered_at": _TIME,
            "opaque_id": _STRING,
        }
    ),
}
