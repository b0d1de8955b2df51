"""From a command line to a running server; the web framework is imported only when one is to run."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from .options import Options, add_arguments, from_arguments, problem

MISSING = "windback dev: {name} is not installed; run: pip install 'windback[dev-server]'\n"


def run(options: Options) -> int:
    """Serve until stopped; the exit code, 1 or 2 when the server could not start."""
    wrong = problem(options)
    if wrong is not None:
        sys.stderr.write(f"windback dev: {wrong}\n")
        return 2
    try:
        from .server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        sys.stderr.write(MISSING.format(name=error.name))
        return 1
    return serve(options)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """`python -m windback.devserver`."""
    parser = argparse.ArgumentParser(
        prog="python -m windback.devserver", description="A local server with the Windback API."
    )
    add_arguments(parser)
    return run(from_arguments(parser.parse_args(argv)))
