"""The rules of delivery, with the clock and the jitter as arguments."""

from __future__ import annotations

import json
import time
from email.utils import format_datetime, formatdate
from http import HTTPStatus

import pytest

import windback
from windback.api.answer import Answer, Failure, error_of, retry_after_s
from windback.delivery import gate as gates
from windback.delivery.gate import Gate
from windback.delivery.retry import RetryPolicy, backoff_s, retry_delay_s
from windback.delivery.verdict import CLASSES, STATUSES, Action, Verdict, is_retryable, judge, rule_of
from windback.models import parse_time
from windback.outage import OutageLog

LASTING = (Failure.REFUSED, Failure.FORBIDDEN, Failure.FOREIGN)
WALL = parse_time("2025-12-01T10:00:00Z").timestamp()


def answer(status, body=b"", **headers):
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def failed(failure, detail=""):
    return Answer(None, failure=failure, detail=detail)


def plain(text):
    return text


# What an answer means for a batch

MEANINGS = [
    *((answer(status), Action.ACK, "ok") for status in (200, 201, 202, 204, 299)),
    *((failed(each), Action.KEEP, each.name.lower()) for each in Failure if each not in LASTING),
    (failed(Failure.REFUSED), Action.PAUSE, "refused"),
    (failed(Failure.FORBIDDEN), Action.REJECT, "forbidden"),
    (failed(Failure.FOREIGN), Action.PAUSE, "foreign"),
    *(
        (answer(status), Action.KEEP, f"status_{status}")
        for status in (408, 409, 421, 425, 500, 502, 503, 504)
    ),
    *((answer(status), Action.KEEP, f"status_{status}") for status in (511, 520, 599, 600, 999)),
    (answer(429), Action.WAIT, "status_429"),
    (answer(429, retry_after="5"), Action.WAIT, "status_429"),
    (answer(503, retry_after="5"), Action.WAIT, "status_503"),
    (answer(500, retry_after="5"), Action.KEEP, "status_500"),
    *((answer(status), Action.PAUSE, f"status_{status}") for status in (301, 302, 307, 308, 401, 402, 403)),
    *((answer(status), Action.PAUSE, f"status_{status}") for status in (404, 405, 410)),
    *(
        (answer(status), Action.PAUSE, f"status_{status}")
        for status in (101, 407, 411, 415, 431, 451, 501, 505)
    ),
]


@pytest.mark.parametrize(
    ("given", "action", "reason"),
    MEANINGS,
    ids=[f"{reason}-{action.value}" for _, action, reason in MEANINGS],
)
@pytest.mark.parametrize("events", [1, 100])
def test_an_answer_has_one_meaning_for_a_batch(given, action, reason, events):
    assert judge(given, events=events, gzipped=False) == Verdict(action, reason)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(400, "invalid"), (422, "invalid"), (413, "too_large"), (418, "status_418"), (499, "status_499")],
)
def test_a_batch_is_split_until_one_event_is_left_and_rejected(status, reason):
    assert judge(answer(status), events=2, gzipped=False) == Verdict(Action.SPLIT, reason)
    assert judge(answer(status), events=1, gzipped=False) == Verdict(Action.REJECT, reason)


@pytest.mark.parametrize("events", [1, 100])
def test_400_and_415_on_gzip_ask_for_plain_first(events):
    for status in (400, 415):
        assert judge(answer(status), events=events, gzipped=True) == Verdict(Action.PLAIN, "gzip_refused")
    assert judge(answer(413), events=2, gzipped=True).action is Action.SPLIT
    assert judge(answer(200), events=2, gzipped=True).action is Action.ACK


@pytest.mark.parametrize("failure", Failure, ids=lambda each: each.name)
def test_no_answer_may_be_tried_again_but_once_only_requests_only_if_nothing_was_sent(failure):
    assert is_retryable(failed(failure)) is (failure not in LASTING)
    unsent = failure in (Failure.CONNECT, Failure.CONNECT_TIMEOUT)
    assert is_retryable(failed(failure), once_only=True) is unsent


