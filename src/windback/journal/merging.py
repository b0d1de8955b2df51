"""Merges small directories of exited processes: each takes three pages, however little is in it.

A program that tracks one event and is killed, started again and again while the server is down, would fill
the journal with them. So their events are copied into one directory, `merged` here. What was leased stays
leased, under the same key, and what was done is left out.

A kill at any moment neither loses nor doubles an event:

1. The locks of the sources are taken. Their events are copied to `<merged>.new`, which no process reads.
2. Each source is renamed to `<source>.<merged>.old`, which no process reads either.
3. `<merged>.new` is renamed to `<merged>`. This one step decides.
4. The sources are removed.

`sweep` finishes what was cut off. If `<merged>.new` is still there, step 3 was not reached, and the sources
get their names back. If it is not, they are removed. Until then nobody delivers their events, so code
that looks for directories asks `names_after_sweep` or `left_behind`.
"""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Dict, Iterable, List, Match, NamedTuple, Optional, Set

from . import format as fmt
from . import segment
from .directory import (
    COUNTERS,
    DRAIN,
    NAME,
    OWNER,
    UNFINISHED,
    JournalDirectory,
    is_held,
    is_transient,
    names_in,
    remove_unfinished,
)
from .ledger import OFFSET_BITS, Extent, Location, Ranges, State, extents_of, pack_snapshot, state_of

#: How much may be merged into one directory. While it is written, both are there: each process keeps as much
#: free for its ledger. Directories with more than half of it are not small.
_MOST_BYTES = 2 * fmt.SMALL_BYTES
#: How many directories are merged together: each has two descriptors open.
_MOST_SOURCES = 32
_OLD_END = ".old"
_OLD = re.compile(rf"({NAME.pattern})\.({NAME.pattern})\{_OLD_END}")
#: An unfinished directory takes a moment to make. One that is this old (seconds), and not locked, belongs to
#: a process that has exited.
_UNFINISHED_S = 60.0


class _Source(NamedTuple):
    """A directory that is merged. leases: the events that were under way, by key; rest: the other ones."""

    home: JournalDirectory
    header: fmt.Header
    leases: Dict[str, List[bytes]]
    rest: List[bytes]

    @property
    def size(self) -> int:
        """The bytes that the events take."""
        leased = sum(_size(records) for records in self.leases.values())
        return leased + _size(self.rest)


def merge(root: Path, candidates: Iterable[str]) -> Set[str]:
    """Give back what directories of exited processes don't need, and merge the small ones.

    Returns the names of those that were looked at: not those of running processes, or that are drained.
    Raises OSError; what was merged until then stays so.
    """
    seen: Set[str] = set()
    group: List[_Source] = []
    try:
        for name in candidates:
            home = JournalDirectory.adopt(root, name)
            if home is None:
                continue
            seen.add(name)
            source = _source(home)
            if source is None:
                continue
            group.append(source)
            if len(group) == _MOST_SOURCES or sum(each.size for each in group) > _MOST_BYTES // 2:
                full, group = group, []
                _merge(root, full)
    finally:  # too many open files may be why it ends early
        _merge(root, group)
    return seen


def _source(home: JournalDirectory) -> Optional[_Source]:
    """Return what is in a directory; None, and it is closed, if it is not merged."""
    source = None
    try:
        if not home.trim():
            home.remove()
        else:
            source = _read(home)
    except (OSError, fmt.ForeignError) as error:
        if is_transient(error):
            raise
    finally:
        if source is None:
            home.close()
    return source


def _read(home: JournalDirectory) -> Optional[_Source]:
    """Return what is in a directory; None if it is large or damaged. Raises OSError, ForeignError."""
    names = segment.listed(home.folder)
    ids = segment.ids(home.folder, fmt.EVENTS)
    is_ours = all(name in (OWNER, DRAIN, COUNTERS) or segment.is_segment(name) for name in names)
    if not is_ours or any(_allocated(home, each) > _MOST_BYTES for each in ids):
        return None
    state = _state(home)
    if state is None:
        return None
    records: Dict[Location, bytes] = {}
    headers: List[fmt.Header] = []
    for segment_id in ids:
        data = segment.read_file(segment.path_of(home.folder, fmt.EVENTS, segment_id))
        headers.append(fmt.read_header(data))
        found = _whole(data, fmt.seed(home.nonce, segment_id, fmt.EVENTS))
        if found is None:
            return None
        done = state.done.get(segment_id, Ranges())
        records.update(
            (segment_id << OFFSET_BITS | each.at, each.payload) for each in found if each.at not in done
        )
    leases: Dict[str, List[bytes]] = {}
    for key, extents in state.leases.items():
        leased = [at for extent in extents for at in _within(extent, records)]
        if leased and len(leased) != sum(extent[3] for extent in extents):
            return None  # a reader knows what to do with the rest of it
        if leased:
            leases[key] = [records.pop(at) for at in leased]
    source = _Source(home, headers[0], leases, list(records.values()))
    return source if source.size <= _MOST_BYTES // 2 else None


def _allocated(home: JournalDirectory, segment_id: int) -> int:
    return segment.allocated(segment.path_of(home.folder, fmt.EVENTS, segment_id).lstat())


def _state(home: JournalDirectory) -> Optional[State]:
    """Return the state that the newest ledger has; None if it is damaged."""
    ids = segment.ids(home.folder, fmt.LEDGER)
    if not ids:
        return State({}, {})
    data = segment.read_file(segment.path_of(home.folder, fmt.LEDGER, ids[-1]))
    fmt.read_header(data)
    found = _whole(data, fmt.seed(home.nonce, ids[-1], fmt.LEDGER))
    return None if found is None else state_of(found)


