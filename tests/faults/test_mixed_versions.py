"""Counters between an application and what sends for it, where the two are of different versions."""

from __future__ import annotations

import json
import os
import sys
from typing import NamedTuple, Optional
from zlib import crc32

import pytest

from windback.remote.counters import Block, Counters

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")


class EarlierCounters(NamedTuple):
    """As the first version had them. Another name is a TypeError."""

    settled: dict
    seen: int = 0
    adopted: int = 0
    adopted_pending: int = 0
    in_flight: int = 0
    rejected_by_reason: dict = {}  # noqa: RUF012 - never changed
    requests: int = 0
    retries: int = 0
    worker_deaths: int = 0
    problem: Optional[str] = None


def read_as_earlier(block):
    """Do what the first version does."""
    content = os.pread(block.descriptor, 1 << 16, 0)
    length, crc = (int.from_bytes(content[at : at + 4], "little") for at in (0, 4))
    data = content[8 : 8 + length]
    assert crc32(data) == crc
    return EarlierCounters(**json.loads(data))


@pytest.fixture
def block(tmp_path):
    return Block.open(tmp_path / "counters", create=True)


FULL = Counters({1: 10, 2: 20}, 2, 3, 1, 4, {"invalid": 5}, 6, 7, 8, "no key", "refused", 9)


def test_an_earlier_application_reads_what_a_later_relay_wrote(block):
    block.write(FULL)
    assert read_as_earlier(block) == EarlierCounters({"1": 10, "2": 20}, *FULL[1:10])


def test_a_later_application_reads_what_an_earlier_relay_wrote(block):
    data = json.dumps({**FULL._asdict(), "settled": {"1": 10, "2": 20}, "of a later version": [1]}).encode()
    os.pwrite(block.descriptor, len(data).to_bytes(4, "little") + crc32(data).to_bytes(4, "little") + data, 0)
    assert block.read() == FULL


def test_all_counters_come_back_and_those_of_thousands_of_segments_without_the_segments(block):
    block.write(FULL)
    assert block.read() == FULL
    block.write(FULL._replace(settled=dict.fromkeys(range(20_000), 1)))
    assert block.read() == FULL._replace(settled={}, seen=0)


def test_a_reader_that_meets_half_of_the_later_part_reads_the_rest(block):
    block.write(FULL)
    size = os.fstat(block.descriptor).st_size
    os.ftruncate(block.descriptor, size - 1)
    assert block.read() == FULL._replace(last_failure=None, looked=0)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"settled":[1],"seen":"x"}', b'{"settled":{"a":1,"2":"b"}}']
)
def test_what_is_not_counters_counts_nothing(block, data):
    os.pwrite(block.descriptor, len(data).to_bytes(4, "little") + crc32(data).to_bytes(4, "little") + data, 0)
    assert block.read() == Counters({})