@pytest.mark.parametrize(
    ("status", "again", "once_only"),
    [
        (408, True, False),
        (421, True, True),
        (425, True, True),
        (429, True, True),
        (500, True, False),
        (503, True, True),
        (504, True, False),
        (400, False, False),
        (401, False, False),
        (404, False, False),
        (302, False, False),
        (407, False, False),
        (501, False, False),
    ],
)
def test_a_status_may_be_worth_another_try(status, again, once_only):
    assert is_retryable(answer(status)) is again
    assert is_retryable(answer(status), once_only=True) is once_only


def test_a_conflict_is_tried_again_only_if_an_earlier_try_may_still_run():
    assert is_retryable(answer(409))
    assert not is_retryable(answer(409), is_repeat=False)
    assert not is_retryable(answer(409), once_only=True)


@pytest.mark.parametrize("status", sorted({*map(int, HTTPStatus), *STATUSES}))
def test_every_status_of_http_has_one_rule_with_a_reason(status):
    rule = rule_of(status)
    assert rule.why
    if rule.is_unprocessed:
        assert rule.is_retried
    if status not in STATUSES:
        assert rule is CLASSES[status // 100]


def test_no_status_but_success_loses_a_batch_as_a_whole():
    """What is rejected is a single event, found by halves; everything else stays in the queue."""
    for status in (status for status in range(100, 600) if not 200 <= status < 300):
        assert judge(answer(status), events=2, gzipped=False).action not in (Action.ACK, Action.REJECT)


# Delays


def test_backoff_is_exponential_with_full_jitter_and_capped():
    assert [backoff_s(n, 1.0) for n in (1, 2, 3, 4, 5, 6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert [backoff_s(n, 0.25) for n in (1, 5)] == [0.125, 2.0]
    assert backoff_s(1, 0.0) == 0.0
    assert backoff_s(10**9, 1.0) == 8.0


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("301", 300.0),
        ("1e300", 300.0),
        ("inf", 300.0),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("Mon, 99 Dec 2025 10:00:00 GMT", None),
        (formatdate(WALL + 42, usegmt=True), 42.0),
        (format_datetime(parse_time("2025-12-01T11:00:42+01:00")), 42.0),
        (formatdate(WALL - 42, usegmt=True), 0.0),
        (formatdate(WALL + 86_400, usegmt=True), 300.0),
        ("Monday, 01-Dec-25 10:00:42 GMT", 42.0),
        ("Mon Dec  1 10:00:42 2025", 42.0),
    ],
    ids=[
        *(
            "now",
            "seconds",
            "spaces",
            "fraction",
            "negative",
            "above the cap",
            "huge",
            "infinite",
            "NaN",
            "empty",
        ),
        *("no number", "no date", "date", "date in another zone", "date that has passed", "date far off"),
        *("RFC 850 date", "asctime date"),
    ],
)
def test_retry_after_is_read_in_every_form(status, value, expected, monkeypatch):
    # Far from UTC, so that a time taken for a local one is noticed.
    if hasattr(time, "tzset"):
        monkeypatch.setenv("TZ", "XYZ+07")
        time.tzset()
    try:
        assert retry_after_s(answer(status, retry_after=value), WALL) == expected
    finally:
        monkeypatch.undo()
        if hasattr(time, "tzset"):
            time.tzset()


@pytest.mark.parametrize("status", [200, 400, 401, 408, 500, 502])
def test_retry_after_counts_with_429_and_503_alone(status):
    assert retry_after_s(answer(status, retry_after="7"), WALL) is None
    assert retry_after_s(answer(429), WALL) is None
    assert retry_after_s(failed(Failure.CONNECT), WALL) is None


def test_retry_after_lengthens_the_backoff_and_never_shortens_it():
    assert retry_delay_s(answer(429, retry_after="7"), 1, 1.0, WALL) == 7.0
    assert retry_delay_s(answer(429, retry_after="1"), 5, 1.0, WALL) == 8.0
    assert retry_delay_s(answer(500), 1, 1.0, WALL) == 0.5


def test_a_broken_connection_is_tried_again_immediately_the_first_time():
    assert retry_delay_s(failed(Failure.BROKEN), 1, 1.0, WALL) == 0.0
    assert retry_delay_s(failed(Failure.BROKEN), 2, 1.0, WALL) == 1.0
    assert retry_delay_s(failed(Failure.CONNECT), 1, 1.0, WALL) == 0.5


# RetryPolicy


def test_tries_end_after_max_retries():
    policy = RetryPolicy(3, 10.0)
    assert [policy.is_last(attempt, 0.0, 0.0) for attempt in (1, 2, 3, 4)] == [False, False, False, True]
    assert RetryPolicy(0, 10.0).is_last(1, 0.0, 0.0)


@pytest.mark.parametrize(
    "given", [answer(200), answer(400), answer(401), answer(302)], ids=lambda a: str(a.status)
)
def test_an_answer_that_settles_it_ends_the_tries(given):
    assert not RetryPolicy(3, 10.0).allows_retry(given, 1)


def test_once_only_tries_end_where_the_first_may_have_arrived():
    policy = RetryPolicy(3, 10.0, once_only=True)
    assert not policy.allows_retry(failed(Failure.TIMEOUT), 1)
    assert not policy.allows_retry(answer(500), 1)
    assert policy.allows_retry(answer(429), 1)
    assert policy.allows_retry(failed(Failure.CONNECT), 1)


def test_no_wait_goes_beyond_the_deadline():
    policy = RetryPolicy(3, 10.0, deadline_s=100.0)
    assert not policy.is_last(1, 94.0, 5.0)
    assert policy.is_last(1, 95.0, 5.0)
    assert policy.is_last(1, 100.0, 0.0)


def test_a_try_may_take_its_timeout_or_what_the_deadline_leaves():
    assert RetryPolicy(3, 10.0).left_s(1e9) == 10.0
    policy = RetryPolicy(3, 10.0, deadline_s=100.0)
    assert [policy.left_s(now) for now in (0.0, 95.0, 100.0, 200.0)] == [10.0, 5.0, 0.0, 0.0]


def test_gated_tries_leave_a_throttle_to_the_gate():
    policy = RetryPolicy(3, 10.0, gated=True)
    assert not policy.allows_retry(answer(429), 1)
    assert not policy.allows_retry(answer(503, retry_after="1"), 1)
    assert policy.allows_retry(answer(503), 1)


def test_a_conflict_is_only_retried_where_an_earlier_try_may_be_running():
    assert not RetryPolicy(3, 10.0).allows_retry(answer(409), 1)
    assert RetryPolicy(3, 10.0).allows_retry(answer(409), 2)
    assert RetryPolicy(3, 10.0, gated=True).allows_retry(answer(409), 1)


# Errors


def error(given):
    return error_of(given, WALL, plain)


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error": "no such thing"}', "no such thing", None),
        (b'{"error": "no", "code": "GONE"}', "no", "GONE"),
        (b'{"message": "no", "code": "GONE"}', "no", "GONE"),
        (b'{"error": {"message": "no", "code": "GONE"}}', "no", "GONE"),
        (b'{"error": {}, "message": "no"}', "no", None),
        (b'{"error": 7, "code": 8}', "HTTP 404 without a message", None),
        (b"{}", "HTTP 404 without a message", None),
        (b"", "HTTP 404 without a message", None),
        (b"[1, 2]", "HTTP 404 without a message", None),
        (b"null", "HTTP 404 without a message", None),
        (b'"text"', "HTTP 404 without a message", None),
        (b"<html>\n <h1>Not\tfound</h1></html>", "<html> <h1>Not found</h1></html>", None),
        (b'{"error": "cut sh', '{"error": "cut sh', None),
        (b"\xff\xfe", "\ufffd\ufffd", None),
        (b"x" * 10_000, "x" * 200, None),
        (b"   \n ", "HTTP 404 without a message", None),
    ],
    ids=[
        *(
            "documented",
            "with a code",
            "of the package",
            "nested",
            "half nested",
            "of other types",
            "empty object",
        ),
        *("empty", "list", "null", "text", "HTML", "cut short", "no text", "very long", "blank"),
    ],
)
def test_an_error_is_read_from_any_body(body, message, code):
    made = error(answer(404, body))
    assert type(made) is windback.NotFoundError
    assert (made.message, made.code, made.status) == (message, code, 404)


