"""The database file: for its owner alone, and one of another version set aside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Optional

from .options import Options
from .store import OtherVersionError, Store


class Opened(NamedTuple):
    """The store, and where the file is now that had its place but another version."""

    store: Store
    set_aside: Optional[str]


def open_store(options: Options) -> Opened:
    """Open the database that *options* name; raises `sqlite3.Error` or `OSError` when that cannot be."""
    path = options.db
    if path is None:
        return Opened(Store(None, options.keep_events, options.keep_bytes), None)
    _make_private(path)
    try:
        return Opened(Store(path, options.keep_events, options.keep_bytes), None)
    except OtherVersionError as other:
        set_aside = _free_name(path, other.version)
    for suffix in ("-wal", "-shm", ""):
        if Path(path + suffix).exists():
            Path(path + suffix).rename(set_aside + suffix)
    _make_private(path)
    return Opened(Store(path, options.keep_events, options.keep_bytes), set_aside)


def _make_private(path: str) -> None:
    """Nobody else reads what customers did; the files that SQLite puts beside it get the same mode."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def _free_name(path: str, version: int) -> str:
    number = 0
    while True:
        name = f"{path}.schema-{version}" + (f".{number}" if number else "")
        if not Path(name).exists():
            return name
        number += 1
