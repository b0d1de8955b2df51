"""Middleware for any ASGI application: delivers events at shutdown, and opens a scope for each request.

    from windback.asgi import WindbackMiddleware
    app.add_middleware(WindbackMiddleware)

An ASGI server such as uvicorn ends its process by the signal that it received, so no exit handler runs. The
middleware therefore delivers the queue when the server sends "shutdown", before the application answers.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import (
    Awaitable,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    MutableMapping,
    Optional,
    Pattern,
    Protocol,
    Sequence,
    Tuple,
    Union,
)

from . import clock
from .client import AsyncWindback, Windback
from .context import Scope, close_scope, current, open_scope
from .default import client_or_none
from .errors import ConfigurationError
from .event.encode import Properties, Timestamp
from .options import naming_options
from .process import lifecycle

logger = logging.getLogger("windback")

#: As in asgiref and Starlette, which are not needed here.
ASGIScope = MutableMapping[str, object]
Message = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[ASGIScope, Receive, Send], Awaitable[None]]

#: Finds the customer of a request; sync or async.
FindCustomer = Callable[[ASGIScope], Union[str, Awaitable[Optional[str]], None]]

#: The key of a request's scope in that of ASGI.
KEY = "windback"


class WindbackMiddleware:
    """Delivers queued events at shutdown, and opens a scope for each request; see `windback.context`.

    At shutdown all clients of the process are flushed, after the application's own shutdown code. They
    are not closed: a server may start the application again in the same process.

    Args:
        app: The application.
        client: For `request_event` and `windback.fastapi.Track`. None: `windback.get_client()`.
        customer: Gets the ASGI scope and returns the customer's address, or None for nobody. Sync or async.
            The first event of a request calls it, once. An async one is awaited after the response was sent.
        request_event: Track an event of this name for each HTTP request that has a customer, with method,
            route (the template, such as "/items/{id}"), status and duration_ms. Never with path, query,
            headers or body. None: no such events.
        exclude: Paths whose requests make no such event. A "*" at the end matches anything.
        flush_timeout: Seconds that delivery may take at shutdown. None: each client's shutdown_timeout.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    @naming_options
    def __init__(
        self,
        app: ASGIApp,
        client: Union[Windback, AsyncWindback, None] = None,
        *,
        customer: Optional[FindCustomer] = None,
        request_event: Optional[str] = None,
        exclude: Sequence[str] = (),
        flush_timeout: Optional[float] = None,
    ) -> None:
        self._app = app
        self._client = client
        self._customer = customer
        self._request_event = request_event
        self._exact = frozenset(path for path in exclude if not path.endswith("*"))
        self._prefixes = tuple(path[:-1] for path in exclude if path.endswith("*"))
        self._flush_timeout = flush_timeout
        self._warned_of_twice = False
        self._check()

    def _check(self) -> None:
        if self._client is not None and not isinstance(self._client, (Windback, AsyncWindback)):
            raise ConfigurationError(
                f"client must be a Windback or an AsyncWindback, not {type(self._client).__name__}"
            )
        if self._customer is not None and not callable(self._customer):
            raise ConfigurationError("customer must be a function that gets the ASGI scope")
        name: object = self._request_event
        if name is not None and (not isinstance(name, str) or not name):
            raise ConfigurationError("request_event must be the name of the event")
        if self._flush_timeout is not None and self._flush_timeout < 0:
            raise ConfigurationError(
                f"flush_timeout is in seconds and not negative, not {self._flush_timeout}"
            )

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Handle one connection, or the lifespan of the application.

        Args:
            scope: The ASGI scope.
            receive: Returns the next message of the server.
            send: Sends a message to the server.
        """
        kind = scope["type"]
        if KEY in scope:
            self._warn_of_twice()
            await self._app(scope, receive, send)
        elif kind == "http" or kind == "websocket":  # noqa: PLR1714 - faster than making a tuple
            customer = None if self._customer is None else partial(self._customer, scope)
            opened = scope[KEY] = Scope(customer, client=self._client)
            token = open_scope(opened)
            try:
                if customer is not None:
                    receive, send = _settling(opened, receive, send)
                if self._request_event is None or kind != "http" or self._is_excluded(scope):
                    await self._app(scope, receive, send)
                else:
                    await self._watch(scope, opened, receive, send)
            finally:
                close_scope(token)
                if opened.unsettled:
                    await opened.settle()
        elif kind == "lifespan":
            scope[KEY] = True
            await self._lifespan(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _warn_of_twice(self) -> None:
        if not self._warned_of_twice:
            self._warned_of_twice = True
            logger.warning(
                "WindbackMiddleware is installed twice around one application: the inner one does nothing"
            )

    # -- lifespan ------------------------------------------------------------------------------

    async def _lifespan(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Pass messages on, and flush before the answer to "shutdown"; give missing answers ourselves."""
        received: List[object] = []
        sent: List[object] = []

        async def receive_noting() -> Message:
            message = await receive()
            received.append(message["type"])
            return message

        async def flush_and_send(message: Message) -> None:
            sent.append(message["type"])
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self._flush()
            await send(message)

        try:
            await self._app(scope, receive_noting, flush_and_send)
        except Exception:
            if received or sent:
                raise
            # It does not support lifespan, such as Django's. By the protocol it raises at the first message.
        if "lifespan.startup.failed" not in sent:
            await _finish_lifespan(received, sent, receive_noting, flush_and_send)

    async def _flush(self) -> None:
        try:
            left = await lifecycle.flush_all_async(self._flush_timeout)
        except Exception:  # the shutdown of the application goes on
            logger.warning("delivery at shutdown failed", exc_info=True)
            return
        if left:
            logger.warning("%s not delivered when the application was shut down", lifecycle.events_were(left))

    # -- events of requests --------------------------------------------------------------------

    def _is_excluded(self, scope: ASGIScope) -> bool:
        path = str(scope["path"])
        return path in self._exact or path.startswith(self._prefixes)

    async def _watch(self, scope: ASGIScope, opened: Scope, receive: Receive, send: Send) -> None:
        started_s = clock.now_s()
        statuses: List[object] = []

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_noting)
        except Exception:
            statuses.append(500)
            raise
        finally:
            if statuses:
                await self._track_request(scope, opened, statuses[-1], clock.now_s() - started_s)

    async def _track_request(self, scope: ASGIScope, opened: Scope, status: object, took_s: float) -> None:
        route = route_template(scope)
        client = self._client or client_or_none()
        if route is None or client is None or self._request_event is None:
            return
        await opened.find_email(client._engine.hooks.failed)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # a part of the client, in effect
        client._track_request(  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            self._request_event, opened, took_s, method=scope["method"], route=route, status=status
        )


