"""A journal in trouble: each time a clear error or one log line, and an application that goes on.

Where the trouble ends, the journal goes on as well. Full and read-only disks are real ones, in a mount
namespace of a child process. Where that is not permitted those tests are skipped, and a limit on file sizes,
which needs no permission, is the full disk that is left.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import textwrap
from pathlib import Path

import pytest
from calls import ending_faults
from inside import has_adopted, journal_of, queue_of, start_no_worker
from tracking import adds_up, left_in, numbers, track

from windback import ConfigurationError, Windback
from windback.event.batch import Limits
from windback.journal import dead
from windback.journal import format as fmt
from windback.journal.directory import Mount, mount_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")

OPTIONS = {"api_key": "sk_test_1"}
#: This server takes it for no email address, the client does.
POISON = "jane@"
NOT_PERMITTED = 77
TOOLS = """\
    import ctypes, logging, os, resource, shutil, signal, sys, time
    from pathlib import Path
    from windback import Windback

    def track(client, numbers, pad=0):
        for n in numbers:
            assert client.track_event("login", "jane@example.com", {"n": n, "pad": "x" * pad})

    def until(check):
        deadline = time.monotonic() + 20
        while not check():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def on_disk(client):
        segments = client._engine.queue.writer.segments.values()
        return sum(segment.count - segment.settled for segment in segments)

    def mount(source, target, kind, flags, options=None):
        encoded = [each if each is None else os.fsencode(each) for each in (source, target, kind, options)]
        if libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]):
            sys.exit(77)

    def have_own_mounts():
        uid, gid = os.geteuid(), os.getegid()
        new_user, new_mounts = 0x10000000, 0x00020000
        if libc.unshare(new_mounts | (new_user if uid else 0)):
            sys.exit(77)
        if uid:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        mount(None, "/", None, 0x44000)  # private, and all below

    libc = ctypes.CDLL(None, use_errno=True)
    READ_ONLY, REMOUNT, BIND = 1, 32, 4096
    logging.basicConfig(level="INFO", format="%(message)s")
    logging.getLogger("httpx").setLevel("WARNING")

"""


@pytest.fixture
def root(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def attempt(run, server):
    """Run a script, whose log lines are on standard error; skip the test if its world can't be made here."""

    def attempt(code, **options):
        ended = run(textwrap.dedent(TOOLS) + textwrap.dedent(code), url=server.url, **options)
        if ended.status == NOT_PERMITTED:
            pytest.skip("this system does not permit mounts of one's own")
        return ended

    return attempt


def make_dead(root, numbers, *, leased=0):
    """Leave what a killed process would; return its directory. Nobody sends from it meanwhile."""
    client = Windback(**OPTIONS, base_url="http://127.0.0.1:9/api/v1", journal=root)
    start_no_worker(client)
    track(client, numbers)
    if leased:
        queue_of(client).outbox.take(Limits(leased, 500_000, 1.0))
    folder = root / journal_of(client).name
    queue_of(client).reset()
    client.close(0)
    return folder


@pytest.fixture
def deliver(server, root, eventually):
    """Have a client deliver what is under a directory, and end; return its numbers, and how many it lost."""

    def deliver(*, left=0, adopted=None, **options):
        options = {"journal": root, "base_url": server.url, "flush_interval": 0.01, **options}
        with Windback(**OPTIONS, **options) as client:
            queue = queue_of(client)
            track(client, [-1])
            eventually(lambda: not client.stats().pending and has_adopted(queue))
            assert client.flush(10)
            stats, lost = client.stats(), queue.lost
        assert adds_up(stats)
        assert stats.worker_deaths == 0
        assert left is None or len(left_in(root)) == left
        assert adopted is None or stats.adopted == adopted
        return stats, lost

    return deliver


# Places that can't be a journal


def test_a_file_in_its_place_is_refused(root):
    root.write_text("mine")
    with pytest.raises(ConfigurationError, match=f"journal '{root}' is not a directory"):
        Windback(**OPTIONS, journal=root)
    assert root.read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no users")
def test_a_directory_of_another_user_is_refused(root, monkeypatch):
    root.mkdir()
    if os.geteuid() == 0:
        os.chown(root, 12_345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigurationError, match=f"journal '{root}' belongs to another user; choose"):
        Windback(**OPTIONS, journal=root)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "virtiofs"])
