"""Applications that track one event in each request, for `app.py`: ``asgi`` and ``wsgi`` make them.

CLIENT says which client an application has, SINK where that sends to.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Literal

from clients import ADAPTERS, EMAIL, EVENT, silence

if TYPE_CHECKING:
    from fastapi import FastAPI
    from flask import Flask

#: Clients of asyncio, by name: what `worker` is for each.
ASYNC: dict[str, Literal["auto", "task", "thread"]] = {
    "windback-async": "auto",
    "windback-async-task": "task",
    "windback-async-thread": "thread",
}
#: Without a client: what all others are compared with.
NONE = "none"
#: Seconds for which a client may deliver what is left when the load has ended.
PATIENCE = 20.0
#: How often the event loop looks how late it is (seconds).
LOOK = 0.01

Track = Callable[[int], Any]


def tracker() -> tuple[Track, Callable[[float], object]]:
    """A function that tracks one event, given a number, and one that flushes; coroutines in `ASYNC`."""
    name, url = os.environ["CLIENT"], os.environ["SINK"]
    silence()
    if name == NONE:
        return lambda _: None, lambda _: None
    if name in ASYNC:
        return async_tracker(url, ASYNC[name])
    client = ADAPTERS[name].setup(url)
    code = f"def track(i):\n p = {client.prepare}\n {client.statement}"
    names = {**client.names, "EVENT": EVENT, "EMAIL": EMAIL}
    exec(code, names)  # noqa: S102 - compiled into the application, so that no wrapper is measured
    return names["track"], client.flush


def async_tracker(
    url: str, worker: Literal["auto", "task", "thread"]
) -> tuple[Track, Callable[[float], object]]:
    from windback import AsyncWindback

    client = AsyncWindback("sk_test_bench", "bench", base_url=url, worker=worker, max_queue_size=10_000_000)

    async def track(i: int) -> None:
        properties = {"plan": "pro", "feature": "export", "duration_ms": i, "team": "growth"}
        await client.track_event(event=EVENT, customer_email=EMAIL, properties=properties)

    return track, client.flush


def asgi() -> FastAPI:
    """FastAPI, as uvicorn runs it."""
    from fastapi import FastAPI

    late: list[float] = []

    @asynccontextmanager
    async def watched(_: object) -> AsyncIterator[None]:
        watch = asyncio.create_task(note_lateness(late))
        yield
        watch.cancel()

    app, numbers = FastAPI(lifespan=watched), itertools.count()
    track, flush = tracker()
    is_async = asyncio.iscoroutinefunction(track)

    @app.get("/")
    async def root() -> dict[str, bool]:
        if is_async:
            await track(next(numbers))
        else:
            track(next(numbers))
        return {"ok": True}

    @app.get("/reset")
    async def reset() -> dict[str, bool]:
        gc.collect()
        late.clear()
        return {"ok": True}

    @app.get("/lateness")
    async def lateness() -> dict[str, float]:
        ordered = sorted(late) or [0.0]
        return {"p99": ordered[int(len(ordered) * 0.99)], "max": ordered[-1]}

    @app.get("/flush")
    async def end() -> dict[str, bool]:
        if is_async:
            await flush(PATIENCE)  # type: ignore[misc]
        else:
            await asyncio.get_running_loop().run_in_executor(None, flush, PATIENCE)
        return {"ok": True}

    return app


async def note_lateness(late: list[float]) -> None:
    """Sleep, and note by how much longer it was than it should be (ms): that long the loop stood still."""
    while True:
        due = time.perf_counter() + LOOK
        await asyncio.sleep(LOOK)
        late.append((time.perf_counter() - due) * 1e3)


def wsgi() -> Flask:
    """Flask, as gunicorn runs it, with threads."""
    from flask import Flask

    app, numbers = Flask("bench"), itertools.count()
    track, flush = tracker()

    @app.get("/")
    def root() -> dict[str, bool]:
        track(next(numbers))
        return {"ok": True}

    @app.get("/reset")
    def reset() -> dict[str, bool]:
        gc.collect()
        return {"ok": True}

    @app.get("/flush")
    def end() -> dict[str, bool]:
        flush(PATIENCE)
        return {"ok": True}

    return app


def commands(port: int) -> dict[str, list[str]]:
    """How each application is started, by its name in the tables."""
    uvicorn = ["uvicorn", "--factory", "web:asgi", "--port", str(port), "--log-level", "error"]
    gunicorn = ["gunicorn", "web:wsgi()", "--bind", f"127.0.0.1:{port}", "--log-level", "error"]
    return {
        "fastapi": [sys.executable, "-m", *uvicorn, "--loop", "asyncio"],
        "fastapi-uvloop": [sys.executable, "-m", *uvicorn, "--loop", "uvloop"],
        "flask": [sys.executable, "-m", *gunicorn, "--worker-class", "gthread", "--threads", "8"],
    }
