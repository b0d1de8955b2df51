"""Directories: one for each process that writes, and the locks that say whose it is.

    <root>/<16 hex digits>/   owner.lock  drain.lock  counters  00000001.seg …
    <root>/dead/              what the API rejected, see `dead`
    <root>/bad/               segments with damage, set aside

A lock file's existence means nothing; only the lock on it does, which the kernel frees with the process
(flock). `owner` is held by who writes, `drain` by who sends. A directory is made under another name
and renamed once it is locked, so nobody adopts it unfinished. Locks are never unlocked by hand, only
closed: a forked child that unlocked would free its parent's.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import secrets
import time
from pathlib import Path
from typing import List, Optional, Sequence

from ..errors import ConfigurationError
from . import format as fmt
from . import segment
from .segment import Segment

logger = logging.getLogger("windback")

OWNER, DRAIN = "owner.lock", "drain.lock"
#: Where a relay tells a living writer how far it is.
COUNTERS = "counters"
BAD, DEAD = "bad", "dead"

_NAME = re.compile(r"[0-9a-f]{16}")
_UNFINISHED = ".new"
#: A directory takes a moment to make; one that takes so long belongs to a process that died meanwhile.
_UNFINISHED_S = 3600.0
_MOUNTS = Path("/proc/self/mountinfo")
#: Where a store into a mapping of allocated blocks can't fail for lack of space.
_MAPPED = frozenset({"ext2", "ext3", "ext4", "overlay", "ramfs", "tmpfs", "xfs"})
#: Where other machines may be involved: no coherent mappings, and locks that lie.
_NETWORK = frozenset(
    {"9p", "afs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs", "virtiofs"}
)


def filesystem(path: Path, mountinfo: Path = _MOUNTS) -> Optional[str]:
    """Return the type of the file system that *path* is on, as Linux calls it; None where nothing tells."""
    try:
        mounts = mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    best, kind = "", None
    real = str(path.resolve())
    for mount in mounts:
        fields = mount.split()
        if len(fields) < 5 or "-" not in fields[5:-1]:
            continue
        # proc(5): mount point, fifth; after a "-" of its own the type. Spaces in a path are octal there.
        point = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), fields[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two mounts at one point the later is on top
            best, kind = point, fields[fields.index("-") + 1]
    return kind


def open_root(root: Path) -> bool:
    """Make *root* if it isn't there; say whether its file system is fit for mappings.

    Raises ConfigurationError for a place that can't hold a journal, and OSError for one that can't right now.
    """
    root.mkdir(0o700, parents=True, exist_ok=True)
    if root.stat().st_uid != os.geteuid():
        message = f"journal {str(root)!r} belongs to another user; choose a directory of this one's"
        raise ConfigurationError(message)
    kind = filesystem(root)
    if kind in _NETWORK or (kind or "").startswith("fuse"):
        message = f"journal {str(root)!r} is on {kind}, where locks and mappings fail; choose a local disk"
        raise ConfigurationError(message)
    return kind in _MAPPED


def names(root: Path) -> List[str]:
    """Return the names of all directories of writers under *root*, dead and alive."""
    return sorted(name for name in segment.listed(root) if _NAME.fullmatch(name))


def used_bytes(root: Path, without: str) -> int:
    """Return the size of all segments of events under *root*, *without* those of one directory."""
    count = 0
    for name in names(root):
        if name != without:
            with contextlib.suppress(OSError):  # not ours to look into
                count += len(segment.ids(root / name, fmt.EVENTS))
    return count * fmt.SEGMENT_BYTES


class Lock:
    """A locked file."""

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError if it is another's, OSError."""
        import fcntl

        self.name = path.name
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            self.descriptor = os.open(path, flags, 0o600)
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_same(self.descriptor, path):
                    return
            except BaseException:
                self.close()
                raise
            self.close()  # it was removed, or replaced, after it was opened

    def close(self) -> None:
        """Let go of it. The lock is freed when no forked copy is open either."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class JournalDirectory:
    """A directory whose owner lock this process holds, or, of a living process, the drain lock alone."""

    def __init__(
        self, root: Path, name: str, nonce: int, locks: List[Lock], *, mapped: bool, synced: bool
    ) -> None:
        self.root = root
        self.name = name
        self.folder = root / name
        self.nonce = nonce
        self.mapped = mapped
        self.synced = synced
        self._locks = list(locks)
        #: Callers and the drain side both make segments; `next` is one step.
        self._ids = itertools.count(1)

    @classmethod
    def create(cls, root: Path, *, mapped: bool, synced: bool, drains: bool) -> JournalDirectory:
        """Make a directory of this process's own. drains: it sends what it writes. Raises OSError."""
        nonce = secrets.randbits(64)
        name = f"{nonce:016x}"
        locks = cls._make(root, name, (OWNER, DRAIN) if drains else (OWNER,))
        if synced:
            segment.sync_folder(root)
        return cls(root, name, nonce, locks, mapped=mapped, synced=synced)

    @staticmethod
    def _make(root: Path, name: str, names_of_locks: Sequence[str]) -> List[Lock]:
        """Make a directory that nobody sees before it is locked."""
        unfinished = root / (name + _UNFINISHED)
        unfinished.mkdir(0o700)
        locks: List[Lock] = []
        try:
            locks = _lock_all(unfinished, names_of_locks)
            unfinished.rename(root / name)
        except BaseException:
            for lock in locks:
                lock.close()
            _remove_unfinished(unfinished)
            raise
        return locks

    @classmethod
    def adopt(cls, root: Path, name: str) -> Optional[JournalDirectory]:
        """Take over the directory of a dead process; None if somebody lives there, or drains it."""
        try:
            return cls._lock(root, name, (OWNER, DRAIN))
        except (
            BlockingIOError,
            FileNotFoundError,
            PermissionError,
        ):  # held by others, gone, not ours to open
            return None
        except OSError as error:  # such as no file descriptor left
            logger.warning("journal %s/%s: left alone: %s", root, name, error)
            return None

    @classmethod
    def attend(cls, root: Path, name: str, *, synced: bool = False) -> Optional[JournalDirectory]:
        """Drain the directory of a process, dead or alive; None if another does, or it is gone."""
        home = None
        with contextlib.suppress(OSError):
            home = cls._lock(root, name, (DRAIN,))
        if home is not None:
            home.synced = synced
            home.own()
        return home

    @classmethod
    def _lock(cls, root: Path, name: str, locks: Sequence[str]) -> Optional[JournalDirectory]:
        folder = root / name
        # Locks may have been removed by people. Where there is nothing of ours, a lock is not put either.
        if not any(each in (OWNER, DRAIN) or segment.is_segment(each) for each in segment.listed(folder)):
            return None
        held = _lock_all(folder, locks)
        home = cls(root, name, int(name, 16), held, mapped=False, synced=False)
        # It makes nothing else there.
        home._ids = itertools.count(1 + max(segment.ids(folder, fmt.LEDGER), default=0))
        return home

    @property
    def is_owned(self) -> bool:
        """Whether nobody else can write here."""
        return any(lock.name == OWNER for lock in self._locks)

    def own(self) -> bool:
        """Take the owner lock, if the process that held it is dead."""
        if not self.is_owned:
            try:
                self._locks.append(Lock(self.folder / OWNER))
            except OSError:
                return False
        return True

    def new_segment(self, kind: int) -> Segment:
        """Make the next segment. Raises OSError."""
        header = segment.new_header(kind, next(self._ids), self.nonce)
        return segment.create(self.folder, header, mapped=self.mapped, synced=self.synced)

    def restore(self) -> bool:
        """Make the directory again if somebody removed it; whether that was so. Raises OSError."""
        if self.folder.is_dir():
            return False
        self.root.mkdir(0o700, parents=True, exist_ok=True)
        gone, self._locks = self._locks, self._make(self.root, self.name, [lock.name for lock in self._locks])
        for lock in gone:
            lock.close()
        return True

    def set_aside(self, segment_id: int, kind: int = fmt.EVENTS) -> Path:
        """Move a damaged segment to where people look at it; returns that path. Raises OSError."""
        folder = self.root / BAD
        folder.mkdir(0o700, exist_ok=True)
        source = segment.path_of(self.folder, kind, segment_id)
        path = folder / f"{self.name}-{source.name}"
        source.rename(path)
        return path

    def remove(self) -> None:
        """Remove the directory with the locks, last; what is not ours in it stays, and so does it then."""
        with contextlib.suppress(OSError):
            for name in segment.listed(self.folder):
                if segment.is_unfinished(name):
                    segment.remove(self.folder / name)
            if set(segment.listed(self.folder)) <= {OWNER, DRAIN, COUNTERS}:
                for name in (COUNTERS, DRAIN, OWNER):
                    segment.remove(self.folder / name)
                self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Leave the directory to whoever comes next."""
        for lock in self._locks:
            lock.close()
        self._locks.clear()


def sweep(root: Path) -> None:
    """Remove directories whose making was cut off long ago. Raises OSError."""
    for name in segment.listed(root):
        stem = name[: -len(_UNFINISHED)]
        if name.endswith(_UNFINISHED) and _NAME.fullmatch(stem):
            made_s = (root / name).stat().st_mtime
            if abs(time.time() - made_s) > _UNFINISHED_S:
                _remove_unfinished(root / name)


def _remove_unfinished(folder: Path) -> None:
    # Not by rmtree, which needs a file descriptor: maybe there is none left, and that is why.
    with contextlib.suppress(OSError):
        for name in (OWNER, DRAIN):
            segment.remove(folder / name)
        folder.rmdir()


def _lock_all(folder: Path, names_of_locks: Sequence[str]) -> List[Lock]:
    locks: List[Lock] = []
    try:
        locks.extend(Lock(folder / name) for name in names_of_locks)
    except BaseException:
        for held in locks:
            held.close()
        raise
    return locks


def is_held(path: Path) -> bool:
    """Whether somebody has the lock on a lock file; of one that can't be opened, by others' rights, too."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_same(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at *path*, and not one that was removed or replaced since."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