async def _finish_lifespan(received: List[object], sent: List[object], receive: Receive, send: Send) -> None:
    """Complete the lifespan protocol where the application left out a step."""
    if "lifespan.startup.complete" not in sent:
        if "lifespan.startup" not in received:
            await receive()
        await send({"type": "lifespan.startup.complete"})
    if not {"lifespan.shutdown.complete", "lifespan.shutdown.failed"} & set(sent):
        if "lifespan.shutdown" not in received:
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def _settling(opened: Scope, receive: Receive, send: Send) -> Tuple[Receive, Send]:
    """Await the address that events wait for, between messages: a connection may last for hours."""

    async def settle_and_receive() -> Message:
        if opened.unsettled:
            await opened.settle()
        return await receive()

    async def send_and_settle(message: Message) -> None:
        await send(message)
        if opened.unsettled and message["type"] == "http.response.body":
            await opened.settle()

    return settle_and_receive, send_and_settle


class Tracker:
    """`track` of the current request, as a function that sync and async code calls alike."""

    def __init__(self, client: Union[Windback, AsyncWindback, None] = None) -> None:
        self._client = client

    def __call__(
        self,
        event: str,
        properties: Optional[Properties] = None,
        *,
        timestamp: Optional[Timestamp] = None,
    ) -> bool:
        """Queue something that the customer of this request did; see `Windback.track`.

        Args:
            event: See `Windback.track_event`.
            properties: See `Windback.track_event`.
            timestamp: See `Windback.track_event`.

        Returns:
            Whether the event was accepted.

        Raises:
            InvalidEventError: The event can't be sent.
        """
        client = self._client
        if client is None:
            scope = current()
            given = None if scope is None else scope.client
            client = given if isinstance(given, (Windback, AsyncWindback)) else client_or_none()
        if client is None:
            return False
        if isinstance(client, Windback):
            return client.track(event, properties, timestamp=timestamp)
        return client._track_now(event, properties, timestamp)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # for this


# -- the template of a route -----------------------------------------------------------------------


class _Convertor(Protocol):
    def convert(self, value: str) -> object: ...


class _Route(Protocol):
    """What routes of Starlette and FastAPI have."""

    path_format: str
    path_regex: Pattern[str]
    param_convertors: Mapping[str, _Convertor]


def route_template(scope: ASGIScope) -> Optional[str]:
    """Return the route of a request that Starlette or FastAPI has handled, with the prefixes of its mounts.

    Args:
        scope: The ASGI scope after the request.

    Returns:
        The template. None if no route matched, and if a part of the path may be a parameter: the
        value of a parameter must not get into the name of a route.
    """
    path, parameters = scope.get("path"), scope.get("path_params")
    if not isinstance(path, str) or not isinstance(parameters, Mapping):
        return None
    for route in _routes(scope):
        for start, letter in enumerate(path):
            if letter != "/":
                continue
            own = _match(route, path[start:], parameters)
            if own is not None:
                rest = {name: str(value) for name, value in parameters.items() if name not in own}
                prefix = _prefix_template(path[:start], rest)
                return None if prefix is None else prefix + route.path_format
    return None


def _routes(scope: ASGIScope) -> Iterator[_Route]:
    route = scope.get("route")
    if route is not None:
        if hasattr(route, "path_regex") and hasattr(route, "endpoint"):
            yield route  # type: ignore[misc]  # it looks like one
        return
    # Starlette before 1.0 has only the endpoint.
    endpoint = scope.get("endpoint")
    waiting = list(getattr(scope.get("app"), "routes", ())) if endpoint is not None else []
    while waiting:
        each = waiting.pop()
        waiting += getattr(each, "routes", ())
        if getattr(each, "endpoint", None) is endpoint and hasattr(each, "path_regex"):
            yield each


def _match(route: _Route, path: str, parameters: Mapping[str, object]) -> Optional[Dict[str, str]]:
    """Return the route's own parameters if *path* is its part of the path, with these values."""
    match = route.path_regex.match(path)
    if match is None:
        return None
    own = match.groupdict()
    for name, text in own.items():
        if name not in parameters or route.param_convertors[name].convert(text) != parameters[name]:
            return None
    return own


def _prefix_template(prefix: str, parameters: Dict[str, str]) -> Optional[str]:
    """Return *prefix* with names in place of the parameters' values; None unless all of them are found."""
    left = dict(parameters)
    parts = []
    for part in prefix.split("/"):
        name = next((name for name, value in left.items() if value == part), None)
        if name is not None:
            del left[name]
        parts.append(part if name is None else f"{{{name}}}")
    return None if left else "/".join(parts)
