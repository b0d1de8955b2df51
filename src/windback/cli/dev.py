"""`windback dev`: its options are declared by `windback.devserver`, which has to do without typer."""

from __future__ import annotations

import argparse
import inspect
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Set

import typer

from windback.devserver import main as devserver
from windback.devserver import options as declared

from .common import command


class _Parameters:
    """Takes what `argparse.ArgumentParser.add_argument` takes; makes parameters of a command of it."""

    def __init__(self) -> None:
        self.all: Dict[str, inspect.Parameter] = {}
        self.defaults: Dict[str, object] = {}
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
        if action == "store_false":
            self.negated.add(dest)
        return option

    def chosen(self, given: Mapping[str, object]) -> Dict[str, object]:
        """Return what argparse would make of these parameters."""
        return {
            name: not value if name in self.negated else self.defaults[name] if value is None else value
            for name, value in given.items()
        }


def _parser(kind: Callable[[str], object], choices: Sequence[str]) -> Callable[[object], object]:
    def parse(value: object) -> object:
        if not isinstance(value, str):
            return value  # none was given
        if choices and value not in choices:
            raise typer.BadParameter(f"invalid choice: {value!r} (choose from {', '.join(choices)})")
        try:
            return kind(value)
        except argparse.ArgumentTypeError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    parameters = _Parameters()
    declared.add_arguments(parameters)

    def dev(**given: object) -> int:
        chosen = {
            name: parameters.defaults[name] if value is None else value for name, value in given.items()
        }
        return devserver.run(declared.from_arguments(argparse.Namespace(**chosen)))

    signature = inspect.Signature([*parameters.all.values()])
    dev.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads
    dev.__annotations__ = {name: each.annotation for name, each in parameters.all.items()}
    command(app, "dev", "run a local server that speaks the Windback API")(dev)
