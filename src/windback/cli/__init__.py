"""The `windback` command."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Optional, Sequence

from windback.devserver import main as devserver
from windback.devserver import options as devserver_options

from . import broker, journal, relay
from .common import CommandError, add_command


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line *argv* (None: of this process); the exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except CommandError as error:
        sys.stderr.write(f"windback {arguments.name}: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head`; the interpreter would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="windback", description="Tools for Windback on your own machine.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    text = "run a local server that speaks the Windback API"
    dev = add_command(
        commands, "dev", text, lambda given: devserver.run(devserver_options.from_arguments(given))
    )
    devserver_options.add_arguments(dev)
    relay.add_to(commands)
    journal.add_to(commands)
    broker.add_to(commands)
    return parser
