"""Each thing that may happen, for each kind of worker: ``python tests/faults_table.py`` (``make faults``).

A cell is a real program in a process of its own, with a real server that fails in the way of its row. It
counts what the program was told against what arrived. Prints the table, and writes it to docs/faults.md
with --write.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "tests" / "support" / "faults_app.py"
PAGE = ROOT / "docs" / "faults.md"
EVENTS = 60
#: A program that takes longer hangs.
HANGS_AFTER_S = 90

# -- kinds ------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A client and what sends its events."""

    name: str
    is_async: bool
    worker: Optional[str]
    has_journal: bool = False

    @property
    def survives(self) -> bool:
        """Whether events survive the program, because they are in a file."""
        return self.has_journal or self.worker == "process"


KINDS = [
    Kind("thread", False, "thread"),
    Kind("thread, journal", False, "thread", True),
    Kind("process", False, "process"),
    Kind("relay", False, None, True),
    Kind("async task", True, "task"),
    Kind("async thread", True, "thread"),
    Kind("async task, journal", True, "task", True),
    Kind("async process", True, "process"),
    Kind("async relay", True, None, True),
]

# -- rows -------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What the server does with a request."""

    status: int = 200
    body: bytes = b'{"status": "ok"}'
    headers: Tuple[Tuple[str, str], ...] = ()
    #: Seconds before the answer.
    after_s: float = 0.0
    #: Hang up instead of answering.
    hangs_up: bool = False
    #: Whether the events were processed. None: if the status is a success.
    processes: Optional[bool] = None

    @property
    def is_processed(self) -> bool:
        return self.status == 200 if self.processes is None else self.processes


OK = Answer()
#: Gets the number of the request (from 0) and the numbers of its events.
Answers = Callable[[int, List[int]], Answer]


def first(count: int, answer: Answer) -> Answers:
    """Answer the first *count* requests so, and the others well."""
    return lambda number, _: answer if number < count else OK


def bounds(_: int, events: List[int]) -> Answer:
    """Refuse more than 5 events, and event 7 in any case."""
    return Answer(413) if len(events) > 5 or 7 in events else OK


class Row(NamedTuple):
    """Something that happens. `action` is what the program does: see support/faults_app.py."""

    name: str
    answers: Answers = first(0, OK)
    action: str = "track"
    options: Tuple[Tuple[str, object], ...] = ()
    #: What is sent to the program after it tracked.
    signals: Tuple[int, ...] = ()
    flush_s: float = 30
    close_s: float = 5
    #: Only for these kinds.
    wants: Callable[[Kind], bool] = lambda _: True
    #: Events may be lost that nobody counts, because their process is gone: the docs say so.
    kills: bool = False
    #: All that was accepted arrives.
    delivers: bool = True


SLOW = Answer(after_s=0.2)
ROWS = [
    Row("the API is down, then back", first(4, Answer(503))),
    Row("the API can't be reached, then it can", first(4, Answer(hangs_up=True, processes=False))),
    Row("the queue is full", first(2, Answer(after_s=1)), options=(("max_queue_size", 20),)),
    Row("413: the request is too large", bounds, delivers=False),
    Row("429 with Retry-After", first(2, Answer(429, headers=(("Retry-After", "1"),)))),
    Row("the key is wrong", lambda *_: Answer(401), flush_s=2, close_s=0.5, delivers=False),
    Row("the process forks", action="fork", wants=lambda kind: not kind.is_async),
    Row("SIGTERM", first(99, SLOW), "wait", (("handle_signals", True),), (signal.SIGTERM,)),
    Row("kill -9", first(99, SLOW), "wait", signals=(signal.SIGKILL,), kills=True),
    Row("the process is frozen", first(99, SLOW), signals=(signal.SIGSTOP, signal.SIGCONT)),
    Row("the process ends in order", first(99, Answer(after_s=0.05)), "end"),
    Row(
        "a web page with status 200",
        first(2, Answer(200, b"<html>", (("Content-Type", "text/html"),), processes=False)),
    ),
    Row("the answer is cut off", first(3, Answer(hangs_up=True, processes=True))),
    Row("a 2xx that can't be read", first(3, Answer(200, b"no gzip", (("Content-Encoding", "gzip"),)))),
    Row("409: the first request still runs", first(3, Answer(409, processes=False))),
    Row("407: a proxy wants a password", first(2, Answer(407))),
    Row("a signal handler tracks", first(99, SLOW), "handler"),
    Row("a signal handler raises", first(99, SLOW), "interrupt"),
    Row("all tasks are cancelled", first(99, SLOW), "cancel", wants=lambda kind: kind.is_async),
    Row(
        "an http_client that raises for a 500",
        first(3, Answer(500)),
        "foreign client",
        wants=lambda kind: kind.worker == ("task" if kind.is_async else "thread"),
    ),
]

