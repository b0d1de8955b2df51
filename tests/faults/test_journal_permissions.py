"""What others may have put where this user's journals are: nothing of it is sent, and nothing of it hangs."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import struct
import sys
import time

import pytest
from inside import config_of
from tracking import LEAVE, left_in, numbers, track

from windback import ConfigurationError, Windback
from windback.journal import directory
from windback.journal import format as fmt
from windback.relay import Relay

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")

OPTIONS = {"api_key": "sk_test_1"}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def folder(run, root, dead_url):
    """The directory of a killed process with twenty events."""
    assert run(LEAVE.format(root=str(root), start=0, end=20), url=dead_url).status == -signal.SIGKILL
    (name,) = directory.names(root)
    return root / name


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777, 0o720])
def test_a_journal_that_others_may_write_to_is_refused(root, server, mode):
    root.mkdir()
    root.chmod(mode)
    message = f"journal '{root}' is writable by other users, .*: chmod go-w {root}"
    with pytest.raises(ConfigurationError, match=message):
        Windback(**OPTIONS, journal=root)
    with pytest.raises(ConfigurationError, match=message):
        Relay(root, "sk_test_1", base_url=server.url)
    root.chmod(0o755)
    Windback(**OPTIONS, journal=root).close()


@pytest.mark.parametrize("below", [(), ("deeper", "still")])
def test_a_link_of_another_user_on_the_way_is_refused_and_an_own_one_is_not(tmp_path, server, below):
    """Its owner could point it at a journal of another project, whose events would go out with this key."""
    place, link = tmp_path / "place", tmp_path / "link"
    place.mkdir(0o700)
    link.symlink_to(place)
    root = link.joinpath(*below)
    Windback(**OPTIONS, journal=root).close()
    if os.geteuid():
        pytest.skip("only root can give a link away")
    os.lchown(link, 12_345, -1)
    with pytest.raises(ConfigurationError, match=f"goes through '{link}', a symbolic link of another user"):
        Windback(**OPTIONS, journal=root)
    with pytest.raises(ConfigurationError, match=f"goes through '{link}', a symbolic link of another user"):
        Relay(root, "sk_test_1", base_url=server.url)


def test_missing_parents_are_made_for_this_user_alone(tmp_path):
    before = os.umask(0)
    try:
        Windback(**OPTIONS, journal=tmp_path / "a" / "b" / "c").close()
    finally:
        os.umask(before)
    made = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    assert [stat.S_IMODE(each.stat().st_mode) for each in made] == [0o700] * 3


@pytest.mark.parametrize("whose", ["open", "of another user", "a link"])
@pytest.mark.parametrize("who", ["client", "relay"])
def test_nothing_is_sent_out_of_a_directory_that_is_not_this_users_alone(
    root, folder, server, tmp_path, who, whose
):
    if whose == "open":
        folder.chmod(0o777)
    elif whose == "a link":
        shutil.move(str(folder), str(tmp_path / "elsewhere"))
        folder.symlink_to(tmp_path / "elsewhere")
    elif os.geteuid():
        pytest.skip("only root can give a directory away")
    else:
        os.chown(folder, 12_345, -1)
    if who == "client":
        with Windback(**OPTIONS, base_url=server.url, journal=root) as client:
            track(client, [-1])
            assert client.flush(20)
        assert numbers(server) == [-1]
    else:
        relay = Relay(root, "sk_test_1", base_url=server.url)
        assert relay.drain(20)
        relay.close()
        assert numbers(server) == []
    assert folder.exists()


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "socket of another file"])
@pytest.mark.parametrize("name", ["00000009.seg", "00000009.ledger", "owner.lock", "drain.lock", "counters"])
@pytest.mark.parametrize("who", ["client", "relay"])
def test_what_is_not_a_file_makes_nobody_wait(root, folder, server, tmp_path, name, kind, who):
    """It is passed over; the events beside it are sent, unless it is in the place of a lock."""
    path = folder / name
    if path.exists():
        path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "secret").write_bytes(b"keep me")
        path.symlink_to(tmp_path / "secret")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    if who == "client":
        client = Windback(**OPTIONS, base_url=server.url, journal=root, flush_interval=0.01)
        track(client, [-1])
        client.flush(20)
        client.close(20)
    else:
        relay = Relay(root, "sk_test_1", base_url=server.url, flush_interval=0.01)
        relay.drain(20)
        relay.close()
    sent = [n for n in numbers(server) if n >= 0]
    if name.endswith(".seg"):
        assert sent == list(range(20))
    assert sent in ([], list(range(20)))
    if kind == "link":
        assert (tmp_path / "secret").read_bytes() == b"keep me"


def test_a_segment_of_rubbish_that_looks_like_records_takes_no_time():
    """Each multiple of 8 may be a header of a long record, whose bytes would all be looked at."""
    data = bytearray(fmt.SEGMENT_BYTES)
    for at in range(fmt.HEADER_BYTES, len(data) - 16, 16):
        struct.pack_into("<IIII", data, at, len(data) - at - 16, 1, 0, 0)
    started_s = time.process_time()
    assert list(fmt.scan(bytes(data), 7)) == []
    hostile_s = time.process_time() - started_s
    started_s = time.process_time()
    for _ in range(64):  # what may be looked at, twice
        fmt.record_crc(7, 64, 0, bytes(data))
    assert hostile_s < 20 * (time.process_time() - started_s) + 1


@pytest.mark.parametrize("how", ["a file", "open to others", "of another user", "a link"])
def test_a_place_in_shared_memory_that_another_took_is_not_used(
    server, tmp_path, monkeypatch, caplog, eventually, how
):
    memory = tmp_path / "shm"
    memory.mkdir()
    options = {"api_key": "sk_test_1", "base_url": server.url, "worker": "process"}
    monkeypatch.setattr("windback.directories._MEMORY", str(memory))
    first = Windback(**options)
    place = config_of(first).journal
    first.close()
    shutil.rmtree(place)
    if how == "a file":
        place.write_text("mine")
    elif how == "open to others":
        place.mkdir()
        place.chmod(0o777)
    elif how == "a link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    elif os.geteuid():
        pytest.skip("only root can give a directory away")
    else:
        place.mkdir()
        os.chown(place, 12_345, -1)
    with Windback(**options) as client:
        assert config_of(client).journal == memory / f"{place.name}-1"
        track(client, range(10))
        assert client.flush(20)
    (line,) = [message for message in caplog.messages if str(place) in message]
    assert f"using {place}-1 instead" in line
    assert numbers(server) == list(range(10))
    with Windback(**options) as client:  # and the next process finds what the last one left
        assert config_of(client).journal == memory / f"{place.name}-1"


def test_without_any_place_a_thread_sends_and_one_line_reports_it(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("windback.directories._MEMORY", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "nothing"))
    with Windback("sk_test_1", base_url=server.url, worker="process") as client:
        assert config_of(client).worker == "thread"
        track(client, range(10))
        assert client.flush(20)
    assert (
        len([message for message in caplog.messages if "worker='process' needs a directory" in message]) == 1
    )
    assert numbers(server) == list(range(10))


# File systems


@pytest.mark.parametrize(
    ("mounts", "is_fit"),
    [
        ("1 0 0:1 / / rw - ext4 /dev/sda rw\n", True),
        ("1 0 0:1 / / rw - tmpfs none rw\n", True),
        ("1 0 0:1 / / rw - btrfs /dev/sda rw\n", False),
        ("1 0 0:1 / / rw - zfs pool rw\n", False),
        ("1 0 0:1 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/nowhere/up,workdir=/w\n", False),
        ("1 0 0:1 / / rw - overlay overlay rw,lowerdir=/l,upperdir={root},workdir=/w\n", False),
        (
            "1 0 0:1 / / rw - ext4 /dev/sda rw\n2 1 0:2 / {root} rw - overlay o rw,upperdir={upper}\n",
            True,
        ),
        (
            "1 0 0:1 / / rw - btrfs /dev/sda rw\n2 1 0:2 / {root} rw - overlay o rw,upperdir={upper}\n",
            False,
        ),
    ],
)
def test_a_mapping_is_used_only_where_blocks_stay(tmp_path, mounts, is_fit):
    """Of an overlay that is decided by the file system below, if it can be seen from here."""
    root, upper = tmp_path / "root", tmp_path / "upper"
    root.mkdir()
    upper.mkdir()
    moment = root.stat().st_mtime_ns
    os.utime(upper, ns=(moment, moment))
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(mounts.format(root=root, upper=upper))
    mount = directory.mount_of(root, mountinfo)
    assert mount is not None
    assert directory.keeps_blocks(root, mount, mountinfo) is is_fit


def test_where_copies_may_share_blocks_no_mapping_is_used(tmp_path, monkeypatch):
    """XFS can be made either way, so two files there are asked to share a block."""
    mount = directory.Mount("xfs", tmp_path, ())
    monkeypatch.setattr(directory, "_shares_blocks", lambda _: True)
    assert not directory.keeps_blocks(tmp_path, mount)
    monkeypatch.setattr(directory, "_shares_blocks", lambda _: False)
    assert directory.keeps_blocks(tmp_path, mount)


def test_a_lease_with_damage_gets_the_same_key_after_each_kill(root, folder, server, held, eventually):
    """What is whole of it goes out under a key that follows from the old one: no repeat is a third batch."""
    from windback.journal.reader import Reader

    home = directory.JournalDirectory.adopt(root, folder.name)
    reader = Reader(home)
    found = reader.read(20)
    from windback.event.batch import Batch

    batch = Batch(
        [each.payload for each in found], 0, "original", source=reader, locations=[e.location for e in found]
    )
    reader.hand_out(batch.locations)
    reader.lease(batch)
    reader.close()
    path = next(path for path in folder.glob("*.seg") if b'"n":10' in path.read_bytes())
    data = bytearray(path.read_bytes())
    data[data.index(b'"n":10')] ^= 1
    path.write_bytes(data)
    keys = []
    for _ in range(3):  # each time a process reads it and is killed
        ledgers = {each: each.read_bytes() for each in folder.glob("*.ledger")}
        home = directory.JournalDirectory.adopt(root, folder.name)
        reader = Reader(home)
        (rest,) = reader.leased()
        keys.append(rest.key)
        assert len(rest) == 19
        reader.close()
        for each, content in ledgers.items():  # as if the disk had been too full to note it
            each.write_bytes(content)
    assert len(set(keys)) == 1
    assert keys[0].startswith("original-")
    with Windback(**OPTIONS, base_url=server.url, journal=root) as client:
        assert client.flush(20)
    assert numbers(server) == [n for n in range(20) if n != 10]
    assert left_in(root) == []
