"""Measure windback beside its peers: ``python benchmarks/run.py [--quick] [--only NAME,…] [--steps NAME,…]``.

One sink for all; one process after the other, each making one measurement of one client; all clients take
turns within a round, and what is reported is the median over the rounds. Writes the raw numbers, a table
and a plot to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import environments
import report
import surroundings
from clients import ADAPTERS
from plan import IN_ANY_LOOP, Step, plan
from sink import sink

HERE = Path(__file__).resolve().parent
#: The environment in which a client that is alone in one is measured.
FIRST = next(iter(environments.BESIDE))


def main() -> None:
    options = arguments()
    versions = surroundings.versions(options.only)
    absent = [client for client in options.only if ADAPTERS[client].package not in versions]
    chosen = [client for client in options.only if client not in absent]
    interpreters = environments.interpreters(chosen, surroundings.versions(ADAPTERS))
    machine = surroundings.describe()
    print("\n".join(f"{key}: {value}" for key, value in {**machine, **versions}.items()), flush=True)
    started = time.monotonic()
    results = {
        "date": dt.datetime.now().astimezone().date().isoformat(),
        "machine": machine,
        "rounds": options.rounds,
        "quick": options.quick,
        "versions": versions,
        "absent": absent,
        "imports": surroundings.imports(chosen, 5 if options.quick else 15),
        "loaded": surroundings.loaded_by_windback() if "windback" in chosen else None,
        "runs": measure_all(options.steps, chosen, options.rounds, interpreters),
        "seconds": round(time.monotonic() - started),
    }
    suffix = ("-quick" if options.quick else "") + ("-partial" if options.partial else "")
    stem = HERE / "results" / (results["date"] + suffix)
    stem.parent.mkdir(exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1))
    print("\n" + report.write(stem), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure windback beside its peers.")
    parser.add_argument("--quick", action="store_true", help="one round, fewer calls: a look, not a result")
    parser.add_argument("--only", metavar="NAME,...", help=f"of: {', '.join(ADAPTERS)}")
    parser.add_argument(
        "--steps", metavar="NAME,...", help="only these of the plan, by how their names start"
    )
    parser.add_argument("--rounds", type=int, help="how often all clients take their turn (3; 1 if quick)")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(ADAPTERS)
    if unknown := set(names) - set(ADAPTERS):
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    options.only = [client for client in ADAPTERS if client in names]
    steps = plan(quick=options.quick)
    options.steps = [step for step in steps if step.name.startswith(tuple((options.steps or "").split(",")))]
    if not options.steps:
        parser.error(f"no such step; there are: {', '.join(step.name for step in steps)}")
    options.partial = len(options.only) < len(ADAPTERS) or len(options.steps) < len(steps)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def measure_all(
    steps: list[Step], chosen: list[str], rounds: int, interpreters: environments.Interpreters
) -> list[dict[str, Any]]:
    with sink() as url:
        return [
            measure(step, client, url, number, interpreters)
            for number in range(rounds)
            for step in steps
            if number < step.rounds
            for client in turn(step, chosen, number)
        ]


def turn(step: Step, chosen: list[str], number: int) -> list[str]:
    """Who takes part in a step, a different one first in each round."""
    clients = [
        client
        for client in chosen
        if (not step.clients or client in step.clients)
        and (step.measure in IN_ANY_LOOP or not ADAPTERS[client].is_async)
        and (step.call_alone or ADAPTERS[client].delivers)
    ]
    start = number % max(len(clients), 1)
    return clients[start:] + clients[:start]


def measure(
    step: Step, client: str, url: str, number: int, interpreters: environments.Interpreters
) -> dict[str, Any]:
    python = interpreters[FIRST, client] if ADAPTERS[client].alone else sys.executable
    spec = {
        "measure": step.measure,
        "client": client,
        "url": url,
        "latency": step.latency,
        "options": step.options,
        "arguments": arguments_of(step, client, interpreters),
    }
    run: dict[str, Any] = {"step": step.name, "client": client, "round": number}
    try:
        done = subprocess.run(
            [python, str(HERE / "measures.py"), json.dumps(spec)],
            capture_output=True,
            text=True,
            timeout=step.limit,
            check=True,
            env=surroundings.environment(),
        )
    except subprocess.SubprocessError as error:
        run["failed"] = f"{getattr(error, 'stderr', None) or ''}{error}"
    else:
        run["result"] = json.loads(done.stdout.splitlines()[-1])
    print(f"{number + 1} {step.name:24} {client:32} {brief(run.get('result') or run)}", flush=True)
    return run


def arguments_of(step: Step, client: str, interpreters: environments.Interpreters) -> dict[str, Any]:
    if step.burst is not None:
        return {"count": min(ADAPTERS[client].burst, step.burst)}
    if step.environment is not None:
        return {**step.arguments, "python": interpreters[step.environment, client]}
    if "calls" in step.arguments:
        return {**step.arguments, "calls": max(1, round(step.arguments["calls"] * ADAPTERS[client].share))}
    return step.arguments


def brief(result: dict[str, Any]) -> str:
    shown = (
        "p50",
        "p99",
        "p99.9",
        "slowdown",
        "rate",
        "cpu",
        "meanwhile",
        "made",
        "delivered",
        "seconds",
        "arrived",
        "wall",
        "process",
        "late",
        "head_bytes",
        "most_bytes",
    )
    if "failed" in result:
        return f"FAILED {result['failed']}"
    if "queued" in result:
        return " ".join(f"{count}: {of['bytes']:.0f} B" for count, of in result["queued"].items())
    return " ".join(f"{key} {result[key]:,.6g}" for key in shown if key in result)


if __name__ == "__main__":
    main()