# -- the server -------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Counts each event: under which keys it was processed, or that it was rejected."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answers: Answers) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/api/v1"
        self._answers = answers
        self._lock = threading.Lock()
        self._requests = 0
        self.keys: Dict[int, Set[str]] = {}
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Say nothing of a program that was killed."""

    def answer(self, key: str, events: List[int]) -> Answer:
        with self._lock:
            answer = self._answers(self._requests, events)
            self._requests += 1
            if answer.is_processed:
                for number in events:
                    self.keys.setdefault(number, set()).add(key)
        return answer

    def doubled(self) -> int:
        return sum(len(keys) > 1 for keys in self.keys.values())

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        import gzip

        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        found = json.loads(body)
        events = [each["properties"]["n"] for each in found.get("events", [found])]
        answer = self.server.answer(self.headers["Idempotency-Key"], events)
        if answer.after_s:
            time.sleep(answer.after_s)
        if answer.hangs_up:
            self.close_connection = True
            return
        headers = dict(answer.headers)
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


# -- a cell -----------------------------------------------------------------------------------------


class Result(NamedTuple):
    """What became of the events of one cell."""

    accepted: int = 0
    refused: int = 0
    #: Different events that the server processed.
    delivered: int = 0
    rejected: int = 0
    dropped: int = 0
    #: Processed under more than one key.
    doubled: int = 0
    #: Still in a file at the end, for the next process.
    pending: int = 0
    #: Of a process that was killed, with its memory.
    with_process: int = 0
    #: Accepted, and nobody knows what became of it.
    lost: int = 0
    #: What is wrong, in words; empty if nothing is.
    wrong: str = ""

    def __str__(self) -> str:
        said = [f"{self.delivered}"]
        names = ("refused", "rejected", "dropped", "doubled", "pending", "lost")
        said += [f"{getattr(self, name)} {name}" for name in names if getattr(self, name)]
        if self.with_process:
            said.append(f"{self.with_process} with the process")
        if self.wrong:
            said.append(f"**{self.wrong}**")
        return ", ".join(said)


class Cell:
    """One row for one kind on one Python."""

    def __init__(self, row: Row, kind: Kind, python: str) -> None:
        self.row, self.kind, self._python = row, kind, python
        self._relay: Optional[subprocess.Popen[str]] = None
        #: Of this cell alone: shared memory is found by key and URL, and ports come again.
        self._key = f"sk_test_{uuid.uuid4().hex}"

    def run(self) -> Result:
        with ExitStack() as stack:
            self._folder = Path(tempfile.mkdtemp(prefix="windback-faults-"))
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self.server = Server(self.row.answers)
            stack.callback(self.server.close)
            try:
                if self.kind.worker is None:
                    self._relay = self._start("relay")
                    stack.callback(lambda: _end(self._relay))
                lines, wrong = self._program()
                if lines:
                    return self._judge(lines, wrong)
                return Result(wrong=wrong or "the program said nothing")
            except subprocess.TimeoutExpired:
                return Result(wrong="it hangs")

    def _start(self, action: str) -> subprocess.Popen[str]:
        spec = {
            "action": action,
            "url": self.server.url,
            "key": self._key,
            "worker": self.kind.worker,
            "is_async": self.kind.is_async,
            "journal": str(self._folder / "journal") if self.kind.has_journal else None,
            "options": {} if action == "next" else dict(self.row.options),
            "is_in_memory": not self.kind.survives,
            "events": EVENTS,
            "flush_s": self.row.flush_s,
            "close_s": self.row.close_s,
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
        environment["TMPDIR"] = str(self._folder)
        with (self._folder / f"{action}.log").open("w") as log:
            return subprocess.Popen(
                [self._python, str(APP), json.dumps(spec)],
                env={**environment, "PYTHONPATH": str(ROOT / "src")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def _program(self) -> Tuple[List[Dict[str, Dict[str, int]]], str]:
        """Run the program; what it printed, and what was wrong with its end."""
        program = self._start(self.row.action)
        assert program.stdout is not None
        lines = []
        if self.row.signals:
            lines.append(json.loads(program.stdout.readline() or "null"))
            for number in self.row.signals:
                with suppress(ProcessLookupError):
                    program.send_signal(number)
                if number == signal.SIGSTOP:
                    time.sleep(1.5)
        try:
            out, _ = program.communicate(timeout=HANGS_AFTER_S)
        except subprocess.TimeoutExpired:
            program.kill()
            program.communicate()
            raise
        lines += map(json.loads, out.splitlines())
        expected = {-number for number in self.row.signals} | {0}
        failed = program.returncode not in expected
        wrong = f"status {program.returncode}: {self._log().strip().splitlines()[-1:]}" if failed else ""
        return [line for line in lines if line], wrong

    def _log(self) -> str:
        """Return what the program wrote to stderr."""
        return (self._folder / f"{self.row.action}.log").read_text(errors="replace")

    def _judge(self, lines: List[Dict[str, Dict[str, int]]], wrong: str) -> Result:
        for line in lines:
            counts = line["counts"]
            settled = sum(counts[name] for name in ("delivered", "rejected", "dropped", "pending"))
            if counts["accepted"] != settled:
                wrong = wrong or f"counters do not balance: {counts}"
        # A child's numbers are its own.
        ends = [
            [each for each in lines if (each["name"] == "child") is is_child] for is_child in (False, True)
        ]
        last = [each[-1] for each in ends if each]
        told, counts = _sums(each["told"] for each in last), _sums(each["counts"] for each in last)
        rejected, dropped = counts["rejected"], counts["dropped"]
        accepted = max(told["accepted"], counts["accepted"])
        if not told["accepted"] <= counts["accepted"] <= told["accepted"] + told["interrupted"]:
            wrong = wrong or f"told {told}, counted {counts['accepted']}"
        arrived = lambda: len(self.server.keys)  # noqa: E731
        wanted = accepted - rejected - dropped
        if self.kind.survives:
            self._wait(arrived, wanted)
            for _ in range(3):  # each restart may meet the fault again
                if self.row.delivers and arrived() < wanted:
                    self._next_process()
                    self._wait(arrived, wanted)
        missing = max(0, wanted - arrived())
        logged = re.search(r"([\d,]+) events? w\w+ not delivered before the process ended", self._log())
        counted = 0 if logged is None else int(logged[1].replace(",", ""))  # in the last line of the process
        dropped, missing = dropped + min(counted, missing), missing - min(counted, missing)
        at_end = lines[-1]["name"] == "end"
        result = Result(
            accepted, told["refused"], arrived(), rejected, dropped, self.server.doubled(), wrong=wrong
        )
        if self.kind.survives and not self.row.delivers:
            return result._replace(pending=missing)
        if self.row.kills and not self.kind.survives and not at_end:
            return result._replace(with_process=missing)
        if missing:
            return result._replace(lost=missing)
        return result

    def _wait(self, arrived: Callable[[], int], wanted: int) -> None:
        """Wait while events still arrive."""
        seen, since_s = -1, time.monotonic()
        while arrived() < wanted and time.monotonic() - since_s < (20 if self.row.delivers else 1):
            if arrived() != seen:
                seen, since_s = arrived(), time.monotonic()
            time.sleep(0.02)

    def _next_process(self) -> None:
        """What comes after a restart: another relay, or another program with the same journal."""
        if self._relay is not None:
            _end(self._relay)
            self._relay = self._start("relay")
            return
        program = self._start("next")
        try:
            program.communicate(timeout=HANGS_AFTER_S)
        finally:
            program.kill()


def _sums(several: Iterable[Dict[str, int]]) -> Dict[str, int]:
    sums: Dict[str, int] = {}
    for each in several:
        for name, value in each.items():
            if isinstance(value, int):
                sums[name] = sums.get(name, 0) + value
    return sums


def _end(process: Optional[subprocess.Popen[str]]) -> None:
    if process is not None:
        process.kill()
        process.communicate()


# -- the table --------------------------------------------------------------------------------------


def measure(rows: List[Row], kinds: List[Kind], python: str, at_once: int) -> Dict[Tuple[str, str], Result]:
    """Run all cells, some of them at the same time."""
    cells = [Cell(row, kind, python) for row in rows for kind in kinds if row.wants(kind)]
    with ThreadPoolExecutor(at_once) as pool:
        results = list(pool.map(Cell.run, cells))
    return {(cell.row.name, cell.kind.name): result for cell, result in zip(cells, results)}


def table(rows: List[Row], kinds: List[Kind], results: Dict[Tuple[str, str], Result]) -> str:
    lines = [
        "| what happens | " + " | ".join(kind.name for kind in kinds) + " |",
        "| --- |" + " --- |" * len(kinds),
    ]
    for row in rows:
        cells = [str(results.get((row.name, kind.name), "-")) for kind in kinds]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(results: Dict[Tuple[str, str], Result]) -> str:
    """One line of sums."""
    found = results.values()
    names = ("accepted", "delivered", "rejected", "dropped", "pending", "with_process", "doubled", "lost")
    sums = ", ".join(
        f"{name.replace('_', ' ')} {sum(getattr(each, name) for each in found):,}" for name in names
    )
    return (
        f"{len(results)} cells: {sums}; cells with something wrong: {sum(bool(each.wrong) for each in found)}"
    )


def is_clean(results: Dict[Tuple[str, str], Result]) -> bool:
    """Whether no event was lost uncounted, none was doubled, and all counters balanced."""
    return not any(each.lost or each.doubled or each.wrong for each in results.values())


TEXT = """\
# Every fault, every worker

