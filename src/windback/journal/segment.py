"""Segments as files: made whole before anything is written to them, then appended to by one writer at a time.

Rules, each learned from a bug somewhere:

- No store into a mapping whose blocks don't exist: on a full disk that is a SIGBUS, which no Python survives.
  So the part that may be written to, up to `limit`, is allocated and written with zeros first, and a full
  disk is an OSError there. Behind it the file is a hole, which takes no space on disk.
- No file of a running process is ever truncated. Finished files are unlinked, which leaves mappings intact.
- Only its writer maps a segment. Readers of another process's use pread, where a short file is an error.
- Only regular files of this user are opened, no symbolic links, and never in a way that may wait.
- A name ending in .seg or .ledger is a whole segment: it is made under another name.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import stat
import sys
import time
from pathlib import Path
from typing import Iterable, List, Optional

from . import format as fmt
from .format import Header

_SUFFIXES = {fmt.EVENTS: ".seg", fmt.LEDGER: ".ledger"}
_UNFINISHED = ".tmp"
#: How every file is opened: a FIFO must not make this process wait, and a link must not lead it elsewhere.
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
PAGE_BYTES = 4096
#: The unit in which `stat` counts the space of a file on disk.
_BLOCK_BYTES = 512
#: More records than a segment has room for.
_MORE_THAN_ALL = 1 << 32


class Segment:
    """A segment that is appended to. `memory` is its mapping; None where the file system can't have one.

    end: the offset of the next record; count: the number of records. Both belong to the thread that
    has the segment: it takes the segment out of a deque to write, and puts it back. limit: no record may
    reach beyond this offset, because nothing is allocated there.
    """

    __slots__ = (
        *("count", "descriptor", "end", "is_sealed", "limit", "memory", "path", "read_back", "seed"),
        *("segment_id", "settled", "synced"),
    )

    def __init__(
        self, path: Path, header: Header, descriptor: int, memory: Optional[mmap.mmap], limit: int
    ) -> None:
        self.path = path
        self.segment_id = header.segment_id
        self.seed = fmt.seed(header.nonce, header.segment_id, header.kind)
        self.descriptor = descriptor
        self.memory = memory
        self.limit = limit
        self.end = fmt.HEADER_BYTES
        self.count = 0
        self.is_sealed = False
        #: How many of its records are settled; written by the drain side.
        self.settled = 0
        #: How many of them are synced to disk, if fsync is used.
        self.synced = 0
        #: What is in the file, if it was closed before all of it was read.
        self.read_back: Optional[bytes] = None

    def has_room_for(self, length: int) -> bool:
        """Whether a payload of *length* bytes fits behind the last one."""
        return self.end + fmt.RECORD_BYTES + length <= self.limit

    def append(self, payload: bytes) -> int:
        """Write a record and return its offset. The caller has checked that it fits.

        `JournalQueue.put` repeats this code for the mapped case, where each call counts.
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
        """Make the segment consistent after an interrupted `append`. Returns whether the record counts.

        A valid record stays, because another process may have read it. An incomplete one is overwritten with
        zeros: the next reader would report it as damage.
        """
        record = fmt.record_at(self.read(at), 0, fmt.seed_at(self.seed, at))
        if record is not None and record.sequence == sequence:
            self.end, self.count = at + record.until, sequence + 1
            return True
        self.end, self.count = at, sequence
        rubbish = bytes(min(fmt.RECORD_BYTES + length, self.limit - at))
        if self.memory is not None:
            self.memory[at : at + len(rubbish)] = rubbish
        else:
            with contextlib.suppress(OSError):
                os.pwrite(self.descriptor, rubbish, at)
        return False

    def read(self, at: int) -> bytes:
        """Return everything from offset *at* on."""
        if self.memory is None:
            return os.pread(self.descriptor, self.limit - at, at)
        return self.memory[at : self.limit]

    def payload_at(self, at: int) -> bytes:
        """Return the payload of the record at offset *at*, which this process wrote there.

        A closed segment is read again, whole: its other records are wanted next. Raises OSError.
        """
        payload = b""
        if self.read_back is None:
            try:
                if self.memory is None:
                    length = fmt.RECORD.unpack(os.pread(self.descriptor, fmt.RECORD_BYTES, at))[0]
                    payload = os.pread(self.descriptor, length, at + fmt.RECORD_BYTES)
                else:
                    length = fmt.RECORD.unpack_from(self.memory, at)[0]
                    payload = self.memory[at + fmt.RECORD_BYTES : at + fmt.RECORD_BYTES + length]
            except Exception:
                if not self.is_closed:
                    raise
        if not self.is_closed:  # asked last: another thread may have closed it in between
            return payload
        if self.read_back is None:
            self.read_back = read_file(self.path)
        length = fmt.RECORD.unpack_from(self.read_back, at)[0]
        return self.read_back[at + fmt.RECORD_BYTES : at + fmt.RECORD_BYTES + length]

    def seal(self) -> None:
        """Mark the segment as finished."""
        with contextlib.suppress(OSError):  # only a hint
            if self.memory is None:
                os.pwrite(self.descriptor, fmt.END.pack(self.end), fmt.END_AT)
            else:
                self.memory[fmt.END_AT : fmt.END_AT + fmt.END.size] = fmt.END.pack(self.end)
        self.is_sealed = True  # from here on others may close it

    def copy_descriptor(self) -> Optional[int]:
        """Return a descriptor to sync while other threads close this one; None if it is closed.

        Raises OSError.
        """
        if self.memory is not None and sys.platform == "darwin":
            self.memory.flush()  # on Linux, fsync of the file also writes what was stored through a mapping
        return None if self.is_closed else os.dup(self.descriptor)

    @property
    def is_closed(self) -> bool:
        """Whether the file is closed."""
        return self.descriptor < 0

    def close(self) -> None:
        """Close the file. Other threads may be reading it; see `payload_at`."""
        descriptor, self.descriptor = self.descriptor, -1
        memory, self.memory = self.memory, None
        if memory is not None:
            memory.close()
        if descriptor >= 0:
            os.close(descriptor)

    def unlink(self) -> None:
        """Close the file and remove it. Raises OSError."""
        self.close()
        remove(self.path)


