"""Relays of journals: they send the events that other processes wrote under one directory.

`windback relay --journal DIR` runs one as a service: for running processes made with worker=None, which send
nothing themselves, and for the events of exited processes. The sender of worker="process" is another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Collection, Dict, List, Optional, Union

from ..broker.layout import Numbers
from ..config import OPTIONS, Config, resolve_for_sender
from ..delivery.engine import LocalEngine
from ..delivery.workers.threads import ThreadWaker
from ..journal.directory import open_root
from ..options import PathLike, naming_options
from ..stats import DeliveryReport, Stats
from .forwarder import POLL_S, Forwarder
from .queue import RelayQueue


class JournalSender(Forwarder):
    """Common to a relay of journals and the sender of worker="process". only: names of directories."""

    def __init__(
        self, config: Config, only: Optional[Collection[str]], poll_s: float, *, is_watched: bool = True
    ) -> None:
        assert config.journal is not None
        root: Path = config.journal
        open_root(root)

        queue = RelayQueue(
            root, only, fsync=config.fsync is not None, max_journal_bytes=config.max_journal_bytes
        )
        engine = LocalEngine(config, queue=queue, sync=queue.sync, is_watched=is_watched)
        self._queue = queue
        super().__init__(engine, queue, poll_s, ThreadWaker())

    def poll(self) -> bool:
        """Check for events once, and let the workers send them.

        Returns:
            Whether to check again immediately.
        """
        is_busy = super().poll()
        if self._queue.wants_sync:
            self._engine.sync_soon()
        return is_busy


class Relay(JournalSender):
    """A relay of journals. Safe to use from several threads; `run` and `drain` are for one of them."""

    @naming_options
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
        """Make a relay for all journals in a directory.

        Args:
            journal: The directory, which is made if it does not exist.
            api_key: The secret key, "sk_…". Environment: WINDBACK_API_KEY.
            base_url: The URL of the API. Environment: WINDBACK_BASE_URL.
            timeout: Seconds that one try may take.
            max_retries: Retries after a temporary failure.
            batch_size: Events in one request; 100 is the API's limit.
            max_batch_bytes: Bytes of one request's body.
            flush_interval: Seconds that an event may wait for others to share its request.
            max_in_flight: Requests that may run at the same time.
            compress: Compress batches with gzip until the API refuses it.
            on_delivery: A function that gets a DeliveryReport for each batch.
            shutdown_timeout: Seconds that the end may take.
            poll_interval: Seconds between two checks for new events while there are none.
            fsync: How often delivery progress is synced to disk: "interval", every second, or "batch". None:
                the kernel writes it. The applications sync the events themselves.

        Raises:
            ConfigurationError: An option is wrong.
        """
        given = {name: value for name, value in locals().items() if name in OPTIONS}
        config = resolve_for_sender(**given)
        super().__init__(config, None, poll_interval)

    def poll(self) -> bool:
        """Check for events once, let the workers send them, and write the progress for running processes.

        Returns:
            Whether to check again immediately.
        """
        is_busy = super().poll()
        problem = self.stats().problem
        with self._scheduler.lock:
            tell = self._queue.progress(problem, is_retrying=self._scheduler.gate.is_retrying)
        tell()
        return is_busy

    def by_project(self) -> Dict[str, Stats]:
        """Return the counts of `stats` under "": a journal does not contain the name of its project.

        Returns:
            The counts.
        """
        return {"": self.stats()}

    def claimed(self) -> Dict[str, int]:
        """Return an empty mapping: `Stats.adopted` counts the events of exited processes.

        Returns:
            An empty mapping.
        """
        return {}

    def standing(self) -> List[Numbers]:
        """Return an empty list: there is no broker.

        Returns:
            An empty list.
        """
        return []
