"""Windback and AsyncWindback: the same methods in the same order, and no decisions."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections import deque
from types import TracebackType
from typing import (
    AsyncIterator,
    Awaitable,
    Callable,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NoReturn,
    Optional,
    Sequence,
    Type,
    TypeVar,
    Union,
)
from weakref import WeakSet

import orjson

from . import clock, context, debugging
from .api import endpoints as api
from .api.answer import Answer, error_of
from .config import OPTIONS, Config, Fsync, Overflow, Worker, resolve
from .delivery import retry_loop
from .delivery.engine import Engine, LocalEngine
from .delivery.retry import RetryPolicy
from .delivery.track_events import DirectSend, encode_all
from .errors import ClosedError, DisabledError, QueueFullError, WindbackError
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
from .options import PathLike, naming_options
from .process import lifecycle
from .process.orphans import Handle
from .queue.intake import NoRoomError
from .report import Report
from .stats import DeliveryReport, FlushResult, Stats

logger = logging.getLogger("windback")

Client = TypeVar("Client", bound="_Client")

#: Gets encoded events in place of the queue and of the API.
Capture = Callable[[Sequence[bytes]], object]


def _merged(
    bound: Dict[str, object], given: Optional[Mapping[str, object]]
) -> Optional[Mapping[str, object]]:
    """Return the bound properties with those *given* over them; *given* itself if it is not a mapping."""
    if given is None:
        return bound or None
    return {**bound, **given} if bound and isinstance(given, Mapping) else given


class PreparedEvent:
    """An event that was checked, stamped and encoded, and is not queued yet; see `Windback.prepare`."""

    __slots__ = ("_client", "_records")

    def __init__(self, client: _Client, record: bytes) -> None:
        self._client = client
        self._records = [record]

    def send(self) -> bool:
        """Give the event to the background worker. Never raises, so it can be a callback.

        Returns:
            True if the event was accepted, as by track_event. False if it was refused, or sent before.
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
        given = _merged(scope.properties, properties)
        limit = client._max_event_bytes  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # it is a part of it
        self._fields = orjson.loads(encode(event, "unknown@", given, timestamp, limit))

    def send(self) -> bool:
        """Send it when the address is known."""
        self._scope.unsettled.append(self._customer)
        self._customer.wait(self._send_to)
        return True

    def _send_to(self, email: Optional[str]) -> None:
        if email is None:
            self._client._engine.refusals.refuse("no_customer")  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            return
        fields = self._fields
        prepared = self._client.prepare(
            fields["event"], email, fields.get("properties"), timestamp=fields["timestamp"]
        )
        if prepared is not None:
            prepared.send()


