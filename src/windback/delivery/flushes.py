"""The flushes in progress: which are done, and which callers to notify. Nothing here takes a lock.

Whether a flush is done follows from the queue and the workers alone. A worker that settled a batch looks, and
so does each waiter now and then: if an exception kept the worker from telling it, the waiter finds out.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Callable, Iterable, List

from ..stats import Stats
from .parking import Waker

#: How often somebody who waits for a flush looks whether it is done, should nobody tell (seconds).
LOOK_S = 0.5


class Flush:
    """A flush in progress: done when everything below `target` is settled, or when waiting is useless."""

    def __init__(self, target: int, waker: Waker, *, has_timeout: bool, adopts: bool, before: Stats) -> None:
        self.target = target
        #: Whether it is also about what exited processes left.
        self.adopts = adopts
        self.waker = waker
        #: A flush with a timeout waits for it. A flush without one gives up when the server can't be reached.
        self.has_timeout = has_timeout
        self.before = before
        self.done = False
        #: No worker has opened the gate for it yet; an earlier failure does not count.
        self.is_new = True


class Flushes:
    """The flushes in progress. is_done: whether all events of a flush are settled and reported."""

    def __init__(self, is_done: Callable[[Flush], bool]) -> None:
        self._is_done = is_done
        self._waiting: List[Flush] = []

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    @property
    def adopt(self) -> bool:
        """Whether one is also about what exited processes left."""
        return any(flush.adopts for flush in list(self._waiting))

    def add(self, flush: Flush) -> None:
        """Begin one."""
        self._waiting.append(flush)

    @property
    def has_new(self) -> bool:
        """Whether there is one that no worker has seen."""
        return bool(self._waiting) and any(flush.is_new for flush in list(self._waiting))

    def see(self) -> None:
        """Take notice of all, before the gate is opened for them."""
        for flush in list(self._waiting):
            flush.is_new = False

    def look(self) -> None:
        """End those that are done."""
        for flush in list(self._waiting):
            if self._is_done(flush):
                self._end(flush)

    def hopeless(self, *, also_with_timeout: bool) -> List[Flush]:
        """Return those to end, as the server can't be reached, or (also_with_timeout) wants nothing of us."""
        waiting = list(self._waiting)
        return [
            flush for flush in waiting if not flush.is_new and (also_with_timeout or not flush.has_timeout)
        ]

    def end(self, flushes: Iterable[Flush]) -> None:
        """End some, and tell those who wait."""
        for flush in flushes:
            self._end(flush)

    def wake(self) -> None:
        """Make all waiting callers check again: no worker is left."""
        for flush in list(self._waiting):
            flush.waker.release()

    def _end(self, flush: Flush) -> None:
        flush.done = True
        flush.waker.release()
        self.forget(flush)

    def forget(self, flush: Flush) -> None:
        """Remove one that nobody waits for any more."""
        with suppress(ValueError):  # another thread was faster
            self._waiting.remove(flush)
