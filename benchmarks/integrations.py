"""What `track` and the middleware add, as ratios of one run: ``python benchmarks/integrations.py``.

Each pair is measured in turns, one beside the other, and the ratio of each turn is taken; reported is the
median over the turns. So what else the machine does falls on both. It takes about 15 s and sends to a sink.

What the middleware adds is measured in this process, request by request. Its share is that of the CPU which
a request costs a real uvicorn with the same application.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

from fastapi import FastAPI
from sink import sink

from windback import Windback, context
from windback.asgi import ASGIApp, ASGIScope, Message, Receive, Send
from windback.fastapi import WindbackMiddleware

EVENT, EMAIL = "feature_used", "user@example.com"
PROPERTIES = {"plan": "pro", "feature": "export", "duration_ms": 12, "team": "growth"}
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/items/7",
    "raw_path": b"/items/7",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"host", b"localhost")],
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 80),
}
#: At most so much.
GOALS = {
    "track beside track_event": 1.15,
    "track with two bound properties": 1.35,
    "the middleware, microseconds a request": 3.0,
    "the middleware in FastAPI, share of a request under uvicorn": 0.02,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what track and the middleware add.")
    parser.add_argument("--turns", type=int, default=30, help="how often all is measured (30)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a number is above its goal")
    options = parser.parse_args()
    with sink() as url, Windback("sk_test_bench", base_url=url, max_queue_size=10_000_000) as client:
        found = {**calls(client, options.turns), **asyncio.run(requests(client, 200 * options.turns))}
    for name, value in found.items():
        print(f"{value:6.3f}  of {GOALS[name]:5.2f}  {name}")
    if options.strict and any(value > GOALS[name] for name, value in found.items()):
        sys.exit(1)


def calls(client: Windback, turns: int) -> dict[str, float]:
    """Compare `track` in a scope with `track_event`."""
    track_event, track = client.track_event, client.track

    def explicit(count: int) -> None:
        for _ in range(count):
            track_event(EVENT, EMAIL, PROPERTIES)

    def bound(count: int) -> None:
        for _ in range(count):
            track(EVENT, PROPERTIES)

    def beside(other: Callable[[int], None]) -> float:
        return ratio(lambda: timed(explicit, client), lambda: timed(other, client), turns)

    with context.bound(customer_email=EMAIL):
        alone = beside(bound)
    with context.bound(customer_email=EMAIL, region="eu", seats=3):
        merged = beside(bound)
    return {"track beside track_event": alone, "track with two bound properties": merged}


def timed(run: Callable[[int], None], client: Windback, count: int = 2_000) -> float:
    client.flush()  # the worker sleeps while the calls are timed
    started = time.perf_counter()
    run(count)
    return time.perf_counter() - started


def ratio(one: Callable[[], float], other: Callable[[], float], turns: int) -> float:
    """Return the median of other / one; who is first changes with each turn."""
    found = []
    for turn in range(turns):
        if turn % 2:
            second, first = other(), one()
        else:
            first, second = one(), other()
        found.append(second / first)
    return statistics.median(found)


async def requests(client: Windback, count: int) -> dict[str, float]:
    """Compare requests with and without the middleware, and with what one costs a whole server."""
    bare_us = await difference_us(bare, client, count)
    fastapi_us = await difference_us(fastapi_application(), client, count)
    return {
        "the middleware, microseconds a request": bare_us,
        "the middleware in FastAPI, share of a request under uvicorn": fastapi_us / server_us(),
    }


async def difference_us(application: ASGIApp, client: Windback, count: int) -> float:
    """Return what the middleware adds. A request with it is the neighbour of one without."""
    wrapped = WindbackMiddleware(application, client)
    found = []
    for turn in range(count):
        order = (application, wrapped) if turn % 2 else (wrapped, application)
        took = {id(each): await timed_request(each) for each in order}
        found.append(took[id(wrapped)] - took[id(application)])
    return 1e6 * statistics.median(found)


async def timed_request(application: ASGIApp) -> float:
    scope = dict(SCOPE)
    started = time.perf_counter()
    await application(scope, receive, send)
    return time.perf_counter() - started


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(_message: Message) -> None:
    pass


def server_us(count: int = 3_000) -> float:
    """Return the CPU that a request costs uvicorn with the same application, on one connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "--port", str(port), "--log-level", "error"]
    server = subprocess.Popen([*command, "integrations:fastapi_application"], cwd=Path(__file__).parent)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for _ in range(600):
            try:
                connection.connect()
                break
            except OSError:
                time.sleep(0.05)
        for repeat in range(count + 200):
            if repeat == 200:  # it is warm
                before_s = cpu_s(server.pid)
            connection.request("GET", "/items/7")
            connection.getresponse().read()
        return 1e6 * (cpu_s(server.pid) - before_s) / count
    finally:
        server.kill()
        server.wait()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def bare(_scope: ASGIScope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


def fastapi_application() -> FastAPI:
    application = FastAPI()

    @application.get("/items/{number}")
    async def item(number: int) -> dict[str, int]:
        return {"number": number}

    return application


if __name__ == "__main__":
    main()
