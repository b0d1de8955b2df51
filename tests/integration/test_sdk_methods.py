"""Every method of the client against the embedded server, over a real socket, sync and async."""

from __future__ import annotations

import functools
from contextlib import ExitStack

import pytest
from anyio.from_thread import start_blocking_portal

import windback
from windback.devserver import DevServer

SECRET = "sk_test_methods"
PUBLIC = "pub_test_methods"
EMAIL = "jane@example.com"
KINDS = ("sync", "asyncio", "trio")


class Caller:
    """One client of any kind, called from plain code."""

    def __init__(self, kind, base_url, key=SECRET, slug="shop", **options):
        options = {"max_retries": 0, "timeout": 10.0, **options}
        self._exit = ExitStack()
        self._portal = None
        make = windback.Windback
        if kind != "sync":
            self._portal = self._exit.enter_context(start_blocking_portal(kind))
            make = windback.AsyncWindback
        self._client = make(key, slug, base_url=base_url, **options)

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if self._portal is None or name == "list_churn_events":
            return method
        return lambda *args, **keywords: self._portal.call(functools.partial(method, *args, **keywords))

    def take(self, events, count=None):
        """The first *count* of an iterator, or all."""
        if self._portal is None:
            return [event for _, event in zip(range(10**9 if count is None else count), events)]
        return self._portal.call(self._take, events, count)

    async def _take(self, events, count):
        taken = []
        async for event in events:
            taken.append(event)
            if len(taken) == count:
                break
        return taken

    def finish(self):
        self.close()
        self._exit.close()


@pytest.fixture(scope="module")
def running():
    with DevServer(generate_s=0) as server:
        yield server
    assert server.log() == "", "the server printed warnings or tracebacks"


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def make(kind):
    """Makes clients of one kind, and closes them."""
    made = []

    def make_one(server, **options):
        made.append(Caller(kind, server.url, **options))
        return made[-1]

    yield make_one
    for client in made:
        client.finish()


@pytest.fixture
def client(make, server):
    return make(server)


def create(client, **fields):
    return client.create_churn_event(**{"customer_email": EMAIL, "mrr": 4999, **fields})


# Churn events


def test_every_event_is_listed_once_page_by_page(client, server):
    made = [create(client).id for _ in range(7)]
    before = server.counts().requests
    events = client.take(client.list_churn_events(page_size=3))
    assert [event.id for event in events] == made[::-1]
    assert server.counts().requests - before == 3
    assert {type(event) for event in events} == {windback.ChurnEvent}


def test_a_page_is_asked_for_when_it_is_needed(client, server):
    for _ in range(5):
        create(client)
    before = server.counts().requests
    listing = client.list_churn_events(page_size=2)
    assert server.counts().requests == before
    assert len(client.take(listing, 2)) == 2
    assert server.counts().requests == before + 1


def test_events_are_listed_by_status(client):
    first, second = create(client), create(client)
    client.mark_recovered(first.id)
    assert [event.id for event in client.take(client.list_churn_events("recovered"))] == [first.id]
    assert [event.id for event in client.take(client.list_churn_events(status="new"))] == [second.id]
    assert client.take(client.list_churn_events("lost")) == []


def test_a_listing_goes_on_after_an_error(client, server):
    made = [create(client).id for _ in range(3)]
    listing = client.list_churn_events(page_size=2)
    seen = client.take(listing, 2)
    server.faults([{"status": 500, "times": 1}])
    with pytest.raises(windback.ServerError):
        client.take(listing)
    seen += client.take(listing)
    assert [event.id for event in seen] == made[::-1]


def test_an_unknown_status_is_the_api_s_error(client):
    with pytest.raises(windback.ValidationError, match="status: must be one of") as caught:
        client.take(client.list_churn_events("sad"))
    assert (caught.value.status, caught.value.code) == (400, "VALIDATION_ERROR")


def test_an_event_is_got_by_its_id(client):
    made = create(client, customer_name="Jane", cancel_reason="Too much", plan_name="Pro", tenure_days=3)
    got = client.get_churn_event(made.id)
    assert got == made
    assert (got.status, got.mrr, got.created_at.tzinfo is not None) == ("new", 4999, True)


def test_an_event_is_recovered_once(client):
    made = create(client)
    event = client.mark_recovered(made.id)
    assert (event.id, event.status) == (made.id, "recovered")
    assert event.updated_at > made.updated_at
    with pytest.raises(windback.ValidationError, match="is recovered already") as caught:
        client.mark_recovered(made.id)
    assert (caught.value.status, caught.value.code) == (400, "INVALID_STATE")


