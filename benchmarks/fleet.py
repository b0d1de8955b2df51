"""Measure what a broker costs: ``python benchmarks/fleet.py [--quick] [--steady SECONDS]``.

One process for each part: an application, Redis, relays, and the sink of the other benchmarks (for the steady
runs the embedded server). What a core carries is measured with the relay alone on one, Redis and the sink on
the others. What more relays carry is measured with an API that takes its time, as real ones do: they wait for
it, so that two cores are enough for four of them. Writes a table and `results/DATE-fleet.json`, from which
`simulate.py` computes larger fleets.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator
from urllib.parse import urlsplit

import redis
import surroundings

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

from redis_server import MISSING, RedisServer, find_redis_server  # noqa: E402

from windback.broker.layout import fields_of, keys_of  # noqa: E402
from windback.devserver import DevServer  # noqa: E402
from windback.event.encode import encode  # noqa: E402

EVENTS = keys_of(None).events
PROPERTIES = {"plan": "pro", "feature": "exports", "duration_ms": 1, "ok": True}
BATCH = 100
#: Seconds that a measurement may take.
PATIENCE = 300.0
#: How long the API takes where relays wait for it, and how many requests each relay makes at the same time.
LATENCY_S = 0.05
CONCURRENCY = 4
#: How many relays there are in the runs that show what more of them carry.
RELAYS = (1, 2, 4)

CALLS = """
import json, sys, time
from windback import Windback

url, broker, count = sys.argv[1], sys.argv[2] or None, int(sys.argv[3])
client = Windback("sk_test_bench", base_url=url, broker=broker, max_queue_size=10**7, max_queue_bytes=1 << 40)
clock = time.perf_counter_ns
for i in range(1000):
    client.track_event("feature_used", "user@example.com", {"plan": "pro", "feature": "exports", "n": i})
client.flush(60)
cpu, started, ns = time.process_time(), time.perf_counter(), []
for i in range(count):
    properties = {"plan": "pro", "feature": "exports", "duration_ms": i, "ok": True}
    before = clock()
    client.track_event("feature_used", "user@example.com", properties)
    ns.append(clock() - before)
    if not i % 100:
        time.sleep(0.002)  # as an application that does something else, too
