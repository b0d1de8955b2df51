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
        #: Set by a close: from then on everything is sent without pauses, as for a flush.
        self.are_closing = False
        #: No worker has opened the gate for the close yet.
        self._must_expedite = False

    @property
    def are_urgent(self) -> bool:
        """Whether a caller waits for delivery, so that no batch waits for more events."""
        return self.are_closing or bool(self._waiting)

    def begin_close(self) -> None:
        """Send everything without pauses from now on."""
        self.are_closing = True
        self.expedite()

    def expedite(self) -> None:
        """Open the gate early, as a new flush does."""
        self._must_expedite = True

    @property
    def adopt(self) -> bool:
        """Whether one is also about what exited processes left."""
        return any(flush.adopts for flush in list(self._waiting))

    def add(self, flush: Flush) -> None:
        """Begin one."""
        self._waiting.append(flush)

    @property
    def has_new(self) -> bool:
        """Whether a flush or a close began that no worker has seen."""
        return self._must_expedite or any(flush.is_new for flush in list(self._waiting))

    def see(self) -> None:
        """Take notice of all, before the gate is opened for them."""
        self._must_expedite = False
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
