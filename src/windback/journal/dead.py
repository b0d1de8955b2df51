"""Dead letters: events that the API rejected, with the reason, as JSON lines for people and for a replay.

There is one file for each directory of a process, so no two processes write to the same one. A replay takes
letters out of a file under an exclusive lock (flock). A writer never waits for it: it uses a second file
then.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import orjson

from .directory import DEAD, is_same
from .segment import listed

_SUFFIX = ".jsonl"
#: A new file, made beside the one that letters are taken out of. The next replay overwrites what a kill left.
_UNFINISHED = ".tmp"
#: A project whose every event is rejected must fill neither the disk nor the journal: dead letters of all
#: processes together take this part of `max_journal_bytes`, and never more than this.
_PART, MAX_BYTES = 4, 64 * 1024 * 1024

#: The event is the last field, and a quote inside a text always has a backslash.
_EVENT = b',"event":'
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class Letter(NamedTuple):
    """One rejected event; `event` as it was tracked, reason and status as in a DeliveryReport."""

    rejected_at: str
    reason: str
    status: Optional[int]
    message: Optional[str]
    idempotency_key: str
    event: object


def write(
    root: Path,
    name: str,
    records: Sequence[bytes],
    *,
    reason: str,
    status: Optional[int],
    message: Optional[str],
    key: str,
    max_journal_bytes: int,
) -> bool:
    """Keep rejected events; False if there are too many already. Raises OSError."""
    folder = root / DEAD
    folder.mkdir(0o700, exist_ok=True)
    at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    lines = b"".join(
        orjson.dumps(Letter(at, reason, status, message, key, orjson.Fragment(record))._asdict()) + b"\n"
        for record in records
    )
    descriptor = _open_to_write(folder, name)
    try:
        if _size_of(folder) + len(lines) > limit(max_journal_bytes):
            return False
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a full disk had cut that line off
            lines = b"\n" + lines
        return os.write(descriptor, lines) == len(lines)
    finally:
        os.close(descriptor)


def limit(max_journal_bytes: int) -> int:
    """Return how many bytes all dead letters of a journal may take."""
    return min(MAX_BYTES, max_journal_bytes // _PART)


def _size_of(folder: Path) -> int:
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # a replay took it
                total += entry.stat(follow_symlinks=False).st_size
    return total


def _open_to_write(folder: Path, name: str) -> int:
    """Open the file of a directory, or a second one while a replay takes letters out. Raises OSError."""
    import fcntl

    path = folder / (name + _SUFFIX)
    while True:
        descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if is_same(descriptor, path):
                return descriptor
        except BlockingIOError:
            path = folder / f"{name}-{os.urandom(4).hex()}{_SUFFIX}"
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def files(root: Path) -> List[Path]:
    """Return the paths of all files of dead letters under *root*."""
    folder = root / DEAD
    return [folder / name for name in sorted(listed(folder)) if name.endswith(_SUFFIX)]


def read(path: Path) -> Iterator[Tuple[Letter, bytes]]:
    """Yield the letters of one file, each with its event byte for byte. Raises OSError."""
    with path.open("rb") as lines:
        for line in lines:
            letter = _letter_of(line)
            if letter is not None:
                yield letter, event_of(line, letter)


def count(path: Path) -> Tuple[int, int]:
    """Return the number of letters in one file, and of lines that are not letters. Raises OSError."""
    with path.open("rb") as lines:
        found = [_letter_of(line) is not None for line in lines]
    return sum(found), len(found) - sum(found)


class Taking:
    """A file of letters that is closed to other writers and replays, until `close`.

    Raises BlockingIOError if another replay has it, FileNotFoundError if it is gone, OSError.
    """

    def __init__(self, path: Path) -> None:
        import fcntl

        self._path = path
        self._descriptor = os.open(path, _FLAGS)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = is_same(self._descriptor, path)
        except BaseException:
            self.close()
            raise
        if not is_there:
            self.close()
            raise FileNotFoundError(errno.ENOENT, "another replay has removed it", str(path))

    def lines(self) -> List[Tuple[bytes, Optional[Letter]]]:
        """Return the lines of the file, each with its letter. Raises OSError."""
        with self._path.open("rb") as lines:
            return [(line, _letter_of(line)) for line in lines]

    def keep(self, lines: Sequence[bytes]) -> None:
        """Keep only these lines; without any, remove the file. On OSError all lines are still there."""
        if not lines:
            self._path.unlink()
            return
        unfinished = self._path.with_name(self._path.name + _UNFINISHED)
        flags = _FLAGS | os.O_CREAT | os.O_TRUNC
        with open(os.open(unfinished, flags, 0o600), "wb") as file:  # noqa: PTH123 - private from the start
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(self._path)

    def close(self) -> None:
        """Release it for others."""
        os.close(self._descriptor)

    def __enter__(self) -> Taking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def event_of(line: bytes, letter: Letter) -> bytes:
    """Return the event in the line of a letter byte for byte, to keep its numbers exact."""
    event = line[line.find(_EVENT) + len(_EVENT) : line.rfind(b"}")]
    try:
        if orjson.loads(event) == letter.event:
            return event
    except orjson.JSONDecodeError:
        pass
    return orjson.dumps(letter.event)  # the line was edited


def _letter_of(line: bytes) -> Optional[Letter]:
    try:
        return Letter(**orjson.loads(line))
    except (orjson.JSONDecodeError, TypeError):
        return None