def test_a_lost_event_is_not_recovered(client, server):
    made = create(client)
    server.mark_lost(made.id)
    assert client.get_churn_event(made.id).status == "lost"
    with pytest.raises(windback.ValidationError, match="is lost already"):
        client.mark_recovered(made.id)


def test_a_recovery_whose_answer_was_lost_is_not_an_error(make, server):
    client = make(server, max_retries=1)
    made = create(client)
    server.faults([{"path": "/projects", "method": "POST", "drop": "after", "times": 1}])
    assert client.mark_recovered(made.id).status == "recovered"
    assert server.counts().duplicates == 1


def test_a_cancel_reason_is_changed(client):
    made = create(client)
    event = client.update_cancel_reason(made.id, "other", "moving away")
    assert (event.id, event.cancel_reason) == (made.id, "other")
    assert event.raw["cancel_reason_text"] == "moving away"
    client.report_cancel_reason(EMAIL, "too_expensive", event_id=made.id)
    assert client.get_churn_event(made.id).cancel_reason == "too_expensive"


def test_a_cancel_reason_is_not_sent_again_in_doubt(make, server):
    client = make(server, max_retries=3)
    made = create(client)
    server.faults([{"method": "PATCH", "drop": "after", "times": 1}])
    with pytest.raises(windback.WindbackConnectionError):
        client.update_cancel_reason(made.id, "other")
    assert [record.method for record in server.requests()].count("PATCH") == 1


# Variants

STRATEGIES = {
    *("value_recap", "unused_feature", "downgrade_offer", "pause_option", "founder_email"),
    *("pain_point_fix", "social_proof", "feedback_request", "discount"),
}


def test_nine_variants_are_generated_for_a_new_event(client):
    made = create(client, cancel_reason="too_expensive", customer_name="Jane", plan_name="Team Pro")
    assert client.list_variants(made.id) == []
    variants = client.generate_variants(made.id)
    assert {variant.strategy for variant in variants} == STRATEGIES
    assert [variant.strategy for variant in variants if variant.recommended] == ["discount"]
    assert {variant.churn_event_id for variant in variants} == {made.id}
    assert {(variant.status, variant.sent_at) for variant in variants} == {("draft", None)}
    assert all("Jane" in variant.body and "{{" not in variant.subject for variant in variants)
    assert {variant.coupon_percent for variant in variants} == {20, None}
    assert client.list_variants(made.id) == variants
    got = client.get_churn_event(made.id)
    assert (got.status, got.variants) == ("variants_generated", tuple(variants))
    assert client.take(client.list_churn_events("variants_generated"))[0].variants == ()


def test_variants_are_not_generated_twice(client):
    made = create(client)
    client.generate_variants(made.id)
    with pytest.raises(windback.ValidationError, match="variants_generated") as caught:
        client.generate_variants(made.id)
    assert (caught.value.status, caught.value.code) == (400, "INVALID_STATE")
    assert len(client.list_variants(made.id)) == 9


def test_generation_has_a_timeout_of_its_own(make, server):
    client = make(server, timeout=0.2)
    made = create(client)
    server.faults([{"latency": 0.5, "method": "POST"}])
    assert len(client.generate_variants(made.id)) == 9
    with pytest.raises(windback.WindbackTimeoutError):
        client.generate_variants(made.id, timeout=0.2)


def test_a_template_replaces_what_is_generated_for_its_reason(client):
    template = client.create_recovery_template(
        **{**TEMPLATE, "body": "{{customer_name}}, {{ plan_name }}: {{cancel_reason}} {{other}}"}
    )
    made = create(client, cancel_reason="too_expensive", customer_name="{{plan_name}}")
    (variant,) = client.generate_variants(made.id)
    assert (variant.strategy, variant.recommended) == ("discount", True)
    assert variant.subject == "Hi {{plan_name}}"
    assert variant.body == "{{plan_name}}, your plan: too_expensive {{other}}"
    client.update_recovery_template(template.id, is_active=False)
    assert len(client.generate_variants(create(client, cancel_reason="too_expensive").id)) == 9


def test_a_variant_is_edited_until_it_is_sent(client):
    made = create(client)
    variant = client.generate_variants(made.id)[0]
    edited = client.update_variant(made.id, variant.id, subject="Hello", body="<p>Stay</p>")
    assert (edited.id, edited.subject, edited.body) == (variant.id, "Hello", "<p>Stay</p>")
    assert client.list_variants(made.id)[0] == edited
    sent = client.send_variant(made.id, variant.id)
    assert (sent.id, sent.status, sent.subject) == (variant.id, "sent", "Hello")
    assert sent.sent_at is not None
    assert client.get_churn_event(made.id).status == "email_sent"
    with pytest.raises(windback.ValidationError, match="this variant has already been sent"):
        client.update_variant(made.id, variant.id, body="too late")


