"""Tells who watches that something may have changed. What it was, each finds out from cursors of its own."""

from __future__ import annotations

import asyncio
from typing import Set


class Hub:
    """The streams and waits that are open."""

    def __init__(self) -> None:
        self._listeners: Set[asyncio.Event] = set()

    def listen(self) -> asyncio.Event:
        """An event that is set at each change; give it back with `leave`."""
        listener = asyncio.Event()
        self._listeners.add(listener)
        return listener

    def leave(self, listener: asyncio.Event) -> None:
        """Nobody listens to it any more."""
        self._listeners.discard(listener)

    def touch(self) -> None:
        """Something may have changed."""
        for listener in self._listeners:
            listener.set()
