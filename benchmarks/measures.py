"""One measurement of one client, in a process of its own: ``python measures.py '{"measure": …}'``.

Prints its result as one line of JSON. `run.py` starts these one after the other.
"""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator
from urllib.parse import urlsplit

from clients import ADAPTERS, EMAIL, EVENT, Client, silence

#: Seconds that a client may take to deliver what it holds.
PATIENCE = 60.0

TIMED = """
def loop(count, work, note):
    for i in range(count):
        p = {prepare}
        started = clock()
        {statement}
        note(clock() - started)
        if work:
            sum(range(work))
"""

PLAIN = """
def loop(count):
    for i in range(count):
        p = {prepare}
        {statement}
"""

UNTIL = """
def loop(deadline, work):
    i = 0
    while clock() < deadline:
        p = {prepare}
        {statement}
        sum(range(work))
        i += 1
    return i
"""


class Sink:
    """The harness's own line to the sink; for a client that delivers nothing, a look at what it holds."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc)
        self.held: Callable[[], int] | None = None

    def ask(self, path: str) -> dict[str, Any]:
        self.connection.request("GET", path)
        answer: dict[str, Any] = json.loads(self.connection.getresponse().read())
        return answer

    def reset(self, latency: float | None) -> None:
        self.ask(f"/_reset?latency={'hang' if latency is None else latency}")

    def events(self) -> int:
        return self.held() if self.held else int(self.ask("/_stats")["events"])

    def settled(self, expected: int, patience: float = 3.0) -> int:
        """The number of events received, as soon as it is the expected one, or else after a few seconds."""
        deadline = time.monotonic() + patience
        while (events := self.events()) < expected and time.monotonic() < deadline:
            time.sleep(0.002)
        return events


def compiled(template: str, client: Client) -> Callable[..., Any]:
    names = {"EVENT": EVENT, "EMAIL": EMAIL, "clock": time.perf_counter_ns, **client.names}
    exec(template.format(prepare=client.prepare, statement=client.statement), names)  # noqa: S102 - a template and our own statements
    loop: Callable[..., Any] = names["loop"]
    return loop


def in_threads(count: int, target: Callable[[int], None]) -> float:
    """Run `target` in so many threads at once; the seconds until the last of them is done."""
    started: list[float] = []
    ready = threading.Barrier(count, action=lambda: started.append(time.perf_counter()))

    def run(number: int) -> None:
        ready.wait()
        target(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started[0]


def timed(client: Client, threads: int, calls: int, work: int) -> tuple[float, list[int]]:
    """Seconds that all calls took, and the nanoseconds of each."""
    loop = compiled(TIMED, client)
    notes: list[list[int]] = [[] for _ in range(threads)]
    seconds = in_threads(threads, lambda number: loop(calls, work, notes[number].append))
    return seconds, [ns for note in notes for ns in note]


def percentile(sorted_ns: list[int], share: float) -> float:
    return sorted_ns[min(int(len(sorted_ns) * share), len(sorted_ns) - 1)] / 1e3


@contextlib.contextmanager
def syncs() -> Iterator[None]:
    """Another process writes to the disk of temporary files, and syncs it, without pause."""
    with tempfile.NamedTemporaryFile() as file:
        command = f"while dd if=/dev/zero of={file.name} bs=1M count=64 conv=fsync 2>/dev/null; do :; done"
        with subprocess.Popen(["/bin/sh", "-c", command], start_new_session=True) as process:
            try:
                yield
            finally:
                os.killpg(process.pid, signal.SIGKILL)


def latency(
    client: Client,
    sink: Sink,
    threads: int,
    calls: int,
    work: int = 0,
    passes: int = 1,
    *,
    beside_syncs: bool = False,
) -> dict[str, Any]:
    """How long a call takes (µs), and how much the threads are slowed that burn `work` between two calls.

    The slowdown is the median over the passes, each beside its own run without a client: on a machine with
    other things to do, neighbours in time are the only ones that can be compared.
    """
    if beside_syncs:
        with syncs():
            return latency(client, sink, threads, calls, work, passes)
    nothing = Client("pass", {}, lambda _: None)
    timed(client, 1, 200, 0)  # whatever is made at the first call
    client.flush(PATIENCE)
    first = sink.settled(200)
    slowdowns, every, empty, meanwhile = [], [], [], 0
    for _ in range(passes):
        alone, clock = timed(nothing, threads, calls, work)
        before = sink.events()
        seconds, ns = timed(client, threads, calls, work)
        meanwhile += sink.events() - before
        client.flush(PATIENCE)
        slowdowns.append(seconds / alone)
        every += ns
        empty += clock
    every.sort()
    return {
        "p50": percentile(every, 0.5),
        "p99": percentile(every, 0.99),
        "p99.9": percentile(every, 0.999),
        "max": every[-1] / 1e3,
        "clock": percentile(sorted(empty), 0.5),
        "slowdown": statistics.median(slowdowns),
        "meanwhile": meanwhile,
        "made": len(every),
        "delivered": sink.settled(first + len(every)) - first,
    }


def throughput(client: Client, sink: Sink, count: int) -> dict[str, Any]:
    """From the first call to the last event's arrival, in events/s, and the CPU time of this process."""
    loop = compiled(PLAIN, client)
    loop(200)
    client.flush(PATIENCE)
    sink.settled(200)
    before = sink.ask("/_stats")
    cpu, started = time.process_time(), time.perf_counter()
    loop(count)
    client.flush(PATIENCE)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    delivered = sink.events() - before["events"]
    if delivered < count:  # flushed, it said
        delivered = sink.settled(before["events"] + count) - before["events"]
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    after = sink.ask("/_stats")
    requests = sum(after["paths"].values()) - sum(before["paths"].values())
    return {
        "rate": delivered / seconds,
        "cpu": cpu * 1e3 / (count / 1e3),
        "made": count,
        "delivered": delivered,
        "requests": requests,
        "bytes": (after["bytes"] - before["bytes"]) / max(delivered, 1),
        "head_bytes": (after["head_bytes"] - before["head_bytes"]) / max(requests, 1),
        "paths": after["paths"],
    }


