"""`python -m windback`: the `windback` command, for when its script is not on PATH."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # `-m` puts the working directory first on the path. No file there may run, unless this package is there.
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - loads nothing
    if sys.path[0] in ("", os.getcwd()) and sys.path[0] != own:  # noqa: PTH109
        del sys.path[0]
    from .cli import main

    raise SystemExit(main())
