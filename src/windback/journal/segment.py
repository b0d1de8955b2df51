"""Segments as files: made whole before anything is written to them, then appended to by one writer at a time.

Rules, each from something that bit others:

- No store into a mapping whose blocks don't exist: on a full disk that is a SIGBUS, which no Python survives.
  So a segment is allocated and written with zeros first, and a full disk is an OSError there.
- No file is ever truncated; what is done with is unlinked, which leaves mappings intact.
- Only its writer maps a segment. Whoever reads another process's uses pread, where a short file is an error.
- A name ending in .seg or .ledger is a whole segment: it is made under another name.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import sys
import time
from pathlib import Path
from typing import Iterable, List, Optional

from . import format as fmt
from .format import Header

_SUFFIXES = {fmt.EVENTS: ".seg", fmt.LEDGER: ".ledger"}
_UNFINISHED = ".tmp"
_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_PAGE_BYTES = 4096
#: More records than a segment has room for.
_MORE_THAN_ALL = 1 << 32


class Segment:
    """A segment that is appended to. `memory` is its mapping; None where the file system is not fit for one.

    end: the offset where the next record will stand; count: how many there are. Both belong to whoever
    holds the segment: it is taken out of a deque to write, and put back.
    """

    __slots__ = (
        *("count", "descriptor", "end", "is_sealed", "memory", "path", "seed", "segment_id"),
        *("settled", "synced"),
    )

    def __init__(self, path: Path, header: Header, descriptor: int, memory: Optional[mmap.mmap]) -> None:
        self.path = path
        self.segment_id = header.segment_id
        self.seed = fmt.seed(header.nonce, header.segment_id, header.kind)
        self.descriptor = descriptor
        self.memory = memory
        self.end = fmt.HEADER_BYTES
        self.count = 0
        self.is_sealed = False
        #: How many of its records are off our hands; the drain side's.
        self.settled = 0
        #: How many of them are on the disk itself, as far as anybody cared.
        self.synced = 0

    def has_room_for(self, length: int) -> bool:
        """Whether a payload of *length* bytes fits behind the last one."""
        return self.end + fmt.RECORD_BYTES + length <= fmt.SEGMENT_BYTES

    def append(self, payload: bytes) -> int:
        """Write a record and return its offset. The caller has seen that it fits.

        `JournalQueue.put` has this spelled out for the mapped case, where each call counts.
        """
        at, sequence = self.end, self.count
        try:
            header = fmt.pack_record(self.seed, at, sequence, payload)
            if self.memory is None:
                _pwrite(self.descriptor, header + payload, at)
            else:
                self.memory[at + fmt.RECORD_BYTES : at + fmt.RECORD_BYTES + len(payload)] = payload
                self.memory[at : at + fmt.RECORD_BYTES] = header
            self.end = at + fmt.padded(len(payload))
            self.count = sequence + 1
        except BaseException:
            self.settle(at, sequence, len(payload))
            raise
        return at

    def settle(self, at: int, sequence: int, length: int) -> bool:
        """Have it consistent after an exception struck the writer of a record; whether that one counts.

        What counts stays: another process may have read it by now. Of what does not, nothing is left, or
        whoever comes next would take it for damage.
        """
        record = fmt.record_at(self.read(at), 0, fmt.seed_at(self.seed, at))
        if record is not None and record.sequence == sequence:
            self.end, self.count = at + record.until, sequence + 1
            return True
        self.end, self.count = at, sequence
        rubbish = bytes(min(fmt.RECORD_BYTES + length, fmt.SEGMENT_BYTES - at))
        if self.memory is not None:
            self.memory[at : at + len(rubbish)] = rubbish
        else:
            with contextlib.suppress(OSError):
                os.pwrite(self.descriptor, rubbish, at)
        return False

    def read(self, at: int) -> bytes:
        """Return everything from offset *at* on."""
        if self.memory is None:
            return os.pread(self.descriptor, fmt.SEGMENT_BYTES - at, at)
        return self.memory[at:]

    def payload_at(self, at: int) -> bytes:
        """Return the payload of the record at offset *at*, which this process wrote there."""
        if self.memory is None:
            length = fmt.RECORD.unpack(os.pread(self.descriptor, fmt.RECORD_BYTES, at))[0]
            return os.pread(self.descriptor, length, at + fmt.RECORD_BYTES)
        length = fmt.RECORD.unpack_from(self.memory, at)[0]
        return self.memory[at + fmt.RECORD_BYTES : at + fmt.RECORD_BYTES + length]

    def seal(self) -> None:
        """Say that nothing more will be written here."""
        memory = self.memory
        self.is_sealed = True
        with contextlib.suppress(OSError, ValueError):  # a hint; and from here on release may close it
            if memory is None:
                os.pwrite(self.descriptor, fmt.END.pack(self.end), fmt.END_AT)
            else:
                memory[fmt.END_AT : fmt.END_AT + fmt.END.size] = fmt.END.pack(self.end)

    def copy_descriptor(self) -> Optional[int]:
        """Return a descriptor for who syncs it while others close this one; None if it is closed.

        Raises OSError.
        """
        if self.memory is not None and sys.platform == "darwin":
            self.memory.flush()  # on Linux, fsync of the file has what was stored through a mapping written
        return None if self.is_closed else os.dup(self.descriptor)

    @property
    def is_closed(self) -> bool:
        """Whether the file was let go of."""
        return self.descriptor < 0

    def close(self) -> None:
        """Let go of the file."""
        if self.memory is not None:
            self.memory.close()
            self.memory = None
        if not self.is_closed:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)

    def unlink(self) -> None:
        """Let go of the file, and remove it. Raises OSError."""
        self.close()
        remove(self.path)


def create(folder: Path, header: Header, *, mapped: bool, synced: bool) -> Segment:
    """Make a segment, ready to be written to without a fault. Raises OSError, on a full disk for one."""
    path = path_of(folder, header.kind, header.segment_id)
    unfinished = path.with_name(path.name + _UNFINISHED)
    remove(unfinished)  # of one that was killed while it did this
    descriptor = os.open(unfinished, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    memory = None
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, fmt.SEGMENT_BYTES)
        # Allocated is not written: the first store into such a block may need another one.
        _write_all(descriptor, fmt.pack_header(header).ljust(fmt.SEGMENT_BYTES, b"\0"))
        if synced:
            _sync(descriptor)
        if mapped:
            memory = mmap.mmap(descriptor, fmt.SEGMENT_BYTES)
            for at in range(fmt.END_AT, fmt.SEGMENT_BYTES, _PAGE_BYTES):
                memory[at] = 0  # the first store into a page costs hundreds of µs, now and not in a request
        unfinished.rename(path)
        if synced:
            sync_folder(folder)
    except BaseException:
        if memory is not None:
            memory.close()
        os.close(descriptor)
        remove(unfinished)
        raise
    return Segment(path, header, descriptor, memory)


def reopen(path: Path, header: Header, end: int, count: int) -> Segment:
    """Open a segment of a dead process to append to it, without a mapping. Raises OSError."""
    segment = Segment(path, header, os.open(path, _FLAGS), None)
    segment.end, segment.count = end, count
    return segment


def new_header(kind: int, segment_id: int, nonce: int) -> Header:
    """Return the header of a segment that this process makes now."""
    return Header(kind, segment_id, nonce, os.getpid(), time.time_ns())


def path_of(folder: Path, kind: int, segment_id: int) -> Path:
    """Return where a segment lies."""
    return folder / f"{segment_id:08d}{_SUFFIXES[kind]}"


def ids(folder: Path, kind: int) -> List[int]:
    """Return the ids of the segments of a kind in *folder*, oldest first; none if it is gone."""
    suffix = _SUFFIXES[kind]
    stems = [name[: -len(suffix)] for name in listed(folder) if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if re.fullmatch(r"[0-9]{8,10}", stem))


def listed(folder: Path) -> List[str]:
    """Return the names of all files in *folder*; none if it is gone, or a file itself."""
    try:
        return [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_segment(name: str) -> bool:
    """Whether a file's name is that of a segment, finished or not."""
    return name.endswith(tuple(_SUFFIXES.values())) or is_unfinished(name)


