"""`windback webhook send`: sends a signed alert to your URL as the API would, or a wrong one."""

from __future__ import annotations

import os
import uuid
from datetime import datetime, timedelta, timezone
from typing import Dict, List, NamedTuple, Optional
from urllib.parse import urlsplit

import orjson
import typer

from windback.devserver.options import DEFAULT_WEBHOOK_SECRET
from windback.errors import ConfigurationError
from windback.webhooks import SECRET_VARIABLE, SIGNATURE_HEADER, sign

from .common import CommandError, command, group, json_option, print_json
from .terminal import write_line

#: How long the API waits for an answer (seconds).
TIMEOUT_S = 5.0
#: The age of a late alert: older than any tolerance that accepts the API's retries.
LATE = timedelta(hours=1)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

app = group("Alerts, as the API sends them.")


class _Delivery(NamedTuple):
    """One request, and the statuses that are right for it."""

    what: str
    body: bytes
    signature: str
    expected: range


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise typer.BadParameter(f"{value!r} is not a URL that starts with http:// or https://")
    return value


@command(
    app,
    "send",
    "send a signed churn_risk.alert, and print the answer",
    f"The secret is read from {SECRET_VARIABLE}; for a URL of this machine it is that of `windback dev`, "
    f"{DEFAULT_WEBHOOK_SECRET}, if the variable is not set. Exit code 0 if the answer was the right one (401 "
    "for a wrong signature, 400 for a late alert, else 2xx), 1 if it was another, 2 if there was none.",
    within="webhook",
)
def send(
    to: str = typer.Option(
        ..., "--to", metavar="URL", callback=_url, show_default=False, help=("the URL to send to")
    ),
    email: str = typer.Option(
        "jane@example.com", "--email", metavar="ADDRESS", help=("the customer's email address")
    ),
    score: float = typer.Option(87, "--score", min=0, max=100, help="the risk score, 0 to 100"),
    alert_id: Optional[str] = typer.Option(
        None,
        "--id",
        metavar="ID",
        help=("the alert's opaque_id, to send the same alert again (default: a new one)"),
    ),
    duplicate: bool = typer.Option(False, "--duplicate", help="send it twice, byte for byte"),
    late: bool = typer.Option(
        False, "--late", help=("as if triggered an hour ago, like a replay of an old alert")
    ),
    wrong_signature: bool = typer.Option(False, "--wrong-signature", help="send it with a wrong signature"),
    json: bool = json_option(),
) -> int:
    """Run the command. Returns the exit code."""
    if wrong_signature and late:
        raise CommandError("--wrong-signature and --late can't be combined: only the signature would be seen")
    body = _payload(email, score, alert_id or f"alert_{uuid.uuid4().hex}", late=late)
    signature = _signature(body, to)
    if wrong_signature:
        signature = "0" * len(signature)
    expected = range(401, 402) if wrong_signature else range(400, 401) if late else range(200, 300)
    deliveries = [_Delivery("alert", body, signature, expected)]
    if duplicate:
        deliveries.append(_Delivery("duplicate", body, signature, expected))
    answers = [_send(to, delivery, as_json=json) for delivery in deliveries]
    return 0 if all(answers) else 1


def _payload(email: str, score: float, alert_id: str, *, late: bool) -> bytes:
    level = next(level for least, level in _LEVELS.items() if score >= least)
    at = datetime.now(timezone.utc) - (LATE if late else timedelta(0))
    signals: List[Dict[str, object]] = [
        {"name": "login_frequency_drop", "weight": 0.6},
        {"name": "support_ticket_opened", "weight": 0.4},
    ]
    return orjson.dumps(
        {
            "event": "churn_risk.alert",
            "project_id": os.environ.get("WINDBACK_PROJECT_SLUG", "my-project"),
            "customer_email": email,
            "risk_score": int(score) if score == int(score) else score,
            "risk_level": level,
            "signals": signals,
            "triggered_at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "opaque_id": alert_id,
        }
    )


#: The lowest score of each level.
_LEVELS = {80: "critical", 60: "high", 40: "medium", 0: "low"}


def _signature(body: bytes, url: str) -> str:
    has_secret = bool(os.environ.get(SECRET_VARIABLE, "").strip(" ,"))
    if not has_secret and urlsplit(url).hostname not in _LOCAL_HOSTS:
        raise CommandError(f"the webhook secret is missing: set {SECRET_VARIABLE}")
    try:
        # The first of several is the current one.
        return sign(
            body, os.environ[SECRET_VARIABLE].split(",")[0].strip() if has_secret else DEFAULT_WEBHOOK_SECRET
        )
    except ConfigurationError as error:
        raise CommandError(f"{SECRET_VARIABLE}: {error.message}") from None


def _send(url: str, delivery: _Delivery, *, as_json: bool) -> bool:
    """Send it, write the answer, and return whether it was the right one."""
    import httpx

    headers = {"content-type": "application/json", SIGNATURE_HEADER: delivery.signature}
    try:
        answer = httpx.post(url, content=delivery.body, headers=headers, timeout=TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = f"no answer within {TIMEOUT_S:g} s" if isinstance(error, httpx.TimeoutException) else error
        raise CommandError(f"{url}: {reason or type(error).__name__}") from None
    is_right = answer.status_code in delivery.expected
    if as_json:
        text = answer.text[:1000]
        print_json({"sent": delivery.what, "status": answer.status_code, "right": is_right, "answer": text})
        return is_right
    write_line(f"{delivery.what}: {answer.status_code} {' '.join(answer.text[:200].split())}")
    if not is_right:
        wanted = "2xx" if len(delivery.expected) > 1 else str(delivery.expected[0])
        hint = _HINTS.get(answer.status_code, "")
        write_line(f"  expected {wanted}{hint}")
    return is_right


_HINTS = {
    301: ": the URL has another form; with or without a slash at its end?",
    307: ": the URL has another form; with or without a slash at its end?",
    401: f": the secret of the application differs from {SECRET_VARIABLE} here",
    403: ": does the view expect a CSRF token?",
    404: ": is this the right path?",
    405: ": the view does not accept POST",
}