def test_an_error_keeps_the_request_id_and_what_the_server_asks_to_wait():
    made = error(answer(429, b"{}", x_request_id="req_7", retry_after="3"))
    assert (made.request_id, made.retry_after) == ("req_7", 3.0)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (Failure.CONNECT, windback.WindbackConnectionError),
        (Failure.CONNECT_TIMEOUT, windback.WindbackTimeoutError),
        (Failure.TIMEOUT, windback.WindbackTimeoutError),
        (Failure.BROKEN, windback.WindbackConnectionError),
    ],
)
def test_no_answer_is_an_error_that_gives_the_reason(failure, kind):
    made = error(failed(failure, "name not known"))
    assert type(made) is kind
    assert made.message == f"{failure.value}: name not known"
    assert error(failed(failure)).message == failure.value


def test_a_redirect_reports_where_to():
    made = error(answer(307, b"<html>", location="https://elsewhere.example.com/"))
    assert type(made) is windback.WindbackError
    assert "https://elsewhere.example.com/" in made.message
    assert "redirect" in error(answer(302)).message


def test_an_error_repeats_no_key_wherever_the_server_put_it():
    key = "sk_live_secret"

    def redact(text):
        return text.replace(key, "sk_***")

    body = json.dumps({"error": f"bad key {key}", "code": f"BAD_{key}"}).encode()
    cases = [
        answer(401, body, x_request_id=f"req-{key}"),
        answer(307, b"", location=f"https://example.com/?key={key}"),
        answer(500, f"<p>{key}".encode()),
        failed(Failure.BROKEN, f"illegal header {key}"),
    ]
    for each in cases:
        made = error_of(each, WALL, redact)
        assert "live" not in f"{made} {made!r} {vars(made)}"


