"""Kill processes that track events, at random instants: ``python tests/torture.py`` (``make torture``).

Each run starts an application whose 8 threads track without pause and write the id of every event that was
accepted into a pipe, kills it, its sender or both with SIGKILL, and has what is left delivered. Two counts
decide, and each has to be 0: events that were accepted and did not arrive, and events that arrived under a
second idempotency key, which no server could tell from new ones.

Mode "broker" is one long run, in which relays are killed and Redis once: `support/broker_torture.py`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, NamedTuple, Set

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))

from calls import ends
from tracking import left_in

import windback
from windback.devserver import DevServer

if TYPE_CHECKING:
    from broker_torture import Result

#: Without any progress.
HANGS_AFTER_S = 60
THREADS = 8
#: How long an application tracks before somebody is killed, at most. It makes 100,000 events a second: in
#: some runs that goes on for many segments, else the time is for kills and not for deliveries.
SHORT_S, LONG_S = 0.04, 0.4
LONG_RUNS = 0.1

#: Whom a run kills. "writer": an application that sends by itself; the others have worker="process". "app":
#: its sender lives and delivers the rest; it is waited for, since one that was not started yet can't.
MODES = ("writer", "app", "sender", "both", "broker")

#: Requests that take a while, and answers that are lost: there are always batches under way.
FAULTS = [
    {"path": "/track", "latency": 0.01},
    {"path": "/track", "drop": "after", "rate": 0.1, "seed": 1},
    {"path": "/track", "status": 503, "rate": 0.1, "seed": 2},
]

APP = """\
import os, sys, threading, time
from windback import Windback

root, worker, run, threads, pipe = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
client = Windback(
    journal=root, worker=worker, flush_interval=0.01, batch_size=50, shutdown_timeout=50, overflow="raise"
)
stop = threading.Event()

def say(line):
    os.write(pipe, (line + "\\n").encode())

def work(thread):
    n = 0
    while not stop.is_set():
        n += 1
        who = f"{thread}-{n}"
        if client.track_event("login", "jane@example.com", {"run": run, "who": who, "pad": "x" * (n % 200)}):
            say(who)

def tell_of_the_sender():
    while not stop.is_set():
        running = client._engine._link._running
        if running is not None and running.process is not None:
            say(f"sender {running.process.pid}")
            return
        time.sleep(0.001)

work = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(threads)]
if worker == "process":
    work.append(threading.Thread(target=tell_of_the_sender, daemon=True))
for thread in work:
    thread.start()
sys.stdin.read()
stop.set()
for thread in work:
    thread.join()
sys.exit(0 if client.close() else 1)
"""

DRAIN = """\
import sys, time
from pathlib import Path
from windback import Windback

root = Path(sys.argv[1])
client = Windback(journal=root, flush_interval=0.01, shutdown_timeout=50)
client.track_event("drain", "jane@example.com")

def left():
    name = client._engine.queue.writer.name
    return [path for path in root.iterdir() if path.name not in (name, "bad", "dead")]

deadline = time.monotonic() + 50
while left() or client.stats().pending:
    if time.monotonic() > deadline:
        sys.exit(f"{left()} {client.stats()}")
    time.sleep(0.005)
