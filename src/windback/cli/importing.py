"""The work of `windback import`: each row of a file becomes one event, however often it is interrupted.

A chunk is sent under a key made from its place in the file and its bytes. Once the API has it, it is noted in
a state file beside the import. A chunk that was sent but not noted before a kill is sent again as the same
bytes under the same key, which the server recognises. So all that a chunk depends on is in the state file
before the first chunk is sent: the size of a chunk, and the time for rows without one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    BinaryIO,
    Deque,
    Generator,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import orjson

from windback.errors import InvalidEventError
from windback.event.encode import encode, now_text
from windback.event.scrubbing import Scrubbing, scrub_event

from .. import clock
from ..wording import counted
from .common import (
    MAX_EVENT_BYTES,
    CommandError,
    print_json,
    said,
    stopped_by_signals,
)
from .rows import BadRowError, Columns, CsvRows, JsonRows, Lines, Row, UnreadableError
from .scrub import scrubbing_of
from .terminal import Progress, print_table, printable, write_line

if TYPE_CHECKING:
    from .sending import BatchSender, Outcome

#: Chunks that are sent at the same time. They are noted together.
_AT_ONCE = 4
_MAX_CHUNK = 100
#: A chunk with more bytes than this takes no further event, because the limit is 500,000.
_FULL_BYTES = 460_000
#: Events that a dry run shows.
_SAMPLE = 5
#: Bad rows that are listed one by one.
_SHOWN = 20
_STATE_VERSION = 1


class Chunk(NamedTuple):
    """Events that are sent together, and the line of each.

    after, digest, bad: lines, fingerprint and bad rows of the file up to its end.
    """

    records: Sequence[bytes]
    lines: Sequence[int]
    after: int
    digest: str
    bad: int

    def key(self, salt: str) -> str:
        """Return the idempotency key: the same for the same rows of the same import."""
        digest = hashlib.sha256(f"{salt}:{self.lines[0] if self.lines else 0}:".encode())
        for record in self.records:
            digest.update(record + b"\n")
        return digest.hexdigest()[:32]


class State(NamedTuple):
    """The state of an import. lines, digest: how much of the file is done, and a fingerprint of that part.

    salt: gives a restarted import other keys; options: a fingerprint of the options that determine events;
    now: the time for rows without one; chunk: how many events are sent together.
    """

    options: str
    now: str
    chunk: int
    salt: str = ""
    lines: int = 0
    digest: str = ""
    sent: int = 0
    bad: int = 0
    rejected: int = 0
    version: int = _STATE_VERSION

    @classmethod
    def read(cls, path: Path) -> Optional[State]:
        """Return the noted state; None if there is none. Raises CommandError."""
        try:
            found = orjson.loads(path.read_bytes())
            if found["version"] != _STATE_VERSION:
                raise CommandError(
                    f"{path} is of another version of windback; --restart starts again from the first row"
                )
            return cls(**found)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from None
        except (ValueError, TypeError, KeyError):
            raise CommandError(
                f"{path} is not the state of an import; move it away, or choose another with --state"
            ) from None

    def write(self, path: Path) -> None:
        """Write the state so that a kill at any moment leaves either this one or the previous one."""
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(orjson.dumps(self._asdict()) + b"\n")
        new.replace(path)


class Report:
    """Bad rows: the first ones for standard error, all of them for a file if one is wanted."""

    def __init__(self, path: Optional[Path]) -> None:
        self._path = path
        self._file: Optional[BinaryIO] = None
        self._shown: List[str] = []
        self._count = 0

    def begin(self, *, goes_on: bool) -> None:
        """Open the file: a new one, or at its end if *goes_on*."""
        try:
            if self._path is not None:
                self._file = self._path.open("ab" if goes_on else "wb")
        except OSError as error:
            raise CommandError(f"{self._path}: {error.strerror}") from None

    def add(self, line: int, problem: str) -> None:
        """Add one bad row."""
        self._count += 1
        if len(self._shown) < _SHOWN:
            self._shown.append(f"line {line}: {printable(problem)}")
        if self._file:
            self._file.write(orjson.dumps({"line": line, "problem": problem}) + b"\n")

    def flush(self) -> None:
        """Write buffered lines to the file."""
        if self._file:
            self._file.flush()

    def tell(self) -> None:
        """Print the bad rows."""
        for line in self._shown:
            sys.stderr.write(line + "\n")
        more = self._count - len(self._shown)
        if more:
            where = f"all of them are in {self._path}" if self._path else "--report FILE lists all of them"
            sys.stderr.write(f"and {counted(more, 'more bad row')}; {where}\n")

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


class _StoppedError(Exception):
    """The import was asked to stop."""


class Reader:
    """Turns rows into events, and events into chunks."""

    def __init__(
        self,
        lines: Lines,
        rows: Union[CsvRows, JsonRows],
        columns: Columns,
        state: State,
        report: Report,
        scrubbing: Optional[Scrubbing],
    ) -> None:
        self._lines = lines
        self._rows = rows
        self._scrubbing = scrubbing
        self._columns = columns
        self._now = state.now
        self._report = report
        self.bad = state.bad

    def events(self) -> Iterator[Tuple[int, bytes]]:
        """Yield the line and the bytes of each event. Bad rows are added to the report."""
        for row in self._rows:
            try:
                yield row.line, self._encode(row)
            except BadRowError as error:
                self.bad += 1
                self._report.add(row.line, str(error))

    def _encode(self, row: Row) -> bytes:
        if row.problem:
            raise BadRowError(row.problem)
        event, email, properties, timestamp = self._columns.arguments(row.fields, self._now)
        try:
            # `encode` checks the types.
            record = encode(event, email, properties, timestamp, MAX_EVENT_BYTES)  # type: ignore[arg-type]
            scrubbing = self._scrubbing
            return record if scrubbing is None else scrub_event(record, scrubbing, MAX_EVENT_BYTES)
        except InvalidEventError as error:
            raise BadRowError(f"{error.path}: {error.detail}") from None

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield chunks. Reads no further than the end of a chunk, so a chunk is the same in each run.

        The last one is empty, and stands for the bad rows at the end of the file.
        """
        records: List[bytes] = []
        numbers: List[int] = []
        size_bytes = 0
        for number, record in self.events():
            records.append(record)
            numbers.append(number)
            size_bytes += len(record) + 1
            if len(records) == size or size_bytes > _FULL_BYTES:
                yield self._chunk(records, numbers)
                records, numbers, size_bytes = [], [], 0
        if records:
            yield self._chunk(records, numbers)
        yield self._chunk([], [])

    def _chunk(self, records: Sequence[bytes], numbers: Sequence[int]) -> Chunk:
        return Chunk(records, numbers, self._lines.count, self._lines.digest(), self.bad)


