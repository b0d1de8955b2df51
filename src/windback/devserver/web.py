"""What the endpoints of the control plane have in common."""

from __future__ import annotations

import time
from typing import Optional

import orjson
from starlette.requests import Request
from starlette.responses import Response

from . import body as bodies
from . import query
from .errors import ApiError, invalid, too_large
from .labels import inbox_named

#: A larger body of a request to the control plane is not kept, however it comes.
MAX_BODY_BYTES = 1024 * 1024

#: No content of an event may be taken for a page, and nothing may be cached.
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}


def answer(value: object, status: int = 200) -> Response:
    """*value* as JSON."""
    return Response(orjson.dumps(value), status, HEADERS, "application/json")


async def body_of(request: Request) -> object:
    """The JSON value that a request brings; raises `ApiError` 400, or 413 above `MAX_BODY_BYTES`."""
    body, _, _ = await bodies.read(request.receive, MAX_BODY_BYTES)
    if body is None:
        raise too_large(MAX_BODY_BYTES)
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "INVALID_JSON", f"body is not valid JSON: {error}") from None
    return value


def query_of(request: Request) -> query.Query:
    """What `q` asks for; raises `ApiError` 400 for what makes no sense."""
    return query.parse(request.query_params.get("q", ""), time.time())


def inbox_of(request: Request) -> Optional[str]:
    """The inbox that `key` names, by its label or by the key itself; None when there is no `key`."""
    key = request.query_params.get("key")
    return inbox_named(key) if key else None


def whole(request: Request, name: str) -> Optional[int]:
    """The whole number *name* of the query, or None; raises `ApiError` 400."""
    text = request.query_params.get(name)
    if text is None or text == "":
        return None
    if len(text) > 18 or not text.isascii() or not text.isdigit():
        raise invalid(f"{name}: must be a whole number")
    return int(text)


def seconds(request: Request, name: str, most: float, default: float) -> float:
    """The number of seconds *name* of the query; raises `ApiError` 400."""
    text = request.query_params.get(name)
    try:
        value = default if text is None or text == "" else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise invalid(f"{name}: must be a number of seconds from 0 to {most:g}")
    return value
