"""The tracked events: kept in order of arrival up to a cap, searched, counted.

Ids only ever go up, also over deletions and restarts, so an id is a cursor. What each inbox has of each event
name is counted beside the rows, and stays right when the oldest rows are evicted.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from operator import itemgetter
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, cast

import orjson

from .clock import iso, moment_of
from .query import Query, Term
from .validation import Batch

Doc = Dict[str, object]

SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY, received_at TEXT NOT NULL, idempotency_key TEXT, inbox TEXT NOT NULL,
    request INTEGER NOT NULL, attempt INTEGER NOT NULL, answered INTEGER);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, batch_id INTEGER NOT NULL, event TEXT NOT NULL, customer_email TEXT,
    customer_id TEXT, customer_name TEXT, timestamp TEXT, properties TEXT NOT NULL, problems TEXT);
CREATE TABLE IF NOT EXISTS evicted (
    inbox TEXT NOT NULL, event TEXT NOT NULL, ignored INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (inbox, event, ignored)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursors (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
TABLES = ("batches", "events", "evicted")

#: Rows that a search reads before others get their turn.
CHUNK = 1_000

#: What a row takes beside its properties, roughly.
_ROW_BYTES = 200

_INSERT = (
    "INSERT INTO events (batch_id, event, customer_email, customer_id, customer_name, timestamp, properties)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_FIRST = _INSERT.replace("properties)", "properties, id)").replace("(?", "(?, ?")

_name_of = itemgetter(0)

_SELECT = (
    "SELECT e.id, e.batch_id, e.event, e.customer_email, e.customer_id, e.customer_name, e.timestamp,"
    " e.properties, e.problems, b.received_at, b.idempotency_key, b.inbox, b.request, b.attempt, b.answered"
    " FROM events e JOIN batches b ON b.id = e.batch_id"
)


class Arrival(NamedTuple):
    """The request that brought a batch."""

    received_at: float
    idempotency_key: Optional[str]
    inbox: str
    request: int
    attempt: int
    #: The status that it will be answered with; None when a fault rule keeps the answer back.
    answered: Optional[int]


class Event(NamedTuple):
    """A row of the search, as SQLite has it; `query.Subject` for events."""

    id: int
    batch_id: int
    event: str
    customer_email: Optional[str]
    customer_id: Optional[str]
    customer_name: Optional[str]
    timestamp: Optional[str]
    encoded: str
    problems: Optional[str]
    received_at: str
    idempotency_key: Optional[str]
    inbox: str
    request: int
    attempt: int
    answered: Optional[int]

    @property
    def delay_s(self) -> Optional[float]:
        """Arrival minus the client's stamp."""
        if self.timestamp is None:
            return None
        sent, came = moment_of(self.timestamp), moment_of(self.received_at)
        return None if sent is None or came is None else round((came - sent).total_seconds(), 3)

    def values(self, column: str) -> Sequence[object]:
        """The value of a column of the search language."""
        name = _COLUMNS.get(column)
        if name is not None:
            return (getattr(self, name),)
        if column == "customer":
            return (self.customer_email, self.customer_id)
        if column == "status":
            return ("stored" if self.problems is None else "ignored", self.answered or "none")
        if column == "request":
            return (f"req_{self.request}", self.request)
        return ()

    def properties(self) -> Sequence[Mapping[str, object]]:
        """The properties, as the one event that it is."""
        return (cast("Mapping[str, object]", orjson.loads(self.encoded)),)

    def text(self) -> str:
        """Name, customer and properties."""
        parts = (self.event, self.customer_email, self.customer_id, self.customer_name, self.encoded)
        return "\n".join(filter(None, parts))

    def describe(self) -> Doc:
        """The event as the control plane shows it; `timestamp` is the time of arrival if none was given."""
        return {
            "id": self.id,
            "batch_id": self.batch_id,
            "event": self.event,
            "customer_email": self.customer_email,
            "customer_id": self.customer_id,
            "customer_name": self.customer_name,
            "timestamp": self.received_at if self.timestamp is None else self.timestamp,
            "properties": orjson.loads(self.encoded),
            "received_at": self.received_at,
            "idempotency_key": self.idempotency_key,
            "inbox": self.inbox,
            "request_id": f"req_{self.request}",
            "status": "stored" if self.problems is None else "ignored",
            "problems": [] if self.problems is None else orjson.loads(self.problems),
            "delay_s": self.delay_s,
            "attempt": self.attempt,
            "answered": self.answered,
        }


