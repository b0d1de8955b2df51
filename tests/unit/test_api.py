"""Arguments become the documented requests, answers become models or errors."""

from __future__ import annotations

import gzip
import json
from functools import partial

import pytest

import windback
from windback.api import endpoints as api
from windback.api.answer import Answer
from windback.models import RecoveryStats, RecoveryTemplate

CHURN = {
    "customer_email": "jane@example.com",
    "customer_name": "Jane Smith",
    "event_type": "cancellation",
    "cancel_reason": "Missing integrations we need",
    "mrr": 4999,
    "currency": "usd",
    "plan_name": "Team Pro",
    "tenure_days": 180,
}
NOTHING_ELSE = dict.fromkeys(
    ("customer_name", "cancel_reason", "mrr", "currency", "plan_name", "tenure_days")
)


def answer(value, status=200):
    return Answer(status, {}, value if isinstance(value, bytes) else json.dumps(value).encode())


def test_a_batch_is_posted_to_track_under_its_key():
    request = api.track([b'{"event":"a"}', b'{"event":"b"}'], "key-1")
    assert (request.method, request.path, request.idempotency_key) == ("POST", "/track", "key-1")
    assert json.loads(request.body) == {"events": [{"event": "a"}, {"event": "b"}]}
    assert not request.gzip
    assert not request.once_only


def test_a_gzipped_batch_is_the_same_bytes_each_time():
    records = [b'{"event":"a"}'] * 50
    first, second = (api.track(records, "key-1", gzip=True) for _ in range(2))
    assert first == second
    assert first.gzip
    assert gzip.decompress(first.body) == api.track(records, "key-1").body
    assert len(first.body) < 200


def test_a_churn_event_sends_what_was_given():
    request = api.create_churn_event("shop", "key-1", **CHURN)
    assert (request.method, request.path) == ("POST", "/projects/shop/churn-events")
    assert request.idempotency_key == "key-1"
    assert json.loads(request.body) == CHURN


def test_what_was_not_given_is_not_sent():
    arguments = {**NOTHING_ELSE, "customer_email": "a@b", "event_type": "payment_failed"}
    request = api.create_churn_event("shop", "key-1", **arguments)
    assert json.loads(request.body) == {"customer_email": "a@b", "event_type": "payment_failed"}


def test_a_cancel_flow_prefers_the_public_key():
    arguments = {
        "customer_email": "a@b",
        "cancel_reason": "other",
        "feedback_text": "x",
        "selected_offer": None,
    }
    request = api.submit_cancel_flow("key-1", **arguments)
    assert (request.method, request.path, request.public) == ("POST", "/cancel-flow/submit", True)
    assert json.loads(request.body) == {
        "customer_email": "a@b",
        "cancel_reason": "other",
        "feedback_text": "x",
    }


def test_a_cancel_reason_is_patched_once_only():
    request = api.report_cancel_reason("shop", "evt_1", "too_expensive")
    assert (request.method, request.path) == ("PATCH", "/projects/shop/churn-events/evt_1/cancel-reason")
    assert json.loads(request.body) == {"cancel_reason": "too_expensive"}
    assert request.once_only


@pytest.mark.parametrize(
    ("event_id", "part"),
    [("a/b", "a%2Fb"), ("a?b#c", "a%3Fb%23c"), ("a b", "a%20b"), ("é", "%C3%A9"), ("../x", "..%2Fx")],
)
def test_an_event_id_cannot_change_the_path(event_id, part):
    assert api.report_cancel_reason("shop", event_id, "other").path == (
        f"/projects/shop/churn-events/{part}/cancel-reason"
    )


@pytest.mark.parametrize("event_id", [".", "..", "\ud800", "", None, 7], ids=repr)
def test_an_event_id_that_can_be_no_part_of_a_path_is_refused(event_id):
    with pytest.raises(windback.ValidationError, match="event_id"):
        api.report_cancel_reason("shop", event_id, "other")


