"""The queue of a relay: events that other processes write, and that only this one sends.

Nobody calls `put`; `poll` reads what there is. It is for one thread, without the drain side's lock.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Callable, Collection, Dict, List, Optional, Tuple

from ..errors import ClosedError
from ..journal.format import ForeignError
from ..journal.home import Home, names
from ..journal.reader import Found, Reader
from ..queue.base import Batch
from .sourced import READ_AHEAD, SourcedQueue

logger = logging.getLogger("windback")


class RelayQueue(SourcedQueue):
    """See the module. only: names of directories to care for; None for all under *root*."""

    __slots__ = ("_left_alone", "_only", "_queued_before", "readers")

    def __init__(
        self,
        root: Path,
        wake: Callable[[], None],
        on_full: Callable[[str], None],
        only: Optional[Collection[str]] = None,
    ) -> None:
        self._only = only
        self.readers: Dict[str, Reader] = {}
        super().__init__(root, "drop_newest", wake, on_full)

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, which owns nothing there."""
        for reader in self.readers.values():
            reader.close()
        super().reset()
        self.readers = {}
        self._left_alone: List[str] = []
        self._queued_before = 0

    def put(self, record: bytes) -> bool:
        """Refuse: a relay makes no events of its own."""
        del record
        message = "a relay sends what others track; make a Windback client to track events"
        raise ClosedError(message)

    def poll(self) -> Callable[[], int]:
        """Read what is new. What is returned is called under the lock, and says how many events there were.

        Raises nothing: a directory with trouble is left alone, with one log line.
        """
        leased: List[Batch] = []
        found: List[Found] = []
        for name in self._new_names():
            reader = self._open(name)
            if reader is not None:
                self.readers[name] = reader
                leased += reader.leased()
        for name, reader in list(self.readers.items()):
            try:
                if reader.clear():
                    self.lost += reader.lost
                    self._queued_before += reader.queued
                    del self.readers[name]
                elif reader.outstanding < READ_AHEAD:
                    found += reader.read(READ_AHEAD)
            except (OSError, ForeignError) as error:
                self._leave(name, error)
                reader.close()
                del self.readers[name]

        def take_in() -> int:
            self.take_in_leased(leased)
            self.take_in(found)
            return len(found) + sum(map(len, leased))

        return take_in

    def _new_names(self) -> List[str]:
        with suppress(OSError):
            known = {*self.readers, *self._left_alone}
            candidates = names(self._root) if self._only is None else self._only
            return [name for name in candidates if name not in known]
        return []

    def _open(self, name: str) -> Optional[Reader]:
        home = Home.attend(self._root, name)
        if home is None:
            return None
        try:
            return Reader(home)
        except (OSError, ForeignError) as error:
            self._leave(name, error)
            home.close()
            return None

    def _leave(self, name: str, error: Exception) -> None:
        self._left_alone.append(name)
        logger.warning("journal %s/%s: left alone: %s", self._root, name, error)

    def of_others(self, name: str) -> Tuple[int, int]:
        """Return how many events were read from others than *name*, and how many of them are still here."""
        others = [reader for reader in self.readers.values() if reader.name != name]
        queued = self._queued_before + sum(reader.queued for reader in others)
        return queued, sum(reader.outstanding for reader in others)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to wait for: no directory is cared for, and no event waits."""
        return not self.readers and not self.waiting().events

    def release(self) -> None:
        """Leave what is there to who comes next."""
        for reader in self.readers.values():
            with suppress(OSError):
                reader.clear()
            reader.close()
        self.readers = {}
