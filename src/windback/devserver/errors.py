"""The one error that routes raise, and how it looks on the wire."""

from __future__ import annotations

import math
from typing import Dict, Mapping, Optional

import orjson


class ApiError(Exception):
    """A request is refused with *status* and the body ``{"error": message, "code": code}`` plus *extra*."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Optional[Dict[str, str]] = None,
        extra: Optional[Mapping[str, object]] = None,
    ) -> None:
        super().__init__(message)
        self.extra = extra or {}
        self.headers = headers or {}
        self.status = status
        self.code = code
        self.message = message


def error_body(code: str, message: str, extra: Optional[Mapping[str, object]] = None) -> bytes:
    """The JSON of an error answer; text and code are side by side, as the API documents it for 402."""
    return orjson.dumps({"error": message, "code": code, **(extra or {})})


def invalid(message: str) -> ApiError:
    """400 for a body or a query that breaks a rule; *message* names the field."""
    return ApiError(400, "VALIDATION_ERROR", message)


def bad_state(message: str) -> ApiError:
    """400 for a step that the state of a thing does not allow (Churn Events and Recovery pages)."""
    return ApiError(400, "INVALID_STATE", message)


def over_limit(wait_s: float) -> ApiError:
    """429 for a request that may come again after *wait_s* seconds."""
    # Retry-After counts whole seconds (RFC 9110, section 10.2.3); rounded up, or the next try comes early.
    retry_after = {"retry-after": str(max(1, math.ceil(wait_s)))}
    return ApiError(429, "RATE_LIMITED", "rate limit exceeded", retry_after)


def not_found(what: str) -> ApiError:
    """404 for a thing that does not exist."""
    return ApiError(404, "NOT_FOUND", f"{what} not found")


def expired() -> ApiError:
    """402 for a key whose account has no subscription any more (Churn Events page)."""
    return ApiError(402, "SUBSCRIPTION_EXPIRED", "subscription expired")


def too_large(limit: int) -> ApiError:
    """413 for a body over *limit* bytes, as sent or when decompressed."""
    return ApiError(413, "BODY_TOO_LARGE", f"the body is larger than {limit} bytes")


def unsupported_encoding(encoding: str) -> ApiError:
    """415 for a body that is compressed in a way that is not taken."""
    return ApiError(415, "UNSUPPORTED_ENCODING", f"content encoding {encoding} is not supported")
