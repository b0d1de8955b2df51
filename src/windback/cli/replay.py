"""`windback journal replay`: dead letters become events again.

An event is first written to a journal of this process, in the same root, and synced to disk. Only then is its
letter removed. So a kill in between sends it twice, and no kill loses it. The events that this process
leaves in its journal are delivered by the next process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Collection, Dict, List, NamedTuple, Optional

from windback.config import resolve_for_sender
from windback.delivery.engine import LocalEngine
from windback.delivery.refusals import log_refusal
from windback.journal import dead
from windback.journal.segment import sync_new
from windback.queue.intake import Refusals
from windback.queue.journal import JournalQueue, MemoryBounds

from .. import clock
from .common import stopped_by_signals
from .terminal import Progress

#: Between two checks of the progress (seconds).
_LOOK_S = 0.2
#: How long a request that is running at the end may take (seconds).
_CLOSE_S = 1.0


class Outcome(NamedTuple):
    """The result for dead letters. kept: those that were not selected, or could not be replayed.

    trouble: why some were not replayed.
    """

    replayed: int = 0
    delivered: int = 0
    rejected: int = 0
    left: int = 0
    kept: int = 0
    trouble: Optional[str] = None

    def to_json(self) -> Dict[str, object]:
        """Return the numbers."""
        fields = self._asdict()
        fields.pop("trouble")
        return fields


class Replay:
    """Sends dead letters as events of its own journal. Raises ConfigurationError."""

    def __init__(self, root: Path, base_url: Optional[str], *, compress: bool) -> None:
        self._root = root
        self._outcome = Outcome()
        self._is_stopping = False
        config = resolve_for_sender(
            base_url=base_url, journal=root, compress=compress, shutdown_timeout=_CLOSE_S
        )
        # It adopts nothing, so its counts are those of the replayed events.
        refusals = Refusals("drop_newest", log_refusal)
        self._queue = JournalQueue(root, 1 << 62, MemoryBounds(0, 0), refusals, fsync=True, adopts=False)
        self._queue.writer.prepare()
        self._engine = LocalEngine(config, queue=self._queue)

    def run(self, reasons: Collection[str], timeout: Optional[float]) -> Outcome:
        """Replay the letters with one of these reasons, or all if there are none. Raises OSError."""
        with stopped_by_signals(self._stop):
            try:
                for path in dead.files(self._root):
                    if not self._is_stopping:
                        self._take(path, reasons)
                self._deliver(timeout)
            finally:
                self._engine.close(None)
        stats = self._engine.stats()
        return self._outcome._replace(delivered=stats.delivered, rejected=stats.rejected, left=stats.pending)

    def _stop(self) -> None:
        self._is_stopping = True

    def _take(self, path: Path, reasons: Collection[str]) -> None:
        try:
            taking = dead.Taking(path)
        except FileNotFoundError:
            return
        except BlockingIOError:
            self._note(f"{path}: another replay is running on it", kept=dead.count(path)[0])
            return
        with taking:
            rest: List[bytes] = []
            count = kept = 0
            is_full = False
            for line, letter in taking.lines():
                if letter is None:
                    rest.append(line)
                elif (reasons and letter.reason not in reasons) or is_full:
                    rest.append(line)
                    kept += 1
                elif self._queue.intake.put(dead.event_of(line, letter)):
                    count += 1
                else:
                    is_full = True
                    rest.append(line)
                    kept += 1
            if count:
                sync_new(self._queue.writer.written_to())
                taking.keep(rest)
        self._outcome = self._outcome._replace(replayed=self._outcome.replayed + count)
        self._note("the journal has no room for more" if is_full else None, kept=kept)

    def _note(self, trouble: Optional[str], *, kept: int) -> None:
        self._outcome = self._outcome._replace(
            kept=self._outcome.kept + kept, trouble=trouble or self._outcome.trouble
        )

    def _deliver(self, timeout: Optional[float]) -> None:
        """Send all events. Without a timeout it gives up when a batch has used up its retries."""
        deadline_s = None if timeout is None else clock.now_s() + timeout
        with Progress("replayed", self._outcome.replayed, "letters") as progress:
            while not self._is_stopping:
                left_s = _LOOK_S if deadline_s is None else min(_LOOK_S, deadline_s - clock.now_s())
                is_done = left_s <= 0 or bool(self._engine.flush(left_s))
                stats, gate = self._engine.stats(), self._engine.scheduler.gate
                progress.show(stats.delivered + stats.rejected)
                if is_done or (deadline_s is None and stats.problem and not gate.is_retrying):
                    return