def test_a_recovery_template_sends_all_its_fields():
    fields = {"cancel_reason": "other", "name": "n", "subject": "s", "body": "b", "is_active": False}
    request = api.create_recovery_template("shop", "key-1", **fields)
    assert (request.method, request.path) == ("POST", "/projects/shop/recovery-templates")
    assert json.loads(request.body) == fields


def test_a_churn_event_is_asked_for_by_its_id():
    request = api.get_churn_event("shop", "evt/1")
    assert (request.method, request.path) == ("GET", "/projects/shop/churn-events/evt%2F1")


def test_a_recovery_is_posted_under_a_key():
    request = api.mark_recovered("shop", "key-1", "evt_1")
    assert (request.method, request.path) == ("POST", "/projects/shop/churn-events/evt_1/recovered")
    assert (request.body, request.idempotency_key, request.once_only) == (b"", "key-1", False)


def test_a_changed_reason_sends_its_text_where_there_is_one():
    request = api.update_cancel_reason("shop", "evt_1", "other", "moving")
    assert json.loads(request.body) == {"cancel_reason": "other", "cancel_reason_text": "moving"}
    assert request.once_only
    with pytest.raises(windback.ValidationError, match="cancel_reason_text must be a text"):
        api.update_cancel_reason("shop", "evt_1", "other", 7)


def test_pages_of_churn_events_have_the_largest_size():
    request = api.ChurnEventPages("shop").next_request()
    assert (request.method, request.path, request.query) == (
        "GET",
        "/projects/shop/churn-events",
        "limit=100&offset=0",
    )


def test_pages_of_churn_events_are_filtered_and_as_large_as_wanted():
    request = api.ChurnEventPages("shop", "a&b", 7).next_request()
    assert request.query == "limit=7&offset=0&status=a%26b"


@pytest.mark.parametrize("page_size", [0, 101, True, "20", 20.0, None], ids=repr)
def test_a_page_size_that_the_api_does_not_take_is_refused(page_size):
    with pytest.raises(windback.ValidationError, match="page_size must be a whole number from 1 to 100"):
        api.ChurnEventPages("shop", None, page_size)


def test_pages_that_are_smaller_than_asked_for_lose_nothing():
    pages = api.ChurnEventPages("shop", None, 3)
    assert [event.id for event in pages.feed(answer({"data": [row(1), row(2)], "total": 3}))] == [
        "evt_1",
        "evt_2",
    ]
    assert not pages.done
    assert pages.next_request().query == "limit=3&offset=2"
    pages.feed(answer({"data": [row(3)], "total": 3}))
    assert pages.done


def test_an_api_that_gives_one_page_for_ever_is_a_clear_error():
    pages = api.ChurnEventPages("shop", None, 2)
    page = answer({"data": [row(2), row(1)]})
    assert len(pages.feed(page)) == 2
    for _ in range(api.MAX_PAGES):
        assert pages.feed(page) == []
    with pytest.raises(windback.WindbackError, match="it ignores the offset") as caught:
        pages.feed(page)
    assert caught.value.code == "ENDLESS_LIST"


def test_an_event_that_moves_to_the_next_page_is_given_once():
    pages = api.ChurnEventPages("shop", None, 2)
    pages.feed(answer({"data": [row(5), row(4)]}))
    assert [event.id for event in pages.feed(answer({"data": [row(4), row(3)]}))] == ["evt_3"]


BAD_CHURN = {
    "email without @": ({"customer_email": "jane"}, "customer_email must be an email address"),
    "email none": ({"customer_email": None}, "customer_email must be an email address"),
    "event type empty": ({"event_type": ""}, "event_type must be a text that is not empty, not ''"),
    "mrr negative": (
        {"mrr": -1},
        "mrr must be a whole number of cents, such as 4999 for 49.99, at least 0, not -1",
    ),
    "mrr fractional": ({"mrr": 49.99}, "mrr must be a whole number of cents, .*not 49.99"),
    "mrr whole float": ({"mrr": 50.0}, "mrr must be a whole number of cents, .*not 50.0"),
    "mrr boolean": ({"mrr": True}, "mrr must be a whole number of cents, .*not True"),
    "mrr text": ({"mrr": "4999"}, "mrr must be a whole number of cents, .*not '4999'"),
    "mrr over 64 bits": ({"mrr": 2**64}, "mrr"),
    "tenure negative": (
        {"tenure_days": -1},
        "tenure_days must be a whole number of days, at least 0, not -1",
    ),
    "name no text": ({"customer_name": 7}, "customer_name must be a text, not 7"),
    "plan no text": ({"plan_name": ["pro"]}, r"plan_name must be a text, not \['pro'\]"),
    "reason no text": ({"cancel_reason": 1}, "cancel_reason must be a text, not 1"),
    "surrogate": ({"plan_name": "\ud800"}, "plan_name has a lone surrogate at position 0"),
}


