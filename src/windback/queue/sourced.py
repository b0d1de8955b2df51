"""What the queues over journals share: batches of events that outlive this process."""

from __future__ import annotations

import logging
from abc import abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Callable, Deque, List, Optional, Tuple, Union, cast

from ..config import BATCH_FRAME_BYTES
from ..event.batch import Batch, Source
from ..journal import dead
from ..journal.reader import Found, Reader
from ..journal.segment import Segment, sync_new
from ..stats import AtomicCounter, DeliveryReport
from .memory import MemoryQueue

logger = logging.getLogger("windback")

#: Events of one other process that are queued at once: a few batches for each of several workers.
READ_AHEAD = 1000
#: The bound of such a queue is that of its segments.
UNBOUNDED = 1 << 62

#: A place in this process's own journal, an event of another's, or one for which there was no place.
Item = Union[int, Found, bytes]


class SourcedQueue(MemoryQueue):
    """A queue whose events stand in journals under *root*, of this process and of others."""

    __slots__ = ("_in_memory", "_places", "_root", "adopted", "lost")

    def __init__(
        self, root: Path, overflow: str, wake: Callable[[], None], on_full: Callable[[str], None]
    ) -> None:
        self._root = root
        super().__init__(UNBOUNDED, UNBOUNDED, overflow, wake, on_full)

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, which owns nothing there."""
        super().reset()
        self._places = cast("Deque[Item]", self._items)
        self._in_memory = AtomicCounter()
        #: Events of other processes, and records of theirs that were damaged.
        self.adopted = self.lost = 0

    def sync(self) -> bool:
        """Have what was written here on the disk itself; whether there was anything new.

        For one thread, which takes no lock that a caller wants. Raises nothing.
        """
        try:
            return sync_new(self._written_to())
        except OSError as error:
            logger.warning(
                "journal %s: what was written can't be brought to the disk, a power cut may take it: %s",
                self._root,
                error.strerror or error,
            )
            return True

    @abstractmethod
    def _written_to(self) -> List[Segment]:
        """Return the segments that this process writes to."""

    # -- the drain side, under its lock --------------------------------------------------------

    def _pop(self, position: int, max_events: int, max_bytes: int) -> Optional[Batch]:
        """Pop what makes one batch, of one journal, and record there that it is about to be sent."""
        popleft = self._places.popleft
        records: List[bytes] = []
        spots: List[int] = []
        source: Optional[Source] = None
        room = max_bytes - BATCH_FRAME_BYTES + 1  # a comma less than there are events
        with suppress(IndexError):
            for _ in range(max_events):
                item = popleft()
                of, spot, record = self._resolve(item)
                room -= len(record) + 1
                if records and (room < 0 or of is not source):
                    self._places.appendleft(item)
                    break
                source = of
                records.append(record)
                spots.append(spot)
        if not records:
            return None
        batch = Batch(records, position, source=source, spots=spots if source is not None else ())
        if source is not None:
            source.lease(batch)
        else:
            self._in_memory.add(-batch.size_bytes)
        return batch

    def _resolve(self, item: Item) -> Tuple[Optional[Source], int, bytes]:
        """Return where an item stands, and the event itself."""
        if type(item) is bytes:
            return None, 0, item
        assert isinstance(item, Found)
        return item

    def _name(self) -> str:
        """Return the name for dead letters of events that stand nowhere."""
        return "memory"

    def reject(self, batch: Batch, report: DeliveryReport) -> bool:
        """Forget a batch that the API will never take, but keep its events as dead letters."""
        is_kept = False
        try:
            is_kept = dead.write(
                self._root,
                self._name() if batch.source is None else batch.source.name,
                batch.records,
                reason=report.reason,
                status=report.status,
                message=report.message,
                key=batch.key,
            )
        except OSError as error:
            logger.warning("journal %s: a rejected event can't be kept: %s", self._root, error)
        self.ack(batch)
        return is_kept

    def discard(self) -> List[Batch]:
        """Take out what is in memory alone; all else stays where it is, for who comes next."""
        kept = [item for item in self._places if type(item) is not bytes]
        lost = [item for item in self._places if type(item) is bytes]
        returned = [batch for batch in self._returned if batch.source is not None]
        batches = [batch for batch in self._returned if batch.source is None]
        self._places.clear()
        self._places.extend(kept)
        self._returned.clear()
        self._returned.extend(returned)
        if lost:
            batches.append(Batch(lost, self._taken))
            self._taken += len(lost)
        return batches

    def take_in_leased(self, leased: List[Batch]) -> None:
        """Queue batches that a reader found leased, to go out again as they are."""
        for batch in leased:
            batch.position = self._taken
            self._taken += len(batch)
            self.adopted += len(batch)
            self._move_bytes(batch.size_bytes, 1)
            assert isinstance(batch.source, Reader)
            batch.source.hand_out(batch.spots)
            self._returned.append(batch)

    def take_in(self, found: List[Found]) -> None:
        """Queue what a reader found."""
        for item in found:
            item.source.hand_out((item.spot,))
            self._move_bytes(len(item.payload), 1)
            self._places.append(item)
        self.adopted += len(found)
