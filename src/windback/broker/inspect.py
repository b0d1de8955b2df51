"""Looks into a broker for people, and makes events of dead letters again."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import datetime, timezone
from typing import Dict, Iterator, List, NamedTuple, Optional

from ..config import BrokerAddress
from .connection import BrokerError, Connection, pairs
from .layout import DEAD, EVENTS, GROUP, REVIVE, fields_of

_TIMEOUT_S = 10.0
#: Letters that are read at once.
_PAGE = 500


class Consumer(NamedTuple):
    """A relay, as Redis knows it. held: batches that it has read; idle_s: since it said anything."""

    name: str
    held: int
    idle_s: float


class Numbers(NamedTuple):
    """What stands in a broker: batches, how many of them relays hold, seconds since the oldest came."""

    batches: int
    held: int
    oldest_s: Optional[float]
    dead_letters: int
    relays: List[Consumer]


class Letter(NamedTuple):
    """An event that the API rejected; of an entry that is not ours `event` is None, and `fields` it."""

    id: bytes
    rejected_at: str
    reason: str
    status: Optional[int]
    message: Optional[str]
    idempotency_key: Optional[str]
    project: str
    event: Optional[bytes]
    fields: Dict[str, str]


class Broker:
    """See the module. Every method raises BrokerError."""

    def __init__(self, address: BrokerAddress) -> None:
        self._connection = Connection(address, _TIMEOUT_S)
        self._connection.check()

    def numbers(self) -> Numbers:
        """Count what is there."""
        first = pairs(self._connection.call("XRANGE", EVENTS, "-", "+", "COUNT", 1))
        relays = self._relays()
        return Numbers(
            self._length(EVENTS),
            sum(each.held for each in relays),
            max(0.0, time.time() - _seconds(first[0][0])) if first else None,
            self._length(DEAD),
            relays,
        )

    def _length(self, key: str) -> int:
        answer = self._connection.call("XLEN", key)
        assert isinstance(answer, int)
        return answer

    def _relays(self) -> List[Consumer]:
        try:
            found = self._connection.call("XINFO CONSUMERS", EVENTS, GROUP)
        except BrokerError as error:
            if error.no_group:
                return []
            raise
        return [
            Consumer(each["name"].decode(errors="replace"), each["pending"], each["idle"] / 1000)
            for each in (found if isinstance(found, list) else ())
        ]

    def letters(self) -> Iterator[Letter]:
        """Yield the dead letters there are now, the oldest first."""
        last = pairs(self._connection.call("XREVRANGE", DEAD, "+", "-", "COUNT", 1))
        start, end = "-", last[0][0] if last else "-"
        while True:
            found = pairs(self._connection.call("XRANGE", DEAD, start, end, "COUNT", _PAGE))
            for entry_id, fields in found:
                yield _letter_of(entry_id, fields)
            if len(found) < _PAGE:
                return
            milliseconds, _, number = found[-1][0].partition(b"-")
            start = f"{milliseconds.decode()}-{int(number) + 1}"

    def revive(self, letter: Letter) -> bool:
        """Put an event among the others again, under a new key; False if somebody else did."""
        assert letter.event is not None
        fields = fields_of([letter.event], os.urandom(16).hex(), letter.project)
        return bool(self._connection.script(REVIVE, (EVENTS, DEAD), letter.id, *fields))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _seconds(entry_id: bytes) -> float:
    """Return when an entry was written, by the clock of Redis."""
    return int(entry_id.partition(b"-")[0]) / 1000


def _letter_of(entry_id: bytes, fields: Dict[bytes, bytes]) -> Letter:
    texts = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
    status = texts.get("status", "")
    at = ""
    with suppress(ValueError, OverflowError, OSError):  # an id that is no time, which somebody chose
        at = datetime.fromtimestamp(_seconds(entry_id), timezone.utc).isoformat(timespec="milliseconds")
    return Letter(
        entry_id,
        at,
        texts.get("reason", ""),
        int(status) if status.isascii() and status.isdigit() else None,
        texts.get("message") or None,
        texts.get("key"),
        texts.get("project", ""),
        fields.get(b"event"),
        {name[3:]: text for name, text in texts.items() if name.startswith("of:")},
    )