class _Client:
    """The parts that both clients share: everything that sends nothing."""

    _is_async = False

    @naming_options
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
        debug: Optional[bool] = None,
        status: Union[str, PathLike, None] = None,
    ) -> None:
        """Make a client. This starts no thread and opens no connection; the first event does.

        Args:
            api_key: The secret key, "sk_…". Required, except with `broker` or `enabled=False`. Environment:
                WINDBACK_API_KEY.
            project_slug: The project's slug. Every call needs it except `track_event`, `track_events` and the
                cancel flow. Environment: WINDBACK_PROJECT_SLUG.
            public_key: The public key, "pub_…". The cancel flow uses it if it is set. Environment:
                WINDBACK_PUBLIC_KEY.
            base_url: The URL of the API. Must be https; http is allowed on this machine only. Environment:
                WINDBACK_BASE_URL.
            journal: A directory on a local disk. An accepted event is in it before `track_event` returns, and
                survives `kill -9`; the next process that uses the directory delivers it. Environment:
                WINDBACK_JOURNAL.
            max_journal_bytes: Bytes that all processes together may store in the journal; then the queue is
                full.
            fsync: How much of the journal a power cut may lose. None: what the kernel did not write yet,
                about 30 s of events. "interval": the last second. "batch": the events of one write to disk. A
                thread syncs; `track_event` does not wait for it.
            broker: The URL of a Redis, "redis://host:6379/0", or rediss://, redis+sentinel://,
                redis+cluster://. The worker hands batches to Redis and `windback relay --broker` delivers
                them; an event counts as delivered when Redis has it. Environment: WINDBACK_BROKER.
            max_broker_entries: Batches that may wait in Redis; more wait in the application.
            timeout: Seconds. For a plain call: one deadline over all its retries. For a batch in the
                background: the limit of one try.
            max_retries: Retries after a temporary failure.
            worker: Where events are sent. "thread", or for `AsyncWindback` also "task"; "auto" is "task" if
                async, else "thread". "process": a sender process, which outlives this one until everything is
                delivered. None: not from here; `windback relay` sends what is in the journal.
            max_queue_size: Events that may wait. May be exceeded by one event per calling thread.
            max_queue_bytes: Bytes of events in memory, including those in requests.
            max_event_bytes: Bytes of one event as JSON.
            overflow: What `track_event` does when the queue is full. "drop_newest": return False.
                "drop_oldest": discard the oldest event. "block": wait up to `block_timeout`. "raise": raise
                QueueFullError.
            block_timeout: Seconds that overflow="block" waits before it returns False.
            batch_size: Events in one request; 100 is the API's limit.
            max_batch_bytes: Bytes of one request's body.
            flush_interval: Seconds that an event may wait for others to share its request.
            max_in_flight: Requests that may run at the same time.
            compress: Compress batches with gzip until the API refuses it.
            before_send: A function that gets each event as a dict. Return the event, changed or not, to send
                it; return None to drop it. If it raises, the event is not sent.
            scrub: A function `(text, place) -> text` that removes private data from every text that is sent,
                by track_event and by plain calls; or a list of them, such as `windback.scrub.STANDARD`. If
                one raises, "[scrubbed]" is sent instead of the text.
            on_delivery: A function that gets a DeliveryReport for each batch that was delivered, rejected or
                dropped. The worker calls it; its errors are counted and logged.
            shutdown_timeout: Seconds that `close()` and the end of the process may take to deliver the
                remaining events.
            handle_signals: On SIGTERM and SIGINT, deliver the queue first, for up to `shutdown_timeout`,
                while the application keeps running; then the earlier handler runs. A second signal is not
                delayed. An application whose event loop handles signals still gets them. Main thread only:
                elsewhere it logs a WARNING, and the next `stats()` in the main thread sets the handlers.
            http_client: An httpx or httpx2 client of your own, for proxies or certificates. You close it.
            enabled: False: check events, then refuse them; send nothing, and need no key. Environment:
                WINDBACK_ENABLED.
            debug: Log what happens to each event, at level DEBUG of the logger "windback"; on stderr if the
                application has set up no logging. Environment: WINDBACK_DEBUG.
            status: A directory for a socket on which this process tells `windback status` about its queue.
                Only this user can open it; a thread waits at it. None: no socket. Environment:
                WINDBACK_STATUS.

        Raises:
            ConfigurationError: An option is wrong. The message names it, and the remedy.
        """
        # `naming_options` has hidden the keys: a traceback may show the local variables of its frames.
        given = {name: value for name, value in locals().items() if name in OPTIONS}
        self._config = resolve(is_async=self._is_async, needs_key=_capture is None, **given)
        self._engine = engine = _make_engine(self._config, is_async=self._is_async)
        self._handle = Handle(engine)
        # Bound once: these three are the request path.
        self._put = engine.put
        self._watch_capture()
        self._max_event_bytes = self._config.max_event_bytes
        self._encode = engine.hooks.encoder(engine.refusals.refuse)
        if self._config.debug:
            debugging.show_lines()
            self._encode = debugging.watched_encode(self._encode)
        if self._config.handle_signals:
            from .process import signals

            signals.install()

    def __repr__(self) -> str:
        config: Optional[Config] = self.__dict__.get("_config")
        if config is None:  # in the traceback of an option that was wrong
            return f"<{type(self).__name__}, not made>"
        state = " closed" if self._engine.refusals.is_closed else ""
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
        """Return a copy whose plain calls have other options. It shares queue, connections and counters.

        Use `max_retries=0` for a call that must not be repeated. Closing a copy closes the original too.

        Args:
            timeout: Seconds for a plain call, all retries included. None: as before.
            max_retries: Retries of a plain call. None: as before.

        Returns:
            The copy.

        Raises:
            ConfigurationError: An option is wrong.
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

        Later changes to *properties* have no effect. before_send is called here.

        Args:
            event: See track_event.
            customer_email: See track_event.
            properties: See track_event.
            timestamp: See track_event.

        Returns:
            An object with a `send()` method. None if before_send refused the event, which is counted.

        Raises:
            InvalidEventError: The event can't be sent.
        """
        record = self._encode(event, customer_email, properties, timestamp, self._max_event_bytes)
        return None if record is None else PreparedEvent(self, record)

    def _send_prepared(self, record: bytes) -> bool:
        try:
            return self._put(record)
        except NoRoomError:
            return (
                self._engine.refusals.refuse("queue_full")
                if self._is_async
                else self._engine.put_or_wait(record)
            )
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
        refuse = self._engine.refusals.refuse
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
        return self.prepare(event, email, _merged(scope.properties, properties), timestamp=timestamp)

    def _track_now(
        self, event: str, properties: Optional[Properties], timestamp: Optional[Timestamp]
    ) -> bool:
        """Do what `track` does, in sync code and with either client; waits for no room in the queue."""
        prepared = self._prepare_tracked(event, properties, timestamp)
        return prepared is not None and prepared.send()

    def _track_request(self, event: str, scope: context.Scope, took_s: float, **request: object) -> None:
        """Track a request that was handled, for the customer of its scope, if there is one."""
        if scope.customer.email is None:
            return
        properties = {**scope.properties, **request, "duration_ms": round(1000 * took_s, 1)}
        try:
            prepared = self.prepare(event, scope.customer.email, properties)
        except WindbackError as error:
            logger.warning("the event of a request was not sent: %s", error)
            return
        if prepared is not None:
            prepared.send()

    def stats(self) -> Stats:
        """Return the counts of all events so far. Never blocks `track_event`.

        Returns:
            The counters of one moment, for which accepted == delivered + rejected + dropped + pending.
        """
        self._look_around()
        return self._engine.stats()

    def report(self) -> Report:
        """Return what a person wants to know of this client; `print(client.report())` shows it.

        Never blocks `track_event`. Slower than `stats`: it also finds the oldest event.

        Returns:
            The queue, the age of the oldest event, the requests, the problem if there is one, and what
            would be lost if this process were killed now.
        """
        self._look_around()
        return self._engine.report()

    def _look_around(self) -> None:
        """Check what no hook reports: a fork in C, or that this thread can set signal handlers."""
        lifecycle.notice_fork()
        if self._config.handle_signals:
            from .process import signals

            signals.install_later()

    def _check_open(self) -> None:
        self._look_around()
        if self._engine.refusals.is_closed:
            raise ClosedError("this client is closed; make a new one, or close it later")

    def _watch_capture(self) -> None:
        """Let `set_capture` find this client, and obey one that is set."""
        _clients.add(self)
        self._use_capture()

    def _use_capture(self) -> None:
        """Set `put` as `set_capture` requires, below the methods, which a caller may have bound already."""
        engine, capture = self._engine, _capture
        self._put = debugging.watched_put(engine.put) if self._config.debug else engine.put
        if capture is None:
            return

        def put(record: bytes) -> bool:
            if engine.refusals.is_closed:
                return engine.put(record)  # refuses and counts it
            capture([record])
            return True

        self._put = put

    def _check_usable(self) -> None:
        self._check_open()
        if not self._config.enabled:
            message = "this client has enabled=False, so there is no answer to give"
            if _capture is not None:
                message = (
                    "this call needs an answer, and only events are captured: use the fixture windback_dev, "
                    "a local server that answers, or LocalServerTestCase"
                )
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
            raise error_of(answer, time.time(), self._config.redact, self._config.base_url)
        return answer

    def _direct(self, events: Iterable[Event]) -> DirectSend:
        self._check_open()
        if _capture is None:
            self._config.check_key()
        records = encode_all(events, self._encode, self._max_event_bytes)
        if not self._config.enabled and _capture is None:
            self._engine.refusals.refuse("disabled", sum(record is not None for record in records))
            records = [None] * len(records)
        config = self._config
        limits = Limits(config.batch_size, config.max_batch_bytes, config.flush_interval)
        direct = DirectSend(records, limits, gzip=self._engine.compress)
        if _capture is not None:
            _capture(direct.take_all())
        return direct


