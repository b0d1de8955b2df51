"""Reads the events of another process: first its leases, under the same keys, then the other events.

The other process has exited; or it runs and only writes, while this process sends (a relay, or the sender of
worker="process"). In a running process's unsealed segment, records are read up to the first invalid one. Once
the segment is sealed, or its writer has exited, an invalid record is damage, and the scan continues behind
it.

One segment is in memory at a time, whatever the total size. Nothing is copied into another journal: events
are leased, sent and recorded in place, so a crash in between duplicates nothing.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Set
from zlib import crc32

from .. import log
from ..event.batch import Batch
from ..steps import call, in_one_step
from . import format as fmt
from . import segment
from .directory import JournalDirectory, is_transient
from .ledger import OFFSET_BITS, Extent, Ledger, Location, Ranges, extents_of
from .segment import NotOursError, Segment

_NOTHING = Ranges()


class Found(NamedTuple):
    """An event of another process, and its offset."""

    source: Reader
    location: Location
    payload: bytes


class _Progress:
    """The progress in one segment."""

    __slots__ = ("at", "handed", "is_damaged", "is_left", "is_read", "sequence", "settled")

    def __init__(self, settled: int) -> None:
        #: The offset behind the last record that was read, and its number.
        self.at = fmt.HEADER_BYTES
        self.sequence = -1
        #: Records that were queued, and those that are settled, also before this process.
        self.handed = self.settled = settled
        #: Whether there will be no more records.
        self.is_read = False
        self.is_damaged = False
        #: Whether it can't be removed.
        self.is_left = False


class Reader:
    """Reads a directory whose drain lock this process has. Raises OSError, NewerError.

    It has two files open, the lock and the ledger, because one relay reads from hundreds of applications.
    """

    def __init__(self, home: JournalDirectory) -> None:
        self._home = home
        self._is_stopped = False
        #: Segments that are not files of ours.
        self._ignored: Set[int] = set()
        self._ledger = Ledger.resume(home)
        #: Parts that a scan must skip: done ones, and those that are sent again as leased.
        self._skip: Dict[int, Ranges] = {}
        self._progress: Dict[int, _Progress] = {}
        state = self._ledger.state
        for segment_id, ranges in state.done.items():
            self._skip[segment_id] = Ranges(ranges.parts)
        for extents in state.leases.values():
            for segment_id, start, end, _ in extents:
                self._skip.setdefault(segment_id, Ranges()).add(start, end)
        self._data: Dict[int, bytes] = {}
        self._seen = 0
        self._look()
        #: How many events were queued, and how many of them are not settled.
        self.queued = self.outstanding = 0
        #: Damaged events.
        self.lost = 0

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self._home.name

    @property
    def is_owned(self) -> bool:
        """Whether its writer has exited."""
        return self._home.is_owned

    @property
    def is_done(self) -> bool:
        """Whether all events are settled, and no more will come."""
        return self._home.is_owned and not self.has_more and not self.outstanding

    @property
    def has_more(self) -> bool:
        """Whether some segments are not read to their end."""
        return not self._is_stopped and any(not progress.is_read for progress in self._progress.values())

    def settled(self) -> Dict[int, int]:
        """Return how many records of each segment are settled; a missing segment is done."""
        return {segment_id: progress.settled for segment_id, progress in list(self._progress.items())}

    @property
    def seen(self) -> int:
        """The highest id of the segments that were found."""
        return self._seen

    @property
    def written_to(self) -> Segment:
        """Return the segment of the ledger that is being written, to be synced."""
        return self._ledger.current

    def _look(self) -> None:
        """Find new segments. Raises OSError, NewerError."""
        for segment_id in segment.ids(self._home.folder, fmt.EVENTS):
            if segment_id in self._progress or segment_id in self._ignored:
                continue
            try:
                head = segment.read_file(self._path(segment_id), fmt.HEADER_BYTES)
                fmt.read_header(head)
            except FileNotFoundError:  # it was removed by a user
                continue
            except NotOursError as error:
                self._ignored.add(segment_id)
                log.later(logging.WARNING, "journal %s: ignored: %s", self._path(segment_id), error.strerror)
                continue
            except fmt.NewerError:
                raise
            except fmt.ForeignError:
                pass  # the scan finds the readable records
            self._progress[segment_id] = _Progress(self._count_done(segment_id))
            self._seen = segment_id

    def _count_done(self, segment_id: int) -> int:
        """Return how many records of a segment are done according to the ledger of an earlier reader."""
        ranges = self._ledger.state.done.get(segment_id)
        if ranges is None:
            return 0
        data = self._read_file(segment_id)
        return sum(record.at in ranges for record in fmt.scan(data, self._seed(segment_id)))

    def leased(self) -> List[Batch]:
        """Return the batches that were leased, each under its key; call it once, first.

        Raises OSError if that may work later; nothing was changed then.
        """
        batches = []
        for key, extents in list(self._ledger.state.leases.items()):
            try:
                batch = self._load(key, extents)
            except OSError as error:
                if is_transient(error):
                    raise
                self.stop(error)
                break
            if batch is not None:
                batches.append(batch)
            else:
                with suppress(OSError):
                    self._ledger.done(key)
        return batches

    def _load(self, key: str, extents: Sequence[Extent]) -> Optional[Batch]:
        """Read a lease again; None if none of its events are left."""
        records: List[bytes] = []
        locations: List[Location] = []
        for segment_id, start, end, _ in extents:
            if segment_id not in self._progress:
                continue
            data = self._read_file(segment_id)
            for record in fmt.scan(data[:end], self._seed(segment_id), start):
                records.append(record.payload)
                locations.append(segment_id << OFFSET_BITS | record.at)
        if not records:
            return None
        batch = Batch(records, 0, key, source=self, locations=locations)
        if len(records) != sum(extent[3] for extent in extents):
            # Different bytes must not be sent under the same key. The new key is derived from the old one and
            # the remaining events, so it is the same after another kill.
            batch = Batch(records, 0, _rest_key(key, locations), source=self, locations=locations)
            with suppress(OSError):
                self._ledger.split(key, [(batch.key, extents_of(locations, map(len, records)))])
        return batch

    def read(self, most: int) -> List[Found]:
        """Return up to *most* more events that were never leased.

        Raises OSError if that may work later, NewerError.
        """
        if self._is_stopped:
            return []
        if not self._home.is_owned:
            self._home.own()  # if its writer has exited
            self._look()
        found: List[Found] = []
        for segment_id, progress in self._progress.items():
            if not progress.is_read:
                try:
                    self._read_on(segment_id, progress, found, most)
                except OSError as error:
                    if is_transient(error):
                        if not found:
                            raise
                        break  # no other process has these events; the next call finds the rest
                    self.stop(error)
                if len(found) >= most or self._is_stopped:
                    break
        return found

    def stop(self, error: Exception) -> None:
        """Read no more; the next process does. This process still settles the queued events."""
        if not self._is_stopped:
            self._is_stopped = True
            message = "journal %s: its remaining events are left alone: %s"
            log.later(logging.WARNING, message, self._home.folder, error)

    def _read_on(self, segment_id: int, progress: _Progress, found: List[Found], most: int) -> None:
        try:
            descriptor = segment.open_file(self._path(segment_id))
        except FileNotFoundError:  # it was removed by a user
            progress.is_read = True
            return
        base = progress.at
        try:
            # In this order: anything written after it was sealed does not count.
            sealed_at = _number(os.pread(descriptor, fmt.END.size, fmt.END_AT))
            is_whole = self._home.is_owned or sealed_at > 0
            if not is_whole and not any(os.pread(descriptor, 4, base)):
                return  # nothing new
            data = os.pread(descriptor, fmt.SEGMENT_BYTES - base, base)
        finally:
            os.close(descriptor)
        skip = self._skip.get(segment_id, _NOTHING)
        scan = fmt.scan if is_whole else fmt.prefix
        for record in scan(data, fmt.seed_at(self._seed(segment_id), base), 0):
            if record.sequence != progress.sequence + 1:
                self.lost += max(1, record.sequence - progress.sequence - 1)
                progress.is_damaged = True
            progress.sequence, progress.at = record.sequence, base + record.until
            at = base + record.at
            if not skip.parts or at not in skip:
                found.append(Found(self, segment_id << OFFSET_BITS | at, record.payload))
                if len(found) >= most:
                    return
        if is_whole:
            rest = data[progress.at - base :]
            # There is a length, which a record that was not accepted does not have; or it was sealed behind
            # this offset.
            if any(rest[:4]) or sealed_at > progress.at:
                progress.is_damaged = True
            progress.is_read = True

    def _read_file(self, segment_id: int) -> bytes:
        """Return a whole segment. The last few are kept, because leases share them."""
        data = self._data.get(segment_id)
        if data is None:
            data = segment.read_file(self._path(segment_id))
            while len(self._data) >= 2:
                self._data.pop(next(iter(self._data)))
            self._data[segment_id] = data
        return data

    def _path(self, segment_id: int) -> Path:
        return segment.path_of(self._home.folder, fmt.EVENTS, segment_id)

    def _seed(self, segment_id: int) -> int:
        # From the names, not from the header, which may be damaged.
        return fmt.seed(self._home.nonce, segment_id, fmt.EVENTS)

    # -- the drain side, under its lock --------------------------------------------------------

    def hand_out(self, locations: Sequence[Location]) -> None:
        """Record that events which `leased` or `read` returned are queued."""
        self.queued += len(locations)
        self.outstanding += len(locations)
        for location in locations:
            self._progress[location >> OFFSET_BITS].handed += 1

    def lease(self, batch: Batch) -> None:
        """Record that *batch* will be sent under its key."""
        with suppress(OSError):  # see JournalWriter
            self._ledger.lease(batch.key, extents_of(batch.locations, map(len, batch.records)))

    def split(self, batch: Batch, halves: Sequence[Batch]) -> None:
        """Record that *batch* was split into its halves."""
        parts = [(half.key, extents_of(half.locations, map(len, half.records))) for half in halves]
        with suppress(OSError):
            self._ledger.split(batch.key, parts)

    def settle(self, batch: Batch) -> None:
        """Record that *batch* is settled."""
        counts = Counter(location >> OFFSET_BITS for location in batch.locations)
        each = [self._progress[segment_id] for segment_id in counts]
        settled = [progress.settled + count for progress, count in zip(each, counts.values())]
        in_one_step(
            call(setattr, self, "outstanding", self.outstanding - len(batch)),
            map(setattr, each, repeat("settled"), settled),
            call(setattr, batch, "is_settled", True),
        )
        with suppress(OSError, MemoryError):  # a kill may then send the batch once more
            self._ledger.done(batch.key)

    # -- a worker, without any lock ------------------------------------------------------------

    def clear(self) -> bool:
        """Remove the finished segments, and the directory after the last. Returns whether it was removed."""
        for segment_id, progress in list(self._progress.items()):
            if progress.is_read and progress.handed == progress.settled and not progress.is_left:
                try:
                    self._clear(segment_id, progress)
                except OSError as error:
                    progress.is_left = True
                    log.later(
                        logging.WARNING, "journal %s: can't remove a segment: %s", self._home.folder, error
                    )
        if not self.is_done:
            return False
        if self._progress:
            self.close()
        else:
            with suppress(OSError):
                self._ledger.remove()
            self._home.remove()
        return True

    def _clear(self, segment_id: int, progress: _Progress) -> None:
        if progress.is_damaged:
            with suppress(FileNotFoundError):
                path = self._home.set_aside(segment_id)
                log.later(
                    logging.WARNING,
                    "journal %s: a damaged segment was moved to %s; its valid events are delivered",
                    self.name,
                    path,
                )
        else:
            segment.remove(self._path(segment_id))
        del self._progress[segment_id]
        self._ledger.state.forget(segment_id)

    def close(self) -> None:
        """Leave the rest to the next process."""
        self._ledger.close()
        self._home.close()


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _rest_key(key: str, locations: Sequence[Location]) -> str:
    """Return the key for the valid events of a batch: the same for the same events."""
    return f"{key}-{crc32(repr(list(locations)).encode()):08x}"
