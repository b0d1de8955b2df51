"""Common to relays of journals and of a broker: check for events, let the workers send them, stop in time.

The workers are those of an application, with another queue.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Dict, Optional, Protocol

from .. import clock
from ..delivery.engine import LocalEngine
from ..delivery.workers.threads import ThreadWaker
from ..queue.outbox import Drain
from ..stats import FlushResult, Stats

#: Between two checks for new events (seconds): while there are some, and while there are none.
BUSY_S, POLL_S = 0.002, 0.05


class PolledQueue(Protocol):
    """A queue of events that other processes wrote, and that must be polled."""

    @property
    def outbox(self) -> Drain:
        """The drain side."""
        ...

    def poll(self) -> Callable[[], int]:
        """Read new events. The returned function is called under the lock, and returns their number."""
        ...

    @property
    def is_held_back(self) -> bool:
        """Whether more can be read as soon as some queued events are sent."""
        ...

    @property
    def paused_until_s(self) -> float:
        """Until when nothing may be sent, as other relays of the project were asked."""
        ...

    @property
    def trouble(self) -> Optional[str]:
        """Why nothing can be read now."""
        ...


class Forwarder:
    """Common to all relays: check for events, let the workers send them, stop in time."""

    def __init__(self, engine: LocalEngine, queue: PolledQueue, poll_s: float, stopper: ThreadWaker) -> None:
        self._poll_s = poll_s
        # Not an Event: its lock is taken during parts of `wait`, and a signal handler that runs then would
        # wait for its own thread.
        self.is_stopping = False
        #: When it last started to check for events.
        self.looked_s = clock.now_s()
        self._stopper = stopper
        self._engine = engine
        self._scheduler = engine.scheduler
        self._polled = queue

    def _engines(self) -> Dict[str, LocalEngine]:
        """Return what sends, by project; a journal does not contain the name of its project."""
        return {"": self._engine}

    def poll(self) -> bool:
        """Check for events once, and let the workers send them.

        Returns:
            Whether to check again immediately.
        """
        queue = self._polled
        self.looked_s = clock.now_s()
        add = queue.poll()
        with self._scheduler.lock:
            count = add()
            if queue.paused_until_s > clock.now_s():
                self._scheduler.gate.hold(queue.paused_until_s)
            must_wake = self._scheduler.pace.must_wake
        if count and must_wake:
            self._scheduler.wake()
        return count > 0 or (queue.is_held_back and not self._is_held_up)

    @property
    def _is_held_up(self) -> bool:
        """Whether nothing gets through at the moment, so that more need not be looked for immediately."""
        return self._scheduler.gate.problem(clock.now_s()) is not None

    def run(self) -> FlushResult:
        """Send present and new events until `stop`, then those read so far, within shutdown_timeout.

        The remaining events stay where they are.

        Returns:
            What was delivered, rejected and dropped at the end.

        Raises:
            OSError: The directory of the journals can't be read.
        """
        while not self.is_stopping:
            self._stopper.sleep(BUSY_S if self.poll() else self._poll_s)
        return self.close()

    def drain(
        self, timeout: Optional[float] = None, on_progress: Optional[Callable[[], object]] = None
    ) -> bool:
        """Send the present events, of exited and of running processes.

        Args:
            timeout: Seconds after which it gives up. None: when a batch has used up its retries.
            on_progress: A function that is called regularly.

        Returns:
            Whether all of them were sent.

        Raises:
            OSError: The directory of the journals can't be read.
            WindbackError: It was called from on_delivery, which would wait for itself.
        """
        self.check_may_wait()
        deadline_s = None if timeout is None else clock.now_s() + timeout
        while not self.is_stopping:
            # Before the check, which records the results of the last batches. Not `in_flight`: a batch that
            # waits now may be sent, and settled, while the check runs.
            was_settled = not self._scheduler.stats().pending
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
        return self._scheduler.stats().problem is not None and not self._scheduler.gate.is_retrying

    def stop(self) -> None:
        """Make `run` return. From any thread, and from a signal handler."""
        self.is_stopping = True
        self._stopper.release()

    def stats(self) -> Stats:
        """Return the counts of the events that were read so far; all of them are `adopted`.

        Returns:
            The counts.
        """
        stats = self._scheduler.stats()
        return stats if stats.problem is not None else replace(stats, problem=self._polled.trouble)

    def close(self) -> FlushResult:
        """Deliver the events that were read, within shutdown_timeout, and stop. Others stay where they are.

        Returns:
            What was delivered, rejected and dropped during the call.
        """
        self.check_may_wait()
        self.stop()
        return self._engine.close(None)

    def check_may_wait(self) -> None:
        """Raise WindbackError inside on_delivery, where a drain or a close would wait for itself."""
        self._engine.check_may_wait()