class Windback(_Client):
    """The client for threads. It is safe to share: make one at start-up and keep it."""

    def track_event(
        self,
        event: str,
        customer_email: str,
        properties: Optional[Properties] = None,
        *,
        timestamp: Optional[Timestamp] = None,
    ) -> bool:
        """Queue something that a customer did; a background worker sends it (docs page "Python SDK").

        Returns immediately. It raises only for mistakes in the call, never because of the network.

        Args:
            event: The name of what happened, such as "feature_used".
            customer_email: The customer's email address.
            properties: More about it, as a mapping that can be encoded as JSON. None: no properties.
            timestamp: When it happened: an aware datetime, or an ISO 8601 string with a zone. None: now.

        Returns:
            True if the event was accepted. False if it was refused: the queue is full, before_send returned
            None, or the client is disabled or closed. `stats().refused` counts these by reason.

        Raises:
            InvalidEventError: The event can't be sent. The message names the field.
            QueueFullError: The queue is full and overflow is "raise".
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
        """Queue something that the customer of the current request or job did; see `windback.context`.

        Args:
            event: See track_event.
            properties: See track_event. They override bound properties of the same name.
            timestamp: See track_event.

        Returns:
            True if the event was accepted, or if it waits for the customer's address. False if it was
            refused. An event without a customer is refused and counted in `stats().refused["no_customer"]`.

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
            properties = {**bound, **properties} if type(properties) is dict else _merged(bound, properties)
        record = self._encode(event, email, properties, timestamp, self._max_event_bytes)
        if record is None:
            return False
        try:
            return self._put(record)
        except NoRoomError:
            return self._engine.put_or_wait(record)

    def track_events(self, events: Iterable[Event]) -> TrackResult:
        """Send a list of events now and wait for the answers (docs page "Python SDK").

        All events are checked before any is sent. Each request holds as many events as the limits allow.

        Args:
            events: Mappings with event and customer_email, and optionally properties and timestamp.

        Returns:
            How many events and requests were sent.

        Raises:
            InvalidEventError: An event can't be sent; `index` is its position.
            WindbackError: A request failed. The message contains how many events were delivered before.
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

        A retry has the same Idempotency-Key. Use `with_options(max_retries=0)` to rule out a second event.

        Args:
            customer_email: The customer's email address.
            customer_name: The customer's name, for the emails.
            event_type: "cancellation" or "payment_failed".
            cancel_reason: Why, as free text.
            mrr: Monthly revenue in integer minor units: 4999 for 49.99.
            currency: The ISO 4217 code of `mrr`, such as "USD".
            plan_name: The name of the customer's plan.
            tenure_days: Days since the customer subscribed.

        Returns:
            The churn event.

        Raises:
            ValidationError: An argument is wrong, refused here or by the API.
            WindbackError: The request failed.
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
        """Submit what a customer answered in the cancel flow (docs page "Cancel Flow").

        The positional arguments are those of the page "Python SDK". The docs-tree page "Cancel Flow" has the
        others. It requires a key as cancel_reason, and all arguments except cancel_reason_text.

        Args:
            customer_email: The customer's email address.
            cancel_reason: Why the customer leaves: a key such as "too_expensive".
            feedback_text: What the customer wrote.
            selected_offer: The type of the offer that the customer took.
            cancel_reason_text: The reason in words.
            customer_name: The customer's name.
            provider: The payment provider, such as "stripe".
            plan_name: The name of the customer's plan.
            mrr: Monthly revenue in integer minor units: 4999 for 49.99.
            currency: The ISO 4217 code of `mrr`, such as "USD".
            tenure_days: Days since the customer subscribed.

        Returns:
            The new churn event's id and the offer for this reason, where the API has them.

        Raises:
            ValidationError: An argument is wrong, refused here or by the API.
            WindbackError: The request failed.
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

        The API may send an email to the customer. So the request is not repeated if the first may have
        arrived.

        Args:
            customer_email: The customer's email address.
            reason: Why the customer leaves, as free text.
            event_id: The churn event. None: the customer's newest open one, searched among the newest
                thousands.

        Raises:
            NotFoundError: The customer has no open churn event, or there is none with this id.
            WindbackError: The request failed.
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

        Args:
            cancel_reason: The reason that the email is for.
            name: The template's name.
            subject: The subject. May contain {{customer_name}}, {{customer_email}}, {{plan_name}} and
                {{cancel_reason}}.
            body: The text of the email, with the same placeholders.
            is_active: Whether it replaces the generated emails.

        Returns:
            The template.

        Raises:
            ValidationError: An argument is wrong, refused here or by the API.
            WindbackError: The request failed.
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
        return api.read(RecoveryTemplate, self._call(request))

    def list_churn_events(
        self, status: Optional[str] = None, *, page_size: int = api.PAGE_SIZE
    ) -> Iterator[ChurnEvent]:
        """Iterate over the churn events of the project, in the API's order (docs page "Churn Events").

        A page is requested when it is needed. The API counts pages by position: if your loop changes the
        status that you filter by, it skips events. Make a list first then.

        Args:
            status: Only events with this status, such as "email_sent". None: all.
            page_size: Events per request, 1 to 100.

        Returns:
            An iterator of churn events without variants; get_churn_event returns those. Each step may raise
            WindbackError; the next step requests that page again.

        Raises:
            ValidationError: An argument is wrong.
            ClosedError: The client is closed.
        """
        self._check_usable()
        return _Events(api.ChurnEventPages(self._config.slug(), status, page_size), self._call)

    def get_churn_event(self, event_id: str) -> ChurnEvent:
        """Return one churn event, with its variants (docs page "API Overview").

        Args:
            event_id: The id of the churn event.

        Returns:
            The churn event.

        Raises:
            NotFoundError: The project has no such churn event.
            WindbackError: The request failed.
        """
        return api.read_churn_event(self._call(api.get_churn_event(self._config.slug(), event_id)))

    def mark_recovered(self, event_id: str) -> ChurnEvent:
        """Record that the customer stays (docs page "API Overview").

        Args:
            event_id: The id of the churn event.

        Returns:
            The churn event. If the API answers without one, only `id` and `status` are set.

        Raises:
            ValidationError: The event is recovered already. This can be the work of this call, if the answer
                to its first try was lost.
            NotFoundError: The project has no such churn event.
            WindbackError: The request failed.
        """
        request = api.mark_recovered(self._config.slug(), _new_key(), event_id)
        return api.read_churn_event(self._call(request), event_id=event_id, status="recovered")

    def update_cancel_reason(
        self, event_id: str, cancel_reason: str, cancel_reason_text: Optional[str] = None
    ) -> ChurnEvent:
        """Attach or change the reason of a churn event (docs page "API Overview"; the body is assumed).

        The API may send an email to the customer. So the request is not repeated if the first may have
        arrived.

        Args:
            event_id: The id of the churn event.
            cancel_reason: A key such as "too_expensive", or free text.
            cancel_reason_text: More, in the customer's words.

        Returns:
            The churn event. If the API answers without one, only `id` is set.

        Raises:
            NotFoundError: The project has no such churn event.
            WindbackError: The request failed.
        """
        request = api.update_cancel_reason(self._config.slug(), event_id, cancel_reason, cancel_reason_text)
        return api.read_churn_event(self._call(request), event_id=event_id)

    def generate_variants(self, event_id: str, *, timeout: float = 30.0) -> List[Variant]:
        """Let the API write the recovery emails for a churn event (docs page "Recovery").

        An active recovery template replaces them.

        Args:
            event_id: The id of the churn event.
            timeout: Seconds for this call, all retries included. The API needs 5 to 15 s for nine emails.

        Returns:
            The emails. Empty if the API answers that it has only started (assumed).

        Raises:
            ValidationError: The event is past "processing".
            NotFoundError: The project has no such churn event.
            ConfigurationError: The timeout is not a positive number.
            WindbackError: The request failed.
        """
        request = api.generate_variants(self._config.slug(), _new_key(), event_id)
        return api.read_generated(self.with_options(timeout=timeout)._call(request))  # noqa: SLF001 - a copy of this object

    def list_variants(self, event_id: str) -> List[Variant]:
        """Return the variants of a churn event (docs page "API Overview").

        Args:
            event_id: The id of the churn event.

        Returns:
            The variants; none before they are generated.

        Raises:
            NotFoundError: The project has no such churn event.
            WindbackError: The request failed.
        """
        return api.read_list(Variant, self._call(api.list_variants(self._config.slug(), event_id)))

    def update_variant(
        self, event_id: str, variant_id: str, *, subject: Optional[str] = None, body: Optional[str] = None
    ) -> Variant:
        """Change the subject, the body or both of a variant that is not sent yet (docs page "Recovery").

        Args:
            event_id: The id of the churn event.
            variant_id: The id of the variant.
            subject: The new subject. None: unchanged.
            body: The new body, plain text or HTML. None: unchanged.

        Returns:
            The variant.

        Raises:
            ValidationError: The variant was sent already, or there is nothing to change.
            NotFoundError: There is no such variant.
            WindbackError: The request failed.
        """
        request = api.update_variant(self._config.slug(), event_id, variant_id, subject=subject, body=body)
        return api.read_variant(self._call(request), variant_id)

    def send_variant(self, event_id: str, variant_id: str) -> Variant:
        """Send one variant to the customer, which can be done once (docs page "Recovery").

        It is an email. So the request is not repeated if the first may have arrived.

        Args:
            event_id: The id of the churn event.
            variant_id: The id of the variant.

        Returns:
            The variant. The API may fill in only `id`.

        Raises:
            ValidationError: The variant was sent before, or the event is not "variants_generated" or
                "email_sent".
            NotFoundError: There is no such variant.
            ServerError: The API failed, or has no email service configured, which a retry can't fix.
            WindbackError: The request failed.
        """
        request = api.send_variant(self._config.slug(), event_id, variant_id)
        return api.read_variant(self._call(request), variant_id)

    def get_recovery_stats(self) -> RecoveryStats:
        """Return how many churn events the project has and won back (docs page "API Overview").

        `stats` is about the delivery of tracked events.

        Returns:
            The numbers of the project.

        Raises:
            WindbackError: The request failed.
        """
        return api.read(RecoveryStats, self._call(api.get_recovery_stats(self._config.slug())))

    def get_offer(self, reason: str) -> Optional[Offer]:
        """Return the offer that is configured for a cancel reason (docs-tree page "Cancel Flow").

        Nothing is submitted. Uses the public key if it is set.

        Args:
            reason: The reason, such as "too_expensive".

        Returns:
            The offer, or None if there is none for this reason.

        Raises:
            WindbackError: The request failed.
        """
        return api.read_offer(self._call(api.get_offer(reason)))

    def accept_offer(self, customer_email: str, cancel_reason: str, offer_type: str) -> OfferAcceptance:
        """Record that a customer takes an offer (docs-tree page "Cancel Flow").

        Uses the public key if it is set. The API documents no request for a declined offer.

        Args:
            customer_email: The customer's email address.
            cancel_reason: The reason that the offer was made for.
            offer_type: `offer_type` of the Offer.

        Returns:
            The API's confirmation.

        Raises:
            ValidationError: An argument is wrong, refused here or by the API.
            WindbackError: The request failed.
        """
        request = api.accept_offer(
            _new_key(), customer_email=customer_email, cancel_reason=cancel_reason, offer_type=offer_type
        )
        return api.read(OfferAcceptance, self._call(request))

    def list_recovery_templates(self) -> List[RecoveryTemplate]:
        """Return all recovery templates (docs-tree page "API Reference").

        Returns:
            The templates of the project.

        Raises:
            WindbackError: The request failed.
        """
        return api.read_list(RecoveryTemplate, self._call(api.list_recovery_templates(self._config.slug())))

    def get_recovery_template(self, template_id: str) -> RecoveryTemplate:
        """Return one recovery template (docs-tree page "API Reference").

        Args:
            template_id: The id of the template.

        Returns:
            The template.

        Raises:
            NotFoundError: The project has no such template.
            WindbackError: The request failed.
        """
        request = api.get_recovery_template(self._config.slug(), template_id)
        return api.read(RecoveryTemplate, self._call(request))

    def update_recovery_template(
        self,
        template_id: str,
        *,
        name: Optional[str] = None,
        subject: Optional[str] = None,
        body: Optional[str] = None,
        is_active: Optional[bool] = None,
    ) -> RecoveryTemplate:
        """Change a recovery template (docs-tree page "API Reference"). At least one new value is required.

        Args:
            template_id: The id of the template.
            name: The new name. None: unchanged.
            subject: The new subject. None: unchanged.
            body: The new text. None: unchanged.
            is_active: Whether it replaces the generated emails. None: unchanged.

        Returns:
            The template.

        Raises:
            ValidationError: An argument is wrong, refused here or by the API.
            NotFoundError: The project has no such template.
            WindbackError: The request failed.
        """
        request = api.update_recovery_template(
            self._config.slug(), template_id, name=name, subject=subject, body=body, is_active=is_active
        )
        return api.read(RecoveryTemplate, self._call(request))

    def delete_recovery_template(self, template_id: str) -> None:
        """Delete a recovery template (docs-tree page "API Reference").

        Args:
            template_id: The id of the template.

        Raises:
            NotFoundError: The project has no such template. This can be the work of this call, if the answer
                to its first try was lost.
            WindbackError: The request failed.
        """
        self._call(api.delete_recovery_template(self._config.slug(), template_id))

    def flush(self, timeout: Optional[float] = None) -> FlushResult:
        """Send everything that track_event accepted before this call, and wait until it is settled.

        Args:
            timeout: Seconds to wait at most. None: wait while deliveries succeed, and give up when a batch
                has used up its retries.

        Returns:
            A result that is true if every event accepted before the call was delivered or rejected, with
            counts.

        Raises:
            ClosedError: The client is closed.
            WindbackError: It was called from on_delivery or before_send, which would wait for itself.
        """
        self._check_open()
        return self._engine.flush(timeout)

    def close(self, timeout: Optional[float] = None) -> FlushResult:
        """Deliver the remaining events, then stop.

        Events that remain after that are dropped and counted. A second call does nothing. After it,
        track_event returns False, and calls that need an answer raise ClosedError.

        Args:
            timeout: Seconds to wait at most. None: `shutdown_timeout`.

        Returns:
            What was delivered, rejected and dropped during the call.
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
        policy = self._retry_policy(request)  # first: the time that loading the transport takes counts
        transport = self._engine.connections.transport()
        return retry_loop.send(lambda left_s: transport.attempt(request, left_s), policy)


class AsyncWindback(_Client):
    """The client for asyncio and trio. It has the methods of Windback, as coroutines.

    It can be made outside of an event loop, and used in several loops one after the other. `async with` is
    optional.
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
        """Queue something that a customer did; a background worker sends it (docs page "Python SDK").

        Waits only if overflow is "block". It raises only for mistakes in the call, never because of the
        network.

        Args:
            event: The name of what happened, such as "feature_used".
            customer_email: The customer's email address.
            properties: More about it, as a mapping that can be encoded as JSON. None: no properties.
            timestamp: When it happened: an aware datetime, or an ISO 8601 string with a zone. None: now.

        Returns:
            True if the event was accepted. False if it was refused: the queue is full, before_send returned
            None, or the client is disabled or closed. `stats().refused` counts these by reason.

        Raises:
            InvalidEventError: The event can't be sent. The message names the field.
            QueueFullError: The queue is full and overflow is "raise".
        """
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
        """Queue something that the customer of the current request or job did; see `windback.context`.

        Args:
            event: See track_event.
            properties: See track_event. They override bound properties of the same name.
            timestamp: See track_event.

        Returns:
            True if the event was accepted, or if it waits for the customer's address. False if it was
            refused. An event without a customer is refused and counted in `stats().refused["no_customer"]`.

        Raises:
            InvalidEventError: The event can't be sent.
            QueueFullError: The queue is full and overflow is "raise".
        """
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
            properties = _merged(scope.properties, properties)
        return await self.track_event(event, email, properties, timestamp=timestamp)

    async def track_events(self, events: Iterable[Event]) -> TrackResult:
        """Send a list of events now and wait for the answers (docs page "Python SDK").

        All events are checked before any is sent. Each request holds as many events as the limits allow.

        Args:
            events: Mappings with event and customer_email, and optionally properties and timestamp.

        Returns:
            How many events and requests were sent.

        Raises:
            InvalidEventError: An event can't be sent; `index` is its position.
            WindbackError: A request failed. The message contains how many events were delivered before.
        """
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
        """Record that a customer is leaving (docs page "Churn Events").

        A retry has the same Idempotency-Key. Use `with_options(max_retries=0)` to rule out a second event.

        Args:
            customer_email: The customer's email address.
            customer_name: The customer's name, for the emails.
            event_type: "cancellation" or "payment_failed".
            cancel_reason: Why, as free text.
            mrr: Monthly revenue in integer minor units: 4999 for 49.99.
            currency: The ISO 4217 code of `mrr`, such as "USD".
            plan_name: The name of the customer's plan.
            tenure_days: Days since the customer subscribed.

        Returns:
            The churn event.

        Raises:
            ValidationError: An argument is wrong, refused here or by the API.
            WindbackError: The request failed.
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
        """Submit what a customer answered in the cancel flow (docs page "Cancel Flow").

        The positional arguments are those of the page "Python SDK". The docs-tree page "Cancel Flow" has the
        others. It requires a key as cancel_reason, and all arguments except cancel_reason_text.

        Args:
            customer_email: The customer's email address.
            cancel_reason: Why the customer leaves: a key such as "too_expensive".
            feedback_text: What the customer wrote.
            selected_offer: The type of the offer that the customer took.
            cancel_reason_text: The reason in words.
            customer_name: The customer's name.
            provider: The payment provider, such as "stripe".
            plan_name: The name of the customer's plan.
            mrr: Monthly revenue in integer minor units: 4999 for 49.99.
            currency: The ISO 4217 code of `mrr`, such as "USD".
            tenure_days: Days since the customer subscribed.

        Returns:
            The new churn event's id and the offer for this reason, where the API has them.

        Raises:
            ValidationError: An argument is wrong, refused here or by the API.
            WindbackError: The request failed.
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
        return api.read_cancel_flow(await self._call(request))

    async def report_cancel_reason(
        self, customer_email: str, reason: str, *, event_id: Optional[str] = None
    ) -> None:
        """Attach the reason to a churn event (docs page "API Overview").

        The API may send an email to the customer. So the request is not repeated if the first may have
        arrived.

        Args:
            customer_email: The customer's email address.
            reason: Why the customer leaves, as free text.
            event_id: The churn event. None: the customer's newest open one, searched among the newest
                thousands.

        Raises:
            NotFoundError: The customer has no open churn event, or there is none with this id.
            WindbackError: The request failed.
        """
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
        """Create your own recovery email for a cancel reason (docs-tree page "API Reference").

        Args:
            cancel_reason: The reason that the email is for.
            name: The template's name.
            subject: The subject. May contain {{customer_name}}, {{customer_email}}, {{plan_name}} and
                {{cancel_reason}}.
            body: The text of the email, with the same placeholders.
            is_active: Whether it replaces the generated emails.

        Returns:
            The template.

        Raises:
            ValidationError: An argument is wrong, refused here or by the API.
            WindbackError: The request failed.
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
        return api.read(RecoveryTemplate, await self._call(request))

    def list_churn_events(
        self, status: Optional[str] = None, *, page_size: int = api.PAGE_SIZE
    ) -> AsyncIterator[ChurnEvent]:
        """Iterate with `async for` over the churn events, in the API's order (docs page "Churn Events").

        A page is requested when it is needed. The API counts pages by position: if your loop changes the
        status that you filter by, it skips events. Make a list first then.

        Args:
            status: Only events with this status, such as "email_sent". None: all.
            page_size: Events per request, 1 to 100.

        Returns:
            An asynchronous iterator of churn events without variants; get_churn_event returns those. Each
            step may raise WindbackError; the next step requests that page again.

        Raises:
            ValidationError: An argument is wrong.
            ClosedError: The client is closed.
        """
        self._check_usable()
        return _AsyncEvents(api.ChurnEventPages(self._config.slug(), status, page_size), self._call)

    async def get_churn_event(self, event_id: str) -> ChurnEvent:
        """Return one churn event, with its variants (docs page "API Overview").

        Args:
            event_id: The id of the churn event.

        Returns:
            The churn event.

        Raises:
            NotFoundError: The project has no such churn event.
            WindbackError: The request failed.
        """
        return api.read_churn_event(await self._call(api.get_churn_event(self._config.slug(), event_id)))

    async def mark_recovered(self, event_id: str) -> ChurnEvent:
        """Record that the customer stays (docs page "API Overview").

        Args:
            event_id: The id of the churn event.

        Returns:
            The churn event. If the API answers without one, only `id` and `status` are set.

        Raises:
            ValidationError: The event is recovered already. This can be the work of this call, if the answer
                to its first try was lost.
            NotFoundError: The project has no such churn event.
            WindbackError: The request failed.
        """
        request = api.mark_recovered(self._config.slug(), _new_key(), event_id)
        return api.read_churn_event(await self._call(request), event_id=event_id, status="recovered")

    async def update_cancel_reason(
        self, event_id: str, cancel_reason: str, cancel_reason_text: Optional[str] = None
    ) -> ChurnEvent:
        """Attach or change the reason of a churn event (docs page "API Overview"; the body is assumed).

        The API may send an email to the customer. So the request is not repeated if the first may have
        arrived.

        Args:
            event_id: The id of the churn event.
            cancel_reason: A key such as "too_expensive", or free text.
            cancel_reason_text: More, in the customer's words.

        Returns:
            The churn event. If the API answers without one, only `id` is set.

        Raises:
            NotFoundError: The project has no such churn event.
            WindbackError: The request failed.
        """
        request = api.update_cancel_reason(self._config.slug(), event_id, cancel_reason, cancel_reason_text)
        return api.read_churn_event(await self._call(request), event_id=event_id)

    async def generate_variants(self, event_id: str, *, timeout: float = 30.0) -> List[Variant]:
        """Let the API write the recovery emails for a churn event (docs page "Recovery").

        An active recovery template replaces them.

        Args:
            event_id: The id of the churn event.
            timeout: Seconds for this call, all retries included. The API needs 5 to 15 s for nine emails.

        Returns:
            The emails. Empty if the API answers that it has only started (assumed).

        Raises:
            ValidationError: The event is past "processing".
            NotFoundError: The project has no such churn event.
            ConfigurationError: The timeout is not a positive number.
            WindbackError: The request failed.
        """
        request = api.generate_variants(self._config.slug(), _new_key(), event_id)
        return api.read_generated(await self.with_options(timeout=timeout)._call(request))  # noqa: SLF001 - a copy of this object

    async def list_variants(self, event_id: str) -> List[Variant]:
        """Return the variants of a churn event (docs page "API Overview").

        Args:
            event_id: The id of the churn event.

        Returns:
            The variants; none before they are generated.

        Raises:
            NotFoundError: The project has no such churn event.
            WindbackError: The request failed.
        """
        return api.read_list(Variant, await self._call(api.list_variants(self._config.slug(), event_id)))

    async def update_variant(
        self, event_id: str, variant_id: str, *, subject: Optional[str] = None, body: Optional[str] = None
    ) -> Variant:
        """Change the subject, the body or both of a variant that is not sent yet (docs page "Recovery").

        Args:
            event_id: The id of the churn event.
            variant_id: The id of the variant.
            subject: The new subject. None: unchanged.
            body: The new body, plain text or HTML. None: unchanged.

        Returns:
            The variant.

        Raises:
            ValidationError: The variant was sent already, or there is nothing to change.
            NotFoundError: There is no such variant.
            WindbackError: The request failed.
        """
        request = api.update_variant(self._config.slug(), event_id, variant_id, subject=subject, body=body)
        return api.read_variant(await self._call(request), variant_id)

    async def send_variant(self, event_id: str, variant_id: str) -> Variant:
        """Send one variant to the customer, which can be done once (docs page "Recovery").

        It is an email. So the request is not repeated if the first may have arrived.

        Args:
            event_id: The id of the churn event.
            variant_id: The id of the variant.

        Returns:
            The variant. The API may fill in only `id`.

        Raises:
            ValidationError: The variant was sent before, or the event is not "variants_generated" or
                "email_sent".
            NotFoundError: There is no such variant.
            ServerError: The API failed, or has no email service configured, which a retry can't fix.
            WindbackError: The request failed.
        """
        request = api.send_variant(self._config.slug(), event_id, variant_id)
        return api.read_variant(await self._call(request), variant_id)

    async def get_recovery_stats(self) -> RecoveryStats:
        """Return how many churn events the project has and won back (docs page "API Overview").

        `stats` is about the delivery of tracked events.

        Returns:
            The numbers of the project.

        Raises:
            WindbackError: The request failed.
        """
        return api.read(RecoveryStats, await self._call(api.get_recovery_stats(self._config.slug())))

    async def get_offer(self, reason: str) -> Optional[Offer]:
        """Return the offer that is configured for a cancel reason (docs-tree page "Cancel Flow").

        Nothing is submitted. Uses the public key if it is set.

        Args:
            reason: The reason, such as "too_expensive".

        Returns:
            The offer, or None if there is none for this reason.

        Raises:
            WindbackError: The request failed.
        """
        return api.read_offer(await self._call(api.get_offer(reason)))

    async def accept_offer(self, customer_email: str, cancel_reason: str, offer_type: str) -> OfferAcceptance:
        """Record that a customer takes an offer (docs-tree page "Cancel Flow").

        Uses the public key if it is set. The API documents no request for a declined offer.

        Args:
            customer_email: The customer's email address.
            cancel_reason: The reason that the offer was made for.
            offer_type: `offer_type` of the Offer.

        Returns:
            The API's confirmation.

        Raises:
            ValidationError: An argument is wrong, refused here or by the API.
            WindbackError: The request failed.
        """
        request = api.accept_offer(
            _new_key(), customer_email=customer_email, cancel_reason=cancel_reason, offer_type=offer_type
        )
        return api.read(OfferAcceptance, await self._call(request))

    async def list_recovery_templates(self) -> List[RecoveryTemplate]:
        """Return all recovery templates (docs-tree page "API Reference").

        Returns:
            The templates of the project.

        Raises:
            WindbackError: The request failed.
        """
        return api.read_list(
            RecoveryTemplate, await self._call(api.list_recovery_templates(self._config.slug()))
        )

    async def get_recovery_template(self, template_id: str) -> RecoveryTemplate:
        """Return one recovery template (docs-tree page "API Reference").

        Args:
            template_id: The id of the template.

        Returns:
            The template.

        Raises:
            NotFoundError: The project has no such template.
            WindbackError: The request failed.
        """
        request = api.get_recovery_template(self._config.slug(), template_id)
        return api.read(RecoveryTemplate, await self._call(request))

    async def update_recovery_template(
        self,
        template_id: str,
        *,
        name: Optional[str] = None,
        subject: Optional[str] = None,
        body: Optional[str] = None,
        is_active: Optional[bool] = None,
    ) -> RecoveryTemplate:
        """Change a recovery template (docs-tree page "API Reference"). At least one new value is required.

        Args:
            template_id: The id of the template.
            name: The new name. None: unchanged.
            subject: The new subject. None: unchanged.
            body: The new text. None: unchanged.
            is_active: Whether it replaces the generated emails. None: unchanged.

        Returns:
            The template.

        Raises:
            ValidationError: An argument is wrong, refused here or by the API.
            NotFoundError: The project has no such template.
            WindbackError: The request failed.
        """
        request = api.update_recovery_template(
            self._config.slug(), template_id, name=name, subject=subject, body=body, is_active=is_active
        )
        return api.read(RecoveryTemplate, await self._call(request))

    async def delete_recovery_template(self, template_id: str) -> None:
        """Delete a recovery template (docs-tree page "API Reference").

        Args:
            template_id: The id of the template.

        Raises:
            NotFoundError: The project has no such template. This can be the work of this call, if the answer
                to its first try was lost.
            WindbackError: The request failed.
        """
        await self._call(api.delete_recovery_template(self._config.slug(), template_id))

    async def flush(self, timeout: Optional[float] = None) -> FlushResult:
        """Send everything that track_event accepted before this call, and wait until it is settled.

        Args:
            timeout: Seconds to wait at most. None: wait while deliveries succeed, and give up when a batch
                has used up its retries.

        Returns:
            A result that is true if every event accepted before the call was delivered or rejected, with
            counts.

        Raises:
            ClosedError: The client is closed.
            WindbackError: It was called from on_delivery or before_send, which would wait for itself.
        """
        self._check_open()
        return await self._engine.flush_async(timeout)

    async def close(self, timeout: Optional[float] = None) -> FlushResult:
        """Deliver the remaining events, then stop.

        Events that remain after that are dropped and counted. A second call does nothing. After it,
        track_event returns False, and calls that need an answer raise ClosedError.

        Args:
            timeout: Seconds to wait at most. None: `shutdown_timeout`.

        Returns:
            What was delivered, rejected and dropped during the call.
        """
        return await self._engine.close_async(timeout)

    async def __aenter__(self) -> AsyncWindback:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        with shielded():  # accepted events are delivered, within shutdown_timeout
            await self.close()

    async def _call(self, request: api.Request) -> Answer:
        return self._checked(await self._send(self._usable(request)))

    async def _send(self, request: api.Request) -> Answer:
        policy = self._retry_policy(request)  # first: the time that loading the transport takes counts
        transport = await self._engine.loops.transport()
        return await retry_loop.send_async(lambda left_s: transport.attempt(request, left_s), policy)


class _Events(Iterator[ChurnEvent]):
    """The events of all pages. Each page is requested when it is needed."""

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
    """The same for `async for`. Not a generator, so nothing must be closed if a loop ends early."""

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
    """Pass all events of all clients to *capture*, for tests.

    Args:
        capture: Gets lists of encoded events. None: queue and send them again.

    Returns:
        The one before.
    """
    global _capture
    earlier, _capture = _capture, capture
    for client in list(_clients):
        client._use_capture()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # it is a part of them
    return earlier


def _make_engine(config: Config, *, is_async: bool) -> Engine:
    """Choose who sends: this process, a sender process, or a relay."""
    if not config.enabled or config.worker in ("thread", "task"):
        return LocalEngine(config, is_async=is_async)
    from .remote.engine import RemoteEngine

    if config.worker is None:
        from .relay.link import RelayLink

        return RemoteEngine(config, RelayLink)
    from .sender.supervisor import SenderLink

    return RemoteEngine(config, SenderLink)


def _not_copied(client: object) -> TypeError:
    name = type(client).__name__
    return TypeError(
        f"{name} can't be pickled or deep-copied: its queue, threads and connections are of this process. "
        f"Make one in each process that needs one, at its start; in one process, share the one there is"
    )


def _new_key() -> str:
    return os.urandom(16).hex()
