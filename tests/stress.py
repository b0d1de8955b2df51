"""Do again and again what goes wrong once in a thousand times: ``python tests/stress.py`` (``make stress``).

Three counts decide, and each has to be 0: processes that hang, events that are lost or come twice, lines on
standard error. ``--repeats`` runs the fault tests that often, and counts those that fail.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple

import windback
from windback.devserver import DevServer

HERE = Path(__file__).resolve().parent
HANGS_AFTER_S = 60

EXIT = """\
import sys
from windback import Windback

client = Windback()
client.track_event("login", "jane@example.com", {"n": int(sys.argv[1])})
"""

#: The parent's queue never fills a batch and is never due, so what arrives is the children's.
FORKS = """\
import logging, os, sys, threading, time
from windback import Windback

# It has to be full here, and says so once.
logging.getLogger("windback").addFilter(lambda record: "the queue is full" not in record.getMessage())

client = Windback(max_queue_size=50, overflow="drop_oldest", flush_interval=3600, shutdown_timeout=20)
sys.setswitchinterval(0.0005)
running = True

def busy():
    while running:
        client.track_event("parent", "jane@example.com", {"n": 0})

threads = [threading.Thread(target=busy, daemon=True) for _ in range(8)]
for thread in threads:
    thread.start()
for n in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        client.track_event("child", "jane@example.com", {"n": n})
        if n % 2:
            sys.exit(0)  # its exit handlers deliver
        os._exit(0 if client.flush(30) else 1)
    assert os.waitpid(pid, 0)[1] == 0, n
running = False
for thread in threads:
    thread.join()
print(client.stats().delivered)
client.close(0)
"""


class Outcome(NamedTuple):
    """What one way of ending showed."""

    name: str
    runs: int
    hangs: int
    lost: int
    doubled: int
    failed: int
    stderr_lines: int

    @property
    def is_clean(self) -> bool:
        return not any(self[2:])

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.runs:,} runs, {self.hangs} hangs, {self.lost} events lost, "
            f"{self.doubled} doubled, {self.failed} failed, {self.stderr_lines} lines on stderr"
        )


def main() -> None:
    options = arguments()
    outcomes: List[Outcome] = []
    with DevServer() as server, tempfile.TemporaryDirectory() as folder:
        stress = Stress(server, Path(folder))
        if options.exits:
            outcomes.append(stress.exits(options.exits))
            print(outcomes[-1], flush=True)
        if options.forks and hasattr(os, "fork"):
            outcomes.append(stress.forks(options.forks))
            print(outcomes[-1], flush=True)
    if options.repeats:
        outcomes.append(repeat(options.repeats, options.tests))
        print(outcomes[-1], flush=True)
    sys.exit(0 if all(outcome.is_clean for outcome in outcomes) else 1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Do often what goes wrong rarely.")
    parser.add_argument(
        "--exits", type=int, default=1000, help="processes that track one event and end (1000)"
    )
    parser.add_argument("--forks", type=int, default=500, help="children, while 8 threads track (500)")
    parser.add_argument("--repeats", type=int, default=20, help="how often to run the fault tests (20)")
    parser.add_argument("--tests", nargs="*", default=[str(HERE / "faults")], help="which tests to repeat")
    return parser.parse_args()


class Stress:
    def __init__(self, server: DevServer, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self._environment: Dict[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")},
            "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]),
            "WINDBACK_API_KEY": "sk_test_1",
            "WINDBACK_BASE_URL": server.url,
        }

    def exits(self, count: int) -> Outcome:
        """Start as many processes side by side as there are cores."""
        script = self._script("exit.py", EXIT)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ends = list(pool.map(lambda n: self._run(script, str(n)), range(count)))
        return self._outcome("exit", count, "login", ends)

    def forks(self, count: int) -> Outcome:
        script = self._script("forks.py", FORKS)
        end = self._run(script, str(count), within_s=HANGS_AFTER_S + count)
        return self._outcome("fork", count, "child", [end])

    def _script(self, name: str, code: str) -> Path:
        self._server.reset()
        path = self._folder / name
        path.write_text(textwrap.dedent(code), encoding="utf-8")
        return path

    def _run(self, script: Path, *arguments: str, within_s: float = HANGS_AFTER_S) -> End:
        # Forking beside threads is what is tried here, and Python 3.12 warns of it.
        command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(script), *arguments]
        try:
            ended = subprocess.run(
                command, env=self._environment, capture_output=True, text=True, timeout=within_s, check=False
            )
        except subprocess.TimeoutExpired:
            return End(hung=True, failed=False, said="")
        return End(hung=False, failed=ended.returncode != 0, said=ended.stderr)

    def _outcome(self, name: str, count: int, event: str, ends: List[End]) -> Outcome:
        arrived = [stored.properties["n"] for stored in self._server.events() if stored.event == event]
        for end in ends:
            sys.stderr.write(end.said)
        return Outcome(
            name,
            runs=count,
            hangs=sum(end.hung for end in ends),
            lost=count - len(set(arrived)),
            doubled=len(arrived) - len(set(arrived)),
            failed=sum(end.failed for end in ends),
            stderr_lines=sum(len(end.said.splitlines()) for end in ends),
        )


class End(NamedTuple):
    hung: bool
    failed: bool
    said: str


def repeat(times: int, tests: List[str]) -> Outcome:
    """Run the fault tests *times* times; what a test loses makes it fail.

    Twice as many as there are cores run side by side, so that what goes wrong on a busy machine does so here.
    """
    failed = 0
    side_by_side = str(2 * (os.cpu_count() or 1))
    for number in range(1, times + 1):
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", side_by_side, *tests],
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            failed += 1
            sys.stderr.write(ended.stdout)
        summary = ended.stdout.splitlines()[-1:]
        print(f"tests: {number} of {times}, {failed} failed; {''.join(summary)}", flush=True)
    return Outcome("tests/faults", times, hangs=0, lost=0, doubled=0, failed=failed, stderr_lines=0)


if __name__ == "__main__":
    main()
