"""When to send a batch, and how many events go into it.

Pure: no clock, no lock, no socket. A batch is bounded by events and by the bytes of its body.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence

from .config import BATCH_FRAME_BYTES

_HEAD, _TAIL = b'{"events":[', b"]}"


class Limits(NamedTuple):
    """What bounds a batch: events, bytes of its body, seconds its first event may wait for others."""

    max_events: int
    max_bytes: int
    interval_s: float


def wait_s(count: int, size_bytes: int, age_s: float, limits: Limits) -> Optional[float]:
    """Return the seconds to wait before a batch is due: 0.0 for now, None while there is nothing.

    count, size_bytes: the events waiting and their bytes; age_s: since the first of them came.
    """
    if count == 0:
        return None
    if count >= limits.max_events or size_bytes >= limits.max_bytes:
        return 0.0
    return max(0.0, limits.interval_s - age_s)


def cut(records: Sequence[bytes], limits: Limits) -> int:
    """Return how many of *records*, from the front, make one batch: at least one, if there is one."""
    count = len(records)
    if (
        count <= limits.max_events
        and sum(map(len, records)) + count - 1 + BATCH_FRAME_BYTES <= limits.max_bytes
    ):
        return count  # nearly always, and three times as fast as counting
    total = BATCH_FRAME_BYTES - 1  # a comma less than there are events
    for count, record in enumerate(records):
        total += len(record) + 1
        if count == limits.max_events or (count and total > limits.max_bytes):
            return count
    return len(records)


def chunks(records: Sequence[bytes], limits: Limits) -> List[Sequence[bytes]]:
    """Cut *records* into as few batches as the limits allow, in order."""
    batches = []
    while records:
        count = cut(records, limits)
        batches.append(records[:count])
        records = records[count:]
    return batches


def join(records: Sequence[bytes]) -> bytes:
    """Return the body of a batch (docs page "Event Tracking")."""
    return _HEAD + b",".join(records) + _TAIL
