"""What the commands share: how one is declared, errors, options, JSON, log lines."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import Callable, Generator, Mapping, Optional, TypeVar

import orjson
import typer

from windback.config import OPTIONS
from windback.text import shown_json

from .terminal import printable, write_line

Run = TypeVar("Run", bound=Callable[..., int])

logger = logging.getLogger("windback")

#: The API's answers may repeat an address that was sent; customers' addresses must not be logged.
_EMAIL = re.compile(r"[^\s\"'<>()\[\]{},;:=/]+@[^\s\"'<>()\[\]{},;:=/]+")


class CommandError(Exception):
    """One line on standard error. status 2: the command line is wrong; 1: the command failed."""

    def __init__(self, text: str, *, status: int = 2) -> None:
        super().__init__(text)
        self.status = status


def group(text: str, *, add_completion: bool = False) -> typer.Typer:
    """Return a group of commands. Its help and errors have frames and colours only on a terminal."""
    return typer.Typer(
        help=text,
        short_help=text,
        add_completion=add_completion,
        rich_markup_mode="rich" if sys.stdout.isatty() and sys.stderr.isatty() else None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


#: The command `windback`; other groups are in it.
main_app = group("Tools for Windback on your own machine.", add_completion=True)


def command(
    app: typer.Typer, name: str, text: str, details: str = "", *, within: str = ""
) -> Callable[[Run], Run]:
    """Add a function, which returns the exit status, as a command.

    text: what it does, in half a sentence. within: the group that it belongs to.
    """

    def add(run: Run) -> Run:
        @functools.wraps(run)
        def run_and_exit(**given: object) -> None:
            raise typer.Exit(_attempt(f"{within} {name}".strip(), lambda: run(**given)))

        about = f"{text[0].upper()}{text[1:]}."
        app.command(name, help=f"{about}\n\n{details}" if details else about, short_help=about)(run_and_exit)
        return run

    return add


def _attempt(name: str, run: Callable[[], int]) -> int:
    try:
        status = run()
        sys.stdout.flush()
    except CommandError as error:
        sys.stdout.flush()
        sys.stderr.write(f"windback {name}: {printable(str(error))}\n")
        return error.status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head`; the interpreter would report it again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def above_0(value: Optional[float]) -> Optional[float]:
    """Check an option that is a time."""
    if value is not None and not (value > 0 and not math.isinf(value)):
        raise typer.BadParameter(f"{value:g} is not a number of seconds above 0")
    return value


def json_option(text: str = "write JSON in place of text") -> bool:
    """Return the option, for the default of a parameter."""
    option: bool = typer.Option(False, "--json", help=text)
    return option


def help_of(option: str, *notes: str) -> str:
    """Return the help of an option that a command shares with the client, with further notes."""
    said = OPTIONS[option]
    if said.environment is not None:
        notes = (*notes, f"default: {said.environment}")
    elif said.default not in (None, False):
        notes = (*notes, f"default: {said.default}")
    return f"{said.help} ({'; '.join(notes)})" if notes else said.help


#: Of one event that a command sends, as JSON.
MAX_EVENT_BYTES = 32_768
#: For commands that send.
BASE_URL: Optional[str] = typer.Option(None, "--base-url", metavar="URL", help=help_of("base_url"))
COMPRESS: bool = typer.Option(False, "--compress", help=help_of("compress"))
#: For commands that read dead letters.
REASONS = typer.Option(
    [],
    "--reason",
    metavar="REASON",
    show_default=False,
    help="only letters with this reason, such as invalid or too_large; can be repeated (default: all)",
)


def print_json(value: object) -> None:
    """Write one line of JSON, in UTF-8 whatever the locale is."""
    sys.stdout.flush()
    text = orjson.dumps(value, default=_plain).decode()
    sys.stdout.buffer.write(shown_json(text).encode() + b"\n")


def print_result(result: Mapping[str, object], *, json: bool) -> None:
    """Write counts, as JSON if *json* is true."""
    if json:
        print_json(result)
    else:
        write_line(", ".join(f"{name}: {count}" for name, count in result.items()))


def event_as_it_is(payload: bytes) -> object:
    """Return an event for `print_json`, byte for byte; as a text if it is not JSON."""
    try:
        orjson.loads(payload)
    except orjson.JSONDecodeError:
        return payload.decode(errors="replace")  # written by another program
    return orjson.Fragment(payload)  # unchanged, to keep numbers exact


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    as_dict = getattr(value, "_asdict", None)  # of a NamedTuple
    if as_dict is None:
        raise TypeError
    return as_dict()


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")  # a traceback has several
        return _EMAIL.sub("***", "\n".join(map(printable, lines)))


class _ToStderr(logging.Handler):
    """Looks standard error up for each line: a progress bar replaces it, to write above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()


@contextlib.contextmanager
def logging_to_stderr(level: int) -> Generator[None, None, None]:
    """Write this package's log lines to standard error, in one format, without customers' addresses."""
    handler = _ToStderr()
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
    """Make SIGTERM and SIGINT call *stop*, and nothing else."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: stop()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


@contextlib.contextmanager
def said(journal: str) -> Generator[None, None, None]:
    """Turn errors in an option, the key or a directory into one line."""
    from windback.errors import ConfigurationError

    try:
        yield
    except ConfigurationError as error:
        is_key = error.code == "MISSING_API_KEY"
        raise CommandError(
            "no API key: set WINDBACK_API_KEY to the secret key (sk_…)" if is_key else error.message
        ) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"journal {str(error.filename or journal)!r}: {error.strerror or error}") from None
