"""What an answer means: one table of status codes for batches, `track_events` and plain calls.

Pure: no clock, no socket, no sleep. `STATUSES` has each status of HTTP that does not mean what its class
means; the reference shows the whole table.
"""

from __future__ import annotations

import enum
from typing import Dict, NamedTuple, Tuple

from ..api.answer import Answer, Failure


class Action(enum.Enum):
    """What to do with a batch after its last try."""

    ACK = "ack"  # delivered
    KEEP = "keep"  # again later, as it is
    WAIT = "wait"  # again when the gate, which the server closed, is open
    SPLIT = "split"  # in two halves
    REJECT = "reject"  # never
    PLAIN = "plain"  # again immediately, without gzip
    PAUSE = "pause"  # again, after somebody has fixed it


class Rule(NamedTuple):
    """What a status means.

    action: for a batch; SPLIT rejects a single event. is_unprocessed: the server reports that it did nothing,
    so even a call that must happen only once is sent again.
    """

    action: Action
    why: str
    is_unprocessed: bool = False

    @property
    def is_retried(self) -> bool:
        """Whether a plain call is sent again, too: for what may pass, and not for what a person must fix."""
        return self.action in (Action.KEEP, Action.WAIT)


_NOT_THE_API = "base_url does not lead to the API"
_SERVER = "the server has trouble, which may pass"

#: By the first digit: clients treat an unknown status like the first of its class (RFC 9110, section 15).
CLASSES: Dict[int, Rule] = {
    1: Rule(Action.PAUSE, "an interim answer is not the answer of an API"),
    2: Rule(Action.ACK, "the API took it"),
    3: Rule(
        Action.PAUSE,
        f"redirects are not followed, because the key goes to one host only: {_NOT_THE_API}",
    ),
    4: Rule(Action.SPLIT, "an event may be at fault: halves are sent until it is alone"),
    5: Rule(Action.KEEP, _SERVER),
}

STATUSES: Dict[int, Rule] = {
    401: Rule(Action.PAUSE, "the key is wrong: no repeat would help until somebody changes it"),
    402: Rule(Action.PAUSE, "the subscription has expired"),
    403: Rule(Action.PAUSE, "the key may not do this"),
    404: Rule(Action.PAUSE, _NOT_THE_API),
    405: Rule(Action.PAUSE, _NOT_THE_API),
    406: Rule(Action.PAUSE, "a proxy or another server cannot answer as it was asked"),
    407: Rule(Action.PAUSE, "a proxy wants credentials"),
    408: Rule(Action.KEEP, "the server waited too long for the request"),
    409: Rule(Action.KEEP, "an earlier try with the same Idempotency-Key is still running"),
    410: Rule(Action.PAUSE, _NOT_THE_API),
    411: Rule(Action.PAUSE, "a proxy dropped the length of the body; no event is at fault"),
    412: Rule(Action.PAUSE, "the request has no precondition, so this is not the API"),
    413: Rule(Action.SPLIT, "the body is too large: halves are sent"),
    414: Rule(Action.PAUSE, "the URL is too long, so base_url is wrong"),
    415: Rule(Action.PAUSE, "the server takes no JSON, so this is not the API"),
    416: Rule(Action.PAUSE, "the request asks for no range, so this is not the API"),
    417: Rule(Action.PAUSE, "the request expects nothing, so this is not the API"),
    421: Rule(
        Action.KEEP,
        "the wrong server got the request; another connection may help",
        is_unprocessed=True,
    ),
    423: Rule(Action.KEEP, "something is locked, which may pass"),
    424: Rule(Action.KEEP, "something else failed, which may pass"),
    425: Rule(Action.KEEP, "the server does not want to process it this early", is_unprocessed=True),
    426: Rule(Action.PAUSE, "the server wants another protocol"),
    428: Rule(Action.PAUSE, "the server wants a precondition, so this is not the API"),
    429: Rule(Action.WAIT, "the server asks everybody to slow down", is_unprocessed=True),
    431: Rule(Action.PAUSE, "the headers are too large; no event is at fault"),
    451: Rule(Action.PAUSE, "blocked for legal reasons; no event is at fault"),
    501: Rule(Action.PAUSE, "the server does not know the method, so this is not the API"),
    503: Rule(Action.KEEP, _SERVER, is_unprocessed=True),
    505: Rule(Action.PAUSE, "the server wants another version of HTTP"),
    511: Rule(Action.KEEP, "a network wants a login first; it is not the API's answer"),
}

#: Failures without an answer that another try does not change.
_LASTING = {
    Failure.REFUSED: Action.PAUSE,
    Failure.FORBIDDEN: Action.REJECT,
    Failure.FOREIGN: Action.PAUSE,
}
#: Failures after which the server cannot have processed the request.
_UNSENT: Tuple[Failure, ...] = (Failure.CONNECT, Failure.CONNECT_TIMEOUT)
_REASONS = {400: "invalid", 413: "too_large", 422: "invalid"}


class Verdict(NamedTuple):
    """What a batch's answer means; reason is a short token for counters."""

    action: Action
    reason: str


def rule_of(status: int) -> Rule:
    """Return what *status* means; one outside of HTTP means server trouble."""
    return STATUSES.get(status) or CLASSES.get(status // 100) or CLASSES[5]


def judge(answer: Answer, *, events: int, gzipped: bool) -> Verdict:
    """Decide about a batch of *events* after the last of its tries."""
    status = answer.status
    if answer.ok:
        return Verdict(Action.ACK, "ok")
    if status is None:
        failure = answer.failure or Failure.BROKEN
        return Verdict(_LASTING.get(failure, Action.KEEP), failure.name.lower())
    if gzipped and status in (400, 415):
        return Verdict(Action.PLAIN, "gzip_refused")
    action = Action.WAIT if is_throttle(answer) else rule_of(status).action
    if action is Action.SPLIT and events == 1:
        action = Action.REJECT
    return Verdict(action, _REASONS.get(status, f"status_{status}"))


def is_retryable(answer: Answer, *, once_only: bool = False, is_repeat: bool = True) -> bool:
    """Return whether the same request may succeed if it is sent again.

    once_only: a repeat must not happen if the first may have been processed. is_repeat: this was not the
    first try. A 409 on the first one is a real conflict, since no earlier try can be running.
    """
    if answer.status is None:
        failure = answer.failure or Failure.BROKEN
        return failure in _UNSENT if once_only else failure not in _LASTING
    rule = rule_of(answer.status)
    if once_only:
        return rule.is_unprocessed
    return rule.is_retried and (is_repeat or answer.status != 409)


def is_throttle(answer: Answer) -> bool:
    """Return whether the server asks everybody to slow down: 429, and 503 with a Retry-After."""
    return answer.status == 429 or (answer.status == 503 and "retry-after" in answer.headers)
