"""Tests send nothing to other machines: connections there are refused, and what would go there is found."""

from __future__ import annotations

from typing import List, Optional
from urllib.parse import urlsplit

from .. import clock
from ..config import is_loopback
from ..delivery.engine import LocalEngine
from ..http import egress as guard
from ..process import lifecycle

#: What still waits when a test ends gets this long (seconds) to show where it wants to go. A refused try ends
#: it, so that long is waited only for a mocked server that has trouble, or on a machine that has.
_GRACE_S = 10.0


class Blocking:
    """What was tried in the test that runs, and must not be."""

    def __init__(self) -> None:
        self.tried: List[str] = []

    def begin(self) -> None:
        """Refuse connections to other machines from now on."""
        guard.refuse = self._refuse

    def _refuse(self, host: str) -> Optional[str]:
        if is_loopback(host):
            return None
        self.tried.append(host)
        return f"tests send nothing to {host}; see windback.testing"

    def end(self) -> Optional[str]:
        """Make clients that aim at another machine try now; say which were tried, and refuse no more."""
        try:
            for engine in lifecycle.engines():
                if isinstance(engine, LocalEngine) and self._holds_events_for_others(engine):
                    waits = engine.flush_from_outside(clock.now_s() + _GRACE_S)
                    waits()  # what is refused is rejected: none of it is left to the next test
        finally:
            guard.refuse = None
        hosts, self.tried = sorted(set(self.tried)), []
        return ", ".join(hosts) or None

    @staticmethod
    def _holds_events_for_others(engine: LocalEngine) -> bool:
        broker = engine.config.broker
        hosts = [urlsplit(engine.config.base_url).hostname or ""]
        if broker is not None:
            hosts = [host for host, _ in broker.nodes]
        return engine.scheduler.stats().pending > 0 and not all(map(is_loopback, hosts))
