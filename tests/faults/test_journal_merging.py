"""Small directories of exited processes are merged. A kill neither loses nor doubles an event."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import signal
import socket
import sys
import threading
from collections import Counter
from pathlib import Path

import orjson
import pytest
from relays import running
from strikes import Interruption, Strike
from tracking import LEAVE, left_in

from windback import Windback
from windback.journal import inspect
from windback.journal.directory import DRAIN, OWNER, JournalDirectory, is_held, names
from windback.journal.merging import left_behind, merge, sweep
from windback.relay import Relay

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")

#: A program with ten events under way, and the others not; then it is killed.
LEAVE_LEASED = """\
import os, signal, time
from windback import Windback
client = Windback(journal={root!r}, flush_interval=3600, batch_size=10)
for n in range({start}, {end}):
    client.track_event("login", "jane@example.com", {{"n": n}})
while client.stats().in_flight < 10 or client.stats().problem is None:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def root(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def three(root, run, dead_url):
    """Three directories of killed processes, with the events 0 to 32; the first ten of two are leased."""
    for code, start, end in ((LEAVE_LEASED, 0, 15), (LEAVE, 15, 18), (LEAVE_LEASED, 18, 33)):
        ended = run(code.format(root=str(root), start=start, end=end), url=dead_url)
        assert ended.status == -signal.SIGKILL, ended
    return root


def waiting_in(root: Path):
    """How often each event is in directories that a process would deliver."""
    return Counter(orjson.loads(record.payload)["properties"]["n"] for record in inspect.events(root))


def leases_in(root: Path):
    return sorted(key for home in inspect.homes(root) for key in home.ledger.leases)


def test_what_was_leased_goes_out_under_its_key_and_the_rest_once(three, server, eventually):
    keys = leases_in(three)
    assert len(keys) >= 2
    assert merge(three, names(three)) != set()
    assert len(left_in(three)) == 1
    assert leases_in(three) == keys
    with Windback("sk_test_1", base_url=server.url, journal=three) as client:
        assert client.flush(60)
        assert client.stats().adopted == 33
    assert sorted(event.properties["n"] for event in server.events()) == list(range(33))
    assert set(keys) <= {request.idempotency_key for request in server.requests()}
    eventually(lambda: not left_in(three))


#: What changes something on the disk.
CHANGES = {
    "fsync",
    "ftruncate",
    "mkdir",
    "open",
    "posix_fallocate",
    "pwrite",
    "rename",
    "rmdir",
    "unlink",
    "write",
}


def merge_and_die(root: Path, call: int) -> bool:
    """Merge in a child that is killed before one of its system calls; whether it came so far."""
    child = os.fork()
    if not child:
        left = call

        def watch(_, event, function):
            nonlocal left
            if event == "c_call" and function.__module__ == "posix" and function.__name__ in CHANGES:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(watch)
        merge(root, names(root))
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


@functools.lru_cache
def content_of(path):
    """The bytes of a file that no test changes, without the zeros at its end, and its size."""
    data = Path(path).read_bytes()
    return data.rstrip(b"\0"), len(data)


def copy_of(root: Path, to: Path) -> Path:
    def copy(source, target):
        data, size = content_of(source)
        Path(target).write_bytes(data)
        os.truncate(target, size)

    shutil.copytree(root, to, copy_function=copy)
    return to


def test_a_kill_before_any_system_call_neither_loses_nor_doubles_an_event(three, tmp_path):
    keys = leases_in(three)
    call = 0
    directories = Counter()
    was_killed = True
    while was_killed:
        copy = copy_of(three, tmp_path / "copy")
        was_killed = merge_and_die(copy, call)
        for path in copy.iterdir():
            os.utime(path, (1_000_000, 1_000_000))  # what was not finished is old
        sweep(copy)
        assert waiting_in(copy) == Counter(range(33)), call
        assert leases_in(copy) == keys, call
        assert left_in(copy) == names(copy), call
        directories[len(names(copy))] += 1
        shutil.rmtree(copy)
        call += 1
    assert directories[3] > 20
    assert directories[1] > 20
    assert len(directories) == 2


def cut_off(root: Path, to: Path) -> Path:
    """Merge a copy in a child that is killed when the sources have their other names, and nothing else."""
    for call in itertools.count():
        copy = copy_of(root, to)
        assert merge_and_die(copy, call)
        if not names(copy):
            return copy
        shutil.rmtree(copy)
    raise AssertionError


@pytest.mark.parametrize("who", ["a relay", "a sender", "a thread"])
def test_each_process_that_delivers_finishes_what_was_cut_off(three, server, tmp_path, eventually, who):
    root = cut_off(three, tmp_path / "copy")
    if who == "a relay":
        with running(Relay(root, "sk_test_1", base_url=server.url)):
            eventually(lambda: len(server.events()) == 33)
    else:
        worker = "process" if who == "a sender" else "thread"
        with Windback("sk_test_1", base_url=server.url, journal=root, worker=worker) as client:
            assert client.track_event("logout", "jane@example.com")
            assert client.flush(60)
            assert client.stats().adopted == 33
    found = [event.properties["n"] for event in server.events() if event.event == "login"]
    assert sorted(found) == list(range(33))


def test_an_exception_at_any_line_of_a_merge_leaves_no_lock_and_every_event(three, tmp_path):
    """Such as Ctrl-C: a caller merges before its first event. A lock would hide the events from everybody."""
    shutil.rmtree(three / names(three)[0])  # two take less time
    events = waiting_in(three)
    number = 0
    place = ""
    while place is not None:
        number += 1
        copy = copy_of(three, tmp_path / "copy")
        strike = Strike(number, lines=True, visits=1)
        try:
            with strike:
                merge(copy, names(copy))
        except Interruption:
            pass
        place = strike.place
        assert waiting_in_all(copy) == events, place
        shutil.rmtree(copy)
    assert number > 100


def waiting_in_all(root: Path):
    """How often each event is in directories that a process would take over now."""
    homes = left_behind(root, "")
    assert homes == names(root)
    assert not any(is_held(root / name / lock) for name in homes for lock in (OWNER, DRAIN))
    return waiting_in(root)


@pytest.mark.parametrize("damage", ["a record", "the ledger", "a file of others", "a header"])
def test_what_is_damaged_or_not_all_ours_is_left_for_who_delivers_it(three, damage):
    first = next(home for home in inspect.homes(three) if home.ledger.leases)
    if damage == "a file of others":
        (first.folder / "notes.txt").write_text("mine")
    else:
        lease = next(iter(first.ledger.leases.values()))
        pattern = "*.ledger" if damage == "the ledger" else f"{lease[0][0]:08}.seg"
        (path,) = first.folder.glob(pattern)
        data = bytearray(path.read_bytes())
        data[8 if damage == "a header" else 90] ^= 0xFF
        path.write_bytes(data)
    others = set(names(three)) - {first.name}
    merge(three, names(three))
    left = names(three)
    assert first.name in left
    assert len(left) == 2
    assert not others & set(left)


def test_processes_that_merge_at_the_same_time_lose_and_double_nothing(
    root, run, server, dead_url, eventually
):
    """Three crash loops, in one directory; each process is killed a moment after its event."""
    code = f"""\
import os, random, signal, sys
from windback import Windback
there, here = os.pipe()
loops = []
for loop in range(3):
    loops.append(os.fork())
    if loops[-1]:
        continue
    for n in range(30):
        child = os.fork()
        if not child:
            client = Windback(journal={str(root)!r}, max_journal_bytes=8 << 20)
            number = loop * 30 + n
            if client.track_event("login", "jane@example.com", {{"n": number}}):
                os.write(here, b"%d\\n" % number)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    os._exit(0)
for loop in loops:
    os.waitpid(loop, 0)
os.close(here)
print(*os.fdopen(there).read().split())
"""
    ended = run(code, url=dead_url, within_s=200)
    assert ended.status == 0, ended
    accepted = sorted(map(int, ended.out[0].split()))
    assert accepted == list(range(90))
    with Windback("sk_test_1", base_url=server.url, journal=root) as client:
        eventually(
            lambda: client.flush(60) and not [name for name in names(root) if name != client_home(root)]
        )
    assert sorted(event.properties["n"] for event in server.events()) == accepted


def client_home(root: Path):
    return next((home.name for home in inspect.homes(root) if home.is_alive), None)


def test_a_child_that_is_forked_while_a_thread_has_such_a_lock_does_not_keep_it(three, tmp_path):
    """The thread does not exist in the child, and its lock must not live on there."""
    own = tmp_path / "own"  # or the client would adopt one of the three itself
    client = Windback("sk_test_1", base_url="http://127.0.0.1:9", journal=own, shutdown_timeout=0)
    name = names(three)[0]
    homes = []
    thread = threading.Thread(target=lambda: homes.append(JournalDirectory.adopt(three, name)))
    thread.start()
    thread.join()
    here, there = socket.socketpair()
    child = os.fork()
    if not child:
        here.close()
        there.send(b"x")
        there.recv(1)
        os._exit(0)
    there.close()
    try:
        here.recv(1)  # the child runs
        assert JournalDirectory.adopt(three, name) is None
        homes[0].close()
        again = JournalDirectory.adopt(three, name)
        assert again is not None
        again.close()
    finally:
        here.close()
        os.waitpid(child, 0)
        client.close(0)
