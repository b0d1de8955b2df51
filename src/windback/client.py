"""Windback and AsyncWindback: the same methods in the same order, and no decisions."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections import deque
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    AsyncIterator,
    Awaitable,
    Callable,
    Deque,
    Iterable,
    Iterator,
    List,
    NoReturn,
    Optional,
    Sequence,
    Type,
    TypeVar,
    Union,
)
from weakref import WeakSet

import orjson

from . import clock, context
from .api import endpoints as api
from .api.answer import Answer, error_of
from .config import Config, Fsync, Overflow, Worker, resolve
from .delivery import retry_loop
from .delivery.engine import Engine, LocalEngine
from .delivery.retry import RetryPolicy
from .delivery.track_events import DirectSend, encode_all
from .errors import ClosedError, DisabledError, QueueFullError
from .event.batch import Limits
from .event.encode import BeforeSend, Event, Properties, Timestamp, encode
from .event.scrubbing import Scrubber
from .event_loops import shielded
from .http_client import AsyncHttpClient, SyncHttpClient
from .models import (
    CancelFlowResult,
    ChurnEvent,
    EventType,
    Offer,
    OfferAcceptance,
    RecoveryStats,
    RecoveryTemplate,
    TrackResult,
    Variant,
)
from .options import PathLike
from .process import lifecycle
from .process.orphans import Handle
from .queue.intake import NoRoomError
from .secrets import hidden
from .stats import DeliveryReport, FlushResult, Stats

if TYPE_CHECKING:
    from .delivery.hooks import Hooks
    from .remote.counters import Block
    from .remote.link import Link
    from .remote.queue import SharedQueue

logger = logging.getLogger("windback")

Client = TypeVar("Client", bound="_Client")

#: Gets encoded events in place of the queue and of the API.
Capture = Callable[[Sequence[bytes]], object]


class PreparedEvent:
    """An event that was checked, stamped and encoded, and is not queued yet; see `Windback.prepare`."""

    __slots__ = ("_client", "_records")

    def __init__(self, client: _Client, record: bytes) -> None:
        self._client = client
        self._records = [record]

    def send(self) -> bool:
        """Give the event to the background worker. Never raises, so that it fits a callback.

        Returns:
            Whether it was accepted, as by track_event. False, too, if it was sent before.
        """
        try:
            record = self._records.pop()
        except IndexError:
            return False
        return self._client._send_prepared(record)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class _WaitingEvent:
    """An event whose customer must be awaited. It is checked and stamped; before_send gets it afterwards."""

    def __init__(
        self,
        client: _Client,
        scope: context.Scope,
        event: str,
        properties: Optional[Properties],
        timestamp: Optional[Timestamp],
    ) -> None:
        self._client = client
        self._scope = scope
        self._customer = scope.customer
        given = context.merged(scope.properties, properties)
        limit = client._max_event_bytes  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # it is a part of it
        self._fields = orjson.loads(encode(event, "unknown@", given, timestamp, limit))

    def send(self) -> bool:
        """Send it when the address is known."""
        self._scope.unsettled.append(self._customer)
        self._customer.wait(self._send_to)
        return True

    def _send_to(self, email: Optional[str]) -> None:
        if email is None:
            self._client._engine.refuse("no_customer")  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            return
        fields = self._fields
        prepared = self._client.prepare(
            fields["event"], email, fields.get("properties"), timestamp=fields["timestamp"]
        )
        if prepared is not None:
            prepared.send()


class _Client:
    """Everything of a client that sends nothing."""

    _is_async = False

    def __init__(
        self,
        api_key: Optional[str] = None,
        project_slug: Optional[str] = None,
        *,
        public_key: Optional[str] = None,
        base_url: Optional[str] = None,
        journal: Union[str, PathLike, None] = None,
        max_journal_bytes: int = 256 * 1024 * 1024,
        fsync: Optional[Fsync] = None,
        broker: Optional[str] = None,
        max_broker_entries: int = 50_000,
        timeout: float = 10.0,
        max_retries: int = 3,
        worker: Optional[Worker] = "auto",
        max_queue_size: int = 100_000,
        max_queue_bytes: int = 64 * 1024 * 1024,
        max_event_bytes: int = 65_536,
        overflow: Overflow = "drop_newest",
        block_timeout: float = 1.0,
        batch_size: int = 100,
        max_batch_bytes: int = 500_000,
        flush_interval: float = 1.0,
        max_in_flight: int = 4,
        compress: bool = False,
        before_send: Optional[BeforeSend] = None,
        scrub: Union[Scrubber, Sequence[Scrubber], None] = None,
        on_delivery: Optional[Callable[[DeliveryReport], object]] = None,
        shutdown_timeout: float = 5.0,
        handle_signals: bool = False,
        http_client: Union[SyncHttpClient, AsyncHttpClient, None] = None,
        enabled: Optional[bool] = None,
    ) -> None:
        """Make a client. It starts no thread and opens no connection; the first event does.

        Args:
            api_key: The secret key, "sk_…". Required, except with `broker` or `enabled=False`. Environment:
                WINDBACK_API_KEY.
            project_slug: The project's slug. Every call needs it except `track_event`, `track_events` and
                the cancel flow. Environment: WINDBACK_PROJECT_SLUG.
            public_key: The public key, "pub_…". The cancel flow uses it if it is set. Environment:
                WINDBACK_PUBLIC_KEY.
            base_url: The URL of the API. Must be https; http is allowed on this machine only. Environment:
                WINDBACK_BASE_URL.
            journal: A directory on a local disk. An accepted event is in it before `track_event` returns,
                and survives `kill -9`; the next process that uses the directory delivers it. Environment:
                WINDBACK_JOURNAL.
            max_journal_bytes: Bytes that all processes together may store in the journal; then the queue is
                full.
            fsync: How much of the journal a power cut may lose. None: what the kernel did not write yet,
                about 30 s of events. "interval": the last second. "batch": the events of one write to disk.
                A thread syncs; `track_event` does not wait for it.
            broker: The URL of a Redis, "redis://host:6379/0", or rediss://, redis+sentinel://,
                redis+cluster://. The worker hands batches to Redis and `windback relay --broker` delivers
                them; an event counts as delivered when Redis has it. Environment: WINDBACK_BROKER.
            max_broker_entries: Batches that may wait in Redis; more wait in the application.
            timeout: Seconds. For a plain call: one deadline over all its retries. For a batch in the
                background: the limit of one try.
            max_retries: Retries after a failure that may pass.
            worker: Who sends. "thread", or for `AsyncWindback` also "task"; "auto" is "task" if async, else
                "thread". "process": a process of its own, which outlives this one until everything is
                delivered. None: nobody here; `windback relay` sends what is in the journal.
            max_queue_size: Events that may wait. May be exceeded by one event per calling thread.
            max_queue_bytes: Bytes of events in memory, those in requests included.
            max_event_bytes: Bytes of one event as JSON.
            overflow: What `track_event` does when the queue is full. "drop_newest": return False.
                "drop_oldest": discard the oldest event. "block": wait up to `block_timeout`. "raise": raise
                QueueFullError.
            block_timeout: Seconds that overflow="block" waits before it returns False.
            batch_size: Events in one request; 100 is the API's limit.
            max_batch_bytes: Bytes of one request's body.
            flush_interval: Seconds that an event may wait for others to share its request.
            max_in_flight: Requests at the same time.
            compress: Compress batches with gzip, until the API refuses it.
            before_send: A function that gets each event as a dict. Return the event, changed or not, to
                send it; return None to drop it. If it raises, the event is not sent.
            scrub: What removes private data from every text that is sent, by track_event and by plain
                calls: a function `(text, place) -> text` or a list of them, such as
                `windback.scrub.STANDARD`. If one raises, "[scrubbed]" is sent in place of the text.
            on_delivery: A function that gets a DeliveryReport for each batch that was delivered, rejected
                or dropped. The worker calls it; its errors are counted and logged.
            shutdown_timeout: Seconds that `close()` and the end of the process may take to deliver the
                remaining events.
            handle_signals: On SIGTERM and SIGINT deliver the queue first, for up to `shutdown_timeout`,
                while the application goes on; then do what would have happened. A second signal does not
                wait. An application that gets signals from its event loop goes on to do so. Main thread
                only: elsewhere a WARNING, and the next `stats()` in the main thread does it.
            http_client: An httpx or httpx2 client of your own, for proxies or certificates. You close it.
            enabled: False: check events, then refuse them; send nothing, and need no key. Environment:
                WINDBACK_ENABLED.

        Raises:
            ConfigurationError: An option is wrong; the message says which and what to do.
        """
        # Before anything can raise: a traceback may be shown with the local variables of its frames.
        keys = hidden(api_key), hidden(public_key)
        address = hidden(broker)
        api_key = public_key = broker = None
        self._config = resolve(
            is_async=self._is_async,
            api_key=keys[0],
            project_slug=project_slug,
            public_key=keys[1],
            base_url=base_url,
            journal=journal,
            max_journal_bytes=max_journal_bytes,
            fsync=fsync,
            broker=address,
            max_broker_entries=max_broker_entries,
            timeout=timeout,
            max_retries=max_retries,
            worker=worker,
            max_queue_size=max_queue_size,
            max_queue_bytes=max_queue_bytes,
            max_event_bytes=max_event_bytes,
            overflow=overflow,
            block_timeout=block_timeout,
            batch_size=batch_size,
            max_batch_bytes=max_batch_bytes,
            flush_interval=flush_interval,
            max_in_flight=max_in_flight,
            compress=compress,
            before_send=before_send,
            scrub=scrub,
            on_delivery=on_delivery,
            shutdown_timeout=shutdown_timeout,
            handle_signals=handle_signals,
            http_client=http_client,
            enabled=enabled,
        )
        self._engine = engine = _make_engine(self._config, is_async=self._is_async)
        self._handle = Handle(engine)
        # Bound once: these three are the request path.
        self._put = engine.put
        self._watch_capture()
        self._max_event_bytes = max_event_bytes
        self._encode = engine.hooks.encoder(engine.refuse)
        if self._config.handle_signals:
            from .process import signals

            signals.install()

    def __repr__(self) -> str:
        config: Optional[Config] = self.__dict__.get("_config")
        if config is None:  # in the traceback of an option that was wrong
            return f"<{type(self).__name__}, not made>"
        state = " closed" if self._engine.is_closed else ""
        where = f"project_slug={config.project_slug!r} base_url={config.base_url!r}"
        return f"<{type(self).__name__}{state} {where}>"

    def __copy__(self: Client) -> Client:
        """Return another that shares everything, as `with_options` does."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise _not_copied(self)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise _not_copied(self)

    def with_options(
        self: Client, *, timeout: Optional[float] = None, max_retries: Optional[int] = None
    ) -> Client:
        """Return a copy whose plain calls have other options, sharing queue, connections and counters.

        `max_retries=0` is for a call that must not be repeated, such as one that creates something.
        Closing a copy closes all of them. Raises ConfigurationError.
        """
        self._check_open()
        other = copy.copy(self)
        other._config = self._config.with_options(timeout, max_retries)  # noqa: SLF001 - a copy of this very object
        other._watch_capture()  # noqa: SLF001
        return other

    def prepare(
        self,
        event: str,
        customer_email: str,
        properties: Optional[Properties] = None,
        *,
        timestamp: Optional[Timestamp] = None,
    ) -> Optional[PreparedEvent]:
        """Check, stamp and encode an event now, to send it later or never: when a transaction commits.

        Later changes to *properties* do not count. before_send is called here.

        Args:
            event: See track_event.
            customer_email: See track_event.
            properties: See track_event.
            timestamp: See track_event.

        Returns:
            What to call `.send()` on; None if before_send refused the event, which is counted.

        Raises:
            InvalidEventError: The event can't be sent.
        """
        record = self._encode(event, customer_email, properties, timestamp, self._max_event_bytes)
        return None if record is None else PreparedEvent(self, record)

    def _send_prepared(self, record: bytes) -> bool:
        try:
            return self._put(record)
        except NoRoomError:
            return self._engine.refuse("queue_full") if self._is_async else self._engine.put_or_wait(record)
        except QueueFullError:
            return False

    def _find_customer(
        self,
        scope: Optional[context.Scope],
        event: str,
        properties: Optional[Properties],
        timestamp: Optional[Timestamp],
    ) -> Union[str, bool]:
        """Return the address for `track`; or its answer: True if the event waits for the address."""
        refuse = self._engine.refuse
        if scope is None:
            logger.debug(
                "track was called outside of a scope, so the event has no customer: use track_event, or open "
                "a scope with a middleware of windback or with windback.context.bound"
            )
            return refuse("no_customer")
        customer = scope.customer
        if customer.resolve(self._engine.hooks.failed):
            return customer.email or refuse("no_customer")
        return _WaitingEvent(self, scope, event, properties, timestamp).send()

    def _prepare_tracked(
        self, event: str, properties: Optional[Properties], timestamp: Optional[Timestamp]
    ) -> Union[PreparedEvent, _WaitingEvent, None]:
        """Do what `prepare` does for the customer of the scope, in sync code and with either client."""
        scope = context.current()
        if scope is not None and not scope.customer.resolve(self._engine.hooks.failed):
            return _WaitingEvent(self, scope, event, properties, timestamp)
        email = self._find_customer(scope, event, properties, timestamp)
        if scope is None or isinstance(email, bool):
            return None
        return self.prepare(event, email, context.merged(scope.properties, properties), timestamp=timestamp)

    def _track_now(
        self, event: str, properties: Optional[Properties], timestamp: Optional[Timestamp]
    ) -> bool:
        """Do what `track` does, in sync code and with either client; waits for no room in the queue."""
        prepared = self._prepare_tracked(event, properties, timestamp)
        return prepared is not None and prepared.send()

    def stats(self) -> Stats:
        """Return what became of all events so far. Takes no lock that track_event ever waits for."""
        self._look_around()
        return self._engine.stats()

    def _look_around(self) -> None:
        """Notice what no hook tells: a fork in C, or that this is the thread that can take signals."""
        lifecycle.notice_fork()
        if self._config.handle_signals:
            from .process import signals

            signals.install_later()

    def _check_open(self) -> None:
        self._look_around()
        if self._engine.is_closed:
            message = "this client is closed; make a new one, or close it later"
            raise ClosedError(message)

    def _watch_capture(self) -> None:
        """Let `set_capture` find this client, and obey one that is set."""
        _clients.add(self)
        self._use_capture()

    def _use_capture(self) -> None:
        """Put where `set_capture` says. It is below the methods, which a caller may have bound already."""
        engine, capture = self._engine, _capture
        self._put = engine.put
        if capture is None:
            return

        def put(record: bytes) -> bool:
            if engine.is_closed:
                return engine.put(record)  # refuses and counts it
            capture([record])
            return True

        self._put = put

    def _check_usable(self) -> None:
        self._check_open()
        if not self._config.enabled:
            message = "this client has enabled=False, so there is no answer to give"
            raise DisabledError(message)
        self._config.check_key()

    def _usable(self, request: api.Request) -> api.Request:
        """Return a plain call as it is to be sent. Raises what a client that can't send it raises."""
        self._check_usable()
        return api.scrubbed(request, self._engine.hooks.scrubbing)

    def _retry_policy(self, request: api.Request) -> RetryPolicy:
        config = self._config
        deadline_s = clock.now_s() + config.timeout
        return RetryPolicy(
            config.max_retries, config.timeout, once_only=request.once_only, deadline_s=deadline_s
        )

    def _checked(self, answer: Answer) -> Answer:
        if not answer.ok:
            raise error_of(answer, time.time(), self._config.redact)
        return answer

    def _direct(self, events: Iterable[Event]) -> DirectSend:
        self._check_open()
        if _capture is None:
            self._config.check_key()
        records = encode_all(events, self._encode, self._max_event_bytes)
        if not self._config.enabled and _capture is None:
            self._engine.refuse("disabled", sum(record is not None for record in records))
            records = [None] * len(records)
        config = self._config
        limits = Limits(config.batch_size, config.max_batch_bytes, config.flush_interval)
        direct = DirectSend(records, limits, gzip=self._engine.compress)
        if _capture is not None:
            _capture(direct.take_all())
        return direct


