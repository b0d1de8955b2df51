"""Relays of a broker: they send the batches that applications with broker=URL stored in Redis.

`windback relay --broker URL` runs one as a service.
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
from ..broker.layout import BrokerError, Numbers, keys_of
from ..config import resolve_for_sender
from ..delivery.engine import LocalEngine
from ..delivery.workers.threads import ThreadWaker
from ..errors import ConfigurationError
from ..options import naming_options, seconds
from ..secrets import Secret, broker_address, hidden
from ..stats import DeliveryReport, FlushResult, Stats, sum_of_results, sum_of_stats
from .forwarder import POLL_S, Forwarder
from .keys import relay_keys

if TYPE_CHECKING:
    from ..broker.stream import StreamQueue

logger = logging.getLogger("windback")
T = TypeVar("T")

#: A relay that was silent for this long (seconds) has probably exited: three commands to Redis may time out.
_CLAIM_S = 15.0
#: Between two checks of Redis as a whole, and how long a command for that may take (seconds).
WATCH_S, _LOOK_S = 5.0, 2.0


class _ProjectRelay(Forwarder):
    """A relay of one project in Redis."""

    def __init__(self, engine: LocalEngine, queue: StreamQueue, poll_s: float, stopper: ThreadWaker) -> None:
        super().__init__(engine, queue, poll_s, stopper)
        self.engine, self.queue = engine, queue


class BrokerRelay:
    """A relay of Redis. Safe to use from several threads; `run` and `drain` are for one of them.

    Any number of relays may share one Redis. If one exits, another takes over its batches. Each project
    has its own queue, gate, workers and connections, so none waits for another.
    """

    @naming_options
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
        """Make a relay for applications with the option *broker*.

        Args:
            broker: The URL of the Redis. Environment: WINDBACK_BROKER.
            api_key: The secret key of `project_slug`; without a slug, of the applications that have none.
                Environment: WINDBACK_API_KEY.
            project_slug: The project of `api_key`. Environment: WINDBACK_PROJECT_SLUG.
            api_keys: The keys of several projects, by slug; "" stands for applications without one. Events of
                other projects stay in Redis, with one log line. Environment: WINDBACK_API_KEYS, such as
                `shop=sk_…,blog=sk_…`.
            base_url: The URL of the API. Environment: WINDBACK_BASE_URL.
            timeout: Seconds that one try may take.
            max_retries: Retries after a temporary failure.
            concurrency: Requests that may run at the same time, for each project.
            claim_after: Take over another relay's batches after it was silent for this many seconds. None:
                15, or twice `shutdown_timeout` if that is longer.
            compress: Compress batches with gzip until the API refuses it.
            on_delivery: A function that gets a DeliveryReport for each batch.
            shutdown_timeout: Seconds that the end may take.
            poll_interval: Seconds between two checks for new batches while there are none.

        Raises:
            ConfigurationError: An option is wrong, or Redis refuses. An unreachable Redis is waited for.
        """
        keys = relay_keys(api_key, project_slug, api_keys)
        of_environment = hidden(os.environ.get("WINDBACK_BROKER") or None)
        place = broker_address(of_environment if broker is None else broker)
        # A running relay announces its entries every third of this time, but not during its end.
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
            # The journal of the environment is not used: rejected events go to the broker.
            config = replace(config, journal=None, project_slug=project or None)
            stopper = ThreadWaker()

            queue = StreamQueue(
                place.place, config.project_slug, connect, timeout, claim_s, 8 * concurrency, stopper.release
            )
            engine = LocalEngine(config, queue=queue, on_throttle=queue.share_pause)
            return _ProjectRelay(engine, queue, poll_s, stopper)

        self._place = place.place
        #: For commands about Redis as a whole.
        self._connection = connect(min(timeout, _LOOK_S))
        self._projects = {project: make(project, key) for project, key in keys.items()}
        self.is_stopping = False
        self._stopper = ThreadWaker()
        self._strangers: Set[str] = set()
        self._is_policy_known = False
        self._prepare()

    def _prepare(self) -> None:
        """Raise ConfigurationError if Redis refuses."""
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
        """Warn about problems with Redis, and about events that this relay has no key for: once each."""
        self._is_policy_known = self._is_policy_known or self._connection.warn_of_eviction()
        from ..broker.inspect import projects_of

        with suppress(BrokerError):
            for project in projects_of(self._connection):
                is_known = project in self._projects or project in self._strangers
                if not is_known and self._connection.call("XLEN", keys_of(project).events):
                    self._strangers.add(project)
                    logger.warning(
                        "broker %s: events of %s are not sent, because there is no key for them (see "
                        "WINDBACK_API_KEYS)",
                        self._place,
                        f"the project {project!r}" if project else "applications without a project",
                    )

    def run(self) -> FlushResult:
        """Send present and new events until `stop`, then those read so far, within shutdown_timeout.

        The remaining events stay in Redis.

        Returns:
            What was delivered, rejected and dropped at the end.
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
        """Send the present events.

        Args:
            timeout: Seconds after which it gives up. None: when a batch has used up its retries.
            on_progress: A function that is called regularly, from several threads if there are several
                projects.

        Returns:
            Whether all of them were sent.

        Raises:
            ConfigurationError: Redis refuses.
            WindbackError: It was called from on_delivery, which would wait for itself.
        """
        with self._in_threads(lambda each: each.drain(timeout, on_progress)) as results:
            pass
        return all(results)

    @contextlib.contextmanager
    def _in_threads(self, call: Callable[[_ProjectRelay], T]) -> Generator[List[T], None, None]:
        """Call *call* for each project in a thread, during a block of code, whose end waits for all."""
        for each in self._projects.values():
            each.check_may_wait()  # here, because a thread of its own can't detect it
        results: List[T] = []
        errors: List[BaseException] = []

        def work(each: _ProjectRelay) -> None:
            try:
                results.append(call(each))
            except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
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
        """Check for events once, and let the workers send them.

        Returns:
            Whether to check again immediately.
        """
        return sum(each.poll() for each in self._projects.values()) > 0

    def stop(self) -> None:
        """Make `run` return. From any thread, and from a signal handler."""
        self.is_stopping = True
        self._stopper.release()
        for each in self._projects.values():
            each.stop()

    def close(self) -> FlushResult:
        """Deliver the events that were read, within shutdown_timeout, and stop. The others stay in Redis.

        Returns:
            What was delivered, rejected and dropped during the call.
        """
        with self._in_threads(lambda each: each.close()) as results:
            self.stop()
            self._connection.close()
        return sum_of_results(results)

    def left(self) -> int:
        """Return how many batches are in Redis, of any relay.

        Returns:
            The number of batches.

        Raises:
            ConfigurationError: Redis can't be asked.
        """
        try:
            return sum(each.queue.left() for each in self._projects.values())
        except BrokerError as error:
            raise ConfigurationError(f"broker {error.text}") from None

    def stats(self) -> Stats:
        """Return the counts of the events that were read so far; all of them are `adopted`.

        Returns:
            The counts of all projects together.
        """
        return sum_of_stats(self.by_project().values())

    def _engines(self) -> Dict[str, LocalEngine]:
        """Return what sends the events of each project."""
        return {project: each.engine for project, each in list(self._projects.items())}

    def by_project(self) -> Dict[str, Stats]:
        """Return the same counts for each project.

        Returns:
            The counts by slug; "" stands for applications without one.
        """
        return {project: each.stats() for project, each in self._projects.items()}

    @property
    def looked_s(self) -> float:
        """When each of them had last checked for batches: the earliest of these moments."""
        return min(each.looked_s for each in self._projects.values())

    def claimed(self) -> Dict[str, int]:
        """Return how many batches were taken over from exited relays.

        Returns:
            The numbers by slug.
        """
        return {project: each.queue.claimed for project, each in self._projects.items()}

    def standing(self) -> Optional[List[Numbers]]:
        """Return the contents of Redis.

        Returns:
            The numbers for each project; None if Redis does not answer.
        """
        from ..broker.inspect import numbers_of

        try:
            return [numbers_of(self._connection, project) for project in self._projects]
        except BrokerError:
            return None
