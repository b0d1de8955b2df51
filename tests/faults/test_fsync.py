"""fsync=: what was accepted is brought to the disk itself by a thread, and no caller waits for that.

That it then survives a power cut is the disk's promise, which no test here can check.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from inside import is_syncing, journal_of, journals_of, running_sender
from tracking import track

from windback import ConfigurationError, Windback, isolation
from windback.relay import Relay

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")

KEY = "sk_test_1"
each_mode = pytest.mark.parametrize("fsync", ["interval", "batch"])
each_worker = pytest.mark.parametrize("worker", ["thread", "process", None])


def segments(client):
    return list(journal_of(client).segments.values())


def is_synced(client):
    return all(each.synced >= each.count for each in segments(client))


@pytest.fixture
def synced(monkeypatch):
    """Which files were brought to the disk, and by which threads; `failing`: names that can't be."""

    class Synced:
        def __init__(self):
            self.calls = []
            self.failing = ()

        def by_name(self):
            return Counter(name for name, _ in self.calls)

    seen = Synced()
    fsync = os.fsync

    def watched(descriptor):
        status = os.fstat(descriptor)
        seen.calls.append((status.st_ino, threading.current_thread().name))
        if status.st_ino in seen.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return seen


@pytest.fixture
def make(server, tmp_path):
    made = []

    def make(**options):
        made.append(Windback(KEY, base_url=server.url, journal=tmp_path / "journal", **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@each_mode
@each_worker
def test_what_is_accepted_comes_to_the_disk_by_a_thread_of_its_own(make, synced, eventually, fsync, worker):
    client = make(fsync=fsync, worker=worker, flush_interval=3600)
    made_by = [each.path.stat().st_ino for each in segments(client)]
    assert set(synced.by_name()) >= set(made_by)  # the names of segments have to be there, too
    synced.calls.clear()
    track(client, range(100))
    eventually(lambda: is_synced(client))
    written = {each.path.stat().st_ino for each in segments(client) if each.count}
    assert written
    assert written <= set(synced.by_name())
    assert "MainThread" not in {thread for _, thread in synced.calls}


@each_mode
def test_with_nothing_new_nothing_is_synced_and_the_next_event_is(make, synced, eventually, fsync):
    client = make(fsync=fsync, worker=None)
    for turn in range(3):
        track(client, range(10))
        eventually(lambda: is_synced(client))
        eventually(lambda: not is_syncing(client))
        synced.calls.clear()
        assert client.stats().accepted == 10 * (turn + 1)
        time.sleep(0.1)
        assert "windback-sync" not in {thread for _, thread in synced.calls}


def test_an_interval_takes_all_of_a_burst_together(make, synced, eventually):
    client = make(fsync="interval", worker=None)
    synced.calls.clear()
    track(client, range(5000))
    eventually(lambda: is_synced(client))
    names = {each.path.stat().st_ino for each in segments(client) if each.count}
    assert sum(count for name, count in synced.by_name().items() if name in names) <= 3 * len(names)


@each_worker
def test_a_disk_that_fails_is_logged_once_and_never_asked_again(
    make, synced, eventually, caplog, server, worker
):
    client = make(fsync="batch", worker=worker, flush_interval=3600)
    track(client, range(10))
    eventually(lambda: is_synced(client))
    (segment,) = [each for each in segments(client) if each.count]
    name = segment.path.stat().st_ino
    synced.failing = (name,)
    synced.calls.clear()
    track(client, range(10, 20))
    eventually(lambda: "can't sync new records to disk" in caplog.text)
    synced.failing = ()
    track(client, range(20, 30))
    eventually(lambda: not is_syncing(client))
    assert synced.by_name()[name] == 1
    assert (
        caplog.text.count("can't sync new records to disk, so a power cut may lose them: Input/output error")
        == 1
    )
    if worker is not None:
        assert client.flush(20)
        assert sorted(stored.properties["n"] for stored in server.events()) == list(range(30))


def test_close_brings_what_is_left_to_the_disk_and_ends_the_thread(make, synced, eventually):
    before = {path.name for path in Path("/proc/self/task").iterdir()}
    client = make(fsync="interval", worker=None)
    track(client, range(10))
    (segment,) = [each for each in segments(client) if each.count]
    name = segment.path.stat().st_ino
    synced.calls.clear()
    client.close()
    assert name in synced.by_name()
    eventually(lambda: {path.name for path in Path("/proc/self/task").iterdir()} <= before)


def test_an_exit_with_events_left_and_a_fork(run, dead_url, tmp_path):
    code = f"""\
    import os, sys
    from windback import Windback

    def say(*words):  # in one piece: two threads do
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    fsync = os.fsync
    def tell(descriptor):
        fsync(descriptor)
        say(os.getpid(), os.fstat(descriptor).st_ino)
    os.fsync = tell
    client = Windback(journal={str(tmp_path / "journal")!r}, worker=None, fsync="interval")
    assert client.track_event("login", "jane@example.com")
    pid = os.fork()
    assert client.track_event("login", "jane@example.com")
    assert client.stats().accepted == (2 if pid else 1)
    if pid:
        os.waitpid(pid, 0)
    segments = client._engine.queue.writer.segments.values()
    say("written", os.getpid(), *(each.path.stat().st_ino for each in segments if each.count))
    if not pid:
        client.close()
        os._exit(0)
    """
    ended = run(code, url=dead_url)
    assert (ended.status, ended.err) == (0, "")
    written = [line.split()[1:] for line in ended.out if line.startswith("written")]
    assert len({pid for pid, *_ in written}) == 2
    for pid, *names in written:
        assert names
        at = next(n for n, line in enumerate(ended.out) if line.startswith(f"written {pid}"))
        assert {f"{pid} {name}" for name in names} <= set(ended.out[at:])


#: Makes a sender write down which files it syncs. It runs isolated, so nothing in its environment could.
WRITE_DOWN_SYNCS = """\
import os
of_system = os.fsync
def fsync(descriptor):
    of_system(descriptor)
    with open(os.environ["SYNCED"], "a") as log:
        log.write(os.readlink(f"/proc/self/fd/{descriptor}") + "\\n")
os.fsync = fsync
"""


@each_mode
def test_a_sender_brings_what_it_notes_to_the_disk_too(make, tmp_path, monkeypatch, eventually, fsync):
    log = tmp_path / "synced"
    command = isolation.command
    monkeypatch.setattr(isolation, "command", lambda python, code: command(python, WRITE_DOWN_SYNCS + code))
    monkeypatch.setenv("SYNCED", str(log))
    client = make(worker="process", fsync=fsync, flush_interval=3600)
    track(client, range(10))
    eventually(lambda: running_sender(client) is not None)
    assert client.flush(20)
    eventually(lambda: list((tmp_path / "journal").glob("*/*.ledger")))
    (ledger,) = (tmp_path / "journal").glob("*/*.ledger")
    eventually(lambda: log.exists() and f"{ledger}\n" in log.read_text())


@each_mode
def test_a_relay_brings_what_it_notes_to_the_disk_too(server, tmp_path, monkeypatch, eventually, fsync):
    root = tmp_path / "journal"
    ledgers = []
    of_system = os.fsync

    def watched(descriptor):
        of_system(descriptor)
        ledgers.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    relay = Relay(root, KEY, base_url=server.url, flush_interval=0.01, fsync=fsync)
    thread = threading.Thread(target=relay.run)
    with Windback(KEY, base_url=server.url, journal=root, worker=None) as client:
        track(client, range(10))
        monkeypatch.setattr(os, "fsync", watched)
        thread.start()
        eventually(lambda: relay.stats().delivered == 10)
        (reader,) = journals_of(relay).readers.values()
        eventually(lambda: not journals_of(relay).wants_sync)
        assert str(reader.written_to.path) in ledgers
        eventually(lambda: not is_syncing(relay))
        ledgers.clear()
        time.sleep(0.1)
        assert ledgers == []
        track(client, range(10, 20))
        eventually(lambda: relay.stats().delivered == 20)
        eventually(lambda: str(reader.written_to.path) in ledgers)
    relay.stop()
    thread.join()


def test_without_the_option_a_relay_syncs_nothing(server, tmp_path, synced, eventually):
    root = tmp_path / "journal"
    with Windback(KEY, base_url=server.url, journal=root, worker=None) as client:
        track(client, range(10))
        relay = Relay(root, KEY, base_url=server.url)
        assert relay.drain(20)
        relay.close()
    assert synced.calls == []


def test_a_ledger_that_can_not_be_synced_holds_up_nothing_and_is_logged_once(
    server, tmp_path, synced, eventually, caplog
):
    root = tmp_path / "journal"
    with Windback(KEY, base_url=server.url, journal=root, worker=None) as client:
        track(client, range(10))
        relay = Relay(root, KEY, base_url=server.url, fsync="batch", flush_interval=0.01)
        relay.poll()
        (reader,) = journals_of(relay).readers.values()
        synced.failing = (reader.written_to.path.stat().st_ino,)
        assert relay.drain(20)
        eventually(lambda: "can't sync new records to disk" in caplog.text)
        track(client, range(10, 20))
        assert relay.drain(20)
        relay.close()
    assert (
        caplog.text.count("can't sync new records to disk, so a power cut may lose them: Input/output error")
        == 1
    )
    assert sorted(stored.properties["n"] for stored in server.events()) == list(range(20))


def test_options_that_can_not_work_are_errors(tmp_path):
    with pytest.raises(
        ConfigurationError, match="fsync must be one of 'interval', 'batch', None, not 'always'"
    ):
        Windback(KEY, journal=tmp_path, fsync="always")
    for options in ({}, {"worker": "process"}):
        with pytest.raises(ConfigurationError, match="fsync works only with journal=DIRECTORY"):
            Windback(KEY, fsync="batch", **options)