def test_a_network_file_system_is_refused(root, monkeypatch, kind):
    mount = Mount(kind, root, ())
    monkeypatch.setattr("windback.journal.directory.mount_of", lambda _: mount)
    with pytest.raises(ConfigurationError, match=f"journal '{root}' is on {kind}, .*; use a local disk"):
        Windback(**OPTIONS, journal=root)


def test_half_made_directories_are_removed_once_they_are_old(root, deliver):
    old, young = root / "00112233445566aa.new", root / "00112233445566bb.new"
    for path in (old, young, root / "notes.new"):
        path.mkdir(parents=True)
    (old / "owner.lock").touch()
    os.utime(old, (1_000_000, 1_000_000))
    os.utime(root / "notes.new", (1_000_000, 1_000_000))
    deliver(left=2)
    assert left_in(root) == [young.name, "notes.new"]


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
25 22 0:23 / /srv/shared\\040files rw - nfs4 server:/x rw,vers=4.2
26 22 0:24 / /srv rw - btrfs /dev/vdb rw
27 25 0:25 / /srv/shared\\040files/local rw master:1 propagate_from:2 - xfs /dev/vdc rw
28 22 0:26 / /media rw - ext4 /dev/vdd rw
29 28 0:27 / /media rw - tmpfs none rw
odd

"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/srv", "btrfs"),
        ("/srvx", "ext4"),
        ("/srv/shared files", "nfs4"),
        ("/srv/shared files/journal", "nfs4"),
        ("/srv/shared files/local/journal", "xfs"),
        ("/media/jane", "tmpfs"),
    ],
)
def test_the_type_of_a_file_system_is_that_of_the_innermost_mount(tmp_path, path, kind):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert mount_of(Path(path), mounts).kind == kind


def test_where_nothing_shows_the_type_there_is_none(tmp_path):
    assert mount_of(Path("/"), tmp_path / "nothing") is None


# Files of others


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_of_other_programs_are_left_alone(root, deliver, server, caplog):
    folder = make_dead(root, range(20))
    strangers = {
        root / "notes.txt": b"mine",
        root / "0123456789abcde": b"too short for a name of ours",
        root / "0123456789abcdef": b"a name of ours, but a file",
        root / "00112233445566ff" / "cache.bin": b"a name of ours, but not our directory",
        folder / "engine.1234": b"in a directory of ours",
        folder / "00000001.seg.bak": b"a copy that somebody made",
    }
    for path, data in strangers.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    expected = ["00112233445566ff", "0123456789abcde", "0123456789abcdef", "notes.txt"]
    deliver(left=len(expected) + 1, adopted=20)
    assert numbers(server) == [-1, *range(20)]
    assert left_in(root) == sorted([*expected, folder.name])
    assert {path: path.read_bytes() for path in strangers} == strangers
    assert sorted(path.name for path in (root / "00112233445566ff").iterdir()) == ["cache.bin"]
    deliver(left=len(expected) + 1, adopted=0)
    assert caplog.messages == []


def test_a_file_of_another_program_with_the_name_of_a_segment_is_set_aside(root, deliver, server, caplog):
    folder = make_dead(root, range(20))
    (folder / "00000099.seg").write_bytes(b"\x7fELF" * 1_000)
    deliver(adopted=20)
    assert [path.read_bytes() for path in (root / "bad").iterdir()] == [b"\x7fELF" * 1_000]
    assert len(caplog.messages) == 1
    assert f"was moved to {root / 'bad' / folder.name}-00000099.seg" in caplog.messages[0]


@pytest.mark.parametrize("kind", ["seg", "ledger"])
def test_a_newer_version_is_left_alone_with_one_line(root, deliver, server, caplog, kind):
    newer, ours = make_dead(root, range(100, 120)), make_dead(root, range(20))
    (path,) = [each for each in newer.glob(f"*.{kind}") if each.stat().st_size][:1]
    with path.open("r+b") as file:
        header = fmt.read_header(file.read(fmt.HEADER_BYTES))
        file.seek(0)
        file.write(fmt.pack_header(header._replace(version=2)))
    before = contents(newer)
    deliver(left=1, adopted=20)
    assert numbers(server) == [-1, *range(20)]
    assert not ours.exists()
    assert contents(newer) == before
    (line,) = caplog.messages
    assert str(root) in line
    assert "a journal of version 2; this windback reads up to 1" in line


# Damage


