"""Answers become frozen values that lose nothing and trip over nothing."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import pickle

import pytest

from windback.models import (
    CancelFlowResult,
    ChurnEvent,
    Offer,
    OfferAcceptance,
    RecoveryStats,
    RecoveryTemplate,
    TrackResult,
    Variant,
    parse_time,
)

UTC = dt.timezone.utc

EVENT = {
    "id": "evt_abc123",
    "project_id": "prj_1",
    "customer_email": "jane@example.com",
    "customer_name": "Jane Smith",
    "event_type": "cancellation",
    "cancel_reason": "too_expensive",
    "status": "new",
    "mrr": 4999,
    "currency": "usd",
    "plan_name": "Team Pro",
    "tenure_days": 180,
    "provider": "api",
    "created_at": "2025-12-01T10:00:00Z",
    "updated_at": "2025-12-01T10:00:00.123456789+01:00",
}


def test_a_churn_event_is_read():
    event = ChurnEvent.from_json(EVENT)
    plain = {name: value for name, value in dataclasses.asdict(event).items() if name in EVENT}
    times = {"created_at", "updated_at"}
    assert {name: plain[name] for name in plain if name not in times} == {
        name: EVENT[name] for name in EVENT if name not in times
    }
    assert event.created_at == dt.datetime(2025, 12, 1, 10, tzinfo=UTC)
    assert event.updated_at == dt.datetime(2025, 12, 1, 9, 0, 0, 123456, tzinfo=UTC)
    assert event.raw == EVENT


def test_unknown_fields_and_an_unknown_status_are_kept():
    event = ChurnEvent.from_json({**EVENT, "status": "frozen", "mood": "sad"})
    assert event.status == "frozen"
    assert event.raw["mood"] == "sad"


@pytest.mark.parametrize(
    "model", [ChurnEvent, OfferAcceptance, RecoveryStats, RecoveryTemplate, Offer, Variant]
)
def test_missing_fields_are_none_or_empty(model):
    value = model.from_json({})
    for field in dataclasses.fields(model):
        if field.name == "raw":
            assert value.raw == {}
        elif field.name == "variants":
            assert value.variants == ()
        elif field.default is dataclasses.MISSING:  # id, and a churn event's status
            assert getattr(value, field.name) == ""
        else:
            assert getattr(value, field.name) is None


def test_the_other_spelling_of_mrr_is_read():
    assert ChurnEvent.from_json({"mrr_cents": 2999}).mrr == 2999
    assert ChurnEvent.from_json({"mrr": 0, "mrr_cents": 2999}).mrr == 0


def test_fields_of_the_wrong_type_do_not_trip_it():
    event = ChurnEvent.from_json(
        {"id": 7, "status": None, "mrr": "49.99", "tenure_days": True, "created_at": 5}
    )
    assert (event.id, event.status, event.mrr, event.tenure_days, event.created_at) == (
        "7",
        "",
        None,
        None,
        None,
    )
    assert RecoveryTemplate.from_json({"is_active": "yes"}).is_active is None
    assert CancelFlowResult.from_json({"offer": ["discount"]}, created=True).offer is None


@pytest.mark.parametrize(
    ("raw", "event_id", "status"),
    [
        ({"success": True, "event_id": "evt_1", "offer": None}, "evt_1", None),
        ({"churn_event_id": "evt_2", "status": "new", "message": "thanks"}, "evt_2", "new"),
        ({"offer": None}, None, None),
    ],
    ids=["docs tree", "package", "site"],
)
def test_each_documented_answer_to_a_cancel_flow_is_read(raw, event_id, status):
    result = CancelFlowResult.from_json(raw, created=True)
    assert (result.event_id, result.status, result.offer, result.created) == (event_id, status, None, True)


def test_an_offer_is_read():
    raw = {"offer": {"offer_type": "discount", "title": "Stay", "discount_percent": 20, "is_active": True}}
    offer = CancelFlowResult.from_json(raw, created=True).offer
    assert offer == Offer("discount", title="Stay", discount_percent=20)
    assert offer.raw["is_active"] is True


def test_a_variant_is_read_alone_and_within_its_event():
    raw = {"id": "var_1", "strategy": "new_one", "recommended": True, "coupon_percent": 20, "opened_at": None}
    variant = Variant("var_1", strategy="new_one", recommended=True, coupon_percent=20)
    assert Variant.from_json(raw) == variant
    event = ChurnEvent.from_json({**EVENT, "variants": [raw, "no variant", {"recommended": 1}]})
    assert event.variants == (variant, Variant(""))
    assert event.variants[0].raw == raw
    assert ChurnEvent.from_json({**EVENT, "variants": {"id": 1}}).variants == ()


@pytest.mark.parametrize(
    ("rate", "read"), [(33.5, 33.5), (0, 0.0), (True, None), ("33", None), (None, None)], ids=repr
)
def test_a_recovery_rate_is_a_number(rate, read):
    assert RecoveryStats.from_json({"recovery_rate": rate}).recovery_rate == read


def test_models_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ChurnEvent("a", "new").status = "lost"
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrackResult(1, 1).sent = 2


def test_a_model_survives_pickling_and_copying():
    event = ChurnEvent.from_json(EVENT)
    again = pickle.loads(pickle.dumps(event))  # noqa: S301
    assert again == copy.deepcopy(event) == event
    assert again.raw == EVENT


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2025-12-01T10:00:00Z", dt.datetime(2025, 12, 1, 10, tzinfo=UTC)),
        ("2025-12-01t10:00:00z", dt.datetime(2025, 12, 1, 10, tzinfo=UTC)),
        ("2025-12-01 10:00:00", dt.datetime(2025, 12, 1, 10, tzinfo=UTC)),
        ("2025-12-01T10:00:00.5Z", dt.datetime(2025, 12, 1, 10, 0, 0, 500_000, tzinfo=UTC)),
        ("2025-12-01T10:00:00.1234567Z", dt.datetime(2025, 12, 1, 10, 0, 0, 123_456, tzinfo=UTC)),
        ("2025-12-01T10:00:00-0230", dt.datetime(2025, 12, 1, 12, 30, tzinfo=UTC)),
        ("2025-02-30T10:00:00Z", None),
        ("2025-12-01T10:00:00+25:00", None),
        ("2025-12-01T10:00:00Z\n", None),
        ("2025-12-01", None),
        ("yesterday", None),
        ("", None),
    ],
    ids=str,
)
def test_times_are_read_as_aware_datetimes(text, at):
    assert parse_time(text) == at
    assert ChurnEvent.from_json({"created_at": text}).created_at == at
