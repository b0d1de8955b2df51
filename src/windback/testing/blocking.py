"""Tests send nothing to other machines: connections there are refused, and queued events for them are found.

This works the same for every engine: it uses counters and flush, and no internals.
"""

from __future__ import annotations

from typing import Callable, List, MutableMapping, Optional, Tuple
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from .. import clock
from ..base_url import is_loopback
from ..config import Config
from ..http import egress
from ..process import lifecycle

#: How long events that are queued at the end of a test get (seconds) to show their destination. A refused try
#: ends this, so it takes long only for a mocked server in trouble, or on a machine in trouble.
_GRACE_S = 10.0


Refuse = Callable[[str], Optional[str]]
OnForget = Callable[[lifecycle.Engine], object]


class Blocking:
    """The refused connections of the current test."""

    def __init__(self) -> None:
        self.tried: List[str] = []
        self._before: Tuple[Optional[Refuse], Optional[OnForget]] = (None, None)
        #: How many events of each engine were accepted before the test, or were found in it. An engine may be
        #: forgotten at any moment, also between two phases.
        self._accepted: MutableMapping[lifecycle.Engine, int] = WeakKeyDictionary()

    def begin(self) -> None:
        """Refuse connections to other machines from now on."""
        for engine in lifecycle.engines():
            self._accepted[engine] = engine.stats().accepted
        self._before = egress.refuse, lifecycle.on_forget
        egress.refuse, lifecycle.on_forget = self._refuse, self._find_left_events
        for sender in list(egress.senders):
            if _hosts_elsewhere(sender.config):
                sender.end_process()

    def _refuse(self, host: str) -> Optional[str]:
        if is_loopback(host):
            return None
        self.tried.append(host)
        return (
            f"tests send nothing to {host}: the fixture windback_events captures events, and windback_dev is "
            "a local server that answers all calls"
        )

    def end(self) -> Optional[str]:
        """Make clients of other machines try now. Returns the hosts that were tried.

        After that the earlier refusal applies: none, or that of an outer Blocking.
        """
        try:
            for engine in lifecycle.engines():
                self._find_events(engine)
            for sender in list(egress.senders):
                sender.wait_if_closed(clock.now_s() + _GRACE_S)
        finally:
            egress.refuse, lifecycle.on_forget = self._before
        hosts, self.tried = sorted(set(self.tried)), []
        return ", ".join(hosts) or None

    def _find_events(self, engine: lifecycle.Engine) -> None:
        self._find_left_events(engine)
        if engine.config.worker is not None and _hosts_elsewhere(engine.config) and engine.stats().pending:
            wait = engine.flush_from_outside(clock.now_s() + _GRACE_S)
            wait()  # refused events are rejected, so none remains for the next test

    def _find_left_events(self, engine: lifecycle.Engine) -> None:
        """Find events that the test left to a relay, which would send them as soon as it runs."""
        stats = engine.stats()
        is_new = stats.accepted > self._accepted.get(engine, 0)
        if engine.config.worker is None and stats.pending and is_new:
            self._accepted[engine] = stats.accepted
            self.tried += _hosts_elsewhere(engine.config)


def _hosts_elsewhere(config: Config) -> List[str]:
    """Return the other machines that a client sends to."""
    if config.broker is not None:
        hosts = [host for host, _ in config.broker.nodes]
    else:
        hosts = [urlsplit(config.base_url).hostname or ""]
    return [host for host in hosts if not is_loopback(host)]
