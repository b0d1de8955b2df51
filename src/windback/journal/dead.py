"""Dead letters: what the API rejected, with the reason, as JSON lines for people and for a replay.

One file for each directory that a process wrote, so that no two write to the same.
"""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Sequence

import orjson

from .home import DEAD
from .segment import listed

_SUFFIX = ".jsonl"
#: A project whose every event is rejected must not fill the disk.
MAX_BYTES = 64 * 1024 * 1024


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
) -> bool:
    """Keep rejected events; False if there are too many already. Raises OSError."""
    folder = root / DEAD
    folder.mkdir(0o700, exist_ok=True)
    at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    lines = b"".join(
        orjson.dumps(Letter(at, reason, status, message, key, orjson.Fragment(record))._asdict()) + b"\n"
        for record in records
    )
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder / (name + _SUFFIX), flags, 0o600)
    try:
        if os.fstat(descriptor).st_size + len(lines) > MAX_BYTES:
            return False
        os.write(descriptor, lines)
    finally:
        os.close(descriptor)
    return True


def files(root: Path) -> List[Path]:
    """Return the paths of all files of dead letters under *root*."""
    folder = root / DEAD
    return [folder / name for name in sorted(listed(folder)) if name.endswith(_SUFFIX)]


def read(path: Path) -> Iterator[Letter]:
    """Yield the letters of one file, without a last line that was cut off. Raises OSError."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield Letter(**orjson.loads(line))
            except (orjson.JSONDecodeError, TypeError):
                continue
