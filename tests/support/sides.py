"""A queue with what its two sides have, as one object: tests play callers and workers at once."""

from __future__ import annotations

from windback.queue.intake import Refusals
from windback.queue.journal import JournalQueue, MemoryBounds
from windback.queue.memory import MemoryQueue


class Sides:
    """Finds each name where it is: on the queue itself, its callers' side or its drain side."""

    def __init__(self, queue):
        parts = (queue, queue.intake, queue.outbox)
        object.__setattr__(self, "parts", [part for part in parts if part is not None])

    def _part(self, name):
        return next((part for part in self.parts if hasattr(part, name)), self.parts[0])

    def queued(self):
        """Return how many events callers have put and no batch has."""
        return len(self.outbox._items)

    def __getattr__(self, name):
        return getattr(self._part(name), name)

    def __setattr__(self, name, value):
        setattr(self._part(name), name, value)


def memory_queue(max_events, max_bytes, overflow, wake, on_refusal):
    """Make a queue in memory whose callers call *wake*."""
    queue = MemoryQueue(max_events, max_bytes, Refusals(overflow, on_refusal))
    queue.intake.wake = wake
    return Sides(queue)


def journal_queue(max_events, max_bytes, overflow, wake, on_refusal, root, max_journal_bytes, *, fsync=False):
    """Make a queue on disk whose callers call *wake*; `writer.prepare` is for the test."""
    bounds = MemoryBounds(max_events, max_bytes)
    queue = JournalQueue(root, max_journal_bytes, bounds, Refusals(overflow, on_refusal), fsync=fsync)
    queue.intake.wake = wake
    return Sides(queue)
