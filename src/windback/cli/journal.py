"""`windback journal …`: look into journals, drain them, replay dead letters."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Sequence

import orjson

from .common import (
    CommandError,
    Commands,
    Progress,
    add_command,
    add_reason,
    counted,
    event_as_it_is,
    is_shown,
    logging_to_stderr,
    print_json,
    print_result,
    print_table,
    printable,
    said,
    seconds,
    stopped_by_signals,
    whole,
    write_line,
)

if TYPE_CHECKING:
    from windback.journal.inspect import Directory, Findings, Problem

_SENDING = (
    "The key is read from WINDBACK_API_KEY and nowhere else. SIGTERM and Ctrl-C end it early, without any "
    "loss. Status 0 if nothing is left, 1 if something is."
)


def add_to(commands: Commands) -> None:
    """Add the command and those within it."""
    text = "look into the journals under a directory, drain them, replay dead letters"
    group = commands.add_parser(
        "journal", help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    within = group.add_subparsers(metavar="COMMAND", required=True)
    _add(
        within,
        "stats",
        "count the events of each process",
        stats,
        "Status 0; 2 if there is no such directory.",
    )
    peek = _add(
        within,
        "peek",
        "show the first events that are not delivered, as JSON lines",
        show_events,
        "They hold what was tracked, customers' addresses included.",
        json="the output is JSON lines with this option or without it",
    )
    peek.add_argument(
        "-n", "--number", metavar="N", type=whole, default=10, help="how many (default: %(default)s)"
    )
    peek.add_argument("--all", action="store_true", help="all of them, one directory after the other")
    sending = _add(
        within,
        "drain",
        "send now what processes that have ended left, and what nobody else sends",
        drain,
        _SENDING,
    )
    _add_sending(sending)
    letters = _add(
        within,
        "dead",
        "list what the API rejected",
        show_dead,
        "With --json this is an export: whole letters, with what was tracked, customers' addresses included.",
        json="write the letters as JSON lines",
    )
    add_reason(letters)
    replay = _add(
        within,
        "replay",
        "send again what the API rejected",
        replay_dead,
        "An event is put into a journal under DIR, on the disk itself, and only then is its letter removed: "
        "a crash between the two doubles it at worst and never loses it. What is rejected again is a dead "
        f"letter again. {_SENDING[:-1]}, or was rejected again.",
    )
    add_reason(replay)
    _add_sending(replay)
    _add(
        within,
        "check",
        "scan all segments and ledgers for damage; changes nothing",
        check,
        "Status 0, or 1 if there is damage. Files of others, and of newer versions, are named and are none.",
    )


def _add(
    commands: Commands,
    name: str,
    text: str,
    run: Callable[[Path, argparse.Namespace], int],
    details: str,
    *,
    json: str = "write JSON in place of text",
) -> argparse.ArgumentParser:
    def run_there(given: argparse.Namespace) -> int:
        from windback.journal.inspect import problem_of

        root = Path(given.directory).absolute()
        problem = problem_of(root)
        if problem is not None:
            raise CommandError(problem)
        with said(str(root)):
            return run(root, given)

    parser = add_command(commands, name, text, run_there, details=details, within="journal")
    parser.add_argument("directory", metavar="DIR", help="the directory given to journal=")
    parser.add_argument("--json", action="store_true", help=json)
    return parser


def _add_sending(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-url", metavar="URL", help="of the API (default: WINDBACK_BASE_URL, else Windback's own)"
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=seconds,
        help="end after this many seconds (default: when all went, or a request used up its retries)",
    )
    parser.add_argument(
        "--compress", action="store_true", help="gzip the requests, until the API refuses that"
    )


# -- what reads alone ------------------------------------------------------------------------------


def stats(root: Path, given: argparse.Namespace) -> int:
    """Print what there is of each process."""
    from windback.journal import inspect

    directories = _count(root)
    letters, bad = inspect.dead_letters(root), len(inspect.set_aside(root))
    total = {
        name: sum(getattr(each, name) for each in directories)
        for name in ("segments", "size", "waiting", "leased", "done")
    }
    if given.json:
        print_json(
            {
                "journal": root,
                "directories": [_describe(each) for each in directories],
                "total": {"directories": len(directories), **_sized(total)},
                "dead_letters": letters,
                "bad_segments": bad,
            }
        )
        return 0
    rows: List[Sequence[object]] = [
        ("directory", "process", "sender", "pid", "created", "segments", "bytes", "waiting", "leased", "done")
    ]
    rows += [
        (
            each.name,
            "alive" if each.is_alive else "dead",
            "yes" if each.is_attended else "no",
            each.pid,
            each.created,
            each.segments,
            each.size,
            *((None, None, None) if each.newer else (each.waiting, each.leased, each.done)),
        )
        for each in directories
    ]
    rows.append((f"total {len(directories)}", "", "", "", "", *total.values()))
    print_table(rows, right=(3, 5, 6, 7, 8, 9))
    for each in directories:
        if each.newer:
            write_line(f"{each.name}: left alone: {each.newer}")
    write_line(f"dead letters: {letters}")
    write_line(f"bad segments: {bad}")
    return 0


def _count(root: Path) -> List[Directory]:
    from windback.journal import inspect

    found = []
    with Progress("scanned", inspect.count_segments(root) if is_shown() else 0, "segments") as progress:
        for home in inspect.homes(root):
            found.append(inspect.directory(home))
            progress.show(sum(each.segments for each in found))
    return found


def _describe(each: Directory) -> Dict[str, object]:
    fields = each._asdict()
    state = "alive" if fields.pop("is_alive") else "dead"
    return {
        "name": fields.pop("name"),
        "process": state,
        "sender": fields.pop("is_attended"),
        **_sized(fields),
    }


def _sized(fields: Mapping[str, object]) -> Dict[str, object]:
    return {"bytes" if name == "size" else name: value for name, value in fields.items()}


def show_events(root: Path, given: argparse.Namespace) -> int:
    """Print events, one a line."""
    from windback.journal import inspect

    found = inspect.events(root)
    for record in found if given.all else itertools.islice(found, given.number):
        print_json(
            {
                "directory": record.directory,
                "segment": record.segment_id,
                "offset": record.at,
                "state": record.state,
                "event": event_as_it_is(record.payload),
            }
        )
    return 0


def show_dead(root: Path, given: argparse.Namespace) -> int:
    """Print dead letters: a table, or all there is of them."""
    from windback.journal import dead

    rows: List[Sequence[object]] = [("rejected", "status", "reason", "event", "message")]
    for path in dead.files(root):
        for letter, event in dead.read_with_events(path):
            if given.reasons and letter.reason not in given.reasons:
                continue
            if given.json:
                print_json({**letter._asdict(), "event": orjson.Fragment(event)})
                continue
            fields = letter.event if isinstance(letter.event, dict) else {}
            name = fields.get("event")
            rows.append((letter.rejected_at, letter.status, letter.reason, name, letter.message))
    if not given.json:
        print_table(rows, right=(1,))
    return 0


def check(root: Path, given: argparse.Namespace) -> int:
    """Print what is damaged, or not ours."""
    from windback.journal import inspect

    found: Optional[Findings] = None
    with Progress("checked", inspect.count_segments(root) if is_shown() else 0, "segments") as progress:
        for found in inspect.check(root):
            progress.show(found.segments)
    assert found is not None
    lost = sum(each.lost for each in found.damage)
    if given.json:
        print_json({"journal": root, **found._asdict(), "lost": lost})
        return 1 if found.damage else 0
    for each in found.damage:
        write_line(f"damage: {_line(root, each)}{f'; lost: {each.lost} or more' if each.lost else ''}")
    for each in found.newer:
        write_line(f"newer version: {_line(root, each)}")
    for what, paths in (
        ("not ours", found.foreign),
        ("unfinished", found.unfinished),
        ("set aside", found.set_aside),
    ):
        for path in paths:
            write_line(f"{what}: {path.relative_to(root)}")
    scanned = f"{counted(found.segments, 'segment')}, {counted(found.ledgers, 'ledger')}, "
    verdict = f"damaged: {len(found.damage)}, lost: {lost} or more" if found.damage else "no damage"
    write_line(f"{scanned}{counted(found.events, 'event')}: {verdict}")
    return 1 if found.damage else 0


def _line(root: Path, problem: Problem) -> str:
    return f"{problem.path.relative_to(root)}: {problem.text}"


# -- what sends ------------------------------------------------------------------------------------


def drain(root: Path, given: argparse.Namespace) -> int:
    """Send what nobody else sends, and print what became of it."""
    from windback.journal.inspect import unattended
    from windback.relay import Relay

    relay = Relay(root, base_url=given.base_url, compress=given.compress, shutdown_timeout=1.0)
    total = sum(each.undelivered for each in unattended(root)) if is_shown() else 0
    with logging_to_stderr(logging.WARNING), stopped_by_signals(relay.stop):
        with Progress("sent", total, "events") as progress:

            def show() -> None:
                sent = relay.stats()
                progress.show(sent.delivered + sent.rejected)

            is_all = relay.drain(given.timeout, show)
            relay.close()
    unsent = list(unattended(root))
    counts = relay.stats()
    result = {
        "delivered": counts.delivered,
        "rejected": counts.rejected,
        "left": sum(each.undelivered for each in unsent),
    }
    print_result(result, given)
    is_unknown = any(each.newer for each in unsent)
    return 0 if is_all and not result["left"] and not is_unknown else 1


def replay_dead(root: Path, given: argparse.Namespace) -> int:
    """Send dead letters again, and print what became of them."""
    from .replay import Replay

    replay = Replay(root, given.base_url, compress=given.compress)
    with logging_to_stderr(logging.WARNING):
        outcome = replay.run(given.reasons, given.timeout)
    print_result(outcome.to_json(), given)
    if outcome.trouble is not None:
        sys.stderr.write(f"windback {given.name}: {printable(outcome.trouble)}\n")
    return 1 if outcome.left or outcome.rejected or outcome.trouble else 0
