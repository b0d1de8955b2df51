"""The Starlette application: paths, keys, idempotency; and all parts put together."""

from __future__ import annotations

import hashlib
import time
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Union, cast

import orjson
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from . import assets, openapi, routes
from . import body as bodies
from .connections import Connections
from .control import Control
from .errors import ApiError, error_body, expired, invalid
from .exchange import Exchange
from .export import Export
from .faults import Faults
from .gateway import SCOPE_KEY, Gateway
from .hub import Hub
from .inbox import Inbox
from .labels import api_key
from .limits import Limits
from .options import BASE_PATH, Options
from .origin import Guard
from .plain import Plain
from .request_log import KEPT_BODIES, Journal
from .routes import Answer, Call, Handler, Later
from .store import Store, StoredAnswer
from .stream import Watch
from .validation import is_idempotency_key
from .views import Views
from .waits import Waits
from .webhooks import Webhooks

_JSON = {"content-type": "application/json"}


class Endpoint(NamedTuple):
    """A handler and how it is called."""

    handler: Handler
    #: Whether a public key will do.
    public: bool = False
    #: Whether the request has a JSON body.
    has_body: bool = True
    #: Whether it changes anything, so that an Idempotency-Key counts and a transaction is needed.
    writes: bool = True


_READ = {"has_body": False, "writes": False}
_CHURN = "/projects/{slug}/churn-events"
_PATHS: Dict[str, Dict[str, Endpoint]] = {
    "/track": {"POST": Endpoint(routes.track)},
    _CHURN: {
        "POST": Endpoint(routes.create_churn_event),
        "GET": Endpoint(routes.list_churn_events, **_READ),
    },
    _CHURN + "/{id}": {"GET": Endpoint(routes.get_churn_event, **_READ)},
    _CHURN + "/{id}/cancel-reason": {"PATCH": Endpoint(routes.set_cancel_reason)},
    _CHURN + "/{id}/recovered": {"POST": Endpoint(routes.mark_recovered, has_body=False)},
    _CHURN + "/{id}/generate": {"POST": Endpoint(routes.generate_variants, has_body=False)},
    _CHURN + "/{id}/variants": {"GET": Endpoint(routes.list_variants, **_READ)},
    _CHURN + "/{id}/variants/{vid}": {"PATCH": Endpoint(routes.update_variant)},
    _CHURN + "/{id}/variants/{vid}/send": {"POST": Endpoint(routes.send_variant, has_body=False)},
    "/projects/{slug}/stats": {"GET": Endpoint(routes.get_stats, **_READ)},
    "/projects/{slug}/recovery-templates": {
        "POST": Endpoint(routes.create_template),
        "GET": Endpoint(routes.list_templates, **_READ),
    },
    "/projects/{slug}/recovery-templates/{id}": {
        "GET": Endpoint(routes.get_template, **_READ),
        "PUT": Endpoint(routes.update_template),
        "DELETE": Endpoint(routes.delete_template, has_body=False),
    },
    "/cancel-flow/submit": {"POST": Endpoint(routes.submit_cancel_flow, public=True)},
    "/cancel-flow/offers": {"GET": Endpoint(routes.get_offer, public=True, **_READ)},
    "/cancel-flow/accept-offer": {"POST": Endpoint(routes.accept_offer, public=True)},
}


