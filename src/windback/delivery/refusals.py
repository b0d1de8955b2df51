"""The log lines about events that track_event turned away."""

from __future__ import annotations

import logging
import sys
import threading

from ..process import lifecycle

logger = logging.getLogger("windback")


def log_refusal(why: str) -> None:
    """Log that events are refused. why: "closed", or the overflow policy of a full queue."""
    if why != "closed":
        what = "the oldest events make room" if why == "drop_oldest" else "new events are refused"
        logger.warning("the queue is full, and %s; they are counted in stats()", what)
    elif not lifecycle.exiting or (
        # While the interpreter ends, a daemon thread that writes could stop it at the lock of stderr,
        # and for a late finalizer half of what logging needs is gone.
        threading.current_thread() is threading.main_thread() and not sys.is_finalizing()
    ):
        logger.warning(
            "track_event was called after this client was closed: the event is not sent; "
            "further ones are only counted, in stats().refused['closed']"
        )
