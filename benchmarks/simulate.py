"""How large a fleet has to be, and what becomes of it on a bad day: ``python benchmarks/simulate.py``.

The inputs are what `fleet.py` measured (`--figures`, else the newest `results/*-fleet.json`), and the
assumptions below, each of which is an option. First the arithmetic: how many cells, relays and gigabytes a
rate takes. A cell is a Redis with the applications that write to it and the relays that read from it; cells
share nothing. Then ten minutes of one such cell, in steps of a tenth of a second: a burst, a relay that dies,
an API that is away, a Redis that is restarted.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
STEP_S = 0.1
RATES = (10_000, 1_000_000, 100_000_000)


class Figures(NamedTuple):
    """What was measured."""

    app_us_per_event: float
    relay_us_per_request: float
    relay_us_per_event: float
    relay_bytes: float
    redis_us_per_batch: float
    redis_bytes_per_event: float
    batch: int

    def relay_events_per_s(self, batch: float) -> float:
        """What a relay forwards of batches of so many events."""
        return 1e6 * batch / (self.relay_us_per_request + batch * self.relay_us_per_event)


class Assumed(NamedTuple):
    """What is not measured here."""

    #: Events a second of one application process, and how long it waits for a batch to fill.
    process_rate: float = 1_000.0
    flush_interval_s: float = 1.0
    #: How busy Redis' one thread, and a relay's core or its requests, may be at the rate asked for. What is
    #: left catches up after an outage.
    busy: float = 0.5
    #: Of a Redis machine, for what waits there; and its network, for what comes and goes.
    redis_gib: float = 16.0
    network_gbit: float = 10.0
    #: What has to fit into Redis while the API is away.
    outage_s: float = 600.0
    #: Seconds after which what a dead relay held is taken over.
    claim_after_s: float = 15.0
    #: Requests at once of each relay, and how long the API takes for one.
    concurrency: int = 16
    api_latency_s: float = 0.05
    cells_of_region: int = 32

    def in_requests_per_s(self, batch: float) -> float:
        """What a relay forwards that has nothing to do but wait for the API."""
        return self.concurrency * batch / self.api_latency_s


def relay_rate(figures: Figures, assumed: Assumed, batch: float) -> float:
    """Return what a relay forwards, which its core or the API bounds."""
    return min(figures.relay_events_per_s(batch), assumed.in_requests_per_s(batch))


class Plan(NamedTuple):
    """What a rate takes."""

    rate: int
    batch: float
    processes: int
    app_cores: float
    cells: int
    #: What asked for so many cells.
    because: str
    relays_of_cell: int
    relays_gib: float
    gib_of_outage: float
    entries_of_outage: int
    redis_busy: float
    gbit_of_cell: float
    regions: int


def read(raw: dict[str, Any]) -> Figures:
    one, small = raw["one relay"], raw["one relay, small batches"]
    # Two sizes of batches are two equations for what a request and what an event costs. It is the CPU that is
    # taken: a relay waits for nothing but its core, and other programs do not change that number.
    took, took_small = (each["relay_cpu_us_per_event"] * each["batch"] for each in (one, small))
    per_event = max(0.0, (took - took_small) / (one["batch"] - small["batch"]))
    return Figures(
        raw["calls"]["with"]["cpu_us_per_event"],
        took - one["batch"] * per_event,
        per_event,
        one["relay_bytes"],
        raw["appending"]["redis_cpu_us_per_batch"] + one["redis_cpu_us_per_batch"],
        one["redis_bytes_per_event"],
        raw["batch"],
    )


def plan(rate: int, figures: Figures, assumed: Assumed) -> Plan:
    processes = max(1, math.ceil(rate / assumed.process_rate))
    # A batch is sent when it is full, or when its first event waited for long enough.
    batch = min(figures.batch, max(1.0, rate / processes * assumed.flush_interval_s))
    bytes_per_s = rate * figures.redis_bytes_per_event
    wanted = {
        "Redis' one thread": rate / batch * figures.redis_us_per_batch / 1e6 / assumed.busy,
        "its network": 2 * bytes_per_s * 8 / 1e9 / assumed.network_gbit / assumed.busy,
        "its memory, in an outage": bytes_per_s * assumed.outage_s / 2**30 / assumed.redis_gib,
    }
    because = max(wanted, key=lambda name: wanted[name])
    cells = max(1, math.ceil(wanted[because]))
    of_cell = rate / cells
    # One more than needed: one may die.
    relays = math.ceil(of_cell / (relay_rate(figures, assumed, batch) * assumed.busy)) + 1
    return Plan(
        rate=rate,
        batch=batch,
        processes=processes,
        app_cores=rate * figures.app_us_per_event / 1e6,
        cells=cells,
        because=because if wanted[because] > 1 else "one is enough",
        relays_of_cell=relays,
        relays_gib=relays * cells * figures.relay_bytes / 2**30,
        gib_of_outage=bytes_per_s * assumed.outage_s / 2**30 / cells,
        entries_of_outage=math.ceil(of_cell / batch * assumed.outage_s),
        redis_busy=of_cell / batch * figures.redis_us_per_batch / 1e6,
        gbit_of_cell=2 * bytes_per_s * 8 / 1e9 / cells,
        regions=math.ceil(cells / assumed.cells_of_region),
    )


class Day(NamedTuple):
    """What became of ten minutes."""

    made: float
    delivered: float
    #: Events that wait in Redis at most; in applications' journals, while Redis is away or full.
    most_in_redis: float
    most_in_journals: float
    #: The longest that an event had waited: before anything happened, and in all.
    lag_calm_s: float
    lag_s: float
    #: Until nothing waits any more, from the end of the API's outage.
    caught_up_s: float


#: (from, to) in seconds. A relay dies in the middle of the burst, Redis comes back with what it had.
BURST, BURST_BY = (60, 120), 1.5
DEATH_S, START_S = 90, 5
API_AWAY = (150, 270)
REDIS_AWAY = (400, 410)
LENGTH_S = 600


def bad_day(chosen: Plan, figures: Figures, assumed: Assumed, most_entries: float = math.inf) -> Day:
    """Let one cell of a plan have it. Events are a fluid: how much waits where, not which."""
    rate = chosen.rate / chosen.cells
    redis_rate = 1e6 / figures.redis_us_per_batch * chosen.batch
    room = most_entries * chosen.batch
    of_relay = relay_rate(figures, assumed, chosen.batch)
    journals = in_redis = held = made = delivered = 0.0
    most_in_redis = most_in_journals = calm = lag = 0.0
    caught_up = math.nan
    arrivals: list[float] = []  # what was made until the end of each step
    oldest = 0
    for number in range(int(LENGTH_S / STEP_S)):
        now = number * STEP_S
        made += rate * STEP_S * (BURST_BY if BURST[0] <= now < BURST[1] else 1.0)
        arrivals.append(made)
        is_redis_there = not REDIS_AWAY[0] <= now < REDIS_AWAY[1]
        is_api_there = not API_AWAY[0] <= now < API_AWAY[1]
        if DEATH_S <= now < DEATH_S + STEP_S:  # what it had read waits until others may have it
            held = min(in_redis, 8 * assumed.concurrency * chosen.batch)
        if now >= DEATH_S + assumed.claim_after_s:
            held = 0.0
        dead = 1 if DEATH_S <= now < DEATH_S + START_S else 0
        journals = made - delivered - in_redis
        if is_redis_there:
            handed = min(journals, redis_rate * STEP_S, max(0.0, room - in_redis))
            journals -= handed
            in_redis += handed
            if is_api_there:
                sent = min(
                    in_redis - held,
                    (chosen.relays_of_cell - dead) * of_relay * STEP_S,
                    redis_rate * STEP_S,
                )
                in_redis -= sent
                delivered += sent
        while oldest < number and arrivals[oldest] <= delivered + 1e-6 * made:
            oldest += 1
        waits = now - oldest * STEP_S
        lag = max(lag, waits)
        if now < BURST[0]:
            calm = max(calm, waits)
        most_in_redis, most_in_journals = max(most_in_redis, in_redis), max(most_in_journals, journals)
        if math.isnan(caught_up) and now > API_AWAY[1] and made - delivered <= 2 * rate * STEP_S:
            caught_up = now - API_AWAY[1]
    return Day(made, delivered, most_in_redis, most_in_journals, calm, lag, caught_up)


def compare(raw: dict[str, Any]) -> list[tuple[str, ...]]:
    """What follows from the parts, beside what was measured of the whole."""
    figures = read(raw)
    rows: list[tuple[str, ...]] = [("", "computed", "measured")]

    def row(name: str, computed: float, measured: float, form: str = "{:,.0f}") -> None:
        rows.append((name, form.format(computed), form.format(measured)))

    append = raw["appending"]
    most = 1e6 / append["redis_cpu_us_per_batch"]
    row("batches a second that Redis takes at the most", most, append["most_batches_per_s"])
    for run in _runs(raw, "latency_s"):
        if run["latency_s"]:
            assumed = Assumed(concurrency=run["concurrency"], api_latency_s=run["latency_s"])
            each = relay_rate(figures, assumed, run["batch"])
            name = f"events a second of {_relays(run)}, an API of {1e3 * run['latency_s']:.0f} ms"
            row(name, run["relays"] * each, run["events_per_s"])
    for run in _runs(raw, "busy"):
        name, batches_per_s = f"{run['rate']:,.0f} events/s, {_relays(run)}", run["rate"] / figures.batch
        redis = batches_per_s * figures.redis_us_per_batch / 1e6
        relays = run["rate"] / figures.relay_events_per_s(figures.batch)
        application = run["rate"] * figures.app_us_per_event / 1e6
        row(f"{name}: Redis, share of a core", redis, run["busy"]["redis"], "{:.1%}")
        row(f"{name}: relays together, share of a core", relays, run["busy"]["relays"], "{:.1%}")
        row(f"{name}: the application, share of a core", application, run["busy"]["application"], "{:.1%}")
        row(f"{name}: median age of the oldest batch in Redis, s", 0.0, run["lag_p50_s"], "{:.2f}")
    return rows


def _runs(raw: dict[str, Any], field: str) -> list[dict[str, Any]]:
    return [part for part in raw.values() if isinstance(part, dict) and field in part]


def _relays(run: dict[str, Any]) -> str:
    return "1 relay" if run["relays"] == 1 else f"{run['relays']} relays"


def newest() -> Path:
    found = sorted((HERE / "results").glob("*-fleet.json")) or sorted(
        (HERE / "results").glob("*-fleet*.json")
    )
    if not found:
        raise SystemExit("no figures: run benchmarks/fleet.py, or name a file of it with --figures")
    return found[-1]


def table(rows: list[tuple[str, ...]]) -> str:
    head, *rest = rows
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) + ("---:",) * (len(head) - 1), *rest)]
    return "\n".join(lines)


def report(figures: Figures, assumed: Assumed, rates: list[int]) -> str:
    plans = [plan(rate, figures, assumed) for rate in rates]
    days = [bad_day(each, figures, assumed) for each in plans]

    def row(name: str, *cells: str) -> tuple[str, ...]:
        return (name, *cells)

    rows = [
        row("events a second", *(f"{each.rate:,}" for each in plans)),
        row("application processes", *(f"{each.processes:,}" for each in plans)),
        row("their CPU for windback, cores", *(f"{each.app_cores:,.2f}" for each in plans)),
        row("events in a batch", *(f"{each.batch:,.0f}" for each in plans)),
        row("cells", *(f"{each.cells:,}" for each in plans)),
        row("asked for by", *(each.because for each in plans)),
        row("regions", *(f"{each.regions:,}" for each in plans)),
        row("relays of a cell, one of them spare", *(f"{each.relays_of_cell:,}" for each in plans)),
        row("relays in all", *(f"{each.relays_of_cell * each.cells:,}" for each in plans)),
        row("their memory in all, GiB", *(f"{each.relays_gib:,.1f}" for each in plans)),
        row("Redis' thread busy", *(f"{each.redis_busy:.0%}" for each in plans)),
        row("network of a Redis, Gbit/s", *(f"{each.gbit_of_cell:,.2f}" for each in plans)),
        row(
            f"memory of a Redis for {assumed.outage_s:,.0f} s without the API, GiB",
            *(f"{each.gib_of_outage:,.1f}" for each in plans),
        ),
        row("`max_broker_entries` for that", *(f"{each.entries_of_outage:,}" for each in plans)),
        row("bad day: lag while all is well, s", *(f"{each.lag_calm_s:,.1f}" for each in days)),
        row("bad day: greatest lag, s", *(f"{each.lag_s:,.0f}" for each in days)),
        row("bad day: caught up after the API, s", *(f"{each.caught_up_s:,.0f}" for each in days)),
        row(
            "bad day: most events in a Redis / its journals",
            *(f"{each.most_in_redis:,.0f} / {each.most_in_journals:,.0f}" for each in days),
        ),
        row(
            "bad day: events that still wait at its end",
            *(f"{each.made - each.delivered:,.0f}" for each in days),
        ),
    ]
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="How large a fleet has to be, from what fleet.py measured.")
    parser.add_argument("--figures", type=Path, help="a file of fleet.py (the newest in benchmarks/results)")
    parser.add_argument("--rates", type=int, nargs="*", default=list(RATES), help="events a second")
    for name, value in Assumed()._asdict().items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"({value:,})"
        )
    options = parser.parse_args()
    path = options.figures or newest()
    raw: dict[str, Any] = json.loads(path.read_text())
    figures = read(raw)
    assumed = Assumed(**{name: getattr(options, name) for name in Assumed._fields})
    print(f"figures: {path.name}: {figures}\n\nassumed: {assumed}\n")
    print(report(figures, assumed, options.rates))
    print(f"\nThe parts, and what was measured of the whole:\n\n{table(compare(raw))}")


if __name__ == "__main__":
    main()
