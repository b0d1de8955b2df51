"""Clients that nothing refers to any more: their events are delivered, then they are closed.

A client that is made in a view and dropped leaves an engine with a worker and a connection. Its `Handle`,
which the client and its copies share, detects that the last of them is gone. From then on one thread of this
process waits for all such engines, until each has delivered its events. At the end of the process the
remaining ones are drained like any other.

`Handle.__del__` may run at any moment, in any thread, also in a frame that has a lock of ours. So it takes
no lock: it appends to a deque, and the caller that gets the token starts the thread.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import threading
from collections import deque
from typing import Deque, List

from .. import clock
from . import lifecycle

logger = logging.getLogger("windback")

#: The pauses between two checks (seconds). They grow while an engine can't deliver.
_LOOK_S = 0.02
_LOOK_CAP_S = 1.0

_dropped: Deque[lifecycle.Engine] = deque()
_token: Deque[int] = deque([0])
#: The process of the token: a forked child does not have the thread.
_pid = os.getpid()


class Handle:
    """Shared by a client and its copies; nothing else refers to it."""

    __slots__ = ("_engine",)

    def __init__(self, engine: lifecycle.Engine) -> None:
        self._engine = engine

    def __del__(self) -> None:
        # At the very end of the interpreter the names of modules are None, here and in the standard library;
        # the exit has delivered by then.
        if getattr(lifecycle, "exiting", None) is False and lifecycle.is_open(self._engine):
            _dropped.append(self._engine)
            _start()


def _start() -> None:
    """Start the thread, unless it runs or no thread may start. Then the end of the process delivers."""
    global _pid, _token
    if _pid != os.getpid():
        _pid, _token = os.getpid(), deque([0])
    token = _token
    try:
        token.pop()
    except IndexError:
        return
    if lifecycle.why_no_threads() is None:
        with contextlib.suppress(RuntimeError):  # out of threads
            _thread.start_new_thread(_run, (token,))
            return
    token.append(0)


def _run(token: Deque[int]) -> None:
    with contextlib.suppress(Exception):
        threading.current_thread().name = "windback-retire"
    try:
        _retire_all()
    finally:
        token.append(0)
    # Checked after that: a caller that dropped a client just now found no token. At the exit the rest is
    # drained like any other, and a thread that starts while the interpreter goes down can crash it.
    if _dropped and not lifecycle.exiting:
        _start()


def _retire_all() -> None:
    left: List[lifecycle.Engine] = []
    pause_s = _LOOK_S
    while (left or _dropped) and not lifecycle.exiting:
        while _dropped:
            left.append(_dropped.popleft())
            pause_s = _LOOK_S
        left = [engine for engine in left if not _is_retired(engine)]
        clock.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _LOOK_CAP_S)


def _is_retired(engine: lifecycle.Engine) -> bool:
    try:
        return not lifecycle.is_open(engine) or engine.retire()
    except Exception as error:
        logger.debug("can't close a client that was dropped", exc_info=error)
        return False