_COLUMNS = {
    "event": "event",
    "email": "customer_email",
    "customer_id": "customer_id",
    "name": "customer_name",
    "id": "id",
    "batch": "batch_id",
    "idempotency": "idempotency_key",
    "attempt": "attempt",
    "delay": "delay_s",
    "key": "inbox",
    "received_at": "received_at",
}


class _Name(NamedTuple):
    """What all events of one name in one inbox have in common; a `query.Subject` of what is known of them."""

    inbox: str
    event: str
    ignored: bool

    def values(self, column: str) -> Sequence[object]:
        return (
            (self.event,)
            if column == "event"
            else (self.inbox,)
            if column == "key"
            else ("ignored" if self.ignored else "stored",)
        )

    def properties(self) -> Sequence[Mapping[str, object]]:
        raise NotImplementedError

    def text(self) -> str:
        raise NotImplementedError


#: The columns that `_Name` knows.
_COUNTED = frozenset({"event", "key", "status"})


class Tally(NamedTuple):
    """How many events there are that match something."""

    kept: int
    evicted: int


class Tracked:
    """The events in *db*. Without *keep_events* and *keep_bytes* nothing is ever evicted."""

    def __init__(self, db: sqlite3.Connection, keep_events: Optional[int], keep_bytes: Optional[int]) -> None:
        self._db = db
        self._keep_events = keep_events
        self._keep_bytes = keep_bytes
        #: Goes up when events are deleted (not when they are evicted).
        self.deletions = 0
        self._dirty = False
        self._load()

    def _load(self) -> None:
        """Count what is in the tables."""
        self._kept: Counter[_Name] = Counter()
        self._evicted: Counter[_Name] = Counter()
        rows = self._db.execute(
            "SELECT b.inbox, e.event, e.problems IS NOT NULL, count(*) FROM events e"
            " JOIN batches b ON b.id = e.batch_id GROUP BY 1, 2, 3"
        )
        for inbox, event, ignored, count in rows:
            self._kept[_Name(inbox, event, bool(ignored))] = count
        for inbox, event, ignored, count in self._db.execute("SELECT * FROM evicted"):
            self._evicted[_Name(inbox, event, bool(ignored))] = count
        self.stored = sum(self._kept.values())
        self.evicted = sum(self._evicted.values())
        self.ignored = sum(
            count for each in (self._kept, self._evicted) for name, count in each.items() if name.ignored
        )
        (self._bytes,) = self._db.execute(
            "SELECT coalesce(sum(length(properties)), 0) + ? * count(*) FROM events", (_ROW_BYTES,)
        ).fetchone()
        (highest,) = self._db.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
        kept = self._db.execute("SELECT value FROM cursors WHERE name = 'event'").fetchone()
        self.last_id = max(highest, kept[0] if kept else 0)
        self._dirty = False

    @property
    def taken(self) -> int:
        """Events that the API would have kept, evicted ones included."""
        return self.stored + self.evicted - self.ignored

    @property
    def last_request(self) -> int:
        """The highest number of a request that brought events."""
        (number,) = self._db.execute("SELECT coalesce(max(request), 0) FROM batches").fetchone()
        return int(number)

    def rolled_back(self) -> None:
        """A transaction has been undone."""
        if self._dirty:
            self._load()

    def committed(self) -> None:
        """A transaction has been kept."""
        self._dirty = False

    def add(self, batch: Batch, arrival: Arrival) -> Counter[str]:
        """Store one batch, and evict what is too much; the number of those not ignored by name."""
        self._dirty = True
        rows, problems = batch
        number = self._db.execute(
            "INSERT INTO batches (received_at, idempotency_key, inbox, request, attempt, answered)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (iso(arrival.received_at), *arrival[1:]),
        ).lastrowid
        first = self.last_id + 1
        # The first row has an explicit id, the others get the next ones automatically, which is faster.
        self._db.execute(_INSERT_FIRST, (number, *rows[0], first))
        if len(rows) > 1:
            self._db.executemany(_INSERT, [(number, *row) for row in rows[1:]])
        taken = Counter(map(_name_of, rows))
        for place, problem in problems.items():
            self._db.execute("UPDATE events SET problems = ? WHERE id = ?", (problem, first + place))
            name = rows[place].event
            taken[name] -= 1
            self._kept[_Name(arrival.inbox, name, ignored=True)] += 1
        if problems:
            taken = +taken
            self.ignored += len(problems)
        for name, count in taken.items():
            self._kept[_Name(arrival.inbox, name, ignored=False)] += count
        self.last_id += len(rows)
        self.stored += len(rows)
        if self._keep_bytes is not None:
            self._bytes += sum([len(row[5]) for row in rows]) + _ROW_BYTES * len(rows)
        self._evict()
        return taken

    def _evict(self) -> None:
        """Drop the oldest events; a hundredth more than needed, so that not every request has to."""
        if self._keep_events is not None and self.stored > self._keep_events:
            over = self.stored - self._keep_events + self._keep_events // 100
            (last,) = self._db.execute(
                "SELECT id FROM events ORDER BY id LIMIT 1 OFFSET ?", (over - 1,)
            ).fetchone()
            self._remove("e.id <= ?", (last,), evict=True)
        if self._keep_bytes is not None and self._bytes > self._keep_bytes:
            over = self._bytes - self._keep_bytes + self._keep_bytes // 100
            last = 0
            for number, size in self._db.execute("SELECT id, length(properties) FROM events ORDER BY id"):
                if over <= 0 or number == self.last_id:  # the newest stays, however large it is
                    break
                last, over = number, over - size - _ROW_BYTES
            self._remove("e.id <= ?", (last,), evict=True)

    def delete(self, ids: Sequence[int]) -> int:
        """Forget these events as though they had never come; how many of them were still there."""
        before = self.stored
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            self._remove(f"e.id IN ({', '.join('?' * len(part))})", part, evict=False)
        self.deletions += 1
        return before - self.stored

    def delete_evicted(self, query: Query, inbox: Optional[str]) -> int:
        """Forget the count of evicted events that match, if that is known; returns their number."""
        if not _is_counted(query):
            return 0
        deleted = 0
        for name in [name for name in self._evicted if _is_one(name, query, inbox)]:
            self._dirty = True
            count = self._evicted.pop(name)
            deleted += count
            self.evicted -= count
            self.ignored -= count if name.ignored else 0
            self._db.execute("DELETE FROM evicted WHERE inbox = ? AND event = ? AND ignored = ?", name)
        return deleted

    def _remove(self, where: str, values: Sequence[object], *, evict: bool) -> None:
        self._dirty = True
        groups = self._db.execute(
            "SELECT b.inbox, e.event, e.problems IS NOT NULL, count(*), sum(length(e.properties))"  # noqa: S608 - text of ours
            f" FROM events e JOIN batches b ON b.id = e.batch_id WHERE {where} GROUP BY 1, 2, 3",
            values,
        ).fetchall()
        self._db.execute(f"DELETE FROM events AS e WHERE {where}", values)  # noqa: S608 - the same
        for inbox, event, ignored, count, size in groups:
            name = _Name(inbox, event, bool(ignored))
            self._kept[name] -= count
            if not self._kept[name]:
                del self._kept[name]
            self.stored -= count
            self._bytes -= size + _ROW_BYTES * count if self._keep_bytes is not None else 0
            if evict:
                self._evicted[name] += count
                self.evicted += count
                self._db.execute(
                    "INSERT OR REPLACE INTO evicted VALUES (?, ?, ?, ?)", (*name, self._evicted[name])
                )
            elif ignored:
                self.ignored -= count
        self._db.execute("INSERT OR REPLACE INTO cursors VALUES ('event', ?)", (self.last_id,))
        self._remove_batches()

    def _remove_batches(self) -> None:
        """Forget the batches before the oldest event, and the answers that were kept for their repeats."""
        (oldest,) = self._db.execute(
            "SELECT coalesce((SELECT batch_id FROM events ORDER BY id LIMIT 1),"
            " (SELECT max(id) + 1 FROM batches))"
        ).fetchone()
        self._db.execute(
            "DELETE FROM answers WHERE key IN (SELECT idempotency_key FROM batches"
            " WHERE id < ? AND idempotency_key IS NOT NULL)",
            (oldest,),
        )
        self._db.execute("DELETE FROM batches WHERE id < ?", (oldest,))

    def reset(self) -> None:
        """All rows are gone; ids go on from where they were."""
        self._db.execute("INSERT OR REPLACE INTO cursors VALUES ('event', ?)", (self.last_id,))
        self.deletions += 1
        self._load()

    # Reading

    def page(
        self,
        *,
        after: int = 0,
        before: Optional[int] = None,
        newest_first: bool = False,
        limit: int,
        offset: int = 0,
    ) -> List[Event]:
        """Events by position, whatever they are."""
        order = "DESC" if newest_first else "ASC"
        rows = self._db.execute(
            f"{_SELECT} WHERE e.id > ? AND e.id < ? ORDER BY e.id {order} LIMIT ? OFFSET ?",
            (after, self._end(before), limit, offset),
        )
        return [Event(*row) for row in rows]

    def search(
        self,
        query: Query,
        inbox: Optional[str],
        *,
        after: int = 0,
        before: Optional[int] = None,
        newest_first: bool = False,
    ) -> Iterator[List[Event]]:
        """The events that match, in lists of what was found among the next `CHUNK` candidates."""
        where, values = _narrowed(query, inbox)
        order = "DESC" if newest_first else "ASC"
        statement = f"{_SELECT} WHERE e.id > ? AND e.id < ?{where} ORDER BY e.id {order} LIMIT {CHUNK}"
        low, high = after, self._end(before)
        while True:
            events = [Event(*row) for row in self._db.execute(statement, (low, high, *values))]
            yield [event for event in events if query.matches(event)]
            if len(events) < CHUNK:
                return
            low, high = (low, events[-1].id) if newest_first else (events[-1].id, high)

    def news(self, query: Query, inbox: Optional[str], after: int) -> Tuple[List[Event], int]:
        """The next events after an id that match, and the id up to which has been looked."""
        end = min(after + CHUNK, self.last_id)
        found = next(self.search(query, inbox, after=after, before=end + 1)) if end > after else []
        return found, end

    def _end(self, before: Optional[int]) -> int:
        return self.last_id + 1 if before is None else before

    def get(self, number: int) -> Optional[Event]:
        """The event of this id, or None."""
        row = self._db.execute(f"{_SELECT} WHERE e.id = ?", (number,)).fetchone()
        return None if row is None else Event(*row)

    def minutes(self) -> Iterator[Tuple[float, str, str, int]]:
        """How many events of each name each minute brought to each inbox, oldest first."""
        rows = self._db.execute(
            "SELECT substr(b.received_at, 1, 16), b.inbox, e.event, count(*)"
            " FROM events e JOIN batches b ON b.id = e.batch_id"
            " WHERE e.problems IS NULL GROUP BY 1, 2, 3 ORDER BY 1"
        )
        for minute, inbox, event, count in rows:
            at = moment_of(f"{minute}:00Z")
            if at is not None:
                yield at.timestamp(), inbox, event, count

    def newest(self, inbox: Optional[str]) -> Optional[Event]:
        """The last event that came, or None."""
        rows = self._db.execute(
            f"{_SELECT} WHERE e.problems IS NULL AND (? IS NULL OR b.inbox = ?) ORDER BY e.id DESC LIMIT 1",
            (inbox, inbox),
        )
        return next((Event(*row) for row in rows), None)

    def of_request(self, number: int) -> Optional[Tuple[int, int]]:
        """The first and the last id of what a request brought, or None."""
        first, last = self._db.execute(
            "SELECT min(id), max(id) FROM events WHERE batch_id = (SELECT id FROM batches WHERE request = ?)",
            (number,),
        ).fetchone()
        return None if first is None else (first, last)

    def of_customer(self, name: str, inbox: Optional[str], limit: int) -> List[Event]:
        """The newest *limit* events of a customer, by email in any case or by id; oldest first."""
        rows = self._db.execute(
            f"{_SELECT} WHERE (lower(e.customer_email) = lower(?) OR (e.customer_email IS NULL AND"
            " e.customer_id = ?)) AND e.problems IS NULL AND (? IS NULL OR b.inbox = ?)"
            " ORDER BY e.id DESC LIMIT ?",
            (name, name, inbox, inbox, limit),
        )
        return [Event(*row) for row in rows][::-1]

    def neighbours(self, number: int) -> Dict[str, Optional[int]]:
        """The ids of the events kept next to an id."""
        (newer,) = self._db.execute("SELECT min(id) FROM events WHERE id > ?", (number,)).fetchone()
        (older,) = self._db.execute("SELECT max(id) FROM events WHERE id < ?", (number,)).fetchone()
        return {"newer": newer, "older": older}

    def tally(self, query: Query, inbox: Optional[str]) -> Optional[Tally]:
        """How many events match, if the query asks only for what is counted beside the rows; else None."""
        if not _is_counted(query):
            return None
        kept, evicted = (
            sum(count for name, count in each.items() if _is_one(name, query, inbox))
            for each in (self._kept, self._evicted)
        )
        return Tally(kept, evicted)

    def names(self, inbox: Optional[str]) -> List[Doc]:
        """How often each event has come, the most frequent first."""
        counts: Counter[str] = Counter()
        ignored: Counter[str] = Counter()
        for each in (self._kept, self._evicted):
            for name, count in each.items():
                if inbox in (None, name.inbox):
                    counts[name.event] += count
                    ignored[name.event] += count if name.ignored else 0
        return [
            {"event": event, "count": count, "ignored": ignored[event]}
            for event, count in counts.most_common()
        ]

    def inboxes(self) -> Counter[str]:
        """How many events each inbox has taken."""
        counts: Counter[str] = Counter()
        for each in (self._kept, self._evicted):
            for name, count in each.items():
                counts[name.inbox] += count
        return counts

    def counts(self, inbox: str) -> Dict[str, int]:
        """The counts of one inbox, as `Store.counts` has them for all."""
        kept, evicted = (
            [(name, count) for name, count in each.items() if name.inbox == inbox]
            for each in (self._kept, self._evicted)
        )
        ignored = sum(count for name, count in [*kept, *evicted] if name.ignored)
        stored, gone = (sum(count for _, count in each) for each in (kept, evicted))
        return {"events": stored + gone - ignored, "ignored": ignored, "evicted": gone, "stored": stored}

    def distinct(self) -> int:
        """How many kept events differ in at least one field that the client sent."""
        (count,) = self._db.execute(
            "SELECT count(*) FROM (SELECT DISTINCT event, customer_email, customer_id, customer_name,"
            " timestamp, properties FROM events)"
        ).fetchone()
        return int(count)


