"""What relays of journals and of a broker share: look for events, have the workers send them, stop in time.

It is the same worker as in an application, from another queue.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Optional, Protocol

from .. import clock
from ..delivery.engine import LocalEngine
from ..delivery.workers.threads import ThreadWaker
from ..queue.protocol import Drain
from ..stats import FlushResult, Stats

#: Between two looks for new events, while there are some (seconds), and while there are none.
BUSY_S, POLL_S = 0.002, 0.05


class PolledQueue(Protocol):
    """A queue of events that other processes wrote, and that have to be looked for."""

    @property
    def outbox(self) -> Drain:
        """The drain side."""
        ...

    def poll(self) -> Callable[[], int]:
        """Read what is new. What is returned is called under the lock, and returns how much there was."""
        ...

    @property
    def is_held_back(self) -> bool:
        """Whether there may be more to read as soon as some of what is queued is sent."""
        ...

    @property
    def paused_until_s(self) -> float:
        """Until when nothing may be sent, by what other relays of the project were told."""
        ...

    @property
    def trouble(self) -> Optional[str]:
        """Why nothing can be read right now."""
        ...


class Forwarder:
    """What all of them have in common: look for events, have the workers send them, stop in time."""

    def __init__(self, engine: LocalEngine, queue: PolledQueue, poll_s: float, stopper: ThreadWaker) -> None:
        self._poll_s = poll_s
        # No Event: its lock is held for moments of `wait`, and a handler that runs in one of them would wait
        # for this very thread.
        self.is_stopping = False
        #: When it last began to look for events.
        self.looked_s = clock.now_s()
        self._stopper = stopper
        self._engine = engine
        self._dispatcher = engine.scheduler
        self._polled = queue

    def poll(self) -> bool:
        """Look for events once, and have the workers send them; whether to look again at once."""
        queue = self._polled
        self.looked_s = clock.now_s()
        add = queue.poll()
        with self._dispatcher.lock:
            count = add()
            if queue.paused_until_s > clock.now_s():
                self._dispatcher.gate.hold(queue.paused_until_s)
            must_wake = self._dispatcher.must_wake
        if count and must_wake:
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
        self.check_may_wait()
        deadline_s = None if timeout is None else clock.now_s() + timeout
        while not self.is_stopping:
            # Before the look, which writes down what became of the last batches.
            was_settled = not self._dispatcher.stats().in_flight
            is_busy = self.poll()
            if on_progress is not None:
                on_progress()
            left_s = None if deadline_s is None else deadline_s - clock.now_s()
            trouble = self._polled.trouble
            is_idle = not is_busy and not self._polled.outbox.waiting().events
            if was_settled and is_idle and not trouble:
                return True
            if (left_s is not None and left_s <= 0) or (left_s is None and (trouble or self._gives_up())):
                return False
            if is_busy or trouble:
                self._stopper.sleep(BUSY_S if is_busy else self._poll_s)
            else:
                self._engine.flush(0.2 if left_s is None else min(0.2, left_s))
        return False

    def _gives_up(self) -> bool:
        return self._dispatcher.stats().problem is not None and not self._dispatcher.gate.is_retrying

    def stop(self) -> None:
        """Have `run` come to its end; from any thread, and from a signal handler."""
        self.is_stopping = True
        self._stopper.release()

    def stats(self) -> Stats:
        """Return what became of the events that were read so far; all of them are `adopted`."""
        stats = self._dispatcher.stats()
        return stats if stats.problem is not None else replace(stats, problem=self._polled.trouble)

    def close(self) -> FlushResult:
        """Deliver what was read within shutdown_timeout, leave the rest where it is, and stop."""
        self.check_may_wait()
        self.stop()
        return self._engine.close(None)

    def check_may_wait(self) -> None:
        """Raise WindbackError inside on_delivery, where a drain or a close would wait for itself."""
        self._engine.check_may_wait()
