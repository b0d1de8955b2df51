"""The log lines about delivery, and how often each is written.

They are left in `log`, because they are decided under the workers' lock; they are written after it.
"""

from __future__ import annotations

import logging
from typing import Callable, Tuple

from .. import log
from ..errors import WindbackError
from ..outage import OutageLog
from ..process import lifecycle
from ..queue.outbox import Drain
from .accounts import Accounts

logger = logging.getLogger("windback")


class Lines:
    """Writes the lines. What they count is read from *queue* and *accounts*."""

    def __init__(self, queue: Drain, accounts: Accounts) -> None:
        self._queue = queue
        self._accounts = accounts
        self._outage = OutageLog()
        self._is_rejection_due = at_most_every(OutageLog.EVERY_S)
        self._is_death_due = at_most_every(OutageLog.EVERY_S)

    def trouble(self, now_s: float, problem: str) -> None:
        """Delivery is held up."""
        line = self._outage.trouble(now_s, problem, *self._counts())
        if line is not None:
            log.later(logging.WARNING, "%s", line)

    def recovered(self, now_s: float) -> None:
        """The server takes requests; an outage, if there was one, is over."""
        if self._outage.is_on:
            log.later(logging.INFO, "%s", self._outage.recovered(now_s, *self._counts()))

    def _counts(self) -> Tuple[int, int]:
        return self._queue.counts()[2], self._accounts.delivered.value()

    def rejected(self, now_s: float, error: WindbackError, *, is_kept: bool) -> None:
        """The API will never take a batch."""
        if self._is_rejection_due(now_s):
            where = "; they are kept as dead letters" if is_kept else ""
            count = self._accounts.all_rejected
            line = f"the API rejects events, {count} so far; the last: {error}{where}"
            log.later(logging.WARNING, "%s", line)

    def missing(self, count: int) -> None:
        """Somebody removed a file of the journal whose events still waited."""
        log.later(
            logging.ERROR, "%s lost: somebody removed the file of the journal", lifecycle.events_were(count)
        )

    def died(self, now_s: float, error: BaseException) -> None:
        """A worker ended with an error; stats() counts them all. No lock is held, so this is written now."""
        if self._is_death_due(now_s):
            logger.warning("a worker ended with %s; the next event starts another", type(error).__name__)
            logger.debug("it was", exc_info=error)


def at_most_every(seconds: float) -> Callable[[float], bool]:
    """Return a function of the time: whether something is due that happens at most this often."""
    due_s = float("-inf")

    def is_due(now_s: float) -> bool:
        nonlocal due_s
        if now_s < due_s:
            return False
        due_s = now_s + seconds
        return True

    return is_due
