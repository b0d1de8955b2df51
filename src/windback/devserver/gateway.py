"""The outermost layer: keeps strangers out, reads the body, lets the fault rules have their way, and logs.

Plain ASGI. What comes through to the application has been read whole, so a fault can strike before the
request is processed, after it, or in place of it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Awaitable, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, cast

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import body as bodies
from .assets import PATH as PAGE_PATH
from .connections import Connections
from .errors import ApiError, error_body
from .exchange import Exchange
from .faults import Answer, Drop, Effect, Faults, Hang, Reply, Rule
from .hub import Hub
from .openapi import PATH as SCHEMA_PATH
from .options import BASE_PATH, CONTROL_PATH, PLAIN_PATH
from .origin import Guard, is_json
from .request_log import Journal
from .waits import Waits

#: The key of the scope under which the application finds the exchange.
SCOPE_KEY = "windback.exchange"

#: Whole paths beside the API.
_BESIDE = frozenset({"/", SCHEMA_PATH, PLAIN_PATH})

#: How a pause ended: by itself, because its rule is not in force any more, or because the server stops.
_OVER, _ENDED, _STOPPING = "over", "ended", "stopping"

#: Most pieces that an answer drips in.
_MOST_DROPS = 100

_JSON = {"content-type": "application/json"}


class Gateway:
    """ASGI application around *app*.

    *on_done* is called for each request to the API when it is over (None: nothing is called).
    """

    def __init__(
        self,
        app: ASGIApp,
        journal: Journal,
        faults: Faults,
        connections: Connections,
        waits: Waits,
        hub: Hub,
        guard: Guard,
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
        self._hub = hub
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if _is_beside(scope["path"]):
            await self._beside(scope, receive, send)
            return
        exchange = self._journal.start(
            scope["method"], scope["path"], scope["query_string"], scope["headers"]
        )
        scope[SCOPE_KEY] = exchange
        try:
            exchange.body, exchange.body_bytes, stayed = await bodies.read(receive, self._max_body_bytes)
            if exchange.body is None:
                exchange.body_state = "too_large" if stayed else "incomplete"
            self._journal.read(exchange)
            if stayed:
                await self._handle(_Link(exchange, scope, receive, send))
        finally:
            self._journal.finish(exchange)
            self._hub.touch()
            if self._on_done is not None:
                self._on_done(exchange)

    async def _beside(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The page, the document and the control plane."""
        headers = _headers(scope)
        refusal = self._guard.refusal(headers, scope["path"])
        if refusal is None and scope["method"] in ("POST", "PUT", "PATCH") and not is_json(headers):
            refusal = ApiError(415, "UNSUPPORTED_MEDIA_TYPE", "the content type must be application/json")
        if refusal is not None:
            await _refused(refusal)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if scope["method"] != "GET":
                self._hub.touch()

    async def _handle(self, link: _Link) -> None:
        exchange = link.exchange
        refusal = self._guard.refusal(exchange.headers, exchange.path)
        if refusal is not None:
            exchange.reason = refusal.code
            await _refused(refusal)(link.scope, link.receive, link.answer)
            return
        if "origin" in exchange.headers:
            preflight = self._guard.preflight(exchange.method, exchange.headers, exchange.path)
            if preflight is not None:
                await Response(status_code=204, headers=preflight)(link.scope, link.receive, link.answer)
                return
            link = link.shared(self._guard.cors_headers(exchange.headers, exchange.path))
        effect, rule = await self._struck(exchange) if self._faults.rules else (None, None)
        if self._journal.has_forgotten(exchange):  # a slowed one must not fill the store that a reset emptied
            effect = Drop(after=False)
        if isinstance(effect, Hang) and rule is not None:
            outcome = await self._pause(rule, link.gone())
            if outcome == _OVER:
                exchange.events = exchange.count_carried()
                return
            effect = None if outcome == _ENDED else Drop(after=False)
        await self._answer(link, effect)

    async def _struck(self, exchange: Exchange) -> Tuple[Optional[Effect], Optional[Rule]]:
        """What the fault rules do to a request, after the delays that they make it wait for."""
        decision = self._faults.decide(_Probe(exchange), time.monotonic())
        exchange.fault = decision.label
        exchange.rule = decision.rule.id if decision.rule is not None else None
        for rule, delay_s in decision.delays:
            if await self._pause(rule, asyncio.sleep(delay_s)) == _STOPPING:
                return Drop(after=False), decision.rule
        ended = decision.rule is not None and not decision.rule.in_force
        return None if ended else decision.effect, decision.rule

    async def _pause(self, rule: Rule, what: Awaitable[None]) -> str:
        """Wait for *what*, but not longer than *rule* is in force."""
        waiting = asyncio.ensure_future(what)
        rule.waiting.add(waiting)
        if not rule.in_force:
            waiting.cancel()
        try:
            return _OVER if await self._waits.wait(waiting) else _STOPPING
        except asyncio.CancelledError:
            if rule.in_force:
                raise
            return _ENDED
        finally:
            rule.waiting.discard(waiting)

    async def _answer(self, link: _Link, effect: Optional[Effect]) -> None:
        exchange = link.exchange
        if effect is None:
            await self._app(link.scope, link.receive, link.answer)
        elif isinstance(effect, Reply):
            exchange.events = exchange.count_carried()
            await link.respond(effect)
        elif isinstance(effect, Answer):
            whole: List[Message] = []
            await self._app(link.scope, link.receive, _into(whole))
            await self._spoil(link, effect, whole)
        elif isinstance(effect, Drop) and effect.after:
            exchange.is_lost = True
            await self._app(link.scope, link.receive, _swallow)
            await self._drop(link)
        else:
            exchange.events = exchange.count_carried()
            await self._drop(link)

    async def _spoil(self, link: _Link, how: Answer, whole: Sequence[Message]) -> None:
        """Send an answer that is truncated, not JSON, or slow."""
        start, body = whole[0], b"".join(cast("bytes", each.get("body", b"")) for each in whole[1:])
        if not body:
            for message in whole:
                await link.answer(message)
            return
        if how.spoilt == "malformed":
            body = body[: len(body) // 2].ljust(len(body))
        await link.answer(start)
        if how.spoilt == "truncated":
            await link.answer(
                {"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True}
            )
            await self._drop(link)
            return
        size = -(-len(body) // _MOST_DROPS) if how.drip_s else len(body)
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        for piece in pieces:
            if how.drip_s and not await self._waits.sleep(how.drip_s / len(pieces)):
                await self._drop(link)
                return
            await link.answer({"type": "http.response.body", "body": piece, "more_body": True})
        await link.answer({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drop(self, link: _Link) -> None:
        self._connections.abort(tuple(link.scope["client"]))
        # uvicorn answers 500 for an application that returns without an answer while the client is there.
        await link.gone()


class _Probe:
    """What the fault rules see of a request; its events are read only if they ask for them."""

    def __init__(self, exchange: Exchange) -> None:
        self.method = exchange.method
        self.path = _below_base(exchange.path)
        self.inbox = exchange.inbox
        self.body_bytes = exchange.body_bytes
        self.request_id = exchange.request_id
        self._exchange = exchange

    @property
    def is_gzip(self) -> bool:
        """Whether the body is compressed, by its header."""
        return self._exchange.headers.get("content-encoding", "").strip().lower() == "gzip"

    @property
    def names(self) -> Sequence[str]:
        """The events in the body."""
        return self._exchange.event_names


class _Link(NamedTuple):
    """A request and the way back to its client."""

    exchange: Exchange
    scope: Scope
    receive: Receive
    send: Send
    #: Headers for an answer that goes to a page of another origin.
    extra: Tuple[Tuple[bytes, bytes], ...] = ()

    def shared(self, headers: Mapping[str, str]) -> _Link:
        """The same with these headers for the answer."""
        return self._replace(extra=tuple((name.encode(), value.encode()) for name, value in headers.items()))

    async def answer(self, message: Message) -> None:
        """Send on what the application answers, and note it."""
        if message["type"] == "http.response.start":
            self.exchange.status = message["status"]
            message["headers"].append((b"x-request-id", self.exchange.request_id.encode()))
            if self.extra:
                message["headers"].extend(self.extra)
            self.exchange.answer_headers = message["headers"]
        elif message.get("body"):
            self.exchange.answer_chunks.append(message["body"])
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


def _into(whole: List[Message]) -> Send:
    async def keep(message: Message) -> None:
        whole.append(message)

    return keep


def _refused(refusal: ApiError) -> Response:
    return Response(error_body(refusal.code, refusal.message), refusal.status, _JSON)


def _headers(scope: Scope) -> Dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _is_beside(path: str) -> bool:
    """Whether a path is one of the page, the document or the control plane, which no fault touches."""
    return path in _BESIDE or path.startswith((CONTROL_PATH + "/", PAGE_PATH + "/"))


def _below_base(path: str) -> str:
    return path[len(BASE_PATH) :] if path.startswith(BASE_PATH + "/") else path
