"""Churn risk webhooks: check the signature, read the alert, and answer each delivery once.

    from windback.webhooks import parse

    alert = parse(raw_body, request.headers.get("X-Windback-Signature"))
    print(alert.customer_email, alert.risk_score)

`windback.fastapi.webhook_router`, `windback.django.webhook_view` and `windback.flask.webhook_blueprint` do
all of this. They are built on `WebhookReceiver`, which other frameworks can use.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import logging
import os
from collections import deque
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import (
    Awaitable,
    Callable,
    Deque,
    Dict,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Set,
    Tuple,
    Union,
    cast,
)

from ..errors import ConfigurationError, WebhookError
from ..options import naming_options
from ..secrets import Secret, hidden_option, kind_of
from .alert import ChurnRiskAlert, Signal, read_alert, refusal

__all__ = [
    "MAX_BODY_BYTES",
    "SIGNATURE_HEADER",
    "TOLERANCE",
    "ChurnRiskAlert",
    "RecentAlerts",
    "Seen",
    "Signal",
    "WebhookAnswer",
    "WebhookError",
    "WebhookReceiver",
    "parse",
    "sign",
    "verify",
]

logger = logging.getLogger("windback")

#: The header that holds the signature (docs page "Churn Risk Webhook Delivery").
SIGNATURE_HEADER = "X-Windback-Signature"
#: The environment variable that holds the secret; several are separated by commas.
SECRET_VARIABLE = "WINDBACK_WEBHOOK_SECRET"  # noqa: S105 - a name
#: The longest body that is read (bytes).
MAX_BODY_BYTES = 256 * 1024
#: How old an alert may be. The API's last retry comes 370 s after the first try, with the same time in it.
TOLERANCE = timedelta(minutes=15)

SecretOrSecrets = Union[str, Sequence[str], None]

# -- signatures ------------------------------------------------------------------------------------


def sign(body: bytes, secret: str) -> str:
    """Return the signature of a body, as the API makes it.

    Args:
        body: The raw bytes of the body.
        secret: The webhook secret.

    Returns:
        The HMAC-SHA256 in lower-case hex, without a prefix.

    Raises:
        ConfigurationError: The secret can't be used, such as an empty one.
        WebhookError: The body is not bytes ("bad_payload").
    """
    keys = _hidden_secrets(secret)
    del secret  # before anything can raise: frames may be shown
    return _signature(_bytes_of(body), _checked_secrets(keys)[0])


def verify(body: bytes, signature: Union[str, bytes, None], secret: SecretOrSecrets = None) -> None:
    """Check that a body was signed with the secret, in constant time.

    Args:
        body: The raw bytes of the request's body. JSON that was decoded and encoded again has another
            signature.
        signature: The value of the header X-Windback-Signature; None if there was none.
        secret: The webhook secret, or several while you replace one. None: WINDBACK_WEBHOOK_SECRET, which
            may contain several, separated by commas.

    Raises:
        WebhookError: The code is "missing_signature", "bad_signature", "too_large" (over 256 kB), or
            "bad_payload" for a body that is not bytes.
        ConfigurationError: There is no secret, or it can't be used.
    """
    secret = _hidden_secrets(secret)  # before anything can raise: frames may be shown
    _verify(_checked_body(body), signature, _checked_secrets(secret))


def parse(
    body: bytes,
    signature: Union[str, bytes, None],
    secret: SecretOrSecrets = None,
    *,
    tolerance: Optional[timedelta] = TOLERANCE,
    now: Optional[datetime] = None,
) -> ChurnRiskAlert:
    """Check the signature and the age of a webhook, and read the alert.

    Args:
        body: See `verify`.
        signature: See `verify`.
        secret: See `verify`.
        tolerance: How far `triggered_at` may be from now, in the past or in the future: an older copy is
            refused. The API's own last retry needs at least 7 minutes. None: any age.
        now: An aware datetime that replaces the current time, for tests.

    Returns:
        The alert.

    Raises:
        WebhookError: `code` is the reason: "missing_signature", "bad_signature", "too_old", "too_large",
            "bad_payload"; `status` is the HTTP status to answer with.
        ConfigurationError: There is no secret, or an argument is wrong.
    """
    secret = _hidden_secrets(secret)  # before anything can raise: frames may be shown
    keys = _checked_secrets(secret)
    _check_tolerance(tolerance)
    moment: object = now
    if moment is not None and (not isinstance(moment, datetime) or moment.utcoffset() is None):
        raise ConfigurationError(
            "now must be a datetime with a time zone, such as datetime.now(timezone.utc)"
        )
    return _parse(body, signature, keys, tolerance, now)


def _parse(
    body: object,
    signature: object,
    keys: Sequence[Secret],
    tolerance: Optional[timedelta],
    now: Optional[datetime],
) -> ChurnRiskAlert:
    raw = _checked_body(body)
    _verify(raw, signature, keys)
    alert = read_alert(raw)
    if tolerance is not None:
        _check_age(alert, tolerance, datetime.now(timezone.utc) if now is None else now)
    return alert


def _bytes_of(body: object) -> bytes:
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise refusal("bad_payload", f"the body must be the raw bytes of the request, not {kind_of(body)}")
    return bytes(body)


def _checked_body(body: object) -> bytes:
    raw = _bytes_of(body)
    if len(raw) > MAX_BODY_BYTES:
        raise too_large()
    return raw


def too_large() -> WebhookError:
    """Return the error for a body that is too long to be read.

    Returns:
        The error, with status 413.
    """
    return refusal("too_large", f"the body is larger than {MAX_BODY_BYTES // 1024} kB")


def unreadable() -> WebhookError:
    """Return the error for a body that the server could not read.

    Returns:
        The error, with status 400.
    """
    return refusal("bad_payload", "the body broke off, or its chunks are malformed")


def _verify(body: bytes, signature: object, keys: Sequence[Secret]) -> None:
    given = signature
    if isinstance(given, str):
        given = given.encode("utf-8", "surrogatepass")
    if given is None or (isinstance(given, bytes) and not given.strip()):
        raise refusal("missing_signature", f"the {SIGNATURE_HEADER} header is missing")
    if not isinstance(given, bytes):
        raise refusal("bad_signature", f"the signature must be the text of a header, not {kind_of(given)}")
    digits = given.strip().lower()
    # Every secret is tried, so that the time does not show which one it was.
    matches = [hmac.compare_digest(_signature(body, key).encode(), digits) for key in keys]
    if not any(matches):
        raise refusal(
            "bad_signature",
            "the signature does not match: either the secret is another one, or the body was changed "
            "after it was signed (JSON that was decoded and encoded again has another signature)",
        )


def _signature(body: bytes, key: Secret) -> str:
    return hmac.new(key.reveal().encode("utf-8", "surrogatepass"), body, hashlib.sha256).hexdigest()


def _hidden_secrets(given: object) -> SecretOrSecrets:
    """Return one secret or a list of secrets, each hidden, to be passed on. Never raises."""
    return cast("SecretOrSecrets", hidden_option("secret", given))


def _checked_secrets(given: object) -> Tuple[Secret, ...]:
    """Check the value of `_hidden_secrets`. None: the environment variable. Raises ConfigurationError."""
    place = "secret"
    if given is None:
        place, given = SECRET_VARIABLE, _from_environment()
        if not given:
            raise ConfigurationError(
                f"there is no webhook secret: set {SECRET_VARIABLE}, or pass secret=… (it is on the page of "
                "the webhook in the dashboard, and is not the API key)",
                code="MISSING_WEBHOOK_SECRET",
            )
    if not isinstance(given, list):
        return (_checked_secret(given, place),)
    if not given:
        raise ConfigurationError("secret is an empty list: pass at least one webhook secret")
    return tuple(_checked_secret(key, f"{place}[{number}]") for number, key in enumerate(given))


def _from_environment() -> Union[Secret, List[Secret]]:
    parts = os.environ.get(SECRET_VARIABLE, "").split(",")
    secrets = [Secret(part.strip()) for part in parts if part.strip()]
    return secrets[0] if len(secrets) == 1 else secrets


def _checked_secret(key: object, place: str) -> Secret:
    if not isinstance(key, Secret):
        raise ConfigurationError(f"{place} must be a text, not {kind_of(key)}")
    problem = _problem_of_secret(key.reveal())
    if problem is not None:
        raise ConfigurationError(f"{place} {problem}")
    return key


def _problem_of_secret(text: str) -> Optional[str]:
    """Describe what is wrong with a secret. This frame has it as text, and nothing in it raises."""
    if not text.strip():
        return "is empty: an empty secret would let anybody sign"
    if text != text.strip():
        return "starts or ends with a space or a line end, perhaps from the file that it was read from"
    if text.startswith(("sk_", "pub_")):
        return "is an API key; the webhook secret is on the page of the webhook in the dashboard"
    return None


def _check_tolerance(tolerance: object) -> None:
    if tolerance is not None and (not isinstance(tolerance, timedelta) or tolerance <= timedelta(0)):
        raise ConfigurationError(
            f"tolerance must be a timedelta of more than 0, or None for any age, not {tolerance!r}"
        )


def _check_age(alert: ChurnRiskAlert, tolerance: timedelta, now: datetime) -> None:
    if alert.triggered_at is None:
        message = 'the alert has no "triggered_at" and no "timestamp", so its age is not known'
        raise refusal("bad_payload", message)
    try:
        age = now - alert.triggered_at
    except OverflowError:  # a zone that leads out of the calendar
        age = timedelta.max
    if age > tolerance:
        raise refusal("too_old", f"the alert is {_shown(age)} old, which is more than {_shown(tolerance)}")
    if -age > tolerance:
        raise refusal(
            "too_old", f"the alert is from {_shown(-age)} in the future: one of the two clocks is wrong"
        )


def _shown(span: timedelta) -> str:
    minutes = span.total_seconds() / 60
    return f"{minutes:,.0f} min" if minutes >= 1 else f"{span.total_seconds():g} s"


# -- deliveries ------------------------------------------------------------------------------------


class Seen(Protocol):
    """Remembers the alerts that were handled. A `set` works; so does your own class over a database."""

    def __contains__(self, alert_id: object, /) -> bool:
        """Check whether an alert was handled.

        Args:
            alert_id: The alert's `id`.

        Returns:
            Whether the alert with this id was handled.
        """
        ...

    def add(self, alert_id: str, /) -> object:
        """Remember an alert. It is called after the handler returned.

        Args:
            alert_id: The alert's `id`.

        Returns:
            Anything; it is not used.
        """
        ...


class RecentAlerts:
    """Remembers the last alerts of this process. Safe in threads.

    Args:
        size: How many alerts to remember.
    """

    def __init__(self, size: int = 10_000) -> None:
        self._size = size
        self._ids: Set[str] = set()
        self._order: Deque[str] = deque()

    def __contains__(self, alert_id: object) -> bool:
        return alert_id in self._ids

    def add(self, alert_id: str) -> None:
        """Remember an alert, and forget the oldest one if there are too many.

        Args:
            alert_id: The alert's `id`.
        """
        if alert_id in self._ids:
            return
        self._ids.add(alert_id)
        self._order.append(alert_id)
        if len(self._order) > self._size:
            self._ids.discard(self._order.popleft())

    def __len__(self) -> int:
        return len(self._ids)


class WebhookAnswer(NamedTuple):
    """What to answer a delivery with: the HTTP status, and a JSON object as the body."""

    status: int
    body: Mapping[str, str]


#: Gets each alert once. Its result is not used. If it raises, the API delivers again.
Handler = Callable[[ChurnRiskAlert], object]
AsyncHandler = Callable[[ChurnRiskAlert], Awaitable[object]]


class WebhookReceiver:
    """Turns deliveries into calls of a handler, and returns what to answer. The views are built on it.

    Answers: 200 after the handler returned, and for a duplicate, which does not call it; 401 for a signature,
    400 for a payload or an age, 413 for a body over 256 kB; 409 while another delivery of the same alert is
    being handled. An exception of the handler passes through, so that the framework reports it and answers
    500: the API then delivers again.

    Args:
        handler: Gets each `ChurnRiskAlert`. Sync or async.
        secret: See `verify`. Read and checked once, here.
        seen: Remembers the handled alerts. None: the last 10,000 alerts of this process. Several processes
            need one in common, such as the Redis one in `examples/winback`.
        tolerance: See `parse`.

    Raises:
        ConfigurationError: There is no secret, or an argument is wrong.
    """

    @naming_options
    def __init__(
        self,
        handler: Union[Handler, AsyncHandler],
        secret: SecretOrSecrets = None,
        *,
        seen: Optional[Seen] = None,
        tolerance: Optional[timedelta] = TOLERANCE,
    ) -> None:
        self._secrets = _checked_secrets(secret)  # `naming_options` has hidden them
        if not callable(handler):
            raise ConfigurationError(
                f"handler must be a function that gets a ChurnRiskAlert, not {kind_of(handler)}"
            )
        if seen is not None and not (hasattr(seen, "__contains__") and hasattr(seen, "add")):
            raise ConfigurationError(
                f"seen must support `in` and `add`, as a set does, or be None; {kind_of(seen)} does not"
            )
        _check_tolerance(tolerance)
        self._handler = handler
        self._seen: Seen = RecentAlerts() if seen is None else seen
        self._tolerance = tolerance
        #: The alerts whose handler is running, each with a token of the delivery that runs it.
        self._running: Dict[str, object] = {}
        self._warned: Set[Optional[str]] = set()

    @property
    def is_async(self) -> bool:
        """Whether the handler is an async function. Then call `receive_async`."""
        function: object = self._handler
        while isinstance(function, partial):
            function = function.func
        return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - of an object with an async __call__
        )

    def refuse(self, error: WebhookError) -> WebhookAnswer:
        """Return the answer for a delivery that is refused. The first of each kind is logged as a WARNING.

        Args:
            error: Why it is refused.

        Returns:
            The answer.
        """
        is_first = error.code not in self._warned
        self._warned.add(error.code)
        logger.log(logging.WARNING if is_first else logging.DEBUG, "a webhook was refused: %s", error)
        return WebhookAnswer(error.status or 400, {"error": error.message, "code": error.code or ""})

    def receive(self, body: bytes, signature: Union[str, bytes, None]) -> WebhookAnswer:
        """Handle one delivery with a sync handler.

        Args:
            body: The raw bytes of the request's body. Read at most `MAX_BODY_BYTES` + 1 of them.
            signature: The value of the header X-Windback-Signature; None if there is none.

        Returns:
            The answer. An exception of the handler passes through.
        """
        alert = self._open(body, signature)
        if isinstance(alert, WebhookAnswer):
            return alert
        try:
            self._handler(alert)
            self._seen.add(alert.id)
        finally:
            del self._running[alert.id]
        return _DONE

    async def receive_async(self, body: bytes, signature: Union[str, bytes, None]) -> WebhookAnswer:
        """Handle one delivery with an async handler; see `receive`.

        Args:
            body: The raw bytes of the request's body. Read at most `MAX_BODY_BYTES` + 1 of them.
            signature: The value of the header X-Windback-Signature; None if there is none.

        Returns:
            The answer. An exception of the handler passes through.
        """
        alert = self._open(body, signature)
        if isinstance(alert, WebhookAnswer):
            return alert
        try:
            result = self._handler(alert)
            if inspect.isawaitable(result):
                await result
            self._seen.add(alert.id)
        finally:
            del self._running[alert.id]
        return _DONE

    def _open(self, body: bytes, signature: Union[str, bytes, None]) -> Union[ChurnRiskAlert, WebhookAnswer]:
        """Return the alert to handle, or the answer if there is none."""
        try:
            alert = _parse(body, signature, self._secrets, self._tolerance, None)
        except WebhookError as error:
            return self.refuse(error)
        token = object()
        # One step, so that only one of two concurrent deliveries is handled.
        if self._running.setdefault(alert.id, token) is not token:
            return _RUNNING
        try:
            is_duplicate = alert.id in self._seen
        except BaseException:
            del self._running[alert.id]
            raise
        if is_duplicate:
            del self._running[alert.id]
            return _DUPLICATE
        return alert


_DONE = WebhookAnswer(200, {"status": "ok"})
_DUPLICATE = WebhookAnswer(200, {"status": "duplicate"})
_RUNNING = WebhookAnswer(409, {"status": "in progress"})
