"""The log lines of an outage. Pure: times are arguments."""

from __future__ import annotations

from typing import Optional

from .wording import counted


class OutageLog:
    """The lines an outage may write: one at its start, one per minute, and one at its end with counts."""

    EVERY_S = 60.0

    def __init__(self) -> None:
        self._since_s: Optional[float] = None
        self._last_s = 0.0
        self._delivered_before = 0

    @property
    def is_on(self) -> bool:
        """Whether there is an outage."""
        return self._since_s is not None

    def trouble(self, now_s: float, problem: str, pending: int, delivered: int) -> Optional[str]:
        """Return the warning to write, if one is due."""
        if self._since_s is None:
            self._since_s, self._last_s, self._delivered_before = now_s, now_s, delivered
            return (
                f"cannot deliver: {problem}; {counted(pending, 'event')} queued, retrying; "
                "events are refused only if the queue fills up"
            )
        if now_s - self._last_s < self.EVERY_S:
            return None
        self._last_s = now_s
        lasted_s = now_s - self._since_s
        return f"still cannot deliver after {lasted_s:.0f} s: {problem}; {counted(pending, 'event')} queued"

    def recovered(self, now_s: float, pending: int, delivered: int) -> Optional[str]:
        """Return the line for the end of an outage; None if there was none."""
        if self._since_s is None:
            return None
        lasted_s, self._since_s = now_s - self._since_s, None
        done = counted(delivered - self._delivered_before, "event")
        return f"delivering again after {lasted_s:.0f} s: {done} delivered, {pending:,} queued"