def test_each_variant_is_sent_once(client):
    made = create(client)
    first, second = client.generate_variants(made.id)[:2]
    client.send_variant(made.id, first.id)
    with pytest.raises(windback.ValidationError, match="this variant has already been sent") as caught:
        client.send_variant(made.id, first.id)
    assert caught.value.status == 400
    client.send_variant(made.id, second.id)
    client.mark_recovered(made.id)
    third = client.list_variants(made.id)[2]
    with pytest.raises(windback.ValidationError, match="is recovered already"):
        client.send_variant(made.id, third.id)


def test_nothing_is_sent_before_variants_are_generated(client):
    made = create(client)
    with pytest.raises(windback.ValidationError, match="variants must be generated before sending emails"):
        client.send_variant(made.id, "var_x")


def test_a_variant_of_another_event_is_not_there(client):
    first, second = create(client), create(client)
    variant = client.generate_variants(first.id)[0]
    client.generate_variants(second.id)
    for call in (
        lambda: client.send_variant(second.id, variant.id),
        lambda: client.update_variant(second.id, variant.id, subject="x"),
    ):
        with pytest.raises(windback.NotFoundError, match="variant not found"):
            call()


def test_a_variant_is_not_sent_again_in_doubt(make, server):
    client = make(server, max_retries=3)
    made = create(client)
    variant = client.generate_variants(made.id)[0]
    server.faults([{"method": "POST", "drop": "after", "times": 1}])
    with pytest.raises(windback.WindbackConnectionError):
        client.send_variant(made.id, variant.id)
    assert [record.path.endswith("/send") for record in server.requests()].count(True) == 1


# Stats


def test_stats_count_events_and_money(client, server, make):
    nothing = client.get_recovery_stats()
    assert nothing == windback.RecoveryStats(0, 0, 0, 0, 0, 0, 0.0)
    assert isinstance(nothing.recovery_rate, float)
    made = [create(client, mrr=mrr) for mrr in (100, 20, 3)]
    client.generate_variants(made[0].id)
    client.mark_recovered(made[1].id)
    make(server, slug="other").create_churn_event(EMAIL, mrr=7)
    assert client.get_recovery_stats() == windback.RecoveryStats(3, 1, 1, 0, 103, 20, 33.33)
    server.mark_lost(made[2].id)
    assert client.get_recovery_stats() == windback.RecoveryStats(3, 0, 1, 1, 100, 20, 33.33)


# Cancel flow

OFFER = {
    "cancel_reason": "too_expensive",
    "offer_type": "discount",
    "title": "Half the price",
    "description": "For three months",
    "cta_button_text": "Stay",
    "discount_percent": 50,
}
READ_OFFER = windback.Offer("discount", "Half the price", "For three months", "Stay", 50)


def test_an_offer_is_shown_submitted_and_accepted(make, server):
    server.offers([OFFER, {"cancel_reason": "other", "offer_type": "extension", "is_active": False}])
    client = make(server, public_key=PUBLIC)
    assert client.get_offer("too_expensive") == READ_OFFER
    assert client.get_offer("other") is None
    assert client.get_offer("a&b=c d") is None
    result = client.submit_cancel_flow(EMAIL, "too_expensive")
    assert (result.created, result.offer) == (True, READ_OFFER)
    accepted = client.accept_offer(EMAIL, "too_expensive", "discount")
    assert (accepted.success, accepted.message) == (True, "the offer has been accepted")
    assert {record.headers["x-api-key"] for record in server.requests()} == {"pub_***"}
    counts = server.counts()
    assert (counts.cancel_flows, counts.accepted_offers) == (1, 1)


def test_an_offer_that_is_not_made_is_not_accepted(client, server):
    server.offers([OFFER])
    for reason, kind in (("too_expensive", "extension"), ("other", "discount")):
        with pytest.raises(windback.NotFoundError, match=f"an offer of type {kind} for {reason} not found"):
            client.accept_offer(EMAIL, reason, kind)
    assert server.counts().accepted_offers == 0


def test_a_cancel_flow_carries_what_the_docs_tree_requires(client):
    result = client.submit_cancel_flow(
        EMAIL,
        "too_expensive",
        cancel_reason_text="Budget cut",
        customer_name="Jane",
        provider="stripe",
        plan_name="Pro",
        mrr=4900,
        currency="eur",
        tenure_days=134,
    )
    event = client.get_churn_event(result.event_id)
    assert (event.customer_name, event.provider, event.plan_name) == ("Jane", "stripe", "Pro")
    assert (event.mrr, event.currency, event.tenure_days) == (4900, "eur", 134)
    assert event.raw["cancel_reason_text"] == "Budget cut"