class Windback(_Client):
    """The client for threads. Safe to share between them; make one, at start-up, and keep it."""

    def track_event(
        self,
        event: str,
        customer_email: str,
        properties: Optional[Properties] = None,
        *,
        timestamp: Optional[Timestamp] = None,
    ) -> bool:
        """Record something a customer did; a background worker sends it (docs page "Python SDK").

        Returns at once, whatever the network does, with whether the event was accepted. timestamp: an
        aware datetime, or an ISO 8601 string with a zone; now, if None. After close() it returns False, and
        `stats().refused["closed"]` counts. Raises InvalidEventError, and QueueFullError if overflow="raise";
        never anything for the network.
        """
        record = self._encode(event, customer_email, properties, timestamp, self._max_event_bytes)
        if record is None:
            return False
        try:
            return self._put(record)
        except NoRoomError:
            return self._engine.put_or_wait(record)

    def track(
        self,
        event: str,
        properties: Optional[Properties] = None,
        *,
        timestamp: Optional[Timestamp] = None,
    ) -> bool:
        """Record something that the customer of the current request or job did; see `windback.context`.

        Args:
            event: See track_event.
            properties: See track_event. They win over those that are bound.
            timestamp: See track_event.

        Returns:
            Whether the event was accepted. Without a customer, as in an anonymous request, it is not, and
            `stats().refused["no_customer"]` counts. If the address must be awaited, the event waits for
            that, and this is True.

        Raises:
            InvalidEventError: The event can't be sent.
            QueueFullError: The queue is full and overflow is "raise".
        """
        scope = context.current()
        email = None if scope is None else scope.customer.email
        if scope is None or email is None:
            found = self._find_customer(scope, event, properties, timestamp)
            if scope is None or isinstance(found, bool):
                return bool(found)
            email = found
        bound = scope.properties
        if bound:
            properties = (
                {**bound, **properties} if type(properties) is dict else context.merged(bound, properties)
            )
        record = self._encode(event, email, properties, timestamp, self._max_event_bytes)
        if record is None:
            return False
        try:
            return self._put(record)
        except NoRoomError:
            return self._engine.put_or_wait(record)

    def track_events(self, events: Iterable[Event]) -> TrackResult:
        """Send a list of events now, in as many requests as the limits ask (docs page "Python SDK").

        Each is a mapping with event, customer_email and maybe properties and timestamp. All are checked
        before any is sent: InvalidEventError names the index of a bad one. Raises the WindbackError of
        the first request that fails; its message says how many events were delivered before.
        """
        direct = self._direct(events)
        while True:
            batch = direct.next_batch()
            if batch is None:
                return direct.result()
            request = api.track(batch.records, batch.key, gzip=direct.gzip)
            answer = self._send(request)
            direct.settle(batch, answer, time.time(), self._config.redact)

    def create_churn_event(
        self,
        customer_email: str,
        customer_name: Optional[str] = None,
        event_type: EventType = "cancellation",
        cancel_reason: Optional[str] = None,
        mrr: Optional[int] = None,
        currency: Optional[str] = None,
        plan_name: Optional[str] = None,
        tenure_days: Optional[int] = None,
    ) -> ChurnEvent:
        """Record that a customer is leaving (docs page "Churn Events").

        event_type: "cancellation" or "payment_failed". cancel_reason: free text. mrr: integer minor
        units, 4999 for 49.99. currency: ISO 4217. Raises WindbackError. It is retried as any call, under
        one Idempotency-Key; use with_options(max_retries=0) where a second event must be ruled out.
        """
        request = api.create_churn_event(
            self._config.slug(),
            _new_key(),
            customer_email=customer_email,
            customer_name=customer_name,
            event_type=event_type,
            cancel_reason=cancel_reason,
            mrr=mrr,
            currency=currency,
            plan_name=plan_name,
            tenure_days=tenure_days,
        )
        return api.read_churn_event(self._call(request))

    def submit_cancel_flow(
        self,
        customer_email: str,
        cancel_reason: str,
        feedback_text: Optional[str] = None,
        selected_offer: Optional[str] = None,
        *,
        cancel_reason_text: Optional[str] = None,
        customer_name: Optional[str] = None,
        provider: Optional[str] = None,
        plan_name: Optional[str] = None,
        mrr: Optional[int] = None,
        currency: Optional[str] = None,
        tenure_days: Optional[int] = None,
    ) -> CancelFlowResult:
        """Submit what a customer said on the way out (docs page "Cancel Flow").

        What stands before the star is on the page "Python SDK". The rest is on the docs-tree page "Cancel
        Flow", which requires cancel_reason to be a key, such as "too_expensive", and all but
        cancel_reason_text. mrr: integer minor units, 4999 for 49.99. Raises WindbackError.
        """
        request = api.submit_cancel_flow(
            _new_key(),
            customer_email=customer_email,
            cancel_reason=cancel_reason,
            feedback_text=feedback_text,
            selected_offer=selected_offer,
            cancel_reason_text=cancel_reason_text,
            customer_name=customer_name,
            provider=provider,
            plan_name=plan_name,
            mrr=mrr,
            currency=currency,
            tenure_days=tenure_days,
        )
        return api.read_cancel_flow(self._call(request))

    def report_cancel_reason(
        self, customer_email: str, reason: str, *, event_id: Optional[str] = None
    ) -> None:
        """Attach the reason to a churn event (docs page "API Overview").

        Without event_id, the newest open churn event of the customer is looked for among the newest few
        thousand; NotFoundError if there is none. The API may send an email to the customer, so the
        request is not repeated where the first may have arrived. Raises WindbackError.
        """
        slug = self._config.slug()
        search = api.OpenEventSearch(slug, customer_email, self._engine.hooks.scrubbing)
        api.check_reason(reason)
        while event_id is None and not search.done:
            search.feed(self._call(search.next_request()))
        self._call(api.report_cancel_reason(slug, search.result() if event_id is None else event_id, reason))

    def create_recovery_template(
        self,
        cancel_reason: str,
        name: str,
        subject: str,
        body: str,
        is_active: bool = True,  # noqa: FBT001, FBT002 - the docs page has it so
    ) -> RecoveryTemplate:
        """Create your own recovery email for a cancel reason (docs-tree page "API Reference").

        subject and body may hold {{customer_name}}, {{customer_email}}, {{plan_name}} and
        {{cancel_reason}}. An active template replaces the generated emails. Raises WindbackError.
        """
        request = api.create_recovery_template(
            self._config.slug(),
            _new_key(),
            cancel_reason=cancel_reason,
            name=name,
            subject=subject,
            body=body,
            is_active=is_active,
        )
        return api.read_recovery_template(self._call(request))

    def list_churn_events(
        self, status: Optional[str] = None, *, page_size: int = api.PAGE_SIZE
    ) -> Iterator[ChurnEvent]:
        """Iterate over the churn events of the project (docs page "Churn Events"), in the API's order.

        status: only those that have it. page_size: events a request, 1 to 100, the API's limit. A page is
        asked for when it is needed, so each step may raise WindbackError; the next one then asks again.
        Pages are counted off by position: what changes the status that is filtered by makes the
        iteration skip events, so make a list first. Without variants; those come with get_churn_event.
        """
        self._check_usable()
        return _Events(api.ChurnEventPages(self._config.slug(), status, page_size), self._call)

    def get_churn_event(self, event_id: str) -> ChurnEvent:
        """Return one churn event (docs page "API Overview").

        Raises NotFoundError for an id that is not of this project, and WindbackError.
        """
        return api.read_churn_event(self._call(api.get_churn_event(self._config.slug(), event_id)))

    def mark_recovered(self, event_id: str) -> ChurnEvent:
        """Record that the customer stays (docs page "API Overview").

        Raises ValidationError if the event is recovered already, also where that was the work of this very
        call and its first answer got lost; NotFoundError; and WindbackError. Of the event that is returned,
        `id` and `status` alone are set if the API answers without one.
        """
        request = api.mark_recovered(self._config.slug(), _new_key(), event_id)
        return api.read_churn_event(self._call(request), event_id=event_id, status="recovered")

    def update_cancel_reason(
        self, event_id: str, cancel_reason: str, cancel_reason_text: Optional[str] = None
    ) -> ChurnEvent:
        """Attach or change the reason of a churn event (docs page "API Overview"; the body is assumed).

        cancel_reason: such as "too_expensive", or free text; cancel_reason_text: more in the customer's
        words. The API may send an email to the customer, so the request is not repeated where the first
        may have arrived. Raises NotFoundError and WindbackError. Of the event that is returned, `id` alone
        is set if the API answers without one.
        """
        request = api.update_cancel_reason(self._config.slug(), event_id, cancel_reason, cancel_reason_text)
        return api.read_churn_event(self._call(request), event_id=event_id)

    def generate_variants(self, event_id: str, *, timeout: float = 30.0) -> List[Variant]:
        """Have the recovery emails for a churn event written (docs page "Recovery").

        The API takes 5 to 15 s for nine of them, so this call has a *timeout* of its own, in seconds, over
        all its retries. An active recovery template replaces them. Empty if the API answers that it has only
        started (assumed). Raises ValidationError if the event is past "processing", NotFoundError,
        ConfigurationError for a timeout that is none, and WindbackError.
        """
        request = api.generate_variants(self._config.slug(), _new_key(), event_id)
        return api.read_generated(self.with_options(timeout=timeout)._call(request))  # noqa: SLF001 - a copy of this object

    def list_variants(self, event_id: str) -> List[Variant]:
        """Return the variants of a churn event (docs page "API Overview"); none before they are generated.

        Raises NotFoundError and WindbackError.
        """
        return api.read_variants(self._call(api.list_variants(self._config.slug(), event_id)))

    def update_variant(
        self, event_id: str, variant_id: str, *, subject: Optional[str] = None, body: Optional[str] = None
    ) -> Variant:
        """Change subject or body, or both, before a variant is sent (docs page "Recovery").

        body: plain text or HTML. Raises ValidationError, also for one that is sent already; NotFoundError;
        and WindbackError.
        """
        request = api.update_variant(self._config.slug(), event_id, variant_id, subject=subject, body=body)
        return api.read_variant(self._call(request), variant_id)

    def send_variant(self, event_id: str, variant_id: str) -> Variant:
        """Send one variant to the customer, which can be done once (docs page "Recovery").

        It is an email, so the request is not repeated where the first may have arrived. Of the variant that
        is returned the API may fill in only `id`. Raises ValidationError if it was sent before, or if the
        event is not "variants_generated" or "email_sent"; NotFoundError; ServerError also where no email
        service is configured, which another try won't mend; and WindbackError.
        """
        request = api.send_variant(self._config.slug(), event_id, variant_id)
        return api.read_variant(self._call(request), variant_id)

    def get_recovery_stats(self) -> RecoveryStats:
        """Return what became of the project's churn events (docs page "API Overview"). Raises WindbackError.

        `stats` is about the delivery of events.
        """
        return api.read_recovery_stats(self._call(api.get_recovery_stats(self._config.slug())))

    def get_offer(self, reason: str) -> Optional[Offer]:
        """Return the offer that is configured for a cancel reason, or None (docs-tree page "Cancel Flow").

        Nothing is submitted. Prefers the public key, as submit_cancel_flow does. Raises WindbackError.
        """
        return api.read_offer(self._call(api.get_offer(reason)))

    def accept_offer(self, customer_email: str, cancel_reason: str, offer_type: str) -> OfferAcceptance:
        """Record that a customer takes an offer (docs-tree page "Cancel Flow").

        offer_type: that of the Offer. Prefers the public key. A decline is reported by nothing: no request is
        documented for it. Raises WindbackError.
        """
        request = api.accept_offer(_new_key(), customer_email, cancel_reason, offer_type)
        return api.read_acceptance(self._call(request))

    def list_recovery_templates(self) -> List[RecoveryTemplate]:
        """Return all recovery templates (docs-tree page "API Reference"). Raises WindbackError."""
        return api.read_recovery_templates(self._call(api.list_recovery_templates(self._config.slug())))

    def get_recovery_template(self, template_id: str) -> RecoveryTemplate:
        """Return one recovery template (docs-tree page "API Reference").

        Raises NotFoundError and WindbackError.
        """
        request = api.get_recovery_template(self._config.slug(), template_id)
        return api.read_recovery_template(self._call(request))

    def update_recovery_template(
        self,
        template_id: str,
        *,
        name: Optional[str] = None,
        subject: Optional[str] = None,
        body: Optional[str] = None,
        is_active: Optional[bool] = None,
    ) -> RecoveryTemplate:
        """Change what is given of a recovery template, at least one thing (docs-tree page "API Reference").

        Raises ValidationError, NotFoundError and WindbackError.
        """
        request = api.update_recovery_template(
            self._config.slug(), template_id, name=name, subject=subject, body=body, is_active=is_active
        )
        return api.read_recovery_template(self._call(request))

    def delete_recovery_template(self, template_id: str) -> None:
        """Delete a recovery template (docs-tree page "API Reference").

        Raises NotFoundError, also where this very call deleted it and its first answer got lost; and
        WindbackError.
        """
        self._call(api.delete_recovery_template(self._config.slug(), template_id))

    def flush(self, timeout: Optional[float] = None) -> FlushResult:
        """Send everything that track_event accepted so far, and say how that went.

        Blocks for at most *timeout* seconds. With None it waits while deliveries go on, and gives up
        when a batch used up its retries. True only if all of it is off our hands. Raises ClosedError.
        """
        self._check_open()
        return self._engine.flush(timeout)

    def close(self, timeout: Optional[float] = None) -> FlushResult:
        """Deliver what is left within *timeout* seconds (shutdown_timeout, if None), then stop.

        What is left after that is dropped, and counted. May be called again. Of the other methods,
        track_event then returns False, and those that need an answer raise ClosedError.
        """
        return self._engine.close(timeout)

    def __enter__(self) -> Windback:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def _call(self, request: api.Request) -> Answer:
        return self._checked(self._send(self._usable(request)))

    def _send(self, request: api.Request) -> Answer:
        transport = self._engine.transport()
        return retry_loop.send(lambda left_s: transport.attempt(request, left_s), self._retry_policy(request))


