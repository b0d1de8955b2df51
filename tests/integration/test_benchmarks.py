"""`make bench`: each step of its plan, here with the smallest sizes, gives numbers that a table shows."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
GENERATE = BENCHMARKS.parent / "docs" / "generate.py"

pytestmark = [
    pytest.mark.skipif(sys.version_info < (3, 9), reason="benchmarks are run on newer interpreters"),
    pytest.mark.skipif(sys.platform != "linux", reason="memory and CPU are read from /proc"),
    pytest.mark.timeout(240),  # the fixture runs every step of the plan
]

#: Names of benchmarks/ that a test imports.
MODULES = ("run", "plan", "clients", "medians", "report", "sink", "goals")
SMALL = {"calls": 10, "passes": 1, "seconds": 0.1, "times": 1, "patience": 20, "counts": [500]}


@pytest.fixture(scope="module")
def bench():
    """The scripts of benchmarks/, which are no package."""
    before, sys.path[:0] = set(sys.modules), [str(BENCHMARKS)]
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(BENCHMARKS))
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def runs(bench):
    """A run of each step with the first client of this package that takes part, and with an async one."""
    own = ("windback", "windback-async-task", "windback-process", "windback-relay")
    anywhere = dict.fromkeys(
        [(step.environment, client) for step in bench["plan"].plan(quick=True) for client in own],
        sys.executable,
    )
    with bench["sink"].sink() as url:
        return [
            bench["run"].measure(small(step), client, url, 0, anywhere)
            for step in bench["plan"].plan(quick=True)
            for client in some(bench["run"].turn(step, list(own), 0))
        ]


def some(clients):
    return {*clients[:1], *(client for client in clients if "async" in client)}


def small(step):
    """The same step with the smallest numbers."""
    arguments = {name: SMALL.get(name, value) for name, value in step.arguments.items()}
    if "count" in arguments:
        arguments["count"] = 200
    return dataclasses.replace(step, arguments=arguments, burst=step.burst and 200, limit=60)


def test_each_step_of_the_plan_gives_numbers_and_loses_nothing(bench, runs):
    assert {run["step"] for run in runs} == {step.name for step in bench["plan"].plan(quick=True)}
    assert [run for run in runs if "failed" in run] == []
    assert "Nothing" in bench["report"].losses(bench["medians"].Results({"runs": runs}))


def test_the_tables_have_a_row_of_each_part_that_the_docs_show(bench, runs):
    spec = importlib.util.spec_from_file_location("generate", GENERATE)
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    raw = {
        "date": "2026-01-01",
        "machine": {"Python": "3"},
        "versions": {},
        "absent": [],
        "rounds": 1,
        "quick": True,
        "imports": {},
        "loaded": [],
        "runs": runs,
        "seconds": 1,
    }
    text = "\n\n".join(bench["report"].sections(bench["medians"].Results(raw)))
    shown = {
        heading
        for heading, make in generate.PARTS["evidence.md"].items()
        if getattr(make, "func", None) is generate.section
    }
    for heading in shown - {"Lost, doubled, failed"}:
        part = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
        assert "| windback" in part, heading


def test_a_run_of_some_steps_shows_these_alone(bench):
    parts = [
        "# Title",
        "## Empty",
        "| a |\n|---|",
        "why",
        "## Full",
        "| a |\n|---|\n| 1 |",
        "how",
        "## Text",
        "none",
    ]
    shown = list(bench["report"].measured(parts))
    assert shown == ["# Title", "## Full", "| a |\n|---|\n| 1 |", "how", "## Text", "none"]


def test_each_peer_is_pinned(bench):
    pins = (BENCHMARKS / "requirements.txt").read_text(encoding="utf-8")
    peers = {adapter.package for adapter in bench["clients"].ADAPTERS.values()} - {"windback"}
    assert [peer for peer in peers if f"{peer}==" not in pins] == []