def test_an_error_repeats_no_part_of_a_key_where_a_text_is_cut():
    key = "sk_live_0123456789abcdef"
    for before in range(170, 201):
        long = "x" * before + key + "y" * 1_000
        for each in (answer(500, long.encode()), answer(302, b"", location=long)):
            made = error_of(each, WALL, lambda text: text.replace(key, "sk_***"))
            assert "sk_l" not in made.message


# The gate


def test_an_open_gate_blocks_nobody():
    gate = Gate(4)
    assert (gate.blocked_s(0.0), gate.limit, gate.problem(0.0), gate.is_down) == (0.0, 4, None, False)


def test_a_throttled_gate_waits_as_long_as_the_server_asked_and_lets_one_through():
    gate = Gate(4)
    gate.throttled(100.0, 0.0, 30.0)
    assert (gate.blocked_s(100.0), gate.blocked_s(120.0), gate.blocked_s(130.0)) == (30.0, 10.0, 0.0)
    assert gate.limit == 1


def test_a_throttle_without_a_time_backs_off():
    gate = Gate(4)
    gate.throttled(100.0, 1.0, None)
    assert gate.blocked_s(100.0) == 0.5
    gate.throttled(101.0, 1.0, None)
    assert gate.blocked_s(101.0) == 1.0
    assert gate.limit == 1


def test_each_success_after_a_throttle_lets_one_more_through_up_to_the_limit():
    gate = Gate(4)
    gate.throttled(0.0, 0.0, 1.0)
    limits = []
    for _ in range(5):
        gate.succeeded(2.0)
        limits.append(gate.limit)
    assert limits == [2, 3, 4, 4, 4]


def test_a_success_while_the_server_wants_us_to_wait_leaves_the_gate_closed():
    gate = Gate(4)
    gate.throttled(100.0, 0.0, 30.0)
    gate.last_failure = "429: slow down"
    gate.succeeded(101.0)
    assert (gate.blocked_s(101.0), gate.limit) == (29.0, 1)
    assert gate.problem(101.0) == "429: slow down; the next try is in 29 s"
    gate.succeeded(130.0)
    assert gate.problem(130.0) is None


