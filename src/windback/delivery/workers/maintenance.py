"""A thread for work that is too slow for a request. It sleeps until a caller wakes it."""

from __future__ import annotations

import _thread
import contextlib
import logging
import threading
from typing import Callable, Optional

from ...process import lifecycle
from ...turns import Turn
from .threads import ThreadWaker

logger = logging.getLogger("windback")


class MaintenanceThread:
    """A thread for slow work. The first `wake` starts it; maintain: called each time; name: of the thread.

    look: called if nobody woke it for `rest_s()` seconds; None: it sleeps until it is woken.
    """

    def __init__(
        self,
        maintain: Callable[[], object],
        name: str = "windback-maintenance",
        *,
        look: Callable[[], object] = lambda: None,
        rest_s: Callable[[], Optional[float]] = lambda: None,
    ) -> None:
        self._maintain = maintain
        self._look = look
        self._rest_s = rest_s
        self._name = name
        self._starting = Turn(self._start)
        self._waker: Optional[ThreadWaker] = None
        self._ident: Optional[int] = None
        self._is_closed = False

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is this one."""
        return threading.get_ident() == self._ident

    def wake(self) -> bool:
        """Start a round soon. Never waits for it. Return whether there is a thread for it."""
        if self._waker is None and not self._is_closed and lifecycle.why_no_threads() is None:
            self._starting.take()
        waker = self._waker
        if waker is not None:
            waker.release()
        return waker is not None

    def _start(self) -> None:
        try:
            if self._waker is None:
                self._waker = ThreadWaker()
                _thread.start_new_thread(self._run, ())
        except RuntimeError:  # no thread may be started: a flush does the work, and so does the exit
            self._waker = None
        except BaseException:
            self._waker = None  # the next call tries again
            raise

    def _run(self) -> None:
        self._ident = threading.get_ident()
        with contextlib.suppress(Exception):
            threading.current_thread().name = self._name
        was_woken = True
        while True:
            self._waker = waker = ThreadWaker()
            if self._is_closed:  # looked at after that: `close` may have released the one before
                return
            try:
                (self._maintain if was_woken else self._look)()
            except Exception as error:  # noqa: BLE001 - the next event tries again
                logger.warning("maintenance of the journal failed: %s: %s", type(error).__name__, error)
            was_woken = waker.sleep(self._rest_s())

    def close(self) -> None:
        """Make the thread end."""
        self._is_closed = True
        if self._waker is not None:
            self._waker.release()
