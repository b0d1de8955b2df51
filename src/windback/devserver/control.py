"""The control plane under `/_dev`: what arrived, and faults on demand. The gateway keeps other hosts out."""

from __future__ import annotations

import time
from typing import List

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .errors import ApiError, bad_state, not_found
from .exchange import KEPT_REQUESTS, Journal
from .faults import Faults
from .limits import Limits
from .options import CONTROL_PATH
from .routes import FINAL_STATUSES, MAX_OFFSET, number
from .store import Store
from .validation import alert_fields, configured_offers
from .webhooks import Webhooks

#: Most events in one answer of `GET /_dev/events`.
MAX_EVENTS = 10_000


class Control:
    """The endpoints, and the parts of the server that they show and change."""

    def __init__(
        self, store: Store, journal: Journal, faults: Faults, limits: Limits, webhooks: Webhooks
    ) -> None:
        self._store = store
        self._journal = journal
        self._faults = faults
        self._limits = limits
        self._webhooks = webhooks

    def routes(self) -> List[Route]:
        """All of them, for Starlette."""
        return [
            Route(CONTROL_PATH + "/counts", self._counts),
            Route(CONTROL_PATH + "/distinct", self._distinct),
            Route(CONTROL_PATH + "/events", self._events),
            Route(CONTROL_PATH + "/requests", self._requests),
            Route(CONTROL_PATH + "/churn-events/{id}/lost", self._lost, methods=["POST"]),
            Route(CONTROL_PATH + "/offers", self._offers, methods=["GET", "PUT"]),
            Route(CONTROL_PATH + "/webhooks", self._alerts, methods=["GET", "POST"]),
            Route(CONTROL_PATH + "/reset", self._reset, methods=["POST"]),
            Route(CONTROL_PATH + "/faults", self._rules, methods=["GET", "PUT", "DELETE"]),
        ]

    async def _counts(self, _: Request) -> Response:
        return _json({**self._journal.counts(), **self._store.counts()})

    async def _distinct(self, _: Request) -> Response:
        return _json({"distinct_events": self._store.distinct_events()})

    async def _events(self, request: Request) -> Response:
        limit = number(request.query_params, "limit", 1, MAX_EVENTS, 100)
        offset = number(request.query_params, "offset", 0, MAX_OFFSET, 0)
        return _json(
            {
                "data": self._store.events(limit, offset),
                "total": self._store.event_count,
                "limit": limit,
                "offset": offset,
            }
        )

    async def _requests(self, request: Request) -> Response:
        limit = number(request.query_params, "limit", 1, KEPT_REQUESTS, 100)
        return _json({"data": [exchange.describe() for exchange in list(self._journal.recent)[-limit:]]})

    async def _lost(self, request: Request) -> Response:
        doc = self._store.any_churn_event(request.path_params["id"])
        if doc is None:
            raise not_found("churn event")
        if doc["status"] in FINAL_STATUSES:
            raise bad_state(f"the churn event is {doc['status']} already")
        doc["status"] = "lost"
        self._store.update_churn_event(doc, time.time())
        return _json({"data": doc})

    async def _offers(self, request: Request) -> Response:
        if request.method == "PUT":
            self._store.replace_offers(configured_offers(await _body(request)))
        return _json({"data": self._store.offers()})

    async def _alerts(self, request: Request) -> Response:
        if request.method == "POST":
            alert = alert_fields(await _body(request))
            return _json({"data": self._webhooks.send(alert, time.time())})
        return _json({"data": self._store.webhooks()})

    async def _reset(self, _: Request) -> Response:
        self._store.reset()
        self._journal.reset()
        self._faults.clear()
        self._limits.reset()
        return Response(status_code=204)

    async def _rules(self, request: Request) -> Response:
        if request.method == "DELETE":
            self._faults.clear()
        elif request.method == "PUT":
            self._faults.replace(await _body(request))
        return _json({"data": [rule.describe() for rule in self._faults.rules]})


async def _body(request: Request) -> object:
    try:
        value: object = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "INVALID_JSON", f"body is not valid JSON: {error}") from None
    return value


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