def create(
    folder: Path, header: Header, *, mapped: bool, synced: bool, limit: int = fmt.SEGMENT_BYTES
) -> Segment:
    """Make a segment, ready to be written to up to *limit* without a fault. Raises OSError on a full disk."""
    path = path_of(folder, header.kind, header.segment_id)
    unfinished = path.with_name(path.name + _UNFINISHED)
    remove(unfinished)  # of a process that was killed while it did this
    descriptor = os.open(unfinished, _FLAGS | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    memory = None
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, limit)
        # Allocated is not written: the first store into such a block may need another one.
        _write_all(descriptor, fmt.pack_header(header).ljust(limit, b"\0"))
        if limit < fmt.SEGMENT_BYTES:
            os.ftruncate(descriptor, fmt.SEGMENT_BYTES)
        if synced:
            _sync(descriptor)
        if mapped:
            memory = mmap.mmap(descriptor, fmt.SEGMENT_BYTES)
            for at in range(fmt.END_AT, limit, PAGE_BYTES):
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
    return Segment(path, header, descriptor, memory, limit)


def reopen(path: Path, header: Header, end: int, count: int) -> Segment:
    """Open a segment of an exited process to append to it, without a mapping. Raises OSError."""
    segment = Segment(path, header, open_file(path, os.O_RDWR), None, fmt.SEGMENT_BYTES)
    segment.end, segment.count = end, count
    return segment


class NotOursError(OSError):
    """Not a regular file of this user."""


def open_file(path: Path, flags: int = os.O_RDONLY, *, of_any_user: bool = False) -> int:
    """Open a regular file of this user; never waits. Raises NotOursError, OSError."""
    try:
        descriptor = os.open(path, flags | _FLAGS, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR, errno.EOPNOTSUPP):
            raise NotOursError(error.errno, "not a regular file", str(path)) from None
        raise
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and (of_any_user or status.st_uid == os.geteuid()):
        return descriptor
    os.close(descriptor)
    what = "it belongs to another user" if stat.S_ISREG(status.st_mode) else "not a regular file"
    raise NotOursError(errno.EINVAL, what, str(path))


