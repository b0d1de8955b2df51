"""All commands, and the steps from a command line to an exit code."""

from __future__ import annotations

from typing import Optional, Sequence

import typer

from windback import __version__

from . import broker, dev, doctor, import_command, init, journal, relay, scrub, send, status, tail, webhook
from .common import group
from .terminal import write_line

app = group("Tools for Windback on your own machine.", add_completion=True)
dev.add_to(app)
send.add_to(app)
import_command.add_to(app)
scrub.add_to(app)
tail.add_to(app)
status.add_to(app)
doctor.add_to(app)
init.add_to(app)
relay.add_to(app)
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
