"""The bytes of a segment: whatever is cut, flipped or foreign in it, never a wrong event, never an error."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest

from windback.journal import format as fmt

NONCE = 0x0123456789ABCDEF
SEGMENT_ID = 7
SEED = fmt.seed(NONCE, SEGMENT_ID, fmt.EVENTS)
HEADER = fmt.Header(fmt.EVENTS, SEGMENT_ID, NONCE, 4321, 1_700_000_000_000_000_000)


def built(payloads, *, size=fmt.SEGMENT_BYTES, seed=SEED):
    """Return a segment with these records, and the offsets where they stand."""
    data = bytearray(fmt.pack_header(HEADER).ljust(size, b"\0"))
    at, places = fmt.HEADER_BYTES, []
    for sequence, payload in enumerate(payloads):
        data[at + fmt.RECORD_BYTES : at + fmt.RECORD_BYTES + len(payload)] = payload
        data[at : at + fmt.RECORD_BYTES] = fmt.pack_record(seed, at, sequence, payload)
        places.append(at)
        at += fmt.padded(len(payload))
    assert len(data) == size
    return data, places


def scanned(data, seed=SEED):
    return [(record.at, record.sequence, record.payload) for record in fmt.scan(bytes(data), seed)]


def payloads_of(count, rng, longest=300):
    return [rng.getrandbits(8 * length).to_bytes(length, "little") for length in lengths(count, rng, longest)]


def lengths(count, rng, longest):
    return [rng.randint(1, longest) for _ in range(count)]


# What is whole


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 300, 65_536, fmt.MAX_PAYLOAD_BYTES])
def test_what_was_written_is_read(length):
    payload = bytes(range(256)) * (length // 256 + 1)
    data, places = built([payload[:length]])
    assert scanned(data) == [(places[0], 0, payload[:length])]
    (record,) = fmt.scan(bytes(data), SEED)
    assert record.until % 8 == 0
    assert record.until == fmt.HEADER_BYTES + fmt.padded(length)


def test_records_are_read_in_order_up_to_the_last_byte_of_a_segment():
    room = fmt.SEGMENT_BYTES - fmt.HEADER_BYTES
    payload = b"x" * (room // 8 - fmt.RECORD_BYTES)
    data, places = built([payload] * 8)
    assert places[-1] + fmt.padded(len(payload)) == fmt.SEGMENT_BYTES
    assert scanned(data) == [(at, n, payload) for n, at in enumerate(places)]


def test_a_scan_from_the_middle_finds_the_rest():
    data, places = built([b"%d" % n for n in range(10)])
    found = [record.at for record in fmt.scan(bytes(data), SEED, places[4])]
    assert found == places[4:]


def test_a_part_is_read_with_the_seed_of_its_offset():
    data, places = built([b"%d" % n for n in range(10)])
    part = bytes(data[places[4] :])
    found = [record.payload for record in fmt.scan(part, fmt.seed_at(SEED, places[4]), 0)]
    assert found == [b"%d" % n for n in range(4, 10)]


def test_a_prefix_ends_where_no_valid_record_stands():
    data, places = built([b"%d" % n for n in range(10)])
    data[places[6] + fmt.RECORD_BYTES] ^= 1
    assert [record.at for record in fmt.prefix(bytes(data), SEED)] == places[:6]
    assert [record.at for record in fmt.scan(bytes(data), SEED)] == [*places[:6], *places[7:]]


# Crash at any byte


@pytest.mark.parametrize("length", [1, 5, 8, 16, 40, 301])
def test_a_record_cut_at_any_byte_is_no_record(length):
    """Each prefix of the payload, then each prefix of the header: nothing until the last that matters."""
    rng = random.Random(length)
    before = payloads_of(3, rng)
    payload = bytes(rng.randrange(1, 256) for _ in range(length))
    whole, places = built([*before, payload], size=8_192)
    at = places[-1]
    expected = [(each, n, body) for n, (each, body) in enumerate(zip(places, before))]
    base, _ = built(before, size=8_192)
    header = bytes(whole[at : at + fmt.RECORD_BYTES])
    for count in range(length + 1):
        cut = bytearray(base)
        cut[at + fmt.RECORD_BYTES : at + fmt.RECORD_BYTES + count] = payload[:count]
        assert scanned(cut) == expected, count
        assert [record.at for record in fmt.prefix(bytes(cut), SEED)] == places[:-1]
    for count in range(1, fmt.RECORD_BYTES + 1):
        cut = bytearray(base)
        cut[at + fmt.RECORD_BYTES : at + fmt.RECORD_BYTES + length] = payload
        cut[at : at + count] = header[:count]
        # A prefix that already equals the whole header, because the rest of it is zero, is one.
        is_whole = header[count:] == bytes(fmt.RECORD_BYTES - count)
        assert scanned(cut) == expected + [(at, 3, payload)] * is_whole, count
    assert scanned(whole) == [*expected, (at, 3, payload)]


def test_a_header_whose_payload_did_not_arrive_is_no_record():
    """Pages reach the disk in any order: the header may be there and the payload not."""
    rng = random.Random(1)
    payloads = payloads_of(20, rng)
    data, places = built(payloads, size=16_384)
    for lost, (at, payload) in enumerate(zip(places, payloads)):
        for count in {1, len(payload) // 2 + 1, len(payload)}:
            holed = bytearray(data)
            holed[at + fmt.RECORD_BYTES : at + fmt.RECORD_BYTES + count] = bytes(count)
            if holed == data:
                continue
            expected = [
                (place, n, body) for n, (place, body) in enumerate(zip(places, payloads)) if n != lost
            ]
            assert scanned(holed) == expected


def test_the_next_record_overwrites_what_was_half_written():
    data, places = built([b"first"], size=4_096)
    at = places[0] + fmt.padded(5)
    data[at + fmt.RECORD_BYTES : at + fmt.RECORD_BYTES + 500] = b"half" * 125
    payload = b"short"
    data[at + fmt.RECORD_BYTES : at + fmt.RECORD_BYTES + len(payload)] = payload
    data[at : at + fmt.RECORD_BYTES] = fmt.pack_record(SEED, at, 1, payload)
    assert scanned(data) == [(places[0], 0, b"first"), (at, 1, payload)]


# Bits flipped, sectors lost


def test_a_flipped_bit_costs_at_most_the_record_it_hits():
    """Every bit of the part of a segment that is in use, one after the other."""
    count = 12  # what a flip does to its record, the next one and the last one does not depend on more
    payloads = payloads_of(count, random.Random(60), longest=60)
    data, places = built(payloads, size=fmt.HEADER_BYTES + sum(fmt.padded(len(each)) for each in payloads))
    whole = scanned(data)
    assert len(whole) == count
    owner = {}
    for n, (at, payload) in enumerate(zip(places, payloads)):
        owner.update(dict.fromkeys(range(at, at + fmt.padded(len(payload))), n))
    lost = Counter()
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        found = scanned(data)
        data[bit // 8] ^= 1 << bit % 8
        hit = owner.get(bit // 8)
        missing = [record for record in whole if record not in found]
        assert not [record for record in found if record not in whole], bit
        assert missing in ([], [whole[hit]] if hit is not None else []), bit
        lost[len(missing)] += 1
    # Flips of padding and of the segment's own header cost nothing; all others are noticed.
    assert set(lost) == {0, 1}
    assert lost[1] == sum(8 * (fmt.RECORD_BYTES + len(payload)) for payload in payloads)


@pytest.mark.parametrize("damage", ["zeroed", "swapped", "of another segment"])
def test_a_damaged_sector_costs_only_the_records_in_it(damage):
    rng = random.Random(512)
    payloads = payloads_of(300, rng)
    data, places = built(payloads, size=131_072)
    other, _ = built(payloads, size=131_072, seed=fmt.seed(NONCE, SEGMENT_ID + 1, fmt.EVENTS))
    whole = scanned(data)
    assert len(whole) == 300
    assert scanned(other) == []
    used = places[-1] + fmt.padded(len(payloads[-1]))
    for start in range(0, used - 512, 512):
        damaged = bytearray(data)
        hit = {start}
        if damage == "zeroed":
            damaged[start : start + 512] = bytes(512)
        elif damage == "swapped":
            away = (start + 512 * rng.randint(1, 8)) % (used // 512 * 512)
            damaged[start : start + 512] = data[away : away + 512]
            damaged[away : away + 512] = data[start : start + 512]
            hit.add(away)
        else:
            damaged[start : start + 512] = other[start : start + 512]
        found = scanned(damaged)
        assert not [record for record in found if record not in whole]
        untouched = [
            record
            for record in whole
            if all(
                record[0] + fmt.padded(len(record[2])) <= sector or record[0] >= sector + 512
                for sector in hit
            )
        ]
        assert not [record for record in untouched if record not in found]


# What only looks like a record


def test_a_segment_inside_a_damaged_payload_is_not_read():
    inner, _ = built([b"inner %d" % n for n in range(40)], size=4_096)
    for shift in range(8):  # whatever multiple of 8 it comes to stand at
        payload = b"-" * shift + bytes(inner)
        data, places = built([b"before", payload, b"after"], size=8_192)
        data[places[1]] ^= 1
        assert [record[2] for record in scanned(data)] == [b"before", b"after"]


def test_a_copy_of_a_record_elsewhere_is_none():
    data, places = built([b"an event"] * 50, size=8_192)
    size = fmt.padded(len(b"an event"))
    first = bytes(data[places[0] : places[0] + size])
    for at in range(places[0] + 8, places[-1] + 2 * size, 8):
        copied = bytearray(data)
        copied[at : at + size] = first
        for record in scanned(copied):
            assert record in [(place, n, b"an event") for n, place in enumerate(places)], at
    moved = bytearray(fmt.pack_header(HEADER).ljust(8_192, b"\0"))
    moved[fmt.HEADER_BYTES + 8 : fmt.HEADER_BYTES + 8 + size] = first
    assert scanned(moved) == []


@pytest.mark.parametrize(
    "seed",
    [
        fmt.seed(NONCE + 1, SEGMENT_ID, fmt.EVENTS),
        fmt.seed(NONCE, SEGMENT_ID + 1, fmt.EVENTS),
        fmt.seed(NONCE, SEGMENT_ID, fmt.LEDGER),
    ],
    ids=["directory", "segment", "kind"],
)
def test_records_of_another_place_are_none(seed):
    data, _ = built([b"an event"] * 1_000)
    assert len(scanned(data)) == 1_000
    assert scanned(data, seed) == []


def test_equal_payloads_never_have_equal_checksums_in_neighbouring_places():
    crcs = [fmt.record_crc(SEED, at, at // 24, b"an event") for at in range(fmt.HEADER_BYTES, 200_000, 24)]
    assert len(set(crcs)) == len(crcs)
    assert len({fmt.record_crc(SEED, 64, sequence, b"an event") for sequence in range(10_000)}) == 10_000


# Any bytes at all


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_hold_no_events(seed):
    data = random.Random(seed).getrandbits(8 << 16).to_bytes(1 << 16, "little")
    assert scanned(data) == []
    assert list(fmt.prefix(data, SEED)) == []


LENGTHS = [0, 1, 7, 8, 2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1]


@pytest.mark.parametrize("around", [-17, -16, -9, -8, -1, 0, 1, 8])
def test_a_length_around_the_end_is_checked_before_it_is_used(around):
    """The place is the last that a record may stand at, one before and one behind it."""
    size = 4_096
    for at in range(size - 48, size, 8):
        data, places = built([b"before"], size=size)
        length = size - at - fmt.RECORD_BYTES + around
        head = struct.pack("<IIII", length & fmt.MASK, 1, 1, 0)
        data[at : at + fmt.RECORD_BYTES] = head[: size - at]
        assert scanned(data) == [(places[0], 0, b"before")]


@pytest.mark.parametrize("length", LENGTHS)
def test_any_length_anywhere_ends_the_scan_in_good_order(length):
    rng = random.Random(length)
    data, places = built([b"an event"] * 100, size=8_192)
    whole = scanned(data)
    for at in range(fmt.HEADER_BYTES, 8_192 - fmt.RECORD_BYTES, 8):
        fuzzed = bytearray(data)
        fuzzed[at : at + fmt.RECORD_BYTES] = struct.pack(
            "<IIII", length, rng.getrandbits(32), rng.choice([0, 1, 2**32 - 1]), rng.choice([0, 0, 1])
        )
        found = scanned(fuzzed)
        assert not [record for record in found if record not in whole]
        assert len(found) >= len(places) - 2  # the two records that these 16 bytes may reach into


def test_a_valid_length_of_zero_bytes_is_none():
    """Its checksum would be right, and it would be read for ever."""
    data, places = built([b"before"], size=4_096)
    at = places[0] + fmt.padded(6)
    data[at : at + fmt.RECORD_BYTES] = struct.pack("<IIII", 0, fmt.record_crc(SEED, at, 1, b""), 1, 0)
    assert scanned(data) == [(places[0], 0, b"before")]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 63, 64, 65, 71, 72, 79, 80, 81])
def test_a_segment_cut_short_anywhere_is_read_as_far_as_it_goes(size):
    data, places = built([b"x"], size=4_096)
    expected = [(places[0], 0, b"x")] if size >= 81 else []
    assert scanned(data[:size]) == expected
    assert [record.payload for record in fmt.prefix(bytes(data[:size]), SEED)] == [
        each[2] for each in expected
    ]


class Counting(bytes):
    """Bytes that know how many of them were copied."""

    copied = 0

    def __getitem__(self, index):
        taken = super().__getitem__(index)
        self.copied += len(taken) if isinstance(index, slice) else 0
        return taken


@pytest.mark.parametrize("apart", [8, 64, 72, 136, 1_032, 65_536, 1 << 20])
def test_no_rubbish_makes_a_scan_copy_a_segment_again_and_again(apart):
    """Bytes far apart made each step copy all that follows: 15 GB for one segment."""
    data = bytearray(1 << 20)
    data[::apart] = b"\1" * len(data[::apart])
    counted = Counting(data)
    assert list(fmt.scan(counted, SEED)) == []
    assert counted.copied < 4 * len(data)


# The header of a segment


def test_a_header_reports_what_was_written_into_it():
    packed = fmt.pack_header(HEADER)
    assert len(packed) == fmt.HEADER_BYTES
    assert fmt.read_header(packed) == HEADER
    assert fmt.read_header(packed.ljust(fmt.SEGMENT_BYTES, b"x")) == HEADER


def test_the_end_in_a_header_is_no_part_of_what_is_checked():
    packed = bytearray(fmt.pack_header(HEADER))
    packed[fmt.END_AT : fmt.END_AT + 4] = fmt.END.pack(4_096)
    assert fmt.read_header(packed) == HEADER


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"WBSG",
        fmt.pack_header(HEADER)[:-1],
        bytes(fmt.HEADER_BYTES),
        b"\x7fELF".ljust(4_096, b"\2"),
        fmt.pack_header(HEADER).replace(b"\r\n", b"\n\n"),
        fmt.pack_header(HEADER).replace(b"\r\n", b"\n") + b"\0",
    ],
    ids=["empty", "magic cut", "cut", "zeros", "another program's", "text mode", "text mode, shorter"],
)
def test_a_file_of_another_program_is_foreign(data):
    with pytest.raises(fmt.ForeignError) as caught:
        fmt.read_header(data)
    assert not isinstance(caught.value, fmt.NewerError)


def test_a_newer_version_is_told_from_a_foreign_file():
    newer = fmt.pack_header(HEADER._replace(version=fmt.VERSION + 1))
    with pytest.raises(fmt.NewerError, match=f"version {fmt.VERSION + 1}; this windback reads up to"):
        fmt.read_header(newer)


def test_a_flipped_bit_makes_no_header_one_of_a_newer_version():
    """Else one bit would have a whole directory left alone, for ever."""
    packed = fmt.pack_header(HEADER)
    for bit in range(8 * 44):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(fmt.ForeignError) as caught:
            fmt.read_header(flipped)
        assert not isinstance(caught.value, fmt.NewerError), bit
