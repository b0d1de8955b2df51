"""The whole public surface as a user writes it, for type checkers; it is never run.

An argument that should not be taken stands below an ignore, and a checker says if that is not needed.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import AsyncIterator, Dict, Iterator, List, Literal, Mapping, Optional, Sequence, Tuple

import httpx
from typing_extensions import assert_type

import windback
from windback import (
    AsyncWindback,
    AuthenticationError,
    CancelFlowResult,
    ChurnEvent,
    ClosedError,
    ConfigurationError,
    ConflictError,
    DeliveryReport,
    DisabledError,
    FlushResult,
    InvalidEventError,
    NotFoundError,
    Offer,
    OfferAcceptance,
    PermissionDeniedError,
    QueueFullError,
    RateLimitError,
    RecoveryStats,
    RecoveryTemplate,
    Report,
    ServerError,
    Stats,
    SubscriptionExpiredError,
    TrackResult,
    ValidationError,
    Variant,
    WebhookError,
    Windback,
    WindbackConnectionError,
    WindbackError,
    WindbackTimeoutError,
)
from windback.aws_lambda import flush_after
from windback.devserver import StoredEvent
from windback.serverless import flush_after as serverless_flush_after
from windback.testing import (
    CapturedEvent,
    CapturedEvents,
    Inbox,
    LocalServerTestCase,
    WindbackTestCase,
    capturing,
)
from windback.webhooks import ChurnRiskAlert, Seen, WebhookAnswer, WebhookReceiver, parse, sign, verify

assert_type(windback.__version__, str)


def before_send(event: Dict[str, object]) -> Optional[Mapping[str, object]]:
    if event["event"] == "noise":
        return None
    event.pop("properties", None)
    return event


def on_delivery(report: DeliveryReport) -> None:
    assert_type(report.outcome, Literal["delivered", "rejected", "dropped"])
    assert_type(report.count, int)
    assert_type(report.reason, str)
    assert_type(report.status, Optional[int])
    assert_type(report.message, Optional[str])
    assert_type(report.idempotency_key, Optional[str])
    assert_type(report.events, List[Mapping[str, object]])


def on_delivery_with_a_result(report: DeliveryReport) -> int:
    return report.count


def make_clients(http_client: httpx.Client, async_http_client: httpx.AsyncClient) -> None:
    Windback()
    Windback("sk_live_1", "shop")
    Windback(
        api_key="sk_live_1",
        project_slug="shop",
        public_key="pub_live_1",
        base_url="http://127.0.0.1:8787/api/v1",
        timeout=10,
        max_retries=3,
        worker="thread",
        max_queue_size=100_000,
        max_queue_bytes=64 * 1024 * 1024,
        max_event_bytes=65_536,
        overflow="block",
        block_timeout=0.5,
        batch_size=100,
        max_batch_bytes=500_000,
        flush_interval=1.0,
        max_in_flight=4,
        compress=True,
        before_send=before_send,
        on_delivery=on_delivery,
        shutdown_timeout=5.0,
        handle_signals=False,
        http_client=http_client,
        enabled=True,
    )
    AsyncWindback(worker="task", on_delivery=on_delivery_with_a_result, http_client=async_http_client)
    Windback(before_send=lambda event: event, on_delivery=print)
    Windback(timeout="10")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    Windback("sk_live_1", "shop", "pub_live_1")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    Windback(
        before_send=print
    )  # a function of nothing but side effects returns None, which refuses the event
    Windback(overflow="drop")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    Windback(worker="threads")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    Windback(before_send=3)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def use(client: Windback) -> None:
    assert_type(client.track_event("feature_used", "jane@example.com"), bool)
    assert_type(
        client.track_event(
            event="feature_used",
            customer_email="jane@example.com",
            properties={"plan": "pro", "seats": 3, "price": Decimal("9.90"), "tags": {"a"}},
            timestamp=datetime.now(timezone.utc),
        ),
        bool,
    )
    counts: Dict[str, int] = {"exports": 3}
    client.track_event("feature_used", "jane@example.com", counts)
    client.track_event("feature_used", "jane@example.com", MappingProxyType(counts))
    client.track_event("feature_used", "jane@example.com", None, timestamp="2025-12-01T10:00:00Z")
    client.track_event("feature_used")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    client.track_event("a", "b@c", [1])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    client.track_event("a", "b@c", None, "now")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    client.track_event("a", "b@c", timestamp=0)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    sent = client.track_events(
        [
            {"event": "login", "customer_email": "jane@example.com", "timestamp": "2025-12-01T10:00:00Z"},
            {"event": "paid", "customer_email": "jane@example.com", "properties": {"mrr": 2999}},
        ]
    )
    assert_type(sent, TrackResult)
    assert_type(sent.sent, int)
    assert_type(sent.requests, int)
    assert_type(sent.refused, int)
    rows: Sequence[Mapping[str, str]] = ()
    client.track_events(rows)
    client.track_events({"event": name, "customer_email": "jane@example.com"} for name in ("a", "b"))

    event = client.create_churn_event(
        customer_email="jane@example.com",
        customer_name="Jane Smith",
        event_type="cancellation",
        cancel_reason="Missing integrations we need",
        mrr=4999,
        currency="usd",
        plan_name="Team Pro",
        tenure_days=180,
    )
    read_churn_event(event)
    client.create_churn_event("jane@example.com")
    client.create_churn_event("a@b", event_type="canceled")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    client.create_churn_event("a@b", mrr=49.99)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    read_cancel_flow(
        client.submit_cancel_flow(
            customer_email="jane@example.com",
            cancel_reason="Too expensive for our team",
            feedback_text="Love the product but budget is tight",
            selected_offer="downgrade",
        )
    )
    client.submit_cancel_flow("jane@example.com", "other")
    client.submit_cancel_flow(
        "jane@example.com",
        "other",
        cancel_reason_text="moving",
        customer_name="Jane",
        provider="stripe",
        plan_name="Pro",
        mrr=4900,
        currency="usd",
        tenure_days=134,
    )

    client.report_cancel_reason(customer_email="jane@example.com", reason="switching_competitor")
    client.report_cancel_reason("jane@example.com", "other", event_id=event.id)

    read_template(
        client.create_recovery_template(
            cancel_reason="too_expensive",
            name="Discount",
            subject="Stay, {{customer_name}}",
            body="Half the price",
            is_active=False,
        )
    )

    assert_type(client.flush(), FlushResult)
    read_flush(client.flush(timeout=2.5))
    read_stats(client.stats())
    read_report(client.report())
    assert_type(client.with_options(max_retries=0), Windback)
    assert_type(client.with_options(timeout=2.5, max_retries=0), Windback)
    with client as same:
        assert_type(same, Windback)
    assert_type(client.close(), FlushResult)
    assert_type(client.close(timeout=1), FlushResult)


def use_the_rest(client: Windback, event: ChurnEvent) -> None:
    assert_type(client.list_churn_events(), Iterator[ChurnEvent])
    for each in client.list_churn_events("new", page_size=20):
        read_churn_event(each)
    client.list_churn_events("new", 20)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    assert_type(client.get_churn_event(event.id), ChurnEvent)
    assert_type(client.mark_recovered(event_id=event.id), ChurnEvent)
    assert_type(client.update_cancel_reason(event.id, "other"), ChurnEvent)
    client.update_cancel_reason(event.id, cancel_reason="other", cancel_reason_text="moving")

    assert_type(client.generate_variants(event.id), List[Variant])
    assert_type(client.list_variants(event.id), List[Variant])
    client.generate_variants(event.id, timeout=60)
    read_variant(client.update_variant(event.id, "var_1", subject="a", body="b"))
    read_variant(client.send_variant(event.id, variant_id="var_1"))

    assert_type(client.get_recovery_stats(), RecoveryStats)
    assert_type(client.get_recovery_stats().recovery_rate, Optional[float])
    assert_type(client.get_recovery_stats().recovered_mrr, Optional[int])
    assert_type(client.get_offer("other"), Optional[Offer])
    accepted = client.accept_offer(customer_email="a@b", cancel_reason="other", offer_type="discount")
    assert_type(accepted, OfferAcceptance)
    assert_type(accepted.success, Optional[bool])
    assert_type(accepted.message, Optional[str])
    assert_type(client.list_recovery_templates(), List[RecoveryTemplate])
    read_template(client.get_recovery_template("tpl_1"))
    read_template(client.update_recovery_template("tpl_1", name="a", subject="b", body="c", is_active=True))
    client.update_recovery_template("tpl_1", "a")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    client.delete_recovery_template("tpl_1")


async def use_async(client: AsyncWindback) -> None:
    assert_type(await client.track_event("feature_used", "jane@example.com", {"plan": "pro"}), bool)
    await client.track_event("a", "b@c", timestamp=datetime.now(timezone.utc))
    assert_type(await client.track_events([{"event": "login", "customer_email": "b@c"}]), TrackResult)
    event = await client.create_churn_event(
        customer_email="jane@example.com", event_type="cancellation", cancel_reason="Too expensive", mrr=2999
    )
    read_churn_event(event)
    read_cancel_flow(await client.submit_cancel_flow("jane@example.com", "other", "text", "downgrade"))
    await client.report_cancel_reason("jane@example.com", "other", event_id=event.id)
    read_template(await client.create_recovery_template("other", "name", "subject", "body", is_active=True))
    assert_type(client.list_churn_events(), AsyncIterator[ChurnEvent])
    async for each in client.list_churn_events("new", page_size=20):
        read_churn_event(each)
    assert_type(await client.get_churn_event(event.id), ChurnEvent)
    assert_type(await client.mark_recovered(event.id), ChurnEvent)
    assert_type(await client.update_cancel_reason(event.id, "other", "moving"), ChurnEvent)
    assert_type(await client.generate_variants(event.id, timeout=60), List[Variant])
    assert_type(await client.list_variants(event.id), List[Variant])
    read_variant(await client.update_variant(event.id, "var_1", subject="a"))
    read_variant(await client.send_variant(event.id, "var_1"))
    assert_type(await client.get_recovery_stats(), RecoveryStats)
    assert_type(await client.get_offer("other"), Optional[Offer])
    assert_type(await client.accept_offer("a@b", "other", "discount"), OfferAcceptance)
    assert_type(await client.list_recovery_templates(), List[RecoveryTemplate])
    read_template(await client.get_recovery_template("tpl_1"))
    read_template(await client.update_recovery_template("tpl_1", is_active=False))
    await client.delete_recovery_template("tpl_1")
    read_flush(await client.flush())
    read_flush(await client.flush(timeout=2.5))
    read_stats(client.stats())
    read_report(client.report())
    assert_type(client.with_options(max_retries=0), AsyncWindback)
    async with client as same:
        assert_type(same, AsyncWindback)
    read_flush(await client.close(timeout=1))


def read_churn_event(event: ChurnEvent) -> None:
    assert_type(event.id, str)
    assert_type(event.status, str)
    assert_type(event.project_id, Optional[str])
    assert_type(event.customer_email, Optional[str])
    assert_type(event.customer_name, Optional[str])
    assert_type(event.event_type, Optional[str])
    assert_type(event.cancel_reason, Optional[str])
    assert_type(event.mrr, Optional[int])
    assert_type(event.currency, Optional[str])
    assert_type(event.plan_name, Optional[str])
    assert_type(event.tenure_days, Optional[int])
    assert_type(event.provider, Optional[str])
    assert_type(event.created_at, Optional[datetime])
    assert_type(event.updated_at, Optional[datetime])
    assert_type(event.variants, Tuple[Variant, ...])
    assert_type(event.raw, Mapping[str, object])
    event.status = "lost"  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]


def read_variant(variant: Variant) -> None:
    assert_type(variant.id, str)
    assert_type(variant.churn_event_id, Optional[str])
    assert_type(variant.strategy, Optional[str])
    assert_type(variant.subject, Optional[str])
    assert_type(variant.body, Optional[str])
    assert_type(variant.status, Optional[str])
    assert_type(variant.recommended, Optional[bool])
    assert_type(variant.coupon_code, Optional[str])
    assert_type(variant.coupon_percent, Optional[int])
    for at in (variant.sent_at, variant.opened_at, variant.clicked_at, variant.created_at):
        assert_type(at, Optional[datetime])
    assert_type(variant.raw, Mapping[str, object])


def read_cancel_flow(result: CancelFlowResult) -> None:
    assert_type(result.created, bool)
    assert_type(result.event_id, Optional[str])
    assert_type(result.status, Optional[str])
    assert_type(result.message, Optional[str])
    assert_type(result.offer, Optional[Offer])
    assert_type(result.raw, Mapping[str, object])
    if result.offer is not None:
        assert_type(result.offer.offer_type, str)
        assert_type(result.offer.title, Optional[str])
        assert_type(result.offer.description, Optional[str])
        assert_type(result.offer.cta_button_text, Optional[str])
        assert_type(result.offer.discount_percent, Optional[int])
        assert_type(result.offer.extension_days, Optional[int])
        assert_type(result.offer.raw, Mapping[str, object])


def read_template(template: RecoveryTemplate) -> None:
    assert_type(template.id, str)
    assert_type(template.project_id, Optional[str])
    assert_type(template.cancel_reason, Optional[str])
    assert_type(template.name, Optional[str])
    assert_type(template.subject, Optional[str])
    assert_type(template.body, Optional[str])
    assert_type(template.is_active, Optional[bool])
    assert_type(template.created_at, Optional[datetime])
    assert_type(template.updated_at, Optional[datetime])
    assert_type(template.raw, Mapping[str, object])


def read_flush(result: FlushResult) -> None:
    if not result:
        assert_type(result.problem, Optional[str])
    assert_type(result.pending, int)
    assert_type(result.delivered, int)
    assert_type(result.rejected, int)
    assert_type(result.dropped, int)


def read_report(report: Report) -> None:
    assert_type(report.project, Optional[str])
    assert_type(report.stats, Stats)
    assert_type(report.oldest_s, Optional[float])
    assert_type(report.lost_if_killed, int)


def read_stats(stats: Stats) -> None:
    for number in (
        *(stats.accepted, stats.delivered, stats.rejected, stats.dropped, stats.pending, stats.in_flight),
        *(stats.pending_bytes, stats.requests, stats.retries, stats.workers, stats.worker_deaths),
        stats.hook_errors,
    ):
        assert_type(number, int)
    assert_type(stats.refused, Mapping[str, int])
    assert_type(stats.rejected_by_reason, Mapping[str, int])
    assert_type(stats.dropped_by_reason, Mapping[str, int])
    assert_type(stats.problem, Optional[str])


def handle_errors(client: Windback) -> None:
    try:
        client.create_churn_event("jane@example.com")
    except InvalidEventError as error:
        assert_type(error.path, str)
        assert_type(error.index, Optional[int])
    except (ConfigurationError, ValidationError) as error:
        as_value_error: ValueError = error
        raise as_value_error from None
    except WindbackTimeoutError as error:
        as_connection_error: WindbackConnectionError = error
        raise as_connection_error from None
    except (
        AuthenticationError,
        ClosedError,
        ConflictError,
        DisabledError,
        NotFoundError,
        PermissionDeniedError,
        QueueFullError,
        RateLimitError,
        ServerError,
        SubscriptionExpiredError,
        WindbackConnectionError,
    ) as error:
        as_root: WindbackError = error
        raise as_root from None
    except WindbackError as error:
        assert_type(error.status, Optional[int])
        assert_type(error.message, str)
        assert_type(error.code, Optional[str])
        assert_type(error.request_id, Optional[str])
        assert_type(error.retry_after, Optional[float])


class _Context:
    def get_remaining_time_in_millis(self) -> int:
        return 1000


def aws_lambda(client: Windback) -> None:
    @flush_after(client, timeout=1)
    def handler(payload: Dict[str, int], context: _Context) -> str:
        return f"{payload} {context}"

    assert_type(handler({"n": 1}, _Context()), str)


async def serverless(client: AsyncWindback) -> None:
    @serverless_flush_after
    def bare(payload: Dict[str, int], context: _Context) -> str:
        return f"{payload} {context}"

    @serverless_flush_after(client, margin=1)
    async def coroutine(payload: int) -> str:
        return str(payload)

    @serverless_flush_after()
    def generator(payload: int) -> Iterator[int]:
        yield payload

    assert_type(bare({"n": 1}, context=_Context()), str)
    assert_type(list(generator(1)), List[int])
    assert_type(await coroutine(payload=1), str)


def captured(events: CapturedEvents) -> None:
    assert_type(events.one("login"), CapturedEvent)
    assert_type(events.named("login"), List[CapturedEvent])
    assert_type(
        events.assert_tracked("login", customer_email="a@b.c", properties={"n": 1}), List[CapturedEvent]
    )
    assert_type(events.assert_tracked("login", count=2), List[CapturedEvent])
    events.assert_not_tracked("login", properties={"n": 1})
    with capturing() as more:
        assert_type(more, CapturedEvents)


def inbox(dev: Inbox) -> None:
    assert_type((dev.url, dev.key), Tuple[str, str])
    assert_type(dev.environment, Dict[str, str])
    assert_type(dev.wait("login", count=3, timeout=1), List[StoredEvent])
    assert_type(dev.events("plan:pro"), List[StoredEvent])
    assert_type(dev.assert_tracked("login", properties={"n": 1}), List[StoredEvent])
    assert_type(dev.requests()[0].status, Optional[int])
    dev.faults(status=503, times=2)
    dev.faults({"path": "/track", "drop": "after", "times": 1})
    dev.clear_faults()


class Case(WindbackTestCase, LocalServerTestCase):
    def test(self) -> None:
        assert_type(self.windback_events, CapturedEvents)
        assert_type(self.windback_dev, Inbox)
        assert_type(self.assert_tracked("login"), List[CapturedEvent])


def on_alert(alert: ChurnRiskAlert) -> None:
    assert_type(alert.risk_score, float)
    assert_type(alert.customer_email, Optional[str])
    assert_type(alert.raw, Mapping[str, object])
    assert_type([signal.weight for signal in alert.signals], List[Optional[float]])


async def on_alert_async(alert: ChurnRiskAlert) -> None:
    on_alert(alert)


def use_webhooks(body: bytes) -> None:
    seen: Seen = {"alert_1"}
    receiver = WebhookReceiver(on_alert, "whsec_1", seen=seen, tolerance=timedelta(minutes=10))
    assert_type(receiver.receive(body, None), WebhookAnswer)
    WebhookReceiver(on_alert_async, ["whsec_1", "whsec_2"])
    WebhookReceiver(on_alert, 7)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    WebhookReceiver(on_alert, seen=7)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert_type(sign(body, "whsec_1"), str)
    verify(body, sign(body, "whsec_1"), "whsec_1")
    try:
        on_alert(parse(body, b"00"))
    except WebhookError as error:
        assert_type(error.status, Optional[int])
