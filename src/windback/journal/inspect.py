"""Shows the contents of journals to people. It only reads, and blocks no process.

For running processes it shows one moment, not exactly: the ledger is read first, then one segment after the
other. So an event that is delivered during the scan may still count as waiting. Files that are removed
during the scan count as done.

A process is running if its lock is taken. A shared lock is tried, without waiting, and closed immediately. It
can't disturb a process that makes a directory, which is locked under another name. A process that tries, in
these microseconds, to adopt the directory of an exited process sees it as taken, and leaves it to the next.
"""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from . import dead, segment
from . import format as fmt
from .directory import BAD, COUNTERS, DEAD, DRAIN, OWNER, is_held, names
from .ledger import State, state_of

#: How often the ledger is searched again if it was replaced while it was read.
_TRIES = 5

WAITING, LEASED, DONE = "waiting", "leased", "done"


class Problem(NamedTuple):
    """A fact to report about a file. lost: records that are known to be missing."""

    path: Path
    text: str
    lost: int = 0


class Scanned(NamedTuple):
    """The contents of one segment of events."""

    path: Path
    size: int
    header: Optional[fmt.Header]
    waiting: int
    leased: int
    done: int
    damage: Optional[Problem]


class Record(NamedTuple):
    """An event in a journal: its offset and its state (WAITING, LEASED or DONE)."""

    directory: str
    segment_id: int
    at: int
    state: str
    payload: bytes


class JournalReport(NamedTuple):
    """A directory of a process. newer: its version, if this version can't read it.

    is_alive: whether its process is running; has_sender: whether a process sends its events.
    """

    name: str
    folder: Path
    is_alive: bool
    has_sender: bool
    ledger: State
    newer: Optional[Problem]


class Directory(NamedTuple):
    """The sums of a directory. pid and created are those of its oldest segment of events."""

    name: str
    is_alive: bool
    has_sender: bool
    pid: Optional[int] = None
    created: Optional[str] = None
    segments: int = 0
    size: int = 0
    waiting: int = 0
    leased: int = 0
    done: int = 0
    newer: Optional[str] = None

    @property
    def undelivered(self) -> int:
        """How many events are not settled."""
        return self.waiting + self.leased


class Findings(NamedTuple):
    """The findings of `check`."""

    segments: int
    ledgers: int
    events: int
    damage: List[Problem]
    newer: List[Problem]
    foreign: List[Path]
    unfinished: List[Path]
    set_aside: List[Path]


def problem_of(root: Path) -> Optional[str]:
    """Return why *root* can't be a journal; None if it can. An empty directory can: all events were sent."""
    try:
        found = segment.listed(root) if root.is_dir() else None
    except OSError as error:
        return f"can't read {str(root)!r}: {error.strerror}"
    if found is None:
        return f"{str(root)!r} {'is not a directory' if root.exists() else 'does not exist'}"
    if found and len(_foreign(root)) == len(found):
        return f"{str(root)!r} does not contain a journal"
    return None


def homes(root: Path) -> Iterator[JournalReport]:
    """Yield the description of each directory, before its segments are read."""
    for name in names(root):
        if (root / name).is_dir():
            yield _home(root / name)


def _home(folder: Path) -> JournalReport:
    is_alive, has_sender = is_held(folder / OWNER), is_held(folder / DRAIN)
    newer = _newer(folder)
    ledger = State({}, {}) if newer is not None else _read_ledger(folder, int(folder.name, 16))
    return JournalReport(folder.name, folder, is_alive, has_sender, ledger, newer)


def count_segments(root: Path) -> int:
    """Return how many segments of events there are under *root*."""
    return sum(len(segment.ids(root / name, fmt.EVENTS)) for name in names(root))


def directory(home: JournalReport) -> Directory:
    """Count the events in a directory. Raises OSError."""
    total = Directory(home.name, home.is_alive, home.has_sender)
    if home.newer is not None:
        return total._replace(newer=home.newer.text)
    for scanned in segments(home):
        header = scanned.header
        if header is not None and total.pid is None:
            total = total._replace(pid=header.pid, created=_time(header.created_ns))
        total = total._replace(
            segments=total.segments + 1,
            size=total.size + scanned.size,
            waiting=total.waiting + scanned.waiting,
            leased=total.leased + scanned.leased,
            done=total.done + scanned.done,
        )
    return total


def without_sender(root: Path) -> Iterator[Directory]:
    """Yield the directories that no process sends from. Raises OSError."""
    return (directory(home) for home in homes(root) if not home.has_sender)


def segments(home: JournalReport) -> Iterator[Scanned]:
    """Scan the segments of events of a directory, oldest first, with one at a time in memory."""
    for segment_id in segment.ids(home.folder, fmt.EVENTS):
        path = segment.path_of(home.folder, fmt.EVENTS, segment_id)
        read = _read(path, is_alive=home.is_alive)
        if read is not None:
            yield _scan(home, path, segment_id, read)