def test_a_repeat_within_a_day_creates_nothing(client, server):
    client.submit_cancel_flow(EMAIL, "other")
    again = client.submit_cancel_flow(EMAIL.upper(), "other")
    assert (again.created, again.event_id, again.offer) == (False, None, None)
    assert "24 hours" in again.message
    assert server.counts().churn_events == 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("get_offer", ("",), "reason must be a text"),
        ("accept_offer", ("jane", "other", "discount"), "customer_email must be"),
        ("accept_offer", (EMAIL, "", "discount"), "cancel_reason must be"),
        ("accept_offer", (EMAIL, "other", None), "offer_type must be"),
    ],
)
def test_a_bad_argument_about_an_offer_is_refused_here(client, server, name, arguments, message):
    with pytest.raises(windback.ValidationError, match=message):
        getattr(client, name)(*arguments)
    assert server.counts().requests == 0


# Recovery templates


TEMPLATE = {
    "cancel_reason": "too_expensive",
    "name": "Save",
    "subject": "Hi {{customer_name}}",
    "body": "Stay",
}


def test_a_template_lives_from_its_creation_to_its_deletion(client, server):
    made = client.create_recovery_template(**TEMPLATE)
    other = client.create_recovery_template(**{**TEMPLATE, "cancel_reason": "other"}, is_active=False)
    assert client.list_recovery_templates() == [made, other]
    assert client.get_recovery_template(other.id) == other
    changed = client.update_recovery_template(made.id, subject="Bye", is_active=False)
    assert (changed.id, changed.subject, changed.body, changed.is_active) == (made.id, "Bye", "Stay", False)
    assert changed.updated_at > made.updated_at
    assert client.get_recovery_template(made.id) == changed
    assert client.delete_recovery_template(made.id) is None
    assert client.list_recovery_templates() == [other]
    assert server.counts().templates == 1
    client.create_recovery_template(**TEMPLATE)


def test_a_second_template_for_a_reason_is_a_conflict(client):
    client.create_recovery_template(**TEMPLATE)
    with pytest.raises(windback.ConflictError) as caught:
        client.create_recovery_template(**TEMPLATE)
    assert (caught.value.status, caught.value.code) == (409, "CONFLICT")


def test_a_change_of_nothing_is_refused_before_anything_is_sent(client, server):
    with pytest.raises(windback.ValidationError, match="at least one of name, subject, body, is_active"):
        client.update_recovery_template("tpl_1")
    with pytest.raises(windback.ValidationError, match="subject must be a text that is not empty"):
        client.update_recovery_template("tpl_1", subject="")
    with pytest.raises(windback.ValidationError, match="is_active must be True or False, not 0"):
        client.update_recovery_template("tpl_1", is_active=0)
    assert server.counts().requests == 0


def test_templates_of_another_project_are_not_there(make, server):
    made = make(server).create_recovery_template(**TEMPLATE)
    other = make(server, slug="other")
    assert other.list_recovery_templates() == []
    for name in ("get_recovery_template", "delete_recovery_template"):
        with pytest.raises(windback.NotFoundError, match="recovery template not found"):
            getattr(other, name)(made.id)


# Keys and limits

EXPIRED = "sk_test_expired"
NEED_SECRET = {
    "create_churn_event": (EMAIL,),
    "get_churn_event": ("evt_x",),
    "mark_recovered": ("evt_x",),
    "update_cancel_reason": ("evt_x", "other"),
    "generate_variants": ("evt_x",),
    "list_variants": ("evt_x",),
    "send_variant": ("evt_x", "var_x"),
    "get_recovery_stats": (),
    "list_recovery_templates": (),
    "delete_recovery_template": ("tpl_x",),
}


@pytest.fixture(scope="module")
def strict():
    with DevServer(keys=[SECRET, PUBLIC], expired_keys=[EXPIRED], generate_s=0) as server:
        yield server
    assert server.log() == ""


@pytest.mark.parametrize("name", NEED_SECRET)
@pytest.mark.parametrize(
    ("key", "kind_of_error", "status", "code"),
    [
        ("sk_test_unknown", windback.AuthenticationError, 401, "INVALID_API_KEY"),
        (EXPIRED, windback.SubscriptionExpiredError, 402, "SUBSCRIPTION_EXPIRED"),
    ],
)
def test_a_key_that_does_not_work_is_an_error_of_its_own(
    make, strict, name, key, kind_of_error, status, code
):
    client = make(strict, key=key)
    with pytest.raises(kind_of_error) as caught:
        getattr(client, name)(*NEED_SECRET[name])
    assert (caught.value.status, caught.value.code) == (status, code)


