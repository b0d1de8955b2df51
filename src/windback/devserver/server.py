"""Running the server in this process: socket, signals, uvicorn."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Callable, Dict, List, Optional

import uvicorn

from . import ports
from .app import Parts, build_app
from .clock import iso
from .connections import Connections, protocol_class
from .exchange import Exchange
from .files import Opened, open_store
from .hub import Hub
from .options import BASE_PATH, DEFAULT_KEY, DEFAULT_PORT, READY, Options
from .waits import Waits
from .webhooks import Webhooks

#: Of a request line and its headers: that many of them are kept.
MAX_HEAD_BYTES = 16 * 1024
#: Idle connections are kept this long, as nginx does by default; uvicorn's 5 s would be a fault of its own.
KEEP_ALIVE_S = 75
#: What is under way at the end may take as long.
GRACE_S = 1


def serve(options: Options) -> int:
    """Serve until SIGINT, SIGTERM or, if asked for, the end of standard input.

    Returns the exit code of the process: 1 or, for a port that was asked for and is taken, 2 when the server
    could not start, otherwise 0.
    """
    try:
        taken = ports.listen(options)
    except OSError as error:
        return _cannot_listen(options, error)
    listener = taken.listener
    try:
        opened = open_store(options)
    except (OSError, sqlite3.Error) as error:
        listener.close()
        return _fail(f"cannot use {options.db} as database: {error}")
    store = opened.store
    connections = Connections()
    waits = Waits()
    webhooks = Webhooks(options, store, waits)
    hub = Hub()
    origin = f"http://{ports.authority(listener)}"
    about = _about(options, origin)
    on_done = None if options.quiet else _print_request
    gateway = build_app(Parts(options, store, connections, waits, webhooks, hub, about), on_done)
    config = uvicorn.Config(
        gateway,
        loop="asyncio",
        http=protocol_class(connections),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_graceful_shutdown=GRACE_S,
    )
    notes = _notes(taken, opened)

    def started() -> None:
        webhooks.resume()
        about["ready_in_s"] = _since_start()
        if options.ready_file is not None:
            _write_ready(options.ready_file, about)
        if options.quiet:  # but not silent about surprises, and before the ready file is written
            sys.stderr.write("".join(f"windback dev: {note}\n" for note in notes))
            sys.stderr.flush()  # by itself only since Python 3.9
        sys.stdout.write(READY + origin + BASE_PATH + "\n")
        if not options.quiet:
            sys.stdout.write(_banner(options, origin, notes))
        sys.stdout.flush()

    server = _Server(config, waits, connections, started)

    def stop(_signum: int, _frame: Optional[FrameType]) -> None:
        server.should_exit = True

    # uvicorn puts its own handlers in place while it serves; newer ones then raise the signal again for the
    # earlier handler, which is this one, so that the process ends by itself and with 0.
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if options.until_stdin_closes:
        threading.Thread(target=_stop_at_end_of_stdin, args=(server,), daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        store.close()
    return 0


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, waits: Waits, connections: Connections, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._waits = waits
        self._connections = connections
        self._tell_started = started

    async def startup(self, sockets: Optional[List[socket.socket]] = None) -> None:
        await super().startup(sockets)
        self._tell_started()

    async def shutdown(self, sockets: Optional[List[socket.socket]] = None) -> None:
        self._waits.close()  # or streams and other waits would keep the server running
        # Who never reads would, too; and with uvicorn's older versions, since Python 3.12, who is only idle.
        asyncio.get_running_loop().call_later(GRACE_S, self._connections.abort_all)
        await super().shutdown(sockets)


def _about(options: Options, origin: str) -> Dict[str, object]:
    return {
        "version": _version(),
        "base_url": origin + BASE_PATH,
        "page_url": origin + "/",
        "started_at": iso(time.time()),
        "db": None if options.db is None else str(Path(options.db).resolve()),
        #: What a client may use; one that was chosen is not shown.
        "key": None if options.keys else DEFAULT_KEY,
        "strict": options.strict,
        "keep_events": options.keep_events,
        "keep_bytes": options.keep_bytes,
    }


def _version() -> str:
    # Of the package as it is installed: the server shares no code with the client.
    try:
        return metadata.version("windback")
    except metadata.PackageNotFoundError:
        return "unknown"


def _since_start() -> Optional[float]:
    """Seconds since the start of this process, on Linux."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError):
        return None
    return round(uptime - ticks / os.sysconf("SC_CLK_TCK"), 2)


