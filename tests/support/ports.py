"""Ports for servers that a test starts as a program of its own."""

from __future__ import annotations

import random
import socket
from contextlib import closing, suppress

#: A generator that no test seeds: tests that run side by side must not draw the same ports.
_RANDOM = random.SystemRandom()


def free_port() -> int:
    """Return a port that the system gives to nobody who asks for any: a server may start later, and again.

    The nodes of a cluster of Redis use the port 10,000 higher as well.
    """
    while True:
        port = _RANDOM.randrange(12_000, 22_000)
        with closing(socket.socket()) as taken, suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port
