"""What became of events, in counters that only grow and that any thread reads without a lock.

The queue moves `delivered` and its kind in the step in which a batch leaves it. How many events are pending
is not counted: it is the number of accepted events that are not settled. So at every moment, also for a
signal handler in the middle of anything: accepted == delivered + rejected + dropped + pending.
"""

from __future__ import annotations

from typing import Dict, Optional

from ..queue.outbox import Drain
from ..stats import AtomicCounter, Stats, nonzero


class Accounts:
    """The counts of a queue's events, by result."""

    def __init__(self) -> None:
        self.delivered = AtomicCounter()
        self._rejected: Dict[str, AtomicCounter] = {}
        self._dropped: Dict[str, AtomicCounter] = {}
        self.requests = AtomicCounter()
        self.retries = AtomicCounter()
        self.worker_deaths = AtomicCounter()

    def rejected(self, reason: str) -> AtomicCounter:
        """Return the counter of events that were rejected for *reason*."""
        return self._rejected.setdefault(reason, AtomicCounter())

    def dropped(self, reason: str) -> AtomicCounter:
        """Return the counter of events that were dropped for *reason*."""
        return self._dropped.setdefault(reason, AtomicCounter())

    @property
    def all_rejected(self) -> int:
        """How many events were rejected."""
        return sum(nonzero(self._rejected).values())

    def snapshot(
        self,
        queue: Drain,
        *,
        refused: Dict[str, int],
        workers: int,
        hook_errors: int,
        journal_bytes: int,
        problem: Optional[str],
    ) -> Stats:
        """Return all counters, those that are kept elsewhere included, at one moment."""
        # In this order: what is settled was accepted before.
        delivered = self.delivered.value()
        rejected, dropped = nonzero(self._rejected), nonzero(self._dropped)
        accepted, evicted, _, leased = queue.counts()
        if evicted:
            dropped["queue_full"] = evicted
        pending = accepted - delivered - sum(rejected.values()) - sum(dropped.values())
        return Stats(
            accepted=accepted,
            delivered=delivered,
            rejected=sum(rejected.values()),
            dropped=sum(dropped.values()),
            pending=pending,
            in_flight=min(leased, pending),
            pending_bytes=queue.size_bytes,
            refused=refused,
            rejected_by_reason=rejected,
            dropped_by_reason=dropped,
            requests=self.requests.value(),
            retries=self.retries.value(),
            workers=workers,
            worker_deaths=self.worker_deaths.value(),
            hook_errors=hook_errors,
            adopted=queue.adopted,
            journal_bytes=journal_bytes,
            problem=problem,
        )
