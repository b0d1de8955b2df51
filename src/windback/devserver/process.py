"""`DevServer`: the server as a child process, for tests, demos and benchmarks.

A process and not a thread, so that it has an interpreter lock of its own and can be killed. The child holds
the read end of a pipe as its standard input and stops when that ends; the kernel closes the parent's end
however the parent dies, so no server is left behind. (A process that the parent forked meanwhile holds a copy
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
from typing import IO, TYPE_CHECKING, Dict, List, Mapping, Optional, Sequence, Type, Union, cast
from urllib.parse import quote

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

if TYPE_CHECKING:
    from typing_extensions import Self  # for Python before 3.11; type checkers bring it

#: Seconds a child may take to start, and to stop before it is killed.
START_S, STOP_S = 30.0, 5.0

#: Seconds a control call may take.
CALL_S = 30.0

_PAGE = 5_000


class DevServerError(Exception):
    """The server did not start, is not running, or refused a control call."""


class DevServer:
    """A Windback server on this machine, in a process of its own.

    Use it in a `with` statement, or call `start` and `stop`. After `stop` or `kill`, `start` takes the same
    port again, so an outage can be played. Several threads may make control calls at once; only one may start
    or stop the server.

    *port*: 0 takes a free one. *db*: a SQLite file that outlives the server; None keeps all in memory.
    *keys*: the only API keys that are taken; none: any that starts with ``sk_`` or ``pub_``.
    *expired_keys*: those of an account whose subscription has expired: 402, and 202 from the cancel flow.
    *rate_limits*: True answers 429 above the documented limits.
    *max_body_bytes*: 413 above. *gzip*: ``"accept"``, or ``"415"`` or ``"400"``, the status that refuses
    compressed bodies. *generate_s*: seconds that generating variants takes. *email*: False answers the
    sending of a variant with 500, as the API does where no email service is configured.
    *webhook_url*: where `send_alert` sends; *webhook_secret*: what it signs with; *webhook_delays*: seconds
    before each retry.
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

        Raises `DevServerError` with what the child said when it does not within 30 s.
        """
        if self._process is not None:
            raise DevServerError("the server is running already")
        self._log = ""
        # Appending, so that the child always writes at the end while this side reads from the start.
        self._stderr = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - closed when the child has ended
        process = subprocess.Popen(  # noqa: S603 - our own module
            [
                *(sys.executable, "-m", "windback.devserver", "--quiet", "--until-stdin-closes"),
                *("--port", str(self.port), *self._arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            # `-m` looks in the working directory first: there the child finds the code that this process has
            # loaded, and not some file of the caller that has the name of a module.
            cwd=Path(__file__).resolve().parents[2],
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
        """End the server at once, as `kill -9` does. Does nothing when it is not running."""
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

    def __enter__(self) -> Self:
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

    # Control calls: each raises `DevServerError` when the server cannot be reached or refuses.

    def counts(self) -> Counts:
        """What the server has counted so far."""
        answer = self._call("GET", "/counts")
        by_status = cast("Mapping[str, int]", answer.pop("by_status"))
        numbers = cast("Mapping[str, int]", answer)
        return Counts(by_status={int(status): count for status, count in by_status.items()}, **numbers)

    def distinct_events(self) -> int:
        """How many stored events differ in at least one field that the client sent."""
        return cast("int", self._call("GET", "/distinct")["distinct_events"])

    def events(self) -> List[StoredEvent]:
        """All stored events in the order of arrival."""
        events: List[StoredEvent] = []
        while True:
            answer = self._call("GET", f"/events?limit={_PAGE}&offset={len(events)}")
            page = cast("List[Dict[str, object]]", answer["data"])
            events += [StoredEvent(**fields) for fields in page]  # type: ignore[arg-type]  # JSON of our own server
            if len(page) < _PAGE:
                return events

    def requests(self, limit: int = 1_000) -> List[RequestRecord]:
        """The last *limit* requests to the API (at most 10,000), oldest first."""
        page = cast("List[Dict[str, object]]", self._call("GET", f"/requests?limit={limit}")["data"])
        return [RequestRecord(**fields) for fields in page]  # type: ignore[arg-type]  # JSON of our own server

    def faults(self, rules: Sequence[FaultRule]) -> None:
        """Put these fault rules in force in place of all earlier ones."""
        self._call("PUT", "/faults", list(rules))

    def clear_faults(self) -> None:
        """No faults from now on."""
        self._call("DELETE", "/faults")

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

    def webhooks(self) -> List[WebhookDelivery]:
        """All webhooks and what became of them, oldest first."""
        return [
            _delivery(each)
            for each in cast("List[Dict[str, object]]", self._call("GET", "/webhooks")["data"])
        ]

    def reset(self) -> None:
        """Forget all that was stored and counted, and all faults."""
        self._call("POST", "/reset")

    def _call(self, method: str, path: str, value: object = None) -> Dict[str, object]:
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection("127.0.0.1", self.port, timeout=CALL_S)
        try:
            body = None if value is None else json.dumps(value)
            connection.request(method, CONTROL_PATH + path, body)
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


def _delivery(fields: Dict[str, object]) -> WebhookDelivery:
    attempts = cast("List[Dict[str, object]]", fields.pop("attempts"))
    tries = tuple(WebhookAttempt(**each) for each in attempts)  # type: ignore[arg-type]  # JSON of our own server
    return WebhookDelivery(attempts=tries, **fields)  # type: ignore[arg-type]  # the same
