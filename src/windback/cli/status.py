"""`windback status`: what the clients of running processes have queued, and what a kill would lose."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import time
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import orjson
import typer

from windback import clock
from windback.process.status import SUFFIX, UNFINISHED
from windback.report import Report, shown_age
from windback.wording import counted

from .common import CommandError, above_0, command, json_option, main_app, print_json
from .terminal import console, print_table, write_line

#: How long a process may take to answer (seconds); a stopped one never does.
_ANSWER_S = 2.0
#: A process needs far less between the making of a socket and its answering (seconds).
_MAKING_S = 10.0
_MOST_BYTES = 1 << 20


class Answer(NamedTuple):
    """The answer of one client. report: None if it did not answer; error: why not."""

    name: str
    pid: int
    program: str
    report: Optional[Report]
    error: Optional[str] = None


@command(
    main_app,
    "status",
    "show the queues of running processes, and what would be lost if one were killed now",
    "For processes whose client has status=DIR or WINDBACK_STATUS. Nothing is changed in them. Exit code "
    "0, or 1 if no process answers.",
)
def status(
    directory: Optional[Path] = typer.Argument(
        None, metavar="[DIR]", help="the option `status` of the processes (default: WINDBACK_STATUS)"
    ),
    watch: bool = typer.Option(False, "--watch", "-w", help="show it again and again, until Ctrl-C"),
    interval: float = typer.Option(
        1.0, "--interval", metavar="S", callback=above_0, help="seconds between two looks of --watch"
    ),
    json: bool = json_option("write a line of JSON for each look"),
) -> int:
    """Run the command. Returns the exit code."""
    folder = _folder(directory)
    if not watch:
        answers = list(_ask_all(folder))
        _show(answers, {}, json=json)
        return 0 if any(each.report is not None for each in answers) else 1
    before: Dict[str, Tuple[float, int]] = {}
    while True:
        answers = list(_ask_all(folder))
        if sys.stdout.isatty() and not json:
            console(sys.stdout).clear()
        _show(answers, before, json=json)
        sys.stdout.flush()
        before = {
            each.name: (clock.now_s(), each.report.stats.delivered)
            for each in answers
            if each.report is not None
        }
        clock.sleep(interval)


def _folder(directory: Optional[Path]) -> Path:
    given = directory or os.environ.get("WINDBACK_STATUS")
    if not given:
        raise CommandError("give the directory that the processes have as status=…, or set WINDBACK_STATUS")
    folder = Path(given).absolute()
    try:
        found = folder.stat()
    except FileNotFoundError:
        raise CommandError(
            f"{str(folder)!r} does not exist: no process was started with it", status=1
        ) from None
    except OSError as error:
        raise CommandError(f"can't read {str(folder)!r}: {error.strerror}", status=1) from None
    if not stat.S_ISDIR(found.st_mode):
        raise CommandError(f"{str(folder)!r} is not a directory")
    return folder


# -- the processes ----------------------------------------------------------------------------------


def _ask_all(folder: Path) -> Iterator[Answer]:
    """Yield the answer of each client, by process id. Sockets of exited processes are removed."""
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise CommandError(f"can't read {str(folder)!r}: {error.strerror}", status=1) from None
    found = [(int(pid), path) for path in paths for pid in [path.name.partition("-")[0]] if pid.isdecimal()]
    for pid, path in sorted(found):
        if path.suffix == UNFINISHED:
            _remove_if_old(path)
        elif path.suffix == SUFFIX:
            answer = _ask(path, pid)
            if answer is not None:
                yield answer


def _remove_if_old(path: Path) -> None:
    """Remove a socket whose process was killed before it could answer."""
    with contextlib.suppress(OSError):
        if time.time() - path.lstat().st_mtime > _MAKING_S:
            path.unlink()


def _ask(path: Path, pid: int) -> Optional[Answer]:
    """Ask the process of a socket; None if it has exited."""
    unknown = Answer(path.name, pid, "", None)
    try:
        line = _line_of(path)
    except (FileNotFoundError, ConnectionRefusedError):
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    except (socket.timeout, BlockingIOError):
        return unknown._replace(error=f"no answer for {_ANSWER_S:g} s; it may be stopped")
    except OSError as error:
        return unknown._replace(error=error.strerror or str(error))
    if not line:  # it exited in between
        return None
    try:
        answer = orjson.loads(line)
        report = Report.from_wire(answer["report"]) if "report" in answer else None
        return Answer(path.name, int(answer["pid"]), str(answer["program"]), report, answer.get("error"))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        return unknown._replace(error=f"an answer that can't be read ({type(error).__name__})")


def _line_of(path: Path) -> bytes:
    """Return the line that a process answers; raises OSError."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_S)
        connection.connect(str(path))
        parts: List[bytes] = []
        # Not to its end: a process that was forked at that moment may have the connection, too.
        while not (parts and parts[-1].endswith(b"\n")) and sum(map(len, parts)) < _MOST_BYTES:
            part = connection.recv(1 << 16)
            if not part:
                break
            parts.append(part)
        return b"".join(parts)


# -- what is shown ----------------------------------------------------------------------------------


def _show(answers: Sequence[Answer], before: Dict[str, Tuple[float, int]], *, json: bool) -> None:
    if json:
        print_json([_described(each) for each in answers])
        return
    if not answers:
        write_line("no process answers")
        return
    header = ("pid", "project", "queue", "oldest", "delivered", "per s", "requests", "lost if killed")
    rows: List[Sequence[object]] = [header]
    rows += [_row(each, before.get(each.name)) for each in answers]
    print_table(rows, right=(0, 2, 3, 4, 5, 6, 7))
    for each in answers:
        write_line("")
        write_line(f"{each.pid} {each.program}".rstrip())
        for line in [each.error] if each.report is None else str(each.report).splitlines():
            write_line(f"  {line}")
    if len(answers) > 1:
        reports = [each.report for each in answers if each.report is not None]
        lost = sum(each.lost_if_killed for each in reports)
        pending = sum(each.stats.pending for each in reports)
        write_line("")
        write_line(
            f"{counted(len(answers), 'client')}, {counted(pending, 'event')} queued, {lost:,} lost if killed"
        )


def _row(answer: Answer, before: Optional[Tuple[float, int]]) -> Sequence[object]:
    report = answer.report
    if report is None:
        return (answer.pid, "", *[None] * 6)
    stats = report.stats
    speed = None
    if before is not None:
        passed_s = max(1e-3, clock.now_s() - before[0])
        speed = f"{max(0, stats.delivered - before[1]) / passed_s:,.0f}"
    oldest = None if report.oldest_s is None else shown_age(report.oldest_s)
    return (
        answer.pid,
        report.project or "",
        f"{stats.pending:,}",
        oldest,
        f"{stats.delivered:,}",
        speed,
        f"{stats.requests:,}",
        f"{report.lost_if_killed:,}",
    )


def _described(answer: Answer) -> Dict[str, object]:
    fields = {"pid": answer.pid, "program": answer.program}
    if answer.report is None:
        return {**fields, "error": answer.error}
    return {**fields, **answer.report.to_wire(), "if_killed": answer.report.what_is_lost()}
