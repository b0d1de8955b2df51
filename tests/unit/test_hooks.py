"""before_send and on_delivery: what they may do to an event, and that their errors hurt nothing."""

from __future__ import annotations

import json
import threading
from operator import methodcaller

import pytest
from inside import config_of

from windback import DeliveryReport, Windback
from windback.delivery.hooks import Hooks
from windback.errors import InvalidEventError
from windback.event.before_send import HookedEncoder

EMAIL = "jane@example.com"
LIMIT = 65_536


class Hooked:
    """An encoder around a hook, with what it counted."""

    def __init__(self, hook):
        self.refused = []
        self.errors = []
        self.encoder = HookedEncoder(
            hook, self.refused.append, lambda name, error: self.errors.append((name, error))
        )

    def encode(self, event="login", email=EMAIL, properties=None, timestamp=None, limit=LIMIT):
        data = self.encoder.encode(event, email, properties, timestamp, limit)
        return None if data is None else json.loads(data)


def test_the_hook_gets_the_event_checked_and_stamped():
    seen = []
    hooked = Hooked(lambda event: seen.append(dict(event)) or event)
    sent = hooked.encode(properties={"plan": "pro"})
    (event,) = seen
    assert event == sent
    assert event["timestamp"].endswith("Z")
    assert set(event) == {"event", "customer_email", "properties", "timestamp"}


def test_what_the_hook_returns_is_sent():
    hooked = Hooked(lambda event: {**event, "event": "seen", "properties": {"a": {1}}})
    sent = hooked.encode(properties={"plan": "pro"}, timestamp="2025-12-01T10:00:00Z")
    assert sent == {
        "event": "seen",
        "customer_email": EMAIL,
        "properties": {"a": [1]},
        "timestamp": "2025-12-01T10:00:00Z",
    }


def test_what_the_hook_changes_is_not_the_callers():
    properties = {"plan": "pro"}

    def hook(event):
        event["properties"]["plan"] = "free"
        del event["timestamp"]
        return event

    sent = Hooked(hook).encode(properties=properties)
    assert sent["properties"] == {"plan": "free"}
    assert sent["timestamp"].endswith("Z"), "stamped anew"
    assert properties == {"plan": "pro"}


def test_none_refuses_the_event():
    hooked = Hooked(lambda _: None)
    assert hooked.encode() is None
    assert (hooked.refused, hooked.errors) == (["before_send"], [])


def raise_key_error(event):
    return event["no such field"]


BAD_HOOKS = {
    "raises": (raise_key_error, KeyError),
    "returns a text": (lambda _: "login", InvalidEventError),
    "returns a list": (lambda event: [event], InvalidEventError),
    "adds an unknown field": (lambda event: {**event, "user": 1}, InvalidEventError),
    "removes the email": (lambda _: {"event": "login"}, InvalidEventError),
    "adds what can't be encoded": (lambda event: {**event, "properties": {"a": object()}}, InvalidEventError),
    "makes it too large": (lambda event: {**event, "properties": {"a": "x" * LIMIT}}, InvalidEventError),
}


@pytest.mark.parametrize(("hook", "kind"), BAD_HOOKS.values(), ids=BAD_HOOKS)
def test_a_hook_that_fails_refuses_the_event_and_is_counted(hook, kind):
    hooked = Hooked(hook)
    assert hooked.encode(properties={"plan": "pro"}) is None
    assert hooked.refused == ["before_send_error"]
    ((name, error),) = hooked.errors
    assert name == "before_send"
    assert type(error) is kind


def test_an_event_that_was_bad_before_the_hook_is_the_callers_error():
    hooked = Hooked(lambda event: event)
    with pytest.raises(InvalidEventError, match=r"properties\.a: "):
        hooked.encode(properties={"a": object()})
    with pytest.raises(InvalidEventError, match="max_event_bytes"):
        hooked.encode(properties={"a": "x" * 100}, limit=100)
    with pytest.raises(InvalidEventError, match="customer_email"):
        hooked.encode(email="jane")
    assert (hooked.refused, hooked.errors) == ([], [])


def test_a_hook_may_mend_what_cannot_be_encoded():
    hooked = Hooked(lambda event: {**event, "properties": {"a": str(event["properties"]["a"])[:9]}})
    assert hooked.encode(properties={"a": len})["properties"] == {"a": "<built-in"}


def test_nothing_that_the_hook_changes_deep_inside_is_the_callers():
    shared = {"password": "x"}
    properties = {"rows": [shared, (shared, {1, 2})], "other": shared}

    def hook(event):
        rows = event["properties"]["rows"]
        rows[0]["password"] = "gone"
        assert rows[0] is rows[1][0] is event["properties"]["other"], "as it was for the caller"
        rows[1][1].add(3)
        rows.append("more")
        return event

    sent = Hooked(hook).encode(properties=properties)
    assert sent["properties"]["other"]["password"] == "gone"
    assert sent["properties"]["rows"][1][1] == [1, 2, 3]
    assert shared["password"] == "x"
    assert properties["rows"] == [shared, (shared, {1, 2})]


