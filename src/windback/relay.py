"""A relay: sends what other processes wrote into journals under one directory, and nothing else.

It is the same worker as in an application, from another queue. `windback relay --journal DIR` runs one as a
service of its own: for living processes made with worker=None, which then send nothing themselves, and
for what dead ones left.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Callable, Collection, Optional, Union

from .config import Config, hidden, resolve_for_sender
from .core import Core
from .journal.home import open_root
from .queue.memory import MemoryQueue
from .queue.relay import RelayQueue
from .stats import DeliveryReport, FlushResult, Stats
from .workers.threads import ThreadWaker

#: Between two looks for new events, while there are some (seconds), and while there are none.
BUSY_S, POLL_S = 0.002, 0.05


class JournalSender:
    """What a relay and the sender of worker="process" have in common. only: names of directories."""

    def __init__(
        self, config: Config, only: Optional[Collection[str]], poll_s: float, *, is_watched: bool = True
    ) -> None:
        assert config.journal is not None
        root: Path = config.journal
        open_root(root)

        def make_queue(wake: Callable[[], None], on_full: Callable[[str], None]) -> MemoryQueue:
            return RelayQueue(root, wake, on_full, only)

        self._poll_s = poll_s
        # No Event: its lock is held for moments of `wait`, and a handler that runs in one of them would wait
        # for this very thread.
        self._is_stopping = False
        self._stopper = ThreadWaker()
        self._core = Core(config, make_queue=make_queue, is_watched=is_watched)
        self._dispatcher = self._core.dispatcher
        queue = self._core.queue
        assert isinstance(queue, RelayQueue)
        self._queue = queue

    def poll(self) -> bool:
        """Look for events once, and have the workers send them; whether to look again at once."""
        take_in = self._queue.poll()
        with self._dispatcher.lock:
            count = take_in()
            wants_worker = self._queue.waiting().events > self._queue.wake_at or self._queue.has_returned
        if count and wants_worker:
            self._dispatcher.wake()
        return count > 0 or self._queue.is_held_back

    def run(self) -> FlushResult:
        """Send what there is and what comes, until `stop`; then what was read, within shutdown_timeout.

        What is left after that stays in the journals. Raises OSError if the directory can't be read.
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
            if not is_busy and not self._queue.waiting().events and not self._dispatcher.stats().in_flight:
                return True
            if (left_s is not None and left_s <= 0) or (left_s is None and self._dispatcher.stats().problem):
                return False
            if is_busy:
                self._stopper.sleep(BUSY_S)
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


class Relay(JournalSender):
    """See the module. Safe to use from several threads; `run` and `drain` are for one of them."""

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
