"""Work that one thread does at a time, and for which nobody else ever waits.

A signal handler or a finalizer that waited for a lock could wait for the very frame that it interrupted. So
who comes while somebody is at it leaves a mark, and the one who is at it does the work once more.
"""

from __future__ import annotations

import threading
from typing import Callable

from . import clock

#: Between two looks whether somebody is still at it (seconds).
_LOOK_S = 0.0005


class Turn:
    """Does *work* for all who ask, one thread at a time. Its exceptions are raised where it is done."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._is_wanted = False

    def take(self) -> None:
        """Do the work; if another thread does it right now, that one does it once more."""
        self._is_wanted = True
        # Not `acquire(blocking=False)`: an exception from outside could strike between that and the `try`,
        # and nobody would release the lock. `with` is one step at both of its ends.
        while self._is_wanted and not self._lock.locked():
            with self._lock:
                self._is_wanted = False
                self._work()

    def wait(self, seconds: float) -> bool:
        """Wait until nobody is at it, for so long at most; whether nobody is."""
        deadline_s = clock.now_s() + seconds
        while self._lock.locked():
            if clock.now_s() >= deadline_s:
                return False
            clock.sleep(_LOOK_S)
        return True
