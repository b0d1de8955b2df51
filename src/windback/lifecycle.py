"""How a process ends and forks: the one place that knows every client's threads, locks and connections.

A client registers its Core here; nothing else in the package installs an exit handler or a fork hook.
Each Core owns everything that must not cross a fork (the dispatcher's lock, the transports' locks, the
queue, the workers), so `Core.reset` is all a child has to do.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from typing import List, Protocol

logger = logging.getLogger("windback")


class Core(Protocol):
    """What the end of a process and a fork need of a client."""

    def begin_exit(self) -> None:
        """Accept nothing more, start no thread, hurry the workers."""

    def finish_exit(self, deadline_s: float) -> int:
        """Wait for what is left, or send it; return how many events were given up."""
        ...

    def reset(self) -> None:
        """Become empty, in a forked child."""

    shutdown_timeout: float


#: Held while httpx and its kind are imported. A fork waits for it: in a child the import lock of a half
#: loaded module would belong to a thread that does not exist there.
loading = threading.Lock()
#: A fork waits no longer than this, whatever an import does.
_LOADING_S = 5.0

_cores: List[Core] = []
_waits: List[bool] = []
_installed = False


def register(core: Core) -> None:
    """Have *core* drained at exit and emptied in forked children."""
    global _installed  # noqa: PLW0603 - hooks can be installed once for a process only
    if not _installed:
        _installed = True
        atexit.register(_at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
    _cores.append(core)


def forget(core: Core) -> None:
    """The counterpart of `register`, for a client that was closed."""
    if core in _cores:
        _cores.remove(core)


def _at_exit() -> None:
    """Drain all clients within the longest of their deadlines, all of them at the same time."""
    cores = list(_cores)
    if not cores:
        return
    started_s = time.monotonic()
    for core in cores:
        core.begin_exit()
    left = sum(core.finish_exit(started_s + core.shutdown_timeout) for core in cores)
    if left:
        logger.warning("%d events were not delivered before the process ended", left)


def _before_fork() -> None:
    _waits.append(loading.acquire(timeout=_LOADING_S))


def _in_parent() -> None:
    if _waits.pop():
        loading.release()


def _in_child() -> None:
    _in_parent()
    for core in _cores:
        core.reset()
