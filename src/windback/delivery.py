"""What an answer means, and what comes next.

Pure: no clock, no socket, no sleep, no dice; times and random numbers are arguments. The workers,
`track_events` and the plain calls all obey these rules, so each of them has one home:

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
from datetime import timezone
from typing import Callable, Dict, Mapping, NamedTuple, Optional, Tuple

import orjson

from .errors import WindbackConnectionError, WindbackError, WindbackTimeoutError, error_class

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 8.0
#: The longest pause between rounds of retries in an outage.
OUTAGE_CAP_S = 60.0
#: A server that asks for more than this is asked again after it.
RETRY_AFTER_CAP_S = 300.0
#: After 401, 402, 403: somebody has to do something first.
REFUSED_PAUSE_S = 300.0
#: Bounds the text taken from an answer that is no JSON, such as a gateway's HTML page.
_TEXT_LIMIT = 200


class Failure(enum.Enum):
    """Why there is no answer. The value goes into messages."""

    CONNECT = "could not connect"
    CONNECT_TIMEOUT = "could not connect in time"
    TIMEOUT = "no answer in time"
    BROKEN = "the connection broke"
    FULL = "the broker takes no more"
    REFUSED = "the broker refuses"
    FORBIDDEN = "not allowed"


class Answer(NamedTuple):
    """What one try of a request came to: a status with headers (lower case) and body, or a failure."""

    status: Optional[int]
    headers: Mapping[str, str] = {}
    body: bytes = b""
    failure: Optional[Failure] = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the request succeeded: any 2xx, with or without a body."""
        return self.status is not None and 200 <= self.status < 300


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
        """Take in a try's answer; if another is due, `delay_s` says after how long."""
        self.made += 1
        self.last = answer
        if answer.ok or self.made > self._max_retries or not is_retryable(answer, once_only=self._once_only):
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