@pytest.mark.parametrize(("change", "message"), BAD_CHURN.values(), ids=BAD_CHURN)
def test_a_bad_argument_is_named_before_anything_is_sent(change, message):
    with pytest.raises(windback.ValidationError, match=message) as caught:
        api.create_churn_event("shop", "key-1", **{**CHURN, **change})
    assert caught.value.status is None


def test_a_template_is_active_or_not():
    with pytest.raises(windback.ValidationError, match="is_active must be True or False, not 1"):
        api.create_recovery_template(
            "s", "k", cancel_reason="a", name="b", subject="c", body="d", is_active=1
        )


@pytest.mark.parametrize("reason", ["", None, 3])
def test_an_empty_reason_is_refused(reason):
    with pytest.raises(windback.ValidationError, match="reason must be a text that is not empty"):
        api.check_reason(reason)


@pytest.mark.parametrize(
    "value", [{"id": "evt_1", "status": "new"}, {"data": {"id": "evt_1", "status": "new"}}]
)
def test_an_answer_is_read_with_and_without_its_envelope(value):
    event = api.read_churn_event(answer(value, 201))
    assert (event.id, event.status, event.raw) == ("evt_1", "new", {"id": "evt_1", "status": "new"})


def test_an_empty_success_is_an_empty_answer():
    assert api.read_churn_event(answer(b"", 204)).id == ""
    event = api.read_churn_event(answer(b"", 204), event_id="evt_1", status="recovered")
    assert (event.id, event.status, event.raw) == ("evt_1", "recovered", {})


def test_202_means_that_nothing_was_created():
    assert not api.read_cancel_flow(answer({"offer": None}, 202)).created
    assert api.read_cancel_flow(answer({"offer": None}, 200)).created


@pytest.mark.parametrize(
    "value",
    [
        {"data": {"event_id": "evt_1", "status": "variants_generated", "variants": [{"id": "var_1"}, 7]}},
        {"variants": [{"id": "var_1"}]},
    ],
    ids=["site", "docs tree"],
)
def test_what_was_generated_is_read_in_both_documented_forms(value):
    assert [each.id for each in api.read_generated(answer(value))] == ["var_1"]


def test_a_generation_that_has_only_started_has_no_variants_yet():
    for value in (b"", {"status": "processing"}, {"data": {"variants": None}}):
        assert api.read_generated(answer(value, 202)) == []


def test_a_variant_keeps_its_id_where_the_answer_has_none():
    variant = api.read_variant(answer({"success": True}), "var_1")
    assert (variant.id, variant.raw) == ("var_1", {"success": True})
    assert api.read_variant(answer({"data": {"id": "var_2"}}), "var_1").id == "var_2"


def test_a_variant_is_sent_once_only():
    request = api.send_variant("shop", "evt/1", "var/1")
    assert (request.method, request.once_only) == ("POST", True)
    assert request.path == "/projects/shop/churn-events/evt%2F1/variants/var%2F1/send"
    with pytest.raises(windback.ValidationError, match="variant_id"):
        api.send_variant("shop", "evt_1", "..")


def test_stats_are_read_with_and_without_their_envelope():
    for value in ({"total_events": 3}, {"data": {"total_events": 3}}):
        assert api.read(RecoveryStats, answer(value)).total_events == 3


@pytest.mark.parametrize("value", [{"offer": None}, {}, {"offer": "x"}, b""], ids=repr)
def test_no_offer_is_none(value):
    assert api.read_offer(answer(value)) is None