```sh
make faults
```

Each cell is a program in a process of its own, and a real server that fails in the way of the row. The
program tracks {events} events, or more where a child or a signal handler tracks, too. The server counts
which events it processed, and under which keys. Where events are in a file, another program or
relay follows, as after a restart. Jumps of the clock are in `test_freeze_and_clock.py` instead.

A cell shows how many different events arrived, and then what is not 0:

- **refused**: `track_event` returned False, so the caller knows.
- **rejected**, **dropped**: counted by the client, with a log line.
- **doubled**: processed under two idempotency keys.
- **pending**: in a file at the end, for the next process.
- **with the process**: in the memory of a process that was killed. A [journal](durability.md) or
  `worker="process"` keeps them.
- **lost**: accepted, and nobody knows what became of it.

At each look `accepted == delivered + rejected + dropped + pending` held, and as many calls had returned True
as `accepted` counts. Cells that do not hold it say so in bold. A "-" marks a row that is not for this kind
of client.
"""


def write(parts: List[str]) -> None:
    PAGE.write_text("\n".join([TEXT.format(events=EVENTS), "\n\n".join(parts), ""]), encoding="utf-8")


def pythons(names: List[str]) -> List[str]:
    """Return interpreters that can import windback's dependencies: this one, or environments made for it."""
    found = []
    for name in names:
        if name == platform.python_version().rpartition(".")[0]:
            found.append(sys.executable)
            continue
        folder = ROOT / ".venv-faults" / name
        python = folder / "bin" / "python"
        if not python.exists():
            base = shutil.which(f"python{name}")
            if base is None:
                print(f"no python{name} on PATH: left out", flush=True)
                continue
            subprocess.run([base, "-m", "venv", str(folder)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(ROOT)], check=True)
        found.append(str(python))
    return found


