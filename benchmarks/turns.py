"""How often a worker takes its turn at the interpreter for a batch, beside a main thread that is busy.

Each turn is a wait for a busy thread to give the interpreter up, and then that thread waits. Counted are the
worker's system calls, with strace, and in a run without it how often its threads and the main thread waited
for anything (the kernel's voluntary context switches).
"""

from __future__ import annotations

import json
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import surroundings
from clients import ADAPTERS, EMAIL, EVENT, silence
from report import number, table
from sink import sink

CLIENTS = ("floor", "windback", "windback-process", "statsig", "posthog")
#: Requests of the application: each works about 0.1 ms, tracks an event, and makes two system calls.
REQUESTS, WARM_UP = 20_000, 1_000
WORK = 8_000


def measure_all() -> list[dict[str, Any]]:
    found = [name for name in CLIENTS if ADAPTERS[name].package in surroundings.versions([name])]
    return [measure(name) for name in found]


def measure(client: str) -> dict[str, Any]:
    with sink() as url:
        plain = start(client, url, [])
        if shutil.which("strace") is None:
            return {"client": client, **plain, "calls": None}
        with tempfile.TemporaryDirectory() as folder:
            traced = start(client, url, ["strace", "-ff", "-o", f"{folder}/calls"])
            calls: Counter[str] = Counter()
            for tid in traced["workers"]:
                text = Path(f"{folder}/calls.{tid}").read_text()
                calls += Counter(re.findall(r"^(\w+)\(", text, re.MULTILINE))
        batches = traced["batches"] + WARM_UP / 100
        return {"client": client, **plain, "calls": {name: count / batches for name, count in calls.items()}}


def start(client: str, url: str, prefix: list[str]) -> dict[str, Any]:
    command = [*prefix, sys.executable, __file__, client, url]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300, env=surroundings.environment()
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run(name: str, url: str) -> None:
    """The application: prints what its threads waited for, by the batch."""
    silence()
    client = ADAPTERS[name].setup(url)
    code = (
        "def work(count):\n for i in range(count):\n"
        f"  sum(range(WORK)); poll(0); p = {client.prepare}; {client.statement}; poll(0)"
    )
    names = {**client.names, "EVENT": EVENT, "EMAIL": EMAIL, "WORK": WORK, "poll": select.poll().poll}
    exec(code, names)  # noqa: S102
    names["work"](WARM_UP)
    client.flush(60)
    requests, before = count_requests(url), switches()
    names["work"](REQUESTS)
    client.flush(60)
    after, batches = switches(), count_requests(url) - requests
    waits = {tid: count - before.get(tid, 0) for tid, count in after.items()}
    main = min(waits)
    others = [tid for tid in waits if tid != main and waits[tid]]
    print(
        json.dumps(
            {
                "batches": batches,
                "workers": others,
                "main": waits[main] / batches,
                "worker": sum(waits[tid] for tid in others) / batches,
            }
        )
    )


def count_requests(url: str) -> int:
    import urllib.request

    with urllib.request.urlopen(f"{url}/_stats") as response:  # noqa: S310 - of this machine
        paths: dict[str, int] = json.loads(response.read())["paths"]
    return sum(paths.values())


def switches() -> dict[int, int]:
    """How often each thread has waited, by its id."""
    found = {}
    for status in Path("/proc/self/task").glob("*/status"):
        match = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.MULTILINE)
        found[int(status.parent.name)] = int(match[1]) if match else 0
    return found


def text(results: list[dict[str, Any]]) -> str:
    """The table of what `measure_all` returned."""
    body = []
    for of in results:
        calls = of["calls"]
        most = (
            "-"
            if calls is None
            else ", ".join(f"{name} {count:.1f}" for name, count in Counter(calls).most_common(6))
        )
        total = "-" if calls is None else number(sum(calls.values()))
        body.append(
            [of["client"], str(len(of["workers"])), number(of["worker"]), number(of["main"]), total, most]
        )
    return table(
        [
            "",
            "threads",
            "waits of them a batch",
            "of the main thread",
            "system calls a batch",
            "most of them",
        ],
        body,
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        run(*sys.argv[1:])
    else:
        print(text(measure_all()))