def segment_of(folder):
    """Return the segment that most events are in."""
    return max(folder.glob("*.seg"), key=lambda path: len(path.read_bytes().rstrip(b"\0")))


def records_of(path):
    segment_id = int(path.stem)
    start = fmt.seed(int(path.parent.name, 16), segment_id, fmt.EVENTS)
    return list(fmt.scan(path.read_bytes(), start))


def test_of_a_segment_cut_short_the_rest_is_delivered(root, deliver, server, caplog):
    folder = make_dead(root, range(50))
    path = segment_of(folder)
    cut_at = records_of(path)[30].at + 20
    os.truncate(path, cut_at)
    deliver(adopted=30)
    assert numbers(server) == [-1, *range(30)]
    (kept,) = (root / "bad").iterdir()
    assert kept.stat().st_size == cut_at
    assert caplog.messages == [
        f"journal {folder.name}: a damaged segment was moved to {kept}; its valid events are delivered"
    ]


@pytest.mark.parametrize("leased", [0, 20])
def test_of_a_damaged_record_only_that_event_is_lost(root, deliver, server, caplog, leased):
    """Under a lease, too: then the others go out under a new key, for the old one stands for other bytes."""
    folder = make_dead(root, range(50), leased=leased)
    path = segment_of(folder)
    record = records_of(path)[10]
    data = bytearray(path.read_bytes())
    data[record.at + fmt.RECORD_BYTES + 5] ^= 0x10
    path.write_bytes(data)
    _, lost = deliver(adopted=49)
    assert lost == 1
    assert numbers(server) == [-1, *range(10), *range(11, 50)]
    assert len(list((root / "bad").iterdir())) == 1
    assert len(caplog.messages) == 1


def test_a_damaged_header_costs_nothing(root, deliver, server):
    folder = make_dead(root, range(50), leased=20)
    for path in folder.glob("*.seg"):
        data = bytearray(path.read_bytes())
        data[: fmt.HEADER_BYTES] = os.urandom(fmt.HEADER_BYTES)
        path.write_bytes(data)
    deliver(adopted=50)
    assert numbers(server) == [-1, *range(50)]


@pytest.mark.parametrize("damage", ["the snapshot", "all of it", "empty"])
def test_without_a_ledger_everything_is_sent_again(root, deliver, server, caplog, damage):
    folder = make_dead(root, range(50), leased=20)
    (path,) = folder.glob("*.ledger")
    data = bytearray(path.read_bytes())
    if damage == "the snapshot":
        data[fmt.HEADER_BYTES + fmt.RECORD_BYTES] ^= 1
    elif damage == "all of it":
        data[:] = os.urandom(len(data))
    else:
        data.clear()
    path.write_bytes(data)
    deliver(adopted=50)
    assert numbers(server) == [-1, *range(50)]
    assert all("ledger" in message for message in caplog.messages)
    assert len(caplog.messages) == (damage != "empty")
    deliver(adopted=0)


def test_whichever_file_is_missing_a_start_never_raises(tmp_path, root, server, deliver):
    folder = make_dead(root, range(30), leased=10)
    names = sorted(path.name for path in folder.iterdir())
    assert {Path(name).suffix for name in names} == {".lock", ".seg", ".ledger"}
    holder = segment_of(folder).name
    kept = tmp_path / "kept"
    folder.rename(kept)
    for name in [*names, None]:
        server.reset()
        shutil.copytree(kept, folder)
        if name is not None:
            (folder / name).unlink()
        deliver(adopted=0 if name == holder else 30)
        assert numbers(server) == ([-1] if name == holder else [-1, *range(30)])
    server.reset()
    for subset in (names[:1], [holder], [name for name in names if name.endswith((".lock", ".ledger"))]):
        shutil.copytree(kept, folder)
        for name in names:
            if name not in subset:
                (folder / name).unlink()
        deliver(adopted=30 if subset == [holder] else 0)


def test_a_segment_that_disappears_while_it_is_read_is_not_an_error(root, server, deliver, monkeypatch):
    folder = make_dead(root, range(30))
    from windback.journal.reader import Reader

    read = Reader.read

    def reading(self, most):
        for path in folder.glob("*.seg"):
            path.unlink()
        return read(self, most)

    monkeypatch.setattr(Reader, "read", reading)
    deliver(adopted=0)