def _whole(data: bytes, start: int) -> Optional[List[fmt.Record]]:
    """Return the records of a segment; None if there is any damage."""
    records = list(fmt.prefix(data, start))
    end = records[-1].until if records else fmt.HEADER_BYTES
    (sealed_at,) = fmt.END.unpack_from(data, fmt.END_AT)
    is_whole = len(data) == fmt.SEGMENT_BYTES and not any(data[end : end + 4]) and sealed_at <= end
    is_whole = is_whole and next(fmt.scan(data, start, end), None) is None
    return records if is_whole and all(each.sequence == at for at, each in enumerate(records)) else None


def _within(extent: Extent, records: Dict[Location, bytes]) -> List[Location]:
    """Return the places of the records in an extent, up to the first that is missing."""
    segment_id, at, end, _ = extent
    found: List[Location] = []
    while at < end and segment_id << OFFSET_BITS | at in records:
        found.append(segment_id << OFFSET_BITS | at)
        at += fmt.padded(len(records[found[-1]]))
    return found


def _merge(root: Path, sources: List[_Source]) -> None:
    """Merge directories, and close them. Raises OSError."""
    merged: Optional[JournalDirectory] = None
    try:
        if len(sources) > 1:
            # What is synced to disk must stay so.
            merged = JournalDirectory.begin(root, (OWNER, DRAIN), mapped=False, synced=True)
            _write(merged, sources)
            for source in sources:
                source.home.folder.rename(root / f"{source.home.name}.{merged.name}{_OLD_END}")
            merged.publish()
    finally:
        for source in sources:
            source.home.close()
        if merged is not None:
            merged.close()
            sweep(root, merged.name)


def _write(merged: JournalDirectory, sources: List[_Source]) -> None:
    """Write the events of all *sources*, the oldest first. Raises OSError."""
    sources = sorted(sources, key=lambda source: source.header.created_ns)
    oldest = sources[0].header._replace(segment_id=1, nonce=merged.nonce, version=fmt.VERSION)
    written = segment.create(
        merged.folder,
        oldest,
        mapped=False,
        synced=False,
        limit=_limit(sum(source.size for source in sources)),
    )
    try:
        leases: Dict[str, List[Extent]] = {}
        for source in sources:
            for key, records in source.leases.items():
                places = [written.segment_id << OFFSET_BITS | written.append(each) for each in records]
                leases[key] = extents_of(places, map(len, records))
            for record in source.rest:
                written.append(record)
        segment.sync_new([written])
    finally:
        written.close()
    if leases:
        _write_ledger(merged, oldest, State(leases, {}))
    segment.sync_folder(merged.folder)


def _write_ledger(merged: JournalDirectory, oldest: fmt.Header, state: State) -> None:
    snapshot = pack_snapshot(state)
    header = oldest._replace(kind=fmt.LEDGER)
    limit = _limit(_size([snapshot]))
    written = segment.create(merged.folder, header, mapped=False, synced=False, limit=limit)
    try:
        written.append(snapshot)
        segment.sync_new([written])
    finally:
        written.close()


def _limit(size: int) -> int:
    """Return how much of a segment to allocate for records of *size* bytes: whole pages."""
    return -(-(fmt.HEADER_BYTES + size) // segment.PAGE_BYTES) * segment.PAGE_BYTES


def _size(records: Iterable[bytes]) -> int:
    return sum(fmt.padded(len(record)) for record in records)


def names_after_sweep(root: Path) -> List[str]:
    """Finish merges that were cut off; return the names of the directories of all writers. Raises OSError."""
    found = segment.listed(root)
    if any(name.endswith((_OLD_END, UNFINISHED)) for name in found):
        with contextlib.suppress(OSError):  # what can't be finished now must not hold up the rest
            sweep(root)
        found = segment.listed(root)
    return names_in(found)


def left_behind(root: Path, own: str) -> List[str]:
    """Return the names of directories of exited processes that no process sends from. Raises OSError."""
    return [
        name
        for name in names_after_sweep(root)
        if name != own and not is_held(root / name / OWNER) and not is_held(root / name / DRAIN)
    ]


def sweep(root: Path, merged: Optional[str] = None) -> None:
    """Finish merges that were cut off, and remove unfinished directories of exited processes.

    merged: only what has to do with this one, which the calling process made. Raises OSError.
    """
    unfinished: List[str] = []
    for name in segment.listed(root):
        old = _OLD.fullmatch(name)
        stem = name[: -len(UNFINISHED)]
        if old is not None and merged in (None, old[2]):
            _finish(root, old, is_mine=merged is not None)
        elif name.endswith(UNFINISHED) and NAME.fullmatch(stem):
            is_over = stem == merged if merged is not None else _is_abandoned(root / name)
            unfinished += [stem] if is_over else []
    # Now no more sources get these names, and one that has it shows whether they were merged.
    names = segment.listed(root) if unfinished else []
    for stem in unfinished:
        if not any(name.endswith(f".{stem}{_OLD_END}") for name in names):
            remove_unfinished(root / (stem + UNFINISHED))


def _finish(root: Path, old: Match[str], *, is_mine: bool) -> None:
    """Remove a source that was merged, or give it its name back. Raises OSError."""
    unfinished = root / (old[2] + UNFINISHED)
    try:
        unfinished.lstat()  # other errors must not look as if it were gone
    except FileNotFoundError:
        remove_unfinished(root / old[0])
    else:
        if is_mine or not is_held(unfinished / OWNER):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                (root / old[0]).rename(root / old[1])


def _is_abandoned(folder: Path) -> bool:
    try:
        made_s = folder.lstat().st_mtime
    except FileNotFoundError:
        return False
    return abs(time.time() - made_s) > _UNFINISHED_S and not is_held(folder / OWNER)
