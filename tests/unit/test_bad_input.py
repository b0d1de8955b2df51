"""Every kind of bad input is a clear error in the line that gave it, and nothing is sent."""

from __future__ import annotations

import datetime as dt
import importlib
import traceback

import anyio
import httpx
import pytest
import respx

import windback

KEY = "sk_live_abcdef"
EMAIL = "jane@example.com"
BASE = "https://api.example.com/v1"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in ("API_KEY", "PROJECT_SLUG", "PUBLIC_KEY", "BASE_URL"):
        monkeypatch.delenv(f"WINDBACK_{name}", raising=False)


@pytest.fixture
def router():
    """A network in which nothing may be sent unless a test says so."""
    with respx.mock(assert_all_called=False) as router:
        yield router


@pytest.fixture
def client(router):
    client = windback.Windback(KEY, "shop", base_url=BASE, max_retries=0)
    yield client
    client.close(0)


# The client

BAD_CLIENTS = {
    "no key": ({"api_key": None}, r"no API key: pass api_key='sk_…' or set WINDBACK_API_KEY"),
    "empty key": ({"api_key": ""}, "api_key must start with sk_ and have more after it"),
    "key of the prefix alone": ({"api_key": "sk_"}, "api_key must start with sk_ and have more after it"),
    "key of another form": ({"api_key": "live_abcdef"}, "api_key must start with sk_"),
    "public key as the secret one": (
        {"api_key": "pub_live_abcdef"},
        r"api_key must start with sk_; this is a public key \(pub_…\): pass it as public_key",
    ),
    "secret key as the public one": (
        {"public_key": "sk_live_ghijkl"},
        r"public_key must start with pub_; this is a secret key \(sk_…\): pass it as api_key",
    ),
    "public key of another form": ({"public_key": "live_abcdef"}, "public_key must start with pub_"),
    "key with a line end": (
        {"api_key": KEY + "\n"},
        "api_key contains a space, a line end or a non-ASCII",
    ),
    "key with a space": ({"api_key": "sk_live abcdef"}, "api_key contains a space"),
    "key outside ASCII": (
        {"api_key": "sk_live_é"},
        "api_key contains a space, a line end or a non-ASCII",
    ),
    "key that is bytes": (
        {"api_key": KEY.encode()},
        "api_key must be a string that starts with sk_, not a bytes",
    ),
    "slug with a slash": ({"project_slug": "my/shop"}, "project_slug 'my/shop' must be letters, digits"),
    "slug with a question mark": ({"project_slug": "shop?x"}, "project_slug 'shop\\?x' must be"),
    "slug of dots": ({"project_slug": ".."}, r"project_slug '\.\.' must be"),
    "slug with a line end": ({"project_slug": "shop\n"}, "project_slug 'shop\\\\n' must be"),
    "empty slug": ({"project_slug": ""}, "project_slug '' must be"),
    "slug that is a number": ({"project_slug": 7}, "project_slug 7 must be"),
    "http off loopback": (
        {"base_url": "http://api.example.com/v1"},
        "must use https: the key must not cross",
    ),
    "http on a private address": ({"base_url": "http://10.0.0.1/v1"}, "must use https"),
    "http on a name that starts like loopback": (
        {"base_url": "http://127.0.0.1.example.com"},
        "must use https",
    ),
    "user in the URL": ({"base_url": "https://jane@api.example.com"}, "must not contain credentials"),
    "password in the URL": ({"base_url": "https://jane:pw@api.example.com"}, "must not contain credentials"),
    "query in the URL": ({"base_url": "https://api.example.com/?a=b"}, "must not have a query or a fragment"),
    "fragment in the URL": (
        {"base_url": "https://api.example.com/#a"},
        "must not have a query or a fragment",
    ),
    "URL without a scheme": (
        {"base_url": "api.example.com"},
        "base_url 'api.example.com' must look like 'https",
    ),
    "URL of another scheme": ({"base_url": "ftp://api.example.com"}, "must look like"),
    "URL without a host": ({"base_url": "https://"}, "must look like"),
    "URL with a port that is none": ({"base_url": "https://h:port"}, "must look like"),
    "URL with a port beyond all": ({"base_url": "https://h:65536"}, "ports go from 1 to 65535"),
    "URL with a space": ({"base_url": "https://api.example.com/a b"}, "contains a space"),
    "URL that is no text": ({"base_url": 7}, "base_url must be a string, not an int"),
    "unknown overflow": (
        {"overflow": "drop"},
        "overflow must be one of 'drop_newest', 'drop_oldest', 'block', 'raise', not 'drop'",
    ),
    "overflow none": ({"overflow": None}, "overflow must be one of 'drop_newest'"),
}


