"""`windback doctor`: why do no events arrive? Checks each step on the way, and reports it in plain words."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Dict, Iterator, List, Optional, Tuple, cast
from urllib.parse import urlsplit

import typer

from windback.base_url import DEFAULT_BASE_URL, WINDBACK, is_loopback
from windback.config import OPTIONS, Config, unread_variables
from windback.errors import ConfigurationError, WindbackError
from windback.http import certificates
from windback.http.proxy import route_to
from windback.options import switched

from .. import clock
from .checks import OK, PROBLEM, SKIPPED, WARNING, Check
from .common import BASE_URL, MAX_EVENT_BYTES, above_0, command, json_option, main_app, print_json
from .terminal import print_table, write_line

_STYLES = {OK: "green", WARNING: "yellow", PROBLEM: "bold red", SKIPPED: "dim"}

EVENT, CUSTOMER = "windback_doctor", "doctor@example.com"
#: An answer's Date has whole seconds, and a request takes time.
_SKEW_S = 5.0
_SLOW_S = 2.0
_EXPIRES_SOON_DAYS = 14


@command(
    main_app,
    "doctor",
    "check key, URL, DNS, connection, TLS and clock, and send one test event",
    f"The event is called {EVENT}, for {CUSTOMER}; --no-event leaves it out. The key is read from "
    "WINDBACK_API_KEY. Exit code 0 if nothing is wrong, 1 otherwise.\n\nWith --app it does something "
    "else: it starts the application with a local server, sends requests and SIGTERM, and counts events.",
)
def doctor(
    base_url: Optional[str] = BASE_URL,
    no_event: bool = typer.Option(False, "--no-event", help="send no test event"),
    timeout: float = typer.Option(
        10.0, "--timeout", metavar="S", callback=above_0, help="seconds that each step may take"
    ),
    app: Optional[str] = typer.Option(
        None,
        "--app",
        metavar="MODULE:NAME",
        show_default=False,
        help="count how many events of this application survive SIGTERM; nothing leaves this machine",
    ),
    path: str = typer.Option("/", "--path", metavar="PATH", help="with --app: a path that tracks an event"),
    header: List[str] = typer.Option(
        [],
        "--header",
        metavar="'NAME: VALUE'",
        show_default=False,
        help="with --app: a header of its requests; can be repeated",
    ),
    json: bool = json_option(),
) -> int:
    """Run the command. Returns the exit code."""
    if app is None:
        checks = list(_checks(base_url, timeout, with_event=not no_event))
    else:
        from .doctor_app import check_app

        checks = list(check_app(app, path, header, timeout))
    problems = sum(check.state == PROBLEM for check in checks)
    if json:
        print_json({"ok": not problems, "checks": [_described(check) for check in checks]})
        return 1 if problems else 0
    rows = [(check.state, check.name, _took(check), check.text) for check in checks]
    print_table([("state", "check", "took", "found"), *rows], right=(2,), styles=_STYLES)
    write_line("1 problem" if problems == 1 else f"{problems} problems" if problems else "nothing is wrong")
    return 1 if problems else 0


def _described(check: Check) -> Dict[str, object]:
    fields = check._asdict()
    took_s = fields.pop("took_s")
    return {**fields, "took_ms": None if took_s is None else round(took_s * 1000, 1)}


def _took(check: Check) -> str:
    return "" if check.took_s is None else f"{check.took_s * 1000:,.0f} ms"


def _checks(base_url: Optional[str], timeout_s: float, *, with_event: bool) -> Iterator[Check]:
    from .sending import configuration

    url = base_url or os.environ.get("WINDBACK_BASE_URL") or DEFAULT_BASE_URL
    config: Optional[Config] = None
    yield from _switch()
    yield from (Check("variable", WARNING, message) for message in unread_variables())
    key = _key()
    yield key
    try:
        # The key was checked before; this is about the URL.
        config = configuration(url, timeout_s=timeout_s, api_key=None if key.state == OK else "sk_none")
    except ConfigurationError as error:
        yield Check("URL", PROBLEM, error.message)
        return
    yield _url(config.base_url, is_given=url != DEFAULT_BASE_URL)
    place = urlsplit(config.base_url)
    host = place.hostname or ""
    port = place.port or (443 if place.scheme == "https" else 80)
    route = route_to(config.base_url)
    if route.problem is not None:
        yield Check("proxy", WARNING, route.problem)
    if route.proxy is not None:
        yield Check("proxy", OK, f"used: {route.why}")
    else:
        yield Check("proxy", OK, f"not used: {route.why}")
        reachable = True
        for check in _way(host, port, timeout_s, is_tls=place.scheme == "https"):
            yield check
            reachable = reachable and check.state != PROBLEM
        if not reachable:
            return
    why_not = "" if with_event else "--no-event was given"
    yield from _exchange(config, timeout_s, why_not if key.state == OK else "there is no key to send it with")


def _switch() -> Iterator[Check]:
    try:
        if not switched(OPTIONS["enabled"], None):
            text = "WINDBACK_ENABLED switches clients off: they send nothing, unless made with enabled=True"
            yield Check("enabled", WARNING, text)
    except ConfigurationError as error:
        yield Check("enabled", PROBLEM, error.message)


def _key() -> Check:
    from .sending import configuration

    text = os.environ.get("WINDBACK_API_KEY", "")
    if not text:
        return Check("key", PROBLEM, "there is none: set WINDBACK_API_KEY to the secret key (sk_…)")
    if text.startswith("pub_"):
        return Check(
            "key",
            PROBLEM,
            "WINDBACK_API_KEY is a public key (pub_…), which is only for the cancel flow; tracking needs the "
            "secret one (sk_…)",
        )
    try:
        config = configuration(DEFAULT_BASE_URL)
    except ConfigurationError as error:
        return Check("key", PROBLEM, error.message)
    assert config.api_key is not None
    return Check("key", OK, f"a secret key, {config.api_key.hint}")


def _url(url: str, *, is_given: bool) -> Check:
    if is_loopback(urlsplit(url).hostname or ""):
        return Check("URL", OK, f"{url}, a server on this machine")
    if is_given and not url.startswith(WINDBACK + "/"):
        return Check("URL", WARNING, f"{url} is not Windback's own ({DEFAULT_BASE_URL})")
    if url != DEFAULT_BASE_URL:
        return Check("URL", WARNING, f"{url} is of Windback, but its API is at {DEFAULT_BASE_URL}")
    return Check("URL", OK, url)


# -- the way there -----------------------------------------------------------------------------------


def _way(host: str, port: int, timeout_s: float, *, is_tls: bool) -> Iterator[Check]:
    started_s = clock.now_s()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        text = f"{host} was not found ({reason}): is the name right, and is this machine online?"
        yield Check("DNS", PROBLEM, text)
        return
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if host not in addresses:  # else it was not looked up
        yield Check(
            "DNS", OK, f"{host} has the address {', '.join(addresses[:4])}", clock.now_s() - started_s
        )
    started_s = clock.now_s()
    try:
        connection = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        yield Check("connection", PROBLEM, _unconnected(error, host, port, timeout_s))
        return
    with connection:
        yield Check("connection", OK, f"port {port} answers", clock.now_s() - started_s)
        if is_tls:
            yield _tls(connection, host)


def _unconnected(error: OSError, host: str, port: int, timeout_s: float) -> str:
    if isinstance(error, ConnectionRefusedError):
        if is_loopback(host):
            return f"nothing listens on port {port} of this machine: is `windback dev` running there?"
        return f"{host} refuses connections to port {port}: a firewall, or the port is wrong"
    if isinstance(error, (socket.timeout, TimeoutError)):
        hint = "most often a firewall, or a proxy is needed"
        return f"no answer from port {port} of {host} for {timeout_s:g} s: {hint}"
    return f"port {port} of {host}: {error.strerror or error}"


def _tls(connection: socket.socket, host: str) -> Check:
    started_s = clock.now_s()
    try:
        context = certificates.verifying()
        with context.wrap_socket(connection, server_hostname=host) as wrapped:
            took_s = clock.now_s() - started_s
            certificate = wrapped.getpeercert() or {}
            until = datetime.fromtimestamp(
                ssl.cert_time_to_seconds(str(certificate.get("notAfter"))), timezone.utc
            )
            text = f"{wrapped.version()}, certificate of {_issuer(certificate)} until {until:%Y-%m-%d}"
    except ssl.SSLCertVerificationError as error:
        return Check("TLS", PROBLEM, _distrust(error, host))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return Check("TLS", PROBLEM, f"{host} and this machine have no TLS version in common: {reason}")
    days = (until - datetime.now(timezone.utc)).days
    return Check("TLS", WARNING if days < _EXPIRES_SOON_DAYS else OK, text, took_s)


def _issuer(certificate: object) -> str:
    pairs = cast("Dict[str, List[Tuple[Tuple[str, str], ...]]]", certificate).get("issuer", [])
    names = {name: value for part in pairs for name, value in part}
    return names.get("organizationName") or names.get("commonName") or "an unknown issuer"


def _distrust(error: ssl.SSLCertVerificationError, host: str) -> str:
    message = error.verify_message
    if "expired" in message:
        return f"the certificate of {host} has expired, or the clock of this machine is wrong"
    if "not yet valid" in message:
        return f"the certificate of {host} is not valid yet: most often the clock of this machine is wrong"
    if "mismatch" in message or "doesn't match" in message:
        return f"the certificate is not for {host}: {message}"
    return (
        f"the issuer of the certificate of {host} is not trusted ({message}); behind a proxy that inspects "
        "TLS, "
        "set SSL_CERT_FILE to the proxy's certificate"
    )


# -- a request and its answer --------------------------------------------------------------------------


def _exchange(config: Config, timeout_s: float, why_not: str) -> Iterator[Check]:
    """Send the test event. why_not: why to send only a request that asks for any answer."""
    from windback.api.answer import error_of
    from windback.api.endpoints import Request, track
    from windback.event.encode import encode
    from windback.http.transport import SyncTransport

    request = Request("GET", "")
    if not why_not:
        request = track([encode(EVENT, CUSTOMER, None, None, MAX_EVENT_BYTES)], os.urandom(16).hex())
    transport = SyncTransport(config)
    with contextlib.closing(transport):
        sent_s, started_s = time.time(), clock.now_s()
        answer = transport.attempt(request, timeout_s)
        took_s = clock.now_s() - started_s
    if answer.status is None:
        error = error_of(answer, time.time(), config.redact)
        yield Check("answer", PROBLEM, f"no answer: {error.message}")
        return
    yield _clock(answer.headers.get("date", ""), sent_s + took_s / 2)
    if why_not:
        yield Check("test event", SKIPPED, why_not)
        return
    if answer.ok:
        state = WARNING if took_s > _SLOW_S else OK
        slow = ", which is slow" if took_s > _SLOW_S else ""
        yield Check("test event", state, f"{EVENT} was accepted{slow}", took_s)
        return
    yield Check(
        "test event", PROBLEM, _refused(answer.status, error_of(answer, time.time(), config.redact)), took_s
    )


def _clock(date: str, here_s: float) -> Check:
    try:
        there_s = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, IndexError):
        return Check("clock", SKIPPED, "the answer has no date to compare with")
    # The date is truncated to a whole second: half a second is the best estimate.
    skew_s = here_s - (there_s + 0.5)
    if abs(skew_s) <= _SKEW_S:
        return Check("clock", OK, "agrees with the server's")
    way = "ahead of" if skew_s > 0 else "behind"
    text = f"{abs(skew_s):,.0f} s {way} the server's: events get wrong times; set it, or let NTP"
    return Check("clock", PROBLEM, text)


def _refused(status: int, error: WindbackError) -> str:
    meaning = {
        401: "the API does not know this key: was it replaced, or is it of another environment?",
        402: "the Windback subscription has expired",
        403: "the key may not do this: is it of the right kind and project?",
        404: "not found: does the URL end with the path of the API, such as /api/v1?",
        413: "a gateway rejects bodies of this size",
        429: "too many requests; wait a little",
    }.get(status)
    if meaning is None and status >= 500:
        meaning = "the server, or a gateway in front of it, fails; this is not caused by your machine"
    return f"{status}: {error.message}" + (f" ({meaning})" if meaning else "")
