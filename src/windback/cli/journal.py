"""`windback journal …`: inspect journals, drain them, replay dead letters."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Generator, List, Mapping, Optional, Sequence

import orjson
import typer

from ..wording import counted
from .common import (
    BASE_URL,
    COMPRESS,
    REASONS,
    CommandError,
    above_0,
    command,
    event_as_it_is,
    group,
    json_option,
    logging_to_stderr,
    print_json,
    print_result,
    said,
    stopped_by_signals,
)
from .terminal import Progress, is_shown, print_table, printable, write_line

if TYPE_CHECKING:
    from windback.journal.inspect import Directory, Findings, Problem

_SENDING = (
    "The key is read only from WINDBACK_API_KEY. SIGTERM and Ctrl-C end it early, without "
    "loss. Exit code 0 if no event remains, 1 otherwise."
)

app = group("Inspect the journals in a directory, drain them, replay dead letters.")

_DIRECTORY: Path = typer.Argument(
    ..., metavar="DIR", show_default=False, help="the directory given to journal="
)
_TIMEOUT: Optional[float] = typer.Option(
    None,
    "--timeout",
    metavar="S",
    callback=above_0,
    help="stop after this many seconds (default: when nothing remains, or a request has used up its retries)",
)


@contextlib.contextmanager
def _found(directory: Path) -> Generator[Path, None, None]:
    from windback.journal.inspect import problem_of

    root = directory.absolute()
    problem = problem_of(root)
    if problem is not None:
        raise CommandError(problem)
    with said(str(root)):
        yield root


# -- commands that only read ------------------------------------------------------------------------


@command(
    app,
    "stats",
    "count the events of each process",
    "Exit code 0; 2 if there is no such directory.",
    within="journal",
)
def stats(directory: Path = _DIRECTORY, json: bool = json_option()) -> int:
    """Print the counts of each process."""
    from windback.journal import inspect

    with _found(directory) as root:
        directories = _count(root)
        letters, bad = inspect.dead_letters(root), len(inspect.set_aside(root))
    total = {
        name: sum(getattr(each, name) for each in directories)
        for name in ("segments", "size", "waiting", "leased", "done")
    }
    if json:
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
            "yes" if each.has_sender else "no",
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
        "sender": fields.pop("has_sender"),
        **_sized(fields),
    }


def _sized(fields: Mapping[str, object]) -> Dict[str, object]:
    return {"bytes" if name == "size" else name: value for name, value in fields.items()}


@command(
    app,
    "peek",
    "show the first events that are not delivered, as JSON lines",
    "They contain the tracked events, including customers' addresses.",
    within="journal",
)
def show_events(
    directory: Path = _DIRECTORY,
    json: bool = json_option("the output is JSON lines with this option or without it"),
    number: int = typer.Option(10, "--number", "-n", metavar="N", min=1, help="how many events"),
    is_all: bool = typer.Option(False, "--all", help="all events, one directory after the other"),
) -> int:
    """Print events, one per line."""
    from windback.journal import inspect

    del json
    with _found(directory) as root:
        found = inspect.events(root)
        for record in found if is_all else itertools.islice(found, number):
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


@command(
    app,
    "dead",
    "list what the API rejected",
    "With --json this is an export: whole letters with their events, including customers' addresses.",
    within="journal",
)
def show_dead(
    directory: Path = _DIRECTORY,
    json: bool = json_option("write the letters as JSON lines"),
    reasons: List[str] = REASONS,
) -> int:
    """Print dead letters: a table, or an export."""
    from windback.journal import dead

    rows: List[Sequence[object]] = [("rejected", "status", "reason", "event", "message")]
    with _found(directory) as root:
        for path in dead.files(root):
            for letter, event in dead.read(path):
                if reasons and letter.reason not in reasons:
                    continue
                if json:
                    print_json({**letter._asdict(), "event": orjson.Fragment(event)})
                    continue
                fields = letter.event if isinstance(letter.event, dict) else {}
                name = fields.get("event")
                rows.append((letter.rejected_at, letter.status, letter.reason, name, letter.message))
    if not json:
        print_table(rows, right=(1,))
    return 0


@command(
    app,
    "check",
    "scan all segments and ledgers for damage; changes nothing",
    "Exit code 0, or 1 if there is damage. Foreign files and files of newer versions are listed, but are not "
    "damage.",
    within="journal",
)
def check(directory: Path = _DIRECTORY, json: bool = json_option()) -> int:
    """Print damaged and foreign files."""
    from windback.journal import inspect

    with _found(directory) as root:
        found: Optional[Findings] = None
        with Progress("checked", inspect.count_segments(root) if is_shown() else 0, "segments") as progress:
            for found in inspect.check(root):
                progress.show(found.segments)
        assert found is not None
    lost = sum(each.lost for each in found.damage)
    if json:
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


# -- commands that send -----------------------------------------------------------------------------


@command(
    app,
    "drain",
    "send the events of exited processes, and of processes that have no sender",
    _SENDING,
    within="journal",
)
def drain(
    directory: Path = _DIRECTORY,
    json: bool = json_option(),
    base_url: Optional[str] = BASE_URL,
    timeout: Optional[float] = _TIMEOUT,
    compress: bool = COMPRESS,
) -> int:
    """Send the events that no process or relay sends, and print the results."""
    from windback.journal.inspect import without_sender
    from windback.relay import Relay

    with _found(directory) as root:
        relay = Relay(root, base_url=base_url, compress=compress, shutdown_timeout=1.0)
        total = sum(each.undelivered for each in without_sender(root)) if is_shown() else 0
        with logging_to_stderr(logging.WARNING), stopped_by_signals(relay.stop):
            with Progress("sent", total, "events") as progress:

                def show() -> None:
                    sent = relay.stats()
                    progress.show(sent.delivered + sent.rejected)

                is_all = relay.drain(timeout, show)
                relay.close()
        unsent = list(without_sender(root))
    counts = relay.stats()
    left = sum(each.undelivered for each in unsent)
    print_result({"delivered": counts.delivered, "rejected": counts.rejected, "left": left}, json=json)
    is_unknown = any(each.newer for each in unsent)
    return 0 if is_all and not left and not is_unknown else 1


@command(
    app,
    "replay",
    "send again what the API rejected",
    "An event is written to a journal under DIR and synced to disk; only then is its letter removed. A "
    "crash in between can send it twice, and never loses it. An event that is rejected again becomes a dead "
    "letter again. "
    f"{_SENDING[:-1]}, or was rejected again.",
    within="journal",
)
def replay_dead(
    directory: Path = _DIRECTORY,
    json: bool = json_option(),
    reasons: List[str] = REASONS,
    base_url: Optional[str] = BASE_URL,
    timeout: Optional[float] = _TIMEOUT,
    compress: bool = COMPRESS,
) -> int:
    """Send dead letters again, and print the results."""
    from .replay import Replay

    with _found(directory) as root:
        replay = Replay(root, base_url, compress=compress)
        with logging_to_stderr(logging.WARNING):
            outcome = replay.run(reasons, timeout)
    print_result(outcome.to_json(), json=json)
    if outcome.trouble is not None:
        sys.stderr.write(f"windback journal replay: {printable(outcome.trouble)}\n")
    return 1 if outcome.left or outcome.rejected or outcome.trouble else 0