def test_a_list_of_templates_is_read_with_and_without_its_envelope():
    rows = [{"id": "tpl_1"}, "no template", {"id": "tpl_2"}]
    for value in (rows, {"data": rows}):
        assert [each.id for each in api.read_list(RecoveryTemplate, answer(value))] == ["tpl_1", "tpl_2"]
    assert api.read_list(RecoveryTemplate, answer(b"")) == []


@pytest.mark.parametrize("body", [b"<html>", b"7", b"{}", b'{"data": {}}', b'[{"id": '], ids=repr)
def test_a_success_that_is_no_list_is_a_clear_error(body):
    with pytest.raises(windback.WindbackError, match="is base_url right"):
        api.read_list(RecoveryTemplate, answer(body))


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'"ok"', b'{"id": ', b"\xff", b"null"], ids=repr)
@pytest.mark.parametrize(
    "read", [api.read_churn_event, api.read_cancel_flow, partial(api.read, RecoveryTemplate)]
)
def test_a_success_that_is_no_json_object_is_a_clear_error(read, body):
    with pytest.raises(windback.WindbackError, match="is base_url right") as caught:
        read(answer(body))
    assert (caught.value.status, caught.value.code) == (200, "UNREADABLE_ANSWER")


def row(number, email="jane@example.com", status="new", created="2025-12-01T10:00:00Z"):
    return {"id": f"evt_{number}", "customer_email": email, "status": status, "created_at": created}


def search(*pages, email="jane@example.com"):
    found = api.OpenEventSearch("shop", email)
    requests = []
    for page in pages:
        assert not found.done
        requests.append(found.next_request())
        found.feed(answer(page))
    return found, requests


def test_the_newest_open_event_of_the_customer_is_found():
    rows = [
        row(1, created="2025-12-01T10:00:00Z"),
        row(2, created="2025-12-03T10:00:00Z"),
        row(3, created="2025-12-02T10:00:00Z"),
        row(4, created="2025-12-09T10:00:00Z", status="recovered"),
        row(5, created="2025-12-09T10:00:00Z", status="lost"),
        row(6, created="2025-12-09T10:00:00Z", email="john@example.com"),
        {**row(7, created="2025-12-09T10:00:00Z"), "id": None},
        "no event",
    ]
    found, _ = search({"data": rows, "total": len(rows) - 1})
    assert found.done
    assert found.result() == "evt_2"


def test_emails_are_compared_without_case():
    found, _ = search({"data": [row(1, email="Jane@Example.com")]}, email="jANE@example.com")
    assert found.result() == "evt_1"


def test_an_event_without_a_time_is_the_oldest():
    found, _ = search({"data": [row(1), row(2, created=None)]})
    assert found.result() == "evt_1"


def test_pages_are_read_until_the_total():
    full = {"data": [row(n, email="other@example.com") for n in range(100)], "total": 201}
    found, requests = search(full, full, {"data": [row(201)], "total": 201})
    assert found.done
    assert [each.query for each in requests] == [f"limit=100&offset={n}" for n in (0, 100, 200)]
    assert found.result() == "evt_201"


def test_without_a_total_a_short_page_is_the_last():
    full = {"data": [row(n, email="other@example.com") for n in range(100)]}
    found, _ = search(full, {"data": []})
    assert found.done
    with pytest.raises(windback.NotFoundError, match="among the 100 events searched") as caught:
        found.result()
    assert caught.value.code == "NO_OPEN_CHURN_EVENT"
    assert "jane@example.com" not in str(caught.value)


def test_an_empty_page_ends_the_search_whatever_the_total_says():
    found, _ = search({"data": [], "total": 1_000})
    assert found.done


def test_the_search_is_bounded():
    found = api.OpenEventSearch("shop", "jane@example.com")
    full = answer({"data": [row(n, email="other@example.com") for n in range(100)], "total": 10**9})
    for _ in range(api.MAX_PAGES):
        assert not found.done
        found.feed(full)
    assert found.done
