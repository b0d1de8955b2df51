"""`Windback(scrub=…)`: which texts a scrubber gets, from which calls, and what its errors do."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from decimal import Decimal

import pytest
from inside import encoder_of
from raw_server import RawServer, response

from windback import AsyncWindback, InvalidEventError, ValidationError, Windback, scrub
from windback.api import endpoints
from windback.errors import ConfigurationError
from windback.testing import capturing

JANE = "jane@example.com"
SECRET = "4111 1111 1111 1111"
EVENT = b'{"id":"1","status":"created","data":[{"id":"1","customer_email":"[email]","status":"processing"}]}'


@pytest.fixture
def api():
    with closing(RawServer(lambda sock, _: sock.sendall(response("200 OK", EVENT)))) as server:
        yield server


@pytest.fixture(params=[Windback, AsyncWindback])
def make(request, api, no_environment):
    def make(**options):
        return request.param("sk_test_1", "shop", base_url=api.url(), max_retries=0, **options)

    return make


def run(client, use):
    """Do what *use* does with either client."""

    async def in_loop():
        try:
            value = use(client)
            return await value if asyncio.iscoroutine(value) else value
        finally:
            closed = client.close(0)
            if asyncio.iscoroutine(closed):
                await closed

    return asyncio.run(in_loop())


CALLS = {
    "create_churn_event": lambda client: client.create_churn_event(JANE, "J", cancel_reason=SECRET),
    "submit_cancel_flow": lambda client: client.submit_cancel_flow(
        JANE, "x", SECRET, cancel_reason_text=SECRET
    ),
    "report_cancel_reason": lambda client: client.report_cancel_reason(JANE, SECRET, event_id="1"),
    "update_cancel_reason": lambda client: client.update_cancel_reason("1", "x", SECRET),
    "accept_offer": lambda client: client.accept_offer(JANE, SECRET, "discount"),
    "get_offer": lambda client: client.get_offer(SECRET),
}


@pytest.mark.parametrize("call", CALLS)
def test_each_plain_call_is_scrubbed(make, api, call):
    run(make(scrub=scrub.STANDARD), CALLS[call])
    (request,) = api.requests
    assert b"1111" not in request
    assert b"[card]" in request or b"%5Bcard%5D" in request


TEMPLATE_CALLS = {
    "create_recovery_template": lambda client: client.create_recovery_template(
        "r", "n", "s", "to help@shop.com"
    ),
    "update_recovery_template": lambda client: client.update_recovery_template("1", body="to help@shop.com"),
    "update_variant": lambda client: client.update_variant("1", "2", body="to help@shop.com"),
}


@pytest.mark.parametrize("call", TEMPLATE_CALLS)
def test_a_scrubber_gets_your_own_texts_and_the_ready_made_leave_them(make, api, call):
    seen = []

    def see(text, place):
        seen.append((place, text))
        return text

    run(make(scrub=[*scrub.STANDARD, see]), TEMPLATE_CALLS[call])
    (request,) = api.requests
    assert b"help@shop.com" in request
    assert (scrub.Place(call, ("body",)), "to help@shop.com") in seen


def test_every_request_with_a_body_reports_whose_texts_they_are():
    made = [
        endpoints.create_churn_event(
            "s",
            "k",
            customer_email=JANE,
            customer_name=None,
            event_type="cancellation",
            cancel_reason=None,
            mrr=1,
            currency=None,
            plan_name=None,
            tenure_days=None,
        ),
        endpoints.submit_cancel_flow(
            "k", customer_email=JANE, cancel_reason="x", feedback_text=None, selected_offer=None
        ),
        endpoints.get_offer("x"),
        endpoints.accept_offer("k", customer_email=JANE, cancel_reason="x", offer_type="y"),
        endpoints.report_cancel_reason("s", "1", "x"),
        endpoints.update_cancel_reason("s", "1", "x", None),
        endpoints.create_recovery_template(
            "s", "k", cancel_reason="x", name="n", subject="s", body="b", is_active=True
        ),
        endpoints.update_variant("s", "1", "2", subject="x", body=None),
        endpoints.update_recovery_template("s", "1", name="n", subject=None, body=None, is_active=None),
        endpoints.ChurnEventPages("s").next_request(),
    ]
    assert all(hasattr(Windback, request.call) for request in made)
    makers = [
        name
        for name, value in vars(endpoints).items()
        if callable(value)
        and "Request" in str(getattr(value, "__annotations__", {}).get("return", ""))
        and name not in ("track", "scrubbed")
    ]
    without = {
        "get_churn_event",
        "mark_recovered",
        "generate_variants",
        "list_variants",
        "send_variant",
        "get_recovery_stats",
        "list_recovery_templates",
        "get_recovery_template",
        "delete_recovery_template",
    }
    assert {request.call for request in made} >= set(makers) - without


def test_numbers_and_names_and_what_is_deep_inside(make):
    with capturing() as events:
        client = make(scrub=scrub.STANDARD)
        properties = {
            "card": 4111111111111111,
            "pin": 1234,
            "ok": True,
            "nothing": None,
            "shared": {"bob@example.com": 1, "eve@example.com": 2, "[email]": 3},
            "rows": [{"note": ("mail bob@example.com", {SECRET})}],
        }
        run(client, lambda client: client.track_event("login", JANE, properties))
    (event,) = events
    assert event.properties == {
        "card": "[card]",
        "pin": "[scrubbed]",
        "ok": True,
        "nothing": None,
        "shared": {"[email] 2": 1, "[email] 3": 2, "[email]": 3},
        "rows": [{"note": ["mail [email]", ["[card]"]]}],
    }
    assert properties["card"] == 4111111111111111


def record_of(client, properties):
    return encoder_of(client)("login", JANE, properties, None, 65_536)


def test_an_event_in_which_nothing_changes_is_the_same_bytes(no_environment):
    plain, scrubbed = Windback("sk_test_1"), Windback("sk_test_1", scrub=scrub.STANDARD)
    properties = {"a": 1.5, "b": [1, {"c": "x"}], "d": Decimal("1.10"), "e": None}
    stamp = "2025-12-01T10:00:00Z"
    records = [encoder_of(each)("login", JANE, properties, stamp, 65_536) for each in (plain, scrubbed)]
    assert records[0] == records[1]


def test_numbers_stay_exact_where_another_text_changes(no_environment):
    client = Windback("sk_test_1", scrub=scrub.STANDARD)
    exact = Decimal("1234567890123456789012.000000000000000000001")
    record = record_of(client, {"n": exact, "i": 2**64 - 1, "j": -(2**63), "f": 1e300, "note": SECRET})
    assert b"[card]" in record
    for text in (
        b"1234567890123456789012.000000000000000000001",
        b"18446744073709551615",
        b"-9223372036854775808",
    ):
        assert text in record
    assert json.loads(record)["properties"]["f"] == 1e300


def test_each_way_to_track_is_scrubbed(make, api):
    client = make(scrub=scrub.cards)
    with capturing() as events:
        client.prepare("prepared", JANE, {"note": SECRET}).send()
        run(
            client,
            lambda client: client.track_events(
                [{"event": "x", "customer_email": JANE, "properties": {"n": SECRET}}]
            ),
        )
    assert [list(each.properties.values()) for each in events] == [["[card]"], ["[card]"]]


def test_scrubbers_come_after_before_send(make):
    with capturing() as events:
        client = make(
            before_send=lambda event: {**event, "properties": {"note": SECRET}},
            scrub=[scrub.cards, lambda text, _: text.replace("[card]", "<card>")],
        )
        run(client, lambda client: client.track_event("login", JANE))
    assert events[0].properties == {"note": "<card>"}


def no_return(text, place):
    text.strip()


def raises(text, place):
    raise KeyError("no such rule")


def surrogate(text, place):
    return "\ud800"


@pytest.mark.parametrize("bad", [no_return, raises, surrogate, lambda _, __: 3])
def test_a_scrubber_that_fails_hides_the_whole_text(make, api, bad, caplog):
    def only_notes(text, place):
        return (
            bad(text, place) if place.path[-1] in ("note", "cancel_reason") and place.kind == "text" else text
        )

    def use(client):
        assert client.prepare("login", JANE, {"note": "private", "plan": "pro"}).send()
        return client.create_churn_event(JANE, cancel_reason="private")

    with capturing() as events:
        client = make(scrub=only_notes)
        run(client, use)
    assert events[0].properties == {"note": "[scrubbed]", "plan": "pro"}
    assert b'"cancel_reason":"[scrubbed]"' in api.requests[0]
    assert client.stats().hook_errors == 2
    (line,) = [each.getMessage() for each in caplog.records if "scrub raised" in each.getMessage()]
    assert "private" not in line


def test_without_its_customer_nothing_is_sent(make, api):
    def use(client):
        with pytest.raises(ValidationError, match="customer_email"):
            client._usable(
                endpoints.accept_offer("k", customer_email=JANE, cancel_reason="x", offer_type="y")
            )
        return client.prepare("login", JANE, {})

    client = make(scrub=lambda text, _: text.replace("@", " at "))
    assert run(client, use) is None
    assert dict(client.stats().refused) == {"scrub_error": 1}


def test_what_grows_too_large_is_refused(no_environment):
    client = Windback(
        "sk_test_1", scrub=lambda text, _: text * (100 if text == "grow" else 1), max_event_bytes=300
    )
    assert client.prepare("login", JANE, {"a": "grow"}) is None
    assert dict(client.stats().refused) == {"scrub_error": 1}
    with pytest.raises(InvalidEventError):  # it was too large before, which is the caller's error
        client.prepare("login", JANE, {"a": "x" * 300})


def test_the_customer_is_looked_for_under_the_address_that_was_sent(make, api):
    client = make(scrub=lambda text, _: "[email]@" if text == JANE else text)
    answer = EVENT.replace(b'"[email]"', b'"[email]@"')
    api.answer = lambda sock, _: sock.sendall(response("200 OK", answer))
    run(client, lambda client: client.report_cancel_reason(JANE, "x"))
    assert b"/churn-events/1/cancel-reason" in api.requests[-1]


@pytest.mark.parametrize("bad", ["cards", 3, [scrub.cards, None], [scrub], {"a": scrub.cards}])
def test_what_is_not_a_function_is_refused(bad, no_environment):
    with pytest.raises(ConfigurationError, match="scrub must be a function"):
        Windback("sk_test_1", scrub=bad)
