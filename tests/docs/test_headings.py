"""What the code names has a place in the docs, and the docs name nothing that the code does not have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from windback import errors
from windback.api.answer import Answer
from windback.cli.app import app
from windback.config import OPTIONS
from windback.delivery.verdict import judge
from windback.stats import Stats

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCES = [
    path.read_text(encoding="utf-8")
    for path in (ROOT / "src" / "windback").rglob("*.py")
    if "devserver" not in path.parts
]
#: Codes that come from the API, so no line of the source has them.
OF_THE_API = {"INVALID_API_KEY", "SUBSCRIPTION_EXPIRED"}


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


def headings(name, level=3):
    return re.findall(rf"^{'#' * level} (.+)$", page(name), re.MULTILINE)


def verdicts():
    """Return the reasons of rejected events that have a name of their own."""
    reasons = {judge(Answer(status), events=1, gzipped=False).reason for status in range(400, 500)}
    return {reason for reason in reasons if not reason.startswith("status_")}


def webhook_codes():
    """Return the codes of a WebhookError, which its docstring lists."""
    return set(re.findall(r'"([a-z_]+)"', errors.WebhookError.__doc__ or ""))


def test_each_code_and_each_reason_has_a_heading_and_each_heading_is_one():
    codes = {code for text in SOURCES for code in re.findall(r'code="([A-Z_]+)"', text)} | OF_THE_API
    reasons = set(re.findall(r'"([a-z_]+)"', (Stats.__doc__ or "").split("delivered:")[0]))
    reasons |= {"queue_full", "closed", "journal_removed", "status_N"} | verdicts()
    assert {"QUEUE_FULL", "MISSING_API_KEY"} <= codes
    assert {"no_customer", "scrub_error"} <= reasons
    assert sorted(headings("errors.md")) == sorted(codes | webhook_codes() | reasons)


def test_each_error_has_a_row_with_a_cause_and_a_cure():
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.WindbackError)
    }
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", page("errors.md"), re.MULTILINE)
    assert sorted(rows) == sorted(classes - {"WindbackError"})


def commands(command, path):
    children = getattr(command, "commands", None)
    if not children:
        return {" ".join(path)}
    return set().union(*(commands(child, [*path, name]) for name, child in children.items()))


def test_each_command_has_a_heading_and_each_heading_is_a_command():
    named = {
        heading.strip("`").replace("windback ", "", 1)
        for name in ("cli.md", "journal-cli.md")
        for heading in headings(name, 2)
        if heading.strip("`").startswith("windback ")
    }
    assert named == commands(typer.main.get_command(app), [])


def test_each_environment_variable_is_in_the_reference_and_is_read():
    read = {name for text in SOURCES for name in re.findall(r'"(WINDBACK_[A-Z_]+)"', text)}
    section = page("reference.md").partition("## Environment variables\n")[2].partition("\n## ")[0]
    assert {said.environment for said in OPTIONS.values() if said.environment} <= read
    assert set(re.findall(r"^\| `(WINDBACK_[A-Z_]+)` \|", section, re.MULTILINE)) == read


@pytest.mark.parametrize("field", [name for name in Stats.__dataclass_fields__ if not name.startswith("_")])
def test_each_counter_is_in_the_reference(field):
    section = page("reference.md").partition("## Numbers\n")[2].partition("\n## ")[0]
    assert re.search(rf"^\| `{field}` \|", section, re.MULTILINE), field
