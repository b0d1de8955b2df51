"""The `windback` command; what it is made of is loaded when it runs, for it is an extra."""

from __future__ import annotations

import sys
from typing import Optional, Sequence

MISSING = "windback: {name} is not installed; run: pip install 'windback[cli]'\n"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line *argv* (None: of this process); the exit code."""
    try:
        from .app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write(MISSING.format(name=error.name))
        return 1
    return run(argv)
