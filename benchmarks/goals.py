"""What windback has to reach, as ratios within one run."""

from __future__ import annotations

import dataclasses
from typing import Callable, Iterator

from environments import BESIDE
from medians import PRODUCE_ALONE, Results

#: Flat: the most that an event costs with 10³ to 10⁶ queued is so many times the least.
FLAT = 1.25
#: Peers that are not written in Python.
COMPILED = ("statsig",)


@dataclasses.dataclass(frozen=True)
class Goal:
    text: str
    measured: float | None
    limit: float
    at_least: bool = False

    @property
    def measured_text(self) -> str:
        return "-" if self.measured is None else f"{self.measured:.4g}"

    @property
    def limit_text(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:.3g}"

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return "met" if met else "**missed**"


def all_of(results: Results) -> list[Goal]:
    parts = (call, busy, delivery, journal, memory, imports, cold)
    return [goal for part in parts for goal in part(results)]


def call(results: Results) -> Iterator[Goal]:
    p50 = by(results, "1 thread", "p50")
    yield Goal("call p50, by the floor's", p50("floor"), 1.5)
    yield Goal("call p50, by confluent-kafka's (encode and `produce`)", p50("confluent-kafka"), 1)
    yield Goal("call p50, by `produce` of bytes that are there already", p50(PRODUCE_ALONE), 1)
    yield Goal("call p50, by posthog's", p50("posthog"), 1 / 25)
    whose = best(results, "8 threads", "p99.9", min)
    p999 = by(results, "8 threads", "p99.9")(whose)
    yield Goal(f"p99.9 with 8 threads, by the best peer's ({whose})", p999, 1)


def busy(results: Results) -> Iterator[Goal]:
    for step in ("8 busy threads", "32 busy threads"):
        for field, limit in (("p50", 1.5), ("p99", 1.5), ("slowdown", 1.05)):
            yield Goal(f"{step}: {field}, by the floor's", by(results, step, field)("floor"), limit)


def delivery(results: Results) -> Iterator[Goal]:
    rate, cpu = by(results, "end to end", "rate"), by(results, "end to end", "cpu")
    yield Goal("end to end, by the floor's", rate("floor"), 0.6, at_least=True)
    whose = best(results, "end to end", "rate", max)
    yield Goal(f"end to end, by the best peer's ({whose})", rate(whose), 1, at_least=True)
    yield Goal("end to end, by posthog's", rate("posthog"), 10, at_least=True)
    whose = best(results, "end to end", "cpu", min)
    yield Goal(f"CPU per event, by the best peer's ({whose})", cpu(whose), 1 / 3)
    four = results.get("50 ms", "windback", "rate")
    one = results.get("50 ms, max_in_flight=1", "windback", "rate")
    yield Goal("50 ms round trips, by one connection", ratio(four, one), 3.5, at_least=True)


def journal(results: Results) -> Iterator[Goal]:
    own = results.ratio("1 thread", "windback-journal", "windback", "p50")
    yield Goal("journal: call p50, by memory's", own, 2)
    for step in ("8 busy threads", "32 busy threads"):
        p99 = results.get(step, "windback-journal", "p99")
        yield Goal(f"journal, {step}: p99 in µs", p99, 15)
    process = "windback-process"
    for step, limit in (("8 threads, light", 1.2), ("40 threads, heavy", 1.1)):
        meanwhile = results.ratio(step, process, process, "rate", "made_rate")
        yield Goal(f"process, {step}: delivered while made", meanwhile, 0.99, at_least=True)
        made = results.ratio(step, "floor", process, "made_rate")
        yield Goal(f"process, {step}: made by the floor's", made, limit)
    p999 = results.get("busy disk", "windback-journal", "p99.9")
    yield Goal("journal, 8 busy threads beside writes and syncs of the disk: p99.9 in µs", p999, 50)
    took = results.get("exit", "windback-process", "seconds")
    yield Goal("process: seconds that an exit takes with 100,000 events just made", took, 0.2)
    drained = results.get("drain", "windback-relay", "rate")
    yield Goal("relay: events/s of what a dead process left, on one core", drained, 50_000, at_least=True)


def memory(results: Results) -> Iterator[Goal]:
    grown = results.queued("windback", "bytes")
    encoded = results.get("end to end", "windback", "bytes")
    most = max(grown.values(), default=None)
    beyond = None if most is None or encoded is None else most - encoded
    yield Goal("bytes of a queued event beyond its encoded ones, the most of 10³ to 10⁶", beyond, 100)
    yield Goal("the same flat: the most by the least", ratio(most, min(grown.values(), default=None)), FLAT)


def imports(results: Results) -> Iterator[Goal]:
    took = results.raw["imports"]
    yield Goal("`import windback`, by `import orjson`", ratio(took.get("windback"), took.get("floor")), 1.5)
    loaded = results.raw["loaded"]
    count = None if loaded is None else float(len(loaded))
    yield Goal("of httpx, tenacity, anyio, asyncio are imported by it", count, 0)


def cold(results: Results) -> Iterator[Goal]:
    for name in BESIDE:
        step = f"cold start, {name}"
        whose = best(results, step, "wall", min, without=COMPILED)
        text = f"{step}: until the first event has arrived, by the best Python peer's ({whose})"
        yield Goal(text, by(results, step, "wall")(whose), 1)


def by(results: Results, step: str, field: str) -> Callable[[str], float | None]:
    """What gives windback's number by that of another client."""
    return lambda other: results.ratio(step, "windback", other, field)


def best(
    results: Results,
    step: str,
    field: str,
    choose: Callable[..., str],
    without: tuple[str, ...] = (),
) -> str:
    """The peer with the best number; "?" without a peer."""
    peers = [peer for peer in results.peers if peer not in without]
    values = {peer: value for peer in peers if (value := results.get(step, peer, field)) is not None}
    return choose(values, key=values.__getitem__, default="?")


def ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None
