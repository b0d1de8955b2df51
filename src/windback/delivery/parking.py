"""Who sleeps, and how they are woken."""

from __future__ import annotations

from typing import Protocol


class Waker(Protocol):
    """Something that sleeps."""

    def release(self) -> None:
        """End its sleep, from any thread; a second time does nothing."""
