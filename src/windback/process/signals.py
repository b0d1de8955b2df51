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
import sys
import threading
from types import FrameType
from typing import Dict, List, Optional

from .. import clock
from ..errors import ConfigurationError
from . import lifecycle

SIGNALS = (signal.SIGTERM, signal.SIGINT)

#: While a busy application goes on, the drain gets its turns at the interpreter this often (seconds), and not
#: each 5 ms: to load httpx alone takes hundreds of turns.
_SWITCH_S = 0.0005
#: How long the end of the process waits for a signal that is on its way already.
_ON_ITS_WAY_S = 1.0

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
    if not _earlier:
        lifecycle.after_exit.append(_pass_on_rest)
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
    if lifecycle.exiting:  # the drain is under way already, and `_pass_on_rest` comes after it
        return
    try:
        _thread.start_new_thread(_drain, (number, delay))
    except RuntimeError:  # out of threads; to flush here might wait for a lock that this very thread holds
        _send_again(number, delay)


def _drain(number: int, delay: _Delay) -> None:
    switch_s = sys.getswitchinterval()
    hurries = switch_s > _SWITCH_S  # else another signal's drain does already
    if hurries:
        sys.setswitchinterval(_SWITCH_S)
    try:
        lifecycle.flush_all()
    finally:
        if hurries:
            sys.setswitchinterval(switch_s)
        _send_again(number, delay)


def _pass_on_rest() -> None:
    """Send again what came during the exit, or not long before it: later no handler runs any more."""
    own = [(number, delay) for number, delay in _delays.items() if delay.pid == os.getpid()]
    for number, delay in own:
        _send_again(number, delay)
        deadline_s = clock.now_s() + _ON_ITS_WAY_S
        while _delays.get(number) is delay and clock.now_s() < deadline_s:
            clock.sleep(0.001)  # the handler runs in here


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
