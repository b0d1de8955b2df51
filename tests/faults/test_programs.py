"""The programs that applications run in: they fork and end in ways of their own, each event arrives once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import httpx
import pytest
from ports import free_port

import windback

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="none of these programs runs there"),
    pytest.mark.timeout(120),
]

WSGI = """\
import os
from windback import Windback

client = Windback(flush_interval=3600, shutdown_timeout=20)
client.track_event("boot", "jane@example.com", {"pid": os.getpid()})

def application(environ, start_response):
    n = int(environ["QUERY_STRING"])
    client.track_event("request", "jane@example.com", {"n": n, "pid": os.getpid()})
    flushed = client.flush(10) if environ["PATH_INFO"] == "/flush" else None
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d %s" % (os.getpid(), str(bool(flushed)).encode())]
"""

ASGI = """\
import os
from windback import AsyncWindback

client = AsyncWindback(flush_interval=3600, shutdown_timeout=20, handle_signals={handle_signals})

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and {closes}:
                await client.close()
            await send({{"type": message["type"] + ".complete"}})
            if message["type"] == "lifespan.shutdown":
                return
    n = int(scope["query_string"])
    await client.track_event("request", "jane@example.com", {{"n": n, "pid": os.getpid()}})
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"%d " % os.getpid()}})
"""


class Program:
    """A server in a process group of its own, and what it says."""

    def __init__(self, directory: Path, arguments, environment) -> None:
        self._err = (directory / "stderr").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *arguments] if arguments[0].startswith("-") else arguments,
            cwd=directory,
            env=environment,
            stdout=self._err,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def said(self) -> str:
        self._err.seek(0)
        return self._err.read().decode()

    def wait_for(self, check, within_s=30.0) -> None:
        deadline = time.monotonic() + within_s
        while not check():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def wait_until_uwsgi_sleeps(self, after) -> None:
        """A process of uWSGI skips the exit handlers while it is still at the end of a request."""
        pid = self.process.pid

        def is_asleep():
            if self.said().count(" => generated ") != after:
                return False
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
            return {state_of(each) for each in (pid, *children)} == {"S"}

        self.wait_for(is_asleep)

    def end(self, number=signal.SIGTERM, within_s=40.0) -> None:
        self.process.send_signal(number)
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not end; it said: {self.said()}")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._err.close()


def state_of(pid):
    """Return the letter of what a process does, as proc(5) has it."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


@pytest.fixture
def start(server, tmp_path):
    """Start a program that finds *code* as the module `app`, and the embedded server."""
    with contextlib.ExitStack() as stack:

        def start(code, *arguments, **environment):
            (tmp_path / "app.py").write_text(textwrap.dedent(code), encoding="utf-8")
            inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WINDBACK_", "COV_"))}
            package = str(Path(windback.__file__).resolve().parents[1])
            program = Program(
                tmp_path,
                arguments,
                {
                    **inherited,
                    "PYTHONPATH": os.pathsep.join((package, str(tmp_path))),
                    "WINDBACK_API_KEY": "sk_test_1",
                    "WINDBACK_PROJECT_SLUG": "my-project",
                    "WINDBACK_BASE_URL": server.url,
                    **environment,
                },
            )
            stack.callback(program.close)
            return program

        yield start


def answers(port):
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(port, count, path="/", start=0):
    """Make requests, each on a connection of its own so that all workers get some; return the pids."""
    pids = set()
    for n in range(start, start + count):
        answer = httpx.get(f"http://127.0.0.1:{port}{path}?{n}", trust_env=False, timeout=20)
        assert answer.status_code == 200
        pids.add(int(answer.text.split()[0]))
    return pids


def requests(server):
    return sorted(stored.properties["n"] for stored in server.events() if stored.event == "request")


def boots(server):
    return [stored.properties["pid"] for stored in server.events() if stored.event == "boot"]


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_gunicorn_with_preload(server, start, kind):
    port = free_port()
    program = start(
        WSGI,
        *("-m", "gunicorn", "--preload", "--workers=4", f"--worker-class={kind}", "--threads=2"),
        *(f"--bind=127.0.0.1:{port}", "app:application"),
    )
    program.wait_for(lambda: answers(port))
    pids = ask(port, 60)
    assert program.process.pid not in pids
    program.end()
    assert requests(server) == list(range(60)), program.said()
    assert boots(server) == [program.process.pid]
    assert "windback" not in program.said()


def test_gunicorn_without_preload(server, start):
    port = free_port()
    program = start(WSGI, "-m", "gunicorn", "--workers=2", f"--bind=127.0.0.1:{port}", "app:application")
    program.wait_for(lambda: answers(port))
    ask(port, 20)
    program.end()
    assert requests(server) == list(range(20)), program.said()
    assert len(boots(server)) == 2


#: uvicorn ends by the signal that it got, so without exit handlers.
ENDS = {
    "closes in its lifespan": {"closes": True, "handle_signals": False},
    "handles signals": {"closes": False, "handle_signals": True},
}


# Not with preload and signals: gunicorn's workers install handlers of their own over the master's.
@pytest.mark.parametrize(
    ("preload", "how"),
    [
        ((), "closes in its lifespan"),
        ((), "handles signals"),
        (("--preload",), "closes in its lifespan"),
    ],
    ids=["lifespan", "signals", "preload-lifespan"],
)
def test_gunicorn_with_uvicorn_workers(server, start, preload, how):
    port = free_port()
    program = start(
        ASGI.format(**ENDS[how]),
        *("-m", "gunicorn", *preload, "--workers=2", "--worker-class=uvicorn.workers.UvicornWorker"),
        *(f"--bind=127.0.0.1:{port}", "app:application"),
    )
    program.wait_for(lambda: answers(port))
    ask(port, 40)
    program.end()
    assert requests(server) == list(range(40)), program.said()


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_uvicorn(server, start, end):
    port = free_port()
    program = start(ASGI.format(**end), "-m", "uvicorn", f"--port={port}", "app:application")
    program.wait_for(lambda: answers(port))
    ask(port, 40)
    program.end()
    assert requests(server) == list(range(40)), program.said()