def test_an_expired_subscription_submits_into_nothing(make, strict):
    result = make(strict, key=EXPIRED).submit_cancel_flow("expired@example.com", "other")
    assert (result.created, result.event_id, result.message) == (False, None, "the subscription has expired")


@pytest.fixture(scope="module")
def limited():
    with DevServer(rate_limits=True) as server:
        yield server
    assert server.log() == ""


def test_over_a_documented_limit_a_call_reports_when_it_may_come_again(make, limited):
    limited.reset()
    client = make(limited)
    for n in range(10):
        assert client.get_offer(f"reason {n}") is None
    with pytest.raises(windback.RateLimitError) as caught:
        client.get_offer("x")
    assert (caught.value.status, caught.value.code) == (429, "RATE_LIMITED")
    assert 10 < caught.value.retry_after <= 15
    limited.reset()
    assert client.get_offer("x") is None


def test_a_call_that_may_be_retried_waits_for_its_turn(make, limited):
    limited.reset()
    client = make(limited, max_retries=3)
    for _ in range(60):
        client.get_recovery_stats()
    counts = limited.counts()
    assert counts.by_status[200] == 60
    assert counts.requests >= 60


# Errors: what the API answers to any call that names a thing

NOT_THERE = {
    "get_churn_event": ("evt_x",),
    "mark_recovered": ("evt_x",),
    "update_cancel_reason": ("evt_x", "other"),
    "generate_variants": ("evt_x",),
    "list_variants": ("evt_x",),
    "update_variant": ("evt_x", "var_x", {"subject": "x"}),
    "send_variant": ("evt_x", "var_x"),
    "get_recovery_template": ("tpl_x",),
    "update_recovery_template": ("tpl_x", {"name": "other"}),
    "delete_recovery_template": ("tpl_x",),
}
#: Those whose answer has nothing in it that is read.
UNREAD = {"delete_recovery_template"}


def call_missing(client, name, **changes):
    """Call a method of NOT_THERE; the last argument may be keywords."""
    arguments = list(NOT_THERE[name])
    keywords = arguments.pop() if isinstance(arguments[-1], dict) else {}
    arguments[0] = changes.get("first", arguments[0])
    return getattr(client, name)(*arguments, **keywords)


@pytest.mark.parametrize("name", NOT_THERE)
def test_what_is_not_there_is_a_not_found_error(client, name):
    with pytest.raises(windback.NotFoundError, match=" not found") as caught:
        call_missing(client, name)
    assert (caught.value.status, caught.value.code) == (404, "NOT_FOUND")


@pytest.mark.parametrize("name", NOT_THERE)
@pytest.mark.parametrize(
    ("status", "kind_of_error"),
    [
        (401, windback.AuthenticationError),
        (402, windback.SubscriptionExpiredError),
        (403, windback.PermissionDeniedError),
        (409, windback.ConflictError),
        (422, windback.ValidationError),
        (429, windback.RateLimitError),
        (503, windback.ServerError),
    ],
)
def test_each_refusal_is_an_error_of_its_own(client, server, name, status, kind_of_error):
    server.faults([{"status": status}])
    with pytest.raises(kind_of_error) as caught:
        call_missing(client, name)
    assert caught.value.status == status


@pytest.mark.parametrize("name", sorted(set(NOT_THERE) - UNREAD))
@pytest.mark.parametrize("body", ['{"data": {"id": "e', "[[", "null", "7"])
def test_a_success_that_is_cut_short_or_of_another_type_is_a_clear_error(client, server, name, body):
    server.faults([{"status": 200, "body": body, "content_type": "application/json"}])
    with pytest.raises(windback.WindbackError, match=r"this is not the API: .* set base_url to the API"):
        call_missing(client, name)


@pytest.mark.parametrize("name", NOT_THERE)
@pytest.mark.parametrize("value", [None, 7, True, b"evt", [], "", ".."], ids=repr)
def test_an_id_of_another_type_is_refused_before_anything_is_sent(client, server, name, value):
    with pytest.raises(windback.ValidationError, match="_id must be"):
        call_missing(client, name, first=value)
    assert server.counts().requests == 0


def test_both_clients_have_the_same_methods_in_the_same_order():
    def methods(client):
        return [name for name in vars(client) if not name.startswith("_")]

    assert methods(windback.Windback) == methods(windback.AsyncWindback)
