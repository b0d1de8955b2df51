"""The `windback` command."""

from __future__ import annotations

import argparse
from typing import Optional, Sequence

from windback.devserver.main import run
from windback.devserver.options import add_arguments, from_arguments


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line *argv* (None: of this process); the exit code."""
    parser = argparse.ArgumentParser(prog="windback", description="Tools for Windback on your own machine.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    text = "run a local server that speaks the Windback API"
    dev = commands.add_parser("dev", help=text, description=text[0].upper() + text[1:] + ".")
    add_arguments(dev)
    return run(from_arguments(parser.parse_args(argv)))