def events(root: Path) -> Iterator[Record]:
    """Yield the events that are not settled, directory by directory, in order."""
    for home in homes(root):
        if home.newer is None:
            yield from _events_of(home)


def events_in(folder: Path) -> Iterator[Record]:
    """Yield the events of one directory, of this version, that are not settled, in order."""
    return _events_of(_home(folder))


def _events_of(home: JournalReport) -> Iterator[Record]:
    for segment_id in segment.ids(home.folder, fmt.EVENTS):
        read = _read(segment.path_of(home.folder, fmt.EVENTS, segment_id), is_alive=home.is_alive)
        if read is None:
            continue
        marks = _Marks(home.ledger, segment_id)
        for record in read.records(int(home.name, 16), segment_id, fmt.EVENTS):
            state = marks.state_at(record.at)
            if state != DONE:
                yield Record(home.name, segment_id, record.at, state, record.payload)


def dead_letters(root: Path) -> int:
    """Return how many dead letters there are. Raises OSError."""
    return sum(dead.count(path)[0] for path in dead.files(root))


def set_aside(root: Path) -> List[Path]:
    """Return the damaged segments that were moved aside."""
    return sorted(root / BAD / name for name in segment.listed(root / BAD))


def check(root: Path) -> Iterator[Findings]:
    """Scan everything. Yields the findings so far after each segment, and at the end. Raises OSError."""
    found = Findings(0, 0, 0, [], [], _foreign(root), [], set_aside(root))
    found.unfinished.extend(root / name for name in segment.listed(root) if _is_unfinished_home(name))
    for home in homes(root):
        _sort_names(home.folder, found)
        if home.newer is not None:
            found.newer.append(home.newer)
            continue
        for scanned in segments(home):
            if scanned.damage is not None:
                found.damage.append(scanned.damage)
            found = found._replace(
                segments=found.segments + 1,
                events=found.events + scanned.waiting + scanned.leased + scanned.done,
            )
            yield found
        for damage in _check_ledgers(home):
            found = found._replace(ledgers=found.ledgers + 1)
            if damage is not None:
                found.damage.append(damage)
    for path in dead.files(root):
        broken = dead.count(path)[1]
        if broken:
            found.damage.append(Problem(path, "lines that are not dead letters", broken))
    yield found


class _Marks:
    """The done and the leased parts of a segment, for queries with ascending offsets."""

    def __init__(self, ledger: State, segment_id: int) -> None:
        done = ledger.done.get(segment_id)
        parts: List[Tuple[int, int, str]] = [] if done is None else [(*part, DONE) for part in done.parts]
        parts += [
            (start, end, LEASED)
            for extents in ledger.leases.values()
            for id_, start, end, _ in extents
            if id_ == segment_id
        ]
        self._parts = sorted(parts)
        self._next = 0

    def state_at(self, at: int) -> str:
        """Return the state of the event at an offset."""
        parts = self._parts
        while self._next < len(parts) and parts[self._next][1] <= at:
            self._next += 1
        if self._next < len(parts) and parts[self._next][0] <= at:
            return parts[self._next][2]
        return WAITING


class _Read(NamedTuple):
    """The bytes of a segment. is_whole: nothing more will be written to it."""

    data: bytes
    is_whole: bool

    def records(self, nonce: int, segment_id: int, kind: int) -> Iterator[fmt.Record]:
        """Yield its valid records; if it may grow, up to the first invalid one."""
        start = fmt.seed(nonce, segment_id, kind)
        return fmt.scan(self.data, start) if self.is_whole else fmt.prefix(self.data, start)


def _read(path: Path, *, is_alive: bool) -> Optional[_Read]:
    """Return a segment; None if it is gone. Raises OSError."""
    try:
        descriptor = segment.open_file(path, of_any_user=True)
    except (FileNotFoundError, segment.NotOursError):
        return None
    try:
        # In this order: anything written after it was sealed does not count.
        is_whole = not is_alive or any(os.pread(descriptor, fmt.END.size, fmt.END_AT))
        return _Read(os.pread(descriptor, fmt.SEGMENT_BYTES, 0), is_whole)
    finally:
        os.close(descriptor)


def _scan(home: JournalReport, path: Path, segment_id: int, read: _Read) -> Scanned:
    nonce = int(home.name, 16)
    counts = {WAITING: 0, LEASED: 0, DONE: 0}
    marks = _Marks(home.ledger, segment_id)
    records = list(read.records(nonce, segment_id, fmt.EVENTS))
    for record in records:
        counts[marks.state_at(record.at)] += 1
    header, wrong = _header(read.data, fmt.EVENTS, segment_id, nonce)
    damage = _damage(path, read, _Gaps(records), wrong)
    return Scanned(path, len(read.data), header, counts[WAITING], counts[LEASED], counts[DONE], damage)


