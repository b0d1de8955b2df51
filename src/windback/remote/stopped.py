"""Whether the process that sends is stopped (SIGSTOP, Ctrl-Z, a debugger): it has its locks, and waits.

Linux reports it in /proc. On other systems, and for a process that this one can't see, it is unknown.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional


def holder_of(path: Path) -> Optional[int]:
    """Return the process id of who holds a lock on a file (flock); None if that is not known."""
    try:
        status = path.stat()
        locks = Path("/proc/locks").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    # 1: FLOCK  ADVISORY  WRITE 4242 fe:01:131091 0 EOF
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in locks.splitlines():
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == place and fields[4].isdigit():
            return int(fields[4]) or None
    return None


def is_stopped(pid: Optional[int]) -> bool:
    """Whether a process is stopped; False if that is not known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    # 4242 (a name, with spaces) T ...
    return text.rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])


def problem_of(what: str, pid: Optional[int]) -> str:
    """Return the problem of a stopped process."""
    return f"{what} (process {pid}) is stopped and sends nothing; continue it: `kill -CONT {pid}`"
