"""Kill relays while they work, and Redis once, in front of a server that fails: what arrives is counted.

An application in a process of its own tracks numbered events through a journal and a broker, and looks all
the time whether its counters add up. Nothing is lost when each number arrived; a repeat has the key of the
first time when no number arrived under two of them, and no key with two bodies.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Dict, List, NamedTuple

from calls import ends
from redis_server import RedisServer

import windback
from windback.broker.layout import keys_of
from windback.devserver import DevServer

#: Without any progress.
HANGS_AFTER_S = 90

#: A fifth of the requests fails: half of these before, half of them after they were processed.
FAULTS = [
    {"path": "/track", "status": 503, "rate": 0.1, "seed": 1},
    {"path": "/track", "drop": "after", "rate": 0.1111, "seed": 2},
]

APP = """\
import sys, threading, time
from windback import Windback

broker, journal, count, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
client = Windback(broker=broker, journal=journal, overflow="block", block_timeout=60, shutdown_timeout=90)
wrong = []
stop = threading.Event()

def watch():
    while not stop.wait(0.01):
        stats = client.stats()
        if stats.accepted != stats.delivered + stats.rejected + stats.dropped + stats.pending:
            wrong.append(stats)

watcher = threading.Thread(target=watch)
watcher.start()
started = time.monotonic()
for n in range(count):
    if not client.track_event("login", "jane@example.com", {"n": n}):
        wrong.append(f"{n} was refused")
    if not n % 500:
        time.sleep(max(0.0, started + seconds * n / count - time.monotonic()))
stop.set()
watcher.join()
result = client.close()
stats = client.stats()
if wrong or not result or stats.accepted != count or stats.delivered != count:
    sys.exit(f"{wrong[:3]} {result} {stats}")
"""


class Result(NamedTuple):
    """What became of all events."""

    accepted: int
    lost: int
    #: Events that arrived under a second key, which no server could tell from new ones.
    doubled: int
    #: Batches that came again under their keys, which the server knew by them.
    repeated: int
    #: Keys that came with another body.
    conflicts: int
    kills: int
    seconds: float
    #: What was wrong besides, in words.
    said: str

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.conflicts or self.said)

    def __str__(self) -> str:
        return (
            f"broker: {self.accepted:,} events accepted, {self.kills} relays killed and Redis once, "
            f"{self.repeated:,} batches repeated under their keys, {self.seconds:.0f} s; lost: {self.lost}, "
            f"doubled under another key: {self.doubled}, keys with two bodies: {self.conflicts}"
            f"{self.said and '; ' + self.said}"
        )


class Relays:
    """Some of `windback relay`, each in a process; what is killed is replaced."""

    def __init__(self, count: int, broker: str, url: str) -> None:
        self._environment: Dict[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")},
            "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]),
            "WINDBACK_API_KEY": "sk_test_1",
            "WINDBACK_BASE_URL": url,
            "WINDBACK_BROKER": broker,
        }
        self._running: List[subprocess.Popen[str]] = [self._start() for _ in range(count)]

    def _start(self) -> subprocess.Popen[str]:
        command = "from windback.cli import main; raise SystemExit(main())"
        return subprocess.Popen(
            [sys.executable, "-c", command, "relay", "--claim-after", "3", "--shutdown-timeout", "5"],
            env=self._environment,
            stderr=subprocess.PIPE,  # a few lines, far less than a pipe holds
            text=True,
        )

    def kill_one(self) -> None:
        """Kill the one that runs for longest, which had the time to read something."""
        oldest = self._running.pop(0)
        oldest.kill()
        oldest.communicate()
        self._running.append(self._start())

    def end(self) -> str:
        """Let them come to their end in good order; what was wrong with it."""
        for process in self._running:
            _wait_until_up(process)
            process.terminate()
        try:
            said = [process.communicate(timeout=30)[1] for process in self._running]
        except subprocess.TimeoutExpired:
            return "a relay did not end"
        statuses = [process.returncode for process in self._running]
        return "" if not any(statuses) else f"relays ended with {statuses}: {said}"

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.communicate()


def _wait_until_up(relay: subprocess.Popen[str]) -> None:
    """Wait until it would end in good order: before, a signal ends it like any process."""
    assert relay.stderr is not None
    for line in relay.stderr:
        if "relay: sending" in line:
            return


def torture(
    server: DevServer,
    redis_server: RedisServer,
    folder: Path,
    *,
    events: int,
    seconds: float,
    kill_every_s: float,
    relays: int = 3,
) -> Result:
    """Do it once: relays are killed for *seconds*, in the middle of which Redis is."""
    server.reset()
    server.faults(FAULTS)
    started_s = time.monotonic()
    kills, said = 0, []
    with ExitStack() as stack:
        fleet = Relays(relays, redis_server.url, server.url)
        stack.callback(fleet.close)
        command = [sys.executable, "-W", "error", "-c", APP, redis_server.url, str(folder), str(events)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
        environment["PYTHONPATH"] = str(Path(windback.__file__).resolve().parents[1])
        application = subprocess.Popen(
            [*command, str(0.8 * seconds)], env=environment, stderr=subprocess.PIPE, text=True
        )
        stack.callback(application.wait)
        stack.callback(application.kill)
        restart_s = started_s + seconds * random.uniform(0.3, 0.6)
        while time.monotonic() < started_s + seconds:
            time.sleep(kill_every_s)
            fleet.kill_one()
            kills += 1
            if restart_s and time.monotonic() > restart_s:
                redis_server.restart()
                restart_s = 0.0
        _, err = application.communicate(timeout=HANGS_AFTER_S + seconds)
        if application.returncode:
            said.append(f"the application: {err}")
        # Until all is acknowledged.
        if not ends(
            lambda: not redis_server.client.xlen(keys_of(None).events),
            lambda: server.counts().track_requests,
            HANGS_AFTER_S,
        ):
            said.append("nothing happens any more")
        said.append(fleet.end())
    arrived = Counter(stored.properties["n"] for stored in server.events())
    counts = server.counts()
    return Result(
        accepted=events,
        lost=len(set(range(events)) - set(arrived)),
        doubled=sum(times - 1 for times in arrived.values()),
        repeated=counts.duplicates,
        conflicts=counts.by_status.get(409, 0),
        kills=kills,
        seconds=time.monotonic() - started_s,
        said="; ".join(filter(None, said)),
    )
