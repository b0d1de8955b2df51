"""Relays: they send what other processes wrote, into journals under one directory or into a broker.

It is the same worker as in an application, from another queue. `windback relay --journal DIR` runs one as a
service of its own: for living processes made with worker=None, which then send nothing themselves, and
for what dead ones left. `windback relay --broker URL` delivers what applications with broker=URL handed over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Callable,
    Collection,
    Dict,
    Generator,
    List,
    Mapping,
    Optional,
    Protocol,
    Set,
    TypeVar,
    Union,
)

from ..api.answer import Failure
from ..config import (
    Config,
    Secret,
    broker_address,
    hidden,
    hidden_keys,
    positive,
    relay_keys,
    resolve_for_sender,
)
from ..delivery.engine import LocalEngine
from ..delivery.retry import BACKOFF_CAP_S
from ..delivery.workers.threads import ThreadWaker
from ..errors import ConfigurationError
from ..event.batch import Waiting
from ..journal.directory import open_root
from ..queue.memory import MemoryQueue
from ..stats import DeliveryReport, FlushResult, Stats, sum_of_results, sum_of_stats
from .queue import RelayQueue

if TYPE_CHECKING:
    from ..broker.inspect import Numbers
    from ..broker.stream import StreamQueue

logger = logging.getLogger("windback")
T = TypeVar("T")

#: Between two looks at Redis as a whole, and what a command for that may take (seconds).
WATCH_S, _LOOK_S = 5.0, 2.0
#: Between two looks for new events, while there are some (seconds), and while there are none.
BUSY_S, POLL_S = 0.002, 0.05


class PolledQueue(Protocol):
    """A queue of events that somebody else wrote, and that have to be looked for."""

    wake_at: int

    def poll(self) -> Callable[[], int]:
        """Read what is new. What is returned is called under the lock, and says how much there was."""
        ...

    @property
    def is_held_back(self) -> bool:
        """Whether there may be more to read as soon as some of what is queued is sent."""
        ...

    @property
    def paused_until_s(self) -> float:
        """Until when nothing may be sent, as others were told who send from there."""
        ...

    @property
    def trouble(self) -> Optional[str]:
        """Why nothing can be read right now."""
        ...

    @property
    def has_returned(self) -> bool:
        """Whether a whole batch waits."""
        ...

    def waiting(self) -> Waiting:
        """Return what can be sent."""
        ...


class Forwarder:
    """What all of them have in common: look for events, have the workers send them, stop in time."""

    def __init__(self, engine: LocalEngine, queue: PolledQueue, poll_s: float, stopper: ThreadWaker) -> None:
        self._poll_s = poll_s
        # No Event: its lock is held for moments of `wait`, and a handler that runs in one of them would wait
        # for this very thread.
        self.is_stopping = False
        #: When it last began to look for events.
        self.looked_s = time.monotonic()
        self._stopper = stopper
        self._engine = engine
        self._dispatcher = engine.scheduler
        self._polled = queue

    def poll(self) -> bool:
        """Look for events once, and have the workers send them; whether to look again at once."""
        queue = self._polled
        self.looked_s = time.monotonic()
        take_in = queue.poll()
        with self._dispatcher.lock:
            count = take_in()
            if queue.paused_until_s > time.monotonic():
                self._dispatcher.gate.hold(queue.paused_until_s)
            wants_worker = queue.waiting().events > queue.wake_at or queue.has_returned
        if count and wants_worker:
            self._dispatcher.wake()
        return count > 0 or queue.is_held_back

    def run(self) -> FlushResult:
        """Send what there is and what comes, until `stop`; then what was read, within shutdown_timeout.

        What is left after that stays where it is. Raises OSError if a journal's directory can't be read.
        """
        while not self.is_stopping:
            self._stopper.sleep(BUSY_S if self.poll() else self._poll_s)
        return self.close()

    def drain(
        self, timeout: Optional[float] = None, on_progress: Optional[Callable[[], object]] = None
    ) -> bool:
        """Send what there is now, of dead processes and of living ones; whether all of it went.

        Gives up after *timeout* seconds, or, with None, when a batch used up its retries. on_progress is
        called now and then.
        """
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while not self.is_stopping:
            # Before the look, which writes down what became of the last batches.
            was_settled = not self._dispatcher.stats().in_flight
            is_busy = self.poll()
            if on_progress is not None:
                on_progress()
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            trouble = self._polled.trouble
            is_idle = not is_busy and not self._polled.waiting().events
            if was_settled and is_idle and not trouble:
                return True
            if (left_s is not None and left_s <= 0) or (
                left_s is None and (trouble or self._dispatcher.stats().problem)
            ):
                return False
            if is_busy or trouble:
                self._stopper.sleep(BUSY_S if is_busy else self._poll_s)
            else:
                self._engine.flush(0.2 if left_s is None else min(0.2, left_s))
        return False

    def stop(self) -> None:
        """Have `run` come to its end; from any thread, and from a signal handler."""
        self.is_stopping = True
        self._stopper.release()

    def stats(self) -> Stats:
        """Return what became of the events that were read so far; all of them are `adopted`."""
        return self._dispatcher.stats()

    def close(self) -> FlushResult:
        """Deliver what was read within shutdown_timeout, leave the rest where it is, and stop."""
        self.stop()
        return self._engine.close(None)


class JournalSender(Forwarder):
    """What a relay of journals and the sender of worker="process" share. only: names of directories."""

    def __init__(
        self, config: Config, only: Optional[Collection[str]], poll_s: float, *, is_watched: bool = True
    ) -> None:
        assert config.journal is not None
        root: Path = config.journal
        open_root(root)

        def make_queue(wake: Callable[[], None], on_full: Callable[[str], None]) -> MemoryQueue:
            return RelayQueue(root, wake, on_full, only, fsync=config.fsync is not None)

        engine = LocalEngine(config, make_queue=make_queue, is_watched=is_watched)
        queue = engine.queue
        assert isinstance(queue, RelayQueue)
        self._queue = queue
        super().__init__(engine, queue, poll_s, ThreadWaker())

    def poll(self) -> bool:
        """Look for events once, and have the workers send them; whether to look again at once."""
        is_busy = super().poll()
        if self._queue.wants_sync:
            self._engine.sync_soon()
        return is_busy


class Relay(JournalSender):
    """A relay of journals. Safe to use from several threads; `run` and `drain` are for one of them."""

    def __init__(
        self,
        journal: Union[str, os.PathLike[str]],
        api_key: Optional[str] = None,
        *,
        base_url: Optional[str] = None,
        timeout: float = 10.0,
        max_retries: int = 3,
        batch_size: int = 100,
        max_batch_bytes: int = 500_000,
        flush_interval: float = 1.0,
        max_in_flight: int = 4,
        compress: bool = False,
        on_delivery: Optional[Callable[[DeliveryReport], object]] = None,
        shutdown_timeout: float = 5.0,
        poll_interval: float = POLL_S,
        fsync: Optional[str] = None,
    ) -> None:
        """Make a relay for all journals under the directory *journal*, which is made if it isn't there.

        What is None is read from the environment, as by Windback, whose options these are. poll_interval:
        seconds between two looks for new events while there are none. fsync: how soon what it notes of its
        deliveries is on the disk, in case of a power cut; events are the applications' to sync.
        Raises ConfigurationError.
        """
        key = hidden(api_key)
        api_key = None
        config = resolve_for_sender(
            api_key=key,
            base_url=base_url,
            journal=journal,
            timeout=timeout,
            max_retries=max_retries,
            batch_size=batch_size,
            max_batch_bytes=max_batch_bytes,
            flush_interval=flush_interval,
            max_in_flight=max_in_flight,
            compress=compress,
            on_delivery=on_delivery,
            shutdown_timeout=shutdown_timeout,
            fsync=fsync,
        )
        super().__init__(config, None, poll_interval)

    def poll(self) -> bool:
        """Look for events once, have the workers send them, and tell living processes how far they are."""
        is_busy = super().poll()
        problem = self._dispatcher.stats().problem
        with self._dispatcher.lock:
            tell = self._queue.progress(problem)
        tell()
        return is_busy

    def by_project(self) -> Dict[str, Stats]:
        """Return what `stats` does: it has one project, whose name it does not know."""
        return {"": self.stats()}

    def claimed(self) -> Dict[str, int]:
        """Return nothing: what a dead process left is in `Stats.adopted`, with the rest."""
        return {}

    def standing(self) -> List[Numbers]:
        """Return nothing: there is no broker."""
        return []


class _ProjectRelay(Forwarder):
    """A relay of what stands in Redis for one project."""

    def __init__(self, engine: LocalEngine, queue: StreamQueue, poll_s: float, stopper: ThreadWaker) -> None:
        super().__init__(engine, queue, poll_s, stopper)
        self.queue = queue

    def stats(self) -> Stats:
        """Return what became of the events that were read so far; all of them are `adopted`."""
        stats = super().stats()
        return stats if stats.problem is not None else replace(stats, problem=self.queue.trouble)


class BrokerRelay:
    """A relay of what stands in Redis. Safe to use from several threads; `run`, `drain` are for one of them.

    Any number of them may work on one Redis; what one had read when it died, another takes over. Each project
    has a queue, a gate, workers and connections of its own: none waits for another.
    """

    def __init__(
        self,
        broker: Optional[str] = None,
        api_key: Optional[str] = None,
        *,
        project_slug: Optional[str] = None,
        api_keys: Optional[Mapping[str, str]] = None,
        base_url: Optional[str] = None,
        timeout: float = 10.0,
        max_retries: int = 3,
        concurrency: int = 4,
        claim_after: Optional[float] = None,
        compress: bool = False,
        on_delivery: Optional[Callable[[DeliveryReport], object]] = None,
        shutdown_timeout: float = 5.0,
        poll_interval: float = POLL_S,
    ) -> None:
        """Make a relay for what applications with the option *broker* hand over.

        What is None is read from the environment: WINDBACK_BROKER, and what Windback reads. api_key: of the
        project project_slug, or, without a slug, of the applications that have none. api_keys: those of
        several projects, by slug, "" for the applications that have none; without both, WINDBACK_API_KEYS
        (`shop=sk_…,blog=sk_…`) is read beside WINDBACK_API_KEY. Events of a project without a key here stay
        where they are, with one log line. concurrency: requests at once, of each project. claim_after:
        seconds after which batches of a relay that says nothing any more are taken over; by default longer
        than a request can take with all its retries. poll_interval: seconds between two looks for new batches
        while there are none. The others are options of Windback.
        Raises ConfigurationError, also if Redis refuses; one that can't be reached is waited for.
        """
        address, given = hidden(broker), (hidden(api_key), project_slug, hidden_keys(api_keys))
        broker = api_key = api_keys = None
        keys = relay_keys(*given)
        if address is None:
            address = hidden(os.environ.get("WINDBACK_BROKER") or None)
        place = broker_address(address)
        # A batch is under way for as long, and the end may take its time too.
        default_s = max(timeout * (max_retries + 1) + BACKOFF_CAP_S * max_retries, 2 * shutdown_timeout, 10.0)
        claim_s = default_s if claim_after is None else positive("claim_after", claim_after)
        poll_s = positive("poll_interval", poll_interval)
        from ..broker.connection import Connection
        from ..broker.stream import StreamQueue

        def connect(timeout_s: float) -> Connection:
            return Connection(place, timeout_s)

        def make(project: str, key: Secret) -> _ProjectRelay:
            config = resolve_for_sender(
                api_key=key,
                base_url=base_url,
                timeout=timeout,
                max_retries=max_retries,
                max_in_flight=concurrency,
                compress=compress,
                on_delivery=on_delivery,
                shutdown_timeout=shutdown_timeout,
            )
            # Nor what the environment may name: what is rejected goes to the broker.
            config = replace(config, journal=None, project_slug=project or None)
            stopper = ThreadWaker()

            def make_queue(wake: Callable[[], None], on_full: Callable[[str], None]) -> MemoryQueue:
                return StreamQueue(
                    wake,
                    on_full,
                    place.place,
                    config.project_slug,
                    connect,
                    timeout,
                    claim_s,
                    8 * concurrency,
                    stopper.release,
                )

            engine = LocalEngine(config, make_queue=make_queue)
            queue = engine.queue
            assert isinstance(queue, StreamQueue)
            return _ProjectRelay(engine, queue, poll_s, stopper)

        self._place = place.place
        #: For looking at Redis as a whole.
        self._connection = connect(min(timeout, _LOOK_S))
        self._projects = {project: make(project, key) for project, key in keys.items()}
        self.is_stopping = False
        self._stopper = ThreadWaker()
        self._strangers: Set[str] = set()
        self._is_policy_known = False
        self._prepare()

    def _prepare(self) -> None:
        """Raise ConfigurationError if Redis refuses."""
        from ..broker.connection import BrokerError

        try:
            for each in self._projects.values():
                each.queue.prepare()
        except BrokerError as error:
            if error.failure is Failure.REFUSED:
                self.close()
                raise ConfigurationError(f"broker {error.text}", code="BROKER_REFUSED") from None
        else:
            self._look_around()

    def _look_around(self) -> None:
        """Warn of what may be wrong with Redis, and of events that nobody here has a key for: once each."""
        self._is_policy_known = self._is_policy_known or self._connection.warn_of_eviction()
        from ..broker.connection import BrokerError
        from ..broker.inspect import projects_of
        from ..broker.layout import keys_of

        with suppress(BrokerError):
            for project in projects_of(self._connection):
                is_known = project in self._projects or project in self._strangers
                if not is_known and self._connection.call("XLEN", keys_of(project).events):
                    self._strangers.add(project)
                    logger.warning(
                        "broker %s: events of %s stay there: no key for them (see WINDBACK_API_KEYS)",
                        self._place,
                        f"the project {project!r}" if project else "applications without a project",
                    )

    def run(self) -> FlushResult:
        """Send what there is and what comes, until `stop`; then what was read, within shutdown_timeout.

        What is left after that stays where it is.
        """
        with self._in_threads(lambda each: each.run()) as results:
            while not self.is_stopping:
                self._stopper.sleep(WATCH_S)
                if not self.is_stopping:
                    self._look_around()
        self._connection.close()
        return sum_of_results(results)

    def drain(
        self, timeout: Optional[float] = None, on_progress: Optional[Callable[[], object]] = None
    ) -> bool:
        """Send what there is now; whether all of it went.

        Gives up after *timeout* seconds, or, with None, when a batch used up its retries. on_progress is
        called now and then, by several threads if there are several projects.
        """
        with self._in_threads(lambda each: each.drain(timeout, on_progress)) as results:
            pass
        return all(results)

    @contextlib.contextmanager
    def _in_threads(self, call: Callable[[_ProjectRelay], T]) -> Generator[List[T], None, None]:
        """Have *call* made for each project, while a block of code runs; its end waits for all of them."""
        results: List[T] = []
        errors: List[BaseException] = []

        def work(each: _ProjectRelay) -> None:
            try:
                results.append(call(each))
            except BaseException as error:  # noqa: BLE001 - raised below, where somebody hears of it
                errors.append(error)
                self.stop()

        threads = [threading.Thread(target=work, args=(each,)) for each in self._projects.values()]
        for thread in threads:
            thread.start()
        try:
            yield results
        except BaseException:
            self.stop()
            raise
        finally:
            for thread in threads:
                thread.join()
        if errors:
            raise errors[0]

    def poll(self) -> bool:
        """Look for events once, and have the workers send them; whether to look again at once."""
        return sum(each.poll() for each in self._projects.values()) > 0

    def stop(self) -> None:
        """Have `run` come to its end; from any thread, and from a signal handler."""
        self.is_stopping = True
        self._stopper.release()
        for each in self._projects.values():
            each.stop()

    def close(self) -> FlushResult:
        """Deliver what was read within shutdown_timeout, leave the rest where it is, and stop."""
        self.stop()
        with self._in_threads(lambda each: each.close()) as results:
            self._connection.close()
        return sum_of_results(results)

    def left(self) -> int:
        """Return how many batches stand in Redis, with whomever. Raises ConfigurationError if it can't."""
        from ..broker.connection import BrokerError

        try:
            return sum(each.queue.left() for each in self._projects.values())
        except BrokerError as error:
            raise ConfigurationError(f"broker {error.text}") from None

    def stats(self) -> Stats:
        """Return what became of the events that were read so far; all of them are `adopted`."""
        return sum_of_stats(self.by_project().values())

    def by_project(self) -> Dict[str, Stats]:
        """Return the same for each project, by slug; "" is that of applications without one."""
        return {project: each.stats() for project, each in self._projects.items()}

    @property
    def looked_s(self) -> float:
        """When the one of them that did so least recently began to look for batches."""
        return min(each.looked_s for each in self._projects.values())

    def claimed(self) -> Dict[str, int]:
        """Return how many batches were taken over from relays that are gone."""
        return {project: each.queue.claimed for project, each in self._projects.items()}

    def standing(self) -> Optional[List[Numbers]]:
        """Return what stands in Redis for each project; None if it does not answer."""
        from ..broker.connection import BrokerError
        from ..broker.inspect import numbers_of

        try:
            return [numbers_of(self._connection, project) for project in self._projects]
        except BrokerError:
            return None
