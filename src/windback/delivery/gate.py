"""Whether anything may be sent now.

Pure: times and random numbers are arguments.
"""

from __future__ import annotations

import math
from typing import Optional

from . import retry

_OF_OTHERS = "the server asked another sender of this project to wait"
#: The longest pause between rounds of retries in an outage.
OUTAGE_CAP_S = 60.0
#: After 401, 402, 403: somebody has to do something first.
REFUSED_PAUSE_S = 300.0


class Gate:
    """Whether a batch may be sent now, and how many at the same time.

    Each queue has one gate. A success opens it a little further, up to *max_in_flight*; a
    Retry-After, a failed round of retries or a refusal closes it for a while and lets a single
    request through first.
    """

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.limit = max_in_flight
        #: Whether retries are used up, or no retry would help: a flush without a timeout gives up.
        self.is_down = False
        #: Why the last try failed, until one succeeds.
        self.last_failure: Optional[str] = None
        self._closed_until_s = 0.0
        self._must_wait = False
        self._rounds = 0
        self._throttles = 0

    def blocked_s(self, now_s: float) -> float:
        """Return for how long nothing may be sent."""
        return max(0.0, self._closed_until_s - now_s)

    @property
    def is_retrying(self) -> bool:
        """Whether tries fail and retries are left, so that no flush gives up yet."""
        return self.last_failure is not None and not self.is_down

    def problem(self, now_s: float) -> Optional[str]:
        """Return why events can't be delivered, with the seconds until the next try; None if they can."""
        blocked_s = self.blocked_s(now_s)
        if blocked_s > 0.0:
            # Rounded up, so the next try is never later than in the message.
            return f"{self.last_failure or _OF_OTHERS}; the next try is in {math.ceil(blocked_s)} s"
        return None if self.last_failure is None else f"{self.last_failure}; trying again"

    def open_early(self) -> None:
        """Let the next request through immediately, unless the server asked for a pause."""
        if not self._must_wait:
            self._closed_until_s = 0.0

    def succeeded(self, now_s: float) -> None:
        """The server took a request; one more at a time may go out.

        A request that was sent before the server asked us to wait does not end that.
        """
        self.is_down = False
        self._rounds = 0
        if self._must_wait and now_s < self._closed_until_s:
            return
        self.last_failure = None
        self._throttles = 0
        self._must_wait = False
        self._closed_until_s = 0.0
        self.limit = min(self.max_in_flight, self.limit + 1)

    def throttled(self, now_s: float, jitter: float, delay_s: Optional[float]) -> None:
        """Close it because the server asked for a pause, of *delay_s* seconds; None: of unknown length."""
        self._throttles += 1
        own_s = retry.backoff_s(self._throttles, jitter)
        self._close(now_s, max(own_s, delay_s or 0.0), must_wait=True)

    def hold(self, until_s: float) -> None:
        """The server asked somebody else who sends for the same project to stay away until then."""
        if until_s > self._closed_until_s:
            self._closed_until_s = until_s
            self._must_wait = True
            self.limit = 1

    def is_stuck(self, max_retries: int, problem: str) -> bool:
        """Whether the server has asked that more often in a row than a request is retried."""
        if self._throttles <= max_retries:
            return False
        self.is_down, self.last_failure = True, problem
        return True

    def failed(self, now_s: float, jitter: float, problem: str, *, is_new: bool = False) -> None:
        """A batch used up its retries: an outage, which lasts until something succeeds.

        is_new: the server answered, and to a batch that never failed before. The fault may be with the batch,
        so the pause is not longer than the one before: the next batch may get through.
        """
        was_under_way = self.blocked_s(now_s) > 0.0  # with one that failed before
        if not self._rounds or not (was_under_way or is_new):
            self._rounds += 1
        # Never less than half: the pause between rounds is what keeps an outage quiet.
        full_s = min(OUTAGE_CAP_S, retry.BACKOFF_CAP_S * 2.0 ** min(self._rounds - 1, 16))
        self.is_down, self.last_failure = True, problem
        if not self._must_wait or self.blocked_s(now_s) == 0.0:
            self._close(now_s, full_s * (1 + jitter) / 2, must_wait=False)

    def refused(self, now_s: float, problem: str) -> None:
        """The server refuses everything until a person fixes the key, the plan or the URL."""
        self.is_down, self.last_failure = True, problem
        self._close(now_s, REFUSED_PAUSE_S, must_wait=False)

    def _close(self, now_s: float, seconds: float, *, must_wait: bool) -> None:
        self._closed_until_s = now_s + seconds
        self._must_wait = must_wait
        self.limit = 1