def read_file(path: Path, size: int = fmt.SEGMENT_BYTES, *, of_any_user: bool = False) -> bytes:
    """Return up to *size* bytes of a regular file of this user. Raises NotOursError, OSError."""
    descriptor = open_file(path, of_any_user=of_any_user)
    try:
        return os.pread(descriptor, size, 0)
    finally:
        os.close(descriptor)


def trim(path: Path) -> bool:
    """Free the space that an exited process allocated and did not use. Returns whether there is a record.

    No record is lost if this is interrupted: only zeros are cut off, and the file gets the same length again,
    with a hole. Raises OSError.
    """
    descriptor = open_file(path, os.O_RDWR)
    try:
        status = os.fstat(descriptor)
        # The header is in the first page. Where that is the only one, the rest is a hole.
        is_trimmed = allocated(status) <= PAGE_BYTES
        data = os.pread(descriptor, PAGE_BYTES if is_trimmed else fmt.SEGMENT_BYTES, 0)
        end = max(fmt.HEADER_BYTES, len(data.rstrip(b"\0")))
        if status.st_size != fmt.SEGMENT_BYTES:
            return True
        if allocated(status) > -(-end // PAGE_BYTES) * PAGE_BYTES:
            os.ftruncate(descriptor, end)
            os.ftruncate(descriptor, fmt.SEGMENT_BYTES)
    finally:
        os.close(descriptor)
    try:
        fmt.read_header(data)
    except fmt.ForeignError:  # damaged, or of a later version: left for inspection
        return True
    return end > fmt.HEADER_BYTES


def allocated(status: os.stat_result) -> int:
    """Return how many bytes a file takes on disk."""
    return status.st_blocks * _BLOCK_BYTES


def allocated_under(folder: Path, depth: int) -> int:
    """Return how many bytes everything in *folder* takes, and in folders up to *depth* levels below."""
    total = 0
    names: List[str] = []
    with contextlib.suppress(OSError):  # it is gone, or not readable for this user
        names = os.listdir(folder)  # noqa: PTH208 - no iterator that stays open when a caller is interrupted
    for name in names:
        with contextlib.suppress(OSError):
            status = os.lstat(folder / name)
            if stat.S_ISREG(status.st_mode):
                total += allocated(status)
            elif depth and stat.S_ISDIR(status.st_mode):
                total += allocated(status) + allocated_under(folder / name, depth - 1)
    return total


def new_header(kind: int, segment_id: int, nonce: int) -> Header:
    """Return the header of a segment that this process makes now."""
    return Header(kind, segment_id, nonce, os.getpid(), time.time_ns())


def path_of(folder: Path, kind: int, segment_id: int) -> Path:
    """Return the path of a segment."""
    return folder / f"{segment_id:08d}{_SUFFIXES[kind]}"


def ids(folder: Path, kind: int) -> List[int]:
    """Return the ids of the segments of a kind in *folder*, oldest first; none if there is no folder."""
    suffix = _SUFFIXES[kind]
    stems = [name[: -len(suffix)] for name in listed(folder) if name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if re.fullmatch(r"[0-9]{8,10}", stem))


def listed(folder: Path) -> List[str]:
    """Return the names of all files in *folder*; none if it is missing, or not a directory."""
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
    """Sync all records of these segments to disk. Returns whether there were new ones. For one thread.

    Segments that are closed during this are skipped. Raises OSError after all were tried. A file that failed
    is never tried again: the kernel would report success the next time, wrongly.
    """
    is_new = False
    failed: Optional[OSError] = None
    for segment in segments:
        count = segment.count  # later records are for the next round
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
    """Sync the names in a folder to disk. Raises OSError."""
    sync_file(os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))


def sync_file(descriptor: int) -> None:
    """Sync a file to disk and close the descriptor. Raises OSError."""
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    import fcntl

    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, where fsync is not a barrier
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