@pytest.mark.parametrize("make", [windback.Windback, windback.AsyncWindback])
@pytest.mark.parametrize(("options", "message"), BAD_CLIENTS.values(), ids=BAD_CLIENTS)
def test_a_client_that_cannot_work_is_not_made(make, options, message):
    with pytest.raises(windback.ConfigurationError, match=message) as caught:
        make(**{"api_key": KEY, **options})
    assert "abcdef" not in str(caught.value)
    assert "ghijkl" not in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("WINDBACK_API_KEY", "pub_live_abcdef", "this is a public key"),
        ("WINDBACK_PUBLIC_KEY", "sk_live_abcdef", "this is a secret key"),
        ("WINDBACK_PROJECT_SLUG", "a/b", "project_slug 'a/b'"),
        ("WINDBACK_BASE_URL", "http://api.example.com", "must use https"),
    ],
)
def test_an_environment_variable_is_checked_as_an_argument_is(monkeypatch, variable, value, message):
    monkeypatch.setenv("WINDBACK_API_KEY", KEY)
    monkeypatch.setenv(variable, value)
    with pytest.raises(windback.ConfigurationError, match=message):
        windback.Windback()


# An event

NAIVE = dt.datetime(2025, 12, 1, 10)  # noqa: DTZ001
CYCLE = {}
CYCLE["self"] = CYCLE

BAD_EVENTS = {
    "empty event": ({"event": ""}, "event", "is empty; name what happened, such as 'feature_used'"),
    "event none": ({"event": None}, "event", "must be a string such as 'feature_used', not None"),
    "event number": ({"event": 7}, "event", "not an int"),
    "event with a surrogate": ({"event": "a\ud800"}, "event", "a lone surrogate at position 1"),
    "email without @": (
        {"customer_email": "jane"},
        "customer_email",
        "has no '@', so it is not an email address",
    ),
    "email empty": ({"customer_email": ""}, "customer_email", "has no '@'"),
    "email none": ({"customer_email": None}, "customer_email", "must be a string such as"),
    "email with a line break": (
        {"customer_email": "a@b\nBcc: c@d"},
        "customer_email",
        "the character U+000A",
    ),
    "email with a C1 control": ({"customer_email": "a\x9b31m@b"}, "customer_email", "the character U+009B"),
    "email with a bidi mark": ({"customer_email": "a\u202e@b"}, "customer_email", "the character U+202E"),
    "email with a surrogate": ({"customer_email": "a@\udc80"}, "customer_email", "a lone surrogate"),
    "properties a list": (
        {"properties": [1]},
        "properties",
        "must be a mapping such as {'plan': 'pro'}, not a list",
    ),
    "properties a text": ({"properties": "plan"}, "properties", "must be a mapping such as"),
    "unencodable value": (
        {"properties": {"a": [{"b": object()}]}},
        "properties.a[0].b",
        "can't be encoded as JSON",
    ),
    "NaN": ({"properties": {"a": float("nan")}}, "properties.a", "nan is not a JSON number"),
    "infinity": ({"properties": {"a": float("inf")}}, "properties.a", "inf is not a JSON number"),
    "lone surrogate": ({"properties": {"a": "\ud800"}}, "properties.a", "a lone surrogate at position 0"),
    "lone surrogate in a key": (
        {"properties": {"\ud800": 1}},
        "properties.\\ud800",
        "is not a key for a JSON object",
    ),
    "integer over 64 bits": ({"properties": {"a": 2**64}}, "properties.a", "an integer of more than 64 bits"),
    "integer under 64 bits": ({"properties": {"a": -(2**63) - 1}}, "properties.a", "more than 64 bits"),
    "naive datetime as a property": ({"properties": {"a": NAIVE}}, "properties.a", "which zone is it in?"),
    "cycle": ({"properties": CYCLE}, None, "contains itself"),
    "event over max_event_bytes": (
        {"properties": {"a": "x" * 70_000}},
        "event",
        "bytes as JSON, and max_event_bytes is 65,536",
    ),
    "naive timestamp": (
        {"timestamp": NAIVE},
        "timestamp",
        "2025-12-01T10:00:00 has no time zone; pass an aware",
    ),
    "timestamp text without a zone": (
        {"timestamp": "2025-12-01T10:00:00"},
        "timestamp",
        "has no time zone; end it with 'Z' or an offset such as '+01:00'",
    ),
    "timestamp no time": (
        {"timestamp": "yesterday"},
        "timestamp",
        "'yesterday' is not an ISO 8601 time such as",
    ),
    "timestamp a date alone": ({"timestamp": "2025-12-01"}, "timestamp", "is not an ISO 8601 time"),
    "timestamp of no day": ({"timestamp": "2025-02-30T10:00:00Z"}, "timestamp", "is not a time that exists"),
    "timestamp of no hour": ({"timestamp": "2025-12-01T25:00:00Z"}, "timestamp", "is not a time that exists"),
    "timestamp of no zone that exists": ({"timestamp": "2025-12-01T10:00:00+99:99"}, "timestamp", "is not a"),
    "timestamp with a line end": ({"timestamp": "2025-12-01T10:00:00Z\n"}, "timestamp", "is not a"),
    "timestamp a number": (
        {"timestamp": 1764583200},
        "timestamp",
        "must be an aware datetime or an ISO 8601 string",
    ),
    "timestamp a date": ({"timestamp": dt.date(2025, 12, 1)}, "timestamp", "must be an aware datetime"),
}
GOOD = {"event": "login", "customer_email": EMAIL}


