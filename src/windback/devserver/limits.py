"""The documented rate limits, each by API key. No sleep and no clock: the caller passes the time.

Tracking has a limit of the plan, of which no number is documented, so it has none here.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Dict, Union

from .errors import over_limit
from .faults import Bucket

#: Requests per second, and the burst after a pause (Authentication page).
GENERAL_RATE, GENERAL_BURST = 10.0, 30.0

#: Keys that have limits of their own; the oldest one makes room for one more.
KEPT_KEYS = 10_000

#: Requests to the cancel flow in any stretch of that many seconds (Cancel Flow page).
CANCEL_FLOW_COUNT, CANCEL_FLOW_S = 10, 15.0


class Limits:
    """What each key has used up."""

    def __init__(self) -> None:
        self._general: Dict[str, Bucket] = {}
        self._cancel_flow: Dict[str, Deque[float]] = {}
        #: How many keys made room for others.
        self.forgotten = 0

    def reset(self) -> None:
        """Nobody has asked for anything yet."""
        self._general.clear()
        self._cancel_flow.clear()
        self.forgotten = 0

    def _make_room(self, kept: Union[Dict[str, Bucket], Dict[str, Deque[float]]]) -> None:
        if len(kept) > KEPT_KEYS:
            del kept[next(iter(kept))]
            self.forgotten += 1

    def take(self, key: str, now: float) -> None:
        """Count a request, or raise `ApiError` 429. *now*: seconds of a steady clock."""
        bucket = self._general.setdefault(key, Bucket(GENERAL_RATE, GENERAL_BURST))
        self._make_room(self._general)
        wait_s = bucket.take(now)
        if wait_s is not None:
            raise over_limit(wait_s)

    def take_cancel_flow(self, key: str, now: float) -> None:
        """The same for the cancel flow."""
        times = self._cancel_flow.setdefault(key, deque())
        self._make_room(self._cancel_flow)
        while times and times[0] <= now - CANCEL_FLOW_S:
            times.popleft()
        if len(times) >= CANCEL_FLOW_COUNT:
            raise over_limit(times[0] + CANCEL_FLOW_S - now)
        times.append(now)