class Resource:
    """ASGI application for one path: the endpoint of each method."""

    def __init__(
        self, endpoints: Dict[str, Endpoint], store: Store, options: Options, waits: Waits, limits: Limits
    ) -> None:
        self._endpoints = endpoints
        self._store = store
        self._options = options
        self._waits = waits
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; `ApiError` goes up to the application's handler."""
        exchange: Exchange = scope[SCOPE_KEY]
        # Starlette lets HEAD through where there is GET; the protocol leaves the body out.
        endpoint = self._endpoints["GET" if scope["method"] == "HEAD" else scope["method"]]
        answer = self._answer(endpoint, exchange, scope)
        if isinstance(answer, Later):
            if not await self._waits.sleep(answer.delay_s):
                raise ApiError(503, "STOPPING", "the server is being stopped")
            answer = self._answer(endpoint, exchange, scope, resumed=True)
            assert isinstance(answer, Answer)
        await Response(answer.body, answer.status, _JSON if answer.body else None)(scope, receive, send)

    def _answer(
        self, endpoint: Endpoint, exchange: Exchange, scope: Scope, *, resumed: bool = False
    ) -> Union[Answer, Later]:
        key = self._checked_key(exchange, public=endpoint.public)
        # A request that goes on was counted when it came.
        if self._options.rate_limits and not resumed:
            self._count(key, exchange, public=endpoint.public)
        body: bytes = b""
        value: object = None
        if endpoint.has_body:
            options = self._options
            body = bodies.decode(
                exchange.body, exchange.headers, limit=options.max_body_bytes, gzip=options.gzip
            )
            value = bodies.parse(body, exchange.headers)
        query: Mapping[str, str] = QueryParams(scope["query_string"])
        call = Call(
            store=self._store,
            options=self._options,
            exchange=exchange,
            params=scope["path_params"],
            query=query,
            body=value,
            now=time.time(),
            resumed=resumed,
            expired=key in self._options.expired_keys,
        )
        if not endpoint.writes:
            return endpoint.handler(call)
        with self._store.transaction():
            return self._once(endpoint.handler, call, body, key)

    def _checked_key(self, exchange: Exchange, *, public: bool) -> str:
        # The docs-tree page "Cancel Flow" shows the public key as a bearer token.
        key = api_key(exchange.headers) if public else exchange.headers.get("x-api-key", "")
        taken = self._options.keys
        known = key.startswith(("sk_", "pub_")) and (
            not taken or key in taken or key in self._options.expired_keys
        )
        if not known:
            raise ApiError(
                401, "INVALID_API_KEY", "invalid API key" if key else "the X-API-Key header is missing"
            )
        if public:
            return key
        if not key.startswith("sk_"):
            raise ApiError(403, "FORBIDDEN", "this endpoint needs a secret key (sk_)")
        if key in self._options.expired_keys:
            raise expired()
        return key

    def _count(self, key: str, exchange: Exchange, *, public: bool) -> None:
        if public:
            self._limits.take_cancel_flow(key, time.monotonic())
        elif not exchange.is_track:
            self._limits.take(key, time.monotonic())

    def _once(self, handler: Handler, call: Call, body: bytes, api_key: str) -> Union[Answer, Later]:
        """Run *handler* once for an Idempotency-Key: with the same body, the first answer is given again.

        Only answers of requests that were taken are kept: a refused one changed nothing and may be tried
        again. Raises `ApiError` 409 for a key that was seen with another body.
        """
        exchange = call.exchange
        key = exchange.headers.get("idempotency-key")
        if key is None:
            return handler(call)
        if not is_idempotency_key(key):
            raise invalid("Idempotency-Key: must have 1 to 255 visible ASCII characters")
        account = hashlib.sha256(api_key.encode()).hexdigest()[:16]
        scope = f"{exchange.method} {exchange.path} {account}"
        fingerprint = hashlib.sha256(body).digest()
        stored = call.store.answer_for(scope, key)
        if stored is None:
            answer = handler(call)
            if isinstance(answer, Answer):
                call.store.keep_answer(scope, key, StoredAnswer(fingerprint, *answer, exchange.events))
            return answer
        if stored.fingerprint != fingerprint:
            raise ApiError(409, "IDEMPOTENCY_CONFLICT", "this Idempotency-Key was used with another body")
        exchange.duplicate = True
        exchange.events = stored.events
        return Answer(stored.status, stored.body)


class Parts(NamedTuple):
    """What the application is made of, and what outlives a request."""

    options: Options
    store: Store
    connections: Connections
    waits: Waits
    webhooks: Webhooks
    hub: Hub
    #: The answer to `GET /_dev/health`; filled once the server listens.
    about: Dict[str, object]


def build_app(parts: Parts, on_done: Optional[Callable[[Exchange], None]] = None) -> Gateway:
    """The whole server as one ASGI application."""
    options, store, waits, hub = parts.options, parts.store, parts.waits, parts.hub
    kept_bodies = KEPT_BODIES if options.keep_bytes is None else options.keep_bytes // 4
    journal = Journal(store.tracked.last_request + 1, kept_bodies)
    journal.remember(store.tracked.minutes())
    faults = Faults()
    limits = Limits()
    api: List[Route] = []
    for path, endpoints in _PATHS.items():
        api.append(
            Route(
                BASE_PATH + path, Resource(endpoints, store, options, waits, limits), methods=list(endpoints)
            )
        )
    schema = orjson.dumps(openapi.document(strict=options.strict))

    async def show_schema(_: Request) -> Response:
        return Response(schema, headers=_JSON)

    control = Control(store, journal, faults, limits, parts.webhooks)
    watch = Watch(
        store, journal, faults, hub, waits, parts.connections, counts=control.counts, about=parts.about
    )
    inbox = Inbox(watch, options)
    app = Starlette(
        routes=[
            *api,
            Route(openapi.PATH, show_schema),
            *Plain(store.tracked).routes(),
            *assets.routes(),
            *control.routes(),
            *inbox.routes(),
            *Export(store.tracked).routes(),
            *Views(store, journal, waits, hub, options).routes(),
        ],
        exception_handlers={ApiError: _refuse, HTTPException: _no_route},
    )
    app.router.redirect_slashes = False
    inbox.api = Gateway(
        app,
        journal,
        faults,
        parts.connections,
        waits,
        hub,
        Guard(options),
        max_body_bytes=options.max_body_bytes,
        on_done=on_done,
    )
    return inbox.api


async def _refuse(request: Request, error: Exception) -> Response:
    refusal = cast("ApiError", error)
    exchange: Optional[Exchange] = request.scope.get(SCOPE_KEY)
    if exchange is not None:
        exchange.reason = refusal.code
    body = error_body(refusal.code, refusal.message, refusal.extra)
    return Response(body, refusal.status, {**_JSON, **refusal.headers})


_CODES = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}


async def _no_route(request: Request, error: Exception) -> Response:
    missing = cast("HTTPException", error)
    code = _CODES.get(missing.status_code, "ERROR")
    exchange: Optional[Exchange] = request.scope.get(SCOPE_KEY)
    if exchange is not None:
        exchange.reason = code
    body = error_body(code, missing.detail.lower())
    return Response(body, missing.status_code, {**_JSON, **(missing.headers or {})})
