"""The application that `tests/soak.py` runs: one process that tracks numbered events in every way at once.

8 threads use a `Windback`, an event loop an `AsyncWindback`, one thread a client that sends through Redis;
children are forked, and track with the client of the threads. Each second one line says how it is.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import Iterator

from windback import AsyncWindback, Windback

THREADS = 8
CHILDREN = 20
#: So many events are given out at once, to whoever is done with what it had: all end at the same time.
CHUNK = 100
#: The end waits until everything is in Redis or delivered: the harness ends what makes no progress.
OPTIONS = {"overflow": "block", "block_timeout": 120, "shutdown_timeout": 3_600}


class Application:
    def __init__(self, events: int, broker: str, journal: str) -> None:
        self.events = events
        self.starts = iter(range(0, events, CHUNK))
        self.client = Windback(**OPTIONS)
        self.through_redis = Windback(broker=broker, journal=journal, **OPTIONS)
        self.clients = [self.client, self.through_redis]
        self.refused = 0
        self.unbalanced = 0
        self.children_failed = 0
        self.is_over = threading.Event()

    def run(self) -> None:
        work = [threading.Thread(target=self.track_all, args=(self.client,)) for _ in range(THREADS)]
        work.append(threading.Thread(target=self.track_all, args=(self.through_redis,)))
        work.append(threading.Thread(target=asyncio.run, args=(self.track_in_loop(),)))
        watchers = [threading.Thread(target=self.watch), threading.Thread(target=self.report)]
        for thread in [*work, *watchers]:
            thread.start()
        self.fork()
        for thread in work:
            thread.join()
        self.is_over.set()
        for thread in watchers:
            thread.join()
        is_all = bool(self.client.close()) and bool(self.through_redis.close())
        self.say(is_all=is_all)

    def chunks(self) -> Iterator[range]:
        """Yield the numbers that nobody else tracks, until there are none; `next` of a range is one step."""
        for start in self.starts:
            yield range(start, min(start + CHUNK, self.events))

    def track_all(self, client: Windback) -> None:
        for numbers in self.chunks():
            self.track(client, numbers)

    def track(self, client: Windback, numbers: range) -> None:
        for n in numbers:
            if not client.track_event("login", "jane@example.com", {"n": n}):
                self.refused += 1

    async def track_in_loop(self) -> None:
        async with AsyncWindback(**OPTIONS) as client:
            self.clients.append(client)
            for numbers in self.chunks():
                for n in numbers:
                    if not await client.track_event("login", "jane@example.com", {"n": n}):
                        self.refused += 1
                await asyncio.sleep(0)

    def fork(self) -> None:
        """Fork children, each when a further part of the events is tracked; a child tracks one chunk."""
        context = multiprocessing.get_context("fork")
        for child in range(CHILDREN):
            while self.accepted() < self.events * child // (CHILDREN + 1):
                time.sleep(0.01)
            numbers = next(self.chunks(), range(0))
            process = context.Process(target=self.track, args=(self.client, numbers))
            process.start()
            process.join()
            self.children_failed += process.exitcode != 0

    def accepted(self) -> int:
        return sum(client.stats().accepted for client in list(self.clients))

    def watch(self) -> None:
        while not self.is_over.wait(0.01):
            for client in list(self.clients):
                stats = client.stats()
                settled = stats.delivered + stats.rejected + stats.dropped
                self.unbalanced += stats.accepted != settled + stats.pending

    def report(self) -> None:
        while not self.is_over.wait(1):
            self.say()

    def say(self, **more: object) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        line = {
            "s": time.monotonic(),
            "accepted": self.accepted(),
            "memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "threads": threading.active_count(),
            "refused": self.refused,
            "unbalanced": self.unbalanced,
            "children_failed": self.children_failed,
            **more,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    Application(int(sys.argv[1]), sys.argv[2], sys.argv[3]).run()
