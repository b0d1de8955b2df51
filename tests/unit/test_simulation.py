"""The simulation of a fleet: what it plans carries what was asked for, and what is too small shows it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(sys.version_info < (3, 9), reason="benchmarks are run on newer interpreters")


@pytest.fixture(scope="module")
def simulate():
    spec = importlib.util.spec_from_file_location("simulate", BENCHMARKS / "simulate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def figures(simulate):
    return simulate.Figures(7.0, 700.0, 10.0, 50e6, 250.0, 200.0, 100)


@pytest.fixture
def assumed(simulate):
    return simulate.Assumed()


@pytest.mark.parametrize("rate", [10_000, 1_000_000, 100_000_000])
def test_a_plan_carries_its_rate_also_on_a_bad_day(simulate, figures, assumed, rate):
    plan = simulate.plan(rate, figures, assumed)
    assert plan.redis_busy <= assumed.busy
    assert plan.gib_of_outage <= assumed.redis_gib
    assert plan.gbit_of_cell <= assumed.network_gbit * assumed.busy
    assert (plan.relays_of_cell - 1) * figures.relay_events_per_s(
        plan.batch
    ) * assumed.busy >= rate / plan.cells
    day = simulate.bad_day(plan, figures, assumed)
    assert day.lag_calm_s < 1
    assert 119 < day.lag_s < 130  # as long as the API was away
    assert 0 < day.caught_up_s < 240
    assert day.made - day.delivered < rate / plan.cells  # what was made a moment ago
    away_s = simulate.API_AWAY[1] - simulate.API_AWAY[0]
    assert day.most_in_redis == pytest.approx(rate / plan.cells * away_s, rel=0.02)


def test_too_few_relays_never_catch_up(simulate, figures, assumed):
    plan = simulate.plan(100_000, figures, assumed)
    day = simulate.bad_day(plan._replace(relays_of_cell=1), figures, assumed)
    assert day.made - day.delivered > 10_000_000
    assert day.caught_up_s != day.caught_up_s


def test_an_api_that_takes_its_time_wants_more_parallel_requests(simulate, figures, assumed):
    slow = assumed._replace(api_latency_s=1.0, concurrency=4)
    plan = simulate.plan(10_000, figures, slow)
    assert plan.relays_of_cell == 51  # 400 events/s each, half of which are asked for, and a spare one
    assert simulate.plan(10_000, figures, slow._replace(concurrency=64)).relays_of_cell == 5


def test_what_does_not_fit_into_redis_waits_in_the_journals(simulate, figures, assumed):
    plan = simulate.plan(10_000, figures, assumed)
    day = simulate.bad_day(plan, figures, assumed, most_entries=1_000)
    assert day.most_in_redis == pytest.approx(100_000)
    assert day.most_in_journals > 1_000_000
    assert day.made - day.delivered < 10_000


def test_processes_that_do_little_fill_no_batches_and_wear_redis_out(simulate, figures, assumed):
    busy = simulate.plan(100_000, figures, assumed)
    idle = simulate.plan(100_000, figures, assumed._replace(process_rate=2.0))
    assert (busy.batch, idle.batch) == (100, 2)
    assert idle.because == "Redis' one thread"
    assert idle.cells > 10 * busy.cells


def test_figures_that_were_measured_can_be_read(simulate, assumed):
    """Those of the results, which the page on scaling is about."""
    figures = simulate.read(json.loads(simulate.newest().read_text()))
    text = simulate.report(figures, assumed, [10_000])
    assert text.startswith("| events a second | 10,000 |")
    assert all(value > 0 for value in figures)


def test_the_page_on_scaling_has_the_newest_figures(simulate, assumed):
    path = simulate.newest()
    page = (BENCHMARKS.parent / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines()
    assert f"`benchmarks/results/{path.name}`" in "\n".join(page)
    rows = simulate.report(simulate.read(json.loads(path.read_text())), assumed, list(simulate.RATES))
    for row in rows.splitlines():
        assert row in page


def test_what_is_computed_from_the_parts_agrees_with_the_measured_whole(simulate):
    """Four relays carry what four times one would."""
    rows = simulate.compare(json.loads(simulate.newest().read_text()))[1:]
    numbers = {name: [float(each.replace(",", "").rstrip("%")) for each in of] for name, *of in rows}
    forwarded = {name: of for name, of in numbers.items() if name.startswith("events a second of ")}
    assert len(forwarded) == 3
    for name, (computed, measured) in forwarded.items():
        assert measured == pytest.approx(computed, rel=0.3), name
