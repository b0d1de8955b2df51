"""Relays: they send what other processes wrote, into journals under one directory or into a broker.

It is the same worker as in an application, from another queue. `windback relay --journal DIR` runs one as a
service of its own: for living processes made with worker=None, which then send nothing themselves, and
for what dead ones left. `windback relay --broker URL` delivers what applications with broker=URL handed over.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Collection, Optional, Protocol, Union

from .config import Config, broker_address, hidden, positive, resolve_for_sender
from .core import Core
from .delivery import BACKOFF_CAP_S
from .errors import ConfigurationError
from .journal.home import open_root
from .queue.base import Waiting
from .queue.memory import MemoryQueue
from .queue.relay import RelayQueue
from .stats import DeliveryReport, FlushResult, Stats
from .workers.threads import ThreadWaker

if TYPE_CHECKING:
    from .broker.queue import StreamQueue

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

    def __init__(self, core: Core, queue: PolledQueue, poll_s: float, stopper: ThreadWaker) -> None:
        self._poll_s = poll_s
        # No Event: its lock is held for moments of `wait`, and a handler that runs in one of them would wait
        # for this very thread.
        self._is_stopping = False
        self._stopper = stopper
        self._core = core
        self._dispatcher = core.dispatcher
        self._polled = queue

    def poll(self) -> bool:
        """Look for events once, and have the workers send them; whether to look again at once."""
        queue = self._polled
        take_in = queue.poll()
        with self._dispatcher.lock:
            count = take_in()
            wants_worker = queue.waiting().events > queue.wake_at or queue.has_returned
        if count and wants_worker:
            self._dispatcher.wake()
        return count > 0 or queue.is_held_back

    def run(self) -> FlushResult:
        """Send what there is and what comes, until `stop`; then what was read, within shutdown_timeout.

        What is left after that stays where it is. Raises OSError if a journal's directory can't be read.
        """
        while not self._is_stopping:
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
        while not self._is_stopping:
            is_busy = self.poll()
            if on_progress is not None:
                on_progress()
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            trouble = self._polled.trouble
            is_idle = not is_busy and not self._polled.waiting().events
            if is_idle and not trouble and not self._dispatcher.stats().in_flight:
                return True
            if (left_s is not None and left_s <= 0) or (
                left_s is None and (trouble or self._dispatcher.stats().problem)
            ):
                return False
            if is_busy or trouble:
                self._stopper.sleep(BUSY_S if is_busy else self._poll_s)
            else:
                self._core.flush(0.2 if left_s is None else min(0.2, left_s))
        return False

    def stop(self) -> None:
        """Have `run` come to its end; from any thread, and from a signal handler."""
        self._is_stopping = True
        self._stopper.release()

    def stats(self) -> Stats:
        """Return what became of the events that were read so far; all of them are `adopted`."""
        return self._dispatcher.stats()

    def close(self) -> FlushResult:
        """Deliver what was read within shutdown_timeout, leave the rest where it is, and stop."""
        self.stop()
        return self._core.close(None)


class JournalSender(Forwarder):
    """What a relay of journals and the sender of worker="process" share. only: names of directories."""

    def __init__(
        self, config: Config, only: Optional[Collection[str]], poll_s: float, *, is_watched: bool = True
    ) -> None:
        assert config.journal is not None
        root: Path = config.journal
        open_root(root)

        def make_queue(wake: Callable[[], None], on_full: Callable[[str], None]) -> MemoryQueue:
            return RelayQueue(root, wake, on_full, only)

        core = Core(config, make_queue=make_queue, is_watched=is_watched)
        queue = core.queue
        assert isinstance(queue, RelayQueue)
        self._queue = queue
        super().__init__(core, queue, poll_s, ThreadWaker())


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
    ) -> None:
        """Make a relay for all journals under the directory *journal*, which is made if it isn't there.

        What is None is read from the environment, as by Windback, whose options these are. poll_interval:
        seconds between two looks for new events while there are none. Raises ConfigurationError.
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


class BrokerRelay(Forwarder):
    """A relay of what stands in Redis. Safe to use from several threads; `run`, `drain` are for one of them.

    Any number of them may work on one Redis; what one had read when it died, another takes over.
    """

    def __init__(
        self,
        broker: Optional[str] = None,
        api_key: Optional[str] = None,
        *,
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

        What is None is read from the environment: WINDBACK_BROKER, and what Windback reads. concurrency:
        requests at once. claim_after: seconds after which batches of a relay that says nothing any more are
        taken over; by default longer than a request can take with all its retries. poll_interval: seconds
        between two looks for new batches while there are none. The others are options of Windback.
        Raises ConfigurationError, also if Redis refuses; one that can't be reached is waited for.
        """
        address, key = hidden(broker), hidden(api_key)
        broker = api_key = None
        config = resolve_for_sender(
            api_key=key,
            base_url=base_url,
            journal=None,
            timeout=timeout,
            max_retries=max_retries,
            batch_size=100,
            max_batch_bytes=500_000,
            flush_interval=1.0,
            max_in_flight=concurrency,
            compress=compress,
            on_delivery=on_delivery,
            shutdown_timeout=shutdown_timeout,
        )
        # Nor a journal that the environment may name: what is rejected goes to the broker.
        config = replace(config, journal=None)
        if address is None:
            address = hidden(os.environ.get("WINDBACK_BROKER") or None)
        place = broker_address(address)
        # A batch is under way for as long, and the end may take its time too.
        default_s = max(timeout * (max_retries + 1) + BACKOFF_CAP_S * max_retries, 2 * shutdown_timeout, 10.0)
        claim_s = default_s if claim_after is None else positive("claim_after", claim_after)
        from .broker.connection import BrokerError, Connection
        from .broker.queue import StreamQueue
        from .delivery import Failure

        stopper = ThreadWaker()

        def connect(timeout_s: float) -> Connection:
            return Connection(place, timeout_s)

        def make_queue(wake: Callable[[], None], on_full: Callable[[str], None]) -> MemoryQueue:
            return StreamQueue(
                wake, on_full, place.place, connect, timeout, claim_s, 8 * concurrency, stopper.release
            )

        core = Core(config, make_queue=make_queue)
        queue = core.queue
        assert isinstance(queue, StreamQueue)
        self._queue: StreamQueue = queue
        super().__init__(core, queue, positive("poll_interval", poll_interval), stopper)
        try:
            queue.prepare()
        except BrokerError as error:
            if error.failure is Failure.REFUSED:
                core.close(0.0)
                raise ConfigurationError(f"broker {error.text}", code="BROKER_REFUSED") from None

    def left(self) -> int:
        """Return how many batches stand in Redis, with whomever. Raises ConfigurationError if it can't."""
        from .broker.connection import BrokerError

        try:
            return self._queue.left()
        except BrokerError as error:
            raise ConfigurationError(f"broker {error.text}") from None

    def stats(self) -> Stats:
        """Return what became of the events that were read so far; all of them are `adopted`."""
        stats = super().stats()
        return stats if stats.problem is not None else replace(stats, problem=self._queue.trouble)