def saturate(client: Client, sink: Sink, threads: int, work: int, seconds: float) -> dict[str, Any]:
    """What gets out of a process whose threads leave it no time: an event, work, an event, work."""
    loop = compiled(UNTIL, client)
    compiled(PLAIN, client)(100)
    client.flush(PATIENCE)
    before = sink.settled(100)
    made = [0] * threads
    deadline = time.perf_counter_ns() + int(seconds * 1e9)

    def run(number: int) -> None:
        made[number] = loop(deadline, work)

    took = in_threads(threads, run)
    meanwhile = sink.events() - before
    client.flush(PATIENCE)
    return {
        "made": sum(made),
        "made_rate": sum(made) / took,
        "meanwhile": meanwhile,
        "rate": meanwhile / took,
        "delivered": sink.settled(before + sum(made)) - before,
    }


def script(python: str, client: str, sink: Sink, count: int, *flush: str) -> list[str]:
    return [python, str(Path(__file__).with_name("script.py")), client, sink.url, str(count), *flush]


def exit_(client: str, sink: Sink, count: int, patience: float = 3.0) -> dict[str, Any]:
    """The seconds from the last line of a script to the end of its process, with *count* events just made."""
    command = script(sys.executable, client, sink, count)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        last_line = float(process.stdout.readline())
        pending = count - sink.events()
        process.wait()
        seconds = time.monotonic() - last_line
    return {
        "seconds": seconds,
        "pending": pending,
        # What arrives afterwards is sent by another process, or was on its way.
        "arrived": sink.settled(count, patience),
        "of": count,
    }


def cold(client: str, sink: Sink, python: str, times: int) -> dict[str, Any]:
    """Milliseconds from the start of a process until its first event arrives, and of its CPU."""
    walls, cpus, delivered = [], [], 0
    for _ in range(times):
        sink.reset(0.0)
        before, started = children(), time.monotonic()
        subprocess.run(script(python, client, sink, 1, "flush"), stderr=subprocess.DEVNULL, check=True)
        cpus.append((children() - before) * 1e3)
        delivered += sink.settled(1)
        walls.append((sink.ask("/_stats")["first"] - started) * 1e3)
    return {
        "wall": statistics.median(walls),
        "process": statistics.median(cpus),
        "made": times,
        "delivered": delivered,
    }


def children() -> float:
    """Seconds of CPU of the processes that were started here and are over."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


IN_LOOP = """
async def paced(seconds, note):
    for i in range(int(seconds * 100)):
        for _ in range(50):
            p = {prepare}
            started = clock()
            {statement}
            note(clock() - started)
        await sleep(0.01)

async def burst(count):
    for i in range(count):
        p = {prepare}
        {statement}
        if not i % 20:
            await sleep(0)
