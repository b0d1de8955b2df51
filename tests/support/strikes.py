"""An exception at any place of a call, as a signal handler may raise one."""

from __future__ import annotations

import linecache
import sys
from collections import Counter


class Interruption(BaseException):
    """What a signal handler raises; like KeyboardInterrupt, no `except Exception` stops it."""


class Strike:
    """Raises at the *number*-th place in this package that a call passes; remembers whether there was one.

    A place is the entry of a function, or each line. Where a `with` block releases a lock, no signal handler
    runs in between, but a trace function would: such lines are left out. visits: how often a place counts, at
    most; a loop passes it many times.
    """

    def __init__(self, number, *, lines, error=Interruption, visits=None):
        self._left = number
        self._lines = lines
        self._visits = visits
        self._passed = Counter()
        self._error = error
        self.place = None

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, _):
        code = frame.f_code
        if "/windback/" not in code.co_filename or "/devserver/" in code.co_filename:
            return None
        if code.co_name == "__del__":  # what is raised there reaches no caller
            return None
        if event == "call":
            if not self._lines:
                self._count(frame)
            return self.trace if self._lines else None
        if event == "line" and not is_release(frame):
            self._count(frame)
        return self.trace

    def _count(self, frame):
        place = frame.f_code, frame.f_lineno
        self._passed[place] += 1
        if self._visits is not None and self._passed[place] > self._visits:
            return
        self._left -= 1
        if self._left == 0:
            self.place = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
            sys.settrace(None)
            raise self._error


def is_release(frame):
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith("with ")