def is_unfinished(name: str) -> bool:
    """Whether a file is a segment whose making was cut off; nothing was ever written to it."""
    return name.endswith(tuple(suffix + _UNFINISHED for suffix in _SUFFIXES.values()))


def remove(path: Path) -> None:
    """Unlink a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def sync_new(segments: Iterable[Segment]) -> bool:
    """Have all records of these segments on the disk itself; whether there were new ones. For one thread.

    One that is closed meanwhile is passed over. Raises OSError after all were tried. A file that failed is
    never tried again: the kernel says success the next time, and is wrong.
    """
    is_new = False
    failed: Optional[OSError] = None
    for segment in segments:
        count = segment.count  # what is written from here on, the next round takes
        if count > segment.synced:
            is_new = True
            try:
                descriptor = segment.copy_descriptor()
                if descriptor is not None:
                    sync_file(descriptor)
            except OSError as error:
                if not segment.is_closed:
                    count = _MORE_THAN_ALL
                    failed = failed or error
            segment.synced = count
    if failed is not None:
        raise failed
    return is_new


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk itself. Raises OSError."""
    sync_file(os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))


def sync_file(descriptor: int) -> None:
    """Have a file on the disk itself, and close the descriptor. Raises OSError."""
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    import fcntl

    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, where fsync is no barrier
    if full is not None:
        fcntl.fcntl(descriptor, full)
    else:
        os.fsync(descriptor)


def _pwrite(descriptor: int, data: bytes, at: int) -> None:
    if os.pwrite(descriptor, data, at) != len(data):  # the disk is full, or a limit is reached, in the middle
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
