"""A scope for each request, sync or async."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Optional,
    Set,
    Tuple,
    Union,
    cast,
)

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import FileResponse, HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

from .. import clock
from ..client import Windback
from ..context import Scope, close_scope, open_scope
from . import conf

logger = logging.getLogger("windback")

GetResponse = Callable[[HttpRequest], Union[HttpResponseBase, Awaitable[HttpResponseBase]]]

#: Where the scope of a request lies.
_ATTRIBUTE = "windback"
_NO_LOOP = "an async CUSTOMER needs an ASGI server"


@sync_and_async_middleware
def WindbackMiddleware(get_response: GetResponse) -> GetResponse:  # noqa: N802 - as Django's are called
    """Open a scope for each request; its customer is the authenticated user, or what CUSTOMER finds.

    With REQUEST_EVENT it tracks each request that has a customer: method, route, status, duration_ms.
    """
    if iscoroutinefunction(get_response):
        return _make_async(cast("Callable[[HttpRequest], Awaitable[HttpResponseBase]]", get_response))
    return _make_sync(cast("Callable[[HttpRequest], HttpResponseBase]", get_response))


def _make_sync(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    def middleware(request: HttpRequest) -> HttpResponseBase:
        if _is_inside_another(request):
            return get_response(request)
        started_s = clock.now_s()
        scope = _open(request)
        token = open_scope(scope)
        try:
            response = get_response(request)
            event, client = _wanted_event()
            if client is not None:
                scope.customer.resolve(client._engine.hooks.failed)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
                _track(request, response, scope, client, event, started_s)
            return _keeping_scope(response, scope)
        finally:
            close_scope(token)
            scope.give_up(_NO_LOOP)

    return middleware


def _make_async(
    get_response: Callable[[HttpRequest], Awaitable[HttpResponseBase]],
) -> Callable[[HttpRequest], Awaitable[HttpResponseBase]]:
    async def middleware(request: HttpRequest) -> HttpResponseBase:
        if _is_inside_another(request):
            return await get_response(request)
        started_s = clock.now_s()
        scope = _open(request)
        token = open_scope(scope)
        try:
            response = await get_response(request)
            event, client = _wanted_event()
            if client is not None:
                await scope.find_email(client._engine.hooks.failed)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
                _track(request, response, scope, client, event, started_s)
            return _keeping_scope(response, scope)
        finally:
            close_scope(token)
            if scope.unsettled:
                await scope.settle()

    return middleware


def _keeping_scope(response: HttpResponseBase, scope: Scope) -> HttpResponseBase:
    """Open *scope* again while a streamed body is made, which is after the view and the middleware."""
    # A file has no code of the application, and a server may send it by itself.
    if isinstance(response, StreamingHttpResponse) and not isinstance(response, FileResponse):
        content = response.streaming_content
        if isinstance(content, AsyncIterable):
            response.streaming_content = _stream_async(content, scope)
        else:
            response.streaming_content = _stream(content, scope)
    return response


def _stream(content: Iterable[bytes], scope: Scope) -> Iterator[bytes]:
    iterator = iter(content)
    while True:
        token = open_scope(scope)
        try:
            part = next(iterator)
        except StopIteration:
            return
        finally:
            close_scope(token)
            scope.give_up(_NO_LOOP)
        yield part


async def _stream_async(content: AsyncIterable[bytes], scope: Scope) -> AsyncIterator[bytes]:
    iterator = content.__aiter__()
    while True:
        token = open_scope(scope)
        try:
            part = await iterator.__anext__()
        except StopAsyncIteration:
            return
        finally:
            close_scope(token)
            if scope.unsettled:
                await scope.settle()
        yield part


def _is_inside_another(request: HttpRequest) -> bool:
    if not hasattr(request, _ATTRIBUTE):
        return False
    _warn_once("windback.django.WindbackMiddleware is in MIDDLEWARE twice: the second does nothing")
    return True


_warned: Set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        logger.warning(message)


def _open(request: HttpRequest) -> Scope:
    try:
        find = conf.find_customer() or user_email
    except Exception as error:  # noqa: BLE001 - of the user's module; the system check reports it, too
        _warn_once(f"no event has a customer: {error}")
        find = _nobody
    scope = Scope(cast("Callable[[], Optional[str]]", partial(find, request)))
    setattr(request, _ATTRIBUTE, scope)
    return scope


def _nobody(_: HttpRequest) -> None:
    return None


def user_email(request: HttpRequest) -> object:
    """Return the address of the user who is logged in, or an awaitable of it where an event loop runs."""
    if not hasattr(request, "user"):
        return None
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _email_of(request.user)
    return _find_async(request)


async def _find_async(request: HttpRequest) -> Optional[str]:
    find = getattr(request, "auser", None)
    if find is None:  # Django 4.2 has none
        return await sync_to_async(lambda: _email_of(request.user))()
    return _email_of(await find())


def _email_of(user: object) -> Optional[str]:
    email: object = getattr(user, "email", None) if getattr(user, "is_authenticated", False) else None
    return email if isinstance(email, str) else None


def _wanted_event() -> Tuple[str, Optional[Windback]]:
    name = conf.request_event()
    return name or "", None if name is None else conf.get_client_or_none()


def _track(
    request: HttpRequest,
    response: HttpResponseBase,
    scope: Scope,
    client: Windback,
    event: str,
    started_s: float,
) -> None:
    match = request.resolver_match
    if match is not None:
        took_s = clock.now_s() - started_s
        route = "/" + match.route.lstrip("^").rstrip("$")  # of re_path, too
        client._track_request(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            event, scope, took_s, method=request.method, route=route, status=response.status_code
        )
