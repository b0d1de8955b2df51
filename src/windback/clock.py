"""The clock of deadlines and pauses: it keeps running where a test library has frozen time.

freezegun replaces `time.monotonic` in every module that holds it, and some versions of time-machine replace
it in C. A deadline by a frozen clock never comes, so all of this package measures time with this module.
None of them replaces `clock_gettime` for the clock that `time.monotonic` reads. Where there is no such
function, as on Windows, the real function is kept where freezegun does not find it.

Timestamps of events are different: they follow `time.time`, and so a frozen clock, as tests expect.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import Callable, NamedTuple, Optional

#: Two clocks further apart than this (seconds) are not the same clock.
_APART_S = 0.5


def _find_clock() -> Callable[[], float]:
    # The clocks that `time.monotonic` reads: on macOS and Solaris it is not the one of this name.
    names = ("CLOCK_UPTIME_RAW",) if sys.platform == "darwin" else ("CLOCK_HIGHRES", "CLOCK_MONOTONIC")
    for name in names:
        if hasattr(time, "clock_gettime") and hasattr(time, name):
            return functools.partial(time.clock_gettime, getattr(time, name))
    # If this is imported while time is frozen, freezegun has the real one.
    freezegun = sys.modules.get("freezegun.api")
    real: Callable[[], float] = getattr(freezegun, "real_monotonic", time.monotonic)
    return functools.partial(real)


#: Return the seconds since a fixed moment in the past. A `partial`: freezegun replaces functions that it
#: knows.
now_s = _find_clock()


class Moment(NamedTuple):
    """The same moment on two clocks.

    Attributes:
        wall_s: Seconds since the epoch.
        now_s: Seconds on the clock of this module, read after the other.
    """

    wall_s: float
    now_s: float


def moment() -> Moment:
    """Return this moment.

    The thread may be held up between the two clocks. The wall clock is read first, so a pause until a date
    ends late then, and never early.
    """
    return Moment(time.time(), now_s())


def is_past(deadline_s: Optional[float]) -> bool:
    """Return whether a deadline, if there is one, is over."""
    return deadline_s is not None and now_s() >= deadline_s


def sleep(seconds: float) -> None:
    """Sleep for a number of seconds. `time.sleep` is looked up at each call, because gevent replaces it."""
    time.sleep(seconds)


def is_replaced() -> bool:
    """Whether `time.monotonic`, by which event loops set their timers, was replaced; it may be frozen."""
    before_s = now_s()
    theirs_s = time.monotonic()
    # Between two looks at the real one: the thread may be held up for longer than they may be apart.
    return not before_s - _APART_S <= theirs_s <= now_s() + _APART_S
