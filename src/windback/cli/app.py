"""All commands, and the steps from a command line to an exit code."""

from __future__ import annotations

from typing import Optional, Sequence

import typer

from windback import __version__

from . import broker, dev, doctor, import_command, init, journal, relay, scrub, send, status, tail, webhook
from .common import main_app as app
from .terminal import write_line

#: Each of these modules has added its command; help shows them in this order.
_ORDER = [each.__name__ for each in (dev, send, import_command, scrub, tail, status, doctor, init, relay)]
app.registered_commands.sort(key=lambda each: _ORDER.index(getattr(each.callback, "__module__", "")))
app.add_typer(journal.app, name="journal")
app.add_typer(broker.app, name="broker")
app.add_typer(webhook.app, name="webhook")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="show the version and exit"),
) -> None:
    """Tools for Windback on your own machine."""
    if version:
        write_line(f"windback {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        write_line(context.get_help())
        raise typer.Exit


def run(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command line.

    Args:
        argv: The arguments without the program's name. None: those of this process.

    Returns:
        The exit code.
    """
    try:
        app(None if argv is None else list(argv), prog_name="windback")
    except SystemExit as ended:  # typer always ends like this, also for help and usage errors
        return ended.code if isinstance(ended.code, int) else 0
    return 0
