"""SIGTERM and SIGINT, for clients with handle_signals=True: deliver first, then the earlier handler runs.

By default SIGTERM ends a process immediately, without its exit handlers, and queued events are lost. The
handler here only starts a thread that flushes. It runs in the main thread between any two steps,
which may have any lock. The application keeps running during that. Then the thread sends the
signal again, and now the handler does the same as the earlier one. So the process ends with the same
status, only later. A second signal in between is passed on immediately.

A program that receives signals in its event loop (`loop.add_signal_handler`) reads them from Python's wakeup
descriptor, to which C writes before any handler runs; its handler does nothing then. Such a program
has received the signal already, so the handler here delivers beside it, and sends nothing again.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import signal
import sys
import threading
from types import CodeType, FrameType
from typing import Dict, List, Optional

from .. import clock
from . import lifecycle

logger = logging.getLogger("windback")

SIGNALS = (signal.SIGTERM, signal.SIGINT)

#: While a busy application runs, the drain gets the interpreter this often (seconds), and not every 5 ms:
#: loading what sends needs hundreds of turns.
_SWITCH_S = 0.0005
#: How long the end of the process waits for a signal that was already sent.
_ON_ITS_WAY_S = 1.0

#: The pause before a signal whose handler did not run is repeated, and the longest of them (seconds).
_REPEAT_S, _REPEAT_CAP_S = 0.1, 1.0

_earlier: Dict[int, object] = {}
#: A client wanted handlers where they can't be set.
_is_wanted = False


class _Delay:
    """A signal that is not passed on yet. The drain or a second signal passes it on."""

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

    SIGINT as Python handles it is left alone, because KeyboardInterrupt ends in the exit handlers. Ignored
    signals are left alone, too. Where Python sets no handlers, one WARNING is logged, and `install_later` may
    set them.
    """
    global _is_wanted
    is_first, _is_wanted = not _is_wanted, True
    if not _set_handlers() and is_first:
        logger.warning(
            "handle_signals=True has no effect yet: this client was made outside of the main thread, and "
            "Python sets signal handlers only there; make a client in the main thread, or call its stats() "
            "there"
        )


def install_for_command() -> None:
    """Handle the signals for a framework's own command, such as its development server, which does not.

    It runs when an application is loaded, so it never raises, and does nothing outside of the main thread.
    """
    try:
        _set_handlers()
    except Exception:  # without it a signal does what it did
        logger.debug("signal handlers could not be set", exc_info=True)


def install_later() -> None:
    """Set the handlers if that was requested before, where it was not possible."""
    if _is_wanted:
        _set_handlers()


def _set_handlers() -> bool:
    """Set them if this thread may do that. Returns whether it could."""
    global _is_wanted  # noqa: PLW0603 - handlers belong to the process
    if threading.current_thread() is not threading.main_thread():
        return False
    for number in SIGNALS:
        earlier = signal.getsignal(number)
        if earlier in (None, signal.SIG_IGN, signal.default_int_handler, _handle):
            continue
        try:
            signal.signal(number, _handle)
        except ValueError:  # the main thread of a subinterpreter
            return False
        if not _earlier:
            lifecycle.after_exit.append(_pass_on_rest)
        _earlier[number] = earlier
    _is_wanted = False
    return True


def _handle(number: int, frame: Optional[FrameType]) -> None:
    if _is_heard_elsewhere(_earlier[number]):
        if not lifecycle.exiting:
            with contextlib.suppress(RuntimeError):  # out of threads; the normal end of the program delivers
                _thread.start_new_thread(_flush, ())
        return
    delay = _delays.get(number)
    if delay is not None and delay.pid == os.getpid():
        if delay.is_over or delay.end():
            _delays.pop(number, None)
            _pass_on(number, frame)
        return
    delay = _delays[number] = _Delay()
    if lifecycle.exiting:  # the drain is running already, and `_pass_on_rest` comes after it
        return
    try:
        _thread.start_new_thread(_drain, (number, delay))
    except RuntimeError:  # out of threads; a flush here might wait for a lock that this very thread has
        _send_again(number, delay)


def _is_heard_elsewhere(handler: object) -> bool:
    """Whether a handler exists only so that C writes the signal to the descriptor of an event loop.

    asyncio's does nothing; uvloop's is a method of its loop, which also reads the descriptor.
    """
    if hasattr(getattr(handler, "__self__", None), "add_signal_handler"):
        return True
    code = getattr(handler, "__code__", None)
    if not isinstance(code, CodeType) or not code.co_code.strip(b"\0"):  # the code of Cython has no steps
        return False
    import dis

    return all(
        step.opname in ("RESUME", "NOP", "RETURN_VALUE")
        # The last is how Python 3.15 loads None.
        or (step.opname in ("LOAD_CONST", "RETURN_CONST", "LOAD_COMMON_CONSTANT") and step.argval is None)
        for step in dis.get_instructions(code)
    )


def _flush() -> None:
    """Deliver in this thread, while a busy application keeps running."""
    switch_s = sys.getswitchinterval()
    is_slow = switch_s > _SWITCH_S  # else the delivery for another signal has set it
    if is_slow:
        sys.setswitchinterval(_SWITCH_S)
    try:
        lifecycle.flush_all()
    finally:
        if is_slow:
            sys.setswitchinterval(switch_s)


def _drain(number: int, delay: _Delay) -> None:
    try:
        _flush()
        if not callable(_earlier[number]):  # the process ends without its exit handlers
            lifecycle.warn_of_losses()
    finally:
        _send_again(number, delay)
        _wake_main_thread(number, delay)


def _wake_main_thread(number: int, delay: _Delay) -> None:
    """Repeat a signal that was sent again until its handler runs.

    The main thread lets go of the interpreter before it blocks in a system call. A signal that comes in
    between is noted and wakes nothing: the handler would run when the call returns, perhaps never.
    """
    pause_s = _REPEAT_S
    while True:
        clock.sleep(pause_s)
        if _delays.get(number) is not delay:
            return
        _send(number)
        pause_s = min(2 * pause_s, _REPEAT_CAP_S)


def _pass_on_rest() -> None:
    """Send the signals again that arrived during the exit or shortly before, when handlers still run."""
    own = [(number, delay) for number, delay in _delays.items() if delay.pid == os.getpid()]
    for number, delay in own:
        _send_again(number, delay)
        deadline_s = clock.now_s() + _ON_ITS_WAY_S
        while _delays.get(number) is delay and clock.now_s() < deadline_s:
            clock.sleep(0.001)  # the handler runs in here


def _send_again(number: int, delay: _Delay) -> None:
    if delay.end():
        _send(number)


def _send(number: int) -> None:
    """Send a signal to this process, in which a blocked main thread wakes up."""
    if os.name == "nt":
        signal.raise_signal(number)  # there os.kill ends a process, whatever its handlers are
    else:
        os.kill(os.getpid(), number)


def _pass_on(number: int, frame: Optional[FrameType]) -> None:
    earlier = _earlier[number]
    if callable(earlier):
        earlier(number, frame)
    else:
        signal.signal(number, signal.SIG_DFL)
        _send(number)
