"""What an application and its sender process say to each other.

Lines over two pipes, and a block of shared memory in which the sender keeps its counters: they can be read
at any time without waking anybody, and they are still there when the sender is not.

    to the sender      first the options, as JSON; then WAKE, SLEEP_ON, FLUSH number patient, FLUSH_END number
    from the sender    JSON objects with one key: ready, asleep, log, report, gave_up

The end of the input tells the sender that the application is gone, or has closed its client.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import tempfile
from typing import Dict, NamedTuple, Optional
from zlib import crc32

import orjson

WAKE, SLEEP_ON, FLUSH, FLUSH_END = b"wake", b"sleep-on", b"flush", b"flush-end"

_BYTES = 1 << 16
_HEAD = struct.Struct("<II")
#: How often a reader meets a writer in the middle, at most.
_ATTEMPTS = 100


class Counters(NamedTuple):
    """What the sender knows. settled: events done with, by segment; seen: the highest segment it knows.

    adopted, adopted_pending: events that dead processes left, all and those still here. The others are
    those of Stats.
    """

    settled: Dict[int, int]
    seen: int = 0
    adopted: int = 0
    adopted_pending: int = 0
    in_flight: int = 0
    rejected_by_reason: Dict[str, int] = {}  # noqa: RUF012 - never changed
    requests: int = 0
    retries: int = 0
    worker_deaths: int = 0
    problem: Optional[str] = None


class Block:
    """Shared memory with the newest counters, written by one process and read by another."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _BYTES)

    @classmethod
    def create(cls) -> Block:
        """Make one that has no name. Raises OSError."""
        if sys.platform == "linux":
            descriptor = os.memfd_create("windback")
        else:
            descriptor, path = tempfile.mkstemp("windback")
            os.unlink(path)  # noqa: PTH108 - what mkstemp gives is text
        os.ftruncate(descriptor, _BYTES)
        return cls(descriptor)

    def write(self, counters: Counters) -> None:
        """Replace the counters. A reader that meets this in the middle reads again."""
        data = orjson.dumps(counters._asdict(), option=orjson.OPT_NON_STR_KEYS)
        if len(data) > _BYTES - _HEAD.size:  # thousands of segments; what is missing counts as pending
            data = orjson.dumps(counters._replace(settled={}, seen=0)._asdict())
        self._memory[: _HEAD.size + len(data)] = _HEAD.pack(len(data), crc32(data)) + data

    def read(self) -> Counters:
        """Return the newest counters."""
        for _ in range(_ATTEMPTS):
            length, crc = _HEAD.unpack_from(self._memory)
            data = self._memory[_HEAD.size : _HEAD.size + length]
            if length and crc32(data) == crc:
                counters = Counters(**orjson.loads(data))
                settled = {int(segment_id): count for segment_id, count in counters.settled.items()}
                return counters._replace(settled=settled)
            if not length:
                break
        return Counters({})

    def close(self) -> None:
        """Let go of it."""
        self._memory.close()
        os.close(self.descriptor)
