"""A relay that runs beside a test."""

from __future__ import annotations

import contextlib
import threading


@contextlib.contextmanager
def running(relay):
    """Run a relay in a thread while a block of code runs."""
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        yield relay
    finally:
        relay.stop()
        thread.join()
