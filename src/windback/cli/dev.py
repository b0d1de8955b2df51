"""`windback dev`. Its options are declared by `windback.devserver`, which works without typer."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set

import orjson
import typer

from windback.devserver import main as devserver
from windback.devserver import options as declared
from windback.devserver.process import DevServerError, server_command

from .. import clock
from .common import CommandError, command, main_app


class _Parameters:
    """Has the arguments of `argparse.ArgumentParser.add_argument`, and makes parameters of them."""

    def __init__(self) -> None:
        self.all: Dict[str, inspect.Parameter] = {}
        self.defaults: Dict[str, object] = {}
        self.names: Dict[str, str] = {}
        self.negated: Set[str] = set()

    def add_argument(
        self,
        *names: str,
        dest: Optional[str] = None,
        metavar: Optional[str] = None,
        action: str = "store",
        type: Callable[[str], object] = str,  # noqa: A002 - argparse calls it so
        choices: Sequence[str] = (),
        default: object = None,
        help: str = "",  # noqa: A002 - the same
    ) -> object:
        """Declare one."""
        dest = dest or names[0].lstrip("-").replace("-", "_")
        is_flag = action in ("store_true", "store_false")
        kind: object = bool if is_flag else List[str] if action == "append" else Optional[str]
        option: object = typer.Option(
            False if is_flag else None,
            *names,
            metavar=None if is_flag else metavar or dest.upper(),
            parser=None if is_flag else _parser(type, choices),
            autocompletion=(lambda: list(choices)) if choices else None,
            show_default=False,
            help=help % {"default": default},
        )
        self.all[dest] = inspect.Parameter(
            dest, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind
        )
        self.defaults[dest] = default
        self.names[dest] = names[0]
        if action == "store_false":
            self.negated.add(dest)
        return option

    def chosen(self, given: Mapping[str, object]) -> Dict[str, object]:
        """Return what argparse would make from these parameters."""
        chosen = {
            name: self.defaults[name] if value is None else _value(value) for name, value in given.items()
        }
        return {name: not value if name in self.negated else value for name, value in chosen.items()}

    def line(self, given: Mapping[str, object]) -> List[str]:
        """Return the command line that stands for these parameters."""
        line = []
        for name, value in given.items():
            if value is True:
                line.append(self.names[name])
            else:
                values = value if isinstance(value, list) else [value]
                line += [f"{self.names[name]}={each.text}" for each in values if isinstance(each, _Read)]
        return line


class _Read(NamedTuple):
    """A value, and the text it was read from."""

    text: str
    value: object


def _value(given: object) -> object:
    if isinstance(given, _Read):
        return given.value
    return [_value(each) for each in given] if isinstance(given, list) else given


def _parser(kind: Callable[[str], object], choices: Sequence[str]) -> Callable[[object], object]:
    def parse(value: object) -> object:
        if not isinstance(value, str):
            return value  # the option was not given
        if choices and value not in choices:
            raise typer.BadParameter(f"invalid choice: {value!r} (choose from {', '.join(choices)})")
        try:
            return _Read(value, kind(value))
        except argparse.ArgumentTypeError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


_parameters = _Parameters()
declared.add_arguments(_parameters)


def dev(program: List[str], **given: object) -> int:
    """Run the command; typer reads its parameters from the signature that is set below."""
    options = declared.from_arguments(argparse.Namespace(**_parameters.chosen(given)))
    return _run_beside(program, _parameters.line(given), options) if program else devserver.run(options)


_program: object = typer.Argument(
    None,
    metavar="[-- PROGRAM …]",
    show_default=False,
    help="run this, such as python app.py, with the server in its environment, and stop with it",
)
_first = inspect.Parameter(
    "program", inspect.Parameter.KEYWORD_ONLY, default=_program, annotation=Optional[List[str]]
)
_signature = inspect.Signature([_first, *_parameters.all.values()])
dev.__signature__ = _signature  # type: ignore[attr-defined]
dev.__annotations__ = {name: each.annotation for name, each in _signature.parameters.items()}
command(
    main_app,
    "dev",
    "run a local server with the Windback API",
    "With PROGRAM, exits with the program's exit code.",
)(dev)


def _run_beside(program: Sequence[str], line: Sequence[str], options: declared.Options) -> int:
    """Start a server and, once it listens, *program*, whose clients find it; end with it."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(options.ready_file or Path(folder) / "ready")
        try:
            start = server_command([*line, "--until-stdin-closes", f"--ready-file={ready}"])
        except DevServerError as error:
            raise CommandError(str(error), status=1) from None
        with contextlib.suppress(OSError):
            ready.unlink()  # of another server
        server = subprocess.Popen(  # noqa: S603 - our own module
            start,
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the program: its last events must arrive
        )
        assert server.stdin is not None
        try:
            about = _wait_for(ready, server)
            if about is None:
                return server.wait()
            key = next((key for key in options.keys if key.startswith("sk_")), declared.DEFAULT_KEY)
            return _run(program, str(about["base_url"]), key)
        finally:
            server.stdin.close()
            server.wait()


def _wait_for(ready: Path, server: subprocess.Popen[bytes]) -> Optional[Mapping[str, object]]:
    """Return the server's description of itself once it listens; None if it ended."""
    while server.poll() is None:
        with contextlib.suppress(OSError, ValueError):  # not there yet, or incomplete
            about: Mapping[str, object] = orjson.loads(ready.read_bytes())
            return about
        clock.sleep(0.01)
    return None


def _run(program: Sequence[str], base_url: str, key: str) -> int:
    environment = {
        **os.environ,
        "WINDBACK_BASE_URL": base_url,
        "WINDBACK_API_KEY": key,
        "WINDBACK_PROJECT_SLUG": os.environ.get("WINDBACK_PROJECT_SLUG", "my-project"),
    }
    try:
        child = subprocess.Popen(program, env=environment)  # noqa: S603 - the purpose of this command
    except OSError as error:
        raise CommandError(f"{program[0]}: {error.strerror}", status=127) from None
    # Ctrl-C reaches the program directly. SIGTERM is sent to this process only, so it is passed on.
    before = (
        signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.signal(signal.SIGTERM, lambda *_: child.terminate()),
    )
    try:
        status = child.wait()
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    return 128 - status if status < 0 else status
