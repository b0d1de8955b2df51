"""The inbox under `/_dev`: events and requests, searched, counted, waited for, and sent by hand."""

from __future__ import annotations

import asyncio
from typing import Dict, List, Optional, Tuple, cast

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from . import query
from .errors import ApiError, invalid, not_found
from .exchange import Exchange
from .gateway import SCOPE_KEY
from .labels import api_key
from .options import BASE_PATH, CONTROL_PATH, DEFAULT_KEY, Options
from .query import Query
from .request_log import KEPT_REQUESTS
from .routes import MAX_OFFSET, number
from .stream import Cursor, EventStream, Watch
from .tracked import Event
from .waiting import Wanted, wait
from .web import answer, body_of, inbox_of, query_of, seconds, whole

#: Most events in one answer.
MAX_EVENTS = 10_000

#: Most attempts that are listed with a request, the newest of them.
MAX_ATTEMPTS = 200

#: Seconds that a wait may take.
MAX_WAIT_S = 600.0


class Inbox:
    """The endpoints. *api* is set once it exists: what sends by hand goes the way of every request."""

    def __init__(self, watch: Watch, options: Options) -> None:
        self._watch = watch
        self._tracked = watch.store.tracked
        self._options = options
        self.api: Optional[ASGIApp] = None

    def routes(self) -> List[Route]:
        """All of them, for Starlette."""
        return [
            Route(CONTROL_PATH + "/health", self._health),
            Route(CONTROL_PATH + "/events", self._events, methods=["GET", "DELETE"]),
            Route(CONTROL_PATH + "/events/{id:int}", self._event),
            Route(CONTROL_PATH + "/count", self._count),
            Route(CONTROL_PATH + "/names", self._names),
            Route(CONTROL_PATH + "/inboxes", self._inboxes),
            Route(CONTROL_PATH + "/mark", self._mark, methods=["POST"]),
            Route(CONTROL_PATH + "/wait", self._wait),
            Route(CONTROL_PATH + "/send", self._send, methods=["POST"]),
            Route(CONTROL_PATH + "/requests", self._requests),
            Route(CONTROL_PATH + "/requests/{id}", self._request),
            Route(CONTROL_PATH + "/stream", self._stream),
        ]

    async def _health(self, _: Request) -> Response:
        return answer({"status": "ok", **self._watch.about})

    # Events

    async def _events(self, request: Request) -> Response:
        if request.method == "DELETE":
            return await self._delete(request)
        limit = number(request.query_params, "limit", 1, MAX_EVENTS, 100)
        offset = number(request.query_params, "offset", 0, MAX_OFFSET, 0)
        newest_first = _newest_first(request)
        after, before = whole(request, "after") or 0, whole(request, "before")
        asked, inbox = query_of(request), inbox_of(request)
        tracked = self._tracked
        # Taken before the first pause, so that a stream from there on misses nothing.
        cursor = str(self._watch.now())
        if not asked.terms and inbox is None:
            total = tracked.stored
            shown = tracked.page(
                after=after, before=before, newest_first=newest_first, limit=limit, offset=offset
            )
        else:
            tally = tracked.tally(asked, inbox)
            found: List[Event] = []
            matched = 0
            for events in tracked.search(asked, inbox, after=after, before=before, newest_first=newest_first):
                matched += len(events)
                if len(found) < offset + limit:
                    found += events
                elif tally is not None:
                    break
                await asyncio.sleep(0)
            shown = found[offset : offset + limit]
            total = tally.kept if tally is not None else matched
            if tally is None and (after or before is not None):
                total = await self._total(asked, inbox)
        return answer(
            {
                "data": [event.describe() for event in shown],
                "total": total,
                "stored": tracked.stored,
                "evicted": tracked.evicted,
                "cursor": cursor,
                "limit": limit,
                "offset": offset,
            }
        )

    async def _total(self, asked: Query, inbox: Optional[str]) -> int:
        """How many of the kept events match."""
        tally = self._tracked.tally(asked, inbox)
        if tally is not None:
            return tally.kept
        total = 0
        for events in self._tracked.search(asked, inbox):
            total += len(events)
            await asyncio.sleep(0)
        return total

    async def _event(self, request: Request) -> Response:
        number = min(request.path_params["id"], self._tracked.last_id + 1)  # SQLite knows no endless numbers
        found = self._tracked.get(number)
        neighbours = self._tracked.neighbours(number)
        if found is None:
            came = 0 < number <= self._tracked.last_id
            raise ApiError(
                404,
                "NOT_FOUND",
                "the event is gone" if came else "there is no such event",
                extra={"neighbours": neighbours, "evicted": came},
            )
        exchange = self._watch.journal.find(found.request)
        return answer(
            {
                "data": found.describe(),
                "request": None if exchange is None else exchange.describe(),
                "neighbours": neighbours,
            }
        )

    async def _delete(self, request: Request) -> Response:
        asked, inbox = query_of(request), inbox_of(request)
        if not request.query_params.get("q", "").strip() and inbox is None:
            raise invalid("key or q: one of them must select what to delete; q=* is everything")
        ids: List[int] = []
        for events in self._tracked.search(asked, inbox):
            ids += [event.id for event in events]
            await asyncio.sleep(0)
        with self._watch.store.transaction():
            kept = self._tracked.delete(ids)
            evicted = self._tracked.delete_evicted(asked, inbox)
        return answer({"deleted": kept, "evicted": evicted})

    async def _count(self, request: Request) -> Response:
        asked, inbox = query_of(request), inbox_of(request)
        tally = self._tracked.tally(asked, inbox)
        if tally is None:
            kept = await self._total(asked, inbox)
            return answer({"count": kept, "kept": kept, "evicted": 0, "exact": not self._tracked.evicted})
        return answer(
            {"count": tally.kept + tally.evicted, "kept": tally.kept, "evicted": tally.evicted, "exact": True}
        )

    async def _names(self, request: Request) -> Response:
        return answer({"data": self._tracked.names(inbox_of(request))})

    async def _inboxes(self, _: Request) -> Response:
        events, journal = self._tracked.inboxes(), self._watch.journal
        rows: List[Dict[str, object]] = []
        for inbox in dict.fromkeys([*journal.tallies, *events]):
            tally = journal.tally_of(inbox)
            rows.append(
                {
                    "inbox": inbox,
                    "events": events[inbox],
                    "requests": tally.requests,
                    "rejected": tally.rejected,
                    "last_at": tally.last,
                }
            )
        rows.sort(key=lambda row: str(row["last_at"] or ""), reverse=True)
        return answer({"data": rows})

    async def _mark(self, _: Request) -> Response:
        return answer({"cursor": self._tracked.last_id})

    async def _wait(self, request: Request) -> Response:
        asked = query_of(request)
        name = request.query_params.get("event")
        if name:
            asked = Query((*asked.terms, query.named(name)))
        wanted = Wanted(
            query=asked,
            inbox=inbox_of(request),
            number=number(request.query_params, "count", 0, MAX_EVENTS, 1),
            since=whole(request, "since") or 0,
            timeout_s=seconds(request, "timeout", MAX_WAIT_S, 5.0),
            for_s=seconds(request, "for", MAX_WAIT_S, 0.0) if "for" in request.query_params else None,
        )
        if wanted.number == 0 and wanted.for_s is None:
            wanted = wanted._replace(for_s=0.0)
        return answer(await wait(self._watch, wanted, request.receive))

    async def _send(self, request: Request) -> Response:
        value = await body_of(request)
        fields = cast("Dict[str, object]", value) if type(value) is dict else {}
        events = fields.get("events")
        if type(events) is not list or not events:
            raise invalid("events: must be a list of at least one event")
        exchange, body = await self._post(self._key_for(fields.get("inbox")), {"events": events})
        first_last = self._tracked.of_request(exchange.number)
        stored: List[Event] = []
        if first_last is not None:
            first, last = first_last
            stored = self._tracked.page(after=first - 1, before=last + 1, limit=MAX_EVENTS)
        return answer(
            {
                "request": exchange.describe(),
                "answer": body,
                "data": [event.describe() for event in stored],
            }
        )

    def _key_for(self, inbox: object) -> str:
        """The key to send with: the given one, one that was seen, or the default one."""
        if type(inbox) is not str or not inbox:
            return next((key for key in self._options.keys if key.startswith("sk_")), DEFAULT_KEY)
        for exchange in reversed(self._watch.journal.recent):
            if exchange.inbox == inbox:
                return api_key(exchange.headers)
        return inbox

    async def _post(self, key: str, value: object) -> Tuple[Exchange, object]:
        """Let the API take a request as though a client had sent it; what became of it, and the answer."""
        raw = orjson.dumps(value)
        headers = {
            "host": "localhost",
            "user-agent": "windback-dev-page",
            "content-type": "application/json",
            "content-length": str(len(raw)),
            "x-api-key": key,
        }
        scope: Dict[str, object] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": BASE_PATH + "/track",
            "raw_path": (BASE_PATH + "/track").encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), text.encode("latin-1", "replace")) for name, text in headers.items()],
            "client": ("", 0),
            "server": None,
        }
        messages: List[Message] = [{"type": "http.request", "body": raw}]
        answered: List[bytes] = []

        async def receive() -> Message:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            answered.append(cast("bytes", message.get("body", b"")))

        assert self.api is not None
        await self.api(scope, receive, send)
        try:
            said: object = orjson.loads(b"".join(answered))
        except orjson.JSONDecodeError:  # a fault rule had its way
            said = None
        return cast("Exchange", scope[SCOPE_KEY]), said

    # Requests

    async def _requests(self, request: Request) -> Response:
        limit = number(request.query_params, "limit", 1, KEPT_REQUESTS, 100)
        after, before = whole(request, "after") or 0, whole(request, "before")
        asked, inbox = query_of(request), inbox_of(request)
        found: List[Exchange] = []
        for index, exchange in enumerate(list(self._watch.journal.recent)):
            if inbox in (None, exchange.inbox) and asked.matches(exchange):
                found.append(exchange)
            if index % 1_000 == 999:
                await asyncio.sleep(0)
        shown = [each for each in found if each.number > after and (before is None or each.number < before)]
        # With a lower bound alone the ones right after it, otherwise the newest; always oldest first.
        shown = shown[:limit] if after and before is None else shown[-limit:]
        return answer(
            {
                "data": [exchange.describe() for exchange in shown],
                "total": len(found),
                "forgotten": self._watch.journal.forgotten,
            }
        )

    async def _request(self, request: Request) -> Response:
        text = request.path_params["id"]
        digits = text[len("req_") :] if text.startswith("req_") else text
        is_number = digits.isascii() and digits.isdigit() and len(digits) < 16
        exchange = self._watch.journal.find(int(digits)) if is_number else None
        if exchange is None:
            raise not_found("request")
        attempts = [each.describe() for each in self._watch.journal.group_of(exchange)[-MAX_ATTEMPTS:]]
        event_ids = self._tracked.of_request(exchange.number)
        return answer({"data": {**exchange.describe_whole(), "attempts": attempts, "event_ids": event_ids}})

    # The stream

    async def _stream(self, request: Request) -> EventStream:
        asked, inbox = query_of(request), inbox_of(request)
        text = request.headers.get("last-event-id") or request.query_params.get("since")
        cursor = Cursor.read(text) if text else self._watch.now()
        if cursor is None:
            raise invalid("since: must be a cursor that this server gave, such as 17.7.0.ab12")
        return EventStream(self._watch, self._watch.resume(cursor), asked, inbox)


def _newest_first(request: Request) -> bool:
    order = request.query_params.get("order", "asc")
    if order not in ("asc", "desc"):
        raise invalid("order: must be asc or desc")
    return order == "desc"
