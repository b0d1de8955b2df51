"""`windback broker …`: look into a broker, replay dead letters."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Callable, List, Optional, Sequence

import orjson

from .common import (
    CommandError,
    Commands,
    add_command,
    add_reason,
    event_as_it_is,
    print_json,
    print_result,
    print_table,
    said,
    write_line,
)

if TYPE_CHECKING:
    from windback.broker.inspect import Broker, Letter


def add_to(commands: Commands) -> None:
    """Add the command and those within it."""
    text = "look into a broker, replay dead letters"
    group = commands.add_parser(
        "broker", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    within = group.add_subparsers(metavar="COMMAND", required=True)
    _add(within, "stats", "count the batches that wait, and show the relays", stats, "Status 0.")
    letters = _add(
        within,
        "dead",
        "list what the API rejected",
        show_dead,
        "With --json this is an export: whole letters, with what was tracked, customers' addresses included.",
    )
    add_reason(letters)
    replay = _add(
        within,
        "replay",
        "have relays send again what the API rejected",
        replay_dead,
        "An event goes back among those that wait, in one step with the removal of its letter. Relays send "
        "it, so no key is needed here. What is rejected again is a dead letter again.",
    )
    add_reason(replay)


def _add(
    commands: Commands,
    name: str,
    text: str,
    run: Callable[[Broker, argparse.Namespace], int],
    details: str,
) -> argparse.ArgumentParser:
    def run_there(given: argparse.Namespace) -> int:
        from windback.config import broker_address

        url = given.url or os.environ.get("WINDBACK_BROKER")
        if not url:
            raise CommandError("where is the broker? Give its URL, or set WINDBACK_BROKER")
        with said(""):
            address = broker_address(url)
        from windback.broker.connection import BrokerError
        from windback.broker.inspect import Broker

        try:
            broker = Broker(address)
            try:
                return run(broker, given)
            finally:
                broker.close()
        except BrokerError as error:
            raise CommandError(f"broker {error.text}") from None

    parser = add_command(commands, name, text, run_there, details=details, within="broker")
    parser.add_argument("url", metavar="URL", nargs="?", help="of Redis (default: WINDBACK_BROKER)")
    parser.add_argument("--json", action="store_true", help="write JSON in place of text")
    return parser


def stats(broker: Broker, given: argparse.Namespace) -> int:
    """Print what stands there, and who works on it."""
    projects, relays = broker.numbers(), broker.relays()
    found = {
        "batches": sum(each.batches for each in projects),
        "held": sum(each.held for each in relays),
        "oldest_s": max((each.oldest_s for each in projects if each.oldest_s is not None), default=None),
        "dead_letters": sum(each.dead_letters for each in projects),
    }
    if given.json:
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
    write_line(f"batches: {found['batches']}, {found['held']} of them held by relays{age}")
    write_line(f"dead letters: {found['dead_letters']}")
    return 0


def _age(seconds: Optional[float]) -> Optional[str]:
    return None if seconds is None else f"{seconds:.1f} s"


def show_dead(broker: Broker, given: argparse.Namespace) -> int:
    """Print dead letters: a table, or all there is of them."""
    rows: List[Sequence[object]] = [("rejected", "status", "reason", "event", "message")]
    for letter in broker.letters():
        if given.reasons and letter.reason not in given.reasons:
            continue
        if given.json:
            fields = letter._asdict()
            del fields["id"]
            print_json({**fields, "event": None if letter.event is None else event_as_it_is(letter.event)})
            continue
        rows.append((letter.rejected_at, letter.status, letter.reason, _name(letter), letter.message))
    if not given.json:
        print_table(rows, right=(1,))
    return 0


def _name(letter: Letter) -> object:
    try:
        fields = orjson.loads(letter.event or b"null")
    except orjson.JSONDecodeError:
        return None
    return fields.get("event") if isinstance(fields, dict) else None


def replay_dead(broker: Broker, given: argparse.Namespace) -> int:
    """Make events of dead letters again."""
    replayed = kept = 0
    for letter in broker.letters():
        if letter.event is None or (given.reasons and letter.reason not in given.reasons):
            kept += 1
        else:
            replayed += broker.revive(letter)
    print_result({"replayed": replayed, "kept": kept}, given)
    return 0
