r"""The bytes of a segment: how a record is written so that a half-written one never counts.

Pure: bytes in, bytes out. All numbers are little-endian, and everything is aligned to multiples of 8.

A segment is a file of `SEGMENT_BYTES`, zero behind its last record (some of that may be a hole):

    header, 64 bytes    magic "WBSG\r\n\x1a\n" (8), version (2), header length (2), kind (2), flags (2),
                        segment id (4), nonce of the directory (8), pid (4), created, ns since the epoch,
                        for people (8), crc32 of all that (4), zeros, and at 60: the end (4), see below;
                        these first 44 bytes are the same in every version
    record, 16 + n      length n (4), crc (4), sequence (4), zero (4), the payload, zeros up to the next 8

The payload is written first and the record's header last. Length 0 is the end, so a record counts when
its header is there, and a record that a killed process had half written does not count. `end` is 0 while the
segment may grow, and then the offset behind its last record; it is a hint for readers of a running process.

The crc starts from a value made of the directory's nonce, the segment's id, the offset, the length and
the sequence. So a record is valid in one place only. A copy of it elsewhere, a segment inside a payload, old
bytes of the disk block, or a record with a flipped bit in its header are all invalid. Records are
independent, so a damaged one costs no other: the scan tries every later multiple of 8.
"""

from __future__ import annotations

import struct
from typing import Iterator, NamedTuple, Optional, Union
from zlib import crc32

SEGMENT_BYTES = 1 << 20
#: How many bytes of it a ledger, and the first segment of a process, may use before there is another.
SMALL_BYTES = 1 << 16
HEADER_BYTES = 64
RECORD_BYTES = 16
#: The longest event: the room in an empty segment.
MAX_PAYLOAD_BYTES = SEGMENT_BYTES - HEADER_BYTES - RECORD_BYTES

EVENTS, LEDGER = 1, 2
VERSION = 1

_MAGIC = b"WBSG\r\n\x1a\n"
_HEADER = struct.Struct("<8sHHHHIQIQ")
_CRC = struct.Struct("<I")
RECORD = struct.Struct("<IIII")
END = struct.Struct("<I")
END_AT = 60

# Odd, so that each multiplication is reversible: two places never get the same start value for a reason
# as simple as "one record further".
K_OFFSET, K_LENGTH, K_SEQUENCE = 2654435761, 2246822519, 668265263
MASK = 0xFFFFFFFF

#: How many bytes a scan reads, at most, where there is no valid record. Damage needs few: random bytes seldom
#: have the zeros of a header at the right place. Bytes made to look like headers must not keep a scan busy.
_MAX_RUBBISH_BYTES = 32 * SEGMENT_BYTES
#: Zeros are skipped in steps of up to this many bytes. So the free end of a segment takes no time, and random
#: bytes with gaps don't have the whole rest copied for each gap.
_MAX_STRIDE = 4096
_ZEROS = bytes(_MAX_STRIDE)

Bytes = Union[bytes, bytearray, memoryview]


class Header(NamedTuple):
    """The description that a segment contains of itself."""

    kind: int
    segment_id: int
    nonce: int
    pid: int
    created_ns: int
    version: int = VERSION


class Record(NamedTuple):
    """One record found in a segment: its offset, the offset of the next one, its number there."""

    at: int
    until: int
    sequence: int
    payload: bytes


class ForeignError(ValueError):
    """These bytes are not a segment of ours."""


class NewerError(ForeignError):
    """A segment of a later version than this one can read; leave it alone."""


def pack_header(header: Header) -> bytes:
    """Return the first HEADER_BYTES of a segment."""
    head = _HEADER.pack(
        _MAGIC,
        header.version,
        HEADER_BYTES,
        header.kind,
        0,
        header.segment_id,
        header.nonce,
        header.pid,
        header.created_ns,
    )
    return (head + _CRC.pack(crc32(head))).ljust(HEADER_BYTES, b"\0")


