"""The `windback` command for tests: how it is started, in which environment, and what it says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import windback

SOURCE = Path(windback.__file__).resolve().parents[1]
#: What the console script does.
COMMAND = [sys.executable, "-c", "import sys; from windback.cli import main; sys.exit(main())"]


class Ended(NamedTuple):
    """How it ended, and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def set_environment(monkeypatch, **variables: str) -> None:
    """Leave nothing of whoever runs the tests: of windback there are these variables alone."""
    for name in [name for name in os.environ if name.startswith("WINDBACK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    for name, value in variables.items():
        monkeypatch.setenv(f"WINDBACK_{name}", value)
