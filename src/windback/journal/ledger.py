"""The drain side's log beside the events: which records were leased under which key, and which are done.

It is a segment too, and its records are JSON. The first record of each is a snapshot, so only the newest
segment that has one is read. A segment is full after some thousand batches. The next one then begins with
the state that still matters.

A lease is written before its batch is sent, and a done after the batch was settled. So after a kill
the same events are sent under the same key, and no event is ever wrongly taken as done. If a
ledger is missing or damaged, the worst effect is that events are sent again, under new keys.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import orjson

from .. import log
from ..event.batch import is_key
from . import format as fmt
from . import segment
from .directory import JournalDirectory
from .segment import Segment

#: A record's offset in a directory: its segment's id, then the offset in the segment, which needs 20 bits.
Location = int
OFFSET_BITS = 20
#: (segment id, first offset, offset behind the last record, how many records)
Extent = Tuple[int, int, int, int]

#: The next ledger is made ahead when less than this part of the room is left.
_LOW_PART = 4


def extents_of(locations: Sequence[Location], lengths: Iterable[int]) -> List[Extent]:
    """Return the runs that records at *locations*, with payloads of *lengths*, form."""
    extents: List[Extent] = []
    segment_id = start = end = count = 0
    for location, length in zip(locations, lengths):
        at = location & (fmt.SEGMENT_BYTES - 1)
        if at != end or location >> OFFSET_BITS != segment_id:
            if count:
                extents.append((segment_id, start, end, count))
            segment_id, start, count = location >> OFFSET_BITS, at, 0
        end = at + fmt.padded(length)
        count += 1
    if count:
        extents.append((segment_id, start, end, count))
    return extents


class Ranges:
    """Parts of a segment that are done, merged where they touch: nearly always one."""

    __slots__ = ("parts",)

    def __init__(self, parts: Iterable[Sequence[int]] = ()) -> None:
        self.parts: List[Tuple[int, int]] = [(start, end) for start, end in parts]

    def add(self, start: int, end: int) -> None:
        """Mark everything from *start* up to *end* as done."""
        parts = self.parts
        if parts and parts[-1][1] == start:  # the next of a sequence
            parts[-1] = (parts[-1][0], end)
            return
        merged: List[Tuple[int, int]] = []
        for part in sorted((*parts, (start, end))):
            if merged and part[0] <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], part[1]))
            else:
                merged.append(part)
        self.parts = merged

    def __contains__(self, at: int) -> bool:
        return any(start <= at < end for start, end in self.parts)


class State(NamedTuple):
    """The state of a ledger: extents by key, in the order of their leases; done parts, by segment."""

    leases: Dict[str, List[Extent]]
    done: Dict[int, Ranges]

    def settle(self, key: str) -> None:
        """Record that the batch leased under *key* is settled."""
        for segment_id, start, end, _ in self.leases.pop(key, ()):
            self.done.setdefault(segment_id, Ranges()).add(start, end)

    def forget(self, segment_id: int) -> None:
        """Record that a segment was removed: all of it was done."""
        self.done.pop(segment_id, None)


class Ledger:
    """The log in a directory. Not thread-safe: the drain side calls it under its lock."""

    def __init__(self, home: JournalDirectory, state: State, current: Segment) -> None:
        self.state = state
        self._home = home
        self._current = current
        self._next: Optional[Segment] = None
        self._is_gone = False

    @classmethod
    def start(cls, home: JournalDirectory) -> Ledger:
        """Start a ledger in a directory that has none. Raises OSError."""
        ledger = cls(home, State({}, {}), home.new_segment(fmt.LEDGER, fmt.SMALL_BYTES))
        ledger._write_snapshot()
        return ledger

    @classmethod
    def resume(cls, home: JournalDirectory) -> Ledger:
        """Read the newest ledger of an exited process, continue behind it, and remove the others.

        Raises OSError, and NewerError for one that this version can't read.
        """
        ledger: Optional[Ledger] = None
        left = segment.ids(home.folder, fmt.LEDGER)
        damaged: List[int] = []
        for segment_id in reversed(left[:]):
            path = segment.path_of(home.folder, fmt.LEDGER, segment_id)
            data = segment.read_file(path)
            _refuse_newer(data)
            records = list(fmt.scan(data, fmt.seed(home.nonce, segment_id, fmt.LEDGER)))
            state = state_of(records)
            if state is not None:
                header = segment.new_header(fmt.LEDGER, segment_id, home.nonce)
                current = segment.reopen(path, header, records[-1].until, records[-1].sequence + 1)
                ledger = cls(home, state, current)
                left.remove(segment_id)
                break
            if any(data[fmt.HEADER_BYTES :]):  # and not only cut off before its snapshot was written
                damaged.append(segment_id)
        if ledger is None:
            ledger = cls.start(home)
        with contextlib.suppress(OSError):
            for segment_id in left:
                if segment_id in damaged:
                    where = home.set_aside(segment_id, fmt.LEDGER)
                    log.later(
                        logging.WARNING,
                        "journal %s: the ledger is damaged and was moved to %s; some events may be sent "
                        "twice",
                        home.name,
                        where,
                    )
                else:
                    segment.remove(segment.path_of(home.folder, fmt.LEDGER, segment_id))
        return ledger

    @property
    def current(self) -> Segment:
        """The segment that is written to."""
        return self._current

    @property
    def wants_room(self) -> bool:
        """Whether `make_room` should be called."""
        current = self._current
        return self._next is None and current.limit - current.end < current.limit // _LOW_PART

    @property
    def size(self) -> int:
        """Its size on disk in bytes."""
        return self._current.limit + (0 if self._next is None else self._next.limit)

    def make_room(self) -> None:
        """Make the next segment ahead. Raises OSError."""
        self._next = self._new_segment(len(self._snapshot()))

    def _new_segment(self, snapshot_bytes: int) -> Segment:
        """Make a segment in which there is room behind a snapshot."""
        return self._home.new_segment(fmt.LEDGER, _limit_for(snapshot_bytes))

    def lease(self, key: str, extents: List[Extent]) -> None:
        """Record that these events will be sent under *key*. Raises OSError if it can't."""
        self.state.leases[key] = extents
        self._write({"lease": key, "extents": extents})

    def split(self, key: str, halves: Sequence[Tuple[str, List[Extent]]]) -> None:
        """Record that the batch of *key* was split into its halves. Raises OSError."""
        self.state.leases.pop(key, None)
        self.state.leases.update(halves)
        self._write({"split": key, "halves": halves})

    def done(self, key: str) -> None:
        """Record that a batch is settled. Raises OSError."""
        self.state.settle(key)
        self._write({"done": key})

    def _write(self, entry: object) -> None:
        payload = orjson.dumps(entry)
        if self._is_gone or not self._current.has_room_for(len(payload)):
            self._turn_over()
        else:
            self._current.append(payload)

    def _turn_over(self) -> None:
        """Continue in the next segment. Its snapshot already contains the current entry."""
        snapshot = self._snapshot()
        old = self._current
        spare, self._next = self._next, None
        if spare is not None and (self._is_gone or spare.limit < _limit_for(len(snapshot))):
            with contextlib.suppress(OSError):
                spare.unlink()
            spare = None
        self._current = spare or self._new_segment(len(snapshot))
        self._is_gone = False
        self._current.append(snapshot)
        old.unlink()

    def renew(self) -> None:
        """Record that another process or a user removed the files; the next write starts a new ledger."""
        self._is_gone = True

    def _write_snapshot(self) -> None:
        self._current.append(self._snapshot())

    def _snapshot(self) -> bytes:
        return pack_snapshot(self.state)

    def close(self) -> None:
        """Close the files."""
        self._current.close()
        if self._next is not None:
            self._next.close()

    def remove(self) -> None:
        """Remove the files."""
        self._current.unlink()
        if self._next is not None:
            self._next.unlink()


