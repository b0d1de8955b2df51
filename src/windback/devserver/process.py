"""`DevServer`: the server as a child process, for tests, demos and benchmarks.

A process and not a thread, so that it has an interpreter lock of its own and can be killed. The child holds
the read end of a pipe as its standard input and stops when that ends; the kernel closes the parent's end
however the parent ends, so no server is left behind. (A process that the parent forked before that has a copy
of that end: then the server stops when the last of them is gone.)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Dict, List, Mapping, Optional, Sequence, Type, Union, cast
from urllib.parse import quote, urlencode

from .. import isolation
from .options import (
    BASE_PATH,
    CONTROL_PATH,
    DEFAULT_GENERATE_S,
    DEFAULT_MAX_BODY_BYTES,
    DEFAULT_WEBHOOK_DELAYS_S,
    DEFAULT_WEBHOOK_SECRET,
    READY,
)
from .records import (
    ConfiguredOffer,
    Counts,
    FaultRule,
    RateLimit,
    RequestRecord,
    StoredEvent,
    WebhookAttempt,
    WebhookDelivery,
)

__all__ = [
    "ConfiguredOffer",
    "Counts",
    "DevServer",
    "DevServerError",
    "FaultRule",
    "RateLimit",
    "RequestRecord",
    "StoredEvent",
    "WebhookAttempt",
    "WebhookDelivery",
]


#: Seconds a child may take to start, and to stop before it is killed.
START_S, STOP_S = 30.0, 5.0

#: Seconds a control call may take.
CALL_S = 30.0

_PAGE = 5_000


class DevServerError(Exception):
    """The server did not start, is not running, or refused a control call."""


_BOOT = """\
import json, sys
sys.path += [folder for folder in json.loads(sys.argv.pop(1)) if folder not in sys.path]
from windback.devserver.main import main
sys.exit(main())
"""
#: What the server imports that is not of the standard library.
_NEEDED = (
    *(
        "anyio",
        "click",
        "exceptiongroup",
        "h11",
        "idna",
        "orjson",
        "sniffio",
        "starlette",
        "typing_extensions",
    ),
    "uvicorn",
)


def server_command(arguments: Sequence[str]) -> List[str]:
    """Return the command that runs the server in a process of its own, where no file of the caller's runs.

    Raises DevServerError where there is no such thing: a frozen program would start a copy of itself, and
    the server reads its page from a folder.
    """
    if getattr(sys, "frozen", False) or "__compiled__" in globals():
        raise DevServerError(
            "this program is frozen, so there is no Python to run the local server with; run `windback dev` "
            "where windback is installed, and give its address to the client as base_url"
        )
    root = Path(__file__).resolve().parents[2]
    if not root.is_dir():
        raise DevServerError(
            f"the local server runs from a folder, and this package is in an archive ({root}): "
            "pip install 'windback[dev-server]', which unpacks it"
        )
    return [*isolation.command(sys.executable, _BOOT), json.dumps(isolation.path(_NEEDED)), *arguments]


class DevServer:
    """A Windback server on this machine, in a process of its own.

    Use it in a `with` statement, or call `start` and `stop`. After `stop` or `kill`, `start` takes the same
    port again, so an outage can be played. Several threads may make control calls at the same time; only one
    may start or stop the server.

    *port*: 0 takes a free one. *db*: a SQLite file that outlives the server; None keeps all in memory.
    *keys*: the only API keys that are taken; none: any that starts with ``sk_`` or ``pub_``.
    *expired_keys*: those of an account whose subscription has expired: 402, and 202 from the cancel flow.
    *rate_limits*: True answers 429 above the documented limits.
    *max_body_bytes*: 413 above. *gzip*: ``"accept"``, or ``"415"`` or ``"400"``, the status that refuses
    compressed bodies. *generate_s*: seconds that generating variants takes. *email*: False answers the
    sending of a variant with 500, as the API does where no email service is configured.
    *webhook_url*: where `send_alert` sends; *webhook_secret*: what it signs with; *webhook_delays*: seconds
    before each retry.
    *strict*: a batch with an event that the API would drop is answered with 400, so that a test fails; False
    takes it, as the API does and ``windback dev`` without ``--strict``, and shows it as ignored.
    *keep_events*, *keep_bytes*: evict the oldest events above this; None keeps all.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        db: Union[str, Path, None] = None,
        keys: Sequence[str] = (),
        expired_keys: Sequence[str] = (),
        rate_limits: bool = False,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        gzip: str = "accept",
        generate_s: float = DEFAULT_GENERATE_S,
        email: bool = True,
        webhook_url: Optional[str] = None,
        webhook_secret: str = DEFAULT_WEBHOOK_SECRET,
        webhook_delays: Sequence[float] = DEFAULT_WEBHOOK_DELAYS_S,
        strict: bool = True,
        keep_events: Optional[int] = None,
        keep_bytes: Optional[int] = None,
    ) -> None:
        #: The port that was asked for; once started, the one that was taken.
        self.port = port
        self._arguments = ["--max-body-bytes", str(max_body_bytes), "--gzip", gzip]
        self._arguments += ["--generate-seconds", str(generate_s), *([] if email else ["--no-email"])]
        if webhook_url is not None:
            self._arguments += ["--webhook-url", webhook_url]
        # After an "=", since it may start with a dash.
        self._arguments.append(f"--webhook-secret={webhook_secret}")
        self._arguments.append("--webhook-delays=" + ",".join(map(str, webhook_delays)))
        self._arguments += ["--keep-events", str(keep_events or 0), "--keep-bytes", str(keep_bytes or 0)]
        if strict:
            self._arguments.append("--strict")
        if db is not None:
            self._arguments += ["--db", str(Path(db).resolve())]
        for key in keys:
            self._arguments += ["--key", key]
        for key in expired_keys:
            self._arguments += ["--expired-key", key]
        if rate_limits:
            self._arguments.append("--rate-limits")
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._stderr: Optional[IO[bytes]] = None
        self._log = ""

    # Life

    def start(self) -> None:
        """Start the child and wait until it listens.

        Raises `DevServerError` with the child's output if it does not within 30 s.
        """
        if self._process is not None:
            raise DevServerError("the server is running already")
        self._log = ""
        command = server_command(
            ["--quiet", "--until-stdin-closes", "--port", str(self.port), *self._arguments]
        )
        # Appending, so that the child always writes at the end while this side reads from the start.
        self._stderr = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - closed when the child has ended
        process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        self._process = process
        output = cast("IO[bytes]", process.stdout)
        watchdog = threading.Timer(START_S, process.kill)
        watchdog.start()
        try:
            line = output.readline().decode().strip()
        except BaseException:
            self.kill()
            raise
        finally:
            watchdog.cancel()
        if not line.startswith(READY):
            self.kill()
            raise DevServerError(f"the server did not start: {self.log().strip() or 'it said nothing'}")
        self.port = int(line.rpartition(":")[2].partition("/")[0])

    def stop(self) -> None:
        """End the server in good order; killed after 5 s. Does nothing when it is not running."""
        process = self._process
        if process is None:
            return
        cast("IO[bytes]", process.stdin).close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """End the server immediately, as `kill -9` does. Does nothing if it is not running."""
        process = self._process
        if process is None:
            return
        self._process = None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        self._log = self.log()
        cast("IO[bytes]", self._stderr).close()
        self._stderr = None

    def __enter__(self) -> DevServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Base URL for a client, such as ``http://127.0.0.1:41234/api/v1``."""
        return f"http://127.0.0.1:{self.port}{BASE_PATH}"

    @property
    def pid(self) -> int:
        """Process id of the running server; raises `DevServerError` when there is none."""
        if self._process is None:
            raise DevServerError("the server is not running")
        return self._process.pid

    def log(self) -> str:
        """What the current or the last child wrote to standard error.

        Warnings and tracebacks, normally nothing.
        """
        if self._stderr is None:
            return self._log
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    # Control calls: each raises `DevServerError` when the server cannot be reached or refuses. *key* narrows
    # one to the inbox of an API key, *query* to what a search finds (docs/dev-server.md has the language).

    def counts(self, *, key: Optional[str] = None) -> Counts:
        """What the server has counted so far; of one inbox, what has no inbox counts as 0."""
        answer = self._call("GET", "/counts" + _query(key=key))
        by_status = cast("Mapping[str, int]", answer.pop("by_status"))
        forgotten = cast("Mapping[str, int]", answer.pop("forgotten", {}))
        numbers = {name: cast("int", count or 0) for name, count in answer.items()}
        by_number = {int(status): count for status, count in by_status.items()}
        return Counts(by_status=by_number, forgotten=forgotten, **numbers)

    def distinct_events(self) -> int:
        """How many stored events differ in at least one field that the client sent."""
        return cast("int", self._call("GET", "/distinct")["distinct_events"])

    def events(self, query: str = "", *, key: Optional[str] = None) -> List[StoredEvent]:
        """All events that are kept, in the order of arrival."""
        events: List[StoredEvent] = []
        while True:
            last = events[-1].id if events else 0
            answer = self._call("GET", "/events" + _query(q=query, key=key, limit=_PAGE, after=last))
            page = _events(answer["data"])
            events += page
            if len(page) < _PAGE:
                return events

    def count(self, query: str = "", *, key: Optional[str] = None) -> int:
        """How many events there are; also those that were evicted, where the query asks for names only."""
        return cast("int", self._call("GET", "/count" + _query(q=query, key=key))["count"])

    def mark(self) -> int:
        """A cursor behind all events so far, for `wait`."""
        return cast("int", self._call("POST", "/mark")["cursor"])

    def wait(
        self,
        event: Optional[str] = None,
        *,
        count: int = 1,
        query: str = "",
        since: int = 0,
        timeout: float = 5.0,
        quiet: Optional[float] = None,
        key: Optional[str] = None,
    ) -> List[StoredEvent]:
        """Wait until *count* events have come, and return them in the order of arrival.

        *event*: their name. *since*: only events after this `mark`; 0: all kept events. *quiet*: seconds
        in which no more than *count* may come, so ``count=0, quiet=1`` makes sure that nothing does.

        Raises `DevServerError` after *timeout* seconds, with what nearly matched, and when too many come.
        """
        asked = _query(
            event=event, q=query, key=key, count=count, since=since, timeout=timeout, **{"for": quiet}
        )
        patience_s = CALL_S + timeout + (quiet or 0.0)
        return _events(self._call("GET", "/wait" + asked, timeout_s=patience_s)["data"])

    def clear(self, query: str = "", *, key: Optional[str] = None) -> int:
        """Forget the events of one inbox, or those that a search finds; how many that were.

        One of the two must be given; ``query="*"`` is all.
        """
        return cast("int", self._call("DELETE", "/events" + _query(q=query, key=key))["deleted"])

    def requests(
        self, limit: int = 1_000, *, query: str = "", key: Optional[str] = None
    ) -> List[RequestRecord]:
        """The last *limit* requests to the API (at most 10,000), oldest first."""
        answer = self._call("GET", "/requests" + _query(limit=limit, q=query, key=key))
        page = cast("List[Dict[str, object]]", answer["data"])
        return [RequestRecord(**fields) for fields in page]  # type: ignore[arg-type]  # JSON of our own server

    def faults(self, rules: Sequence[FaultRule], *, key: Optional[str] = None) -> None:
        """Put these fault rules in force in place of all earlier ones; with *key*, those of this inbox."""
        self._call("PUT", "/faults" + _query(key=key), list(rules))

    def clear_faults(self, *, key: Optional[str] = None) -> None:
        """No faults from now on, and what they delay goes on."""
        self._call("DELETE", "/faults" + _query(key=key))

    def mark_lost(self, event_id: str) -> None:
        """End a churn event as `lost`, which no request of the API does."""
        self._call("POST", f"/churn-events/{quote(event_id, safe='')}/lost")

    def offers(self, offers: Sequence[ConfiguredOffer]) -> None:
        """Configure these offers of the cancel flow in place of all earlier ones; at first there are none."""
        self._call("PUT", "/offers", list(offers))

    def send_alert(
        self,
        customer_email: str,
        risk_score: int,
        *,
        risk_level: Optional[str] = None,
        signals: Sequence[Mapping[str, object]] = (),
    ) -> WebhookDelivery:
        """Send a `churn_risk.alert` to the webhook's address, signed, in the background.

        *risk_score*: 0 to 100. *risk_level*: by the score, if None. *signals*: such as
        ``{"name": "logins_down", "weight": 0.6}``.
        """
        body = {"customer_email": customer_email, "risk_score": risk_score, "signals": list(signals)}
        return _delivery(
            cast(
                "Dict[str, object]",
                self._call("POST", "/webhooks", {**body, "risk_level": risk_level})["data"],
            )
        )

    def resend_alert(self, alert_id: str) -> WebhookDelivery:
        """Send an alert again, byte for byte: the `id` of one that was delivered, or failed."""
        found = self._call("POST", f"/webhooks/{alert_id}/resend", {})["data"]
        return _delivery(cast("Dict[str, object]", found))

    def webhooks(self) -> List[WebhookDelivery]:
        """All webhooks and what became of them, oldest first."""
        return [
            _delivery(each)
            for each in cast("List[Dict[str, object]]", self._call("GET", "/webhooks")["data"])
        ]

    def reset(self) -> None:
        """Forget all that was stored and counted, and all faults."""
        self._call("POST", "/reset")

    def _call(
        self, method: str, path: str, value: object = None, *, timeout_s: float = CALL_S
    ) -> Dict[str, object]:
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            body = None if value is None else json.dumps(value)
            connection.request(method, CONTROL_PATH + path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            status, raw = response.status, response.read()
        except (OSError, HTTPException) as error:
            raise DevServerError(f"the server cannot be reached: {error}") from error
        finally:
            connection.close()
        answer: Dict[str, object] = json.loads(raw) if raw else {}
        if status >= 400:
            raise DevServerError(str(answer.get("error", status)))
        return answer


def _query(**fields: object) -> str:
    """A query string of the fields that are not None."""
    given = {name: value for name, value in fields.items() if value is not None and value != ""}
    return "?" + urlencode(given) if given else ""


def _events(listed: object) -> List[StoredEvent]:
    docs = cast("List[Dict[str, object]]", listed)
    return [
        StoredEvent(**{**fields, "problems": tuple(cast("List[object]", fields["problems"]))})  # type: ignore[arg-type]  # JSON of our own server
        for fields in docs
    ]


def _delivery(fields: Dict[str, object]) -> WebhookDelivery:
    attempts = cast("List[Dict[str, object]]", fields.pop("attempts"))
    tries = tuple(WebhookAttempt(**each) for each in attempts)  # type: ignore[arg-type]  # JSON of our own server
    return WebhookDelivery(attempts=tries, **fields)  # type: ignore[arg-type]  # the same
