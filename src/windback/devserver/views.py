"""What the page shows beside the inbox: customers, the board of churn events, and what each second saw."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import datetime
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Set

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import churn
from .clock import iso
from .errors import bad_state, invalid, not_found
from .hub import Hub
from .options import CONTROL_PATH, Options
from .request_log import KEPT_MINUTES, KEPT_SECONDS, SHOWN_NAMES, Journal, Span
from .routes import MAX_OFFSET, number
from .shapes import Shapes, describe
from .store import Doc, Store
from .waits import Waits
from .web import answer, body_of, inbox_of

#: Most customers, and most cards of a column, in one answer.
MAX_CUSTOMERS, MAX_CARDS = 1_000, 1_000

#: Events in the history of a customer.
MAX_HISTORY = 1_000

#: Most bars of a chart of more than ten minutes.
MAX_BARS = 240

_CLASSES = ("2xx", "3xx", "4xx", "5xx", "none")


class Views:
    """The endpoints."""

    def __init__(self, store: Store, journal: Journal, waits: Waits, hub: Hub, options: Options) -> None:
        self._store = store
        self._journal = journal
        self._waits = waits
        self._hub = hub
        self._options = options
        self._shapes = Shapes(store.tracked)
        self._tasks: Set[asyncio.Task[None]] = set()

    def routes(self) -> List[Route]:
        """All of them, for Starlette."""
        return [
            Route(CONTROL_PATH + "/customers", self._customers),
            Route(CONTROL_PATH + "/customers/{id:path}", self._customer),
            Route(CONTROL_PATH + "/board", self._board),
            Route(CONTROL_PATH + "/churn-events/{id}", self._churn_event),
            Route(CONTROL_PATH + "/churn-events/{id}/move", self._move, methods=["POST"]),
            Route(CONTROL_PATH + "/series", self._series),
            Route(CONTROL_PATH + "/overview", self._overview),
        ]

    # Customers

    async def _customers(self, request: Request) -> Response:
        limit = number(request.query_params, "limit", 1, MAX_CUSTOMERS, 100)
        offset = number(request.query_params, "offset", 0, MAX_OFFSET, 0)
        part = request.query_params.get("q", "")
        customers, total = self._store.people.customers(part, inbox_of(request), limit, offset)
        return answer({"data": customers, "total": total})

    async def _customer(self, request: Request) -> Response:
        name, inbox = request.path_params["id"], inbox_of(request)
        found = self._store.people.customer(name, inbox)
        if found is None:
            raise not_found("customer")
        churn_events = [_with_next(doc) for doc in self._store.people.churn_events(name, inbox)]
        events = self._store.tracked.of_customer(name, inbox, MAX_HISTORY)
        return answer(
            {"data": found, "events": [event.describe() for event in events], "churn_events": churn_events}
        )

    # The board

    async def _board(self, request: Request) -> Response:
        limit = number(request.query_params, "limit", 1, MAX_CARDS, 100)
        inbox = inbox_of(request)
        columns: List[Doc] = []
        for status in churn.STATUSES:
            count, mrr = self._store.people.column(status, inbox)
            cards = self._store.people.cards(status, inbox, limit)
            for card in cards:
                card["next"] = churn.NEXT[status]
            columns.append({"status": status, "count": count, "mrr": mrr, "cards": cards})
        return answer({"columns": columns})

    def _found(self, request: Request) -> Doc:
        doc = self._store.any_churn_event(request.path_params["id"])
        if doc is None:
            raise not_found("churn event")
        return doc

    async def _churn_event(self, request: Request) -> Response:
        doc = self._found(request)
        event_id = str(doc["id"])
        return answer(
            {
                "data": doc,
                "variants": self._store.variants(event_id),
                "slug": self._store.slug_of(event_id),
                "next": churn.NEXT[str(doc["status"])],
            }
        )

    async def _move(self, request: Request) -> Response:
        value = await body_of(request)
        to = value.get("to") if isinstance(value, dict) else None
        if to not in churn.STATUSES:
            raise invalid("to: must be one of " + ", ".join(churn.STATUSES))
        doc = self._found(request)
        steps = churn.NEXT[str(doc["status"])]
        if to not in steps:
            goes = ", ".join(steps) or "nowhere"
            raise bad_state(f"a churn event that is {doc['status']} goes to {goes}, not to {to}")
        with self._store.transaction():
            self._step(doc, str(to), time.time())
        return answer({"data": doc})

    def _step(self, doc: Doc, to: str, now: float) -> None:
        event_id = str(doc["id"])
        if to in churn.FINAL_STATUSES:
            churn.end(self._store, doc, to, now)
        elif to == "processing":
            churn.begin_generation(self._store, doc, now)
            task = asyncio.ensure_future(self._generate(event_id))
            self._tasks.add(task)  # the loop itself holds on to a task only weakly
            task.add_done_callback(self._tasks.discard)
        elif to == "variants_generated":
            churn.finish_generation(self._store, self._store.slug_of(event_id), doc, now)
        else:
            unsent = [variant for variant in self._store.variants(event_id) if variant["sent_at"] is None]
            best = next((variant for variant in unsent if variant["recommended"]), unsent[0])
            churn.send(self._store, doc, best, now, has_email=self._options.email)

    async def _generate(self, event_id: str) -> None:
        """What `POST …/generate` does after its pause, unless the event has changed since."""
        if not await self._waits.sleep(self._options.generate_s):
            return
        doc = self._store.any_churn_event(event_id)
        if doc is None or doc["status"] != "processing":
            return
        with self._store.transaction():
            churn.finish_generation(self._store, self._store.slug_of(event_id), doc, time.time())
        self._hub.touch()

    # Seconds

    async def _series(self, request: Request) -> Response:
        inbox = inbox_of(request)
        asked_s = number(request.query_params, "seconds", 0, 60 * KEPT_MINUTES, 300)
        now = int(time.time())
        if 0 < asked_s <= KEPT_SECONDS:
            spans: Iterable[Span] = self._journal.seconds(inbox)
            step = 1
            start = now + 1 - asked_s
        else:
            spans = list(self._journal.minutes(inbox))
            first = next((each.at for each in spans), now)
            start = (now + 60 - asked_s if asked_s else first) // 60 * 60
            step = 60 * max(1, -(-(now + 1 - start) // (60 * MAX_BARS)))
        bars = -(-(now + 1 - start) // step)
        within = [each for each in spans if each.at >= start]
        said = {"start": start, "seconds": bars * step, "step": step, "last_at": self._last_at(inbox)}
        return answer({**said, **_series(within, start, step, bars)})

    def _last_at(self, inbox: Optional[str]) -> Optional[str]:
        newest = self._store.tracked.newest(inbox)
        return None if newest is None else newest.received_at

    # Overview

    async def _overview(self, request: Request) -> Response:
        inbox = inbox_of(request)
        midnight = datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        today = [each for each in self._journal.minutes(inbox) if each.at >= midnight.timestamp()]
        none: Counter[str] = Counter()
        by_class = sum((each.by_class for each in today), none)
        money = {status: self._store.people.column(status, inbox)[1] for status in churn.STATUSES}
        at_risk: Counter[str] = Counter()
        for status, sums in money.items():
            if status not in churn.FINAL_STATUSES:
                at_risk.update(sums)
        return answer(
            {
                "since": iso(midnight.timestamp()),
                "events": sum(each.events for each in today),
                "rejected": sum(each.rejected for each in today),
                "requests": {name: by_class[name] for name in _CLASSES},
                "money": {"at_risk": at_risk, "recovered": money["recovered"], "lost": money["lost"]},
                "last_at": self._last_at(inbox),
                **describe(await self._shapes.of(inbox)),
            }
        )


def _with_next(doc: Doc) -> Doc:
    return {**doc, "next": churn.NEXT[str(doc["status"])]}


def _series(spans: Sequence[Span], start: int, step: int, bars: int) -> Dict[str, object]:
    def along(values: Mapping[int, int]) -> List[int]:
        return [values.get(bar, 0) for bar in range(bars)]

    events: Counter[int] = Counter()
    rejected: Counter[int] = Counter()
    by_class: Dict[str, Counter[int]] = {name: Counter() for name in _CLASSES}
    names: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    durations: Dict[int, List[float]] = {}
    for span in spans:
        bar = (span.at - start) // step
        events[bar] += span.events
        rejected[bar] += span.rejected
        for name, count in span.by_class.items():
            by_class[name][bar] += count
        names.update(span.names)
        reasons.update(span.reasons)
        durations.setdefault(bar, []).extend(span.durations)
    shown = [name for name, _ in names.most_common(SHOWN_NAMES)]
    of_name: Dict[str, Counter[int]] = {name: Counter() for name in shown}
    for span in spans:
        for name in shown:
            of_name[name][(span.at - start) // step] += span.names.get(name, 0)
    rest = {bar: count - sum(each[bar] for each in of_name.values()) for bar, count in events.items()}
    for each in durations.values():
        each.sort()
    return {
        "events": along(events),
        "rejected": along(rejected),
        "status": {name: along(counts) for name, counts in by_class.items()},
        "names": [{"event": name, "counts": along(counts)} for name, counts in of_name.items()],
        "rest": along(rest),
        "p50_ms": [_quantile(durations.get(bar), 0.5) for bar in range(bars)],
        "p95_ms": [_quantile(durations.get(bar), 0.95) for bar in range(bars)],
        "reasons": [{"reason": reason, "count": count} for reason, count in reasons.most_common()],
    }


def _quantile(ordered: Optional[Sequence[float]], share: float) -> Optional[float]:
    """The nearest rank, in milliseconds."""
    if not ordered:
        return None
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
