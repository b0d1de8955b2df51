"""What an answer to a batch means: one table for workers, `track_events` and plain calls.

Pure: no clock, no socket, no sleep.

    2xx                         delivered
    no answer, 408, 425, 5xx    the same bytes again after a backoff; a worker keeps the batch for ever
    a broker that is full       the same
    a broker that won't have us a long pause, as after 401
    what a test may not send    rejected
    429, 503 + Retry-After      the same, no sooner than the server says; for a worker, the whole queue waits
    400, 422 on a batch         bisect until the poison event stands alone; that one is rejected
    413                         halve; a single event is rejected
    400, 415 on gzip            the same body plain, and plain from then on
    401, 402, 403               a long pause; nothing that we could change would help
    3xx, 404, 405, 410          the same: this is no place that takes events, so base_url is wrong
    other 4xx                   rejected
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from ..api.answer import Answer, Failure


class Action(enum.Enum):
    """What to do with a batch after its last try."""

    ACK = "ack"  # delivered
    KEEP = "keep"  # again later, as it is
    WAIT = "wait"  # again when the gate, which the server closed, is open
    SPLIT = "split"  # in two halves
    REJECT = "reject"  # never
    PLAIN = "plain"  # again at once, without gzip
    PAUSE = "pause"  # again, after somebody has mended it


#: What follows from failures that another try does not change.
_AFTER_FAILURE = {Failure.REFUSED: Action.PAUSE, Failure.FORBIDDEN: Action.REJECT}


class Verdict(NamedTuple):
    """What a batch's answer means; reason is a short token for counters."""

    action: Action
    reason: str


def judge(answer: Answer, *, events: int, gzipped: bool) -> Verdict:  # noqa: PLR0911 - a line a rule
    """Decide what comes next for a batch of *events* after the last of its tries."""
    status = answer.status
    if answer.ok:
        return Verdict(Action.ACK, "ok")
    if status is None:
        failure = answer.failure or Failure.BROKEN
        return Verdict(_AFTER_FAILURE.get(failure, Action.KEEP), failure.name.lower())
    if gzipped and status in (400, 415):
        return Verdict(Action.PLAIN, "gzip_refused")
    if status == 413:
        return Verdict(Action.SPLIT if events > 1 else Action.REJECT, "too_large")
    if status in (400, 422):
        return Verdict(Action.SPLIT if events > 1 else Action.REJECT, "invalid")
    if status in (401, 402, 403, 404, 405, 410) or 300 <= status < 400:
        return Verdict(Action.PAUSE, f"status_{status}")
    if is_retryable(answer):
        return Verdict(Action.WAIT if is_throttle(answer) else Action.KEEP, f"status_{status}")
    return Verdict(Action.REJECT, f"status_{status}")


def is_retryable(answer: Answer, *, once_only: bool = False) -> bool:
    """Whether the same request may succeed if it is sent again.

    once_only: a repeat must not happen if the first may have been processed; then only a failed
    connect and 429 and 503 leave no doubt.
    """
    if answer.failure in _AFTER_FAILURE:
        return False
    if once_only:
        return answer.failure in (Failure.CONNECT, Failure.CONNECT_TIMEOUT) or answer.status in (429, 503)
    return answer.status is None or answer.status in (408, 425, 429) or answer.status >= 500


def is_throttle(answer: Answer) -> bool:
    """Whether the server asks everybody to slow down: 429, and 503 with a Retry-After."""
    return answer.status == 429 or (answer.status == 503 and "retry-after" in answer.headers)
