"""A short form of `make faults`: some cells of the table, and that it finds what is wrong."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it forks and sends signals")

ROOT = Path(__file__).resolve().parents[2]


def load():
    spec = importlib.util.spec_from_file_location("faults_table", ROOT / "tests" / "faults_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults_table"] = module  # a NamedTuple looks its module up
    spec.loader.exec_module(module)
    return module


table = load()
ROWS = {row.name: row for row in table.ROWS}
KINDS = {kind.name: kind for kind in table.KINDS}


def run(row, kind):
    return table.Cell(row, KINDS[kind], sys.executable).run()


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("row", "kind", "result"),
    [
        ("the API is down, then back", "thread", "60"),
        ("the queue is full", "async task", "20, 40 refused"),
        ("413: the request is too large", "relay", "59, 1 rejected"),
        ("the key is wrong", "thread", "0, 60 dropped"),
        ("the key is wrong", "async task, journal", "0, 60 pending"),
        ("kill -9", "thread", "0, 60 with the process"),
        ("kill -9", "async process", "60"),
        ("the answer is cut off", "process", "60"),
        ("all tasks are cancelled", "async task", "60"),
    ],
)
def test_each_event_is_delivered_or_counted(row, kind, result):
    assert str(run(ROWS[row], kind)) == result


def test_a_server_that_forgets_is_found():
    forgets = table.first(99, table.Answer(processes=False))
    result = run(table.Row("forgets", forgets), "thread")
    assert result.lost == table.EVENTS
    assert not table.is_clean({("forgets", "thread"): result})


def test_the_page_has_each_row_and_each_kind_and_lost_nothing():
    page = table.PAGE.read_text(encoding="utf-8")
    assert [name for name in ROWS if f"| {name} |" not in page] == []
    assert [name for name in KINDS if f"| {name} |" not in page] == []
    cells = re.findall(r"^\| [^|]+ \|(.*)\|$", page, re.MULTILINE)
    assert len(cells) > 2 * len(ROWS)
    assert not [each for each in cells if re.search(r"\d+ (lost|doubled)|\*\*", each)]