sys.exit(0 if client.close() else 1)
"""


class Run(NamedTuple):
    """What became of one application that was killed."""

    accepted: int
    lost: int
    doubled: int
    #: Batches that came again, under the same key: what a kill may do.
    repeated: int
    failed: int
    said: str

    @property
    def is_clean(self) -> bool:
        return self.lost == self.doubled == self.failed == 0


class Summary(NamedTuple):
    """What became of all applications that a mode killed."""

    mode: str
    runs: List[Run]

    @property
    def is_clean(self) -> bool:
        return all(run.is_clean for run in self.runs)

    def __str__(self) -> str:
        def total(name: str) -> str:
            return f"{sum(getattr(run, name) for run in self.runs):,}"

        return (
            f"{self.mode}: {len(self.runs):,} kills, {total('accepted')} events accepted, "
            f"{total('repeated')} batches repeated under their keys; {total('lost')} events lost, "
            f"{total('doubled')} doubled under another key, {total('failed')} runs failed"
        )


class Torturer:
    """Kills applications one after the other; *server* is emptied before each."""

    def __init__(self, server: DevServer, folder: Path, seed: int, long_runs: float = LONG_RUNS) -> None:
        self._server = server
        self._long_runs = long_runs
        self._folder = folder
        self._dice = random.Random(seed)
        self._count = 0
        self._environment: Dict[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")},
            "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]),
            "WINDBACK_API_KEY": "sk_test_1",
            "WINDBACK_BASE_URL": server.url,
        }

    def run(self, mode: str) -> Run:
        self._count += 1
        self._server.reset()
        self._server.faults(FAULTS)
        root = self._folder / f"journal-{self._count}"
        name = str(self._count)
        app = App(root, "thread" if mode == "writer" else "process", name, self._environment)
        longest_s = LONG_S if self._dice.random() < self._long_runs else SHORT_S
        try:
            app.started.wait(HANGS_AFTER_S)
            if mode == "app":
                app.has_sender.wait(HANGS_AFTER_S)
            victims = (
                ["app"]
                if mode in ("writer", "app")
                else ["sender"]
                if mode == "sender"
                else ["app", "sender"]
            )
            self._dice.shuffle(victims)
            for victim in victims:
                time.sleep(self._dice.uniform(0, longest_s / len(victims)))
                app.kill(victim)
            ended = app.end()
        finally:
            accepted, said = app.reap()
        failed = 0 if ended else 1
        if mode in ("writer", "both"):
            drained = self._drain(root)
            failed += drained.returncode != 0
            said += drained.stderr
        elif not ends(lambda: not left_in(root), lambda: self._server.counts().track_requests, HANGS_AFTER_S):
            failed += 1
        return self._judge(name, accepted, failed, said)

    def _drain(self, root: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", DRAIN, str(root)],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=HANGS_AFTER_S,
            check=False,
        )

    def _judge(self, name: str, accepted: Set[str], failed: int, said: str) -> Run:
        # What comes again under the same key is stored once; with another body it would be refused.
        arrived = Counter(
            str(stored.properties["who"])
            for stored in self._server.events()
            if stored.properties.get("run") == name
        )
        counts = self._server.counts()
        if counts.by_status.get(409):
            said += f"{counts.by_status[409]} keys came with another body\n"
            failed += 1
        doubled = sum(times - 1 for times in arrived.values())
        return Run(len(accepted), len(accepted - set(arrived)), doubled, counts.duplicates, failed, said)


class App:
    """An application in a process of its own, and what it says through the pipe."""

    def __init__(self, root: Path, worker: str, name: str, environment: Dict[str, str]) -> None:
        read, write = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", APP, str(root), worker, name, str(THREADS), str(write)],
            env=environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(write,),
        )
        os.close(write)
        self._lines: List[str] = []
        #: The first event is accepted.
        self.started = threading.Event()
        self.has_sender = threading.Event()
        self._sender = 0
        self._reader = threading.Thread(target=self._read, args=(read,))
        self._reader.start()
        self._is_killed = False

    def _read(self, pipe: int) -> None:
        with open(pipe, encoding="ascii") as lines:
            for line in lines:
                if line.startswith("sender"):
                    self._sender = int(line.split()[1])
                    self.has_sender.set()
                else:
                    self._lines.append(line.strip())
                    self.started.set()
        self.started.set()
        self.has_sender.set()

    def kill(self, victim: str) -> None:
        if victim == "app":
            self._is_killed = True
            self._process.kill()
        elif self.has_sender.wait(HANGS_AFTER_S) and self._sender:
            with suppress(ProcessLookupError):
                os.kill(self._sender, signal.SIGKILL)

    def end(self) -> bool:
        """Let it come to its end in good order, unless it was killed; whether it did."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            status = self._process.wait(HANGS_AFTER_S)
        except subprocess.TimeoutExpired:
            return False
        return status == (-signal.SIGKILL if self._is_killed else 0)

    def reap(self) -> tuple[Set[str], str]:
        """Return the ids of all events that were accepted, and what it wrote to standard error."""
        self._process.kill()
        assert self._process.stderr is not None
        said = (
            "" if self._sender and self._is_killed else self._process.stderr.read().decode(errors="replace")
        )
        self._process.stderr.close()
        self._process.wait()
        self._reader.join()
        return set(self._lines), said


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill applications in the middle of their work.")
    parser.add_argument("--kills", type=int, default=200, help="how many times in each mode (200)")
    parser.add_argument("--modes", nargs="*", default=["writer"], choices=MODES, help="whom to kill (writer)")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the instants; printed, and random if not given"
    )
    parser.add_argument("--events", type=int, default=500_000, help="of mode broker (500,000)")
    parser.add_argument("--seconds", type=float, default=60, help="of mode broker, a kill every 2 s (60)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=4 * (os.cpu_count() or 1),
        help="side by side: a run mostly waits (4 a core)",
    )
    options = parser.parse_args()
    seed = random.randrange(1 << 30) if options.seed is None else options.seed
    print(f"seed {seed}, {options.jobs} side by side")
    is_clean = True
    for mode in options.modes:
        result = torture_broker(options) if mode == "broker" else torture_processes(mode, options, seed)
        print(result, flush=True)
        is_clean = is_clean and result.is_clean
    sys.exit(0 if is_clean else 1)


def torture_processes(mode: str, options: argparse.Namespace, seed: int) -> Summary:
    """Kill applications, several side by side."""
    shares = [len(range(job, options.kills, options.jobs)) for job in range(options.jobs)]
    seeds = range(seed, seed + options.jobs)
    # Processes, since what reads the pipes of eight applications in one slows these down.
    with ProcessPoolExecutor(options.jobs) as pool:
        return Summary(
            mode, [run for part in pool.map(kill_often, repeat(mode), shares, seeds) for run in part]
        )


def kill_often(mode: str, kills: int, seed: int) -> List[Run]:
    """Kill so many applications one after the other, with a server of their own."""
    runs = []
    with DevServer() as server, tempfile.TemporaryDirectory() as folder:
        torturer = Torturer(server, Path(folder), seed)
        for _ in range(kills):
            runs.append(torturer.run(mode))
            if not runs[-1].is_clean:
                sys.stderr.write(f"{runs[-1]}\n")
    return runs


def torture_broker(options: argparse.Namespace) -> Result:
    from broker_torture import torture
    from redis_server import KEEPS_ALL, MISSING, RedisServer, find_redis_server

    binary = find_redis_server()
    if binary is None:
        sys.exit(MISSING)
    with DevServer() as server, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "redis").mkdir()
        redis_server = RedisServer(binary, Path(folder) / "redis", *KEEPS_ALL)
        redis_server.start()
        try:
            return torture(
                server,
                redis_server,
                Path(folder) / "journal",
                events=options.events,
                seconds=options.seconds,
                kill_every_s=2,
            )
        finally:
            redis_server.close()


if __name__ == "__main__":
    main()