def uwsgi(port, *options):
    program = f"{Path(sys.executable).parent}/uwsgi"
    return (
        program,
        f"--http-socket=127.0.0.1:{port}",
        "--need-app",
        "--die-on-term",
        "--module=app",
        *options,
    )


# With the first of them uWSGI 2.0.30 aborts on Python 3.13, whatever it runs: unbit/uwsgi#2710.
HOOKS = ("--py-call-osafterfork",) if sys.version_info < (3, 13) else ("--py-call-uwsgi-fork-hooks",)


@pytest.mark.parametrize("hooks", [(), HOOKS], ids=["", "hooks"])
@pytest.mark.parametrize("lazy", [(), ("--lazy-apps",)], ids=["", "lazy"])
def test_uwsgi_with_threads(server, start, hooks, lazy):
    """It forks in C, and runs no fork hook of Python's, or half of them."""
    port = free_port()
    code = WSGI if lazy else WSGI + "assert client.flush(10)\n"  # see the next test
    program = start(code, *uwsgi(port, "--master", "--processes=3", "--enable-threads", *hooks, *lazy))
    program.wait_for(lambda: answers(port))
    ask(port, 60)
    program.wait_until_uwsgi_sleeps(after=60)
    program.end()
    assert requests(server) == list(range(60)), program.said()
    assert len(boots(server)) == (3 if lazy else 1)
    assert ("this is uWSGI's master" in program.said()) == (not lazy)
    assert "delivery" not in program.said()


def test_uwsgis_master_starts_no_thread_and_reports_it(server, start):
    """It forks at any moment, without the interpreter's lock, and runs no exit handlers."""
    port = free_port()
    code = WSGI + "import threading\nassert client.stats().workers == 0\n"
    program = start(code, *uwsgi(port, "--master", "--processes=2", "--enable-threads"))
    program.wait_for(lambda: answers(port))
    ask(port, 10)
    program.wait_until_uwsgi_sleeps(after=10)
    program.end()
    assert requests(server) == list(range(10)), program.said()
    assert program.said().count("this is uWSGI's master, where no thread may run") == 1
    assert boots(server) == []


def test_uwsgi_without_a_master(server, start):
    port = free_port()
    program = start(WSGI, *uwsgi(port, "--enable-threads"))
    program.wait_for(lambda: answers(port))
    ask(port, 10)
    program.wait_until_uwsgi_sleeps(after=10)
    program.end()
    assert requests(server) == list(range(10)), program.said()
    assert len(boots(server)) == 1


@pytest.mark.parametrize("master", [("--master", "--processes=2"), ()], ids=["master", ""])
def test_uwsgi_without_threads(server, start, master):
    port = free_port()
    program = start(WSGI, *uwsgi(port, *master))
    program.wait_for(lambda: answers(port))
    ask(port, 20)
    ask(port, 5, "/flush", start=20)
    program.wait_until_uwsgi_sleeps(after=25)
    program.end()
    assert requests(server) == list(range(25)), program.said()
    assert "uWSGI runs without --enable-threads" in program.said()


CELERY = """\
import os
from celery import Celery
from windback import Windback

client = Windback(flush_interval=3600, shutdown_timeout=20)
folder = os.path.join(os.getcwd(), "broker")
os.makedirs(folder, exist_ok=True)
app = Celery("app", broker="filesystem://")
app.conf.update(
    broker_transport_options={"data_folder_in": folder, "data_folder_out": folder, "polling_interval": 0.02},
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)

@app.task
def track(n):
    client.track_event("request", "jane@example.com", {"n": n, "pid": os.getpid()})
    open(os.path.join(os.getcwd(), "done-%d" % n), "w").close()
"""


MAKE = "client = Windback(flush_interval=3600, shutdown_timeout=20)\n"
#: The parent has none, so no hook of ours is there when it forks.
MADE_IN_THE_CHILD = (
    CELERY.replace(MAKE, "client = None\n")
    + """
@app.task
def track_late(n):
    global client
    client = client or Windback(flush_interval=3600, shutdown_timeout=20)
    track(n)
"""
)


@pytest.mark.parametrize(
    ("pool", "made"),
    [
        ("prefork", "before the fork"),
        ("prefork", "in the child"),
        ("threads", "at once"),
        ("gevent", "at once"),
        ("solo", "at once"),
    ],
)
def test_celery(server, start, tmp_path, pool, made):
    code, task = (MADE_IN_THE_CHILD, "track_late") if made == "in the child" else (CELERY, "track")
    options = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=warning")
    command = ("-m", "celery", "-A", "app", "worker", f"--pool={pool}", "--concurrency=2", *options)
    (tmp_path / "app.py").write_text(textwrap.dedent(code), encoding="utf-8")
    send = f"import app\nfor n in range(30): app.{task}.delay(n)"
    environment = {
        **os.environ,
        "WINDBACK_API_KEY": "sk_test_1",
        "PYTHONPATH": str(Path(windback.__file__).parents[1]),
    }
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", send], cwd=tmp_path, env=environment, check=True, timeout=60
    )
    # Only now: this transport of Celery's also reads what is not written to its end.
    program = start(code, *command, C_FORCE_ROOT="1")
    program.wait_for(lambda: len(list(tmp_path.glob("done-*"))) == 30, 60)
    program.end()
    assert requests(server) == list(range(30)), program.said()
    assert "not delivered" not in program.said()
