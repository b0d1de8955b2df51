"""A file descriptor that is closed when nobody refers to it any more.

So a thread that uses it needs no lock against one that releases it, and an exception in the thread that
opened it leaves nothing open.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Callable


class Descriptor:
    """A number that the system gave for an open file."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        """Close it now: nobody uses it."""
        number, self.number = self.number, -1
        if number >= 0:
            os.close(number)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        number = getattr(self, "number", -1)  # an exception may have struck before it was set
        if number >= 0:
            with suppress(OSError):
                close(number)
