"""Looks up the addresses of a host within a deadline, which `getaddrinfo` does not know.

The look-up runs in a thread that can be left behind. While one is running, later tries wait for the same one,
so a resolver that hangs costs one thread, however often delivery is tried.
"""

from __future__ import annotations

import _thread
import codecs
import socket
from typing import Dict, List, Optional, Tuple

from .. import clock, event_loops

# For getaddrinfo, which loads it at first use: a fork at that moment would break the child for good.
codecs.lookup("idna")

#: The pauses between two looks at a look-up by a task: no event loop has a call from threads that all share.
_PAUSE_S, _PAUSE_CAP_S = 0.001, 0.05


class _LookUp:
    """One call of `getaddrinfo`. `lock` is held until it has an end."""

    def __init__(self, host: str, port: int, running: Dict[Tuple[str, int], _LookUp]) -> None:
        self.host = host
        self.port = port
        self._running = running
        self.addresses: Optional[List[str]] = None
        self.error: Optional[OSError] = None
        self.lock = _thread.allocate_lock()
        self.lock.acquire()

    def run(self) -> None:
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            self.addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        except OSError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - such as a name that no codec takes
            self.error = OSError(f"{type(error).__name__}: {error}")
        finally:
            if self.addresses is None and self.error is None:
                self.error = OSError("the look-up was interrupted")
            self._running.pop((self.host, self.port), None)  # the next try asks anew
            self.lock.release()

    def result(self) -> List[str]:
        if self.error is not None:
            # A new one each time: the traceback of one that is raised twice grows.
            raise type(self.error)(*self.error.args)
        assert self.addresses is not None
        return self.addresses


class Resolver:
    """The look-ups of one transport."""

    def __init__(self) -> None:
        self._running: Dict[Tuple[str, int], _LookUp] = {}

    def look_up(self, host: str, port: int, timeout_s: float) -> List[str]:
        """Return the addresses of *host*. Raises OSError, and TimeoutError after *timeout_s* seconds."""
        if is_address(host):
            return [host]
        started = self._start(host, port)
        if not started.lock.acquire(timeout=max(0.0, timeout_s)):
            raise _too_late(host)
        started.lock.release()
        return started.result()

    async def look_up_async(self, host: str, port: int, timeout_s: float) -> List[str]:
        """Do the same for a task."""
        if is_address(host):
            return [host]
        started = self._start(host, port)
        deadline_s = clock.now_s() + timeout_s
        pause_s = _PAUSE_S
        while started.lock.locked():
            if clock.now_s() >= deadline_s:
                raise _too_late(host)
            await event_loops.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_CAP_S)
        return started.result()

    def _start(self, host: str, port: int) -> _LookUp:
        running = self._running.get((host, port))
        if running is None:
            running = self._running[host, port] = _LookUp(host, port, self._running)
            try:
                _thread.start_new_thread(running.run, ())
            except RuntimeError:  # out of threads, or the interpreter is going down
                running.run()
        return running


def is_address(host: str) -> bool:
    """Return whether *host* is an IP address, which needs no look-up."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False


def _too_late(host: str) -> TimeoutError:
    return TimeoutError(f"looking up the address of {host} took too long")
