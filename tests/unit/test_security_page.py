"""docs/security.md: each promise has a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_each_promise_names_a_test_that_exists():
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = text.partition("## Promises and their tests")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    promises = [row.strip("| ").split(" | ") for row in rows if not row.startswith("| ---")]
    assert len(promises) > 10
    for promise, test in promises:
        path = re.fullmatch(r"`(tests/[a-z_/]+\.py)`", test.strip())
        assert path, promise
        assert "def test_" in (ROOT / path[1]).read_text(encoding="utf-8")


def test_the_page_and_the_policy_name_each_other():
    assert "docs/security.md" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