def retry_after_s(answer: Answer, wall_s: float) -> Optional[float]:
    """Return what a 429 or 503 asks us to wait (RFC 9110, section 10.2.3), capped; None if it doesn't."""
    if answer.status not in (429, 503):
        return None
    value = answer.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        delay_s = float(value)
    except ValueError:
        from email.utils import parsedate_to_datetime  # takes longer to load than all else in this module

        try:
            at = parsedate_to_datetime(value)
            # The form without a zone is in GMT too (RFC 9110, section 5.6.7).
            delay_s = (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp() - wall_s
        except (TypeError, ValueError, IndexError, OverflowError):
            return None
    if delay_s != delay_s:  # noqa: PLR0124 - NaN
        return None
    return min(max(0.0, delay_s), RETRY_AFTER_CAP_S)


def error_of(answer: Answer, wall_s: float, redact: Callable[[str], str]) -> WindbackError:
    """Return the error for an answer that is no success. Never fails, whatever the body is.

    redact: takes keys out of a text, should the server have repeated them.
    """
    if answer.status is None:
        failure = answer.failure or Failure.BROKEN
        is_late = failure in (Failure.TIMEOUT, Failure.CONNECT_TIMEOUT)
        kind = WindbackTimeoutError if is_late else WindbackConnectionError
        return kind(redact(f"{failure.value}: {answer.detail}" if answer.detail else failure.value))
    message, code = _text_and_code(answer.body, redact)
    if 300 <= answer.status < 400:
        where = redact(answer.headers.get("location", "another place"))
        message = (
            f"redirected to {where[:_TEXT_LIMIT]}, and redirects are not followed: set base_url to the API"
        )
    return error_class(answer.status)(
        redact(message or f"HTTP {answer.status} without a message"),
        status=answer.status,
        code=code and redact(code),
        request_id=redact(answer.headers.get("x-request-id", "")) or None,
        retry_after=retry_after_s(answer, wall_s),
    )


def _text_and_code(body: bytes, redact: Callable[[str], str]) -> Tuple[str, Optional[str]]:
    """Read {"error": text}, {"error": {"message": …}} and {"message": …}; else the start of the text."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        # Redacted before it is cut, or a key at the cut would leave its first part.
        text = redact(body[:8192].decode("utf-8", "replace"))
        return " ".join(text.split())[:_TEXT_LIMIT], None
    if not isinstance(data, dict):
        return "", None
    error = data.get("error")
    inner: Dict[str, object] = error if isinstance(error, dict) else {}
    message = error if isinstance(error, str) else inner.get("message") or data.get("message")
    code = data.get("code") or inner.get("code")
    return message if isinstance(message, str) else "", code if isinstance(code, str) else None


class Gate:
    """Whether a batch may be sent now, and how many at once.

    One gate stands before a queue. A success opens it a little further, up to *max_in_flight*; a
    Retry-After, a failed round of retries or a refusal closes it for a while and lets a single
    request through first.
    """

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.limit = max_in_flight
        self.problem: Optional[str] = None
        self._closed_until_s = 0.0
        self._must_wait = False
        self._rounds = 0
        self._throttles = 0

    def blocked_s(self, now_s: float) -> float:
        """Return for how long nothing may be sent."""
        return max(0.0, self._closed_until_s - now_s)

    def hurry(self) -> None:
        """Let the next request through at once, unless the server asked us to wait."""
        if not self._must_wait:
            self._closed_until_s = 0.0

    def succeeded(self, now_s: float) -> None:
        """The server took a request; one more at a time may go out.

        A request that was sent before the server asked us to wait does not end that.
        """
        self.problem = None
        self._rounds = 0
        if self._must_wait and now_s < self._closed_until_s:
            return
        self._throttles = 0
        self._must_wait = False
        self._closed_until_s = 0.0
        self.limit = min(self.max_in_flight, self.limit + 1)

    def throttled(self, now_s: float, dice: float, delay_s: Optional[float]) -> None:
        """The server asked the client to stay away: for *delay_s* seconds, or it did not say for how long."""
        self._throttles += 1
        own_s = backoff_s(self._throttles, dice)
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
        self.problem = problem
        return True

    def failed(self, now_s: float, dice: float, problem: str) -> None:
        """A batch used up its retries: an outage, which lasts until something succeeds."""
        self._rounds += 1
        # Never less than half: the pause between rounds is what keeps an outage quiet.
        full_s = min(OUTAGE_CAP_S, BACKOFF_CAP_S * 2.0 ** min(self._rounds - 1, 16))
        self.problem = problem
        if not self._must_wait or self.blocked_s(now_s) == 0.0:
            self._close(now_s, full_s * (1 + dice) / 2, must_wait=False)

    def refused(self, now_s: float, problem: str) -> None:
        """The server won't take anything from us until somebody mends the key, the plan or the URL."""
        self.problem = problem
        self._close(now_s, REFUSED_PAUSE_S, must_wait=False)

    def _close(self, now_s: float, seconds: float, *, must_wait: bool) -> None:
        self._closed_until_s = now_s + seconds
        self._must_wait = must_wait
        self.limit = 1


class OutageLog:
    """The lines an outage may write: one at its start, one a minute, one at its end with counts."""

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
            return f"delivery is held up: {problem}; {pending} events wait, and stay until the queue is full"
        if now_s - self._last_s < self.EVERY_S:
            return None
        self._last_s = now_s
        return f"delivery still held up after {now_s - self._since_s:.0f} s: {problem}; {pending} events wait"

    def recovered(self, now_s: float, pending: int, delivered: int) -> Optional[str]:
        """Return the line for the end of an outage; None if there was none."""
        if self._since_s is None:
            return None
        lasted_s, self._since_s = now_s - self._since_s, None
        done = delivered - self._delivered_before
        return f"delivery goes on after {lasted_s:.0f} s: {done} events delivered, {pending} wait"