@pytest.mark.parametrize("hooked", [False, True], ids=["no hook", "before_send"])
@pytest.mark.parametrize(("change", "path", "message"), BAD_EVENTS.values(), ids=BAD_EVENTS)
def test_a_bad_event_is_named_and_not_accepted(router, change, path, message, hooked):
    options = {"before_send": lambda event: event} if hooked else {}
    client = windback.Windback(KEY, base_url=BASE, **options)
    with pytest.raises(windback.InvalidEventError) as caught:
        client.track_event(**{**GOOD, **change})
    assert message in str(caught.value)
    assert path is None or caught.value.path == path
    assert caught.value.code == "INVALID_EVENT"
    assert (client.stats().accepted, client.stats().refused) == (0, {})
    client.close(0)


@pytest.mark.parametrize(("change", "path", "message"), BAD_EVENTS.values(), ids=BAD_EVENTS)
def test_one_bad_event_of_500_stops_all_of_them_and_is_named_by_its_index(
    client, router, change, path, message
):
    events = [dict(GOOD) for _ in range(500)]
    events[321] = {**GOOD, **change}
    with pytest.raises(windback.InvalidEventError) as caught:
        client.track_events(events)
    assert caught.value.index == 321
    assert "events[321]" in str(caught.value)
    assert message in str(caught.value)
    assert path is None or caught.value.path == path
    assert not router.calls


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({"event": "login", "customer_email": EMAIL}, "track_events takes a list of events, not a dict"),
        ("login", "takes a list of events, not a str"),
        (b"login", "takes a list of events, not a bytes"),
        (None, "takes a list of events, not a NoneType"),
        (7, "takes a list of events, not a int"),
        ([GOOD, "login"], r"events\[1\]: an event is a mapping with event, customer_email, .* not a str"),
        ([GOOD, None], r"events\[1\]: an event is a mapping with .* not None"),
        ([GOOD, {**GOOD, "email": "x"}], r"events\[1\]\.email: unknown field; an event has event,"),
        ([{"event": "login"}], r"events\[0\]\.customer_email: must be a string"),
        ([{"customer_email": EMAIL}], r"events\[0\]\.event: must be a string"),
    ],
    ids=[
        *("one event", "text", "bytes", "none", "number", "a text among them", "a none among them"),
        *("unknown field", "no email", "no event"),
    ],
)
def test_what_is_no_list_of_events_is_said_so(client, router, events, message):
    with pytest.raises(windback.InvalidEventError, match=message):
        client.track_events(events)
    assert not router.calls


def test_no_events_are_no_request(client, router):
    assert client.track_events([]) == windback.TrackResult(sent=0, requests=0)
    assert client.track_events(event for event in ()) == windback.TrackResult(sent=0, requests=0)
    assert not router.calls


# Plain calls