class AsyncWindback(_Client):
    """The client for asyncio and trio. May be made outside of a loop and used in several, in turn.

    With and without `async with`. Each method does what Windback's of the same name does.
    """

    _is_async = True

    async def track_event(
        self,
        event: str,
        customer_email: str,
        properties: Optional[Properties] = None,
        *,
        timestamp: Optional[Timestamp] = None,
    ) -> bool:
        """Record something a customer did; see Windback.track_event. Waits only if overflow="block"."""
        record = self._encode(event, customer_email, properties, timestamp, self._max_event_bytes)
        if record is None:
            return False
        try:
            return self._put(record)
        except NoRoomError:
            return await self._engine.put_or_wait_async(record)

    async def track(
        self,
        event: str,
        properties: Optional[Properties] = None,
        *,
        timestamp: Optional[Timestamp] = None,
    ) -> bool:
        """Record something that the customer of the current request or job did; see Windback.track."""
        scope = context.current()
        email = None if scope is None else scope.customer.email
        if scope is None or email is None:
            if scope is not None:
                await scope.find_email(self._engine.hooks.failed)
            found = self._find_customer(scope, event, properties, timestamp)
            if scope is None or isinstance(found, bool):
                return bool(found)
            email = found
        if scope.properties:
            properties = context.merged(scope.properties, properties)
        return await self.track_event(event, email, properties, timestamp=timestamp)

    async def track_events(self, events: Iterable[Event]) -> TrackResult:
        """Send a list of events now; see Windback.track_events."""
        direct = self._direct(events)
        while True:
            batch = direct.next_batch()
            if batch is None:
                return direct.result()
            request = api.track(batch.records, batch.key, gzip=direct.gzip)
            answer = await self._send(request)
            direct.settle(batch, answer, time.time(), self._config.redact)

    async def create_churn_event(
        self,
        customer_email: str,
        customer_name: Optional[str] = None,
        event_type: EventType = "cancellation",
        cancel_reason: Optional[str] = None,
        mrr: Optional[int] = None,
        currency: Optional[str] = None,
        plan_name: Optional[str] = None,
        tenure_days: Optional[int] = None,
    ) -> ChurnEvent:
        """Record that a customer is leaving; see Windback.create_churn_event."""
        request = api.create_churn_event(
            self._config.slug(),
            _new_key(),
            customer_email=customer_email,
            customer_name=customer_name,
            event_type=event_type,
            cancel_reason=cancel_reason,
            mrr=mrr,
            currency=currency,
            plan_name=plan_name,
            tenure_days=tenure_days,
        )
        return api.read_churn_event(await self._call(request))

    async def submit_cancel_flow(
        self,
        customer_email: str,
        cancel_reason: str,
        feedback_text: Optional[str] = None,
        selected_offer: Optional[str] = None,
        *,
        cancel_reason_text: Optional[str] = None,
        customer_name: Optional[str] = None,
        provider: Optional[str] = None,
        plan_name: Optional[str] = None,
        mrr: Optional[int] = None,
        currency: Optional[str] = None,
        tenure_days: Optional[int] = None,
    ) -> CancelFlowResult:
        """Submit what a customer said on the way out; see Windback.submit_cancel_flow."""
        request = api.submit_cancel_flow(
            _new_key(),
            customer_email=customer_email,
            cancel_reason=cancel_reason,
            feedback_text=feedback_text,
            selected_offer=selected_offer,
            cancel_reason_text=cancel_reason_text,
            customer_name=customer_name,
            provider=provider,
            plan_name=plan_name,
            mrr=mrr,
            currency=currency,
            tenure_days=tenure_days,
        )
        return api.read_cancel_flow(await self._call(request))

    async def report_cancel_reason(
        self, customer_email: str, reason: str, *, event_id: Optional[str] = None
    ) -> None:
        """Attach the reason to a churn event; see Windback.report_cancel_reason."""
        slug = self._config.slug()
        search = api.OpenEventSearch(slug, customer_email, self._engine.hooks.scrubbing)
        api.check_reason(reason)
        while event_id is None and not search.done:
            search.feed(await self._call(search.next_request()))
        await self._call(
            api.report_cancel_reason(slug, search.result() if event_id is None else event_id, reason)
        )

    async def create_recovery_template(
        self,
        cancel_reason: str,
        name: str,
        subject: str,
        body: str,
        is_active: bool = True,  # noqa: FBT001, FBT002 - the docs page has it so
    ) -> RecoveryTemplate:
        """Create your own recovery email for a cancel reason; see Windback.create_recovery_template."""
        request = api.create_recovery_template(
            self._config.slug(),
            _new_key(),
            cancel_reason=cancel_reason,
            name=name,
            subject=subject,
            body=body,
            is_active=is_active,
        )
        return api.read_recovery_template(await self._call(request))

    def list_churn_events(
        self, status: Optional[str] = None, *, page_size: int = api.PAGE_SIZE
    ) -> AsyncIterator[ChurnEvent]:
        """Iterate with `async for` over the churn events; see Windback.list_churn_events."""
        self._check_usable()
        return _AsyncEvents(api.ChurnEventPages(self._config.slug(), status, page_size), self._call)

    async def get_churn_event(self, event_id: str) -> ChurnEvent:
        """Return one churn event; see Windback.get_churn_event."""
        return api.read_churn_event(await self._call(api.get_churn_event(self._config.slug(), event_id)))

    async def mark_recovered(self, event_id: str) -> ChurnEvent:
        """Record that the customer stays; see Windback.mark_recovered."""
        request = api.mark_recovered(self._config.slug(), _new_key(), event_id)
        return api.read_churn_event(await self._call(request), event_id=event_id, status="recovered")

    async def update_cancel_reason(
        self, event_id: str, cancel_reason: str, cancel_reason_text: Optional[str] = None
    ) -> ChurnEvent:
        """Attach or change the reason of a churn event; see Windback.update_cancel_reason."""
        request = api.update_cancel_reason(self._config.slug(), event_id, cancel_reason, cancel_reason_text)
        return api.read_churn_event(await self._call(request), event_id=event_id)

    async def generate_variants(self, event_id: str, *, timeout: float = 30.0) -> List[Variant]:
        """Have the recovery emails for a churn event written; see Windback.generate_variants."""
        request = api.generate_variants(self._config.slug(), _new_key(), event_id)
        return api.read_generated(await self.with_options(timeout=timeout)._call(request))  # noqa: SLF001 - a copy of this object

    async def list_variants(self, event_id: str) -> List[Variant]:
        """Return the variants of a churn event; see Windback.list_variants."""
        return api.read_variants(await self._call(api.list_variants(self._config.slug(), event_id)))

    async def update_variant(
        self, event_id: str, variant_id: str, *, subject: Optional[str] = None, body: Optional[str] = None
    ) -> Variant:
        """Change subject or body before a variant is sent; see Windback.update_variant."""
        request = api.update_variant(self._config.slug(), event_id, variant_id, subject=subject, body=body)
        return api.read_variant(await self._call(request), variant_id)

    async def send_variant(self, event_id: str, variant_id: str) -> Variant:
        """Send one variant to the customer; see Windback.send_variant."""
        request = api.send_variant(self._config.slug(), event_id, variant_id)
        return api.read_variant(await self._call(request), variant_id)

    async def get_recovery_stats(self) -> RecoveryStats:
        """Return what became of the project's churn events; see Windback.get_recovery_stats."""
        return api.read_recovery_stats(await self._call(api.get_recovery_stats(self._config.slug())))

    async def get_offer(self, reason: str) -> Optional[Offer]:
        """Return the offer that is configured for a cancel reason; see Windback.get_offer."""
        return api.read_offer(await self._call(api.get_offer(reason)))

    async def accept_offer(self, customer_email: str, cancel_reason: str, offer_type: str) -> OfferAcceptance:
        """Record that a customer takes an offer; see Windback.accept_offer."""
        request = api.accept_offer(_new_key(), customer_email, cancel_reason, offer_type)
        return api.read_acceptance(await self._call(request))

    async def list_recovery_templates(self) -> List[RecoveryTemplate]:
        """Return the recovery templates; see Windback.list_recovery_templates."""
        return api.read_recovery_templates(await self._call(api.list_recovery_templates(self._config.slug())))

    async def get_recovery_template(self, template_id: str) -> RecoveryTemplate:
        """Return one recovery template; see Windback.get_recovery_template."""
        request = api.get_recovery_template(self._config.slug(), template_id)
        return api.read_recovery_template(await self._call(request))

    async def update_recovery_template(
        self,
        template_id: str,
        *,
        name: Optional[str] = None,
        subject: Optional[str] = None,
        body: Optional[str] = None,
        is_active: Optional[bool] = None,
    ) -> RecoveryTemplate:
        """Change what is given of a recovery template; see Windback.update_recovery_template."""
        request = api.update_recovery_template(
            self._config.slug(), template_id, name=name, subject=subject, body=body, is_active=is_active
        )
        return api.read_recovery_template(await self._call(request))

    async def delete_recovery_template(self, template_id: str) -> None:
        """Delete a recovery template; see Windback.delete_recovery_template."""
        await self._call(api.delete_recovery_template(self._config.slug(), template_id))

    async def flush(self, timeout: Optional[float] = None) -> FlushResult:
        """Send everything that track_event accepted so far; see Windback.flush."""
        self._check_open()
        return await self._engine.flush_async(timeout)

    async def close(self, timeout: Optional[float] = None) -> FlushResult:
        """Deliver what is left, then stop; see Windback.close."""
        return await self._engine.close_async(timeout)

    async def __aenter__(self) -> AsyncWindback:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        with shielded():  # what was accepted is delivered, within shutdown_timeout
            await self.close()

    async def _call(self, request: api.Request) -> Answer:
        return self._checked(await self._send(self._usable(request)))

    async def _send(self, request: api.Request) -> Answer:
        transport = await self._engine.transport_async()
        return await retry_loop.send_async(
            lambda left_s: transport.attempt(request, left_s), self._retry_policy(request)
        )