def read_header(data: Bytes) -> Header:
    """Read what `pack_header` wrote. Raises ForeignError, NewerError."""
    head = bytes(data[: _HEADER.size])
    if len(data) < HEADER_BYTES or head[:8] != _MAGIC:
        raise ForeignError("this is not a segment of a windback journal")
    _, version, header_bytes, kind, _, segment_id, nonce, pid, created_ns = _HEADER.unpack(head)
    # Checked first: a flipped bit must not turn a segment into one of a later version, which nothing would
    # read.
    if _CRC.unpack_from(data, _HEADER.size)[0] != crc32(head):
        raise ForeignError("the header of this segment is damaged")
    if version > VERSION:
        raise NewerError(f"a journal of version {version}; this windback reads up to {VERSION}")
    if header_bytes != HEADER_BYTES:
        raise ForeignError("the header of this segment has a different length than its version requires")
    return Header(kind, segment_id, nonce, pid, created_ns, version)


def seed(nonce: int, segment_id: int, kind: int) -> int:
    """Return the start value for the crcs of a segment."""
    return crc32(struct.pack("<QII", nonce, segment_id, kind))


def seed_at(start: int, at: int) -> int:
    """Return the seed for a part of the segment that begins at offset *at*."""
    return (start + at * K_OFFSET) & MASK


def padded(length: int) -> int:
    """Return how much room a record with *length* bytes of payload takes."""
    return (RECORD_BYTES + length + 7) & ~7


def record_crc(start: int, at: int, sequence: int, payload: Bytes) -> int:
    """Return the crc of a record at offset *at*; start: the segment's `seed`."""
    return crc32(payload, (start + at * K_OFFSET + len(payload) * K_LENGTH + sequence * K_SEQUENCE) & MASK)


def pack_record(start: int, at: int, sequence: int, payload: bytes) -> bytes:
    """Return the header of a record."""
    return RECORD.pack(len(payload), record_crc(start, at, sequence, payload), sequence, 0)


def record_at(data: Bytes, at: int, start: int) -> Optional[Record]:
    """Return the record at offset *at*; None if there is no valid one."""
    if at + RECORD_BYTES > len(data):
        return None
    length, crc, sequence, zero = RECORD.unpack_from(data, at)
    until = at + RECORD_BYTES + length
    if not length or zero or until > len(data):
        return None
    payload = bytes(data[at + RECORD_BYTES : until])
    if record_crc(start, at, sequence, payload) != crc:
        return None
    return Record(at, at + padded(length), sequence, payload)


def _cost(data: Bytes, at: int) -> int:
    """Return how many bytes `record_at` looked at to find no valid record at offset *at*."""
    if at + RECORD_BYTES > len(data):
        return 0
    length, _, _, zero = RECORD.unpack_from(data, at)
    return 0 if zero or at + RECORD_BYTES + length > len(data) else length


def scan(data: bytes, start: int, at: int = HEADER_BYTES) -> Iterator[Record]:
    """Yield every valid record from offset *at* on. Never raises, whatever the bytes are.

    It ends early in a segment that is filled with bytes that look like headers.
    """
    left = _MAX_RUBBISH_BYTES
    while at < len(data):
        record = record_at(data, at, start)
        if record is None:
            left -= _cost(data, at)
            if left < 0:
                return
            at = _next_candidate(data, at)
        else:
            yield record
            at = record.until


def prefix(data: bytes, start: int, at: int = HEADER_BYTES) -> Iterator[Record]:
    """Yield the records from offset *at* on, up to the first offset without a valid one."""
    record = record_at(data, at, start)
    while record is not None:
        yield record
        record = record_at(data, record.until, start)


def _next_candidate(data: bytes, at: int) -> int:
    """Return the next multiple of 8 after *at* where not all bytes up to the end are zero."""
    at += 8
    stride = 8
    while at < len(data):
        rest = data[at : at + stride]
        if rest != _ZEROS[: len(rest)]:  # 20 times as fast as to look for the first that is not zero
            return at + ((len(rest) - len(rest.lstrip(b"\0"))) & ~7)
        at += len(rest)
        stride = min(2 * stride, _MAX_STRIDE)
    return at
