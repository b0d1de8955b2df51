"""Counters from the sending to the writing process: a file that can be read at any time without a wake-up.

They are still there when the sender is not. The sender of worker="process" keeps them in memory without a
name; a relay in the writer's directory, in a file that the writer made.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Dict, NamedTuple, Optional
from zlib import crc32

import orjson

from ..descriptor import Descriptor
from ..journal.directory import is_same
from ..journal.segment import open_file

_BYTES = 1 << 16
_HEAD = struct.Struct("<II")
#: How often a reader meets a writer in the middle, at most.
_ATTEMPTS = 100


class Counters(NamedTuple):
    """What the sender knows. settled: events done with, by segment; seen: the highest segment it knows.

    adopted, adopted_pending: events that dead processes left, all and those still here. The others are
    those of Stats. problem: why a flush without a timeout gives up; last_failure: why events can't be
    delivered, None while it is not.
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
    last_failure: Optional[str] = None
    #: The last look for what exited processes left whose finds are all settled. A relay does not count them.
    looked: int = 0


#: Fields that earlier versions do not know. A name that these do not know ends them, so what these have is
#: behind the end of what they read.
_LATER = ("last_failure", "looked")


def _framed(data: bytes) -> bytes:
    return _HEAD.pack(len(data), crc32(data)) + data


def _unframed(content: bytes, at: int) -> Optional[bytes]:
    """Return what is framed at offset *at*; None if it is not whole."""
    if len(content) < at + _HEAD.size:
        return None
    length, crc = _HEAD.unpack_from(content, at)
    data = content[at + _HEAD.size : at + _HEAD.size + length]
    return data if crc32(data) == crc else None


def _fields_of(data: bytes) -> Dict[str, object]:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _counters_of(fields: Dict[str, object]) -> Counters:
    """Return the counters that are among *fields*, each of the type it must have."""
    settled = {}
    for name, count in _counts_of(fields.get("settled")).items():
        with suppress(ValueError):
            settled[int(name)] = count
    known: Dict[str, object] = {"rejected_by_reason": _counts_of(fields.get("rejected_by_reason"))}
    for name, default in Counters._field_defaults.items():
        if name not in known:
            value = fields.get(name)
            known[name] = value if type(value) is (int if default == 0 else str) else default
    return Counters(settled, **known)  # type: ignore[arg-type]  # each was checked


def _counts_of(value: object) -> Dict[str, int]:
    if not isinstance(value, dict):
        return {}
    return {name: count for name, count in value.items() if type(count) is int}


class Block:
    """A file with the newest counters, written by one process and read by another; it may have no name.

    It is not mapped: if the other process truncates it, or the disk is full, a mapping is fatal.
    """

    def __init__(self, descriptor: int) -> None:
        self._file = Descriptor(descriptor)

    @property
    def descriptor(self) -> int:
        """The file descriptor, for as long as somebody refers to this."""
        return self._file.number

    @classmethod
    def create(cls) -> Block:
        """Make one in memory, where there is a way to, that has no name. Raises OSError."""
        if sys.platform == "linux":
            return cls(os.memfd_create("windback"))
        descriptor, path = tempfile.mkstemp("windback")
        os.unlink(path)  # noqa: PTH108 - what mkstemp gives is text
        return cls(descriptor)

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Block:
        """Open the one at *path*, which is made if it isn't there and *create*. Raises OSError."""
        return cls(open_file(path, os.O_RDWR | (os.O_CREAT if create else 0)))

    def is_at(self, path: Path) -> bool:
        """Whether it is the file at *path*, and not one that was removed or replaced since."""
        return is_same(self.descriptor, path)

    def write(self, counters: Counters) -> None:
        """Replace the counters. A reader that meets this in the middle reads again. Raises OSError."""
        fields = counters._asdict()
        later = {name: fields.pop(name) for name in _LATER}
        data = orjson.dumps(fields, option=orjson.OPT_NON_STR_KEYS)
        more = orjson.dumps(later)
        if len(data) + len(more) > _BYTES - 2 * _HEAD.size:  # thousands of segments; those count as pending
            data = orjson.dumps({**fields, "settled": {}, "seen": 0})
        os.pwrite(self.descriptor, _framed(data) + _framed(more), 0)

    def read(self) -> Counters:
        """Return the newest counters. Those of another version, or of nobody's, are what is known of them."""
        for _ in range(_ATTEMPTS):
            content = os.pread(self.descriptor, _BYTES, 0)
            if len(content) < _HEAD.size:
                break
            data = _unframed(content, 0)
            if data is None:
                continue  # a writer was met in the middle
            more = _unframed(content, _HEAD.size + len(data)) or b"{}"
            return _counters_of({**_fields_of(more), **_fields_of(data)})
        return Counters({})
