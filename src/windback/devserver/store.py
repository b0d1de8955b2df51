"""Everything the server keeps, in SQLite.

One connection, used by the event loop's thread alone, so a request's reads and writes are never interleaved
with another's. A request is one transaction: what it was answered for is committed before the answer leaves.

Tables:
    batches      one row for each `POST /track` that was taken: when, from whom, under which Idempotency-Key
    events       one row for each event, in the order of arrival; `batch_id` points into `batches`
    evicted      how many events of each name are gone; `cursors`: the last id that was given
    churn_events, variants, templates, cancel_flows, offers   `doc` is the JSON that the API answers with
    webhooks     one row for each alert: its body, the tries, and the result
    accepted_offers   what `POST /cancel-flow/accept-offer` recorded
    answers      the first answer to each Idempotency-Key, by `scope` (method, path and key of the caller)
    answer_keys  the order of these
"""

from __future__ import annotations

import sqlite3
import uuid
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import Deque, Dict, Generator, List, NamedTuple, Optional, Tuple

import orjson

from . import tracked
from .clock import iso
from .people import People
from .validation import Acceptance, ChurnFields, TemplateFields

#: Marks a file as one of this server (SQLite's `application_id`), and how it is laid out (`user_version`).
APPLICATION_ID, SCHEMA_VERSION = 0x57424456, 2

_SCHEMA = (
    tracked.SCHEMA
    + """
CREATE TABLE IF NOT EXISTS churn_events (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, slug TEXT, status TEXT NOT NULL,
    created_at TEXT NOT NULL, status_at TEXT NOT NULL, mrr INTEGER NOT NULL, currency TEXT NOT NULL,
    customer TEXT NOT NULL, inbox TEXT NOT NULL, doc TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS churn_events_by_customer ON churn_events (customer);
CREATE TABLE IF NOT EXISTS variants (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, event_id TEXT NOT NULL, doc TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS variants_by_event ON variants (event_id);
CREATE TABLE IF NOT EXISTS templates (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, slug TEXT NOT NULL, cancel_reason TEXT NOT NULL,
    doc TEXT NOT NULL, UNIQUE (slug, cancel_reason));
CREATE TABLE IF NOT EXISTS cancel_flows (
    seq INTEGER PRIMARY KEY, customer TEXT NOT NULL, created_at REAL NOT NULL, event_id TEXT NOT NULL,
    feedback_text TEXT, selected_offer TEXT);
CREATE INDEX IF NOT EXISTS cancel_flows_by_customer ON cancel_flows (customer, created_at);
CREATE TABLE IF NOT EXISTS offers (cancel_reason TEXT PRIMARY KEY, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS accepted_offers (
    seq INTEGER PRIMARY KEY, customer TEXT NOT NULL, cancel_reason TEXT NOT NULL, offer_type TEXT NOT NULL,
    accepted_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS webhooks (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
    scope TEXT NOT NULL, key TEXT NOT NULL, fingerprint BLOB NOT NULL, status INTEGER NOT NULL,
    body BLOB NOT NULL, events INTEGER NOT NULL, PRIMARY KEY (key, scope)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answer_keys (seq INTEGER PRIMARY KEY, scope TEXT NOT NULL, key TEXT NOT NULL);
"""
)
TABLES = (
    *tracked.TABLES,
    *("churn_events", "variants", "templates", "cancel_flows", "offers"),
    *("accepted_offers", "webhooks", "answers", "answer_keys"),
)

#: Answers that are kept for repeats of their request; a repeat of an older one is processed again.
KEPT_ANSWERS = 100_000
#: Rows that are kept of each other kind; the oldest make room for newer ones.
KEPT_ROWS = 100_000
GROWING = ("churn_events", "variants", "cancel_flows", "accepted_offers", "templates")
#: Alerts that are kept; an older one is not delivered any more either.
KEPT_ALERTS = 1_000
#: Changes of churn events that are remembered for those who watch.
KEPT_CHANGES = 1_000

_MARKS = {"application_id": APPLICATION_ID, "user_version": SCHEMA_VERSION}

Doc = Dict[str, object]


