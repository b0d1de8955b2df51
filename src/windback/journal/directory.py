"""Directories, one for each process that writes, and the locks that show which process owns one.

    <root>/<16 hex digits>/   owner.lock  drain.lock  counters  00000001.seg …
    <root>/dead/              events that the API rejected, see `dead`
    <root>/bad/               segments with damage, set aside

The existence of a lock file means nothing; only the lock on it does, which the kernel frees with the process
(flock). The writing process has `owner`, the sending process has `drain`. A directory is made under another
name and renamed once it is locked, so it can't be adopted unfinished. Locks are never unlocked explicitly,
only closed: a forked child that unlocked would free its parent's.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Generator, Iterable, List, NamedTuple, Optional, Sequence
from weakref import WeakSet

from .. import clock
from ..descriptor import Descriptor
from ..errors import ConfigurationError
from . import format as fmt
from . import segment
from .segment import Segment

logger = logging.getLogger("windback")

OWNER, DRAIN = "owner.lock", "drain.lock"
#: Where a relay writes its progress for a running writer.
COUNTERS = "counters"
BAD, DEAD = "bad", "dead"

#: Shortages that may pass, and failures that may not repeat. EACCES and the like need a person.
_TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EDQUOT", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOBUFS", "ENOLCK", "ENOMEM"),
        "ENOSPC",
    )
)
NAME = re.compile(r"[0-9a-f]{16}")
UNFINISHED = ".new"
_MOUNTS = Path("/proc/self/mountinfo")
#: Where a store into a mapping of allocated blocks can't fail for lack of space, unless files share blocks.
_MAPPED = frozenset({"ext2", "ext3", "ext4", "ramfs", "tmpfs", "xfs"})
#: Of these, where a copy of a file may share its blocks, so that a store needs a new one.
_SHARING = frozenset({"xfs"})
#: Linux: make a file share the blocks of another.
_FICLONE = 0x40049409
#: Other users could put events there, and this process would send them with its key.
_OPEN_TO_OTHERS = stat.S_IWGRP | stat.S_IWOTH
#: Where other machines may be involved: mappings are not coherent, and locks are unreliable.
_NETWORK = frozenset(
    {"9p", "afs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs", "virtiofs"}
)


class Mount(NamedTuple):
    """A file system: its type as Linux names it, its mount point, and its options."""

    kind: str
    point: Path
    options: Sequence[str]


def mount_of(path: Path, mountinfo: Path = _MOUNTS) -> Optional[Mount]:
    """Return the file system of *path*; None if it is unknown."""
    try:
        mounts = mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    best, found = "", None
    real = str(path.resolve())
    for mount in mounts:
        fields = mount.split()
        if len(fields) < 5 or "-" not in fields[5:-1]:
            continue
        # proc(5): the mount point is fifth; the type follows after a "-". Spaces in a path are octal there.
        point = _unescaped(fields[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two mounts at one point the later one is visible
            kind, *_, options = fields[fields.index("-", 5) + 1 :]
            best, found = point, Mount(kind, Path(point), options.split(","))
    return found


def _unescaped(text: str) -> str:
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), text)


def open_root(root: Path) -> bool:
    """Make *root* if it does not exist. Returns whether its file system can have mappings.

    Raises ConfigurationError for a place that can't hold a journal, and OSError for one that can't now.
    """
    for place in (root, *root.parents):
        if place.is_symlink() and place.lstat().st_uid not in (0, os.geteuid()):
            raise ConfigurationError(
                f"journal {str(root)!r} goes through {str(place)!r}, a symbolic link of another user, "
                "who can point it anywhere; choose a directory of your own"
            )
    make_private(root)
    status = root.stat()
    if status.st_uid != os.geteuid():
        raise ConfigurationError(
            f"journal {str(root)!r} belongs to another user; choose a directory of your own"
        )
    if status.st_mode & _OPEN_TO_OTHERS:
        raise ConfigurationError(
            f"journal {str(root)!r} is writable by other users, whose events would be sent "
            f"with this key: chmod go-w {root}"
        )
    mount = mount_of(root)
    if mount is not None and (mount.kind in _NETWORK or mount.kind.startswith("fuse")):
        raise ConfigurationError(
            f"journal {str(root)!r} is on {mount.kind}, where locks and mappings are unreliable; use a local "
            "disk"
        )
    return mount is not None and keeps_blocks(root, mount)


def make_private(folder: Path) -> None:
    """Make a directory, and the missing ones above it, for this user alone. Raises OSError."""
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        each.mkdir(0o700, exist_ok=True)


def keeps_blocks(root: Path, mount: Mount, mountinfo: Path = _MOUNTS) -> bool:
    """Whether a store into an allocated block of a file there never needs another one."""
    if mount.kind == "overlay":
        upper = _upper_of(root, mount)
        below = None if upper is None else mount_of(upper, mountinfo)
        if below is None or below.kind == "overlay":
            return False  # not visible in a container, and it may be anything
        kind = below.kind
    else:
        kind = mount.kind
    return kind in _MAPPED and not (kind in _SHARING and _shares_blocks(root))


def _upper_of(root: Path, mount: Mount) -> Optional[Path]:
    """Return where the files of an overlay really are; None if that is not visible from here."""
    for option in mount.options:
        name, _, value = option.partition("=")
        upper = Path(_unescaped(value)) / root.resolve().relative_to(mount.point)
        with contextlib.suppress(OSError):
            if name == "upperdir" and upper.is_absolute():
                here, there = root.stat(), upper.stat()  # a path of that name may be anything in a container
                return upper if here.st_mtime_ns == there.st_mtime_ns else None
    return None


def _shares_blocks(root: Path) -> bool:
    """Whether files can share blocks there, as a copy made by `cp` does."""
    import fcntl

    names = [root / f"{secrets.token_hex(8)}.probe" for _ in range(2)]
    descriptors: List[int] = []
    try:
        for name in names:
            descriptors.append(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            segment.remove(name)
        os.pwrite(descriptors[0], bytes(4096), 0)
        fcntl.ioctl(descriptors[1], _FICLONE, descriptors[0])
    except OSError as error:
        return error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def names(root: Path) -> List[str]:
    """Return the names of the directories of all writers under *root*, exited and running."""
    return names_in(segment.listed(root))


def names_in(found: Iterable[str]) -> List[str]:
    """Return those of the names *found* under a root that directories of writers have, in order."""
    return sorted(filter(NAME.fullmatch, found))


def used_bytes(root: Path, without: str) -> int:
    """Return the bytes on disk of everything under *root*, *without* one directory."""
    return segment.allocated_under(root, 1) - segment.allocated_under(root / without, 0)


class HeldError(BlockingIOError):
    """A lock that another process has."""


class Held:
    """An open file that has a lock, until it is closed, or until nobody refers to it any more.

    So an exception from outside, such as Ctrl-C, leaves no lock, wherever it strikes.
    """

    def __init__(self, descriptor: int) -> None:
        self._file = Descriptor(descriptor)
        self.pid = os.getpid()
        _all_held.add(self)

    @property
    def descriptor(self) -> int:
        """The file descriptor."""
        return self._file.number

    def close(self) -> None:
        """Close the file. The lock is freed when no forked copy is open either."""
        self._file.close()


_all_held: WeakSet[Held] = WeakSet()


def close_inherited() -> None:
    """Close the parent's locks in a forked child. A thread that does not exist here may have had some."""
    for held in list(_all_held):
        if held.pid != os.getpid():
            held.close()