client.flush(60)
ns.sort()
print(json.dumps({
    "p50_us": ns[count // 2] / 1e3,
    "p99_us": ns[count * 99 // 100] / 1e3,
    "cpu_us_per_event": (time.process_time() - cpu) * 1e6 / count,
    "delivered": client.stats().delivered - 1000,
}))
"""

STEADY = """
import sys, time
from windback import Windback

broker, rate, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
client = Windback(broker=broker, max_queue_size=10**6)
started, made = time.monotonic(), 0
while made < rate * seconds:
    for _ in range(rate // 100):
        made += client.track_event("feature_used", "user@example.com", {"plan": "pro", "n": made})
    time.sleep(max(0.0, started + made / rate - time.monotonic()))
result = client.close()
print(made, time.monotonic() - started, result.pending)
"""


class Sink:
    """The sink of the other benchmarks, and the harness's line to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def events(self) -> int:
        return int(self._ask("/_stats")["events"])

    def answer_after(self, seconds: float) -> None:
        self._ask(f"/_reset?latency={seconds}")

    def _ask(self, path: str) -> dict[str, Any]:
        self._connection.request("GET", path)
        answer: dict[str, Any] = json.loads(self._connection.getresponse().read())
        return answer


def pin(pid: int, cores: set[int]) -> None:
    """Let a process run on these cores, with the threads that it has and those it will start."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


@contextlib.contextmanager
def sink(cores: set[int]) -> Iterator[Sink]:
    with subprocess.Popen(
        [sys.executable, str(HERE / "sink.py")], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            pin(process.pid, cores)
            yield Sink(f"http://127.0.0.1:{port}")
        finally:
            process.kill()


def pid_of(server: RedisServer) -> int:
    return int(server.client.info("server")["process_id"])


@contextlib.contextmanager
def redis_server(cores: set[int]) -> Iterator[RedisServer]:
    binary = find_redis_server()
    if binary is None:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(binary, Path(folder))
        server.start()
        pin(pid_of(server), cores)
        try:
            yield server
        finally:
            server.close()


@contextlib.contextmanager
def relay(url: str, broker: str, cores: set[int]) -> Iterator[subprocess.Popen[str]]:
    """Start a relay that runs on these cores, and wait until it is ready."""
    with subprocess.Popen(
        [
            *(sys.executable, "-c", "from windback.cli import main; raise SystemExit(main())", "relay"),
            *("--broker", broker, "--base-url", url, "--concurrency", str(CONCURRENCY)),
        ],
        env={**surroundings.environment(), "WINDBACK_API_KEY": "sk_test_bench"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()
            pin(process.pid, cores)
            yield process
        finally:
            process.kill()


def cpu_s(pid: int) -> float:
    """CPU time of a process, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def calls(count: int, rounds: int) -> dict[str, Any]:
    """The call and the CPU of an application, with a broker and without one, one after the other."""
    every = set(range(os.cpu_count() or 1))
    runs: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    with sink(every) as target, redis_server(every) as server:
        for number in range(rounds):
            for name in sorted(runs, reverse=bool(number % 2)):
                server.client.delete(EVENTS)
                broker = server.url if name == "with" else ""
                done = subprocess.run(
                    [sys.executable, "-c", CALLS, target.url, broker, str(count)],
                    env=surroundings.environment(),
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=PATIENCE,
                )
                runs[name].append(json.loads(done.stdout))
                assert runs[name][-1]["delivered"] == count, runs[name][-1]
    found: dict[str, Any] = {
        name: {key: statistics.median(each[key] for each in of) for key in of[0]} for name, of in runs.items()
    }
    found["ratio"] = found["with"]["p50_us"] / found["without"]["p50_us"]
    return found


def fill(server: RedisServer, batches: int, events: int = BATCH) -> int:
    """Put batches into Redis as applications do; the bytes of an event."""
    record = encode("feature_used", "user@example.com", PROPERTIES, None, 65_536)
    raw = redis.Redis(port=server.port, protocol=2)
    for start in range(0, batches, 500):
        pipe = raw.pipeline(transaction=False)
        for number in range(start, min(start + 500, batches)):
            fields = fields_of([record] * events, f"{number:032x}", None)
            pipe.xadd(EVENTS, dict(zip(fields[::2], fields[1::2])))  # type: ignore[arg-type]
        pipe.execute()
    raw.close()
    return len(record)


def forwarding(relays: int, batches: int, events: int = BATCH, latency_s: float = 0.0) -> dict[str, Any]:
    """How many events a second relays forward, which have a core each as far as there are cores."""
    cores = os.cpu_count() or 1
    others = set(range(relays, cores)) or {cores - 1}
    with sink(others) as target, redis_server(others) as server, contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(relay(target.url, server.url, {number % cores})) for number in range(relays)
        ]
        fill(server, 50 * relays)  # connections, code
        _wait(lambda: target.events() >= 50 * relays * BATCH)
        _wait(lambda: server.client.xlen(EVENTS) == 0)
        for process in running:
            process.send_signal(signal.SIGSTOP)
        empty = server.client.info("memory")["used_memory"]
        size = fill(server, batches, events)
        held = server.client.info("memory")["used_memory"] - empty
        target.answer_after(latency_s)
        spent = CpuOf(redis=[pid_of(server)], relays=[process.pid for process in running])
        for process in running:
            process.send_signal(signal.SIGCONT)
        _wait(lambda: target.events() >= batches * events)
        seconds, by = spent.until_now()
        _wait(lambda: server.client.xlen(EVENTS) == 0)
        return {
            "relays": relays,
            "latency_s": latency_s,
            "concurrency": CONCURRENCY,
            "events_per_s": batches * events / seconds,
            "relay_cpu_us_per_event": by["relays"] * 1e6 / (batches * events),
            "relay_bytes": max(resident_bytes(process.pid) for process in running),
            "redis_cpu_us_per_batch": by["redis"] * 1e6 / batches,
            "redis_busy": by["redis"] / seconds,
            "relay_busy": by["relays"] / seconds / relays,
            "redis_bytes_per_event": held / (batches * events),
            "event_bytes": size,
            "batch": events,
        }


class CpuOf:
    """The CPU time that processes take from now on, by name."""

    def __init__(self, **pids: list[int]) -> None:
        self._pids = pids
        self._before = self._now()
        self._started = time.perf_counter()

    def until_now(self) -> tuple[float, dict[str, float]]:
        """Return the seconds that went by, and the CPU seconds of each name."""
        seconds = time.perf_counter() - self._started
        return seconds, {name: spent - self._before[name] for name, spent in self._now().items()}

    def _now(self) -> dict[str, float]:
        return {name: sum(map(cpu_s, pids)) for name, pids in self._pids.items()}


def appending(batches: int) -> dict[str, float]:
    """The CPU of Redis for a batch that an application appends, with AOF, and the most that it takes."""
    from windback.broker.connection import Connection
    from windback.broker.layout import APPEND
    from windback.secrets import broker_address

    record = encode("feature_used", "user@example.com", PROPERTIES, None, 65_536)
    every = set(range(os.cpu_count() or 1))
    with redis_server({0}) as server:
        connection = Connection(broker_address(server.url), 5.0)
        pids = [pid_of(server)]
        one_by_one = CpuOf(redis=pids)
        for number in range(batches):
            connection.script(
                APPEND, (EVENTS,), 1 << 40, *fields_of([record] * BATCH, f"{number:032x}", None)
            )
        seconds, spent = one_by_one.until_now()
        connection.close()
        server.client.delete(EVENTS)
        # As from applications without number: Redis has a core of its own, and the next batch always waits.
        entries = [fields_of([record] * BATCH, f"{number:032x}", None) for number in range(50)]
        packed = b"".join(
            part
            for fields in entries
            for part in redis.Connection().pack_command("EVAL", APPEND, 1, EVENTS, 1 << 40, *fields)
        )
        pin(os.getpid(), every - {0} or every)
        try:
            saturated = CpuOf(redis=pids)
            _send_all(server.port, packed, batches // len(entries), 2 * batches)
            all_seconds, all_spent = saturated.until_now()
        finally:
            pin(os.getpid(), every)
    return {
        "redis_cpu_us_per_batch": spent["redis"] * 1e6 / batches,
        "batches_per_s": batches / seconds,
        "redis_busy": spent["redis"] / seconds,
        "most_batches_per_s": batches / all_seconds,
        "most_redis_busy": all_spent["redis"] / all_seconds,
    }


def _send_all(port: int, commands: bytes, times: int, lines: int) -> None:
    """Send the same commands again and again without waiting, until so many lines of answers have come."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        sender = threading.Thread(target=lambda: [connection.sendall(commands) for _ in range(times)])
        sender.start()
        while lines > 0:
            lines -= connection.recv(1 << 16).count(b"\n")
        sender.join()


def steady(rate: int, seconds: float, relays: int) -> dict[str, Any]:
    """The same rate for long, into the embedded server: how old the oldest batch gets, and Redis' memory."""
    from windback.broker.connection import Connection
    from windback.broker.inspect import numbers_of
    from windback.secrets import broker_address

    every = set(range(os.cpu_count() or 1))
    ages: list[float] = []
    memory: list[int] = []
    with DevServer() as server, redis_server(every) as broker, contextlib.ExitStack() as stack:
        running = [stack.enter_context(relay(server.url, broker.url, every)) for _ in range(relays)]
        connection = Connection(broker_address(broker.url), 5.0)
        with subprocess.Popen(
            [sys.executable, "-c", STEADY, broker.url, str(rate), str(seconds)],
            env=surroundings.environment(),
            stdout=subprocess.PIPE,
            text=True,
        ) as application:
            spent = CpuOf(
                application=[application.pid],
                redis=[pid_of(broker)],
                relays=[process.pid for process in running],
                api=[server.pid],
            )
            took_s, by = spent.until_now()
            while application.poll() is None:
                ages.append(numbers_of(connection, "").oldest_s or 0.0)
                memory.append(broker.client.info("memory")["used_memory"])
                took_s, by = spent.until_now()
                time.sleep(0.1)
            assert application.stdout is not None
            made, took, pending = application.stdout.read().split()
        _wait(lambda: server.counts().events >= int(made))
        connection.close()
        third = max(1, len(memory) // 3)
        ages.sort()
        return {
            "relays": relays,
            "rate": int(made) / float(took),
            "seconds": float(took),
            "made": int(made),
            "left": int(pending),
            "arrived": server.counts().events,
            "lag_p50_s": ages[len(ages) // 2],
            "lag_p99_s": ages[len(ages) * 99 // 100],
            "lag_max_s": ages[-1],
            "memory_first_third": statistics.median(memory[:third]),
            "memory_last_third": statistics.median(memory[-third:]),
            "busy": {name: used / took_s for name, used in by.items()},
        }


def _wait(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not check():
        if time.monotonic() > deadline:
            sys.exit("it takes too long")
        time.sleep(0.01)


def goals(results: dict[str, Any]) -> Iterator[tuple[str, float, float, bool]]:
    """What has to be reached: text, value, limit, whether the value must be at least that."""
    yield "track_event with a broker, by without (p50)", results["calls"]["ratio"], 1.1, False
    yield "one relay on one core: events/s", results["one relay"]["events_per_s"], 50_000, True
    alone = results[_waiting(1)]["events_per_s"]
    for relays in RELAYS[1:]:
        found = results[_waiting(relays)]["events_per_s"]
        yield f"an API of 50 ms, {relays} relays by one", found / alone, 0.85 * relays, True
    for relays in RELAYS:
        run, name = results[_steady(relays)], _steady(relays)
        yield f"{name}: greatest age of a batch in Redis, s", run["lag_max_s"], 1.0, False
        grown = run["memory_last_third"] / run["memory_first_third"]
        yield f"{name}: Redis' memory, last third by first", grown, 1.1, False
        yield f"{name}: events lost", float(run["made"] - run["arrived"]), 0.0, False


def _waiting(relays: int) -> str:
    return f"an API of 50 ms, relays: {relays}"


def _steady(relays: int) -> str:
    return f"steady, relays: {relays}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a broker costs.")
    parser.add_argument("--quick", action="store_true", help="a look, not a result: less of everything")
    parser.add_argument(
        "--steady", type=float, metavar="S", help="seconds of each steady run (300; 10 if quick)"
    )
    parser.add_argument(
        "--rate", type=int, default=10_000, help="events a second of the steady runs (10,000)"
    )
    parser.add_argument("--output", type=Path, help="of the numbers (benchmarks/results/DATE-fleet.json)")
    parser.add_argument(
        "--only", nargs="*", help="parts to measure again, the others are kept as they are there"
    )
    options = parser.parse_args()
    quick = options.quick
    results: dict[str, Any] = {
        "date": dt.datetime.now().astimezone().date().isoformat(),
        "machine": surroundings.describe(),
        "quick": quick,
        "batch": BATCH,
    }
    suffix = "-fleet-quick.json" if quick else "-fleet.json"
    path = options.output or HERE / "results" / (results["date"] + suffix)
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "calls": lambda: calls(20_000 if quick else 200_000, 1 if quick else 5),
        "appending": lambda: appending(1_000 if quick else 20_000),
        "one relay": lambda: forwarding(1, 500 if quick else 10_000),
        "one relay, small batches": lambda: forwarding(1, 500 if quick else 10_000, 10),
    }
    for relays in RELAYS:
        batches = (100 if quick else 1_500) * relays
        steps[_waiting(relays)] = partial(forwarding, relays, batches, latency_s=LATENCY_S)
    for relays in RELAYS:
        seconds = options.steady or (10 if quick else 300)
        steps[_steady(relays)] = partial(steady, options.rate, seconds, relays)
    if unknown := set(options.only or ()) - set(steps):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(steps)}")
    if options.only:
        results = {**json.loads(path.read_text()), **results}
    for name, step in steps.items():
        if not options.only or name in options.only:
            results[name] = step()
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    for text, value, limit, at_least in goals(results):
        is_met = value >= limit if at_least else value <= limit
        print(
            f"{'met   ' if is_met else 'MISSED'}  {text}: {value:,.3f} ({'≥' if at_least else '≤'} {limit:,})"
        )
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
