"""One request on its way through the server, and what is known of it afterwards."""

from __future__ import annotations

import base64
import time
from collections import Counter
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple, cast

from . import body as bodies
from .clock import iso
from .errors import ApiError
from .labels import MASK, api_key, label, mask_headers, mask_text
from .options import BASE_PATH
from .validation import count_events

#: Request headers shown in the list, next to the redacted key.
_SHOWN = (
    *("accept", "content-encoding", "content-length", "content-type", "idempotency-key", "user-agent"),
    "x-api-key",
)

Headers = Dict[str, str]

_TRACK = BASE_PATH + "/track"

#: How the user agent of a client of Windback starts.
_SDK = "windback-"

#: What the head of a request has beside the names and values: blanks, colons, line ends and "HTTP/1.1".
_LINE, _FIRST_LINE = len(": \r\n"), len("  HTTP/1.1\r\n\r\n")


class Exchange:
    """What is known of one request. The gateway makes it, the routes add to it, the log shows it.

    It is a `query.Subject`.
    """

    __slots__ = (
        *(
            "number",
            "method",
            "path",
            "query",
            "is_track",
            "headers",
            "inbox",
            "body",
            "body_bytes",
            "body_state",
        ),
        *("received_at", "clock", "duration_s", "status", "fault", "rule", "reason", "events", "ignored"),
        *("names", "duplicate", "is_lost", "attempt", "group", "answer_headers", "answer_chunks"),
    )

    def __init__(
        self, number: int, method: str, path: str, query: bytes, headers: List[Tuple[bytes, bytes]]
    ) -> None:
        self.number = number
        self.method = method
        self.path = path
        self.query = query
        #: Whether this is a `POST /track`.
        self.is_track = method == "POST" and path == _TRACK
        self.headers: Headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        key = api_key(self.headers)
        #: Whose it is; None without a key.
        self.inbox = label(key) if key else None
        #: The received bytes; None before, and if they are not kept (`body_state`).
        self.body: Optional[bytes] = None
        self.body_bytes = 0
        self.body_state = "kept"
        self.received_at = time.time()
        self.clock = time.perf_counter()
        #: None until the request is over.
        self.duration_s: Optional[float] = None
        #: None until an answer has started; stays None when the connection was dropped instead.
        self.status: Optional[int] = None
        #: What a fault rule did to the request, or "", and the id of that rule.
        self.fault = ""
        self.rule: Optional[str] = None
        #: The code of a refusal.
        self.reason: Optional[str] = None
        #: Events in the body, stored or not.
        self.events = 0
        #: Those of them that the API would have dropped.
        self.ignored = 0
        #: Stored events by their name.
        self.names: Mapping[str, int] = _NO_NAMES
        #: Whether a stored answer was given again.
        self.duplicate = False
        #: Whether a fault rule keeps the answer back.
        self.is_lost = False
        #: Which try of the same it is, and what makes it the same.
        self.attempt = 1
        self.group: object = None
        self.answer_headers: Sequence[Tuple[bytes, bytes]] = ()
        self.answer_chunks: List[bytes] = []

    @property
    def request_id(self) -> str:
        """The answer's X-Request-Id."""
        return f"req_{self.number}"

    @property
    def is_over(self) -> bool:
        """Whether it has been answered, dropped or given up."""
        return self.duration_s is not None

    @property
    def size(self) -> int:
        """Bytes of both bodies that are kept."""
        return (len(self.body) if self.body else 0) + sum(map(len, self.answer_chunks))

    def forget_bodies(self) -> None:
        """Give up the bodies for newer ones."""
        self.body = None
        self.body_state = "forgotten"
        self.answer_chunks = []

    def count_carried(self) -> int:
        """How many events are in the body of a `POST /track`, whether they are any good or not."""
        return count_events(self._value())

    def _carried(self) -> List[Mapping[str, object]]:
        """Those of them that are objects."""
        value = self._value()
        if type(value) is not dict:
            return []
        fields = cast("Dict[str, object]", value)
        listed = fields.get("events", [fields])
        return [
            cast("Dict[str, object]", item)
            for item in (cast("List[object]", listed) if type(listed) is list else ())
            if type(item) is dict
        ]

    def _value(self) -> object:
        """The JSON of the body of a `POST /track`; None when it cannot be read."""
        if not self.is_track or self.body is None:
            return None
        try:
            plain = bodies.decode(self.body, self.headers, limit=_MOST_BYTES, gzip="accept")
            return bodies.parse(plain, self.headers)
        except ApiError:
            return None

    @property
    def event_names(self) -> List[str]:
        """The names of the events that it carries."""
        return [str(event.get("event")) for event in self._carried()]

    # As a subject of the search

    def values(self, column: str) -> Sequence[object]:
        """The value of a column of the search language; those of an event are those of all it carries."""
        own = _COLUMNS.get(column)
        if own is not None:
            return own(self)
        names = _EVENT_COLUMNS.get(column, ())
        return [event.get(name) for event in self._carried() for name in names] if names else ()

    def properties(self) -> Sequence[Mapping[str, object]]:
        """The properties of all events that it carries."""
        found = (event.get("properties") for event in self._carried())
        return [cast("Dict[str, object]", each) for each in found if type(each) is dict]

    def text(self) -> str:
        """Path and body."""
        return f"{self.method} {self.path}\n{self.decoded() or ''}"

    # As JSON

    def describe(self) -> Dict[str, object]:
        """The request as lists show it; the API key is cut to its kind."""
        headers = self.headers
        user_agent = headers.get("user-agent", "")
        return {
            "id": self.number,
            "request_id": self.request_id,
            "received_at": iso(self.received_at),
            "method": self.method,
            "path": mask_text(self.path),
            "query": mask_text(self.query.decode("latin-1")),
            "status": self.status,
            "reason": self.reason,
            "fault": self.fault or None,
            "rule": self.rule,
            "headers": mask_headers({name: headers[name] for name in _SHOWN if name in headers}),
            "idempotency_key": headers.get("idempotency-key"),
            "inbox": self.inbox,
            "body_bytes": self.body_bytes,
            "wire_bytes": self._wire_bytes(),
            "gzip": headers.get("content-encoding", "").lower() == "gzip",
            "events": self.events,
            "ignored": self.ignored,
            "duplicate": self.duplicate,
            "duration_ms": None if self.duration_s is None else round(self.duration_s * 1000, 3),
            "sdk": user_agent.partition(" ")[0] if user_agent.startswith(_SDK) else None,
            "attempt": self.attempt,
        }

    def describe_whole(self) -> Dict[str, object]:
        """All of it, bodies included."""
        answer: Optional[Dict[str, object]] = None
        if self.status is not None:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.answer_headers}
            kept = self.body_state != "forgotten"
            body = self._shown(b"".join(self.answer_chunks)) if kept else None
            answer = {"status": self.status, "headers": mask_headers(headers), "body": body}
        return {
            **self.describe(),
            "headers": mask_headers(self.headers),
            "body": None if self.body is None else self._shown(self.body),
            "body_state": self.body_state,
            "decoded": self.decoded(),
            "response": answer,
        }

    def _wire_bytes(self) -> int:
        head = len(self.method) + len(self.path) + len(self.query) + bool(self.query) + _FIRST_LINE
        return (
            head
            + sum(len(name) + len(value) + _LINE for name, value in self.headers.items())
            + self.body_bytes
        )

    def decoded(self) -> Optional[str]:
        """The text of the body without its encoding; None when there is none to read."""
        if self.body is None:
            return None
        try:
            plain = bodies.decode(self.body, self.headers, limit=_MOST_BYTES, gzip="accept")
            return self._masked(plain.decode())
        except (ApiError, UnicodeDecodeError):
            return None

    def _shown(self, raw: bytes) -> Dict[str, str]:
        try:
            return {"text": self._masked(raw.decode())}
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(raw).decode()}

    def _masked(self, text: str) -> str:
        key = api_key(self.headers)
        return text.replace(key, MASK) if key else text


_NO_NAMES: Mapping[str, int] = Counter()

#: How much of a body is unpacked to search it: far more than servers usually accept.
_MOST_BYTES = 100_000_000

#: The columns of the search language that a request has itself, and those of the events that it carries.
_COLUMNS: Dict[str, Callable[[Exchange], Sequence[object]]] = {
    "id": lambda each: (each.number,),
    "request": lambda each: (each.number, each.request_id),
    "key": lambda each: (each.inbox,),
    "status": lambda each: (each.status or "none",),
    "method": lambda each: (each.method,),
    "path": lambda each: (each.path,),
    "attempt": lambda each: (each.attempt,),
    "fault": lambda each: (each.fault or None,),
    "idempotency": lambda each: (each.headers.get("idempotency-key"),),
    "received_at": lambda each: (iso(each.received_at),),
    "duration": lambda each: () if each.duration_s is None else (each.duration_s * 1000,),
}
_EVENT_COLUMNS: Dict[str, Tuple[str, ...]] = {
    "event": ("event",),
    "email": ("customer_email",),
    "customer": ("customer_email", "customer_id"),
    "customer_id": ("customer_id",),
    "name": ("customer_name",),
}
