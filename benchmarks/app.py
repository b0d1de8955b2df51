"""What tracking one event a request costs a web application: ``python benchmarks/app.py [NAME ...]``.

Each client in turn is in the same application, under the same load of `wrk`, and each row is compared with
the application without a client in the same round, so what else the machine does falls on all of them.
Writes the raw numbers and a table to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Iterable, Iterator

import surroundings
import turns
from clients import ADAPTERS
from report import number, table
from sink import sink
from web import ASYNC, NONE, commands

HERE = Path(__file__).resolve().parent
CONNECTIONS = 32
#: Requests a second of the quiet load.
QUIET = 500
#: wrk has no rate: each connection waits between two requests, at random, so long on average.
PAUSES = "function delay() return math.random(0, {}) end"
LOADS = {"full speed": None, f"{QUIET} requests/s": QUIET}
CLIENTS = (
    *(NONE, "floor", "windback", "windback-async", "windback-async-task", "windback-async-thread"),
    *("windback-process", "statsig", "posthog", "sentry-logs", "opentelemetry-logs", "segment"),
)
#: Those that the goals are about.
OWN = ("windback", "windback-async", "windback-process")


def main() -> None:
    options = arguments()
    if shutil.which("wrk") is None:
        sys.exit("This needs wrk: apt-get install wrk, or brew install wrk.")
    versions = surroundings.versions([name for name in options.clients if name in ADAPTERS])
    missing = [
        name for name in options.clients if name in ADAPTERS and ADAPTERS[name].package not in versions
    ]
    clients = [name for name in options.clients if name not in missing]
    started = time.monotonic()
    runs = [
        measure(server, load, client, number, options.seconds)
        for number in range(options.rounds)
        for server in options.servers
        for load in options.loads
        for client in turn(clients, number)
        if server != "flask" or client not in ASYNC
    ]
    results = {
        "date": dt.datetime.now().astimezone().date().isoformat(),
        "machine": surroundings.describe(),
        "versions": versions,
        "missing": missing,
        "rounds": options.rounds,
        "runs": runs,
        "turns": turns.measure_all() if options.turns else [],
        "seconds": round(time.monotonic() - started),
    }
    stem = HERE / "results" / f"{results['date']}-app"
    stem.parent.mkdir(exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(results, indent=1))
    text = "\n\n".join(sections(results)) + "\n"
    stem.with_suffix(".md").write_text(text)
    print("\n" + text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what tracking costs a web application.")
    parser.add_argument("clients", nargs="*", help=f"of: {', '.join(CLIENTS)} (all)")
    parser.add_argument("--rounds", type=int, default=7, help="how often all take their turn (7)")
    parser.add_argument("--seconds", type=int, default=3, help="length of each load (3)")
    parser.add_argument("--servers", help=f"of: {','.join(commands(0))} (all)")
    parser.add_argument("--loads", help=f"of: {','.join(LOADS)} (all)")
    parser.add_argument("--turns", action="store_true", help="also count system calls a batch, with strace")
    options = parser.parse_args()
    options.servers = options.servers.split(",") if options.servers else list(commands(0))
    options.loads = options.loads.split(",") if options.loads else list(LOADS)
    options.clients = [name for name in CLIENTS if name in {*(options.clients or CLIENTS), NONE}]
    return options


def turn(clients: list[str], number: int) -> list[str]:
    """The order of a round: another client is first in each."""
    start = number % len(clients)
    return clients[start:] + clients[:start]


def measure(server: str, load: str, client: str, number: int, seconds: int) -> dict[str, Any]:
    run: dict[str, Any] = {"server": server, "load": load, "client": client, "round": number}
    try:
        with sink() as url, application(server, client, url) as (base, pid):
            wrk(base, None, 1)  # everything is loaded, and connections are made
            get(f"{base}/flush")
            get(f"{base}/reset")
            get(f"{url}/_reset?latency=0")
            before = cpu(pid)
            said = wrk(base, LOADS[load], seconds)
            late = {} if server == "flask" else get(f"{base}/lateness")
            get(f"{base}/flush")
            run["cpu"] = (cpu(pid) - before) / said["requests"]
            run["late"] = late.get("p99")
            # wrk does not count the requests that are under way at its end: a few more may arrive.
            arrived = get(f"{url}/_stats")["events"]
            run["lost"] = 0 if client == NONE else max(0, said["requests"] - arrived)
            run.update(said)
    except (OSError, subprocess.SubprocessError, AssertionError) as error:
        run["failed"] = repr(error)
    print(number + 1, *run.values(), flush=True)
    return run


@contextlib.contextmanager
def application(server: str, client: str, url: str) -> Iterator[tuple[str, int]]:
    """Start an application; its address, and the process that works."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {
        **surroundings.environment(),
        "CLIENT": client,
        "SINK": url,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH")))),
    }
    with subprocess.Popen(commands(port)[server], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            base = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 30
            while True:
                try:
                    get(f"{base}/")
                    break
                except OSError:
                    assert time.monotonic() < deadline, "the application did not start"
                    time.sleep(0.05)
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield base, int(workers[0]) if server == "flask" else process.pid
        finally:
            process.terminate()


def get(url: str) -> Any:  # noqa: ANN401 - decoded JSON
    with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 - of this machine
        return json.loads(response.read())


def cpu(pid: int) -> float:
    """Microseconds of CPU that a process has used, in all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


def wrk(base: str, rate: int | None, seconds: int) -> dict[str, float]:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if rate is not None:
            script.write(PAUSES.format(round(2_000 * CONNECTIONS / rate)))
            script.flush()
            command += ["-s", script.name]
        said = subprocess.run([*command, f"{base}/"], capture_output=True, text=True, check=True).stdout
    requests = re.search(r"(\d+) requests in", said)
    rate_said, late = (
        re.search(r"Requests/sec:\s+([\d.]+)", said),
        re.search(r"99%\s+([\d.]+)(us|ms|s)", said),
    )
    assert requests
    assert rate_said
    assert late
    p99 = float(late[1]) * {"us": 0.001, "ms": 1.0, "s": 1_000.0}[late[2]]
    return {"requests": int(requests[1]), "rate": float(rate_said[1]), "p99": p99}


# The tables


def sections(results: dict[str, Any]) -> Iterator[str]:
    yield f"# What an event in each request costs an application, {results['date']}"
    machine = [f"{key}: {value}" for key, value in results["machine"].items()]
    lines = [*machine, ", ".join(f"{name} {version}" for name, version in results["versions"].items())]
    if results["missing"]:
        lines.append(f"not installed: {', '.join(results['missing'])}")
    lines.append(f"{results['rounds']} rounds in {results['seconds']} s; medians over the rounds")
    yield "\n".join(f"- {line}" for line in lines)
    places = list(dict.fromkeys((run["server"], run["load"]) for run in results["runs"]))
    for server, load in places:
        yield f"## {server}, {load}"
        yield rows(results["runs"], server, load)
    yield (
        "CPU: of the application's process, all threads, until everything is delivered. beyond none, by"
        " none's: the median of the differences from, and of the ratios to, the application without a client"
        " in the same round. late: how late the event loop is at p99."
    )
    yield "## Goals"
    yield goals(results["runs"], places)
    if results["turns"]:
        yield "## System calls a batch"
        yield turns.text(results["turns"])
    lines = []
    for run in results["runs"]:
        where = f"- {run['client']}, {run['server']}, {run['load']}, round {run['round'] + 1}:"
        if "failed" in run:
            lines.append(f"{where} failed, {run['failed']}")
        elif run["lost"]:
            lines.append(f"{where} {run['lost']} of {run['requests']} lost")
    yield "## Lost, failed"
    yield "\n".join(lines) or "Nothing."


def rows(runs: list[dict[str, Any]], server: str, load: str) -> str:
    body = []
    for client in CLIENTS:
        pairs = paired(runs, server, load, client)
        if not pairs:
            continue
        mine = [run for run, _ in pairs]
        late = [run["late"] for run in mine if run["late"] is not None]
        beyond = [run["cpu"] - alone["cpu"] for run, alone in pairs]
        ratios = [run["p99"] / alone["p99"] for run, alone in pairs]
        body.append(
            [
                client,
                number(median(run["cpu"] for run in mine)),
                f"{median(beyond):+.0f} ({min(beyond):+.0f} to {max(beyond):+.0f})",
                number(median(run["rate"] for run in mine)),
                number(median(run["p99"] for run in mine)),
                " ".join(f"{run['p99']:.0f}" for run in mine),
                f"{median(ratios):.2f} ({max(ratios):.1f} at most)",
                number(median(late)) if late else "-",
            ]
        )
    header = [
        "",
        "CPU µs a request",
        "beyond none",
        "requests/s",
        "p99 ms",
        "each round",
        "p99 by none's",
        "late ms",
    ]
    return table(header, body)


def paired(
    runs: list[dict[str, Any]], server: str, load: str, client: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The runs of a client, each with that of no client in the same round."""
    there = [run for run in runs if (run["server"], run["load"]) == (server, load) and "failed" not in run]
    alone = {run["round"]: run for run in there if run["client"] == NONE}
    return [(run, alone[run["round"]]) for run in there if run["client"] == client and run["round"] in alone]


def goals(runs: list[dict[str, Any]], places: list[tuple[str, str]]) -> str:
    body = []
    for server, load in places:
        costs = {
            client: median(run["cpu"] - alone["cpu"] for run, alone in pairs)
            for client in ("floor", *OWN)
            if (pairs := paired(runs, server, load, client))
        }
        for client in OWN:
            pairs = paired(runs, server, load, client)
            if not pairs:
                continue
            ratios = [run["p99"] / alone["p99"] for run, alone in pairs]
            if costs.get("floor", 0) > 0 and client != "windback-process":
                by_floor = costs[client] / costs["floor"]
                body.append(goal(f"{server}, {load}: added CPU of {client}, by the floor's", by_floor, 1.3))
            body.append(goal(f"{server}, {load}: p99 of {client}, by none's", median(ratios), 1.25))
            body.append(goal(f"{server}, {load}: the same, the worst round", max(ratios), 2.5))
    return table(["goal", "measured", "limit", ""], body)


def goal(text: str, measured: float, limit: float) -> list[str]:
    return [text, f"{measured:.2f}", f"≤ {limit}", "met" if measured <= limit else "**missed**"]


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