def test_damaged_segments_that_cannot_be_set_aside_stay_and_come_once(root, server, deliver, caplog):
    folder = make_dead(root, range(50))
    (root / "bad").write_text("a file in the place of the directory")
    path = segment_of(folder)
    data = bytearray(path.read_bytes())
    data[records_of(path)[10].at] ^= 1
    path.write_bytes(data)
    deliver(left=1, adopted=49)
    assert numbers(server) == [-1, *range(10), *range(11, 50)]
    assert len(caplog.messages) == 1
    assert path.exists()
    (root / "bad").unlink()
    deliver(left=0, adopted=0)
    assert numbers(server) == [-1, -1, *range(10), *range(11, 50)]
    assert [each.name for each in (root / "bad").iterdir()] == [f"{folder.name}-{path.name}"]


@pytest.fixture
def failing_reads(monkeypatch):
    """Have reads of a segment fail with an error, after the first, until it is told to stop."""
    pread = os.pread
    state = {"fails": True, "failed": 0}

    def begin(path, code):
        reads = []

        def failing(descriptor, count, at):
            if os.path.samestat(os.fstat(descriptor), path.stat()) and count > 64 and state["fails"]:
                reads.append(at)
                if len(reads) > 1:
                    state["failed"] += 1
                    raise OSError(code, os.strerror(code))
            return pread(descriptor, count, at)

        monkeypatch.setattr(os, "pread", failing)
        return state

    return begin


def test_a_segment_that_may_not_be_read_is_left_to_the_next_start(
    root, server, deliver, failing_reads, caplog
):
    """What was read before is delivered, and its directory stays locked for so long; nothing comes twice."""
    folder = make_dead(root, range(1_500), leased=30)
    state = failing_reads(segment_of(folder), errno.EACCES)
    stats, _ = deliver(left=None)
    assert 30 <= stats.adopted < 1_500
    assert [message for message in caplog.messages if str(folder) in message and "denied" in message]
    state["fails"] = False
    deliver(adopted=1_500 - stats.adopted)
    assert numbers(server) == [-1, -1, *range(1_500)]


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.EAGAIN])
def test_a_segment_that_cannot_be_read_for_a_moment_is_read_a_little_later(
    root, server, failing_reads, eventually, caplog, code
):
    """By the same client, without an event or a flush to remind it; meanwhile `problem` says so."""
    folder = make_dead(root, range(1_500), leased=30)
    state = failing_reads(segment_of(folder), code)
    with Windback(**OPTIONS, base_url=server.url, journal=root, flush_interval=0.01) as client:
        track(client, [-1])
        eventually(lambda: state["failed"] > 1)
        assert os.strerror(code) in client.stats().problem
        assert not client.flush(0.2)
        state["fails"] = False
        eventually(lambda: client.stats().delivered == 1_501)
        assert client.stats().problem is None
    assert len([message for message in caplog.messages if os.strerror(code) in message]) == 1
    assert numbers(server) == list(range(-1, 1_500))
    assert left_in(root) == []


# The disk


def test_a_full_disk_and_space_again(attempt, server, root):
    """A real one, of 8 MiB. A store into a mapping would be a SIGBUS there, which no Python survives."""
    server.faults([{"path": "/track", "latency": 50}])  # full batches go out, and none is settled too early
    code = f"""\
    have_own_mounts()
    root = Path({str(root)!r})
    root.mkdir()
    mount("none", root, "tmpfs", 0, "size=8m,mode=700,uid=" + str(os.geteuid()))
    (root / "ballast").write_bytes(bytes(3 << 20))
    client = Windback(journal=root, flush_interval=3600, max_event_bytes=70_000)
    for n in range(120):
        track(client, [n], 60_000)
    assert client.stats().accepted == 120
    before = on_disk(client)
    assert before < 100
    (root / "ballast").unlink()
    writer = client._engine.queue.writer
    count = 120
    while on_disk(client) < before + 10:
        writer._retry_at_s = 0  # a worker that just failed sets it
        track(client, [count], 60_000)
        count += 1
        time.sleep(0.1)
    {ending_faults(server.port)}
    assert client.flush(20)
    stats = client.stats()
    assert stats.accepted == stats.delivered == count, stats
    assert client.close()
    assert list(root.iterdir()) == []
    print(count)
    """
    ended = attempt(code)
    assert ended.status == 0, ended.err
    kept, again = ended.err.splitlines()
    assert kept.startswith(f"journal {root}: No space left on device; events are kept only in memory for now")
    assert again == f"journal {root}: events are written to the disk again"
    assert numbers(server) == list(range(int(ended.out[0])))