def test_a_circle_is_the_callers_error_and_many_references_cost_nothing():
    circle = {}
    circle["itself"] = circle
    with pytest.raises(InvalidEventError):
        Hooked(lambda event: event).encode(properties=circle)
    many = []
    for _ in range(200):
        many = [many, many]
    hooked = Hooked(lambda event: {**event, "properties": {}})
    assert hooked.encode(properties={"many": many})["properties"] == {}


# -- A hook without its return -------------------------------------------------------------------------


def forgets(event):
    event["properties"] = {}


def forgets_below_a_function(event):
    def inner():
        return event

    inner()


class Forgets:
    def __call__(self, event):
        event.pop("properties", None)

    def method(self, event):
        if event:
            return


def name_of(hook):
    return getattr(hook, "__qualname__", type(hook).__name__)


CERTAIN = [forgets, forgets_below_a_function, Forgets(), Forgets().method]


@pytest.mark.parametrize("hook", CERTAIN, ids=name_of)
def test_a_hook_without_a_return_is_said_once_at_its_first_event(hook, caplog):
    hooked = Hooked(hook)
    assert hooked.encode() is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "no `return event`" in record.getMessage()
    for _ in range(30):
        hooked.encode()
    assert len(caplog.records) == 1


def drops_all(event):
    return None


def drops_some(event):
    if event["event"] == "heartbeat":
        return None
    return event


def drops_most(event):
    if event["event"] != "heartbeat":
        return event
    return None


DROPPING = [drops_all, drops_some, drops_most, lambda _: None, methodcaller("get", "nothing")]


@pytest.mark.parametrize("hook", DROPPING, ids=name_of)
def test_a_hook_that_drops_the_first_events_may_do_so_on_purpose(hook, caplog):
    hooked = Hooked(hook)
    for _ in range(9):
        assert hooked.encode("heartbeat") is None
    assert caplog.records == []


@pytest.mark.parametrize("hook", DROPPING, ids=name_of)
def test_a_hook_that_never_returned_an_event_is_said_once(hook, caplog):
    hooked = Hooked(hook)
    for _ in range(50):
        assert hooked.encode("heartbeat") is None
    (record,) = caplog.records
    assert "the first 10 events" in record.getMessage()


def test_a_hook_that_has_returned_an_event_may_drop_as_many_as_it_likes(caplog):
    hooked = Hooked(drops_some)
    assert hooked.encode("login") is not None
    for _ in range(50):
        assert hooked.encode("heartbeat") is None
    assert caplog.records == []


# -- Hooks: calls, counts and logs, whichever thread delivers -----------------------------------------


def made(**options):
    return Hooks(config_of(Windback("sk_test_1", **options)))


REPORT = DeliveryReport("delivered", 1, "ok")


def test_the_first_error_of_each_hook_is_logged_and_all_are_counted(caplog):
    def hook(_):
        raise RuntimeError("why it failed")

    hooks = made(before_send=hook, on_delivery=hook)
    encode = hooks.encoder(lambda _: None)
    for _ in range(3):
        assert encode("login", EMAIL, None, None, LIMIT) is None
        hooks.report(REPORT)
    assert hooks.errors.value() == 6
    assert [each.getMessage() for each in caplog.records] == [
        f"{name} raised RuntimeError: why it failed; it is called for later events as well, and further "
        "errors are only counted (stats().hook_errors)"
        for name in ("before_send", "on_delivery")
    ]


class UnprintableError(Exception):
    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize(
    "error", [SystemExit(3), GeneratorExit(), UnprintableError(), KeyboardInterrupt()], ids=repr
)
def test_nothing_that_on_delivery_raises_ends_a_thread_that_delivers(error):
    def hook(_):
        raise error

    hooks = made(on_delivery=hook)
    thread = threading.Thread(target=hooks.report, args=(REPORT,))
    thread.start()
    thread.join()
    assert hooks.errors.value() == 1


def test_ctrl_c_while_on_delivery_runs_in_the_main_thread_is_the_applications():
    def hook(_):
        raise KeyboardInterrupt

    hooks = made(on_delivery=hook)
    with pytest.raises(KeyboardInterrupt):
        hooks.report(REPORT)
    assert hooks.errors.value() == 0
    assert not hooks.is_reporting


def test_only_the_thread_that_on_delivery_runs_in_is_reporting():
    seen = []
    other = threading.Thread(target=lambda: seen.append(hooks.is_reporting))

    def hook(_):
        other.start()
        other.join()
        seen.append(hooks.is_reporting)

    hooks = made(on_delivery=hook)
    hooks.report(REPORT)
    assert seen == [False, True]
    assert not hooks.is_reporting
