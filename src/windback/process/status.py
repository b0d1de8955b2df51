"""The answers to `windback status`: a unix socket for each client that has the option `status`.

A thread waits for connections and answers each with one line of JSON, read from the counters at that moment.
So nothing is stored or written while nobody asks, and a caller of `track_event` does nothing for it. The
directory and the socket belong to this user alone. A socket that nobody answers at is of an exited process,
and `windback status` removes it.

Windows has no such sockets; the option is refused there.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, List, Optional

import orjson

from .. import clock
from ..directories import why_not_private

if TYPE_CHECKING:
    from .lifecycle import Engine

logger = logging.getLogger("windback")

#: The end of a socket's name, and its end until it can be connected to.
SUFFIX, UNFINISHED = ".sock", ".new"
#: How long a process that asks may take to read the answer (seconds).
_ANSWER_S = 2.0
#: The pause after the system had no file descriptor for a connection (seconds).
_PAUSE_S = 1.0


class _Socket:
    """Answers for one client. It begins anew in a forked child, which has another process id."""

    def __init__(self, engine: Engine, why_no_threads: Callable[[], Optional[str]]) -> None:
        self.engine = engine
        self._why_no_threads = why_no_threads
        self._listener: Optional[socket.socket] = None
        self._path: Optional[Path] = None

    def open(self) -> None:
        """Make the socket and start the thread. Logs why it can't be; raises nothing."""
        folder = self.engine.config.status
        assert folder is not None
        reason = self._why_no_threads() or why_not_private(folder)
        if reason is None:
            try:
                self._listen(folder)
            except (OSError, RuntimeError) as error:  # no room, no thread
                self.close()
                reason = str(error)
        if reason is not None:
            logger.warning("`windback status` can't show this process: %s: %s", folder, reason)

    def _listen(self, folder: Path) -> None:
        name = f"{os.getpid()}-{os.urandom(4).hex()}"  # containers that share the directory have equal ids
        unfinished, path = folder / f"{name}{UNFINISHED}", folder / f"{name}{SUFFIX}"
        self._path = unfinished
        self._listener = listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(unfinished))
        unfinished.chmod(0o600)
        listener.listen(16)
        unfinished.rename(path)
        self._path = path
        _thread.start_new_thread(self._run, (listener,))

    def _run(self, listener: socket.socket) -> None:
        with contextlib.suppress(Exception):
            threading.current_thread().name = "windback-status"
        with listener:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # no file descriptor is free
                    clock.sleep(_PAUSE_S)
                    continue
                with connection:
                    if self._listener is not listener:  # it was closed, and this connection only wakes
                        return
                    with contextlib.suppress(OSError):
                        connection.settimeout(_ANSWER_S)
                        connection.sendall(self._answer())

    def _answer(self) -> bytes:
        program = sys.argv[0] if sys.argv else ""
        answer: Dict[str, object] = {"pid": os.getpid(), "program": program}
        try:
            answer["report"] = self.engine.report().to_wire()
        except Exception as error:  # the thread must live on
            logger.debug("no report for `windback status`", exc_info=error)
            answer["error"] = f"{type(error).__name__}: {error}"
        return orjson.dumps(answer) + b"\n"

    def close(self) -> None:
        """Remove the socket and end the thread."""
        listener, self._listener = self._listener, None
        path, self._path = self._path, None
        if listener is not None and path is not None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as waking:
                waking.settimeout(_ANSWER_S)
                waking.connect(str(path))
        if path is not None:
            with contextlib.suppress(OSError):
                path.unlink()

    def begin_anew(self) -> None:
        """Open a socket of the forked child; the one that it inherited is the parent's."""
        listener, self._listener, self._path = self._listener, None, None
        if listener is not None:
            listener.close()
        self.open()


_sockets: List[_Socket] = []


def serve(engine: Engine, why_no_threads: Callable[[], Optional[str]]) -> None:
    """Answer for the client of *engine* from now on, where a thread may be started."""
    found = _Socket(engine, why_no_threads)
    _sockets.append(found)
    found.open()


def end(engine: Engine) -> None:
    """Answer no longer: the client was closed."""
    for each in [each for each in _sockets if each.engine is engine]:
        _sockets.remove(each)
        each.close()


def serve_in_child() -> None:
    """Answer in a forked child for the clients that it has."""
    for each in _sockets:
        each.begin_anew()


def end_all() -> None:
    """Answer no longer: the process ends."""
    for each in _sockets:
        each.close()
