"""Each page begins with an example, and each task page ends with a command and its output."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
SITE = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
#: About what a reader sees without scrolling, at 1280 x 800.
FIRST_SCREEN = 1_200
#: Lists to look something up in, and pages about the project: they have no task.
NO_TASK = {
    *("index.md", "reference.md", "api.md", "guarantees.md", "security.md", "evidence.md", "faults.md"),
    *("ecosystem.md", "platforms.md", "scaling.md"),
}


def pages_in(nav):
    """Yield the pages of a navigation, in order."""
    for entry in nav:
        for value in [entry] if isinstance(entry, str) else entry.values():
            yield from [value] if isinstance(value, str) else pages_in(value)


def tasks():
    """Yield the pages that a user works through: of the parts of the navigation that are for users."""
    users = [part for part in SITE["nav"] if set(part) & {"Start", "Use", "In your app"}]
    yield from (page for page in pages_in(users) if page not in NO_TASK)


def read(name):
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_navigation_has_each_page_once():
    assert sorted(pages_in(SITE["nav"])) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_an_example_in_its_first_screen(page):
    first = re.search(r"^(?:```|!\[|\| .*!\[)", read(page), re.MULTILINE)
    assert first is not None, "there is no example"
    assert first.start() < FIRST_SCREEN


@pytest.mark.parametrize("page", list(tasks()))
def test_a_task_page_ends_with_a_command_and_its_output(page):
    *_, last = re.split(r"^## ", read(page), flags=re.MULTILINE)
    assert last.startswith("See it\n")
    assert re.search(r"^```console\n(?:\$ .+\n)+[^$`]", last, re.MULTILINE), last