class _Gaps:
    """The gaps between the records of a segment."""

    def __init__(self, records: Iterable[fmt.Record]) -> None:
        self.lost, self.until = 0, fmt.HEADER_BYTES
        before = -1
        for record in records:
            if record.sequence != before + 1:
                self.lost += max(1, record.sequence - before - 1)
            before, self.until = record.sequence, record.until


def _damage(path: Path, read: _Read, gaps: _Gaps, header: Optional[str]) -> Optional[Problem]:
    texts = [] if header is None else [header]
    if len(read.data) < fmt.SEGMENT_BYTES:
        texts.append(f"cut short: {len(read.data):,} of {fmt.SEGMENT_BYTES:,} bytes")
    if gaps.lost:
        texts.append("damaged between records")
    # A length was written there, which a record that was not accepted does not have.
    if read.is_whole and any(read.data[gaps.until : gaps.until + 4]):
        texts.append("damaged behind the last record")
    lost = gaps.lost
    (end,) = fmt.END.unpack_from(read.data.ljust(fmt.HEADER_BYTES, b"\0"), fmt.END_AT)
    if end > gaps.until:
        lost += 1
        texts.append(f"sealed at {end}, but the last record ends at {gaps.until}")
    return Problem(path, "; ".join(texts), lost) if texts else None


def _header(
    data: bytes, kind: int, segment_id: int, nonce: int
) -> Tuple[Optional[fmt.Header], Optional[str]]:
    """Return the header, and what is wrong with it."""
    try:
        header = fmt.read_header(data)
    except fmt.ForeignError as error:
        return None, str(error)
    if (header.kind, header.segment_id, header.nonce) != (kind, segment_id, nonce):
        return header, "the header of this segment belongs to another one"
    return header, None


def _newer(folder: Path) -> Optional[Problem]:
    """Return the first segment of a later version; the whole directory is then left alone."""
    for kind in (fmt.EVENTS, fmt.LEDGER):
        for segment_id in segment.ids(folder, kind):
            path = segment.path_of(folder, kind, segment_id)
            try:
                fmt.read_header(segment.read_file(path, fmt.HEADER_BYTES, of_any_user=True))
            except fmt.NewerError as error:
                return Problem(path, str(error))
            except (fmt.ForeignError, FileNotFoundError, segment.NotOursError):
                continue
    return None


def _read_ledger(folder: Path, nonce: int) -> State:
    """Return the state in the newest ledger with a snapshot; without one, nothing is leased or done."""
    for _ in range(_TRIES):
        is_gone = False
        for segment_id in reversed(segment.ids(folder, fmt.LEDGER)):
            read = _read(segment.path_of(folder, fmt.LEDGER, segment_id), is_alive=False)
            if read is None:
                is_gone = True
                continue
            state = state_of(list(read.records(nonce, segment_id, fmt.LEDGER)))
            if state is not None:
                return state
        if not is_gone:
            break
    return State({}, {})


def _check_ledgers(home: JournalReport) -> Iterator[Optional[Problem]]:
    """Yield the problem of each ledger of a directory, or None."""
    nonce = int(home.name, 16)
    for segment_id in segment.ids(home.folder, fmt.LEDGER):
        path = segment.path_of(home.folder, fmt.LEDGER, segment_id)
        read = _read(path, is_alive=home.has_sender)  # the sending process writes it
        if read is None:
            continue
        gaps = _Gaps(read.records(nonce, segment_id, fmt.LEDGER))
        _, wrong = _header(read.data, fmt.LEDGER, segment_id, nonce)
        yield _damage(path, read, gaps, wrong)


def _sort_names(folder: Path, found: Findings) -> None:
    ours = {OWNER, DRAIN, COUNTERS}
    for kind in (fmt.EVENTS, fmt.LEDGER):
        ours.update(segment.path_of(folder, kind, each).name for each in segment.ids(folder, kind))
    for name in sorted(segment.listed(folder)):
        if segment.is_unfinished(name):
            found.unfinished.append(folder / name)
        elif name not in ours:
            found.foreign.append(folder / name)


def _foreign(root: Path) -> List[Path]:
    """Return the files in the root that are not ours."""
    ours: Sequence[str] = (BAD, DEAD, *names(root))
    return [
        root / name
        for name in sorted(segment.listed(root))
        if not ((name in ours or _is_unfinished_home(name)) and (root / name).is_dir())
    ]


def _is_unfinished_home(name: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{16}(\.new|\.[0-9a-f]{16}\.old)", name) is not None


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds // 10**9, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
