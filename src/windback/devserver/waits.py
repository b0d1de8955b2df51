"""Waiting on purpose, in a way that ends when the server does."""

from __future__ import annotations

import asyncio
from typing import Awaitable, Set


class Waits:
    """All that waits: latencies, requests that hang, emails that take their time."""

    def __init__(self) -> None:
        self._waiting: Set[asyncio.Future[None]] = set()
        self._closing = False

    async def wait(self, what: Awaitable[None]) -> bool:
        """Wait; returns whether the wait ended by itself and not because the server stops."""
        waiting = asyncio.ensure_future(what)
        self._waiting.add(waiting)
        if self._closing:
            waiting.cancel()
        try:
            await waiting
        except asyncio.CancelledError:
            if not self._closing:
                raise
            return False
        finally:
            self._waiting.discard(waiting)
        return True

    async def sleep(self, seconds: float) -> bool:
        """The same for a time."""
        return await self.wait(asyncio.sleep(seconds))

    def close(self) -> None:
        """End all waiting."""
        self._closing = True
        for waiting in list(self._waiting):
            waiting.cancel()
