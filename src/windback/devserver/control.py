"""The control plane under `/_dev`: counts, faults, offers, webhooks. The gateway keeps strangers out."""

from __future__ import annotations

import time
from typing import Dict, List, Optional

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import churn
from .errors import not_found
from .faults import Faults
from .limits import Limits
from .options import CONTROL_PATH
from .request_log import Journal
from .store import Store
from .validation import alert_fields, configured_offers
from .web import answer, body_of, inbox_of
from .webhooks import Webhooks

#: Counts that belong to no inbox.
_OF_ALL = ("churn_events", "templates", "cancel_flows", "accepted_offers")


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
            Route(CONTROL_PATH + "/churn-events/{id}/lost", self._lost, methods=["POST"]),
            Route(CONTROL_PATH + "/offers", self._offers, methods=["GET", "PUT"]),
            Route(CONTROL_PATH + "/webhooks", self._alerts, methods=["GET", "POST"]),
            Route(CONTROL_PATH + "/webhooks/{id}/resend", self._resend, methods=["POST"]),
            Route(CONTROL_PATH + "/reset", self._reset, methods=["POST"]),
            Route(CONTROL_PATH + "/faults", self._rules, methods=["GET", "PUT", "POST", "DELETE"]),
            Route(CONTROL_PATH + "/faults/{id}", self._rule, methods=["PATCH", "DELETE"]),
        ]

    def counts(self, inbox: Optional[str]) -> Dict[str, object]:
        """What arrived, by kind and by status; what has no inbox is None where one is asked for."""
        requests = self._journal.tally_of(inbox).describe()
        if inbox is None:
            return {**requests, **self._store.counts(), "forgotten": self._forgotten()}
        return {**requests, **self._store.tracked.counts(inbox), **dict.fromkeys(_OF_ALL)}

    def _forgotten(self) -> Dict[str, int]:
        """What is not kept any more, by kind: only the newest of each kind are."""
        of_requests = {
            "requests": self._journal.forgotten,
            "inboxes": self._journal.forgotten_inboxes,
            "rate_limits": self._limits.forgotten,
        }
        return {**{name: count for name, count in of_requests.items() if count}, **self._store.forgotten()}

    async def _counts(self, request: Request) -> Response:
        return answer(self.counts(inbox_of(request)))

    async def _distinct(self, _: Request) -> Response:
        return answer({"distinct_events": self._store.tracked.distinct()})

    async def _lost(self, request: Request) -> Response:
        doc = self._store.any_churn_event(request.path_params["id"])
        if doc is None:
            raise not_found("churn event")
        churn.end(self._store, doc, "lost", time.time())
        return answer({"data": doc})

    async def _offers(self, request: Request) -> Response:
        if request.method == "PUT":
            self._store.replace_offers(configured_offers(await body_of(request)))
        return answer({"data": self._store.offers()})

    async def _alerts(self, request: Request) -> Response:
        if request.method == "POST":
            alert = alert_fields(await body_of(request))
            return answer({"data": self._webhooks.send(alert, time.time())})
        return answer({"data": self._store.webhooks(), "url": self._webhooks.url})

    async def _resend(self, request: Request) -> Response:
        return answer({"data": self._webhooks.resend(request.path_params["id"], time.time())})

    async def _reset(self, _: Request) -> Response:
        self._store.reset()
        self._journal.reset()
        self._faults.clear()
        self._limits.reset()
        return Response(status_code=204)

    async def _rules(self, request: Request) -> Response:
        inbox = inbox_of(request)
        if request.method == "POST":
            rule = self._faults.add(await body_of(request), time.monotonic())
            return answer({"data": rule.describe(time.monotonic(), time.time())}, 201)
        if request.method == "DELETE":
            self._faults.clear(inbox)
        elif request.method == "PUT":
            self._faults.replace(await body_of(request), time.monotonic(), inbox)
        return self._all_rules()

    async def _rule(self, request: Request) -> Response:
        rule_id = request.path_params["id"]
        if request.method == "DELETE":
            self._faults.remove(rule_id)
            return self._all_rules()
        rule = self._faults.change(rule_id, await body_of(request), time.monotonic())
        return answer({"data": rule.describe(time.monotonic(), time.time())})

    def _all_rules(self) -> Response:
        return answer({"data": self._faults.describe(time.monotonic(), time.time())})
