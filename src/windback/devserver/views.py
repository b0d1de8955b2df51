"""What the page shows beside the inbox: customers, the board of churn events, and what each second saw."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Dict, List, Mapping, Optional, Sequence, Set

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import churn
from .errors import bad_state, invalid, not_found
from .hub import Hub
from .options import CONTROL_PATH, Options
from .request_log import KEPT_SECONDS, SHOWN_NAMES, Journal, Second
from .routes import MAX_OFFSET, number
from .store import Doc, Store
from .waits import Waits
from .web import answer, body_of, inbox_of

#: Most customers, and most cards of a column, in one answer.
MAX_CUSTOMERS, MAX_CARDS = 1_000, 1_000

#: Events in the history of a customer.
MAX_HISTORY = 1_000

_CLASSES = ("2xx", "3xx", "4xx", "5xx", "none")


class Views:
    """The endpoints."""

    def __init__(self, store: Store, journal: Journal, waits: Waits, hub: Hub, options: Options) -> None:
        self._store = store
        self._journal = journal
        self._waits = waits
        self._hub = hub
        self._options = options
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
        length = number(request.query_params, "seconds", 1, KEPT_SECONDS, 300)
        start = int(time.time()) + 1 - length
        seconds = [each for each in self._journal.seconds(inbox_of(request)) if each.at >= start]
        return answer({"start": start, "seconds": length, **_series(seconds, start, length)})


def _with_next(doc: Doc) -> Doc:
    return {**doc, "next": churn.NEXT[str(doc["status"])]}


def _series(seconds: Sequence[Second], start: int, length: int) -> Dict[str, object]:
    def along(values: Mapping[int, int]) -> List[int]:
        return [values.get(start + index, 0) for index in range(length)]

    events: Counter[int] = Counter()
    rejected: Counter[int] = Counter()
    by_class: Dict[str, Counter[int]] = {name: Counter() for name in _CLASSES}
    names: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    durations: Dict[int, List[float]] = {}
    for second in seconds:
        events[second.at] += second.events
        rejected[second.at] += second.rejected
        for name, count in second.by_class.items():
            by_class[name][second.at] += count
        names.update(second.names)
        reasons.update(second.reasons)
        durations.setdefault(second.at, []).extend(second.durations)
    shown = [name for name, _ in names.most_common(SHOWN_NAMES)]
    of_name: Dict[str, Counter[int]] = {name: Counter() for name in shown}
    for second in seconds:
        for name in shown:
            of_name[name][second.at] += second.names.get(name, 0)
    rest = {at: count - sum(each[at] for each in of_name.values()) for at, count in events.items()}
    for each in durations.values():
        each.sort()
    return {
        "events": along(events),
        "rejected": along(rejected),
        "status": {name: along(counts) for name, counts in by_class.items()},
        "names": [{"event": name, "counts": along(counts)} for name, counts in of_name.items()],
        "rest": along(rest),
        "p50_ms": [_quantile(durations.get(start + index), 0.5) for index in range(length)],
        "p95_ms": [_quantile(durations.get(start + index), 0.95) for index in range(length)],
        "reasons": [{"reason": reason, "count": count} for reason, count in reasons.most_common()],
    }


def _quantile(ordered: Optional[Sequence[float]], share: float) -> Optional[float]:
    """The nearest rank, in milliseconds."""
    if not ordered:
        return None
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)