class Lock:
    """A locked file."""

    def __init__(self, path: Path) -> None:
        """Raises HeldError if another process has it, NotOursError, OSError."""
        import fcntl

        self.name = path.name
        while True:
            self._held = Held(segment.open_file(path, os.O_RDWR | os.O_CREAT))
            try:
                fcntl.flock(self._held.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_same(self._held.descriptor, path):
                    return
            except BlockingIOError as error:
                self.close()
                raise HeldError(*error.args) from None
            except BaseException:
                self.close()
                raise
            self.close()  # it was removed or replaced after it was opened

    def close(self) -> None:
        """Close the file."""
        self._held.close()


class JournalDirectory:
    """A directory whose owner lock this process has; or only the drain lock, if its writer is running."""

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
        self._is_owned = any(lock.name == OWNER for lock in locks)
        #: Callers and the drain side both make segments; `next` is one atomic step.
        self._ids = itertools.count(1)

    @classmethod
    def create(cls, root: Path, *, mapped: bool, synced: bool, drains: bool) -> JournalDirectory:
        """Make a directory of this process. drains: this process also sends its events. Raises OSError."""
        home = cls.begin(root, (OWNER, DRAIN) if drains else (OWNER,), mapped=mapped, synced=synced)
        try:
            home.publish()
        except BaseException:
            home.close()
            remove_unfinished(home.folder)
            raise
        return home

    @classmethod
    def begin(
        cls, root: Path, names_of_locks: Sequence[str], *, mapped: bool, synced: bool
    ) -> JournalDirectory:
        """Make a directory that no other process sees before `publish`. Raises OSError."""
        nonce = secrets.randbits(64)
        name = f"{nonce:016x}"
        home = cls(root, name, nonce, _make(root, name, names_of_locks), mapped=mapped, synced=synced)
        home.folder = root / (name + UNFINISHED)
        return home

    def publish(self) -> None:
        """Let other processes see the directory. Raises OSError."""
        self.folder.rename(self.root / self.name)
        self.folder = self.root / self.name
        if self.synced:
            segment.sync_folder(self.root)

    @classmethod
    def adopt(cls, root: Path, name: str) -> Optional[JournalDirectory]:
        """Take over the directory of an exited process; None if it runs, or if another process drains it.

        Raises OSError if that may work later.
        """
        return cls._lock(root, name, (OWNER, DRAIN))

    @classmethod
    def to_drain(cls, root: Path, name: str, *, synced: bool = False) -> Optional[JournalDirectory]:
        """Drain the directory of a process, exited or running; None if another does, or if it is gone.

        Raises OSError if that may work later.
        """
        home = cls._lock(root, name, (DRAIN,))
        if home is not None:
            home.synced = synced
            home.own()
        return home

    @classmethod
    def _lock(cls, root: Path, name: str, locks: Sequence[str]) -> Optional[JournalDirectory]:
        folder = root / name
        try:
            # A user may have removed the locks. If there is nothing of ours, no lock is made either.
            files = segment.listed(folder) if _is_ours(folder) else []
            if not any(each in (OWNER, DRAIN) or segment.is_segment(each) for each in files):
                return None
            held = _lock_all(folder, locks)
            home = cls(root, name, int(name, 16), held, mapped=False, synced=False)
            # This process makes only ledgers there.
            home._ids = itertools.count(1 + max(segment.ids(folder, fmt.LEDGER), default=0))
        except OSError as error:
            if is_transient(error):  # such as too many open files
                raise
            return None  # locked by others, gone, or not readable
        return home

    @property
    def is_owned(self) -> bool:
        """Whether no other process can write here."""
        return self._is_owned

    def own(self) -> bool:
        """Return whether the process that writes here has exited.

        Its lock need not be kept: only the process that made a directory ever writes to it.
        """
        if not self._is_owned:
            with contextlib.suppress(OSError):
                Lock(self.folder / OWNER).close()
                self._is_owned = True
        return self._is_owned

    def new_segment(self, kind: int, limit: int = fmt.SEGMENT_BYTES) -> Segment:
        """Make the next segment, with room up to *limit*. Raises OSError."""
        header = segment.new_header(kind, next(self._ids), self.nonce)
        return segment.create(self.folder, header, mapped=self.mapped, synced=self.synced, limit=limit)

    def restore(self) -> bool:
        """Make the directory again if it was removed. Returns whether that was so. Raises OSError."""
        if self.folder.is_dir():
            return False
        make_private(self.root)
        unfinished = self.root / (self.name + UNFINISHED)
        locks = _make(self.root, self.name, [lock.name for lock in self._locks])
        try:
            unfinished.rename(self.folder)
        except BaseException:
            for lock in locks:
                lock.close()
            remove_unfinished(unfinished)
            raise
        gone, self._locks = self._locks, locks
        for lock in gone:
            lock.close()
        return True

    def set_aside(self, segment_id: int, kind: int = fmt.EVENTS) -> Path:
        """Move a damaged segment to the folder for inspection; returns its new path. Raises OSError."""
        folder = self.root / BAD
        folder.mkdir(0o700, exist_ok=True)
        source = segment.path_of(self.folder, kind, segment_id)
        path = folder / f"{self.name}-{source.name}"
        source.rename(path)
        return path

    def trim(self) -> bool:
        """Free allocated but unused space, with all locks held. Returns whether an event remains."""
        is_left = False
        for segment_id in segment.ids(self.folder, fmt.EVENTS):
            path = segment.path_of(self.folder, fmt.EVENTS, segment_id)
            try:
                if segment.trim(path):
                    is_left = True
                else:
                    segment.remove(path)
            except OSError:  # it stays unchanged
                is_left = True
        for segment_id in segment.ids(self.folder, fmt.LEDGER):
            path = segment.path_of(self.folder, fmt.LEDGER, segment_id)
            with contextlib.suppress(OSError):
                if is_left:
                    segment.trim(path)
                else:
                    segment.remove(path)
        return is_left

    def remove(self) -> None:
        """Remove the directory, the locks last. Foreign files stay, and then so does the directory."""
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
        """Leave the directory to the next process."""
        for lock in self._locks:
            lock.close()
        self._locks.clear()


@contextlib.contextmanager
def growing(root: Path, most_s: float) -> Generator[bool, None, None]:
    """Be the only process to make a segment under *root* while a block of code runs.

    The block gets whether it is: another one is waited for, but only for *most_s*.
    """
    import fcntl

    try:
        held = Held(os.open(root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY))
    except OSError:  # not there yet, or too many open files: the next step reports it
        yield True
        return
    is_alone = False
    try:
        deadline_s = clock.now_s() + most_s
        while not is_alone and clock.now_s() < deadline_s:
            try:
                fcntl.flock(held.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_alone = True
            except OSError:
                clock.sleep(0.001)
        yield is_alone
    finally:
        held.close()


def _make(root: Path, name: str, names_of_locks: Sequence[str]) -> List[Lock]:
    """Make a directory under an unfinished name, with its locks. Raises OSError."""
    unfinished = root / (name + UNFINISHED)
    unfinished.mkdir(0o700)
    try:
        return _lock_all(unfinished, names_of_locks)
    except BaseException:
        remove_unfinished(unfinished)
        raise


def remove_unfinished(folder: Path) -> None:
    """Remove a directory that was never published, or the files of ours in one."""
    ours: List[str] = []
    # To list it takes a file descriptor. A lack of them may be why it is unfinished; then it has no segment.
    with contextlib.suppress(OSError):
        ours = [name for name in segment.listed(folder) if segment.is_segment(name)]
    with contextlib.suppress(OSError):
        for name in (*ours, COUNTERS, DRAIN, OWNER):
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


def is_transient(error: BaseException) -> bool:
    """Whether the operation may succeed later: a resource is short, or a disk had a transient error."""
    return isinstance(error, OSError) and error.errno in _TRANSIENT and not isinstance(error, HeldError)


def _is_ours(folder: Path) -> bool:
    """Whether *folder* is a directory of this user that no other user can write to. Raises OSError."""
    status = folder.lstat()
    is_private = status.st_uid == os.geteuid() and not status.st_mode & _OPEN_TO_OTHERS
    return is_private and stat.S_ISDIR(status.st_mode)


def is_held(path: Path) -> bool:
    """Whether a process has the lock on a lock file. Also True for a file that is not readable here."""
    import fcntl

    try:
        descriptor = segment.open_file(path, of_any_user=True)
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
    """Whether the open file is still the one at *path*, not removed or replaced."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
