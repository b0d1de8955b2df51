"""A change of the public API is seen, and meant."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

if sys.version_info < (3, 11):
    pytest.skip(
        "the source is the same, and griffe for older Pythons prints it in another way",
        allow_module_level=True,
    )


def test_the_public_api_is_the_one_of_the_snapshot():
    module = runpy.run_path(str(ROOT / "tests" / "api_snapshot.py"))
    before = module["SNAPSHOT"].read_text(encoding="utf-8").splitlines()
    now = module["snapshot"]().splitlines()
    assert len(now) > 300
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    assert (gone, new) == ([], []), (
        "the public API changed: say so in CHANGELOG.md, then run python tests/api_snapshot.py --write"
    )