class Given(NamedTuple):
    """The options of the command."""

    path: Path
    columns: Columns
    kind: str
    delimiter: str
    is_dry: bool
    rate: Optional[float]
    state: Path
    restart: bool
    scrubbers: Sequence[str]
    base_url: Optional[str]
    compress: bool
    json: bool

    def fingerprint(self) -> str:
        """Return the options that two runs must share to be one import."""
        described = repr((self.columns._replace(properties=None), self.kind, self.delimiter, *self.scrubbers))
        properties = repr(self.columns.properties and sorted(self.columns.properties.items()))
        return hashlib.sha256(f"{described}{properties}".encode()).hexdigest()


class Import:
    """One run of the command. Raises CommandError."""

    def __init__(self, given: Given, lines: Lines, report: Report) -> None:
        self._given = given
        self._lines = lines
        self._report = report
        self._is_stopping = False
        #: Whether a chunk failed, so that no later one can be noted.
        self._is_broken = False
        self.trouble: Optional[str] = None
        if self._lines.is_empty:
            raise CommandError(f"{given.path} is empty")
        try:
            self._rows = self._make_rows()
        except UnreadableError as error:
            raise CommandError(f"{given.path}: {error}") from None

    def _make_rows(self) -> Union[CsvRows, JsonRows]:
        given = self._given
        if given.kind == "jsonl":
            return JsonRows(self._lines)
        rows = CsvRows(self._lines, given.delimiter)
        missing = given.columns.missing(rows.columns)
        if missing:
            raise CommandError(
                f"{given.path} has no column {missing[0]!r}, but {', '.join(map(repr, rows.columns))}; see "
                "--email-column, --event-column (or --event NAME for all rows), --map and --delimiter"
            )
        return rows

    def _reader(self, state: State) -> Reader:
        given = self._given
        scrubbing = scrubbing_of(given.scrubbers) if given.scrubbers else None
        return Reader(self._lines, self._rows, given.columns, state, self._report, scrubbing)

    # Without sending

    def try_out(self) -> int:
        """Read the whole file, send nothing, and print the first events and the bad rows."""
        self._report.begin(goes_on=False)
        reader = self._reader(State("", now_text(), 0))
        first: List[Mapping[str, object]] = []
        good = 0
        with self._progress() as progress:
            try:
                for _, record in reader.events():
                    good += 1
                    if len(first) < _SAMPLE:
                        first.append(orjson.loads(record))
                    if good % 1_000 == 0:
                        progress.show(self._lines.position(), counted(good, "row"))
            except UnreadableError as error:
                self.trouble = str(error)
        if self._given.json:
            print_json({"good": good, "bad": reader.bad, "trouble": self.trouble, "first": first})
        else:
            names = ("event", "customer_email", "timestamp", "properties")
            texts = [[_text(event.get(name)) for name in names] for event in first]
            print_table([names, *texts])
            write_line(f"nothing was sent; good: {good}, bad: {reader.bad}")
        return self._end(is_clean=not reader.bad)

    # Sending

    def run(self) -> int:
        """Send the rows that were not sent yet."""
        from .sending import BatchSender, configuration  # loads a lot

        given = self._given
        with said(""):
            config = configuration(given.base_url, compress=given.compress)
        with _alone(given.path):
            state = self._find_state()
            self._report.begin(goes_on=state.lines > 0)
            sender = BatchSender(config, self._sleep)
            try:
                with stopped_by_signals(self._stop), self._progress() as progress:
                    state = self._send(state, sender, progress)
            finally:
                sender.close()
        result = {
            "sent": state.sent,
            "bad": state.bad,
            "rejected": state.rejected,
            "lines": state.lines,
            "trouble": self.trouble,
        }
        if given.json:
            print_json(result)
        else:
            write_line(f"sent: {state.sent}, bad: {state.bad}, rejected: {state.rejected}")
        status = self._end(is_clean=not state.bad and not state.rejected)
        if self._is_stopping or self.trouble:
            sys.stderr.write(
                f"stopped after line {state.lines:,}; run the same command to continue from there\n"
            )
        return 130 if self._is_stopping else status

    def _find_state(self) -> State:
        given = self._given
        options = given.fingerprint()
        rate = given.rate
        found = State.read(given.state)
        if found is None or given.restart:
            salt = os.urandom(8).hex() if given.restart else ""
            size = _MAX_CHUNK if rate is None else max(1, min(_MAX_CHUNK, int(rate)))
            found = State(options, now_text(), size, salt)
            try:
                found.write(given.state)
            except OSError as error:
                raise CommandError(f"{given.state}: {error.strerror}; name another with --state") from None
            return found
        if found.options != options:
            raise CommandError(
                f"an import of {given.path} was started with other columns or another --scrub "
                f"({given.state}); use the same, or --restart, which sends all rows again"
            )
        if found.lines and self._lines.skip_to(found.lines) != found.digest:
            raise CommandError(
                f"{given.path} has changed since its first {counted(found.lines, 'line')} were "
                f"imported ({given.state}); --restart imports it as a new file"
            )
        return found

    def _send(self, state: State, sender: BatchSender, progress: Progress) -> State:
        given = self._given
        reader = self._reader(state)
        at_once = 1 if given.rate is not None else _AT_ONCE
        under_way: Deque[Tuple[Chunk, Future[Outcome]]] = deque()
        started_s, read = clock.now_s(), 0
        with ThreadPoolExecutor(at_once) as pool:
            try:
                for chunk in reader.chunks(state.chunk):
                    if given.rate is not None:
                        self._sleep(started_s + read / given.rate - clock.now_s())
                    read += len(chunk.records)
                    under_way.append((chunk, pool.submit(sender.send, chunk.records, chunk.key(state.salt))))
                    if len(under_way) == at_once:
                        state = self._note(state, *under_way.popleft())
                        speed = read / (clock.now_s() - started_s)
                        text = f"{counted(state.sent, 'row')}, {speed:,.0f} a second"
                        progress.show(self._lines.position(), text)
                    if self._is_stopping or self._is_broken:
                        break
            except UnreadableError as error:
                self.trouble = str(error)
            except _StoppedError:
                pass
            while under_way:
                state = self._note(state, *under_way.popleft())
        return state

    def _note(self, state: State, chunk: Chunk, future: Future[Outcome]) -> State:
        """Wait for a chunk, and note that all up to its end is done, unless an earlier one failed."""
        try:
            outcome = future.result()
        except _StoppedError:
            self._is_broken = True
            return state
        if outcome.trouble is not None or self._is_broken:
            self.trouble = self.trouble or outcome.trouble
            self._is_broken = True
            return state
        for place, reason in outcome.rejected:
            self._report.add(chunk.lines[place], reason)
        self._report.flush()
        state = state._replace(
            lines=chunk.after,
            digest=chunk.digest,
            sent=state.sent + outcome.delivered,
            bad=chunk.bad,
            rejected=state.rejected + len(outcome.rejected),
        )
        state.write(self._given.state)
        return state

    # Both

    def _progress(self) -> Progress:
        return Progress("imported" if not self._given.is_dry else "read", self._lines.size, "bytes")

    def _stop(self) -> None:
        self._is_stopping = True

    def _sleep(self, seconds: float) -> None:
        """Sleep, unless the import is asked to stop."""
        until_s = clock.now_s() + seconds
        while True:
            if self._is_stopping:
                raise _StoppedError
            left_s = until_s - clock.now_s()
            if left_s <= 0:
                return
            clock.sleep(min(left_s, 0.05))

    def _end(self, *, is_clean: bool) -> int:
        self._report.tell()
        if self.trouble:
            sys.stderr.write(f"windback import: {printable(self.trouble)}\n")
        return 0 if is_clean and self.trouble is None else 1


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


@contextlib.contextmanager
def _alone(path: Path) -> Generator[None, None, None]:
    """Prevent a second import of the same file at the same time, where the system has locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(f"another import of {path} is running") from None
        except OSError:
            pass  # a file system without locks
        yield