def pack_snapshot(state: State) -> bytes:
    """Return the first record of a ledger. Raises OSError if it would be too long for a segment."""
    done = {str(segment_id): ranges.parts for segment_id, ranges in list(state.done.items())}
    snapshot = orjson.dumps({"leases": state.leases, "segments": done})
    if len(snapshot) > fmt.MAX_PAYLOAD_BYTES:  # happens only in a test
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return snapshot


def _limit_for(snapshot_bytes: int) -> int:
    """Return how much of a ledger's segment to allocate for a snapshot and the entries behind it."""
    return fmt.SMALL_BYTES if 2 * snapshot_bytes < fmt.SMALL_BYTES else fmt.SEGMENT_BYTES


def _refuse_newer(data: bytes) -> None:
    try:
        fmt.read_header(data)
    except fmt.NewerError:
        raise
    except fmt.ForeignError:
        pass  # the scan finds the readable records


def state_of(records: Sequence[fmt.Record]) -> Optional[State]:
    """Return the state that the records of one ledger add up to; None without the snapshot at its start."""
    if not records or records[0].at != fmt.HEADER_BYTES:
        return None
    try:
        return _state_of(records)
    except (AttributeError, KeyError, TypeError, ValueError):  # valid records, but not those of a ledger
        return None


def _state_of(records: Sequence[fmt.Record]) -> State:
    snapshot = orjson.loads(records[0].payload)
    leases = {_key(key): _read(extents) for key, extents in snapshot["leases"].items()}
    done = {
        int(segment_id): _ranges(int(segment_id), parts) for segment_id, parts in snapshot["segments"].items()
    }
    state = State(leases, done)
    for record in records[1:]:
        entry = orjson.loads(record.payload)
        if "lease" in entry:
            state.leases[_key(entry["lease"])] = _read(entry["extents"])
        elif "split" in entry:
            state.leases.pop(entry["split"], None)
            for key, extents in entry["halves"]:
                state.leases[_key(key)] = _read(extents)
        else:
            state.settle(entry["done"])
    return state


def _key(found: object) -> str:
    """Return a key as it is used. Raises ValueError for what no ledger of ours has."""
    if not isinstance(found, str) or not is_key(found):
        raise ValueError(found)
    return found


def _read(extents: Sequence[Sequence[int]]) -> List[Extent]:
    """Return extents as they are used. Raises TypeError, ValueError for what no ledger of ours has."""
    found = [(segment_id, start, end, count) for segment_id, start, end, count in extents]
    for segment_id, start, end, count in found:
        _check_range(segment_id, start, end)
        if type(count) is not int:
            raise TypeError
    return found


def _ranges(segment_id: int, parts: Sequence[Sequence[int]]) -> Ranges:
    for start, end in parts:
        _check_range(segment_id, start, end)
    return Ranges(parts)


def _check_range(segment_id: object, start: object, end: object) -> None:
    if type(segment_id) is not int or type(start) is not int or type(end) is not int:
        raise TypeError
    if segment_id < 0 or not fmt.HEADER_BYTES <= start <= end <= fmt.SEGMENT_BYTES:
        raise ValueError
