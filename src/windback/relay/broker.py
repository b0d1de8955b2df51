"""Relays of a broker: they send what applications with broker=URL handed over to Redis.

`windback relay --broker URL` runs one as a service of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from contextlib import suppress
from dataclasses import replace
from typing import (
    TYPE_CHECKING,
    Callable,
    Dict,
    Generator,
    List,
    Mapping,
    Optional,
    Set,
    TypeVar,
    Union,
)

from ..api.answer import Failure
from ..broker.layout import Numbers
from ..config import relay_keys, resolve_for_sender
from ..delivery.engine import LocalEngine
from ..delivery.workers.threads import ThreadWaker
from ..errors import ConfigurationError
from ..options import seconds
from ..secrets import Secret, broker_address, hidden, hidden_keys
from ..stats import DeliveryReport, FlushResult, Stats, sum_of_results, sum_of_stats
from .forwarder import POLL_S, Forwarder

if TYPE_CHECKING:
    from ..broker.stream import StreamQueue

logger = logging.getLogger("windback")
T = TypeVar("T")

#: A relay that said nothing for so long (seconds) is taken for dead: three commands to Redis may time out.
_CLAIM_S = 15.0
#: Between two looks at Redis as a whole, and what a command for that may take (seconds).
WATCH_S, _LOOK_S = 5.0, 2.0


class _ProjectRelay(Forwarder):
    """A relay of what stands in Redis for one project."""

    def __init__(self, engine: LocalEngine, queue: StreamQueue, poll_s: float, stopper: ThreadWaker) -> None:
        super().__init__(engine, queue, poll_s, stopper)
        self.queue = queue


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
        api_keys: Optional[Mapping[str, Union[str, Secret]]] = None,
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
        seconds after which batches of a relay that says nothing any more are taken over, by default 15 or
        twice shutdown_timeout; one that runs says every third of it that it does. poll_interval: seconds
        between two looks for new batches while there are none. The others are options of Windback.
        Raises ConfigurationError, also if Redis refuses; one that can't be reached is waited for.
        """
        address, given = hidden(broker), (hidden(api_key), project_slug, hidden_keys(api_keys))
        broker = api_key = api_keys = None
        keys = relay_keys(*given)
        if address is None:
            address = hidden(os.environ.get("WINDBACK_BROKER") or None)
        place = broker_address(address)
        # A running relay says every third of this time that it holds what it holds, but not during its end.
        default_s = max(_CLAIM_S, 2 * shutdown_timeout)
        claim_s = default_s if claim_after is None else seconds("claim_after", claim_after)
        poll_s = seconds("poll_interval", poll_interval)
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

            queue = StreamQueue(
                place.place, config.project_slug, connect, timeout, claim_s, 8 * concurrency, stopper.release
            )
            engine = LocalEngine(config, queue=queue, on_throttle=queue.share_pause)
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
        for each in self._projects.values():
            each.check_may_wait()  # here, for it can't be seen in a thread of its own
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
        with self._in_threads(lambda each: each.close()) as results:
            self.stop()
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