def _write_ready(path: str, about: Dict[str, object]) -> None:
    """In one step, so that who waits for the file never reads half of it."""
    part = f"{path}.{os.getpid()}"
    Path(part).write_text(json.dumps({"status": "ok", **about}), "utf-8")
    Path(part).replace(path)


def _notes(taken: ports.Taken, opened: Opened) -> List[str]:
    notes: List[str] = []
    if taken.wanted is not None:
        notes.append(f"port {taken.wanted} is taken{_by(taken.wanted)}, so this is another one")
    if opened.set_aside is not None:
        notes.append(f"the database was of another version and now lies in {opened.set_aside}")
    return notes


def _by(port: int) -> str:
    name = ports.owner(port)
    return f" by {name}" if name else ""


def _banner(options: Options, origin: str, notes: List[str]) -> str:
    about = _about(options, origin)
    keeps = [
        *([f"{options.keep_events:,} events"] if options.keep_events else []),
        *([f"{options.keep_bytes / 1e6:,g} MB"] if options.keep_bytes else []),
    ]
    kept = f"the newest {' or '.join(keeps)}" if keeps else "all events"
    where = f"in {about['db']}" if options.db else "in memory, gone when this ends (--db FILE keeps it)"
    lines = [
        *(f"note      {note}" for note in notes),
        f"page      {origin}/",
        f"paste     export WINDBACK_BASE_URL={origin}{BASE_PATH}",
        f"          export WINDBACK_API_KEY={about['key'] or '<one of --key>'}",
        "          export WINDBACK_PROJECT_SLUG=my-project",
        f"data      {where}; {kept}",
        f"faults    off{_odd_ways(options)} (the page or PUT /_dev/faults)",
    ]
    return "".join(f"  {line}\n" for line in lines)


def _odd_ways(options: Options) -> str:
    """What the options make it do that may surprise."""
    ways = {
        "rate limits": options.rate_limits,
        f"gzip answered with {options.gzip}": options.gzip != "accept",
        "no email": not options.email,
        "strict": options.strict,
    }
    return "".join(f"; {way}" for way, is_on in ways.items() if is_on)


def _cannot_listen(options: Options, error: OSError) -> int:
    port = DEFAULT_PORT if options.port is None else options.port
    by = _by(port) if error.errno == errno.EADDRINUSE else ""
    _fail(f"cannot listen on {options.host} port {port}: {error.strerror}{by}")
    if options.port is None or error.errno != errno.EADDRINUSE:
        return 1
    sys.stderr.write("windback dev: without --port it takes the next free one, with --port 0 any\n")
    return 2


def _stop_at_end_of_stdin(server: uvicorn.Server) -> None:
    # os.read and not sys.stdin: a thread inside a buffered reader would trip the interpreter at its end.
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # closed is as good as ended
    server.should_exit = True


def _print_request(exchange: Exchange) -> None:
    # The path is decoded: a page of any origin may ask for one that a terminal would obey.
    parts = [_printable(exchange.method), _printable(exchange.path), str(exchange.status or "no answer")]
    if exchange.events:
        parts.append("1 event" if exchange.events == 1 else f"{exchange.events} events")
    if exchange.duplicate:
        parts.append("(seen before)")
    if exchange.fault:
        parts.append(f"[fault: {exchange.fault}]")
    sys.stderr.write(" ".join(parts) + "\n")
    sys.stderr.flush()


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _fail(message: str) -> int:
    sys.stderr.write(f"windback dev: {message}\n")
    return 1