def newest() -> str:
    """Return the newest version of Python on PATH that this package knows."""
    known = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    there = [name for name in known if shutil.which(f"python{name}")]
    return max(there, key=lambda name: int(name[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--pythons", nargs="+", default=["3.8", newest()], help="versions (3.8 and the newest)"
    )
    parser.add_argument("--rows", default="", help="only rows whose names contain this")
    parser.add_argument("--kinds", nargs="+", default=[kind.name for kind in KINDS], help="only these kinds")
    parser.add_argument("--at-once", type=int, default=4, help="cells side by side (4)")
    parser.add_argument("--write", action="store_true", help="write docs/faults.md")
    options = parser.parse_args()
    rows = [row for row in ROWS if options.rows in row.name]
    kinds = [kind for kind in KINDS if kind.name in options.kinds]
    parts, all_clean = [], True
    for python in pythons(options.pythons):
        version = subprocess.run([python, "-V"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        started_s = time.monotonic()
        results = measure(rows, kinds, python, options.at_once)
        all_clean = all_clean and is_clean(results)
        parts += [f"## {version}", table(rows, kinds, results), summary(results) + "."]
        print("\n\n".join(parts[-3:]), f"({time.monotonic() - started_s:.0f} s)\n", flush=True)
    if options.write:
        write(parts)
    sys.exit(0 if all_clean else 1)


if __name__ == "__main__":
    main()
