"""The sender of worker="process": a separate process for the journal of one application.

It runs while the application runs, and no request thread competes for its interpreter lock. After the
application has ended, in whatever way, it delivers the remaining events and ends. `sender.protocol` has the
messages between the two. Where no process can be started, the same object runs in a thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Set

import orjson

from .. import clock
from ..config import Config, resolve_for_sender
from ..delivery.flushes import Flush
from ..journal.merging import left_behind
from ..relay.forwarder import BUSY_S, POLL_S
from ..relay.journal import JournalSender
from ..remote.counters import Block, Counters
from ..secrets import hidden
from ..stats import DeliveryReport
from .protocol import FLUSH, FLUSH_END, LOOK, SLEEP_ON

logger = logging.getLogger("windback")

#: After this long without work it asks to be woken, and sleeps.
_IDLE_S = 0.5
#: How often it checks, asleep, whether the application still runs: a forked child may keep the pipe open.
_LIVENESS_S = 30.0
#: Events that can't be delivered this long after the application has ended are left to the next process.
ORPHAN_S = 600.0


#: The flush that this process starts itself.
_OWN = b"own"


class _Nobody:
    """A flush whose end is polled, not awaited."""

    def release(self) -> None:
        """Do nothing: no thread sleeps."""


class Sender(JournalSender):
    """The sender's loop. commands, answers: file descriptors of pipes, which are closed at the end."""

    def __init__(self, config: Config, name: str, commands: int, answers: int, block: Block) -> None:
        assert config.journal is not None
        self._config = config
        self._name = name
        self._commands = commands
        self._answers = answers
        self._answering = threading.Lock()
        self._block = block
        self._before = block.read()
        self._flushes: Dict[bytes, Flush] = {}
        self._without_timeout: Set[bytes] = set()
        #: The directories found by searches that are not settled yet, by the number of the search.
        self._looks: Dict[int, List[str]] = {}
        self._last_look = block.read().looked
        self._rest = b""
        self._orphaned_s: Optional[float] = None
        self._parent = os.getppid()
        self._is_told_to_end = False
        self._thread: Optional[int] = None
        super().__init__(config, [name, *_dead(config.journal, name)], POLL_S, is_watched=False)

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is one of this sender's."""
        return threading.get_ident() == self._thread or self._engine.threads.is_current

    def run_until_done(self, deadline_s: Optional[float] = None) -> None:
        """Send until the application has ended and all its events are delivered, or until the deadline."""
        self._thread = threading.get_ident()
        wait_s, quiet_since_s = 0.0, clock.now_s()
        asked = False
        self._say({"ready": True})
        try:
            while deadline_s is None or clock.now_s() < deadline_s:
                lines = self._listen(wait_s)
                may_sleep = asked and SLEEP_ON in lines
                is_busy = self.poll() or bool(lines and not may_sleep)
                self._obey(lines)
                self._expedite()
                if not self._scheduler.workers and self._queue.outbox.waiting().events:
                    self._engine.flush(POLL_S)  # sends from this thread, where no other can be started
                self._publish()
                now_s = clock.now_s()
                if self._is_over(now_s):
                    return
                if is_busy or not self._is_idle():
                    quiet_since_s = now_s
                    asked = False
                    is_awaited = bool(self._flushes or self._orphaned_s) and not self._is_held_up
                    wait_s = BUSY_S if is_busy or is_awaited else POLL_S
                elif may_sleep:
                    wait_s = _LIVENESS_S
                elif not asked and now_s - quiet_since_s >= _IDLE_S:
                    self._say({"asleep": True})
                    asked = True
                    wait_s = POLL_S
                elif not asked:
                    wait_s = POLL_S
        finally:
            self._engine.close(None if deadline_s is None else max(0.0, deadline_s - clock.now_s()))
            self._publish()
            os.close(self._answers)
            os.close(self._commands)

    def _listen(self, wait_s: float) -> List[bytes]:
        if self._orphaned_s is not None:
            clock.sleep(wait_s)
            return []
        if not select.select([self._commands], [], [], wait_s)[0]:
            if os.getppid() != self._parent:
                self._orphaned_s = clock.now_s()
            return []
        data = os.read(self._commands, 1 << 16)
        if not data:
            self._orphaned_s = clock.now_s()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def _obey(self, lines: List[bytes]) -> None:
        """Execute the application's commands."""
        for line in lines:
            command, *arguments = line.split()
            if command == FLUSH:
                number, has_timeout = arguments
                self._flushes[number] = self._begin(has_timeout=has_timeout == b"1")
                if has_timeout != b"1":
                    self._without_timeout.add(number)
            elif command == FLUSH_END:
                self._flushes.pop(arguments[0], None)
                self._without_timeout.discard(arguments[0])
            elif command == LOOK:
                self._look(int(arguments[0]))

    def _expedite(self) -> None:
        """During a flush, send without waiting for full batches, and also the events of exited processes."""
        if self._orphaned_s is None and not self._looks:
            self._flushes.pop(_OWN, None)
        elif not self._flushes:
            self._flushes[_OWN] = self._begin(has_timeout=True)
        for number, flush in list(self._flushes.items()):
            if not flush.done:
                continue
            if number != _OWN and self._queue.outbox.unsettled_before(flush.target):
                self._say({"gave_up": number.decode()})
            self._flushes[number] = self._begin(has_timeout=number not in self._without_timeout)

    def _look(self, number: int) -> None:
        """Send the events of the processes that have exited by now."""
        assert self._config.journal is not None
        self._queue.add(_dead(self._config.journal, self._name))
        self._looks[number] = self._queue.others_than(self._name)

    def _looked(self) -> int:
        """Return the number of the last search whose events are all settled."""
        for number, found in sorted(self._looks.items()):
            if not all(map(self._queue.is_over, found)):
                break
            self._last_look = max(self._last_look, number)
            del self._looks[number]
        return self._last_look

    def _begin(self, *, has_timeout: bool) -> Flush:
        return self._scheduler.begin_flush(_Nobody(), has_timeout=has_timeout)

    def _is_idle(self) -> bool:
        with self._scheduler.lock:
            _, _, pending, _ = self._queue.outbox.counts()
        return not pending and not self._flushes

    def end(self, *_: object) -> None:
        """Leave the remaining events to the next process if the application has ended; a signal handler."""
        self._is_told_to_end = self._orphaned_s is not None

    def _is_over(self, now_s: float) -> bool:
        if self._orphaned_s is None:
            return False
        return self._is_told_to_end or self._queue.is_empty or now_s - self._orphaned_s > ORPHAN_S

    def _publish(self) -> None:
        reader = self._queue.readers.get(self._name)
        if reader is None:
            return
        stats = self._scheduler.stats()
        before = self._before
        with self._scheduler.lock:
            settled, seen = reader.settled(), reader.seen
            adopted, pending = self._queue.of_others(self._name)
        self._block.write(
            Counters(
                settled,
                seen,
                adopted=before.adopted - before.adopted_pending + adopted,
                adopted_pending=pending,
                in_flight=stats.in_flight,
                rejected_by_reason=dict(
                    Counter(before.rejected_by_reason) + Counter(stats.rejected_by_reason)
                ),
                requests=before.requests + stats.requests,
                retries=before.retries + stats.retries,
                worker_deaths=before.worker_deaths + stats.worker_deaths,
                problem=None if self._scheduler.gate.is_retrying else stats.problem,
                last_failure=stats.problem,
                looked=self._looked(),
            )
        )

    def _say(self, message: Mapping[str, object]) -> None:
        with self._answering, contextlib.suppress(OSError):  # the application may have ended
            data = memoryview(orjson.dumps(message) + b"\n")
            while data:
                data = data[os.write(self._answers, data) :]

    def abandon(self) -> None:
        """Close the parent's connections in a forked child."""
        self._engine.reset()

    def report(self, report: DeliveryReport) -> None:
        """Send a report to the application, which calls on_delivery."""
        self._say({"report": report.to_wire()})

    def log(self, level: int, text: str) -> None:
        """Send a log line to the application, which writes it."""
        self._say({"log": [level, text]})


def _dead(root: Path, own: str) -> List[str]:
    """Return the directories of exited processes that no process sends from."""
    with contextlib.suppress(OSError):
        return left_behind(root, own)
    return []


class _ToApplication(logging.Handler):
    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        self._sender.log(record.levelno, record.getMessage())


def main(options: Mapping[str, object], commands: int, answers: int, memory: int) -> None:
    """Run as a process. options: those of the application's link; the others are file descriptors."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the application decides when it ends
    given = dict(options)
    name = str(given.pop("name"))
    reports = bool(given.pop("reports"))
    given["api_key"] = hidden(given["api_key"])
    given["broker"] = given["broker"] and hidden(
        given["broker"]
    )  # False: no broker, whatever the environment contains
    sender: Optional[Sender] = None

    def on_delivery(report: DeliveryReport) -> None:
        assert sender is not None
        sender.report(report)

    config = resolve_for_sender(**given, on_delivery=on_delivery if reports else None)
    sender = Sender(config, name, commands, answers, Block(memory))
    signal.signal(signal.SIGTERM, sender.end)
    logger.addHandler(_ToApplication(sender))
    logger.setLevel(logging.INFO)
    logger.propagate = False
    sender.run_until_done()
