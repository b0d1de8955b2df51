"""FastAPI under the servers that people run it with: what was tracked arrives, also at SIGTERM."""

from __future__ import annotations

import http.client
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from calls import eventually
from servers import GUNICORN, UVICORN, UVICORN_ENDS_BY_SIGNAL, AppServer

from windback.devserver import DevServer

HEAD = """\
import asyncio, time
from contextlib import asynccontextmanager
from typing import Optional
from fastapi import BackgroundTasks, Depends, FastAPI, Header
from typing_extensions import Annotated
import windback
from windback import context
from windback.fastapi import Track, WindbackMiddleware
"""

APP = (
    HEAD
    + """
app = FastAPI()
app.add_middleware(WindbackMiddleware, flush_timeout=40)  # the machine may do much else

@app.get("/health")
def health():
    return "up"

@app.get("/sync/{n}")
def sync_endpoint(n: int, track: Track):
    context.bind(customer_email="jane@example.com")
    return track("login", {"n": n})

@app.get("/async/{n}")
async def async_endpoint(n: int, track: Track):
    context.bind(customer_email="jane@example.com")
    return track("login", {"n": n})

@app.get("/background/{n}")
def background(n: int, track: Track, tasks: BackgroundTasks):
    context.bind(customer_email="jane@example.com")
    tasks.add_task(track, "login", {"n": n})

@app.get("/explicit/{n}")
def explicit(n: int):
    return windback.get_client().track_event("login", "jane@example.com", {"n": n})

@app.get("/slow/{n}")
async def slow(n: int, track: Track, tasks: BackgroundTasks):
    context.bind(customer_email="jane@example.com")
    await asyncio.sleep(2)
    tasks.add_task(track, "login", {"n": n})
"""
)

KINDS = ("sync", "async", "background", "explicit")


@pytest.fixture(scope="module")
def _process():
    with DevServer() as server:
        yield server


@pytest.fixture
def server(_process):
    _process.reset()
    return _process


def numbers(server):
    return sorted(stored.properties["n"] for stored in server.events("login"))


SERVERS = {
    "uvicorn": [*UVICORN, "app:app"],
    "uvicorn, 4 workers": [*UVICORN, "--workers", "4", "app:app"],
    "gunicorn's uvicorn worker": [*GUNICORN, "-w", "2", "-k", "uvicorn_worker.UvicornWorker", "app:app"],
}


@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_fifty_of_fifty_arrive_after_sigterm(tmp_path, server, command):
    with AppServer(tmp_path, {"app.py": APP}, command, server.url) as app:
        assert app.get_all([f"/{KINDS[n % 4]}/{n}" for n in range(50)]) == [200] * 50
        said = app.end()
    assert numbers(server) == list(range(50)), said
    assert "Error" not in said


def test_without_the_middleware_they_would_not(tmp_path, server):
    """Shows that the tests here measure what they say."""
    code = APP.replace("app.add_middleware(WindbackMiddleware, flush_timeout=40)", "")
    with AppServer(tmp_path, {"app.py": code}, SERVERS["uvicorn"], server.url) as app:
        server.faults([{"latency": 0.5}])
        app.get_all([f"/explicit/{n}" for n in range(50)])
        app.end()
    server.faults([])
    assert (len(numbers(server)) < 50) == UVICORN_ENDS_BY_SIGNAL


def test_requests_in_flight_and_their_background_tasks_arrive(tmp_path, server):
    with AppServer(tmp_path, {"app.py": APP}, SERVERS["uvicorn"], server.url) as app:
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(app.get, f"/slow/{n}") for n in range(8)]
            time.sleep(1)
            said = app.end()
            assert [each.result() for each in answers] == [200] * 8
    assert numbers(server) == list(range(8)), said


def test_an_own_lifespan_may_track_and_even_close(tmp_path, server):
    code = APP.replace(
        "app = FastAPI()",
        """
@asynccontextmanager
async def lifespan(app):
    windback.get_client().track_event("login", "jane@example.com", {"n": 100})
    yield {"state": 1}
    windback.get_client().track_event("login", "jane@example.com", {"n": 101})

app = FastAPI(lifespan=lifespan)
""",
    )
    with AppServer(tmp_path, {"app.py": code}, SERVERS["uvicorn"], server.url) as app:
        app.get("/sync/1")
        said = app.end()
    assert numbers(server) == [1, 100, 101], said


