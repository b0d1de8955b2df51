"""Log lines that are written later, when no lock of this package is held.

A logging handler is the application's code: it may track events, wait for a lock of its own, or take long. So
code that has something to log under a lock appends it here, and it is written after the lock is released.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from typing import Deque, Tuple

logger = logging.getLogger("windback")

_lines: Deque[Tuple[int, str, Tuple[object, ...]]] = deque()


def later(level: int, message: str, *arguments: object) -> None:
    """Leave a line to be written."""
    _lines.append((level, message, arguments))


def write() -> None:
    """Write the pending lines."""
    while _lines:
        try:
            level, message, arguments = _lines.popleft()
        except IndexError:  # another thread was faster
            return
        with suppress(Exception):  # of a handler: it must end neither a worker nor the caller's call
            logger.log(level, message, *arguments)
