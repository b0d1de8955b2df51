"""`windback broker …`: inspect a broker, replay dead letters."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Generator, List, Optional, Sequence

import orjson
import typer

from .common import (
    REASONS,
    CommandError,
    command,
    event_as_it_is,
    group,
    json_option,
    print_json,
    print_result,
    said,
)
from .terminal import print_table, write_line

if TYPE_CHECKING:
    from windback.broker.inspect import Broker, Letter

app = group("Inspect a broker, replay dead letters.")

_URL: Optional[str] = typer.Argument(None, metavar="[URL]", help="URL of a Redis (default: WINDBACK_BROKER)")


@contextlib.contextmanager
def _opened(url: Optional[str]) -> Generator[Broker, None, None]:
    from windback.secrets import broker_address

    url = url or os.environ.get("WINDBACK_BROKER")
    if not url:
        raise CommandError("--broker is required: give the URL of a Redis, or set WINDBACK_BROKER")
    with said(""):
        address = broker_address(url)
    from windback.broker.inspect import Broker
    from windback.broker.layout import BrokerError

    try:
        broker = Broker(address)
        try:
            yield broker
        finally:
            broker.close()
    except BrokerError as error:
        raise CommandError(f"broker {error.text}") from None


@command(app, "stats", "count the batches that wait, and show the relays", "Status 0.", within="broker")
def stats(url: Optional[str] = _URL, json: bool = json_option()) -> int:
    """Print what is in the broker, and which relays work on it."""
    with _opened(url) as broker:
        projects, relays = broker.numbers(), broker.relays()
    found = {
        "batches": sum(each.batches for each in projects),
        "held": sum(each.held for each in relays),
        "oldest_s": max((each.oldest_s for each in projects if each.oldest_s is not None), default=None),
        "dead_letters": sum(each.dead_letters for each in projects),
    }
    if json:
        listed = {
            "projects": [each._asdict() for each in projects],
            "relays": [each._asdict() for each in relays],
        }
        print_json({**found, **listed})
        return 0
    if len(projects) > 1:
        rows: List[Sequence[object]] = [("project", "batches", "oldest", "dead letters")]
        rows += [
            (each.project or None, each.batches, _age(each.oldest_s), each.dead_letters) for each in projects
        ]
        print_table(rows, right=(1, 2, 3))
    if relays:
        rows = [("relay", "project", "held", "idle")]
        rows += [(each.name, each.project or None, each.held, _age(each.idle_s)) for each in relays]
        print_table(rows, right=(2, 3))
    age = "" if found["oldest_s"] is None else f", the oldest for {_age(found['oldest_s'])}"
    write_line(f"batches: {found['batches']}, {found['held']} of them taken by relays{age}")
    write_line(f"dead letters: {found['dead_letters']}")
    return 0


def _age(seconds: Optional[float]) -> Optional[str]:
    return None if seconds is None else f"{seconds:.1f} s"


@command(
    app,
    "dead",
    "list what the API rejected",
    "With --json this is an export: whole letters with their events, including customers' addresses.",
    within="broker",
)
def show_dead(url: Optional[str] = _URL, json: bool = json_option(), reasons: List[str] = REASONS) -> int:
    """Print dead letters: a table, or an export."""
    rows: List[Sequence[object]] = [("rejected", "status", "reason", "event", "message")]
    with _opened(url) as broker:
        for letter in broker.letters():
            if reasons and letter.reason not in reasons:
                continue
            if json:
                fields = letter._asdict()
                del fields["id"]
                print_json(
                    {**fields, "event": None if letter.event is None else event_as_it_is(letter.event)}
                )
                continue
            rows.append((letter.rejected_at, letter.status, letter.reason, _name(letter), letter.message))
    if not json:
        print_table(rows, right=(1,))
    return 0


def _name(letter: Letter) -> object:
    try:
        fields = orjson.loads(letter.event or b"null")
    except orjson.JSONDecodeError:
        return None
    return fields.get("event") if isinstance(fields, dict) else None


@command(
    app,
    "replay",
    "make relays send again what the API rejected",
    "An event is queued again in the same step that removes its letter. Relays send "
    "it, so no key is needed here. An event that is rejected again becomes a dead letter again.",
    within="broker",
)
def replay_dead(url: Optional[str] = _URL, json: bool = json_option(), reasons: List[str] = REASONS) -> int:
    """Turn dead letters into events again."""
    replayed = kept = 0
    with _opened(url) as broker:
        for letter in broker.letters():
            if letter.event is None or (reasons and letter.reason not in reasons):
                kept += 1
            else:
                replayed += broker.revive(letter)
    print_result({"replayed": replayed, "kept": kept}, json=json)
    return 0
