"""A view that receives churn risk alerts."""

from __future__ import annotations

from datetime import timedelta
from typing import Awaitable, Callable, Optional, Protocol, Union, cast

import orjson
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed

from ..options import naming_options
from ..webhooks import (
    MAX_BODY_BYTES,
    SIGNATURE_HEADER,
    TOLERANCE,
    AsyncHandler,
    Handler,
    SecretOrSecrets,
    Seen,
    WebhookAnswer,
    WebhookReceiver,
    too_large,
    unreadable,
)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


View = Callable[[HttpRequest], Union[HttpResponse, Awaitable[HttpResponse]]]


@naming_options
def webhook_view(
    handler: Union[Handler, AsyncHandler],
    secret: SecretOrSecrets = None,
    *,
    seen: Optional[Seen] = None,
    tolerance: Optional[timedelta] = TOLERANCE,
) -> View:
    """Return a view that receives churn risk alerts, for `path` or `re_path`. It needs no CSRF token.

    Args:
        handler: Gets each `ChurnRiskAlert` once. With an async function the view is async. What it raises is
            answered with 500, and the API delivers again.
        secret: The webhook secret, or several; WINDBACK_WEBHOOK_SECRET if None.
        seen: Remembers the alerts that were handled; see `windback.webhooks.WebhookReceiver`. Several
            processes need one in common.
        tolerance: How old an alert may be; None: any age.

    Returns:
        The view.

    Raises:
        ConfigurationError: There is no secret, or an argument is wrong.
    """
    receiver = WebhookReceiver(handler, secret, seen=seen, tolerance=tolerance)

    def receive_webhook(request: HttpRequest) -> HttpResponse:
        found = _read(request, receiver)
        if not isinstance(found, bytes):
            return found
        return _response(receiver.receive(found, request.headers.get(SIGNATURE_HEADER)))

    async def receive_webhook_async(request: HttpRequest) -> HttpResponse:
        found = _read(request, receiver)
        if not isinstance(found, bytes):
            return found
        return _response(await receiver.receive_async(found, request.headers.get(SIGNATURE_HEADER)))

    view: View = receive_webhook_async if receiver.is_async else receive_webhook
    setattr(view, "csrf_exempt", True)  # noqa: B010 - as the decorator of Django, which needs an own one for async
    return view


def _read(request: HttpRequest, receiver: WebhookReceiver) -> Union[bytes, HttpResponse]:
    """Return the body, or the answer to a body that can't be used."""
    if request.method != "POST":
        return HttpResponseNotAllowed(["POST"])
    announced = request.META.get("CONTENT_LENGTH") or ""
    if announced.isdecimal() and int(announced[:20]) > MAX_BODY_BYTES:
        return _response(receiver.refuse(too_large()))
    try:
        body = _stream(request).read(MAX_BODY_BYTES + 1)
    except Exception:  # noqa: BLE001 - each server has its own: the sender has gone, or a chunk is malformed
        return _response(receiver.refuse(unreadable()))
    return _response(receiver.refuse(too_large())) if len(body) > MAX_BODY_BYTES else body


def _stream(request: HttpRequest) -> _Readable:
    """Return what the body is read from."""
    meta = request.META
    # Under WSGI Django takes a body without a length for an empty one. The server ends it where it is over.
    is_chunked = "CONTENT_LENGTH" not in meta and meta.get("wsgi.input_terminated")
    return cast("_Readable", meta["wsgi.input"] if is_chunked else request)


def _response(answer: WebhookAnswer) -> HttpResponse:
    return HttpResponse(orjson.dumps(answer.body), "application/json", answer.status)
