"""The `windback` command. Its modules are loaded when it runs, because it is an optional extra."""

from __future__ import annotations

import sys
from typing import Optional, Sequence

MISSING = "windback: {name} is not installed; run: pip install 'windback[cli]'\n"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a command line.

    Args:
        argv: The arguments without the program's name. None: those of this process.

    Returns:
        The exit code.
    """
    try:
        from .app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write(MISSING.format(name=error.name))
        return 1
    return run(argv)
