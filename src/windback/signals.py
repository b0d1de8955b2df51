"""SIGTERM and SIGINT, for clients with handle_signals=True: deliver first, then what would have happened.

By default SIGTERM ends a process at once, without its exit handlers, and what is queued is lost. The
handler here starts a thread that flushes, and nothing else: it runs in the main thread between any two
steps of it, which may hold any lock. The application goes on meanwhile. Then the thread sends the
signal again, and now the handler does what the earlier one did; so the process ends with the same
status, only later. A second signal in between is passed on at once.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from types import FrameType
from typing import Dict, List, Optional

from . import lifecycle
from .errors import ConfigurationError

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_earlier: Dict[int, object] = {}


class _Delay:
    """A signal that is not passed on yet. Whoever ends it does that: the drain, or a second signal."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._left: List[None] = [None]
        self.is_over = False

    def end(self) -> bool:
        try:
            self._left.pop()
        except IndexError:
            return False
        self.is_over = True
        return True


_delays: Dict[int, _Delay] = {}


def install() -> None:
    """Handle the signals that would end this process without its exit handlers, or by a handler of its own.

    SIGINT as Python handles it is left alone: KeyboardInterrupt ends in the exit handlers. So is a signal
    that is ignored. Raises ConfigurationError outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        message = (
            "handle_signals=True works in the main thread only, because Python sets handlers there; make the "
            "client there, or leave the option out and call flush() in the handler of your own"
        )
        raise ConfigurationError(message)
    for number in SIGNALS:
        earlier = signal.getsignal(number)
        if earlier not in (None, signal.SIG_IGN, signal.default_int_handler, _handle):
            _earlier[number] = earlier
            signal.signal(number, _handle)


def _handle(number: int, frame: Optional[FrameType]) -> None:
    delay = _delays.get(number)
    if delay is not None and delay.pid == os.getpid():
        if delay.is_over or delay.end():
            _delays.pop(number, None)
            _pass_on(number, frame)
        return
    delay = _delays[number] = _Delay()
    if lifecycle.exiting:  # the drain is under way already
        lifecycle.after_exit.append(lambda: _send_again(number, delay))
        return
    try:
        _thread.start_new_thread(_drain, (number, delay))
    except RuntimeError:  # out of threads; to flush here might wait for a lock that this very thread holds
        _send_again(number, delay)


def _drain(number: int, delay: _Delay) -> None:
    try:
        started_s = time.monotonic()
        waits = [core.flush_from_outside(started_s + core.shutdown_timeout) for core in lifecycle.cores()]
        for wait in waits:
            wait()
    finally:
        _send_again(number, delay)


def _send_again(number: int, delay: _Delay) -> None:
    if delay.end():
        os.kill(os.getpid(), number)


def _pass_on(number: int, frame: Optional[FrameType]) -> None:
    earlier = _earlier[number]
    if callable(earlier):
        earlier(number, frame)
    else:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
