"""Relays of journals: they send what other processes wrote under one directory.

`windback relay --journal DIR` runs one as a service of its own: for running processes made with worker=None,
which send nothing themselves, and for what exited processes left. The sender of worker="process" is another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Collection, Dict, List, Optional, Union

from ..broker.layout import Numbers
from ..config import Config, resolve_for_sender
from ..delivery.engine import LocalEngine
from ..delivery.workers.threads import ThreadWaker
from ..journal.directory import open_root
from ..options import PathLike
from ..secrets import hidden
from ..stats import DeliveryReport, Stats
from .forwarder import POLL_S, Forwarder
from .queue import RelayQueue


class JournalSender(Forwarder):
    """What a relay of journals and the sender of worker="process" share. only: names of directories."""

    def __init__(
        self, config: Config, only: Optional[Collection[str]], poll_s: float, *, is_watched: bool = True
    ) -> None:
        assert config.journal is not None
        root: Path = config.journal
        open_root(root)

        queue = RelayQueue(root, only, fsync=config.fsync is not None)
        engine = LocalEngine(config, queue=queue, sync=queue.sync, is_watched=is_watched)
        self._queue = queue
        super().__init__(engine, queue, poll_s, ThreadWaker())

    def poll(self) -> bool:
        """Look for events once, and have the workers send them; whether to look again at once."""
        is_busy = super().poll()
        if self._queue.wants_sync:
            self._engine.sync_soon()
        return is_busy


class Relay(JournalSender):
    """A relay of journals. Safe to use from several threads; `run` and `drain` are for one of them."""

    def __init__(
        self,
        journal: Union[str, PathLike],
        api_key: Optional[str] = None,
        *,
        base_url: Optional[str] = None,
        timeout: float = 10.0,
        max_retries: int = 3,
        batch_size: int = 100,
        max_batch_bytes: int = 500_000,
        flush_interval: float = 1.0,
        max_in_flight: int = 4,
        compress: bool = False,
        on_delivery: Optional[Callable[[DeliveryReport], object]] = None,
        shutdown_timeout: float = 5.0,
        poll_interval: float = POLL_S,
        fsync: Optional[str] = None,
    ) -> None:
        """Make a relay for all journals under the directory *journal*, which is made if it isn't there.

        What is None is read from the environment, as by Windback, whose options these are. poll_interval:
        seconds between two looks for new events while there are none. fsync: how soon what it notes of its
        deliveries is on the disk, in case of a power cut; events are the applications' to sync.
        Raises ConfigurationError.
        """
        key = hidden(api_key)
        api_key = None
        config = resolve_for_sender(
            api_key=key,
            base_url=base_url,
            journal=journal,
            timeout=timeout,
            max_retries=max_retries,
            batch_size=batch_size,
            max_batch_bytes=max_batch_bytes,
            flush_interval=flush_interval,
            max_in_flight=max_in_flight,
            compress=compress,
            on_delivery=on_delivery,
            shutdown_timeout=shutdown_timeout,
            fsync=fsync,
        )
        super().__init__(config, None, poll_interval)

    def poll(self) -> bool:
        """Look for events once, have the workers send them, and tell living processes how far they are."""
        is_busy = super().poll()
        problem = self.stats().problem
        with self._dispatcher.lock:
            tell = self._queue.progress(problem, is_retrying=self._dispatcher.gate.is_retrying)
        tell()
        return is_busy

    def by_project(self) -> Dict[str, Stats]:
        """Return what `stats` does: it has one project, whose name it does not know."""
        return {"": self.stats()}

    def claimed(self) -> Dict[str, int]:
        """Return nothing: what a dead process left is in `Stats.adopted`, with the rest."""
        return {}

    def standing(self) -> List[Numbers]:
        """Return nothing: there is no broker."""
        return []
