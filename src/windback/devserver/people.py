"""The database as the page shows it: customers, and churn events by their status. Reads only."""

from __future__ import annotations

import sqlite3
from typing import Dict, List, Optional, Tuple

import orjson

Doc = Dict[str, object]

#: All that is known of customers, a row for each event and each churn event; ``:who`` narrows it to one.
_SEEN = """
    SELECT e.customer_email AS email, e.customer_id AS id, e.customer_name AS name, b.received_at AS at,
        1 AS event
    FROM events e JOIN batches b ON b.id = e.batch_id
    WHERE e.problems IS NULL AND (:inbox IS NULL OR b.inbox = :inbox)
        AND (:who IS NULL OR lower(e.customer_email) = lower(:who)
            OR (e.customer_email IS NULL AND e.customer_id = :who))
    UNION ALL
    SELECT customer, NULL, NULL, created_at, 0
    FROM churn_events
    WHERE (:inbox IS NULL OR inbox = :inbox) AND (:who IS NULL OR customer = lower(:who))
"""
_PEOPLE = f"""
    SELECT coalesce(lower(email), id) AS person, max(email), max(id), max(name), sum(event), min(at), max(at)
    FROM ({_SEEN}) GROUP BY person ORDER BY max(at) DESC
"""  # noqa: S608 - text of ours


class People:
    """Customers, and the cards of the board; *inbox* None: of all inboxes."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def customers(self, part: str, inbox: Optional[str], limit: int, offset: int) -> Tuple[List[Doc], int]:
        """Who has *part* in email, id or name, last seen first; and how many these are."""
        folded = part.lower()
        rows = [
            row
            for row in self._db.execute(_PEOPLE, {"inbox": inbox, "who": None})
            if not folded or any(folded in text.lower() for text in row[1:4] if text)
        ]
        return [self._person(inbox, *row) for row in rows[offset : offset + limit]], len(rows)

    def customer(self, name: str, inbox: Optional[str]) -> Optional[Doc]:
        """One customer, by email in any case or by id; None when nothing is known."""
        row = self._db.execute(_PEOPLE, {"inbox": inbox, "who": name}).fetchone()
        return None if row is None else self._person(inbox, *row)

    def _person(
        self,
        inbox: Optional[str],
        person: str,
        email: Optional[str],
        customer_id: Optional[str],
        name: Optional[str],
        events: int,
        first_at: str,
        last_at: str,
    ) -> Doc:
        """A row of `_PEOPLE` as JSON; the amounts are those of the churn events that are still open."""
        rows = self._db.execute(
            "SELECT currency, count(*), sum(mrr) FROM churn_events WHERE customer = ?"
            " AND status NOT IN ('recovered', 'lost') AND (? IS NULL OR inbox = ?) GROUP BY currency",
            (person, inbox, inbox),
        ).fetchall()
        return {
            "customer_email": email,
            "customer_id": customer_id,
            "customer_name": name,
            "events": events,
            "first_at": first_at,
            "last_at": last_at,
            "mrr": {currency: mrr for currency, _, mrr in rows},
            "open_churn_events": sum(count for _, count, _ in rows),
        }

    def churn_events(self, customer: str, inbox: Optional[str]) -> List[Doc]:
        """All churn events of a customer, oldest first."""
        rows = self._db.execute(
            "SELECT doc FROM churn_events WHERE customer = ? AND (? IS NULL OR inbox = ?) ORDER BY seq",
            (customer.lower(), inbox, inbox),
        )
        return [orjson.loads(row[0]) for row in rows]

    def column(self, status: str, inbox: Optional[str]) -> Tuple[int, Dict[str, int]]:
        """How many churn events have a status, and the cents a month they stand for by currency."""
        rows = self._db.execute(
            "SELECT currency, count(*), sum(mrr) FROM churn_events"
            " WHERE status = ? AND (? IS NULL OR inbox = ?) GROUP BY currency ORDER BY currency",
            (status, inbox, inbox),
        ).fetchall()
        return sum(count for _, count, _ in rows), {currency: mrr for currency, _, mrr in rows}

    def cards(self, status: str, inbox: Optional[str], limit: int) -> List[Doc]:
        """Those churn events in short, the last arrived first."""
        rows = self._db.execute(
            "SELECT doc, currency, status_at FROM churn_events WHERE status = ? AND (? IS NULL OR inbox = ?)"
            " ORDER BY status_at DESC, seq DESC LIMIT ?",
            (status, inbox, inbox, limit),
        )
        return [_card(orjson.loads(encoded), currency, since) for encoded, currency, since in rows]


def _card(doc: Doc, currency: str, since: str) -> Doc:
    return {
        "id": doc["id"],
        "customer": doc["customer_email"],
        "customer_name": doc["customer_name"],
        "mrr": doc["mrr"],
        "currency": currency,
        "reason": doc["cancel_reason"],
        "event_type": doc["event_type"],
        "since": since,
    }
