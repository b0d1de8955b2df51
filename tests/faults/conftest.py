"""What the fault tests share: one server, scripts in processes of their own, and endpoints that misbehave."""

from __future__ import annotations

import http.server
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from contextlib import closing, suppress
from pathlib import Path
from types import ModuleType
from typing import Callable, Iterator, List, NamedTuple

import calls
import pytest

import windback
from windback.devserver import DevServer
from windback.directories import in_memory
from windback.secrets import fingerprint


@pytest.fixture
def mark() -> str:
    """What only this test has."""
    return uuid.uuid4().hex


@pytest.fixture(autouse=True)
def _no_sender_outlives_its_test(monkeypatch: pytest.MonkeyPatch, mark: str) -> Iterator[None]:
    """A sender tries for minutes to deliver what is left; its port may be a later test's server by then."""
    monkeypatch.setenv("TEST_MARK", mark)  # no name of ours: `run` takes those out
    yield
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_sender = b"windback.sender.main" in (process / "cmdline").read_bytes()
            if is_sender and mark.encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture(scope="session")
def _process() -> Iterator[DevServer]:
    with DevServer() as server:
        yield server


@pytest.fixture
def server(_process) -> Iterator[DevServer]:
    """The embedded server, empty and without faults; it must have nothing to complain about."""
    _process.reset()
    # What senders of earlier tests left undelivered, the next sender for this address adopts.
    left = in_memory(fingerprint(("sk_test_1", _process.url)))
    if left is not None:
        shutil.rmtree(left, ignore_errors=True)
    yield _process
    assert _process.log() == ""


def _url(listener: socket.socket, mark: str) -> str:
    """An address that only this test has: what it leaves is not of another test that gets its port."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}/{mark}/api/v1"


@pytest.fixture
def dead_url(mark: str) -> Iterator[str]:
    """Where every connection is refused: the port is ours, and nobody listens there."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield _url(taken, mark)


@pytest.fixture
def silent_url(mark: str) -> Iterator[str]:
    """Where every connection is taken (by the kernel) and nothing is ever read or answered."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        yield _url(listener, mark)


@pytest.fixture
def dripping_url(mark: str) -> Iterator[str]:
    """Where an answer comes one byte each 0.1 s and never ends: no single read ever takes long."""
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        with closing(connection):
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not stop.wait(0.1):
                    connection.sendall(b"x")
            except OSError:
                pass  # the other side had enough

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=drip, args=(connection,)))
            threads[-1].start()

    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        threads = [threading.Thread(target=accept, args=(listener,))]
        threads[0].start()
        yield _url(listener, mark)
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)  # wakes the accept; close alone does not
    for thread in threads:
        thread.join()


class Held:
    """A server that answers only when it is told to, and knows how many requests it holds at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._allowed = 0.0
        self.holding = 0
        self.most = 0
        self.seen = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                outer.hold()
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_) -> None:
                """Say nothing."""

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_) -> None:
                """A client that went away is no error here."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/api/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def hold(self) -> None:
        with self._changed:
            self.seen += 1
            self.holding += 1
            self.most = max(self.most, self.holding)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._allowed > 0)
            self._allowed -= 1
            self.holding -= 1

    def answer(self, count: float = float("inf")) -> None:
        """Let *count* of the requests be answered, those to come included."""
        with self._changed:
            self._allowed += count
            self._changed.notify_all()

    def wait_until_holding(self, count: int) -> None:
        """Wait until at least *count* requests wait for their answer."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.holding >= count, 15), f"{self.holding} are held"

    def wait_until_seen(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.seen == count, 15), f"{self.seen} requests came"

    def close(self) -> None:
        self.answer()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def held() -> Iterator[Held]:
    server = Held()
    yield server
    server.close()


@pytest.fixture
def eventually() -> Callable[..., None]:
    return calls.eventually


class Ended(NamedTuple):
    """How a script ended, and in how many seconds: its exit alone if it was *timed*."""

    status: int
    out: List[str]
    err: str
    took_s: float


@pytest.fixture(params=["httpx", *(["httpx2"] if sys.version_info >= (3, 10) else [])])
def httpx_package(request: pytest.FixtureRequest) -> ModuleType:
    """Each package whose clients `http_client=` takes."""
    return importlib.import_module(request.param)


#: Python 3.12 and newer warn of a fork beside threads, which applications do.
OF_FORKS = ("-W", "ignore:This process (pid:DeprecationWarning")

CLOCK = """\
import atexit, time

def clock_s():
    # Without the time for which the main thread could run and others had all cores (proc(5): schedstat).
    try:
        with open("/proc/self/schedstat") as file:
            return time.monotonic() - int(file.read().split()[1]) / 1e9
    except OSError:
        return time.monotonic()

# The first to be registered is the last to be called.
atexit.register(lambda: print(clock_s() - ended_s, flush=True))
{}
ended_s = clock_s()
"""


@pytest.fixture
def run(tmp_path) -> Callable[..., Ended]:
    """Run a script in an interpreter of its own; one that hangs shows its stacks and fails the test.

    *url* reaches it as WINDBACK_BASE_URL, beside a key. *timed*: measure how long its exit handlers take.
    Its own clock does that: what the interpreter needs to go down is not ours.
    """

    def run(
        code: str, *options: str, url: str, within_s: float = 30.0, timed: bool = False, **environment: str
    ) -> Ended:
        path = tmp_path / "script.py"
        code = textwrap.dedent(code)
        path.write_text(CLOCK.format(code) if timed else code, encoding="utf-8")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
        environment = {
            **inherited,
            # The package that this process tests, whether it is installed or not.
            "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]),
            "PYTHONFAULTHANDLER": "1",
            "WINDBACK_API_KEY": "sk_test_1",
            "WINDBACK_PROJECT_SLUG": "my-project",
            "WINDBACK_BASE_URL": url,
            **environment,
        }
        started_s = time.monotonic()
        with (tmp_path / "stderr").open("w+b") as stderr:
            process = subprocess.Popen(
                [sys.executable, *options, *OF_FORKS, str(path)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                start_new_session=True,  # a group of its own, so that children it forked end with it
            )

            def end(how: int) -> None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, how)

            hang = threading.Timer(within_s, end, (signal.SIGABRT,))
            hang.start()
            try:
                # Its children have the pipe as well: this ends when the last of them does.
                out = process.communicate()[0].decode().splitlines()
            finally:
                hang.cancel()
                hang.join()
                end(signal.SIGKILL)
                process.wait()
                process.stdout.close()
            took_s = time.monotonic() - started_s
            stderr.seek(0)
            err = stderr.read().decode(errors="replace")
        assert took_s < within_s, f"the script hung; it said:\n{err}"
        return Ended(process.returncode, out, err, float(out.pop()) if timed else took_s)

    return run