def test_a_disk_that_is_full_from_the_start(attempt, server, root):
    code = f"""\
    have_own_mounts()
    root = Path({str(root)!r})
    root.mkdir()
    mount("none", root, "tmpfs", 0, "size=64k,mode=700,uid=" + str(os.geteuid()))
    client = Windback(journal=root, flush_interval=3600)
    track(client, range(50))
    assert on_disk(client) == 0
    assert client.flush(20)
    assert client.close()
    assert list(root.iterdir()) == []
    """
    ended = attempt(code)
    assert ended.status == 0
    assert len(ended.err.splitlines()) == 1
    assert f"journal {root}: No space left on device; events are kept only in memory" in ended.err
    assert numbers(server) == list(range(50))


def test_a_limit_on_file_sizes_is_a_full_disk(attempt, server, root):
    """EFBIG, with or without a mount: what ulimit -f, and in its way a quota, does."""
    code = f"""\
    root = Path({str(root)!r})
    resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, resource.RLIM_INFINITY))
    client = Windback(journal=root, flush_interval=3600)
    track(client, range(50))
    assert on_disk(client) == 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    client._engine.queue.writer._retry_at_s = 0
    track(client, range(50, 100))
    assert on_disk(client) == 50
    assert client.flush(20)
    assert client.close()
    assert list(root.iterdir()) == []
    """
    ended = attempt(code)
    assert ended.status == 0
    kept, again = ended.err.splitlines()
    assert kept.startswith(f"journal {root}: File too large; events are kept only in memory for now")
    assert again == f"journal {root}: events are written to the disk again"
    assert numbers(server) == list(range(100))


def test_a_limit_in_the_middle_of_a_record_accepts_no_half_of_it(attempt, server, root, deliver):
    """Without a mapping a write may end early; what is behind it is read by the next process."""
    code = f"""\
    import windback.journal.directory
    windback.journal.directory._MAPPED = frozenset()
    client = Windback(journal={str(root)!r}, flush_interval=3600, max_event_bytes=70_000)
    track(client, [0], 60_000)
    until(lambda: not client._engine.queue.needs_maintenance)
    track(client, [1], 60_000)  # in a segment of another size than the first
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    track(client, [2], 60_000)  # in memory
    assert on_disk(client) == 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    track(client, [3], 60_000)
    assert on_disk(client) == 3
    os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = attempt(code)
    assert ended.status == -signal.SIGKILL
    assert len(ended.err.splitlines()) == 2
    deliver(adopted=3)
    assert numbers(server) == [-1, 0, 1, 3]
    assert not (root / "bad").exists()


def test_a_read_only_directory_and_a_writable_one_again(attempt, server, root):
    code = f"""\
    root = Path({str(root)!r})
    root.mkdir(mode=0o700)
    if os.geteuid() == 0:  # whom permissions do not stop
        have_own_mounts()
        mount(root, root, None, BIND)
        mount(None, root, None, BIND | REMOUNT | READ_ONLY)
        make_writable = lambda: mount(None, root, None, BIND | REMOUNT)
    else:
        root.chmod(0o500)
        make_writable = lambda: root.chmod(0o700)
    client = Windback(journal=root, flush_interval=3600)
    track(client, range(50))
    assert on_disk(client) == 0
    make_writable()
    client._engine.queue.writer._retry_at_s = 0
    track(client, range(50, 100))
    assert on_disk(client) == 50
    assert client.flush(20)
    assert client.close()
    assert list(root.iterdir()) == []
    """
    ended = attempt(code)
    assert ended.status == 0
    kept, again = ended.err.splitlines()
    assert kept.startswith((f"journal {root}: Read-only file system;", f"journal {root}: Permission denied;"))
    assert again == f"journal {root}: events are written to the disk again"
    assert numbers(server) == list(range(100))


def test_a_directory_that_becomes_read_only_holds_up_no_delivery(attempt, server, root):
    """Segments that are done with can't be removed then."""
    code = f"""\
    root = Path({str(root)!r})
    if os.geteuid() == 0:
        have_own_mounts()  # before the client's threads start, which have them, too, then
    client = Windback(journal=root, flush_interval=0.01, max_event_bytes=70_000)
    track(client, range(10))
    assert client.flush(20)
    if os.geteuid() == 0:
        mount(root, root, None, BIND)
        mount(None, root, None, BIND | REMOUNT | READ_ONLY)
    else:
        client._engine.queue.writer._home.folder.chmod(0o500)
    track(client, range(10, 100), 60_000)
    assert client.flush(20)
    stats = client.stats()
    assert (stats.delivered, stats.worker_deaths) == (100, 0), stats
    assert client.close()
    """
    ended = attempt(code)
    assert (ended.status, ended.out) == (0, []), ended.err
    assert len([line for line in ended.err.splitlines() if "events are kept only in memory" in line]) == 1
    assert numbers(server) == list(range(100))


