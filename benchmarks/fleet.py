"""Measure what a broker costs: ``python benchmarks/fleet.py [--quick] [--steady SECONDS]``.

One process for each part: an application, Redis, relays, and the sink of the other benchmarks (for the steady
run the embedded server). What a core carries is measured with the relay alone on one, Redis and the sink on
the others. Writes a table and `results/DATE-fleet.json`, from which `simulate.py` computes larger fleets.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
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
        self._connection.request("GET", "/_stats")
        return int(json.loads(self._connection.getresponse().read())["events"])


@contextlib.contextmanager
def sink(cores: set[int]) -> Iterator[Sink]:
    with subprocess.Popen(
        [sys.executable, str(HERE / "sink.py")], stdout=subprocess.PIPE, text=True
    ) as process:
        os.sched_setaffinity(process.pid, cores)
        try:
            assert process.stdout is not None
            yield Sink(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


@contextlib.contextmanager
def redis_server(cores: set[int]) -> Iterator[RedisServer]:
    binary = find_redis_server()
    if binary is None:
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(binary, Path(folder))
        server.start()
        os.sched_setaffinity(server.client.info("server")["process_id"], cores)
        try:
            yield server
        finally:
            server.close()


@contextlib.contextmanager
def relay(url: str, broker: str, cores: set[int]) -> Iterator[subprocess.Popen[str]]:
    """A relay that runs on these cores, and is ready."""
    with subprocess.Popen(
        [
            *(sys.executable, "-c", "from windback.cli import main; raise SystemExit(main())", "relay"),
            *("--broker", broker, "--base-url", url),
        ],
        env={**surroundings.environment(), "WINDBACK_API_KEY": "sk_test_bench"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()
            os.sched_setaffinity(process.pid, cores)
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


def forwarding(relays: int, batches: int, events: int = BATCH) -> dict[str, Any]:
    """How many events a second relays forward that have a core each, as far as there are cores."""
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
        before = target.events()
        redis_pid = server.client.info("server")["process_id"]
        spent = [cpu_s(process.pid) for process in running]
        redis_spent, started = cpu_s(redis_pid), time.perf_counter()
        for process in running:
            process.send_signal(signal.SIGCONT)
        _wait(lambda: target.events() - before >= batches * events)
        seconds = time.perf_counter() - started
        spent = [cpu_s(process.pid) - old for process, old in zip(running, spent)]
        redis_spent = cpu_s(redis_pid) - redis_spent
        _wait(lambda: server.client.xlen(EVENTS) == 0)
        return {
            "events_per_s": batches * events / seconds,
            "relay_cpu_us_per_event": sum(spent) * 1e6 / (batches * events),
            "relay_bytes": max(resident_bytes(process.pid) for process in running),
            "redis_cpu_us_per_batch": redis_spent * 1e6 / batches,
            "redis_bytes_per_event": held / (batches * events),
            "event_bytes": size,
            "batch": events,
        }


def appending(batches: int) -> dict[str, float]:
    """The CPU of Redis for a batch that an application appends, with AOF."""
    from windback.broker.connection import Connection
    from windback.broker.layout import APPEND
    from windback.secrets import broker_address

    record = encode("feature_used", "user@example.com", PROPERTIES, None, 65_536)
    every = set(range(os.cpu_count() or 1))
    with redis_server(every) as server:
        connection = Connection(broker_address(server.url), 5.0)
        pid = server.client.info("server")["process_id"]
        spent, started = cpu_s(pid), time.perf_counter()
        for number in range(batches):
            connection.script(
                APPEND, (EVENTS,), 1 << 40, *fields_of([record] * BATCH, f"{number:032x}", None)
            )
        seconds = time.perf_counter() - started
        spent = cpu_s(pid) - spent
        connection.close()
    return {"redis_cpu_us_per_batch": spent * 1e6 / batches, "batches_per_s": batches / seconds}


def steady(rate: int, seconds: float, relays: int = 2) -> dict[str, Any]:
    """The same rate for long, into the embedded server: how old the oldest batch gets, and Redis' memory."""
    from windback.broker.connection import Connection
    from windback.broker.inspect import numbers_of
    from windback.secrets import broker_address

    every = set(range(os.cpu_count() or 1))
    ages: list[float] = []
    memory: list[int] = []
    with DevServer() as server, redis_server(every) as broker, contextlib.ExitStack() as stack:
        for _ in range(relays):
            stack.enter_context(relay(server.url, broker.url, every))
        connection = Connection(broker_address(broker.url), 5.0)
        with subprocess.Popen(
            [sys.executable, "-c", STEADY, broker.url, str(rate), str(seconds)],
            env=surroundings.environment(),
            stdout=subprocess.PIPE,
            text=True,
        ) as application:
            while application.poll() is None:
                ages.append(numbers_of(connection, "").oldest_s or 0.0)
                memory.append(broker.client.info("memory")["used_memory"])
                time.sleep(0.1)
            assert application.stdout is not None
            made, took, pending = application.stdout.read().split()
        _wait(lambda: server.counts().events >= int(made))
        connection.close()
        third = max(1, len(memory) // 3)
        ages.sort()
        return {
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
    one, two = results["one relay"]["events_per_s"], results["two relays"]["events_per_s"]
    yield "one relay on one core: events/s", one, 50_000, True
    yield "two relays by one", two / one, 1.7, True
    run = results["steady"]
    yield "steady: greatest age of a batch in Redis, s", run["lag_max_s"], 1.0, False
    yield (
        "steady: Redis' memory, last third by first",
        run["memory_last_third"] / run["memory_first_third"],
        1.1,
        False,
    )
    yield "steady: events lost", float(run["made"] - run["arrived"]), 0.0, False


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what a broker costs.")
    parser.add_argument("--quick", action="store_true", help="a look, not a result: less of everything")
    parser.add_argument(
        "--steady", type=float, metavar="S", help="seconds of the steady run (300; 10 if quick)"
    )
    parser.add_argument("--rate", type=int, default=10_000, help="events a second of the steady run (10,000)")
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
        "two relays": lambda: forwarding(2, 500 if quick else 10_000),
        "steady": lambda: steady(options.rate, options.steady or (10 if quick else 300)),
    }
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
