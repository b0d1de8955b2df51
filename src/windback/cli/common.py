"""What the commands share: errors, options, tables, a progress bar, log lines."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import re
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Callable, Generator, Mapping, NoReturn, Optional, Protocol, Sequence, Type

import orjson

if TYPE_CHECKING:
    from tqdm import tqdm

Run = Callable[[argparse.Namespace], int]

logger = logging.getLogger("windback")

#: Between two pictures of a plain progress line (seconds).
_REDRAW_S = 0.1
#: The API's answers may repeat what was sent; a customer's address belongs into no log.
_EMAIL = re.compile(r"[^\s\"'<>()\[\]{},;:=/]+@[^\s\"'<>()\[\]{},;:=/]+")


class Commands(Protocol):
    """What argparse returns for subcommands, which has no public name."""

    def add_parser(
        self,
        name: str,
        *,
        help: str,  # noqa: A002 - argparse calls it so
        description: str,
        allow_abbrev: bool,
    ) -> argparse.ArgumentParser:
        """Add one."""
        ...


class CommandError(Exception):
    """The command can't be run as it was given: one line on standard error, status 2."""


def add_command(
    commands: Commands, name: str, text: str, run: Run, *, details: str = "", within: str = ""
) -> argparse.ArgumentParser:
    """Add a command. text: what it does, in half a sentence. within: the command that it belongs to."""
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.{details and ' '}{details}",
        allow_abbrev=False,
    )
    parser.set_defaults(run=run, name=f"{within}{within and ' '}{name}")
    return parser


def add_reason(parser: argparse.ArgumentParser) -> None:
    """Add the option of what works on dead letters."""
    parser.add_argument(
        "--reason",
        action="append",
        metavar="REASON",
        default=[],
        dest="reasons",
        help="only letters with this reason, such as invalid or too_large; may be given again (default: all)",
    )


def seconds(text: str) -> float:
    """Read an option that is a time."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if value > 0 and not math.isinf(value):
            return value
    message = f"{text!r} is not a number of seconds above 0"
    raise argparse.ArgumentTypeError(message)


def whole(text: str) -> int:
    """Read an option that is a count."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        message = f"{text!r} is not a whole number above 0"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def print_json(value: object) -> None:
    """Write one line of JSON, in UTF-8 whatever the locale says."""
    sys.stdout.flush()
    sys.stdout.buffer.write(orjson.dumps(value, default=_plain) + b"\n")


def print_result(result: Mapping[str, object], given: argparse.Namespace) -> None:
    """Write counts, as JSON if that was asked for."""
    if given.json:
        print_json(result)
    else:
        write_line(", ".join(f"{name}: {count}" for name, count in result.items()))


def event_as_it_is(payload: bytes) -> object:
    """Return an event for `print_json`, byte for byte, or as a text if it is no JSON."""
    try:
        orjson.loads(payload)
    except orjson.JSONDecodeError:
        return payload.decode(errors="replace")  # another program's
    return orjson.Fragment(payload)  # as it is, for numbers' sake


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    as_dict = getattr(value, "_asdict", None)  # of a NamedTuple
    if as_dict is None:
        raise TypeError
    return as_dict()


def write_line(text: str) -> None:
    """Write one line of text, without what a terminal would obey."""
    sys.stdout.write(printable(text) + "\n")


def print_table(rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """Write rows in columns; the first names them. right: the columns that are numbers."""
    texts = [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts)]
    for row in texts:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def printable(text: str) -> str:
    """Return a text that a server or a file gave, without what a terminal would obey."""
    encoding = sys.stdout.encoding or "utf-8"
    safe = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return safe.encode(encoding, "backslashreplace").decode(encoding)


class Progress:
    """How far something is, on a terminal; on anything else nothing."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._bar: Optional[tqdm[NoReturn]] = None
        self._drawn_s = 0.0
        self._is_shown = is_shown()
        if self._is_shown:
            with contextlib.suppress(ImportError):
                from tqdm import tqdm  # of the demo extra

                self._bar = tqdm(total=total, desc=what, unit=f" {unit}", file=sys.stderr, leave=False)

    def show(self, done: int) -> None:
        """Draw anew, now and then."""
        if self._bar is not None:
            self._bar.n = done
            self._bar.refresh()
        elif self._is_shown and time.monotonic() - self._drawn_s > _REDRAW_S:
            self._drawn_s = time.monotonic()
            sys.stderr.write(f"\r{self._what}: {done:,} of {self._total:,} {self._unit}")
            sys.stderr.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._drawn_s:
            sys.stderr.write("\r\x1b[K")


def is_shown() -> bool:
    """Whether there is a terminal to show progress on."""
    return sys.stderr.isatty()


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _EMAIL.sub("***", super().format(record))


@contextlib.contextmanager
def logging_to_stderr(level: int) -> Generator[None, None, None]:
    """Have the lines of this package on standard error, in one format and without addresses of customers."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Generator[None, None, None]:
    """Have SIGTERM and SIGINT call *stop*, and do nothing else."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: stop()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


@contextlib.contextmanager
def said(journal: str) -> Generator[None, None, None]:
    """Turn what can be wrong with an option, the key or a directory into one line."""
    from windback.errors import ConfigurationError

    try:
        yield
    except ConfigurationError as error:
        is_key = error.code == "MISSING_API_KEY"
        text = "no API key: set WINDBACK_API_KEY to the secret key (sk_…)" if is_key else error.message
        raise CommandError(text) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        text = f"journal {str(error.filename or journal)!r}: {error.strerror or error}"
        raise CommandError(text) from None


def counted(count: int, what: str) -> str:
    """Return a count with its noun: 1 event, 2 events."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
