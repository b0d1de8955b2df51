"""Directories that options name, and the one that worker="process" makes for itself."""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, List, Optional

from .errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("windback")

#: A file system in memory. A directory in it is made for this user alone.
_MEMORY = "/dev/shm"  # noqa: S108


def directory(name: str, value: object) -> Path:
    """Return the absolute path in the option *name*. Raises ConfigurationError."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ConfigurationError(f"{name} must be the path of a directory, not {value!r}")
    from pathlib import Path

    path = Path(os.fsdecode(value)).absolute()  # a program may change its working directory later
    if path.exists() and not path.is_dir():
        raise ConfigurationError(f"{name} {str(path)!r} is not a directory")
    return path


def in_memory(digest: str) -> Optional[Path]:
    """Return a private directory in memory, named by *digest*; None if none can be made.

    If another user has taken the name, other names are tried.
    """
    import tempfile
    from pathlib import Path

    places = [Path(_MEMORY)]
    with suppress(OSError):  # no temporary directory is writable either
        places.append(Path(tempfile.gettempdir()))
    name = f"windback-{os.getuid()}-{digest}"
    folders = [place / f"{name}{suffix}" for place in places for suffix in ("", "-1", "-2", "-3")]
    reasons: List[str] = []
    for folder in folders:
        reason = why_not_private(folder)
        if reason is None:
            if reasons and folder.parent == places[0]:
                logger.warning("%s can't be used (%s); using %s instead", folders[0], reasons[0], folder)
            return folder
        reasons.append(reason)
    logger.warning(
        "worker='process' needs a directory, but %s can't be used (%s); events are sent from this process",
        folders[0],
        reasons[0],
    )
    return None


def why_not_private(folder: Path) -> Optional[str]:
    """Make a directory for this user alone. Returns why that failed, or None."""
    try:
        with suppress(FileExistsError):
            folder.mkdir(0o700)
        status = folder.lstat()
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a directory"
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    return "other users may write to it" if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None
