"""The example of the whole way, from the first event to the outcome, prints what its page shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_winback_example_prints_what_the_page_about_webhooks_shows() -> None:
    page = (ROOT / "docs" / "webhooks.md").read_text(encoding="utf-8")
    shown = re.search(r"^\$ python examples/winback/run.py\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    assert shown is not None
    ran = subprocess.run(
        [sys.executable, "examples/winback/run.py"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == (shown[1], "")
    assert ran.returncode == 0
