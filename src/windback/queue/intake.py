"""The callers' side of a queue: what a full or closed queue answers, and what it counts."""

from __future__ import annotations

from collections import deque
from typing import Callable, Deque, Dict, Optional

from ..errors import QueueFullError
from ..stats import AtomicCounter

#: A wake_at that no queue reaches: everything that could be woken is awake.
NEVER = 1 << 62


def nobody() -> None:
    """Wake nothing: nothing drains the queue yet."""


class NoRoomError(Exception):
    """The queue is full and the policy is to wait; each client waits in its own way."""


class Refusals:
    """Counts the events that were not accepted, and answers for a queue that is full or closed.

    on_refusal: called with "closed" or the overflow policy when there is a log line to write: once after
    close, and each time a queue is full that was not.
    """

    __slots__ = ("_first_after_close", "_on_refusal", "closed", "counters", "overflow")

    def __init__(self, overflow: str, on_refusal: Callable[[str], None]) -> None:
        self.overflow = overflow
        self._on_refusal = on_refusal
        self.reset()

    def reset(self) -> None:
        """Start anew, as in a forked child."""
        #: How many events were refused, by reason.
        self.counters: Dict[str, AtomicCounter] = {
            reason: AtomicCounter()
            for reason in (
                *("queue_full", "before_send", "before_send_error", "scrub_error", "disabled", "closed"),
                "no_customer",
            )
        }
        self._first_after_close: Deque[bool] = deque((False,))
        #: Why nothing is accepted any more.
        self.closed: Optional[str] = None

    @property
    def is_closed(self) -> bool:
        """Whether close() was called, or the process is ending."""
        return self.closed == "closed"

    def refuse(self, reason: str, count: int = 1) -> bool:
        """Count events that were not accepted; returns False."""
        self.counters[reason].add(count)
        return False

    def turn_away(self, announced: Deque[bool], why: Callable[[], str]) -> bool:
        """Refuse an event without room: return False, or raise QueueFullError or NoRoomError, by the policy.

        announced: see Line. why: what is full.
        """
        if self.closed is not None:
            self.refuse(self.closed)
            if self.is_closed:
                self.announce(self._first_after_close, "closed")
            return False
        if self.overflow == "block":
            raise NoRoomError
        self.refuse("queue_full")
        self.announce(announced, self.overflow)
        if self.overflow == "raise":
            raise QueueFullError(why(), code="QUEUE_FULL")
        return False

    def announce(self, mark: Deque[bool], why: str) -> None:
        """Write one log line for each item of *mark*."""
        try:
            mark.pop()
        except IndexError:
            return
        self._on_refusal(why)