class StoredAnswer(NamedTuple):
    """What a request with an Idempotency-Key was answered the first time."""

    fingerprint: bytes
    status: int
    body: bytes
    events: int


class OtherVersionError(sqlite3.DatabaseError):
    """The file is one of this server, but of another version."""

    def __init__(self, version: int) -> None:
        super().__init__(f"it has schema version {version}, and version {SCHEMA_VERSION} is needed")
        self.version = version


class Store:
    """The database behind the server; *path* None keeps it in memory.

    *keep_events*, *keep_bytes*: above this, the oldest tracked events are evicted; None: never.

    Raises `sqlite3.Error` when the file cannot be opened, is not a database, or is not one of this version
    (`OtherVersionError`).
    """

    def __init__(
        self,
        path: Optional[str] = None,
        keep_events: Optional[int] = None,
        keep_bytes: Optional[int] = None,
    ) -> None:
        self._db = sqlite3.connect(path or ":memory:", isolation_level=None)
        try:
            self._open(path)
        except BaseException:
            self._db.close()
            raise
        self.tracked = tracked.Tracked(self._db, keep_events, keep_bytes)
        self.people = People(self._db)
        #: Goes up with each change of a churn event.
        self.churn_changes = 0
        self._changed: Deque[str] = deque(maxlen=KEPT_CHANGES)

    def _open(self, path: Optional[str]) -> None:
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        application, version = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in _MARKS)
        if tables and application != APPLICATION_ID:  # nothing has been written to it yet
            raise sqlite3.DatabaseError("it is not of this server; name another file, or move it away")
        if tables and version != SCHEMA_VERSION:
            raise OtherVersionError(version)
        if path:
            # Now that it is ours: the files that SQLite puts beside it get the same mode.
            Path(path).chmod(0o600)
            # A killed server loses nothing that it answered for (the kernel has the pages); only a power cut
            # could, and waiting for the disk at each request would be a high price for that here.
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=OFF")
        self._db.executescript(_SCHEMA)
        for name, value in _MARKS.items():
            self._db.execute(f"PRAGMA {name} = {value}")

    def close(self) -> None:
        """Close the file; the store is of no use afterwards."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Generator[None, None, None]:
        """All writes inside are kept together, or none of them when an exception passes through."""
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            self.tracked.rolled_back()
            raise
        self._db.execute("COMMIT")
        self.tracked.committed()

    def reset(self) -> None:
        """Delete every row."""
        with self.transaction():
            for table in TABLES:
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - a name of ours
            self.tracked.reset()

    def counts(self) -> Dict[str, int]:
        """Rows by kind; of the tracked events all that were taken, whether they are still kept or not."""
        return {
            "events": self.tracked.taken,
            "ignored": self.tracked.ignored,
            "evicted": self.tracked.evicted,
            "stored": self.tracked.stored,
            "churn_events": self._count("churn_events"),
            "templates": self._count("templates"),
            "cancel_flows": self._count("cancel_flows"),
            "accepted_offers": self._count("accepted_offers"),
        }

    def forgotten(self) -> Dict[str, int]:
        """How many of the oldest made room for newer ones, by kind, without kinds of which none did."""
        firsts = {
            table: self._db.execute(f"SELECT min(seq) FROM {table}").fetchone()[0]  # noqa: S608 - a name of ours
            for table in (*GROWING, "answer_keys", "webhooks")
        }
        names = {"answer_keys": "answers", "webhooks": "alerts"}
        return {
            names.get(table, table): first - 1 for table, first in firsts.items() if first not in (None, 1)
        }

    def _forget_oldest(self, table: str, kept: int) -> None:
        self._db.execute(
            f"DELETE FROM {table} WHERE seq <= (SELECT max(seq) FROM {table}) - ?",  # noqa: S608 - a name of ours
            (kept,),
        )

    def _count(self, table: str) -> int:
        (count,) = self._db.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - a name of ours
        return int(count)

    # Idempotency

    def answer_for(self, scope: str, key: str) -> Optional[StoredAnswer]:
        """The first answer given to *key* in *scope*, if there was one."""
        row = self._db.execute(
            "SELECT fingerprint, status, body, events FROM answers WHERE scope = ? AND key = ?", (scope, key)
        ).fetchone()
        return None if row is None else StoredAnswer(*row)

    def keep_answer(self, scope: str, key: str, answer: StoredAnswer) -> None:
        """Remember *answer* for the next request with the same *key*."""
        self._db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?)", (scope, key, *answer))
        cursor = self._db.execute("INSERT INTO answer_keys (scope, key) VALUES (?, ?)", (scope, key))
        oldest = (cursor.lastrowid or 0) - KEPT_ANSWERS
        if oldest > 0:
            rows = self._db.execute("SELECT scope, key FROM answer_keys WHERE seq <= ?", (oldest,)).fetchall()
            self._db.executemany("DELETE FROM answers WHERE scope = ? AND key = ?", rows)
            self._forget_oldest("answer_keys", KEPT_ANSWERS)

    # Churn events

    def add_churn_event(self, slug: Optional[str], fields: ChurnFields, now: float, inbox: str) -> Doc:
        """Create a churn event with the status "new" in *inbox*.

        The cancel flow names no project, so its events have no *slug* and show under every project.
        """
        created = iso(now)
        doc: Doc = {"id": "evt_" + uuid.uuid4().hex, "project_id": f"prj_{slug or 'dev'}", **fields._asdict()}
        doc.update(status="new", created_at=created, updated_at=created)
        self._db.execute(
            "INSERT INTO churn_events (id, slug, status, created_at, status_at, mrr, currency, customer,"
            " inbox, doc) VALUES (?, ?, 'new', ?, ?, ?, ?, ?, ?, ?)",
            (
                *(doc["id"], slug, created, created, fields.mrr, fields.currency.upper()),
                *(fields.customer_email.lower(), inbox, orjson.dumps(doc).decode()),
            ),
        )
        self._forget_oldest("churn_events", KEPT_ROWS)
        self._note_change(str(doc["id"]))
        return doc

    def _note_change(self, event_id: str) -> None:
        self.churn_changes += 1
        self._changed.append(event_id)

    def changed_since(self, changes: int, inbox: Optional[str]) -> List[Doc]:
        """The churn events that changed after `churn_changes` was *changes*, as they are now."""
        count = min(max(self.churn_changes - changes, 0), len(self._changed))
        ids = dict.fromkeys(list(self._changed)[len(self._changed) - count :])
        rows = (
            self._db.execute(
                "SELECT doc FROM churn_events WHERE id = ? AND (? IS NULL OR inbox = ?)",
                (event_id, inbox, inbox),
            ).fetchone()
            for event_id in ids
        )
        return [_doc(row) for row in rows if row is not None]

    def churn_event(self, slug: str, event_id: str) -> Optional[Doc]:
        """The churn event of this id, or None."""
        row = self._db.execute(
            "SELECT doc FROM churn_events WHERE id = ? AND (slug = ? OR slug IS NULL)", (event_id, slug)
        ).fetchone()
        return None if row is None else _doc(row)

    def any_churn_event(self, event_id: str) -> Optional[Doc]:
        """The churn event of this id, of whatever project, or None."""
        row = self._db.execute("SELECT doc FROM churn_events WHERE id = ?", (event_id,)).fetchone()
        return None if row is None else _doc(row)

    def churn_events(
        self, slug: str, status: Optional[str], limit: int, offset: int
    ) -> Tuple[List[Doc], int]:
        """A page of churn events, newest first, and how many there are in all."""
        where = "WHERE (slug = ? OR slug IS NULL) AND (? IS NULL OR status = ?)"
        (total,) = self._db.execute(
            f"SELECT count(*) FROM churn_events {where}",  # noqa: S608 - text of ours
            (slug, status, status),
        ).fetchone()
        rows = self._db.execute(
            f"SELECT doc FROM churn_events {where} ORDER BY seq DESC LIMIT ? OFFSET ?",  # noqa: S608 - text of ours
            (slug, status, status, limit, offset),
        )
        return [_doc(row) for row in rows], int(total)

    def update_churn_event(self, doc: Doc, now: float) -> None:
        """Write a changed churn event back and stamp `updated_at`."""
        doc["updated_at"] = iso(now)
        self._db.execute(
            "UPDATE churn_events SET status_at = CASE status WHEN ? THEN status_at ELSE ? END,"
            " status = ?, doc = ? WHERE id = ?",
            (doc["status"], doc["updated_at"], doc["status"], orjson.dumps(doc).decode(), doc["id"]),
        )
        self._note_change(str(doc["id"]))

    def events_by_status(self, slug: str) -> Dict[str, Tuple[int, int]]:
        """How many churn events a project has in each status, and the cents a month they stand for."""
        rows = self._db.execute(
            "SELECT status, count(*), sum(mrr) FROM churn_events WHERE slug = ? OR slug IS NULL"
            " GROUP BY status",
            (slug,),
        )
        return {status: (count, mrr) for status, count, mrr in rows}

    def slug_of(self, event_id: str) -> Optional[str]:
        """The project of a churn event; None for one of the cancel flow."""
        row = self._db.execute("SELECT slug FROM churn_events WHERE id = ?", (event_id,)).fetchone()
        return None if row is None or row[0] is None else str(row[0])

    # Variants

    def add_variants(self, event_id: str, emails: List[Doc], now: float) -> List[Doc]:
        """Keep the emails that were written for a churn event, as drafts."""
        draft: Doc = {"status": "draft", "sent_at": None, "opened_at": None, "clicked_at": None}
        draft["created_at"] = iso(now)
        docs: List[Doc] = [
            {"id": "var_" + uuid.uuid4().hex, "churn_event_id": event_id, **email, **draft}
            for email in emails
        ]
        self._db.executemany(
            "INSERT INTO variants (id, event_id, doc) VALUES (?, ?, ?)",
            [(doc["id"], event_id, orjson.dumps(doc).decode()) for doc in docs],
        )
        self._forget_oldest("variants", KEPT_ROWS)
        return docs

    def variants(self, event_id: str) -> List[Doc]:
        """All variants of a churn event."""
        rows = self._db.execute("SELECT doc FROM variants WHERE event_id = ? ORDER BY seq", (event_id,))
        return [_doc(row) for row in rows]

    def variant(self, event_id: str, variant_id: str) -> Optional[Doc]:
        """The variant of this id, if it is one of that churn event."""
        row = self._db.execute(
            "SELECT doc FROM variants WHERE id = ? AND event_id = ?", (variant_id, event_id)
        ).fetchone()
        return None if row is None else _doc(row)

    def update_variant(self, doc: Doc) -> None:
        """Write a changed variant back."""
        self._db.execute("UPDATE variants SET doc = ? WHERE id = ?", (orjson.dumps(doc).decode(), doc["id"]))

    # Recovery templates

    def add_template(self, slug: str, fields: TemplateFields, now: float) -> Optional[Doc]:
        """Create a template; None when the project has one for this cancel reason already."""
        created = iso(now)
        doc: Doc = {"id": "tpl_" + uuid.uuid4().hex, "project_id": f"prj_{slug}", **fields._asdict()}
        doc.update(created_at=created, updated_at=created)
        cursor = self._db.execute(
            "INSERT OR IGNORE INTO templates (id, slug, cancel_reason, doc) VALUES (?, ?, ?, ?)",
            (doc["id"], slug, fields.cancel_reason, orjson.dumps(doc).decode()),
        )
        self._forget_oldest("templates", KEPT_ROWS)
        return doc if cursor.rowcount else None

    def templates(self, slug: str) -> List[Doc]:
        """All templates of a project, oldest first."""
        rows = self._db.execute("SELECT doc FROM templates WHERE slug = ? ORDER BY seq", (slug,))
        return [_doc(row) for row in rows]

    def template(self, slug: str, template_id: str) -> Optional[Doc]:
        """The template of this id, or None."""
        row = self._db.execute(
            "SELECT doc FROM templates WHERE id = ? AND slug = ?", (template_id, slug)
        ).fetchone()
        return None if row is None else _doc(row)

    def active_template(self, slug: str, cancel_reason: object) -> Optional[Doc]:
        """The template that is to be used for a reason, or None."""
        row = self._db.execute(
            "SELECT doc FROM templates WHERE slug = ? AND cancel_reason = ?", (slug, cancel_reason)
        ).fetchone()
        doc = None if row is None else _doc(row)
        return doc if doc is not None and doc["is_active"] else None

    def update_template(self, doc: Doc, now: float) -> None:
        """Write a changed template back and stamp `updated_at`."""
        doc["updated_at"] = iso(now)
        self._db.execute("UPDATE templates SET doc = ? WHERE id = ?", (orjson.dumps(doc).decode(), doc["id"]))

    def delete_template(self, slug: str, template_id: str) -> bool:
        """Delete a template; whether there was one."""
        cursor = self._db.execute("DELETE FROM templates WHERE id = ? AND slug = ?", (template_id, slug))
        return cursor.rowcount > 0

    # Cancel flow

    def cancel_flow_since(self, email: str, since: float) -> bool:
        """Whether this customer, whatever the case of the letters, submitted the flow after *since*."""
        row = self._db.execute(
            "SELECT 1 FROM cancel_flows WHERE customer = ? AND created_at > ?", (email.lower(), since)
        ).fetchone()
        return row is not None

    def add_cancel_flow(
        self,
        email: str,
        event_id: str,
        feedback_text: Optional[str],
        selected_offer: Optional[str],
        now: float,
    ) -> None:
        """Record a submission that created *event_id*."""
        self._db.execute(
            "INSERT INTO cancel_flows (customer, created_at, event_id, feedback_text, selected_offer)"
            " VALUES (?, ?, ?, ?, ?)",
            (email.lower(), now, event_id, feedback_text, selected_offer),
        )
        self._forget_oldest("cancel_flows", KEPT_ROWS)

    # Offers

    def offers(self) -> List[Doc]:
        """All offers, each with its cancel reason."""
        rows = self._db.execute("SELECT cancel_reason, doc FROM offers ORDER BY rowid")
        return [{"cancel_reason": reason, **orjson.loads(doc)} for reason, doc in rows]

    def replace_offers(self, offers: Dict[str, Doc]) -> None:
        """Configure these offers, by their cancel reason, in place of all earlier ones."""
        with self.transaction():
            self._db.execute("DELETE FROM offers")
            self._db.executemany(
                "INSERT INTO offers (cancel_reason, doc) VALUES (?, ?)",
                [(reason, orjson.dumps(offer).decode()) for reason, offer in offers.items()],
            )

    def active_offer(self, cancel_reason: str) -> Optional[Doc]:
        """The offer to make for a reason, or None."""
        row = self._db.execute("SELECT doc FROM offers WHERE cancel_reason = ?", (cancel_reason,)).fetchone()
        doc = None if row is None else _doc(row)
        return doc if doc is not None and doc["is_active"] else None

    def add_acceptance(self, acceptance: Acceptance, now: float) -> None:
        """Record that a customer took an offer."""
        self._db.execute(
            "INSERT INTO accepted_offers (customer, cancel_reason, offer_type, accepted_at)"
            " VALUES (?, ?, ?, ?)",
            (*acceptance, iso(now)),
        )
        self._forget_oldest("accepted_offers", KEPT_ROWS)

    # Webhooks

    def add_webhook(self, delivery: Doc) -> None:
        """Keep an alert that is to be delivered."""
        self._db.execute(
            "INSERT INTO webhooks (id, doc) VALUES (?, ?)", (delivery["id"], orjson.dumps(delivery).decode())
        )
        self._forget_oldest("webhooks", KEPT_ALERTS)

    def update_webhook(self, delivery: Doc) -> None:
        """Write back what became of an alert, unless it has been deleted."""
        self._db.execute(
            "UPDATE webhooks SET doc = ? WHERE id = ?", (orjson.dumps(delivery).decode(), delivery["id"])
        )

    def has_webhook(self, alert_id: str) -> bool:
        """Whether the alert is still kept."""
        row = self._db.execute("SELECT 1 FROM webhooks WHERE id = ?", (alert_id,)).fetchone()
        return row is not None

    def webhooks(self) -> List[Doc]:
        """All alerts, oldest first."""
        return [_doc(row) for row in self._db.execute("SELECT doc FROM webhooks ORDER BY seq")]


def _doc(row: Tuple[str]) -> Doc:
    doc: Doc = orjson.loads(row[0])
    return doc
