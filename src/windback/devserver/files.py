"""The database file: for its owner and for one server alone, and one of another version set aside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Optional

from .options import Options
from .store import OtherVersionError, Store

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ModuleNotFoundError:  # Windows

    def _lock(descriptor: int) -> None:
        """Nothing keeps a second server out there."""

else:

    def _lock(descriptor: int) -> None:
        flock(descriptor, LOCK_EX | LOCK_NB)


class Opened(NamedTuple):
    """The store, and where the file is now that had its place but another version."""

    store: Store
    set_aside: Optional[str]


class InUseError(OSError):
    """Another server has the file."""

    def __str__(self) -> str:
        return "another windback dev is using it; name another file, or stop that one"


def open_store(options: Options) -> Opened:
    """Open the database that *options* name; raises `sqlite3.Error` or `OSError` when that cannot be."""
    path = options.db
    if path is None:
        return Opened(Store(None, options.keep_events, options.keep_bytes), None)
    _keep_others_out(path)
    _create(path)
    try:
        return Opened(Store(path, options.keep_events, options.keep_bytes), None)
    except OtherVersionError as other:
        set_aside = _free_name(path, other.version)
    for suffix in ("-wal", "-shm", ""):
        if Path(path + suffix).exists():
            Path(path + suffix).rename(set_aside + suffix)
    _create(path)
    return Opened(Store(path, options.keep_events, options.keep_bytes), set_aside)


def _keep_others_out(path: str) -> None:
    """Two servers would give the same ids to different events. The kernel frees the lock when this one ends.

    It is on a file of its own: closing the database would free the locks of SQLite on it.
    """
    descriptor = os.open(path + "-lock", os.O_RDWR | os.O_CREAT, 0o600)  # open as long as the process is
    try:
        _lock(descriptor)
    except OSError:
        os.close(descriptor)
        raise InUseError from None


def _create(path: str) -> None:
    """Nobody else reads what customers did; the files that SQLite puts beside it get the same mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _free_name(path: str, version: int) -> str:
    number = 0
    while True:
        name = f"{path}.schema-{version}" + (f".{number}" if number else "")
        if not Path(name).exists():
            return name
        number += 1
