"""Whether a request is tried again, and after how long.

Pure, but for `jitter`: times and random numbers are arguments.
"""

from __future__ import annotations

from random import SystemRandom
from typing import Callable, NamedTuple, Optional

from ..api.answer import Answer, Failure, retry_after_s
from .verdict import is_retryable, is_throttle

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 8.0
#: A random number in [0, 1), from the system: a program that seeds `random` gets the numbers it expects, and
#: forked processes do not wait equally long.
jitter: Callable[[], float] = SystemRandom().random


def backoff_s(attempt: int, jitter: float) -> float:
    """Return the seconds to wait after failed *attempt* (from 1): exponential with full jitter.

    jitter: a random number in [0, 1).
    """
    return jitter * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(attempt - 1, 32))


def retry_delay_s(answer: Answer, attempt: int, jitter: float, wall_s: float) -> float:
    """Return the seconds to wait before the next try of the same request.

    A server's Retry-After lengthens our own backoff and never shortens it. wall_s: seconds since the
    epoch, to read one that is a date.
    """
    if answer.failure is Failure.BROKEN and attempt == 1:
        return 0.0  # most often an idle connection that the server or a freeze closed: a new one will do
    return max(backoff_s(attempt, jitter), retry_after_s(answer, wall_s) or 0.0)


def _never() -> bool:
    return False


class RetryPolicy(NamedTuple):
    """Which tries one request gets. It holds no state: the loop counts the tries.

    Attributes:
        max_retries: How many tries may follow the first.
        timeout_s: The seconds that one try may take.
        once_only: Whether a repeat must not happen if the first try may have been processed.
        deadline_s: No try starts after it, and no wait goes beyond it; on the clock of *now_s* below.
        gated: Whether a gate decides when a throttled request goes out again.
        is_over: Whether the client has given up; then no try starts any more.
    """

    max_retries: int
    timeout_s: float
    once_only: bool = False
    deadline_s: Optional[float] = None
    gated: bool = False
    is_over: Callable[[], bool] = _never

    def allows_retry(self, answer: Answer, attempt: int) -> bool:
        """Return whether the *answer* to try number *attempt* (from 1) is one that another may change."""
        if self.gated and is_throttle(answer):
            return False
        # What a worker sends may have been sent before, under the same key.
        is_repeat = self.gated or attempt > 1
        return not answer.ok and is_retryable(answer, once_only=self.once_only, is_repeat=is_repeat)

    def is_last(self, attempt: int, now_s: float, delay_s: float) -> bool:
        """Return whether try number *attempt* was the last, if the next would start *delay_s* from now."""
        if attempt > self.max_retries or self.is_over():
            return True
        return self.deadline_s is not None and now_s + delay_s >= self.deadline_s

    def left_s(self, now_s: float) -> float:
        """Return the seconds that a try which starts now may take; 0 if none may start."""
        if self.is_over():
            return 0.0
        if self.deadline_s is None:
            return self.timeout_s
        return max(0.0, min(self.timeout_s, self.deadline_s - now_s))
