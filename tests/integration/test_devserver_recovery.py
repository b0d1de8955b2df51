"""The local server over real sockets: churn events, variants, templates and the cancel flow."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from typing import Iterator

import pytest
from calls import eventually
from deadlines import SLACK_S
from devserver_calls import FLOW, PUBLIC, TEMPLATE, call, create

from windback.devserver import DevServer, DevServerError
from windback.devserver.recovery import write


@pytest.fixture(scope="module")
def running() -> Iterator[DevServer]:
    with DevServer(max_body_bytes=100_000, generate_s=0.1) as server:
        yield server
        assert server.log() == "", "the server printed warnings or tracebacks"


# Churn events


def test_a_churn_event_comes_back_whole(server):
    created = create(
        server,
        customer_name="Jane Smith",
        cancel_reason="Missing integrations we need",
        mrr=4999,
        currency="eur",
        plan_name="Team Pro",
        tenure_days=180,
    )
    assert created["status"] == "new"
    assert created["mrr"] == 4999
    assert created["currency"] == "eur"
    assert created["provider"] == "api"
    assert created["created_at"] == created["updated_at"]
    path = f"/projects/p/churn-events/{created['id']}"
    assert call(server, "GET", path).json == {"data": created}
    assert call(server, "GET", path.replace("/p/", "/other/")).status == 404


def test_only_the_email_is_required_of_a_churn_event(server):
    reply = call(server, "POST", "/projects/p/churn-events", {"customer_email": "jane@example.com"})
    data = reply.json["data"]
    assert (data["event_type"], data["mrr"], data["currency"], data["tenure_days"]) == (
        "cancellation",
        0,
        "usd",
        None,
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"customer_email": None}, "customer_email"),
        ({"customer_email": "jane"}, "customer_email"),
        ({"event_type": "boredom"}, "event_type"),
        ({"mrr": -1}, "mrr"),
        ({"mrr": 1.5}, "mrr"),
        ({"mrr": True}, "mrr"),
        ({"currency": "dollars"}, "currency"),
        ({"mrr": 10**12 + 1}, "mrr"),
        ({"mrr": 2**63}, "mrr"),
        ({"tenure_days": "long"}, "tenure_days"),
        ({"plan_name": 5}, "plan_name"),
    ],
    ids=str,
)
def test_a_bad_churn_event_is_400_and_names_the_field(server, change, field):
    body = {"customer_email": "jane@example.com", **change}
    reply = call(server, "POST", "/projects/p/churn-events", body)
    assert reply.status == 400
    assert reply.json["error"].startswith(field + ":")
    assert server.counts().churn_events == 0


def test_the_list_is_paged_newest_first(server):
    ids = [create(server)["id"] for _ in range(25)][::-1]
    create(server, slug="other")
    first = call(server, "GET", "/projects/p/churn-events").json
    assert (first["total"], first["limit"], first["offset"]) == (25, 20, 0)
    assert [event["id"] for event in first["data"]] == ids[:20]
    rest = call(server, "GET", "/projects/p/churn-events?limit=100&offset=20").json
    assert [event["id"] for event in rest["data"]] == ids[20:]


def test_the_list_is_filtered_by_status(server):
    first, second = create(server), create(server)
    path = f"/projects/p/churn-events/{first['id']}/recovered"
    assert call(server, "POST", path).json["data"]["status"] == "recovered"
    assert call(server, "POST", path).status == 400
    for status, expected in (("new", second), ("recovered", first)):
        page = call(server, "GET", f"/projects/p/churn-events?status={status}").json
        assert ([event["id"] for event in page["data"]], page["total"]) == ([expected["id"]], 1)


def test_a_churn_event_ends_once_as_recovered_or_as_lost(server):
    first, second = create(server), create(server)
    server.mark_lost(first["id"])
    assert call(server, "GET", f"/projects/p/churn-events/{first['id']}").json["data"]["status"] == "lost"
    assert call(server, "POST", f"/projects/p/churn-events/{first['id']}/recovered").json == {
        "error": "the churn event is lost already",
        "code": "INVALID_STATE",
    }
    call(server, "POST", f"/projects/p/churn-events/{second['id']}/recovered")
    with pytest.raises(DevServerError, match="the churn event is recovered already"):
        server.mark_lost(second["id"])
    with pytest.raises(DevServerError, match="churn event not found"):
        server.mark_lost("evt_x")


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=101", "limit=ten", "limit=", "offset=-1", "offset=" + "9" * 5000, "status=sad"],
)
def test_a_bad_query_is_400(server, query):
    reply = call(server, "GET", f"/projects/p/churn-events?{query}")
    assert reply.status == 400
    assert reply.json["error"].startswith(query.partition("=")[0] + ":")


def test_the_cancel_reason_is_changed(server):
    created = create(server)
    path = f"/projects/p/churn-events/{created['id']}/cancel-reason"
    changed = call(server, "PATCH", path, {"cancel_reason": "other", "cancel_reason_text": "moving"}).json[
        "data"
    ]
    assert (changed["cancel_reason"], changed["cancel_reason_text"]) == ("other", "moving")
    assert changed["updated_at"] > created["updated_at"]
    assert call(server, "GET", f"/projects/p/churn-events/{created['id']}").json["data"] == changed
    assert call(server, "PATCH", path, {}).json["error"] == "cancel_reason: is missing"
    assert call(server, "PATCH", path.replace("evt_", "evt_x"), {"cancel_reason": "other"}).status == 404


# Variants


def test_an_event_is_processing_while_its_variants_are_generated():
    with DevServer(generate_s=1.0) as slow:
        event = f"/projects/p/churn-events/{create(slow)['id']}"
        replies = []
        thread = threading.Thread(target=lambda: replies.append(call(slow, "POST", event + "/generate")))
        thread.start()
        eventually(lambda: call(slow, "GET", event).json["data"]["status"] == "processing")
        assert call(slow, "GET", event + "/variants").json == {"data": []}
        thread.join()
        assert replies[0].status == 200
        assert (replies[0].json["data"]["status"], len(replies[0].json["data"]["variants"])) == (
            "variants_generated",
            9,
        )


def test_one_of_two_generations_at_the_same_time_wins(server):
    event = f"/projects/p/churn-events/{create(server)['id']}"
    replies = []
    threads = [
        threading.Thread(target=lambda: replies.append(call(server, "POST", event + "/generate").status))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(replies) == [200, 400]
    assert len(call(server, "GET", event + "/variants").json["data"]) == 9


def test_a_repeat_under_the_same_key_gets_the_variants_again(server):
    event = f"/projects/p/churn-events/{create(server)['id']}"
    first, second = (
        call(server, "POST", event + "/generate", headers={"idempotency-key": "k1"}) for _ in range(2)
    )
    assert (first.status, first.raw) == (second.status, second.raw)


def test_stop_does_not_wait_for_a_generation():
    server = DevServer(generate_s=600)
    server.start()
    event = f"/projects/p/churn-events/{create(server)['id']}"
    replies = []
    thread = threading.Thread(target=lambda: replies.append(call(server, "POST", event + "/generate")))
    thread.start()
    eventually(lambda: call(server, "GET", event).json["data"]["status"] == "processing")
    started = time.monotonic()
    server.stop()
    thread.join()
    assert time.monotonic() - started < SLACK_S
    assert (replies[0].status, replies[0].json["code"], server.log()) == (503, "STOPPING", "")


def test_without_an_email_service_sending_is_the_documented_500():
    with DevServer(generate_s=0, email=False) as server:
        event = f"/projects/p/churn-events/{create(server)['id']}"
        variant = call(server, "POST", event + "/generate").json["data"]["variants"][0]
        reply = call(server, "POST", f"{event}/variants/{variant['id']}/send")
        assert (reply.status, reply.json["error"]) == (500, "email service is not configured")
        assert call(server, "GET", event).json["data"]["status"] == "variants_generated"


@pytest.mark.parametrize("change", [{}, {"subject": ""}, {"body": 7}, [], {"status": "sent"}], ids=str)
def test_a_bad_change_of_a_variant_is_400(server, change):
    reply = call(server, "PATCH", "/projects/p/churn-events/evt_x/variants/var_x", change)
    assert (reply.status, reply.json["code"]) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("reason", "strategy"),
    [
        ("too_expensive", "discount"),
        ("missing_features", "unused_feature"),
        ("not_using_enough", "value_recap"),
        ("switching_competitor", "social_proof"),
        ("technical_issues", "pain_point_fix"),
        ("poor_support", "founder_email"),
        ("dont_need_anymore", "pause_option"),
        ("other", "feedback_request"),
        ("Too expensive for our team", "feedback_request"),
        (None, "feedback_request"),
        ("switched_to_competitor", "social_proof"),
        ("bad_support", "founder_email"),
        ("temporary_pause", "pause_option"),
    ],
)
def test_each_reason_has_the_documented_strategy(reason, strategy):
    event = {"customer_email": "a@b", "customer_name": None, "plan_name": None, "cancel_reason": reason}
    emails = write(event, None)
    assert len(emails) == 9
    assert [email["strategy"] for email in emails if email["recommended"]] == [strategy]


# Recovery templates


def test_a_template_is_created_and_listed(server):
    reply = call(server, "POST", "/projects/p/recovery-templates", TEMPLATE)
    assert reply.status == 201
    data = reply.json["data"]
    assert data["is_active"] is True
    assert {name: data[name] for name in TEMPLATE} == TEMPLATE
    assert call(server, "GET", "/projects/p/recovery-templates").json == {"data": [data]}
    assert call(server, "GET", "/projects/q/recovery-templates").json == {"data": []}


def test_a_second_template_for_a_reason_is_409(server):
    assert call(server, "POST", "/projects/p/recovery-templates", TEMPLATE).status == 201
    assert call(server, "POST", "/projects/p/recovery-templates", TEMPLATE).status == 409
    assert call(server, "POST", "/projects/q/recovery-templates", TEMPLATE).status == 201
    assert server.counts().templates == 2


@pytest.mark.parametrize(
    "change", [{"name": ""}, {"subject": None}, {"body": 5}, {"is_active": "yes"}], ids=str
)
def test_a_bad_template_is_400_and_names_the_field(server, change):
    reply = call(server, "POST", "/projects/p/recovery-templates", {**TEMPLATE, **change})
    assert reply.status == 400
    assert reply.json["error"].startswith(next(iter(change)) + ":")


def test_a_template_is_changed_in_part_and_deleted(server):
    data = call(server, "POST", "/projects/p/recovery-templates", TEMPLATE).json["data"]
    path = f"/projects/p/recovery-templates/{data['id']}"
    assert call(server, "GET", path).json == {"data": data}
    changed = call(server, "PUT", path, {"subject": "Bye", "is_active": False, "cancel_reason": "other"}).json
    assert changed["data"] == {
        **data,
        "subject": "Bye",
        "is_active": False,
        "updated_at": changed["data"]["updated_at"],
    }
    reply = call(server, "DELETE", path)
    assert (reply.status, reply.raw) == (204, b"")
    assert "content-type" not in reply.headers
    for method, body in (("GET", None), ("PUT", {"name": "n"}), ("DELETE", None)):
        assert call(server, method, path, body).json == {
            "error": "recovery template not found",
            "code": "NOT_FOUND",
        }


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({}, "body:"),
        ({"cancel_reason": "other"}, "body:"),
        ([], "body:"),
        ({"name": ""}, "name:"),
        ({"body": None}, "body:"),
        ({"is_active": 1}, "is_active:"),
    ],
    ids=str,
)
def test_a_bad_change_of_a_template_is_400(server, change, place):
    reply = call(server, "PUT", "/projects/p/recovery-templates/tpl_x", change)
    assert reply.status == 400
    assert reply.json["error"].startswith(place)


# Cancel flow


def test_the_cancel_flow_creates_a_churn_event_of_every_project(server):
    answer = call(server, "POST", "/cancel-flow/submit", FLOW).json
    assert (answer["success"], answer["offer"]) == (True, None)
    (event,) = call(server, "GET", "/projects/any/churn-events").json["data"]
    assert (event["id"], event["cancel_reason"]) == (answer["event_id"], FLOW["cancel_reason"])
    path = f"/projects/any/churn-events/{event['id']}/cancel-reason"
    assert call(server, "PATCH", path, {"cancel_reason": "other"}).status == 200


def test_a_repeat_within_a_day_is_202_and_creates_nothing(server):
    assert call(server, "POST", "/cancel-flow/submit", FLOW).status == 200
    repeat = call(server, "POST", "/cancel-flow/submit", {**FLOW, "customer_email": "JANE@example.com"})
    assert (repeat.status, repeat.json["event_id"]) == (202, None)
    assert (
        call(server, "POST", "/cancel-flow/submit", {**FLOW, "customer_email": "b@example.com"}).status == 200
    )
    counts = server.counts()
    assert (counts.churn_events, counts.cancel_flows) == (2, 2)


def test_after_a_day_the_customer_may_submit_again(tmp_path):
    path = tmp_path / "dev.db"
    server = DevServer(db=path)
    with server:
        assert call(server, "POST", "/cancel-flow/submit", FLOW).status == 200
    with closing(sqlite3.connect(str(path))) as database:
        database.execute("UPDATE cancel_flows SET created_at = created_at - 24 * 3600 - 1")
        database.commit()
    with server:
        assert call(server, "POST", "/cancel-flow/submit", FLOW).status == 200
        assert call(server, "POST", "/cancel-flow/submit", FLOW).status == 202


@pytest.mark.parametrize("field", ["customer_email", "cancel_reason"])
def test_the_cancel_flow_needs_email_and_reason(server, field):
    body = {name: value for name, value in FLOW.items() if name != field}
    reply = call(server, "POST", "/cancel-flow/submit", body)
    assert (reply.status, reply.json["error"]) == (400, f"{field}: is missing")


def test_offers_are_configured_and_offered(server):
    assert call(server, "GET", "/cancel-flow/offers?reason=other", key=PUBLIC).json == {"offer": None}
    server.offers([{"cancel_reason": "other", "offer_type": "extension", "extension_days": 14}])
    offer = {"offer_type": "extension", "extension_days": 14, "is_active": True}
    assert call(server, "GET", "/cancel-flow/offers?reason=other", key=PUBLIC).json == {"offer": offer}
    assert call(server, "GET", "/_dev/offers").json == {"data": [{"cancel_reason": "other", **offer}]}
    server.reset()
    assert call(server, "GET", "/_dev/offers").json == {"data": []}


@pytest.mark.parametrize("query", ["", "?reason=", "?other=x"])
def test_offers_need_a_reason(server, query):
    reply = call(server, "GET", "/cancel-flow/offers" + query, key=PUBLIC)
    assert (reply.status, reply.json["error"]) == (400, "reason: is missing")


@pytest.mark.parametrize(
    ("offers", "message"),
    [
        ({}, "offers: must be a list"),
        (["x"], "offers[0].body: must be an object"),
        ([{"offer_type": "discount"}], "offers[0].cancel_reason: is missing"),
        ([{"cancel_reason": "x", "offer_type": "gift"}], "offers[0].offer_type: must be one of"),
        (
            [{"cancel_reason": "x", "offer_type": "discount", "discount_percent": 0}],
            "offers[0].discount_percent",
        ),
        (
            [{"cancel_reason": "x", "offer_type": "discount", "discount_percent": 101}],
            "offers[0].discount_per",
        ),
        (
            [{"cancel_reason": "x", "offer_type": "discount", "extension_days": "1"}],
            "offers[0].extension_days",
        ),
        ([{"cancel_reason": "x", "offer_type": "discount", "is_active": 1}], "offers[0].is_active"),
        (
            [{"cancel_reason": "x", "offer_type": "custom"}] * 2,
            "offers[1].cancel_reason: x has an offer already",
        ),
    ],
    ids=str,
)
def test_offers_that_make_no_sense_are_refused_and_change_nothing(server, offers, message):
    server.offers([{"cancel_reason": "other", "offer_type": "custom"}])
    reply = call(server, "PUT", "/_dev/offers", offers)
    assert reply.status == 400
    assert reply.json["error"].startswith(message)
    assert len(call(server, "GET", "/_dev/offers").json["data"]) == 1


@pytest.mark.parametrize("field", ["customer_email", "cancel_reason", "offer_type"])
def test_an_acceptance_needs_all_its_fields(server, field):
    body = {"customer_email": "a@b", "cancel_reason": "other", "offer_type": "custom"}
    body.pop(field)
    reply = call(server, "POST", "/cancel-flow/accept-offer", body, key=PUBLIC)
    assert (reply.status, reply.json["error"]) == (400, f"{field}: is missing")


def test_no_request_declines_an_offer(server):
    body = {"customer_email": "a@b", "cancel_reason": "other", "offer_type": "custom"}
    assert call(server, "POST", "/cancel-flow/decline-offer", body, key=PUBLIC).status == 404
