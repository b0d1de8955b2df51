"""FastAPI: the middleware, `Track`, which tracks for the customer of a request, and `webhook_router`.

from windback.fastapi import Track, WindbackMiddleware

app.add_middleware(WindbackMiddleware)

@app.get("/export")
def export(track: Track):
    track("export", {"rows": 3})
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Optional, Set, Union

from .asgi import KEY, Tracker, WindbackMiddleware
from .options import naming_options
from .webhooks import (
    MAX_BODY_BYTES,
    SIGNATURE_HEADER,
    TOLERANCE,
    AsyncHandler,
    Handler,
    SecretOrSecrets,
    Seen,
    WebhookError,
    WebhookReceiver,
    too_large,
    unreadable,
)

try:
    from fastapi import APIRouter, Depends
    from fastapi.concurrency import run_in_threadpool
    from fastapi.requests import HTTPConnection, Request
    from fastapi.responses import JSONResponse
    from starlette.requests import ClientDisconnect
    from typing_extensions import Annotated
except ImportError as error:
    raise ImportError('windback.fastapi needs FastAPI: pip install "windback[fastapi]"') from error

__all__ = ["Track", "Tracker", "WindbackMiddleware", "get_tracker", "webhook_router"]

logger = logging.getLogger("windback")

_warned: Set[str] = set()


async def get_tracker(connection: HTTPConnection) -> Tracker:
    """Return the object that `Track` gives to an endpoint; the key for `app.dependency_overrides`.

    Args:
        connection: The request or WebSocket.

    Returns:
        The tracker.
    """
    if KEY not in connection.scope and not _warned:
        _warned.add(KEY)
        logger.warning(
            "Track is used without app.add_middleware(WindbackMiddleware): events have no customer "
            "and are not sent"
        )
    return _TRACKER


#: It is stateless: the state is in the scope of the request.
_TRACKER = Tracker()

#: Annotate an argument of an endpoint or of a dependency with it, and call it like `Windback.track`.
Track = Annotated[Tracker, Depends(get_tracker)]


@naming_options
def webhook_router(
    handler: Union[Handler, AsyncHandler],
    secret: SecretOrSecrets = None,
    *,
    path: str = "/windback",
    seen: Optional[Seen] = None,
    tolerance: Optional[timedelta] = TOLERANCE,
) -> APIRouter:
    """Return a router that receives churn risk alerts, for `app.include_router`.

    Args:
        handler: Gets each `ChurnRiskAlert` once. An async function runs in the event loop, any other in a
            thread. If it raises, the answer is 500, and the API delivers again.
        secret: The webhook secret, or several. None: WINDBACK_WEBHOOK_SECRET.
        path: Where to receive, with and without a slash at its end.
        seen: Remembers the handled alerts; see `windback.webhooks.WebhookReceiver`. It is called in a thread,
            unless the handler is async.
        tolerance: How old an alert may be. None: any age.

    Returns:
        The router.

    Raises:
        ConfigurationError: There is no secret, or an argument is wrong.
    """
    receiver = WebhookReceiver(handler, secret, seen=seen, tolerance=tolerance)
    router = APIRouter()

    async def receive_webhook(request: Request) -> JSONResponse:
        body = await _read(request)
        signature = ", ".join(request.headers.getlist(SIGNATURE_HEADER)) or None  # as WSGI joins them
        if isinstance(body, WebhookError):
            status, answer = receiver.refuse(body)
        elif receiver.is_async:
            status, answer = await receiver.receive_async(body, signature)
        else:
            status, answer = await run_in_threadpool(receiver.receive, body, signature)
        return JSONResponse(answer, status)

    path = "/" + path.strip("/")
    router.add_api_route(path, receive_webhook, methods=["POST"])
    if path != "/":
        router.add_api_route(path + "/", receive_webhook, methods=["POST"], include_in_schema=False)
    return router


async def _read(request: Request) -> Union[bytes, WebhookError]:
    """Return the body, or the error as soon as it is clear that it is too long."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > MAX_BODY_BYTES:
        return too_large()
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                return too_large()
    except ClientDisconnect:
        return unreadable()
    return body