class _Events(Iterator[ChurnEvent]):
    """The events of all pages, each of which is asked for when it is needed."""

    def __init__(self, pages: api.ChurnEventPages, call: Callable[[api.Request], Answer]) -> None:
        self._pages = pages
        self._call = call
        self._ready: Deque[ChurnEvent] = deque()

    def __next__(self) -> ChurnEvent:
        while not self._ready:
            if self._pages.done:
                raise StopIteration
            self._ready += self._pages.feed(self._call(self._pages.next_request()))
        return self._ready.popleft()


class _AsyncEvents(AsyncIterator[ChurnEvent]):
    """The same for `async for`; no generator, so nothing has to be closed where a loop is left early."""

    def __init__(self, pages: api.ChurnEventPages, call: Callable[[api.Request], Awaitable[Answer]]) -> None:
        self._pages = pages
        self._call = call
        self._ready: Deque[ChurnEvent] = deque()

    async def __anext__(self) -> ChurnEvent:
        while not self._ready:
            if self._pages.done:
                raise StopAsyncIteration
            self._ready += self._pages.feed(await self._call(self._pages.next_request()))
        return self._ready.popleft()


_clients: WeakSet[_Client] = WeakSet()
_capture: Optional[Capture] = None


def set_capture(capture: Optional[Capture]) -> Optional[Capture]:
    """Give *capture* all events of all clients, for tests; None: queue and send them again.

    Returns the one before.
    """
    global _capture
    earlier, _capture = _capture, capture
    for client in list(_clients):
        client._use_capture()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # it is a part of them
    return earlier