def test_a_gate_that_another_sender_was_told_to_close_reports_it():
    gate = Gate(4)
    gate.hold(130.0)
    assert gate.problem(100.0) == (
        "the server asked another sender of this project to wait; the next try is in 30 s"
    )
    assert not gate.is_down


def test_nothing_hurries_a_gate_that_the_server_closed():
    gate = Gate(4)
    gate.throttled(100.0, 0.0, 30.0)
    gate.open_early()
    assert gate.blocked_s(101.0) == 29.0


def test_a_failed_round_pauses_longer_each_time_up_to_a_minute():
    gate = Gate(4)
    pauses = []
    now_s = 0.0
    for _ in range(6):
        now_s += gate.blocked_s(now_s)
        for _ in range(4):  # that were under way at the same time are one round
            gate.failed(now_s, 0.99999, "down")
        pauses.append(round(gate.blocked_s(now_s)))
    assert pauses == [8, 16, 32, 60, 60, 60]
    assert (gate.limit, gate.problem(now_s)) == (1, "down; the next try is in 60 s")
    gate.failed(now_s, 0.0, "down")
    assert gate.blocked_s(now_s) == 30.0, "never less than half"


def test_a_flush_hurries_a_gate_that_an_outage_or_a_refusal_closed():
    for close in (lambda gate: gate.failed(0.0, 0.5, "down"), lambda gate: gate.refused(0.0, "bad key")):
        gate = Gate(4)
        close(gate)
        assert gate.blocked_s(0.0) > 0
        gate.open_early()
        assert gate.blocked_s(0.0) == 0.0
        assert gate.problem(0.0).endswith("; trying again")


def test_a_failed_round_does_not_shorten_what_the_server_asked_for():
    gate = Gate(4)
    gate.throttled(0.0, 0.0, 300.0)
    gate.failed(1.0, 0.5, "down")
    assert gate.blocked_s(1.0) == 299.0


def test_a_refusal_pauses_for_minutes():
    gate = Gate(4)
    gate.refused(100.0, "bad key")
    assert gate.blocked_s(100.0) == gates.REFUSED_PAUSE_S == 300.0
    assert (gate.limit, gate.problem(100.5)) == (1, "bad key; the next try is in 300 s")


def test_a_success_ends_the_outage():
    gate = Gate(4)
    gate.failed(0.0, 0.5, "down")
    gate.failed(0.0, 0.5, "down")
    gate.succeeded(1.0)
    assert (gate.blocked_s(1.0), gate.problem(1.0), gate.limit) == (0.0, None, 2)
    gate.failed(2.0, 0.99999, "down")
    assert round(gate.blocked_s(2.0)) == 8, "a new outage starts anew"


# What an outage may write


def test_an_outage_writes_a_line_at_its_start_one_a_minute_and_one_at_its_end():
    log = OutageLog()
    assert log.recovered(0.0, 0, 100) is None
    first = log.trouble(10.0, "503", 5, 100)
    assert first == (
        "cannot deliver: 503; 5 events queued, retrying; events are refused only if the queue fills up"
    )
    written = [log.trouble(10.0 + second, "503", 6, 100) for second in range(1, 131)]
    assert [n + 1 for n, line in enumerate(written) if line] == [60, 120]
    assert written[59] == "still cannot deliver after 60 s: 503; 6 events queued"
    assert log.recovered(145.0, 2, 150) == "delivering again after 135 s: 50 events delivered, 2 queued"
    assert log.recovered(146.0, 0, 152) is None
    assert log.trouble(147.0, "again", 1, 152).startswith("cannot deliver: again")


def test_a_gate_waits_as_long_as_others_were_told_to():
    gate = Gate(4)
    gate.hold(10.0)
    assert (gate.blocked_s(4.0), gate.limit) == (6.0, 1)
    gate.hold(7.0)  # of what somebody was told before
    gate.open_early()
    gate.succeeded(5.0)  # of a request that was made before
    assert gate.blocked_s(5.0) == 5.0
    assert gate.blocked_s(10.0) == 0.0
    gate.succeeded(11.0)
    assert gate.limit == 2
