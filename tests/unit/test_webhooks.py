"""Webhooks: signatures, the two documented forms of an alert, and one call of the handler for each alert."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import hmac
import itertools
import json
import logging
import random
import threading
import traceback
from datetime import datetime, timedelta, timezone

import pytest

import windback
from windback import ConfigurationError, WebhookError
from windback.webhooks import (
    MAX_BODY_BYTES,
    SECRET_VARIABLE,
    TOLERANCE,
    ChurnRiskAlert,
    RecentAlerts,
    Signal,
    WebhookReceiver,
    parse,
    sign,
    verify,
)

SECRET = "whsec_5ecret0f7hep1ace"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)

#: As on the docs page "Churn Risk Webhook Delivery".
SITE = {
    "event": "churn_risk.alert",
    "project_id": "prj_1",
    "customer_email": "jane@example.com",
    "risk_score": 87,
    "risk_level": "critical",
    "signals": [{"name": "login_drop", "weight": 0.4}, {"name": "ticket", "weight": 1}],
    "triggered_at": "2026-03-01T12:00:00Z",
    "opaque_id": "alert_1",
}
#: As in the docs tree.
TREE = {
    "customer_id": "cus_1",
    "customer_name": "Jane",
    "subject": "We miss you",
    "body_html": "<p>Hello</p>",
    "risk_score": 71.5,
    "risk_level": "high",
    "signals": [{"name": "login_drop", "description": "No login for 9 days"}],
    "timestamp": "2026-03-01T13:00:00.5+01:00",
}


def encoded(payload):
    return json.dumps(payload).encode()


def read(payload, **options):
    body = payload if isinstance(payload, bytes) else encoded(payload)
    return parse(body, sign(body, SECRET), SECRET, **{"now": NOW, **options})


def refused(payload, **options):
    with pytest.raises(WebhookError) as caught:
        read(payload, **options)
    return caught.value


# -- signatures ------------------------------------------------------------------------------------


def test_the_signature_is_that_of_the_docs():
    body = encoded(SITE)
    assert sign(body, SECRET) == hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()


def test_a_body_is_accepted_with_its_own_signature_only():
    body = encoded(SITE)
    verify(body, sign(body, SECRET), SECRET)
    with pytest.raises(WebhookError, match="encoded again") as caught:
        verify(json.dumps(SITE, indent=1).encode(), sign(body, SECRET), SECRET)
    assert (caught.value.code, caught.value.status) == ("bad_signature", 401)


@pytest.mark.parametrize(
    "change",
    [str.encode, str.upper, lambda text: f" {text}\r\n"],
    ids=["bytes", "upper case", "surrounded by spaces"],
)
def test_a_signature_may_be_written_differently(change):
    body = encoded(SITE)
    verify(body, change(sign(body, SECRET)), SECRET)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_any_bytes_are_a_body(kind):
    body = encoded(SITE)
    verify(kind(body), sign(body, SECRET), SECRET)


@pytest.mark.parametrize(
    ("signature", "code"),
    [
        (None, "missing_signature"),
        ("", "missing_signature"),
        (" \t", "missing_signature"),
        ("00" * 32, "bad_signature"),
        ("é" * 64, "bad_signature"),
        ("\udce9\udcff", "bad_signature"),
        ("\x00", "bad_signature"),
        (b"\xff\xfe", "bad_signature"),
        ("sha256=" + sign(encoded(SITE), SECRET), "bad_signature"),
        (sign(encoded(SITE), SECRET)[:-1], "bad_signature"),
        (7, "bad_signature"),
        (["x"], "bad_signature"),
    ],
)
def test_any_other_signature_is_refused(signature, code):
    with pytest.raises(WebhookError) as caught:
        verify(encoded(SITE), signature, SECRET)
    assert (caught.value.code, caught.value.status) == (code, 401)


def test_an_old_and_a_new_secret_are_accepted_while_one_is_replaced():
    body = encoded(SITE)
    for secrets in (["whsec_new", SECRET], (SECRET, "whsec_new")):
        verify(body, sign(body, SECRET), secrets)
    with pytest.raises(WebhookError):
        verify(body, sign(body, SECRET), ["whsec_new", "whsec_other"])


@pytest.mark.parametrize("text", [SECRET, f"whsec_new, {SECRET}", f" {SECRET} ,"])
def test_the_secret_comes_from_the_environment(monkeypatch, text):
    monkeypatch.setenv(SECRET_VARIABLE, text)
    body = encoded(SITE)
    verify(body, sign(body, SECRET))
    assert parse(body, sign(body, SECRET), now=NOW).opaque_id == "alert_1"


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        ("", "secret is empty"),
        (" ", "secret is empty"),
        ([], "empty list"),
        (["whsec_1", ""], r"secret\[1\] is empty"),
        (["whsec_1", 7], r"secret\[1\] must be a text, not an int"),
        (["whsec_1", None], r"secret\[1\] must be a text, not a NoneType"),
        (SECRET + "\n", "line end"),
        (b"whsec_1", "must be a text, not a bytes"),
        (7, "must be a text, not an int"),
        ("sk_live_1", "is an API key"),
        (["pub_live_1"], "is an API key"),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda secret: verify(b"{}", "x", secret),
        lambda secret: parse(b"{}", "x", secret),
        lambda secret: WebhookReceiver(print, secret),
    ],
    ids=["verify", "parse", "receiver"],
)
def test_a_secret_that_can_not_work_is_an_error_of_the_configuration(use, secret, says):
    with pytest.raises(ConfigurationError, match=says):
        use(secret)


@pytest.mark.parametrize("text", [None, "", " , "])
def test_a_missing_secret_reports_where_it_is_set(monkeypatch, text):
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(SECRET_VARIABLE, text)
    with pytest.raises(ConfigurationError, match="set WINDBACK_WEBHOOK_SECRET") as caught:
        WebhookReceiver(print)
    assert caught.value.code == "MISSING_WEBHOOK_SECRET"


@pytest.mark.parametrize(
    "use",
    [
        lambda: verify(b"{}", "x", SECRET),
        lambda: parse(b"{}", "x", ["whsec_1", SECRET]),
        lambda: parse(b"{}", sign(b"{}", SECRET), SECRET),
        lambda: parse(b"{}", "x", SECRET + " "),
        lambda: sign(b"{}", SECRET + "\n"),
        lambda: WebhookReceiver(print, [SECRET, 3]),
        lambda: WebhookReceiver(None, SECRET),
    ],
)
def test_no_frame_of_an_error_holds_the_secret(use):
    with pytest.raises(windback.WindbackError) as caught:
        use()
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    inside = [frame for frame in shown.stack if frame.filename.endswith("webhooks.py")]
    assert inside
    assert SECRET[6:14] not in "".join(str(frame.locals) for frame in inside if frame.filename != __file__)


# -- the alert -------------------------------------------------------------------------------------


def test_the_form_of_the_site_is_read():
    alert = read({**SITE, "new_field": {"a": 1}})
    assert alert == ChurnRiskAlert(
        id="alert_1",
        risk_score=87,
        risk_level="critical",
        customer_email="jane@example.com",
        project_id="prj_1",
        signals=(Signal("login_drop", 0.4), Signal("ticket", 1)),
        triggered_at=NOW,
        opaque_id="alert_1",
    )
    assert alert.raw["new_field"] == {"a": 1}
    with pytest.raises(dataclasses.FrozenInstanceError):
        alert.risk_score = 0


def test_the_form_of_the_docs_tree_is_read():
    body = encoded(TREE)
    alert = read(body)
    assert alert == ChurnRiskAlert(
        id=hashlib.sha256(body).hexdigest(),
        risk_score=71.5,
        risk_level="high",
        customer_id="cus_1",
        customer_name="Jane",
        signals=(Signal("login_drop", None, "No login for 9 days"),),
        triggered_at=NOW + timedelta(seconds=0.5),
        subject="We miss you",
        body_html="<p>Hello</p>",
    )


@pytest.mark.parametrize("left_out", ["event", "project_id", "risk_level", "signals", "opaque_id"])
def test_what_is_not_needed_may_be_left_out(left_out):
    alert = read({name: value for name, value in SITE.items() if name != left_out})
    assert alert.customer_email == "jane@example.com"


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"customer_email": "\\ud800"}', "not JSON"),
        (b"[]", "must be a JSON object, not a list"),
        (b"null", "must be a JSON object"),
        ({}, "neither"),
        ({**SITE, "event": "churn_risk.resolved"}, '"event" must be "churn_risk.alert"'),
        ({**SITE, "event": None}, '"event" must be'),
        ({**SITE, "customer_email": 7}, '"customer_email" must be a text, not 7'),
        ({**SITE, "customer_email": ""}, "neither"),
        ({**SITE, "risk_score": None}, 'no "risk_score"'),
        ({**SITE, "risk_score": "87"}, '"risk_score" must be a number, not "87"'),
        ({**SITE, "risk_score": True}, '"risk_score" must be a number, not true'),
        ({**SITE, "risk_level": [1]}, '"risk_level" must be a text, not a list'),
        ({**SITE, "signals": "x"}, '"signals" must be a list'),
        ({**SITE, "signals": ["x"]}, r'"signals\[0\]" must be an object'),
        ({**SITE, "signals": [{}]}, r'"signals\[0\]" has no "name"'),
        ({**SITE, "signals": [{"name": "a", "weight": {}}]}, r'"signals\[0\].weight" must be a number'),
        ({**SITE, "opaque_id": 7}, '"opaque_id" must be a text'),
        ({**SITE, "triggered_at": "yesterday"}, '"triggered_at" must be a time in ISO 8601'),
        ({**SITE, "triggered_at": None}, "age is not known"),
        ({**SITE, "triggered_at": "x" * 1000}, "xxx…"),
    ],
)
def test_any_other_payload_is_refused(payload, says):
    error = refused(payload)
    assert (error.code, error.status) == ("bad_payload", 400)
    with pytest.raises(WebhookError, match=says):
        raise error


@pytest.mark.parametrize("body", ["{}", None, {"a": 1}, 7])
def test_a_body_that_was_decoded_is_refused(body):
    with pytest.raises(WebhookError, match="raw bytes of the request") as caught:
        parse(body, "00", SECRET)
    assert caught.value.code == "bad_payload"


def test_a_body_may_have_256_kb():
    padding = MAX_BODY_BYTES - len(encoded({**SITE, "padding": ""}))
    assert read({**SITE, "padding": "x" * padding}).opaque_id == "alert_1"
    error = refused({**SITE, "padding": "x" * (padding + 1)})
    assert (error.code, error.status) == ("too_large", 413)


# -- age -------------------------------------------------------------------------------------------


def test_the_last_retry_of_the_api_is_let_in():
    """It comes after 10 + 60 + 300 s, and each try before it may take 5 s."""
    assert read(SITE, now=NOW + timedelta(seconds=10 + 60 + 300 + 4 * 5)).opaque_id == "alert_1"


@pytest.mark.parametrize("by", [TOLERANCE, -TOLERANCE], ids=["past", "future"])
def test_an_alert_from_another_time_is_refused(by):
    assert read(SITE, now=NOW + by)
    error = refused(SITE, now=NOW + by * 1.01)
    assert (error.code, error.status) == ("too_old", 400)


def test_the_tolerance_can_be_changed():
    assert read(SITE, now=NOW + timedelta(days=1), tolerance=timedelta(days=1))
    assert read(SITE, now=NOW + timedelta(days=400), tolerance=None)
    assert read({**SITE, "triggered_at": None}, tolerance=None).triggered_at is None
    assert refused(SITE, now=NOW + timedelta(seconds=2), tolerance=timedelta(seconds=1)).code == "too_old"


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_the_ends_of_the_calendar_are_another_time(at):
    assert refused({**SITE, "triggered_at": at}).code == "too_old"


@pytest.mark.parametrize("tolerance", [0, 900, timedelta(0), timedelta(seconds=-1), "15 min"])
def test_a_wrong_tolerance_is_an_error_of_the_configuration(tolerance):
    with pytest.raises(ConfigurationError, match="tolerance must be"):
        read(SITE, tolerance=tolerance)


@pytest.mark.parametrize("now", [datetime(2026, 3, 1), 0, "now"])  # noqa: DTZ001 - what is wrong about it
def test_a_wrong_now_is_an_error_of_the_configuration(now):
    with pytest.raises(ConfigurationError, match="time zone"):
        read(SITE, now=now)


# -- any input -------------------------------------------------------------------------------------

_VALUES = [
    *(None, True, -1, 0, 87, 1e308, 2**63, "", "x", "jane@example.com", "2026-03-01T12:00:00Z", [], {}),
    "2020-01-01T00:00:00Z",
    *(
        [[]],
        [{}],
        [None],
        [{"name": 1}],
        {"name": {}},
        "\x00",
        "é\u2028",
        functools.reduce(lambda a, _: [a], range(600), []),
    ),
]


def _fuzzed(rng):
    """Return the body and the signature of one request."""
    payload = dict(rng.choice([SITE, TREE]))
    for _ in range(rng.randrange(4)):
        payload[rng.choice([*SITE, *TREE, "other"])] = rng.choice(_VALUES)
    for _ in range(rng.randrange(3)):
        payload.pop(rng.choice(list(payload)), None) if payload else None
    body = bytearray(encoded(payload))
    for _ in range(rng.choice([0, 0, 1, 5])):
        at = rng.randrange(len(body) + 1)
        body[at : at + rng.randrange(3)] = bytes(rng.randrange(256) for _ in range(rng.randrange(4)))
    whole = (
        bytes(body) if rng.random() < 0.95 else bytes(rng.randrange(256) for _ in range(rng.randrange(64)))
    )
    signature = sign(whole, SECRET)
    if rng.random() < 0.3:
        alphabet = "0123456789abcdefABCDEF=,é\udcff\x00 \r\n"
        signature = "".join(rng.choice(alphabet) for _ in range(rng.choice([0, 1, 63, 64, 65, 500])))
    return whole, rng.choice([signature, signature, signature.encode("utf-8", "surrogatepass"), None])


def test_fuzzed_requests_are_an_alert_or_a_webhook_error():
    rng = random.Random(19)
    handled = []
    receiver = WebhookReceiver(handled.append, SECRET, tolerance=None)
    codes, statuses = set(), set()
    for _ in range(2_000):
        body, signature = _fuzzed(rng)
        try:
            assert parse(body, signature, SECRET, now=NOW)
        except WebhookError as error:
            codes.add(error.code)
        statuses.add(receiver.receive(body, signature).status)
    assert codes == {"bad_signature", "missing_signature", "bad_payload", "too_old"}
    assert statuses == {200, 400, 401}
    assert handled


# -- deliveries ------------------------------------------------------------------------------------


def signed(payload=SITE):
    body = encoded({**payload, "triggered_at": datetime.now(timezone.utc).isoformat()})
    return body, sign(body, SECRET)


def test_each_alert_is_handled_once():
    handled = []
    receiver = WebhookReceiver(handled.append, SECRET)
    assert receiver.receive(*signed()) == (200, {"status": "ok"})
    assert receiver.receive(*signed()) == (200, {"status": "duplicate"})
    assert receiver.receive(*signed({**SITE, "opaque_id": "alert_2"})) == (200, {"status": "ok"})
    assert [alert.id for alert in handled] == ["alert_1", "alert_2"]


def test_an_alert_without_an_id_is_known_by_its_body():
    handled = []
    receiver = WebhookReceiver(handled.append, SECRET, tolerance=None)
    one, other = encoded(TREE), encoded({**TREE, "customer_id": "cus_2"})
    for body in (one, one, other):
        assert receiver.receive(body, sign(body, SECRET)).status == 200
    assert [alert.customer_id for alert in handled] == ["cus_1", "cus_2"]


def test_a_handler_that_raises_is_called_again_at_the_next_delivery():
    calls = []

    def handler(alert):
        calls.append(alert)
        if len(calls) == 1:
            raise WebhookError("of the application", code="bad_signature")

    receiver = WebhookReceiver(handler, SECRET)
    with pytest.raises(WebhookError, match="of the application"):  # not a 401: it is the application's own
        receiver.receive(*signed())
    assert [receiver.receive(*signed()).body["status"] for _ in range(2)] == ["ok", "duplicate"]
    assert len(calls) == 2


def test_an_alert_counts_as_seen_only_after_its_handler_returned():
    seen = set()
    states = []
    receiver = WebhookReceiver(lambda alert: states.append(alert.id in seen), SECRET, seen=seen)
    receiver.receive(*signed())
    assert states == [False]
    assert seen == {"alert_1"}


def test_what_remembers_alerts_may_fail():
    class Broken:
        fails = True

        def __contains__(self, alert_id):
            if self.fails:
                raise ConnectionError
            return False

        def add(self, alert_id):
            pass

    handled = []
    receiver = WebhookReceiver(handled.append, SECRET, seen=Broken())
    with pytest.raises(ConnectionError):
        receiver.receive(*signed())
    Broken.fails = False
    assert receiver.receive(*signed()).status == 200
    assert len(handled) == 1


def test_a_second_delivery_while_the_handler_runs_is_to_come_again():
    entered, release = threading.Event(), threading.Event()

    def handler(alert):
        entered.set()
        assert release.wait(30)

    receiver = WebhookReceiver(handler, SECRET)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(receiver.receive(*signed())))
    thread.start()
    assert entered.wait(30)
    assert receiver.receive(*signed()).status == 409
    release.set()
    thread.join()
    assert answers == [(200, {"status": "ok"})]
    assert receiver.receive(*signed()).body["status"] == "duplicate"


def test_an_async_handler_is_awaited_and_may_be_cancelled():
    async def main():
        started = asyncio.Event()
        handled = []

        async def handler(alert):
            started.set()
            await asyncio.sleep(0 if handled else 3600)

        receiver = WebhookReceiver(handler, SECRET)
        assert receiver.is_async
        task = asyncio.ensure_future(receiver.receive_async(*signed()))
        await started.wait()
        assert (await receiver.receive_async(*signed())).status == 409
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        handled.append(1)
        return [(await receiver.receive_async(*signed())).body["status"] for _ in range(2)]

    assert asyncio.run(main()) == ["ok", "duplicate"]


async def _handle(alert):
    pass


class _AsyncCall:
    async def __call__(self, alert):
        pass


@pytest.mark.parametrize(
    ("handler", "is_async"),
    [(print, False), (_handle, True), (functools.partial(_handle), True), (_AsyncCall(), True)],
)
def test_an_async_handler_is_known(handler, is_async):
    assert WebhookReceiver(handler, SECRET).is_async is is_async


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"handler": None}, "handler must be a function"),
        ({"handler": print, "seen": [1].__contains__}, "seen must support"),
        ({"handler": print, "tolerance": 900}, "tolerance must be"),
    ],
)
def test_a_receiver_checks_its_arguments(options, says):
    with pytest.raises(ConfigurationError, match=says):
        WebhookReceiver(secret=SECRET, **options)


def test_only_the_last_alerts_are_remembered():
    seen = RecentAlerts(3)
    for number in itertools.chain(range(5), [4]):
        seen.add(str(number))
    assert [str(number) in seen for number in range(5)] == [False, False, True, True, True]
    assert len(seen) == 3


def test_threads_share_what_is_remembered():
    seen = RecentAlerts(50)
    names = [[f"{thread}-{number}" for number in range(500)] for thread in range(4)]
    threads = [threading.Thread(target=lambda mine=mine: [seen.add(each) for each in mine]) for mine in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 50


def test_refusals_are_logged_once_for_each_reason(caplog):
    caplog.set_level(logging.DEBUG, "windback")
    receiver = WebhookReceiver(print, SECRET)
    for _ in range(3):
        assert receiver.receive(encoded(SITE), "00").status == 401
    assert receiver.receive(encoded(SITE), None) == (
        401,
        {"error": "the X-Windback-Signature header is missing", "code": "missing_signature"},
    )
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG", "DEBUG", "WARNING"]
    assert "jane@" not in caplog.text