def _is_counted(query: Query) -> bool:
    """Whether `_Name` knows all that the query asks for."""
    return query.fields <= _COUNTED and all(
        term.value in ("stored", "ignored") for term in query.terms if term.field == "status"
    )


def _is_one(name: _Name, query: Query, inbox: Optional[str]) -> bool:
    return inbox in (None, name.inbox) and query.matches(name)


def _narrowed(query: Query, inbox: Optional[str]) -> Tuple[str, List[str]]:
    """What SQLite can rule out of a search; whether the rest matches is for the query to say."""
    clauses = [("b.inbox = ?", inbox)] if inbox is not None else []
    for term in query.terms:
        if not term.negated:
            clauses += _clauses(term)
    where = "".join(f" AND {clause}" for clause, _ in clauses)
    return where, [value for clause, value in clauses for _ in range(clause.count("?"))]


def _clauses(term: Term) -> List[Tuple[str, str]]:
    """Conditions that hold at least where a term does, each with the one value it takes."""
    if term.field in _TIMES:
        return [(_TIMES[term.field], term.value)]
    if term.field.startswith("properties."):
        return [("instr(e.properties, ?)", text) for text in _in_json(term)]
    columns = _SEARCHED.get(term.field)
    # LIKE folds no letters but those of ASCII, and many stars take it long.
    if columns is None or not term.value.isascii() or term.value.count("*") > 2:
        return []
    likes = (f"e.{column} LIKE ? ESCAPE '\\'" for column in columns)
    return [(f"({' OR '.join(likes)})", _pattern(term))]


_TIMES = {"after": "b.received_at > ?", "before": "b.received_at < ?"}
_SEARCHED = {
    "": ("event", "customer_email", "customer_id", "customer_name", "properties"),
    "event": ("event",),
    "email": ("customer_email",),
    "customer": ("customer_email", "customer_id"),
}


def _pattern(term: Term) -> str:
    """What LIKE must find at least: a star, of which there may be more than meant as one, is anything."""
    escaped = re.sub(r"([\\%_])", r"\\\1", term.value).replace("*", "%")
    return escaped if term.field else f"%{escaped}%"


def _in_json(term: Term) -> List[str]:
    """Texts that the JSON of the properties must contain if a term matches."""
    texts = [term.field.rpartition(".")[2]]
    if term.operator == ":" and not _may_be_other_text(term.value):
        texts.append(term.value)
    return [orjson.dumps(text).decode()[1:-1] for text in texts]


def _may_be_other_text(value: str) -> bool:
    """Whether a value can match a different spelling: a pattern, or a number."""
    try:
        float(value)
    except ValueError:
        return "*" in value
    return True
