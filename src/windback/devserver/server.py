"""Running the server in this process: socket, signals, uvicorn."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import sys
import threading
from types import FrameType
from typing import List, Optional

import uvicorn

from .app import build_app
from .connections import Connections, protocol_class
from .exchange import Exchange
from .options import BASE_PATH, READY, Options
from .store import Store
from .waits import Waits
from .webhooks import Webhooks

#: Idle connections are kept this long, as nginx does by default; uvicorn's 5 s would be a fault of its own.
KEEP_ALIVE_S = 75


def serve(options: Options) -> int:
    """Serve until SIGINT, SIGTERM or, if asked for, the end of standard input.

    Returns the exit code of the process: 1 when the server could not start, otherwise 0.
    """
    try:
        listener = _listen(options.host, options.port)
    except OSError as error:
        return _fail(f"cannot listen on {options.host} port {options.port}: {error.strerror}")
    try:
        store = Store(options.db)
    except sqlite3.Error as error:
        listener.close()
        return _fail(f"cannot use {options.db} as database: {error}")
    connections = Connections()
    waits = Waits()
    webhooks = Webhooks(options, store, waits)
    on_done = None if options.quiet else _print_request
    gateway = build_app(options, store, connections, waits, webhooks, on_done)
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
        timeout_graceful_shutdown=2,
    )
    server = _Server(config, waits, webhooks, f"http://{_authority(listener)}{BASE_PATH}")

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
    def __init__(self, config: uvicorn.Config, waits: Waits, webhooks: Webhooks, url: str) -> None:
        super().__init__(config)
        self._waits = waits
        self._webhooks = webhooks
        self._url = url

    async def startup(self, sockets: Optional[List[socket.socket]] = None) -> None:
        await super().startup(sockets)
        self._webhooks.resume()
        sys.stdout.write(READY + self._url + "\n")
        sys.stdout.flush()

    async def shutdown(self, sockets: Optional[List[socket.socket]] = None) -> None:
        self._waits.close()  # or the requests that hang on purpose would keep the server
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    # The protocol is named: asyncio sets TCP_NODELAY only then, and without it each answer (head and body are
    # two writes) waits 40 ms for the client's delayed acknowledgement.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere the option lets two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def _authority(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _stop_at_end_of_stdin(server: uvicorn.Server) -> None:
    # os.read and not sys.stdin: a thread inside a buffered reader would trip the interpreter at its end.
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass  # closed is as good as ended
    server.should_exit = True


def _print_request(exchange: Exchange) -> None:
    parts = [exchange.method, exchange.path, str(exchange.status or "no answer")]
    if exchange.events:
        parts.append(f"{exchange.events} events")
    if exchange.duplicate:
        parts.append("(seen before)")
    if exchange.fault:
        parts.append(f"[fault: {exchange.fault}]")
    sys.stderr.write(" ".join(parts) + "\n")


def _fail(message: str) -> int:
    sys.stderr.write(f"windback dev: {message}\n")
    return 1
