"""The result of one try of a request, and the error that a caller gets for it.

Pure: no clock and no socket; times are arguments.
"""

from __future__ import annotations

import enum
from datetime import timezone
from typing import Callable, Dict, Mapping, NamedTuple, Optional, Tuple

import orjson

from ..base_url import DEFAULT_BASE_URL, PATH
from ..errors import WindbackConnectionError, WindbackError, WindbackTimeoutError, error_class
from ..text import shown

#: If a server asks for a longer pause, it is asked again after this one.
RETRY_AFTER_CAP_S = 300.0
#: Limits the text taken from an answer that is not JSON, such as a gateway's HTML page.
_TEXT_LIMIT = 200
#: Bounds a message of the API: it goes into logs.
_MESSAGE_LIMIT = 2_000
#: What another server, or another path of it, answers.
_NOT_THERE = (404, 405, 410)


class Failure(enum.Enum):
    """Why there is no answer. The value goes into messages."""

    CONNECT = "could not connect"
    CONNECT_TIMEOUT = "could not connect in time"
    TIMEOUT = "no answer in time"
    BROKEN = "the connection broke"
    FULL = "the broker accepts no more"
    REFUSED = "the broker refuses"
    FORBIDDEN = "not allowed"
    FOREIGN = "this is not the API"


class Answer(NamedTuple):
    """The result of one try of a request: a status with headers (lower case) and body, or a failure."""

    status: Optional[int]
    headers: Mapping[str, str] = {}
    body: bytes = b""
    failure: Optional[Failure] = None
    detail: str = ""
    #: How often the request was sent again within the try, because its connection turned out to be closed.
    repeats: int = 0

    @property
    def ok(self) -> bool:
        """Whether the request succeeded: any 2xx, with or without a body."""
        return self.status is not None and 200 <= self.status < 300


def retry_after_s(answer: Answer, wall_s: float) -> Optional[float]:
    """Return the pause that a 429 or 503 asks for (RFC 9110, section 10.2.3), capped; else None."""
    if answer.status not in (429, 503):
        return None
    value = answer.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        delay_s = float(value)
    except ValueError:
        from email.utils import (
            parsedate_to_datetime,
        )  # takes longer to load than everything else in this module

        try:
            at = parsedate_to_datetime(value)
            # A date without a zone is in GMT, too (RFC 9110, section 5.6.7).
            delay_s = (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp() - wall_s
        except (TypeError, ValueError, IndexError, OverflowError):
            return None
    if delay_s != delay_s:  # noqa: PLR0124 - NaN
        return None
    return min(max(0.0, delay_s), RETRY_AFTER_CAP_S)


def error_of(
    answer: Answer, wall_s: float, redact: Callable[[str], str], base_url: str = DEFAULT_BASE_URL
) -> WindbackError:
    """Return the error for an unsuccessful response. Never fails, whatever the body is.

    redact: takes keys out of a text, should the server have repeated them. What a terminal or a log would
    obey is escaped. base_url: where the request went.
    """

    def fit(text: str) -> str:
        return shown(redact(text))[:_MESSAGE_LIMIT]

    if answer.status is None:
        failure = answer.failure or Failure.BROKEN
        is_late = failure in (Failure.TIMEOUT, Failure.CONNECT_TIMEOUT)
        kind = WindbackTimeoutError if is_late else WindbackConnectionError
        return kind(fit(f"{failure.value}: {answer.detail}" if answer.detail else failure.value))
    message, code = _text_and_code(answer.body, redact)
    if 300 <= answer.status < 400:
        where = fit(answer.headers.get("location", "another place"))
        message = (
            f"redirected to {where[:_TEXT_LIMIT]}, and redirects are not followed: set base_url to the API"
        )
    message = message or f"HTTP {answer.status} without a message"
    if answer.status in _NOT_THERE and not base_url.endswith(PATH):
        message = f"{message} (base_url is {base_url!r}, and the path of the API is {PATH})"
    return error_class(answer.status)(
        fit(message),
        status=answer.status,
        code=code and fit(code),
        request_id=fit(answer.headers.get("x-request-id", "")) or None,
        retry_after=retry_after_s(answer, wall_s),
    )


def _text_and_code(body: bytes, redact: Callable[[str], str]) -> Tuple[str, Optional[str]]:
    """Read {"error": text}, {"error": {"message": …}} and {"message": …}; else the start of the text."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        # Redacted before it is cut: a key at the cut would leave its first part.
        text = redact(body[:8192].decode("utf-8", "replace"))
        return " ".join(text.split())[:_TEXT_LIMIT], None
    if not isinstance(data, dict):
        return "", None
    error = data.get("error")
    inner: Dict[str, object] = error if isinstance(error, dict) else {}
    message = error if isinstance(error, str) else inner.get("message") or data.get("message")
    code = data.get("code") or inner.get("code")
    return message if isinstance(message, str) else "", code if isinstance(code, str) else None