JANE = {"customer_email": EMAIL}
BAD_CALLS = {
    "mrr negative": ("create_churn_event", {**JANE, "mrr": -1}, "mrr must be a whole number of cents"),
    "mrr fractional": ("create_churn_event", {**JANE, "mrr": 49.99}, "mrr must be a whole number of cents"),
    "mrr boolean": ("create_churn_event", {**JANE, "mrr": True}, "mrr must be a whole number of cents"),
    "tenure negative": (
        "create_churn_event",
        {**JANE, "tenure_days": -1},
        "tenure_days must be a whole number of days",
    ),
    "churn email": (
        "create_churn_event",
        {"customer_email": "jane"},
        "customer_email must be an email address",
    ),
    "flow email": (
        "submit_cancel_flow",
        {"customer_email": "jane", "cancel_reason": "x"},
        "customer_email must be an email address",
    ),
    "flow reason": (
        "submit_cancel_flow",
        {**JANE, "cancel_reason": ""},
        "cancel_reason must be a text that is not empty",
    ),
    "report email": (
        "report_cancel_reason",
        {"customer_email": "jane", "reason": "x"},
        "customer_email must be an",
    ),
    "report reason": (
        "report_cancel_reason",
        {**JANE, "reason": ""},
        "reason must be a text that is not empty",
    ),
    "event id": ("get_churn_event", {"event_id": ".."}, "event_id must be an id"),
    "report id": ("report_cancel_reason", {**JANE, "reason": "x", "event_id": ""}, "event_id must be a text"),
}