def _make_engine(config: Config, *, is_async: bool) -> Engine:
    """Choose who sends: this process, a process of its own, or a relay."""
    if not config.enabled or config.worker in ("thread", "task"):
        return LocalEngine(config, is_async=is_async)
    from .remote.engine import RemoteEngine

    return RemoteEngine(config, _to_relay if config.worker is None else _to_sender)


def _to_relay(config: Config, queue: SharedQueue, hooks: Hooks) -> Link:
    from .relay.link import RelayLink

    del hooks  # before_send runs in here; on_delivery is the relay's
    return RelayLink(config, queue)


def _to_sender(config: Config, queue: SharedQueue, hooks: Hooks) -> Link:
    from .sender.supervisor import HereSender, SenderLink

    def make_sender(config: Config, name: str, commands: int, answers: int, block: Block) -> HereSender:
        with lifecycle.loading:
            from .sender.main import Sender  # loads httpx

        return Sender(config, name, commands, answers, block)

    return SenderLink(config, queue, hooks, make_sender)


def _not_copied(client: object) -> TypeError:
    name = type(client).__name__
    return TypeError(
        f"{name} can't be pickled or deep-copied: its queue, threads and connections are of this process. "
        f"Make one in each process that needs one, at its start; in one process, share the one there is"
    )


def _new_key() -> str:
    return os.urandom(16).hex()
