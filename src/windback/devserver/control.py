"""The control plane under `/_dev`: what arrived, and faults on demand. The gateway keeps other hosts out."""

from __future__ import annotations

from typing import List

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .errors import ApiError
from .exchange import KEPT_REQUESTS, Journal
from .faults import Faults
from .options import CONTROL_PATH
from .routes import MAX_OFFSET, number
from .store import Store

#: Most events in one answer of `GET /_dev/events`.
MAX_EVENTS = 10_000


def control_routes(store: Store, journal: Journal, faults: Faults) -> List[Route]:
    """The routes, bound to the parts that they show and change."""

    async def counts(_: Request) -> Response:
        return _json({**journal.counts(), **store.counts()})

    async def distinct(_: Request) -> Response:
        return _json({"distinct_events": store.distinct_events()})

    async def events(request: Request) -> Response:
        limit = number(request.query_params, "limit", 1, MAX_EVENTS, 100)
        offset = number(request.query_params, "offset", 0, MAX_OFFSET, 0)
        return _json(
            {
                "data": store.events(limit, offset),
                "total": store.event_count,
                "limit": limit,
                "offset": offset,
            }
        )

    async def requests(request: Request) -> Response:
        limit = number(request.query_params, "limit", 1, KEPT_REQUESTS, 100)
        return _json({"data": [exchange.describe() for exchange in list(journal.recent)[-limit:]]})

    async def reset(_: Request) -> Response:
        store.reset()
        journal.reset()
        faults.clear()
        return Response(status_code=204)

    async def rules(request: Request) -> Response:
        if request.method == "DELETE":
            faults.clear()
        elif request.method == "PUT":
            try:
                specs: object = orjson.loads(await request.body())
            except orjson.JSONDecodeError as error:
                raise ApiError(400, "INVALID_JSON", f"body is not valid JSON: {error}") from None
            faults.replace(specs)
        return _json({"data": [rule.describe() for rule in faults.rules]})

    return [
        Route(CONTROL_PATH + "/counts", counts),
        Route(CONTROL_PATH + "/distinct", distinct),
        Route(CONTROL_PATH + "/events", events),
        Route(CONTROL_PATH + "/requests", requests),
        Route(CONTROL_PATH + "/reset", reset, methods=["POST"]),
        Route(CONTROL_PATH + "/faults", rules, methods=["GET", "PUT", "DELETE"]),
    ]


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
