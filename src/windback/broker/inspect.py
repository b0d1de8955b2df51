"""Shows the contents of a broker to people, and turns dead letters into events again."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime, timezone
from typing import Dict, Iterator, List, NamedTuple, Optional

from ..secrets import BrokerAddress
from .connection import Connection, pairs
from .layout import COUNT, GROUP, PROJECTS, REVIVE, BrokerError, Keys, Numbers, fields_of, keys_of

_TIMEOUT_S = 10.0
#: How many letters are read in one command.
_PAGE = 500


class Consumer(NamedTuple):
    """A relay, as Redis sees it. held: batches that it has read; idle_s: seconds since its last command."""

    name: str
    project: str
    held: int
    idle_s: float


class Letter(NamedTuple):
    """An event that the API rejected. For a foreign entry `event` is None, and `fields` has its contents."""

    id: bytes
    rejected_at: str
    reason: str
    status: Optional[int]
    message: Optional[str]
    idempotency_key: Optional[str]
    project: str
    event: Optional[bytes]
    fields: Dict[str, str]


def projects_of(connection: Connection) -> List[str]:
    """Return the slugs of all applications that wrote, "" for those without one. Raises BrokerError."""
    found = connection.call("SMEMBERS", PROJECTS)
    names = found if isinstance(found, (list, set)) else ()
    return sorted(name.decode(errors="replace") for name in names if isinstance(name, bytes))


def numbers_of(connection: Connection, project: str) -> Numbers:
    """Count the contents of a project. Raises BrokerError."""
    keys = keys_of(project)
    answer = connection.script(COUNT, (keys.events, keys.dead))
    assert isinstance(answer, list)
    batches, first, dead_letters, now = answer
    oldest_s = None
    if first:
        oldest_s = max(0.0, int(now[0]) + int(now[1]) / 1e6 - _seconds(first[0][0]))
    return Numbers(project, batches, oldest_s, dead_letters)


class Broker:
    """A broker, for people. Every method raises BrokerError."""

    def __init__(self, address: BrokerAddress) -> None:
        self._connection = Connection(address, _TIMEOUT_S)
        self._connection.check(keys_of(None))
        #: By slug; "" stands for applications that have none.
        self.projects = sorted({"", *projects_of(self._connection)})

    def numbers(self) -> List[Numbers]:
        """Count the contents, for each project."""
        return [numbers_of(self._connection, project) for project in self.projects]

    def relays(self) -> List[Consumer]:
        """Return the relays that Redis has, for each project that they read."""
        return [each for project in self.projects for each in self._relays_of(project)]

    def _relays_of(self, project: str) -> List[Consumer]:
        try:
            found = self._connection.call("XINFO CONSUMERS", keys_of(project).events, GROUP)
        except BrokerError as error:
            if error.no_group:
                return []
            raise
        return [
            Consumer(each["name"].decode(errors="replace"), project, each["pending"], each["idle"] / 1000)
            for each in (found if isinstance(found, list) else ())
        ]

    def letters(self) -> Iterator[Letter]:
        """Yield the present dead letters, the oldest of each project first."""
        for project in self.projects:
            yield from self._letters_of(project, keys_of(project))

    def _letters_of(self, project: str, keys: Keys) -> Iterator[Letter]:
        last = pairs(self._connection.call("XREVRANGE", keys.dead, "+", "-", "COUNT", 1))
        start, end = "-", last[0][0] if last else "-"
        while True:
            found = pairs(self._connection.call("XRANGE", keys.dead, start, end, "COUNT", _PAGE))
            for entry_id, fields in found:
                yield _letter_of(entry_id, fields, project)
            if len(found) < _PAGE:
                return
            milliseconds, _, number = found[-1][0].partition(b"-")
            start = f"{milliseconds.decode()}-{int(number) + 1}"

    def revive(self, letter: Letter) -> bool:
        """Queue an event again, under a new key. False if another process did."""
        assert letter.event is not None
        fields = fields_of([letter.event], os.urandom(16).hex(), letter.project)
        return bool(self._connection.script(REVIVE, keys_of(letter.project)[:2], letter.id, *fields))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _seconds(entry_id: bytes) -> float:
    """Return when an entry was written, by the clock of Redis."""
    return int(entry_id.partition(b"-")[0]) / 1000


def _letter_of(entry_id: bytes, fields: Dict[bytes, bytes], project: str) -> Letter:
    texts = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()}
    status = texts.get("status", "")
    at = ""
    with suppress(ValueError, OverflowError, OSError):  # a user chose an id that is not a time
        at = datetime.fromtimestamp(_seconds(entry_id), timezone.utc).isoformat(timespec="milliseconds")
    return Letter(
        entry_id,
        at,
        texts.get("reason", ""),
        int(status) if status.isascii() and status.isdigit() else None,
        texts.get("message") or None,
        texts.get("key"),
        project,
        fields.get(b"event"),
        {name[3:]: text for name, text in texts.items() if name.startswith("of:")},
    )