@pytest.mark.parametrize(("name", "arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_argument_of_a_plain_call_is_named_and_nothing_is_sent(
    client, router, name, arguments, message
):
    with pytest.raises(windback.ValidationError, match=message):
        getattr(client, name)(**arguments)
    assert not router.calls


def test_a_call_that_needs_a_slug_reports_it(router):
    with windback.Windback(KEY, base_url=BASE) as client:
        with pytest.raises(windback.ConfigurationError, match="this call needs project_slug"):
            client.create_churn_event(EMAIL)
    assert not router.calls


# Error bodies

BODIES = {
    "HTML": (b"<html><h1>Bad Gateway</h1></html>", "<html><h1>Bad Gateway</h1></html>"),
    "list": (b'["no"]', "HTTP 502 without a message"),
    "empty": (b"", "HTTP 502 without a message"),
    "cut short": (b'{"error": "out of mem', '{"error": "out of mem'),
}


@pytest.mark.parametrize(("body", "message"), BODIES.values(), ids=BODIES)
def test_any_error_body_makes_a_clear_error(client, router, body, message):
    router.route().mock(return_value=httpx.Response(502, content=body))
    for call in (lambda: client.create_churn_event(EMAIL), lambda: client.track_events([GOOD])):
        with pytest.raises(windback.ServerError) as caught:
            call()
        assert (caught.value.status, caught.value.message, caught.value.code) == (502, message, None)


# After close

CALLS = {
    "track_events": lambda client: client.track_events([GOOD]),
    "create_churn_event": lambda client: client.create_churn_event(EMAIL),
    "submit_cancel_flow": lambda client: client.submit_cancel_flow(EMAIL, "other"),
    "report_cancel_reason": lambda client: client.report_cancel_reason(EMAIL, "other"),
    "report_cancel_reason of an id": lambda client: client.report_cancel_reason(EMAIL, "other", event_id="e"),
    "create_recovery_template": lambda client: client.create_recovery_template("other", "n", "s", "b"),
    "get_churn_event": lambda client: client.get_churn_event("evt_1"),
    "mark_recovered": lambda client: client.mark_recovered("evt_1"),
    "update_cancel_reason": lambda client: client.update_cancel_reason("evt_1", "other"),
    "generate_variants": lambda client: client.generate_variants("evt_1"),
    "list_variants": lambda client: client.list_variants("evt_1"),
    "update_variant": lambda client: client.update_variant("evt_1", "var_1", body="b"),
    "send_variant": lambda client: client.send_variant("evt_1", "var_1"),
    "get_recovery_stats": lambda client: client.get_recovery_stats(),
    "get_offer": lambda client: client.get_offer("other"),
    "accept_offer": lambda client: client.accept_offer(EMAIL, "other", "discount"),
    "list_recovery_templates": lambda client: client.list_recovery_templates(),
    "get_recovery_template": lambda client: client.get_recovery_template("tpl_1"),
    "update_recovery_template": lambda client: client.update_recovery_template("tpl_1", name="n"),
    "delete_recovery_template": lambda client: client.delete_recovery_template("tpl_1"),
    "flush": lambda client: client.flush(),
    "with_options": lambda client: client.with_options(max_retries=0),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block", "raise"])
def test_a_call_after_close_reports_it(router, call, overflow):
    client = windback.Windback(KEY, "shop", base_url=BASE, overflow=overflow)
    client.close()
    with pytest.raises(
        windback.ClosedError, match="this client is closed; make a new one, or close it later"
    ):
        call(client)
    assert not router.calls


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.anyio
async def test_an_async_call_after_close_reports_it(router, call):
    client = windback.AsyncWindback(KEY, "shop", base_url=BASE)
    await client.close()
    with pytest.raises(windback.ClosedError, match="this client is closed"):
        await call(client)
    assert not router.calls


def test_a_listing_after_close_reports_it(router):
    for client in (windback.Windback(KEY, "shop", base_url=BASE), windback.AsyncWindback(KEY, "shop")):
        anyio.run(client.close) if isinstance(client, windback.AsyncWindback) else client.close()
        with pytest.raises(windback.ClosedError, match="this client is closed"):
            client.list_churn_events()
    assert not router.calls


@pytest.mark.parametrize("kind", [windback.Windback, windback.AsyncWindback])
def test_an_argument_that_does_not_exist_is_named_with_the_nearest(kind):
    with pytest.raises(TypeError) as caught:
        kind("sk_live_secret", flush_intervall=2.0)
    words = f"{kind.__name__}() has no argument 'flush_intervall'; did you mean 'flush_interval'?"
    assert str(caught.value) == words
    frames = [each[0].f_locals for each in traceback.walk_tb(caught.tb)][1:]  # the first is this test's
    assert frames
    assert "sk_live_secret" not in repr(frames)


@pytest.mark.parametrize(
    ("module", "name", "wrong", "right"),
    [
        ("relay", "Relay", "batchsize", "batch_size"),
        ("relay", "BrokerRelay", "claimafter", "claim_after"),
        ("asgi", "WindbackMiddleware", "custmer", "customer"),
        ("flask", "FlaskWindback", "cliant", "client"),
        ("fastapi", "webhook_router", "pth", "path"),
        ("flask", "webhook_blueprint", "tolerance_s", "tolerance"),
        ("django.webhooks", "webhook_view", "sean", "seen"),
        ("webhooks", "WebhookReceiver", "secrets", "secret"),
        ("serverless", "flush_after", "time_out", "timeout"),
        ("opentelemetry", "instrument", "metre_provider", "meter_provider"),
        ("prometheus", "register", "registry_", "registry"),
    ],
)
def test_whatever_takes_options_names_the_nearest(module, name, wrong, right):
    function = getattr(importlib.import_module(f"windback.{module}"), name)
    with pytest.raises(TypeError) as caught:
        function(**{wrong: "sk_live_secret"})
    assert str(caught.value) == f"{name}() has no argument '{wrong}'; did you mean '{right}'?"
    frames = [each[0].f_locals for each in traceback.walk_tb(caught.tb)][1:]
    assert "sk_live_secret" not in repr(frames)


def test_a_webhook_secret_of_a_misspelt_call_is_in_no_frame():
    receiver = importlib.import_module("windback.webhooks").WebhookReceiver
    with pytest.raises(TypeError) as caught:
        receiver(print, ["whsec_1", "whsec_2"], tolerance_=None)
    frames = [each[0].f_locals for each in traceback.walk_tb(caught.tb)][1:]
    assert frames
    assert "whsec" not in repr(frames)


def test_a_class_of_your_own_may_have_other_arguments():
    class Own(windback.Windback):
        def __init__(self, shop: str) -> None:
            super().__init__(KEY, shop, enabled=False)

    assert Own(shop="shop").stats().accepted == 0


def test_a_missing_key_is_found_in_a_misspelt_variable(monkeypatch):
    monkeypatch.delenv("WINDBACK_API_KEY", raising=False)
    monkeypatch.setenv("WINDBACK_APIKEY", KEY)
    with pytest.raises(windback.ConfigurationError) as caught:
        windback.Windback()
    assert "; nothing reads WINDBACK_APIKEY; did you mean 'WINDBACK_API_KEY'?" in str(caught.value)


@pytest.mark.parametrize("status", [404, 405])
def test_an_answer_that_is_not_of_the_api_hints_at_its_path(router, status):
    router.route().respond(status, json={"error": "nothing here"})
    client = windback.Windback(KEY, "shop", base_url="https://gateway.test/v1", max_retries=0)
    with pytest.raises(windback.WindbackError) as caught:
        client.get_recovery_stats()
    client.close()
    hint = "(base_url is 'https://gateway.test/v1', and the path of the API is /api/v1)"
    assert str(caught.value) == f"{status}: nothing here {hint}"


def test_close_may_be_called_again_and_stats_too():
    client = windback.Windback(KEY, base_url=BASE)
    first = client.close()
    assert client.close() == first
    assert first
    assert client.stats().accepted == 0
    assert repr(client).startswith("<Windback closed ")