"""


def in_loop(client: Client, sink: Sink, seconds: float, count: int, *, uvloop: bool) -> dict[str, Any]:
    """In an event loop: each call (µs), how late the loop is (ms) at 5,000 events/s, then a burst."""
    import asyncio

    from web import note_lateness

    names: dict[str, Any] = {
        "EVENT": EVENT,
        "EMAIL": EMAIL,
        "clock": time.perf_counter_ns,
        "sleep": asyncio.sleep,
        **client.names,
    }
    exec(IN_LOOP.format(prepare=client.prepare, statement=client.statement), names)  # noqa: S102 - as above

    async def flush() -> None:
        if client.statement.startswith("await "):
            await client.flush(PATIENCE)  # type: ignore[misc]
        else:
            await asyncio.get_running_loop().run_in_executor(None, client.flush, PATIENCE)

    async def run() -> dict[str, Any]:
        await names["burst"](200)
        await flush()
        first = sink.settled(200)
        every: list[int] = []
        late: list[float] = []
        watch = asyncio.create_task(note_lateness(late))
        await names["paced"](seconds, every.append)
        watch.cancel()
        await flush()
        before = sink.settled(first + len(every))
        cpu, started = time.process_time(), time.perf_counter()
        await names["burst"](count)
        await flush()
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
        made = len(every) + count
        delivered = sink.settled(first + made) - first
        every.sort()
        late.sort()
        return {
            "p50": percentile(every, 0.5),
            "p99": percentile(every, 0.99),
            "late": late[int(len(late) * 0.99)],
            "rate": (first + delivered - before) / took,
            "cpu": cpu * 1e3 / (count / 1e3),
            "made": made,
            "delivered": delivered,
        }

    if uvloop:
        import uvloop as loops

        loops.install()
    return asyncio.run(run())


WRITER = """
import os, sys
from windback import Windback
client = Windback("sk_test_bench", worker=None, journal=sys.argv[1], max_journal_bytes=1 << 36)
for i in range(int(sys.argv[2])):
    assert client.track_event("feature_used", "user@example.com", {"plan": "pro", "duration_ms": i})
os._exit(0)
"""


def drain(client: Client, sink: Sink, count: int) -> dict[str, Any]:
    """What a dead process left, by a relay on one core: events/s, and the most memory that it ever had."""
    assert client.relay is not None
    assert client.journal is not None
    before = sink.events()
    client.relay.send_signal(signal.SIGSTOP)
    subprocess.run([sys.executable, "-c", WRITER, client.journal, str(count)], check=True)
    started = time.perf_counter()
    client.relay.send_signal(signal.SIGCONT)
    while (arrived := sink.events() - before) < count and time.perf_counter() - started < 600:
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    status = Path(f"/proc/{client.relay.pid}/status").read_text()
    most = next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]
    return {
        "rate": arrived / seconds,
        "most_bytes": int(most) * 1024,
        "made": count,
        "delivered": sink.settled(before + count) - before,
    }


def memory(client: Client, sink: Sink, counts: list[int]) -> dict[str, Any]:
    """What a queued event costs while the server does not answer: growth of the process, by events queued."""
    sink.reset(None)
    loop = compiled(PLAIN, client)
    loop(500)  # everything is imported, connected and in flight, …
    time.sleep(0.5)
    gc.collect()
    loop(5_000)  # … and what that left free in memory is filled
    base, queued, grown = resident(), 0, {}
    for count in counts:
        started = time.perf_counter()
        loop(count - queued)
        micros = (time.perf_counter() - started) * 1e6 / (count - queued)
        queued = count
        grown[str(count)] = {"bytes": (resident() - base) / count, "micros": micros}
    sink.reset(0.0)
    return {"queued": grown}


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "latency": latency,
    "throughput": throughput,
    "in_loop": in_loop,
    "saturate": saturate,
    "drain": drain,
    "memory": memory,
}
#: Those of a whole process: it makes its client itself.
WHOLE: dict[str, Callable[..., dict[str, Any]]] = {"exit": exit_, "cold": cold}


def stay_inside(event: str, arguments: tuple[Any, ...]) -> None:
    """Nothing that a client does may leave the machine, whatever it was set up to do."""
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1"):
            raise ConnectionRefusedError(f"a benchmark stays on loopback: {address}")
    elif event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", "::1"):
        raise ConnectionRefusedError(f"a benchmark looks nobody up: {arguments[0]}")


def main() -> None:
    spec = json.loads(sys.argv[1])
    sys.addaudithook(stay_inside)
    silence()
    sink = Sink(spec["url"])
    sink.reset(spec["latency"])
    if (whole := WHOLE.get(spec["measure"])) is not None:
        print(json.dumps(whole(spec["client"], sink, **spec["arguments"])), flush=True)
        return
    client = ADAPTERS[spec["client"]].setup(spec["url"], **spec["options"])
    sink.held = client.held
    try:
        result = MEASURES[spec["measure"]](client, sink, **spec["arguments"])
    finally:
        if client.relay is not None:
            client.relay.kill()
        if client.journal is not None:
            shutil.rmtree(client.journal, ignore_errors=True)
    print(json.dumps(result), flush=True)
    os._exit(0)  # what a client does at exit is not part of the measurement


if __name__ == "__main__":
    main()
