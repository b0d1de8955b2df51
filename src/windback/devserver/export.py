"""The events that a search finds as a file: JSON lines that can be sent again, or CSV."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from typing import AsyncIterator, Callable, Dict, List, NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from .errors import invalid
from .options import CONTROL_PATH
from .tracked import Event, Tracked
from .web import HEADERS, inbox_of, query_of

#: What a client sends; the rest is the server's.
_FIELDS = ("event", "customer_email", "customer_id", "customer_name", "timestamp", "properties")

#: Where a spreadsheet could see a formula begin: at the start of a cell, or after what it may take for a
#: separator or the end of a row, past blanks, quotes and marks that cannot be seen. In full width, too. A
#: negative number is not one.
_FORMULA = re.compile(
    "(?:^|(?<=[,;|\\t\\n\\r\\x0b\\x0c\\x1c-\\x1e\\x85\\u2028\\u2029]))"
    "[\\s\\x00-\\x20\"'\u200b-\u200f\u2060\ufeff]*"
    "(?=[=+\\-@\uff1d\uff0b\uff0d\uff20\ufe62\ufe63\ufe66\ufe6b])"
    "(?!-[0-9]+(?:\\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?:[,\\]}]|$))"
)


class Kind(NamedTuple):
    """A format: its media type, what it starts with, and how events look in it."""

    media_type: str
    head: str
    lines: Callable[[List[Event]], str]


class Export:
    """The endpoint."""

    def __init__(self, tracked: Tracked) -> None:
        self._tracked = tracked

    def routes(self) -> List[Route]:
        """All of it, for Starlette."""
        return [Route(CONTROL_PATH + "/export", self._export)]

    async def _export(self, request: Request) -> Response:
        name = request.query_params.get("format", "jsonl")
        kind = _KINDS.get(name)
        if kind is None:
            raise invalid("format: must be one of " + ", ".join(_KINDS))
        asked, inbox = query_of(request), inbox_of(request)

        async def content() -> AsyncIterator[str]:
            yield kind.head
            for events in self._tracked.search(asked, inbox):
                yield kind.lines(events)
                await asyncio.sleep(0)

        headers = {**HEADERS, "content-disposition": f'attachment; filename="events.{name}"'}
        return StreamingResponse(content(), headers=headers, media_type=kind.media_type)


def _sent(event: Event) -> Dict[str, object]:
    """An event as a client would send it; one that came without a time happened when it arrived."""
    doc = event.describe()
    return {name: doc[name] for name in _FIELDS if doc[name] is not None}


def _json_lines(events: List[Event]) -> str:
    return "".join(orjson.dumps(_sent(event)).decode() + "\n" for event in events)


def _csv_lines(events: List[Event]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    for event in events:
        fields = {**_sent(event), "properties": event.encoded}
        writer.writerow([_cell(str(fields.get(name, ""))) for name in _FIELDS])
    return text.getvalue()


def _cell(text: str) -> str:
    """Return *text* with an apostrophe before whatever could be a formula."""
    safe = _FORMULA.sub(r"\g<0>'", text)
    return f"'{safe}" if safe.startswith(("\t", "\r")) else safe


_KINDS = {
    "jsonl": Kind("application/x-ndjson", "", _json_lines),
    "csv": Kind("text/csv; charset=utf-8", ",".join(_FIELDS) + "\r\n", _csv_lines),
}
