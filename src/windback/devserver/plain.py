"""The newest events as a page without a single script: for browsers that run none."""

from __future__ import annotations

import html
import time
from typing import List, Sequence

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import assets, query
from .errors import ApiError
from .options import PLAIN_PATH
from .query import Query
from .tracked import Event, Tracked

#: Rows of the list.
ROWS = 100

#: Where the page wants the list, for who reads it without scripts.
MARK = b"<!-- events -->"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>windback dev: events</title></head>
<body><h1>Events</h1>
<form action="{path}"><label>Search <input name="q" value="{q}" size="50"></label>
<button>Find</button></form>
{content}
</body></html>
"""


class Plain:
    """The list, and the page with the list in it."""

    def __init__(self, tracked: Tracked) -> None:
        self._tracked = tracked

    def routes(self) -> List[Route]:
        """Both of them, for Starlette."""
        return [Route("/", self._page), Route(PLAIN_PATH, self._list)]

    async def _page(self, _: Request) -> Response:
        content = assets.read("index.html") or b""
        if MARK in content:
            content = content.replace(MARK, table(self._newest(Query(()))).encode())
        return assets.answer("index.html", content)

    async def _list(self, request: Request) -> Response:
        text = request.query_params.get("q", "")
        try:
            content = table(self._newest(query.parse(text, time.time())))
        except ApiError as error:
            content = f"<p>{html.escape(error.message)}</p>"
        page = _PAGE.format(path=PLAIN_PATH, q=html.escape(text), content=content)
        return assets.answer("plain.html", page.encode())

    def _newest(self, asked: Query) -> Sequence[Event]:
        found: List[Event] = []
        for events in self._tracked.search(asked, None, newest_first=True):
            found += events
            if len(found) >= ROWS:
                break
        return found[:ROWS]


def table(events: Sequence[Event]) -> str:
    """The events as rows, the newest first; everything in them is text."""
    if not events:
        return "<p>No events.</p>"
    rows = "".join(_row(event) for event in events)
    head = "".join(
        f"<th scope=col>{name}</th>" for name in ("Received", "Event", "Customer", "Properties", "State")
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(event: Event) -> str:
    state = "stored" if event.problems is None else "ignored by the real API: " + _problems(event.problems)
    cells = (
        event.received_at,
        event.event,
        event.customer_email or event.customer_id or "",
        event.encoded,
        state,
    )
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _problems(problems: str) -> str:
    listed = orjson.loads(problems)
    return "; ".join(f"{each['path']}: expected {each['expected']}, got {each['got']}" for each in listed)
