"""`windback doctor --app module:app`: how many of an application's events survive a SIGTERM?

The application runs in the server that people use for it, unchanged, and sends to a local server. One request
shows which events a request tracks. Then several requests are made, and SIGTERM follows immediately: their
events still wait in the application. What arrives is compared with what the requests tracked.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from importlib.util import find_spec
from typing import IO, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import orjson

from windback.devserver.process import DevServer, DevServerError

from .. import clock
from .checks import OK, PROBLEM, WARNING, Check
from .common import CommandError
from .terminal import printable

#: Requests whose events wait when SIGTERM comes.
_REQUESTS = 10
#: No more than the smallest backlog of a server.
_AT_ONCE = 4
#: Seconds: a server may take this long to start, and to end.
_START_S, _END_S = 60.0, 30.0
#: Seconds without a new event after which a request's events are all there: two flush_intervals.
_QUIET_S = 2.0
#: Seconds that events may come after the server's end: a sender process outlives it.
_LATER_S = 5.0

#: Imports the application. This and the next two run in processes of their own.
_IMPORT = """\
import sys
sys.path.insert(0, "")
from importlib import import_module
module, _, name = sys.argv[1].partition(":")
app = import_module(module)
for part in name.split("."):
    app = getattr(app, part)
"""
#: Prints what kind of application it is, as the last line.
_LOOK = f"""\
{_IMPORT}
import inspect, json
call = app if inspect.isroutine(app) else type(app).__call__
is_async = inspect.iscoroutinefunction(call) or len(inspect.signature(app).parameters) == 3
roots = [each.__module__.partition(".")[0] for each in type(app).__mro__]
known = [each for each in roots if each in ("fastapi", "starlette", "flask", "django")]
print("\\n" + json.dumps(dict(kind="ASGI" if is_async else "WSGI", framework=known[0] if known else "")))
"""
#: Serves it.
_WSGIREF = f"""\
{_IMPORT}
from wsgiref.simple_server import make_server
make_server("127.0.0.1", int(sys.argv[2]), app).serve_forever()
"""

_ADVICE = {
    "django": 'INSTALLED_APPS += ["windback.django"] in the settings delivers at the end; '
    "see docs/integrations/django.md",
    "flask": "wb = windback.flask.FlaskWindback(app) delivers at the end; see docs/integrations/flask.md",
    "ASGI": "app.add_middleware(windback.asgi.WindbackMiddleware) delivers at the end; an ASGI server ends "
    "without Python's exit handlers",
    "WSGI": "windback.set_client(Windback(handle_signals=True)), or that option for the client of the "
    "application, delivers at SIGTERM",
}


#: Path, headers, and the seconds that the answer may take.
_Request = Tuple[str, Dict[str, str], float]


class Kind(NamedTuple):
    """What an application is. framework: "" for one that is not known."""

    kind: str
    framework: str

    @property
    def advice(self) -> str:
        """What to change if events are lost."""
        return _ADVICE.get(self.framework, _ADVICE[self.kind])


def check_app(app: str, path: str, headers: Sequence[str], timeout_s: float) -> Iterator[Check]:
    """Run the application and yield the result of each step.

    Raises CommandError if the command line makes no sense, and if there can be no local server.
    """
    module, _, name = app.partition(":")
    if not module or not name or "(" in app:
        raise CommandError(f"--app is MODULE:NAME of an application, such as main:app, not {app}")
    if not path.startswith("/"):
        raise CommandError(f"--path begins with a slash, and is {path}")
    parsed = dict(_header(each) for each in headers)
    if os.name == "nt":
        raise CommandError("--app needs SIGTERM, which Windows does not have")
    try:
        with DevServer(strict=False) as server:
            environment = _environment(server)
            kind, check = _look_at(app, environment)
            yield check
            if kind is not None:
                command, server_name = _command(app, kind)
                with _Running(command, environment) as running:
                    yield from _try(running, server, kind, server_name, (path, parsed, timeout_s))
    except DevServerError as error:
        raise CommandError(str(error), status=1) from None


def _header(text: str) -> Tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise CommandError(f"--header is NAME: VALUE, and is {text}")
    return name.strip(), value.strip()


def _environment(server: DevServer) -> Dict[str, str]:
    """Return that of the application. What it has of its own to deliver stays out of this."""
    environment = {**os.environ, "WINDBACK_BASE_URL": server.url, "WINDBACK_API_KEY": "sk_doctor"}
    environment.setdefault("WINDBACK_PROJECT_SLUG", "my-project")
    for name in ("WINDBACK_ENABLED", "WINDBACK_JOURNAL", "WINDBACK_BROKER"):
        environment.pop(name, None)
    return environment


def _look_at(app: str, environment: Mapping[str, str]) -> Tuple[Optional[Kind], Check]:
    ended = subprocess.run(  # noqa: S603 - the purpose of this command
        [sys.executable, "-c", _LOOK, app], env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        return None, Check("application", PROBLEM, f"{app} can't be imported: {lines[-1]}")
    kind = Kind(**orjson.loads(ended.stdout.splitlines()[-1]))
    article = "an" if kind.kind == "ASGI" else "a"
    framework = f" of {kind.framework}" if kind.framework else ""
    return kind, Check("application", OK, f"{app} is {article} {kind.kind} application{framework}")


def _command(app: str, kind: Kind) -> Tuple[List[str], str]:
    """Return how to start the application, with "{port}", and the name of the server."""
    python = [sys.executable, "-m"]
    if kind.kind == "ASGI":
        return [*python, "uvicorn", "--port", "{port}", app], "uvicorn"
    if find_spec("gunicorn") is not None:
        return [*python, "gunicorn", "--bind", "127.0.0.1:{port}", app], "gunicorn"
    if kind.framework == "flask":
        return [*python, "flask", "--app", app, "run", "--port", "{port}"], "flask run"
    return [sys.executable, "-c", _WSGIREF, app, "{port}"], "wsgiref"


class _Running:
    """The application in its server, in a process group of its own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        with closing(socket.socket()) as taken:
            taken.bind(("127.0.0.1", 0))
            self.port: int = taken.getsockname()[1]
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end
        self._process = subprocess.Popen(  # noqa: S603 - the purpose of this command
            [each.replace("{port}", str(self.port)) for each in command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_until_up(self, request: _Request) -> bool:
        """Return whether it answers the first request."""
        deadline_s = clock.now_s() + _START_S
        while not self._has_failed and clock.now_s() < deadline_s:
            if isinstance(self.get(*request), int):
                return True
            clock.sleep(0.05)
        return False

    @property
    def _has_failed(self) -> bool:
        # gunicorn replaces a worker that fails at its start for ever, and logs these words.
        return self._process.poll() is not None or "exited with code" in self.output()

    def get(self, path: str, headers: Mapping[str, str], timeout_s: float) -> object:
        """Return the status of a request, or why there is none."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)) as connection:
            try:
                connection.request("GET", path, headers=headers)
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                return f"no answer ({error!r})"
            return response.status

    def terminate(self) -> bool:
        """Send SIGTERM, and return whether it ended in time."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def output(self) -> str:
        """Return what it printed."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()


def _try(
    running: _Running, server: DevServer, kind: Kind, server_name: str, request: _Request
) -> Iterator[Check]:
    path, _, timeout_s = request
    started_s = clock.now_s()
    if not running.wait_until_up(request):
        sys.stderr.write("".join(f"{printable(line)}\n" for line in running.output().splitlines()))
        yield Check("server", PROBLEM, f"{server_name} did not start; standard error has what it printed")
        return
    yield Check("server", OK, f"{server_name} answers", clock.now_s() - started_s)
    _settle(server, timeout_s)  # what it tracks at its start, and at the first request
    before = server.count()
    status = running.get(*request)
    is_fine = isinstance(status, int) and status < 400
    yield Check("request", OK if is_fine else WARNING, f"GET {path}: {status}")
    _settle(server, timeout_s)
    names = Counter(each.event for each in server.events()[before:])
    if not names:
        yield Check(
            "events",
            PROBLEM,
            "none arrived: name a path that tracks one by --path, and a header that its customer comes from "
            "by --header; a base_url that is set in the code sends elsewhere",
        )
        return
    yield Check("events", OK, f"of one request: {', '.join(f'{n} {name}' for name, n in names.items())}")
    yield _survivors(running, server, kind, request, sum(names.values()))


def _survivors(running: _Running, server: DevServer, kind: Kind, request: _Request, each: int) -> Check:
    before, wanted = server.count(), _REQUESTS * each
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda _: running.get(*request), range(_REQUESTS)))
    started_s = clock.now_s()
    has_ended = running.terminate()
    took_s = clock.now_s() - started_s
    deadline_s = clock.now_s() + _LATER_S
    while server.count() - before < wanted and clock.now_s() < deadline_s:
        clock.sleep(0.05)
    found = min(server.count() - before, wanted)
    text = f"{found} of {wanted} events survived"
    if not has_ended:
        text += f"; the application did not end within {_END_S:g} s: what still waited then is lost"
    elif found < wanted:
        text += f"; {kind.advice}"
    return Check("SIGTERM", OK if has_ended and found == wanted else PROBLEM, text, took_s)


def _settle(server: DevServer, first_s: float) -> None:
    """Wait until no event came for a while. first_s: seconds that the first one may take."""
    count = server.count()
    deadline_s = clock.now_s() + max(first_s, _QUIET_S)
    while clock.now_s() < deadline_s:
        clock.sleep(0.05)
        if server.count() != count:
            count, deadline_s = server.count(), clock.now_s() + _QUIET_S
