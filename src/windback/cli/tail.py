"""`windback tail`: shows the events that reach the local server, line by line."""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional
from urllib.parse import urlencode, urlsplit

import orjson
import typer
from rich.text import Text

from windback.base_url import is_loopback
from windback.devserver.options import BASE_PATH, CONTROL_PATH, DEFAULT_HOST, DEFAULT_PORT

from .. import clock
from .common import CommandError, command, json_option, main_app, print_json
from .terminal import console, printable

#: The server sends comments more often than that, so silence this long (seconds) is a broken connection.
_SILENCE_S = 60.0
#: The first and the longest pause between tries to reach a server that is gone (seconds).
_PAUSE_S, _PAUSE_CAP_S = 0.1, 2.0


class Server(NamedTuple):
    """The address of the server."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Return its URL."""
        return f"http://{self.host}:{self.port}"


class Message(NamedTuple):
    """A message of the stream (HTML standard, section "Server-sent events")."""

    kind: str
    data: bytes
    cursor: str


@command(
    main_app,
    "tail",
    "show the events that reach the local server, as they arrive",
    "The server is `windback dev`. When it ends, tail waits for the next one at the same address. Exit "
    "code 0 with --count, 130 after Ctrl-C, 2 if there is no server.",
)
def tail(
    base_url: Optional[str] = typer.Option(
        None,
        "--base-url",
        metavar="URL",
        help=f"URL of the server (default: WINDBACK_BASE_URL, else http://{DEFAULT_HOST}:{DEFAULT_PORT}{BASE_PATH})",
    ),
    query: Optional[str] = typer.Option(
        None,
        "--query",
        "-q",
        metavar="QUERY",
        help=("only matching events, such as 'event:login -email:*@example.com'"),
    ),
    key: Optional[str] = typer.Option(
        None, "--key", metavar="KEY", help="only events of this API key, or of its masked label"
    ),
    number: int = typer.Option(
        0, "--number", "-n", metavar="N", min=0, max=10_000, help="show the last N events first"
    ),
    count: Optional[int] = typer.Option(None, "--count", metavar="N", min=1, help="end after N events"),
    json: bool = json_option("write each event as a line of JSON"),
) -> int:
    """Run the command. Returns the exit code."""
    chosen = {name: value for name, value in (("q", query), ("key", key)) if value}
    out = console(sys.stdout)
    left = count
    for event in _events(_server(base_url), chosen, number):
        if json:
            print_json(event)
            sys.stdout.buffer.flush()
        else:
            out.print(_line(event), soft_wrap=True)
        if left is not None:
            left -= 1
            if left == 0:
                break
    return 0


def _server(base_url: Optional[str]) -> Server:
    text = base_url or os.environ.get("WINDBACK_BASE_URL")
    if not text:
        return Server(DEFAULT_HOST, DEFAULT_PORT)
    host, port = "", 80
    with contextlib.suppress(ValueError):
        parts = urlsplit(text)
        port = parts.port or port
        host = parts.hostname or "" if parts.scheme == "http" else ""
    if not host:
        raise CommandError(f"{text} is not a local server; its URL starts with http://")
    if base_url is None and not is_loopback(host):
        raise CommandError(f"WINDBACK_BASE_URL is {text}: choose the local server with --base-url")
    return Server(host, port)


def _line(event: Dict[str, object]) -> Text:
    """Return the event on one line: time, name, customer, properties and problems."""
    at = str(event.get("received_at"))
    with contextlib.suppress(ValueError):
        local = datetime.fromisoformat(at.replace("Z", "+00:00")).astimezone()
        at = f"{local:%H:%M:%S.%f}"[:-3]
    customer = event.get("customer_email") or event.get("customer_id") or "-"
    line = Text.assemble(
        (at, "dim"),
        "  ",
        (printable(str(event.get("event") or "-")), "bold"),
        "  ",
        (printable(str(customer)), "cyan"),
    )
    properties = event.get("properties")
    for name, value in properties.items() if isinstance(properties, dict) else ():
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        line.append("  ").append(printable(f"{name}="), "dim").append(printable(text))
    problems = event.get("problems")
    for problem in problems if isinstance(problems, list) else ():
        text = "ignored by the real API: {path}: expected {expected}, got {got}".format(**problem)
        line.append("  ").append(printable(text), "yellow")
    return line


def _events(server: Server, chosen: Mapping[str, str], number: int) -> Iterator[Dict[str, object]]:
    """Yield events forever. Raises CommandError if there is no server at first."""
    try:
        page = _page(server, {**chosen, "order": "desc", "limit": str(max(1, number))})
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CommandError(
            f"no local server at {server.url} ({reason}): start one with windback dev"
        ) from None
    if number:
        yield from reversed(_objects(page.get("data")))
    cursor = str(page.get("cursor", ""))
    pause_s = _PAUSE_S
    is_gone = False
    while True:
        with contextlib.suppress(OSError, HTTPException), contextlib.closing(
            _connected(server)
        ) as connection:
            for message in _messages(_opened(connection, chosen, cursor)):
                if is_gone:
                    sys.stderr.write("the server is back\n")
                is_gone, pause_s = False, _PAUSE_S
                cursor = message.cursor or cursor
                if message.kind == "events":
                    data: Dict[str, object] = orjson.loads(message.data)
                    if data.get("skipped"):
                        sys.stderr.write(
                            f"{data['skipped']} events are left out: too many at the same time\n"
                        )
                    yield from _objects(data.get("data"))
        if not is_gone:
            is_gone = True
            sys.stdout.flush()
            sys.stderr.write("the server is gone; waiting for it\n")
        clock.sleep(pause_s)
        pause_s = min(_PAUSE_CAP_S, pause_s * 2)


def _objects(value: object) -> List[Dict[str, object]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _connected(server: Server) -> HTTPConnection:
    return HTTPConnection(server.host, server.port, timeout=_SILENCE_S)


def _page(server: Server, query: Mapping[str, str]) -> Dict[str, object]:
    with contextlib.closing(_connected(server)) as connection:
        connection.request("GET", f"{CONTROL_PATH}/events?{urlencode(query)}")
        page: Dict[str, object] = orjson.loads(_checked(connection.getresponse()).read())
    return page


def _opened(connection: HTTPConnection, chosen: Mapping[str, str], cursor: str) -> HTTPResponse:
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": cursor} if cursor else {})}
    connection.request("GET", f"{CONTROL_PATH}/stream?{urlencode(chosen)}", headers=headers)
    return _checked(connection.getresponse())


def _checked(response: HTTPResponse) -> HTTPResponse:
    if response.status == 404:
        raise CommandError(
            "the program that answers there is not windback dev, or an older version without a stream"
        )
    if response.status != 200:
        text = f"status {response.status}"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = str(orjson.loads(response.read())["error"])
        raise CommandError(text)
    return response


def _messages(response: HTTPResponse) -> Iterator[Message]:
    """Yield the messages of a stream until it ends."""
    kind, data, cursor = "", b"", ""
    while True:
        line = response.readline()
        if not line:
            return
        line = line.rstrip(b"\r\n")
        if not line:
            if kind:
                yield Message(kind, data, cursor)
            kind, data = "", b""
            continue
        field, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if field == b"event":
            kind = value.decode()
        elif field == b"data":
            data += value
        elif field == b"id":
            cursor = value.decode()
