"""From the raw numbers to tables and a plot; ``python report.py results/DATE.json`` makes them anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Iterable, Sequence

import goals
from environments import BESIDE
from medians import Results
from surroundings import IMPORT

CALLS = ("1 thread", "8 threads")
BUSY = ("8 busy threads", "32 busy threads")
LOOPS = ("asyncio", "uvloop")
SATURATED = ("8 threads, light", "8 threads, medium", "8 threads, heavy", "40 threads, heavy")


def write(stem: Path) -> str:
    """Write `stem`.md and `stem`.png from `stem`.json; the text of the former."""
    import plot  # needs matplotlib, which the tables do not

    results = Results(json.loads(stem.with_suffix(".json").read_text()))
    has_plot = plot.draw(results, stem.with_suffix(".png"))
    text = "\n\n".join(measured(sections(results, f"{stem.name}.png" if has_plot else None))) + "\n"
    stem.with_suffix(".md").write_text(text)
    return text


def measured(parts: Iterable[str]) -> Iterable[str]:
    """The parts without those under a heading whose tables have no row, as with `--steps`."""
    group: list[str] = []
    for part in [*parts, "## "]:
        if part.startswith("## "):
            tables = [each for each in group if each.startswith("|")]
            if not tables or any(each.count("\n") > 1 for each in tables):
                yield from group
            group = []
        group.append(part)


def sections(results: Results, plot: str | None = None) -> Iterable[str]:
    yield f"# Benchmarks, {results.raw['date']}"
    yield "\n".join(f"- {line}" for line in circumstances(results))
    if plot:
        yield f"![The same as bars]({plot})"
    yield "## Goals"
    yield goals_table(results)
    yield "## The call, in µs"
    yield latencies(results, CALLS, ("p50", "p99", "p99.9", "max"))
    yield f"Two readings of the clock are included: {number(results.clock())} µs."
    yield "## The call while the threads are busy, in µs"
    yield latencies(results, BUSY, ("p50", "p99", "p99.9", "slowdown"))
    yield (
        "Each thread works about 25 µs between two calls."
        " slowdown: the time of the threads by their time without a client."
    )
    yield "The first with another process that writes to the disk and syncs it without pause:"
    yield latencies(
        results,
        ("busy disk",),
        ("p50", "p99", "p99.9", "max", "slowdown"),
        ("windback", "windback-journal", "windback-fsync"),
    )
    yield "## End to end"
    yield end_to_end(results)
    yield (
        f"windback at 50 ms with `max_in_flight=1`:"
        f" {number(results.get('50 ms, max_in_flight=1', 'windback', 'rate'))} events/s."
        f" `{IMPORT}`: {number(results.raw['imports'].get(IMPORT))} ms."
        " Bytes are those of an event; sent ones gzipped where a client does so by itself."
    )
    yield "## Out of a saturated process"
    yield saturated(results)
    yield (
        "Events/s that arrived before the threads were done, of those made. Work between two events: light"
        " 26 µs, medium 0.27 ms, heavy 2.7 ms (on the machine where it was set up)."
    )
    yield from processes(results)
    yield "## In an event loop"
    yield in_loop(results)
    yield (
        "Calls in µs, awaited where a client is async. late: how late the loop is at p99, at 5,000 events/s."
        " events/s and CPU are those of a burst, until all of it is delivered."
    )
    yield "## Cold start, in ms"
    yield cold(results)
    yield (
        "A script of one event and a flush: from the start of its process until the event has arrived,"
        " and the CPU of the process. httpx loads rich, click and trio where they are installed."
    )
    yield "## Exit with 10,000 events just made"
    yield exits(results)
    yield (
        "A script that ends without a closing call, while the server takes 50 ms for an answer."
        " floor and some others say that they want such a call."
    )
    yield "## On the wire"
    yield wire(results)
    yield "Bytes of a request in the measurement end to end."
    yield "## A queued event, by events queued"
    yield growth(results)
    yield "Growth of the resident memory, and duration of a call, while the server does not answer."
    yield "## Lost, doubled, failed"
    yield losses(results)


def processes(results: Results) -> Iterable[str]:
    """What other processes do for an application that is gone."""
    made, rate, most = (
        results.get("drain", "windback-relay", field) for field in ("made", "rate", "most_bytes")
    )
    if made and most is not None:
        yield (
            f"windback-relay, {made:,.0f} events that a dead process left, on one core:"
            f" {number(rate)} events/s, with {most / 2**20:,.0f} MiB of memory at most."
        )
    seconds = results.get("exit", "windback-process", "seconds")
    if seconds is not None:
        yield f"windback-process, an exit with 100,000 events just made: {number(seconds)} s; all arrive."


def circumstances(results: Results) -> Iterable[str]:
    raw = results.raw
    yield from (f"{key}: {value}" for key, value in raw["machine"].items())
    yield ", ".join(f"{package} {version}" for package, version in raw["versions"].items())
    if raw["absent"]:
        yield f"not installed: {', '.join(raw['absent'])}"
    yield f"{raw['rounds']} rounds in {raw['seconds']} s; the numbers are medians over the rounds"
    if raw["quick"]:
        yield "made in a hurry: a look, not a result"
    yield "[how it is measured](../README.md)"


def goals_table(results: Results) -> str:
    return table(
        ["goal", "measured", "limit", ""],
        [[goal.text, goal.measured_text, goal.limit_text, goal.verdict] for goal in goals.all_of(results)],
    )


def latencies(
    results: Results, steps: Sequence[str], fields: Sequence[str], clients: Sequence[str] = ()
) -> str:
    columns = [(step, field) for step in steps for field in fields]
    header = ["", *(f"{step.replace(' busy threads', ' busy')} {field}" for step, field in columns)]
    return table(
        header,
        [
            [client, *(number(results.get(step, client, field)) for step, field in columns)]
            for client in results.clients
            if not clients or client in clients
        ],
    )


def end_to_end(results: Results) -> str:
    rows = []
    for client in results.clients:
        rate, made, requests, sent, cpu = (
            results.get("end to end", client, field) for field in ("rate", "made", "requests", "bytes", "cpu")
        )
        batch = made / requests if made and requests else None
        slow, queued = results.get("50 ms", client, "rate"), results.one_queued(client)
        values = (rate, batch, sent, cpu, slow, queued, results.raw["imports"].get(client))
        rows.append([client, *(number(value) for value in values)])
    header = ["events/s", "events a request", "bytes sent", "CPU ms / 1,000", "events/s at 50 ms"]
    return table(["", *header, "bytes queued", "import ms"], rows)


def saturated(results: Results) -> str:
    def cell(step: str, client: str) -> str:
        made, rate = (results.get(step, client, field) for field in ("made_rate", "rate"))
        return f"{number(rate)} of {number(made)} ({rate / made:.0%})" if made and rate is not None else "-"

    rows = [[client, *(cell(step, client) for step in SATURATED)] for client in results.clients]
    return table(["", *SATURATED], rows)


def in_loop(results: Results) -> str:
    fields = {"p50": "p50", "p99": "p99", "late": "late ms", "rate": "events/s", "cpu": "CPU ms / 1,000"}
    rows = [
        [client, *(number(results.get(step, client, field)) for step in LOOPS for field in fields)]
        for client in results.clients
    ]
    return table(["", *(f"{step} {name}" for step in LOOPS for name in fields.values())], rows)


def cold(results: Results) -> str:
    rows = [
        [
            client,
            *(
                number(results.get(f"cold start, {name}", client, field))
                for name in BESIDE
                for field in ("wall", "process")
            ),
        ]
        for client in results.clients
    ]
    return table(["", *(f"{name}: {what}" for name in BESIDE for what in ("first event", "CPU"))], rows)


def exits(results: Results) -> str:
    rows = []
    for client in results.clients:
        seconds, pending, arrived, of = (
            results.get("exit, pending", client, field) for field in ("seconds", "pending", "arrived", "of")
        )
        rows.append([client, *map(number, (seconds, pending, arrived, of))])
    return table(["", "seconds until the process ends", "pending at its last line", "arrived", "of"], rows)


def wire(results: Results) -> str:
    measured = [(client, client, "end to end") for client in results.clients]
    measured.insert(2, ("windback, compress=True", "windback", "compress=True"))
    rows = []
    for name, client, step in measured:
        made, requests, body, head = (
            results.get(step, client, field) for field in ("made", "requests", "bytes", "head_bytes")
        )
        if not made or not requests or body is None or head is None:
            continue
        events = made / requests
        rows.append([name, *map(number, (events, head, body * events, body + head / events))])
    return table(["", "events", "header bytes", "body bytes", "both, for an event"], rows)


def growth(results: Results) -> str:
    clients = [client for client in results.clients if results.queued(client, "bytes")]
    counts = sorted({count for client in clients for count in results.queued(client, "bytes")})
    rows = []
    for client in clients:
        grown, micros = results.queued(client, "bytes"), results.queued(client, "micros")
        cells = (f"{number(grown.get(count))} B, {number(micros.get(count))} µs" for count in counts)
        rows.append([client, number(results.get("end to end", client, "bytes")), *cells])
    return table(["", "bytes sent", *(f"{count:,}" for count in counts)], rows)


def losses(results: Results) -> str:
    lines = []
    for run in results.raw["runs"]:
        where = f"- {run['client']}, {run['step']}, round {run['round'] + 1}:"
        if "failed" in run:
            lines.append(f"{where} failed, {run['failed'].strip().splitlines()[-1]}")
            continue
        made, delivered = (run["result"].get(field, 0) for field in ("made", "delivered"))
        if delivered != made:
            lines.append(f"{where} {made:,} made, {delivered:,} {'lost' if delivered < made else 'doubled'}")
    return "\n".join(lines) or "Nothing: in each measurement what was made is what arrived."


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, without the rows of which nothing was measured."""
    rows = [row for row in rows if any(cell != "-" for cell in row[1:])]
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


if __name__ == "__main__":
    print(write(Path(sys.argv[1]).with_suffix("")))
