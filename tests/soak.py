"""Run an application for long, while everything around it fails: ``python tests/soak.py`` (``make soak``).

Ten million events go through 8 threads, an event loop, forked children, Redis and relays to a server that
answers every twentieth request late, wrongly or not at all. Relays are killed and Redis is restarted. Each
event has to arrive once, the counters have to balance at every look, and the process has to stay as it was:
its memory, its descriptors, its speed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Dict, List, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "support"))

from broker_torture import Relays  # noqa: E402
from calls import ends  # noqa: E402
from counting_server import CountingServer, Counts  # noqa: E402
from redis_server import KEEPS_ALL, MISSING, RedisServer, find_redis_server  # noqa: E402

import windback  # noqa: E402

#: Without any progress.
HANGS_AFTER_S = 120
FAULT_RATE = 0.05
RELAYS = 2
Sample = Dict[str, float]


class Result(NamedTuple):
    """What became of the events and of the process."""

    events: int
    counts: Counts
    #: Some of the events that did not arrive.
    missing: List[int]
    samples: List[Sample]
    relays_killed: int
    redis_restarts: int
    seconds: float
    #: What was wrong besides, in words.
    said: str

    @property
    def lost(self) -> int:
        return self.events - self.counts.arrived

    @property
    def is_clean(self) -> bool:
        last = self.samples[-1]
        wrong = (last["refused"], last["unbalanced"], last["children_failed"])
        return not (self.lost or self.counts.doubled or self.counts.conflicts or any(wrong) or self.said)

    @property
    def _progress(self) -> List[Sample]:
        """The samples until the last event was accepted; after that the clients are closed."""
        return [
            each
            for before, each in zip([{"accepted": 0}, *self.samples], self.samples)
            if before["accepted"] < self.events
        ]

    @property
    def _later(self) -> List[Sample]:
        """Those of the second half: in the first, queues, journal and Redis fill as their bounds allow."""
        return [each for each in self._progress if each["accepted"] > self.events / 2]

    def slope(self) -> tuple[float, float]:
        """Return the slope of the memory in the second half, and how far noise bends it (MB a million)."""
        samples = self._later
        if len({each["accepted"] for each in samples}) < 4:
            return 0.0, 0.0
        x = [each["accepted"] / 1e6 for each in samples]
        y = [each["memory_mb"] for each in samples]
        mean_x, mean_y = statistics.mean(x), statistics.mean(y)
        spread = sum((each - mean_x) ** 2 for each in x)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / spread
        residual = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y)) / (len(x) - 2)
        return slope, 2 * (residual / spread) ** 0.5

    def rate(self, first: float, last: float) -> float:
        """Return the events a second between two parts of all events (0 to 1)."""
        inside = [each for each in self._progress if first <= each["accepted"] / self.events <= last]
        if len({each["accepted"] for each in inside}) < 2:
            return 0.0
        seconds = inside[-1]["s"] - inside[0]["s"]
        return (inside[-1]["accepted"] - inside[0]["accepted"]) / seconds

    def __str__(self) -> str:
        counts, last = self.counts, self.samples[-1]
        faults = ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.faults.items()))
        slope, noise = self.slope()
        later = self._later or self.samples
        # Not the last hundredth: whoever has no more to track leaves the others to a full queue.
        middle, final = self.rate(0.5, 0.6), self.rate(0.89, 0.99)
        rows = [
            ("events", f"{self.events:,} in {self.seconds:.0f} s"),
            ("lost", f"{self.lost:,}{f' such as {self.missing}' if self.lost else ''}"),
            ("doubled under another key", f"{counts.doubled:,}"),
            ("keys with two bodies", f"{counts.conflicts:,}"),
            ("refused", f"{last['refused']:,}"),
            ("looks at which the counters did not balance", f"{last['unbalanced']:,}"),
            ("children that failed", f"{last['children_failed']:,}"),
            ("batches repeated under their keys", f"{counts.repeated:,}"),
            ("faults", faults),
            ("relays killed, Redis restarted", f"{self.relays_killed:,}, {self.redis_restarts:,}"),
            (
                "memory, MB: after a half, after all",
                f"{later[0]['memory_mb']:.1f}, {later[-1]['memory_mb']:.1f}",
            ),
            ("memory after a half, MB a million events: slope, noise", f"{slope:+.2f}, {noise:.2f}"),
            ("descriptors: after a half, most", f"{later[0]['descriptors']}, {_most(later, 'descriptors')}"),
            ("threads: after a half, most", f"{later[0]['threads']}, {_most(later, 'threads')}"),
            ("events a second: from 50 to 60 %, from 89 to 99 %", f"{middle:,.0f}, {final:,.0f}"),
            ("wrong besides", self.said or "nothing"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _most(samples: List[Sample], name: str) -> float:
    return max(each[name] for each in samples)


def soak(events: int, folder: Path, *, kill_every_s: float, redis_restarts: int) -> Result:
    """Run the application once, until all of its events have arrived or nothing happens any more."""
    binary = find_redis_server()
    if binary is None:
        sys.exit(MISSING)
    (folder / "redis").mkdir()
    redis_server = RedisServer(binary, folder / "redis", *KEEPS_ALL)
    started_s, killed, restarted = time.monotonic(), 0, 0
    with ExitStack() as stack:
        server = CountingServer(events, FAULT_RATE)
        stack.callback(server.close)
        stack.callback(redis_server.close)
        redis_server.start()
        relays = Relays(RELAYS, redis_server.url, server.url)
        stack.callback(relays.close)
        application = _Application(events, redis_server.url, folder, server.url)
        stack.callback(application.close)
        next_kill_s = started_s + kill_every_s
        progress, moved_s = (0.0, 0), started_s
        while application.is_running and time.monotonic() < moved_s + HANGS_AFTER_S:
            time.sleep(0.1)
            before, progress = progress, (application.accepted, server.counts().arrived)
            if progress != before:
                moved_s = time.monotonic()
            if time.monotonic() >= next_kill_s:
                relays.kill_one()
                killed += 1
                next_kill_s += kill_every_s
            if application.accepted > events * (restarted + 1) / (redis_restarts + 1) <= events:
                redis_server.restart()
                restarted += restarted < redis_restarts
        said = application.end()
        if not ends(
            lambda: server.counts().arrived == events, lambda: server.counts().arrived, HANGS_AFTER_S
        ):
            said.append("nothing arrives any more")
        said.append(relays.end())
        counts, missing = server.counts(), server.missing()
    seconds = time.monotonic() - started_s
    return Result(
        events,
        counts,
        missing,
        application.samples,
        killed,
        restarted,
        seconds,
        "; ".join(filter(None, said)),
    )


class _Application:
    """`support/soak_app.py` in a process of its own, and the lines that it writes."""

    def __init__(self, events: int, broker: str, folder: Path, url: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
        environment["PYTHONPATH"] = str(Path(windback.__file__).resolve().parents[1])
        environment["WINDBACK_API_KEY"] = "sk_test_1"
        environment["WINDBACK_BASE_URL"] = url
        self._stderr = (folder / "stderr").open("w+")
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(HERE / "support" / "soak_app.py"),
                str(events),
                broker,
                str(folder / "journal"),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self.samples: List[Sample] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.samples.append(json.loads(line))

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def accepted(self) -> float:
        return self.samples[-1]["accepted"] if self.samples else 0

    def end(self) -> List[str]:
        """Wait for its last line; what was wrong with it. One that hangs is killed."""
        self._stop()
        self._stderr.seek(0)
        written = self._stderr.read()[-2000:]
        said = []
        if self._process.returncode or not self.samples or not self.samples[-1].get("is_all"):
            said.append(f"the application ended with {self._process.returncode}: {written}")
        return said

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def close(self) -> None:
        self._stop()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._stderr.close()


def draw(result: Result, path: Path) -> None:
    """Draw memory, descriptors and speed over the events. Needs matplotlib."""
    from matplotlib.figure import Figure

    samples = result.samples
    x = [each["accepted"] / 1e6 for each in samples]
    rates = [
        (b["accepted"] - a["accepted"]) / max(1e-3, b["s"] - a["s"]) for a, b in zip(samples, samples[1:])
    ]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for axis, title, y in zip(
        panels,
        ("memory, MB", "descriptors", "events a second"),
        (
            [each["memory_mb"] for each in samples],
            [each["descriptors"] for each in samples],
            [rates[0], *rates],
        ),
    ):
        axis.plot(x, y, color="#c2410c", linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("million events")
        axis.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=10_000_000, help="how many (10,000,000)")
    parser.add_argument("--kill-every", type=float, default=10, help="a relay, in seconds (10)")
    parser.add_argument("--redis-restarts", type=int, default=5, help="how many (5)")
    parser.add_argument("--plot", type=Path, help="draw memory and speed into this file; needs matplotlib")
    options = parser.parse_args()
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    with tempfile.TemporaryDirectory() as folder:
        result = soak(
            options.events,
            Path(folder),
            kill_every_s=options.kill_every,
            redis_restarts=options.redis_restarts,
        )
    print(result)
    if options.plot:
        draw(result, options.plot)
    sys.exit(0 if result.is_clean else 1)


if __name__ == "__main__":
    main()