def test_clients_of_the_applications_own_are_flushed_too(tmp_path, server):
    code = (
        HEAD
        + """
own, tasks = windback.Windback(flush_interval=3600), windback.AsyncWindback(flush_interval=3600)
app = FastAPI()
app.add_middleware(WindbackMiddleware)

@app.get("/health")
async def health():
    return "up"

@app.get("/{n}")
async def both(n: int):
    assert own.track_event("login", "jane@example.com", {"n": n})
    assert await tasks.track_event("login", "jane@example.com", {"n": n + 1})
"""
    )
    with AppServer(tmp_path, {"app.py": code}, SERVERS["uvicorn"], server.url) as app:
        assert app.get("/0") == app.get("/2") == 200
        said = app.end()
    assert numbers(server) == [0, 1, 2, 3], said


def test_each_reload_delivers(tmp_path, server):
    command = [*UVICORN, "--reload", "--reload-dir", ".", "app:app"]
    code = APP.replace("app = FastAPI()", "app = FastAPI(version='%d')")
    with AppServer(tmp_path, {"app.py": code % 0}, command, server.url) as app:
        for start in (0, 50):
            assert app.get_all([f"/sync/{start + n}" for n in range(50)]) == [200] * 50
            if not start:
                # Of another size: in the same second Python takes a file of the same size as unchanged.
                (tmp_path / "app.py").write_text(code % 10, encoding="utf-8")
                eventually(lambda: numbers(server) == list(range(50)), 50)
                app.wait_until_up("/health")
                touched_s = time.monotonic()
                while '"10"' not in _version(app):
                    if time.monotonic() > touched_s + 5:  # the reloader's first look may have come after it
                        (tmp_path / "app.py").touch()
                        touched_s = time.monotonic()
                    time.sleep(0.1)
        said = app.end()
    assert numbers(server) == list(range(100)), said


def _version(app):
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", app.port, timeout=30)) as connection:
            connection.request("GET", "/openapi.json")
            return connection.getresponse().read().decode()
    except OSError:
        return ""


def test_a_server_without_lifespan_needs_the_signal_handlers(tmp_path, server):
    code = APP.replace(
        "app = FastAPI()", "windback.set_client(windback.Windback(handle_signals=True))\napp = FastAPI()"
    )
    with AppServer(tmp_path, {"app.py": code}, [*UVICORN, "--lifespan", "off", "app:app"], server.url) as app:
        app.get_all([f"/sync/{n}" for n in range(50)])
        said = app.end()
    assert numbers(server) == list(range(50)), said


def test_an_application_without_a_lifespan_is_answered_for(tmp_path, server):
    code = """\
    import windback
    from windback.asgi import WindbackMiddleware

    client = windback.Windback(flush_interval=3600)

    async def inner(scope, receive, send):
        if scope["type"] != "http":
            raise ValueError("HTTP only")
        if scope["path"] != "/health":
            client.track_event("login", "jane@example.com", {"n": 1})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    app = WindbackMiddleware(inner)
    """
    with AppServer(tmp_path, {"app.py": code}, [*UVICORN, "--lifespan", "on", "app:app"], server.url) as app:
        assert app.get("/") == 200
        said = app.end()
    assert numbers(server) == [1], said


def test_without_a_key_requests_are_answered_and_one_line_reports_it(tmp_path, server):
    with AppServer(tmp_path, {"app.py": APP}, SERVERS["uvicorn"], server.url, WINDBACK_API_KEY="") as app:
        assert app.get_all([f"/async/{n}" for n in range(5)]) == [200] * 5
        said = app.end()
    assert said.count("no client could be made") == 1


def test_a_client_that_was_closed_refuses_and_requests_are_answered(tmp_path, server):
    code = APP.replace("app = FastAPI()", "windback.get_client().close()\napp = FastAPI()")
    with AppServer(tmp_path, {"app.py": code}, SERVERS["uvicorn"], server.url) as app:
        assert app.get_all([f"/{KINDS[n % 4]}/{n}" for n in range(12)]) == [200] * 12
        app.end()
    assert numbers(server) == []


def test_a_dead_api_delays_the_shutdown_by_flush_timeout_and_reports_what_is_left(tmp_path, server):
    code = APP.replace("flush_timeout=40", "flush_timeout=0.5")
    with AppServer(tmp_path, {"app.py": code}, SERVERS["uvicorn"], server.url) as app:
        server.faults([{"latency": 600}])
        app.get("/sync/1")
        said = app.end(within_s=30)
    server.faults([])
    assert "1 event was not delivered when the application was shut down" in said
