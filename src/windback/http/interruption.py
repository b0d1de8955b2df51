"""Exceptions that come into a request from outside: raised by a signal handler, or put into the thread.

Such an exception, like the soft time limit of a task queue, is meant for the code that made the call. Its
class does not show that: it is an Exception, like those of httpx and the libraries below it. But none of the
functions that make the request has raised it.
"""

from __future__ import annotations

import signal
import threading
from types import CodeType, FrameType
from typing import Iterator, Optional, Set

#: Where exceptions are defined that mean something about a connection, or nothing particular.
_OF_REQUESTS = {
    *("anyio", "asyncio", "builtins", "h11", "httpcore", "httpcore2", "httpx", "httpx2", "idna", "select"),
    *("socket", "ssl", "trio", "windback", "zlib"),
}


def raise_interruption(error: Exception, before: Optional[BaseException]) -> None:
    """Raise an exception from outside again, if it is why *error* was caught where a request is made.

    Args:
        error: The exception that was caught.
        before: The exception that the caller was handling when the request began, as sys.exc_info() has it.
    """
    found = interruption(error, before)
    if found is not None:
        raise found


def interruption(error: BaseException, before: Optional[BaseException] = None) -> Optional[BaseException]:
    """Return what was raised from outside, *error* or what it was made of; None if nothing was."""
    if threading.current_thread() is threading.main_thread():
        codes = _codes_of_handlers()
        each: Optional[BaseException] = error
        while each is not None and each is not before:
            if any(frame.f_code in codes for frame in _frames_below(each)):
                return each
            # httpcore makes a ReadTimeout of its own of any TimeoutError.
            each = each.__cause__ or each.__context__
    # The way of PyThreadState_SetAsyncExc: it appears in whatever runs. What has a class of its own and is
    # really raised, by a mock or by a transport of the user's, has a frame of that class's package.
    home = _package(type(error).__module__)
    is_foreign = home not in _OF_REQUESTS and all(
        _package(str(frame.f_globals.get("__name__", ""))) != home for frame in _frames_below(error)
    )
    return error if is_foreign else None


def _frames_below(error: BaseException) -> Iterator[FrameType]:
    """The frames that *error* came through, but not the one that caught it."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
        yield traceback.tb_frame


def _codes_of_handlers() -> Set[CodeType]:
    """What the signal handlers of this process run, as far as they are written in Python."""
    codes: Set[CodeType] = set()
    for number in signal.valid_signals():
        code = _code_of(signal.getsignal(number))
        if code is not None:
            codes.add(code)
    return codes


def _code_of(handler: object) -> Optional[CodeType]:
    """The code of a function, a method, a `functools.partial` or an object with `__call__`."""
    for _ in range(5):
        code = getattr(handler, "__code__", None)
        if isinstance(code, CodeType):
            return code
        inner = getattr(handler, "func", None) or getattr(type(handler), "__call__", None)  # noqa: B004 - of its class
        if inner is None:
            return None
        handler = inner
    return None


def _package(module: str) -> str:
    return module.partition(".")[0]