def test_a_directory_that_is_removed_is_made_again(attempt, server, root, deliver):
    code = f"""\
    root = Path({str(root)!r})
    client = Windback(journal=root, flush_interval=3600, max_event_bytes=70_000)
    track(client, range(10))
    until(lambda: not (client._engine.queue.needs_maintenance or client._engine.scheduler._maintainer))
    shutil.rmtree(root)
    for n in range(10, 120):  # until the segments that nobody can find any more are full
        track(client, [n], 60_000)
    assert root.is_dir()
    track(client, range(120, 130))
    assert client.flush(20)
    assert client.stats().delivered == 130
    track(client, range(200, 230))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = attempt(code)
    assert ended.status == -signal.SIGKILL
    assert ended.err == ""
    deliver(adopted=30)
    assert numbers(server) == [-1, *range(130), *range(200, 230)]


def test_without_file_descriptors_events_wait_in_memory(attempt, server, root):
    code = f"""\
    root = Path({str(root)!r})
    import windback.queue.journal
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), limits[1]))
    client = Windback(journal=root, flush_interval=3600)
    track(client, range(50))
    assert on_disk(client) == 0
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    client._engine.queue.writer._retry_at_s = 0
    track(client, range(50, 100))
    assert on_disk(client) == 50
    assert client.flush(20)
    assert client.close()
    left = list(root.rglob('*'))
    assert not left, left
    """
    ended = attempt(code)
    assert ended.status == 0, ended.err
    kept, again = ended.err.splitlines()
    assert kept.startswith(f"journal {root}: Too many open files; events are kept only in memory for now")
    assert again == f"journal {root}: events are written to the disk again"
    assert numbers(server) == list(range(100))


# Dead letters


def test_what_the_api_rejects_is_kept_and_readable(server, root, deliver, caplog):
    client = Windback(**OPTIONS, base_url=server.url, journal=root, flush_interval=0.01)
    track(client, range(5))
    client.track_event("login", POISON, {"n": 5})
    track(client, range(6, 10))
    assert client.flush(20)
    stats = client.stats()
    assert (stats.delivered, stats.rejected, stats.pending) == (9, 1, 0)
    assert client.close()
    (path,) = dead.files(root)
    ((letter, _),) = dead.read(path)
    assert letter.event["customer_email"] == POISON
    assert letter.event["properties"] == {"n": 5}
    assert (letter.reason, letter.status) == ("invalid", 400)
    assert letter.idempotency_key
    assert path.stat().st_mode & 0o777 == 0o600
    assert [json.loads(line)["reason"] for line in path.read_text().splitlines()] == ["invalid"]
    assert any("they are kept as dead letters" in message for message in caplog.messages)
    assert POISON not in caplog.text
    assert left_in(root) == []


def test_letters_that_cannot_be_kept_hold_up_nothing(server, root, caplog):
    root.mkdir()
    (root / "dead").write_text("a file in the place of the directory")
    client = Windback(**OPTIONS, base_url=server.url, journal=root, flush_interval=0.01)
    client.track_event("login", POISON, {"n": 0})
    track(client, range(1, 10))
    assert client.flush(20)
    assert (client.stats().delivered, client.stats().rejected) == (9, 1)
    assert client.close()
    assert "a rejected event can't be kept" in caplog.text
    assert "they are kept as dead letters" not in caplog.text


def test_a_line_that_was_cut_off_does_not_hide_the_others(root, server):
    root.mkdir()
    report = {"reason": "invalid", "status": 422, "message": None, "key": "k", "max_journal_bytes": 1 << 40}
    dead.write(root, "a", [b'{"n":1}', b'{"n":2}'], **report)
    (path,) = dead.files(root)
    with path.open("ab") as file:
        file.write(path.read_bytes()[:40])
    assert [letter.event for letter, _ in dead.read(path)] == [{"n": 1}, {"n": 2}]
