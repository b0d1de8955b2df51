"""Whether a request is tried again, and after how long.

Pure: times and random numbers are arguments.
"""

from __future__ import annotations

from typing import Callable, Optional

from ..api.answer import Answer, Failure, retry_after_s
from .verdict import is_retryable, is_throttle

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 8.0


def backoff_s(
    attempt: int, dice: float, *, base_s: float = BACKOFF_BASE_S, cap_s: float = BACKOFF_CAP_S
) -> float:
    """Return the seconds to wait after failed *attempt* (from 1): exponential with full jitter.

    dice: a random number in [0, 1).
    """
    return dice * min(cap_s, base_s * 2.0 ** min(attempt - 1, 32))


def retry_delay_s(answer: Answer, attempt: int, dice: float, wall_s: float) -> float:
    """Return the seconds to wait before the next try of the same request.

    A server's Retry-After lengthens our own backoff and never shortens it. wall_s: seconds since the
    epoch, to read one that is a date.
    """
    if answer.failure is Failure.BROKEN and attempt == 1:
        return 0.0  # most often an idle connection that the server or a freeze closed: a new one will do
    return max(backoff_s(attempt, dice), retry_after_s(answer, wall_s) or 0.0)


class Tries:
    """The retries of one request: whether there is another try, and after how long.

    timeout_s: what one try may take. deadline_s: on the same clock as *now_s* below; no try starts
    after it, and no wait goes beyond it. gated: a gate decides when a throttled request goes out again.
    is_over: whether somebody gave up meanwhile; then no try starts any more.
    """

    def __init__(
        self,
        max_retries: int,
        timeout_s: float,
        *,
        once_only: bool = False,
        deadline_s: Optional[float] = None,
        gated: bool = False,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.made = 0
        self.delay_s = 0.0
        #: The answer of the last one.
        self.last: Optional[Answer] = None
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._max_retries = max_retries
        self._once_only = once_only
        self._gated = gated
        self._is_over = is_over

    def again(self, answer: Answer, *, now_s: float, wall_s: float, dice: float) -> bool:
        """Apply a try's answer; return whether another try is due, after `delay_s`."""
        self.made += 1
        self.last = answer
        if answer.ok or self.made > self._max_retries:
            return False
        # What a worker sends may have been sent before, under the same key.
        is_repeat = self._gated or self.made > 1
        if not is_retryable(answer, once_only=self._once_only, is_repeat=is_repeat):
            return False
        if (self._gated and is_throttle(answer)) or self._is_over():
            return False
        self.delay_s = retry_delay_s(answer, self.made, dice, wall_s)
        return self._deadline_s is None or now_s + self.delay_s < self._deadline_s

    def left_s(self, now_s: float) -> float:
        """Return how long the next try may take; 0 if there is none."""
        if self._is_over():
            return 0.0
        if self._deadline_s is None:
            return self._timeout_s
        return max(0.0, min(self._timeout_s, self._deadline_s - now_s))
