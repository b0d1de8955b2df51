"""Clients that nobody refers to any more: what they accepted is delivered, then they go.

A client made in a view and dropped leaves an engine with a worker and a connection. Its `Handle`, which the
client and its copies share, notices that the last of them is gone. From then on one thread of this process
looks after all such engines, until each has nothing left; at the end of the process those that are left are
drained as any other.

`Handle.__del__` may run at any moment, in any thread, also in a frame that holds a lock of ours. So it takes
none: it appends to a deque, and whoever takes the token starts the thread.
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

#: The pauses between two looks (seconds): they grow while an engine can't deliver.
_LOOK_S = 0.02
_LOOK_CAP_S = 1.0

_dropped: Deque[lifecycle.Engine] = deque()
_token: Deque[int] = deque([0])
#: The process that the token is of: in a forked child the thread is not there.
_pid = os.getpid()


class Handle:
    """What a client and its copies have in common, and nothing else refers to."""

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
    """Start the thread unless it runs, or none may be started here: then the end of the process delivers."""
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
    if _dropped:  # looked at after that: who dropped a client just now found no token
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
        logger.debug("a client that was dropped can't be closed", exc_info=error)
        return False
