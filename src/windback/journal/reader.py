"""What a dead process left: its leases, under their keys, and then what it never sent.

One segment is in memory at a time, whatever the size of it all. Nothing is copied into another journal: what
was read is leased, sent and recorded right here, so a crash in the middle doubles nothing.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

from ..queue.base import Batch
from . import format as fmt
from . import segment
from .home import Home
from .ledger import OFFSET_BITS, Extent, Ledger, Ranges, Spot, extents_of

logger = logging.getLogger("windback")


class Found(NamedTuple):
    """An event of another process's, and where it stands."""

    source: Reader
    spot: Spot
    payload: bytes


class _Progress:
    """How far one segment is: records handed out, records off our hands, whether all were handed out."""

    __slots__ = ("handed", "is_damaged", "is_read", "settled")

    def __init__(self) -> None:
        self.handed = self.settled = 0
        self.is_read = self.is_damaged = False


class Reader:
    """See the module. `home` is a directory whose locks are held. Raises OSError, NewerError."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._ids = segment.ids(home.folder, fmt.EVENTS)
        for segment_id in self._ids:
            self._refuse_newer(segment_id)
        self._ledger = Ledger.resume(home)
        state = self._ledger.state
        #: What a scan has to leave out: what is done, and what goes out again as it was leased.
        self._skip: Dict[int, Ranges] = {}
        for segment_id in self._ids:
            self._skip[segment_id] = Ranges(state.done[segment_id].parts if segment_id in state.done else ())
        for extents in state.leases.values():
            for segment_id, start, end, _ in extents:
                self._skip.setdefault(segment_id, Ranges()).add(start, end)
        self._progress = {segment_id: _Progress() for segment_id in self._ids}
        self._data: Dict[int, bytes] = {}
        self._records = self._scan()
        self._is_exhausted = False
        #: How many events are handed out and not settled.
        self.outstanding = 0
        self.lost = 0

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self._home.name

    @property
    def is_done(self) -> bool:
        """Whether all of it is off our hands."""
        return self._is_exhausted and not self.outstanding

    @property
    def has_more(self) -> bool:
        """Whether `read` may find more."""
        return not self._is_exhausted

    def _refuse_newer(self, segment_id: int) -> None:
        with segment.path_of(self._home.folder, fmt.EVENTS, segment_id).open("rb") as file:
            head = file.read(fmt.HEADER_BYTES)
        try:
            fmt.read_header(head)
        except fmt.NewerError:
            raise
        except fmt.ForeignError:
            pass  # the scan finds what is left

    def leased(self) -> List[Batch]:
        """Return the batches that were under way, each under its key; call it once, first."""
        batches = []
        for key, extents in list(self._ledger.state.leases.items()):
            batch = self._load(key, extents)
            if batch is None:
                self._ledger.done(key)
                continue
            batches.append(batch)
        return batches

    def _load(self, key: str, extents: Sequence[Extent]) -> Optional[Batch]:
        """Read a lease again; None if nothing is left of it."""
        records: List[bytes] = []
        spots: List[Spot] = []
        for segment_id, start, end, _ in extents:
            if segment_id not in self._progress:
                continue
            data = self._read_file(segment_id)
            for record in fmt.scan(data[:end], self._seed(segment_id), start):
                records.append(record.payload)
                spots.append(segment_id << OFFSET_BITS | record.at)
        if not records:
            return None
        batch = Batch(records, 0, key, source=self, spots=spots)
        if len(records) != sum(extent[3] for extent in extents):
            # Other bytes than those that went out before must not go under the same key.
            batch = Batch(records, 0, source=self, spots=spots)
            self._ledger.done(key)
            self._ledger.lease(batch.key, extents_of(spots, map(len, records)))
        return batch

    def read(self, most: int) -> List[Found]:
        """Return up to *most* more events that nobody leased."""
        found: List[Found] = []
        for item in self._records:
            found.append(item)
            if len(found) == most:
                break
        else:
            self._is_exhausted = True
        return found

    def _scan(self) -> Iterator[Found]:
        for segment_id in self._ids:
            progress, skip = self._progress[segment_id], self._skip[segment_id]
            data = self._read_file(segment_id)
            sequence, until = -1, fmt.HEADER_BYTES
            for record in fmt.scan(data, self._seed(segment_id)):
                if record.sequence != sequence + 1:
                    self.lost += max(1, record.sequence - sequence - 1)
                    progress.is_damaged = True
                sequence, until = record.sequence, record.until
                if record.at not in skip:
                    yield Found(self, segment_id << OFFSET_BITS | record.at, record.payload)
            if any(data[until : until + 4]) or len(data) < fmt.SEGMENT_BYTES:
                # A length was written there, or the end is missing; a record that was not accepted has none.
                progress.is_damaged = True
            progress.is_read = True
            self._data.pop(segment_id, None)

    def _read_file(self, segment_id: int) -> bytes:
        """Return a whole segment; the last few are kept, for leases share them."""
        data = self._data.get(segment_id)
        if data is None:
            try:
                with segment.path_of(self._home.folder, fmt.EVENTS, segment_id).open("rb") as file:
                    data = file.read(fmt.SEGMENT_BYTES)
            except OSError as error:
                logger.warning("journal %s: a segment can't be read: %s", self._home.folder, error)
                self._progress[segment_id].is_damaged = True
                data = b""
            while len(self._data) >= 2:
                self._data.pop(next(iter(self._data)))
            self._data[segment_id] = data
        return data

    def _seed(self, segment_id: int) -> int:
        # From the names, not from the header, which may be damaged.
        return fmt.seed(self._home.nonce, segment_id, fmt.EVENTS)

    # -- the drain side, under its lock --------------------------------------------------------

    def hand_out(self, spots: Sequence[Spot]) -> None:
        """Take in that events which `leased` or `read` returned are queued."""
        self.outstanding += len(spots)
        for spot in spots:
            self._progress[spot >> OFFSET_BITS].handed += 1

    def lease(self, batch: Batch) -> None:
        """Record that *batch* is about to be sent under its key."""
        with suppress(OSError):  # see OwnJournal
            self._ledger.lease(batch.key, extents_of(batch.spots, map(len, batch.records)))

    def split(self, batch: Batch, halves: Sequence[Batch]) -> None:
        """Record that *batch* goes on as its halves."""
        parts = [(half.key, extents_of(half.spots, map(len, half.records))) for half in halves]
        with suppress(OSError):
            self._ledger.split(batch.key, parts)

    def settle(self, batch: Batch) -> None:
        """Record that *batch* is off our hands."""
        with suppress(OSError):
            self._ledger.done(batch.key)
        self.outstanding -= len(batch)
        for spot in batch.spots:
            self._progress[spot >> OFFSET_BITS].settled += 1

    # -- a worker, without any lock ------------------------------------------------------------

    def clear(self) -> None:
        """Remove the segments that are done with, and the directory once all are."""
        for segment_id in self._ids:
            progress = self._progress[segment_id]
            if progress.is_read and progress.handed == progress.settled:
                self._clear(segment_id, progress)
        self._ids = [segment_id for segment_id in self._ids if segment_id in self._progress]
        if self.is_done:
            self._ledger.remove()
            self._home.remove()

    def _clear(self, segment_id: int, progress: _Progress) -> None:
        if progress.is_damaged:
            path = self._home.set_aside(segment_id)
            logger.warning("journal %s: damaged, now %s; what is whole in it is delivered", self.name, path)
        else:
            segment.remove(segment.path_of(self._home.folder, fmt.EVENTS, segment_id))
        del self._progress[segment_id]
        self._ledger.state.forget(segment_id)

    def close(self) -> None:
        """Leave the rest to whoever comes next."""
        self._ledger.close()
        self._home.close()
