"""fsync=: a thread syncs the journal to disk, and no caller waits for that."""

from __future__ import annotations

import threading
from typing import Callable

from .maintenance import MaintenanceThread

#: The pause between two rounds (seconds). Without one, a round begins as soon as there is something new.
PAUSES_S = {"interval": 1.0, "batch": 0.0}


class FsyncThread:
    """The thread that syncs. sync: one round; returns whether anything was new. It sleeps when idle."""

    def __init__(self, sync: Callable[[], bool], fsync: str) -> None:
        self._sync = sync
        self._pause_s = PAUSES_S[fsync]
        self.reset()

    def reset(self) -> None:
        """Become as new, as in a forked child."""
        self._is_over = threading.Event()
        self._is_running = False
        self._maintenance = MaintenanceThread(self._go_on, "windback-sync")

    def wake(self) -> None:
        """Start to sync. Called by track_event, never waits."""
        if not self._is_running:
            self._maintenance.wake()

    def _go_on(self) -> None:
        self._is_running = True
        while not self._is_over.wait(self._pause_s):
            if not self._sync():
                self._is_running = False
                if not self._sync():  # looked at after that: from now on a caller wakes it
                    return
                self._is_running = True

    def close(self) -> None:
        """End it. What is written last, `release` of the queue syncs."""
        self._is_over.set()
        self._maintenance.close()
