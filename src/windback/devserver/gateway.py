"""The outermost layer: reads the body, lets the fault rules have their way, logs, guards the control plane.

Plain ASGI. What comes through to the application has been read whole, so a fault can strike before the
request is processed, after it, or in place of it.
"""

from __future__ import annotations

import time
from typing import Callable, Dict, NamedTuple, Optional, Union

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import body as bodies
from .assets import PATH as PAGE_PATH
from .connections import Connections
from .errors import ApiError, error_body
from .exchange import Exchange, Journal
from .faults import Drop, Faults, Hang, Reply
from .openapi import PATH as SCHEMA_PATH
from .options import BASE_PATH, CONTROL_PATH, is_loopback
from .validation import count_events
from .waits import Waits

#: The key of the scope under which the application finds the exchange.
SCOPE_KEY = "windback.exchange"

#: Whole paths beside the API.
_BESIDE = frozenset({"/", SCHEMA_PATH})


class Gateway:
    """ASGI application around *app*.

    *on_done* is told of each request to the API when it is over (None: nobody is).
    """

    def __init__(
        self,
        app: ASGIApp,
        journal: Journal,
        faults: Faults,
        connections: Connections,
        waits: Waits,
        *,
        max_body_bytes: int,
        on_done: Optional[Callable[[Exchange], None]] = None,
    ) -> None:
        self._app = app
        self._journal = journal
        self._faults = faults
        self._connections = connections
        self._max_body_bytes = max_body_bytes
        self._on_done = on_done
        self._waits = waits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if _is_beside(scope["path"]):
            await self._control(scope, receive, send)
            return
        exchange = self._journal.start(scope["method"], scope["path"], scope["headers"])
        scope[SCOPE_KEY] = exchange
        try:
            exchange.body, exchange.body_bytes, stayed = await bodies.read(receive, self._max_body_bytes)
            if stayed:
                await self._handle(_Link(exchange, scope, receive, send))
        finally:
            self._journal.finish(exchange)
            if self._on_done is not None:
                self._on_done(exchange)

    async def _control(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A page on the web can make a browser send requests to this machine, but not with a Host like that.
        if is_loopback(_host_name(Headers(scope=scope).get("host", ""))):
            await self._app(scope, receive, send)
        else:
            body = error_body("FORBIDDEN", "the control plane answers to a loopback Host header only")
            await Response(body, 403, {"content-type": "application/json"})(scope, receive, send)

    async def _handle(self, link: _Link) -> None:
        exchange = link.exchange
        effect: Union[Reply, Drop, Hang, None] = None
        if self._faults.rules:
            decision = self._faults.decide(exchange.method, _below_base(exchange.path), time.monotonic())
            exchange.fault = decision.label
            effect = decision.effect
            if decision.latency_s and not await self._waits.sleep(decision.latency_s):
                effect = Drop(after=False)
        if self._journal.has_forgotten(exchange):  # a slowed one must not fill the store that a reset emptied
            effect = Drop(after=False)
        if effect is None:
            await self._app(link.scope, link.receive, link.answer)
        elif isinstance(effect, Drop) and effect.after:
            await self._app(link.scope, link.receive, _swallow)
            await self._drop(link)
        else:
            exchange.events = _carried_events(exchange, self._max_body_bytes)
            if isinstance(effect, Reply):
                await link.respond(effect)
            elif isinstance(effect, Drop) or not await self._waits.wait(link.gone()):
                await self._drop(link)

    async def _drop(self, link: _Link) -> None:
        self._connections.abort(tuple(link.scope["client"]))
        # uvicorn answers 500 for an application that returns without an answer while the client is there.
        await link.gone()


class _Link(NamedTuple):
    """A request and the way back to its client."""

    exchange: Exchange
    scope: Scope
    receive: Receive
    send: Send

    async def answer(self, message: Message) -> None:
        """Send on what the application answers, and note its status."""
        if message["type"] == "http.response.start":
            self.exchange.status = message["status"]
            message["headers"].append((b"x-request-id", self.exchange.request_id.encode()))
        await self.send(message)

    async def respond(self, reply: Reply) -> None:
        """Answer in place of the application."""
        headers: Dict[str, str] = dict(reply.headers)
        body = b"" if reply.status in (204, 205, 304) else reply.body
        await Response(body, reply.status, headers)(self.scope, self.receive, self.answer)

    async def gone(self) -> None:
        """Wait until the connection is lost."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


async def _swallow(message: Message) -> None:
    """Send nothing."""


def _is_beside(path: str) -> bool:
    """Whether a path is one of the page, the document or the control plane, which no fault touches."""
    return path in _BESIDE or path.startswith((CONTROL_PATH + "/", PAGE_PATH + "/"))


def _below_base(path: str) -> str:
    return path[len(BASE_PATH) :] if path.startswith(BASE_PATH + "/") else path


def _carried_events(exchange: Exchange, limit: int) -> int:
    """How much was in a request that the application never saw, for the log."""
    if not exchange.is_track:
        return 0
    try:
        plain = bodies.decode(exchange.body, exchange.headers, limit=limit, gzip="accept")
        return count_events(bodies.parse(plain, exchange.headers))
    except ApiError:
        return 0  # a body that cannot be read


def _host_name(host: str) -> str:
    """A Host header without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
