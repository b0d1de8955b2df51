"""`windback relay` and `windback journal` as they are typed: real processes, real journals, a real server.

A journal is made by a process that tracks events, never sends, and is killed with SIGKILL.
"""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import json
import logging
import os
import pty
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import zlib
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import commands
import pytest
from calls import eventually
from commands import COMMAND, set_environment
from typer.main import get_command

from windback.cli import main
from windback.cli.app import app
from windback.devserver import DevServer
from windback.journal import dead, inspect
from windback.journal import format as fmt
from windback.journal.directory import JournalDirectory

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk_test_1"
# It says that it is ready, tracks what it is told to on each line, and ends when it is killed.
WRITER = """\
import sys
from windback import Windback
client = Windback(journal=sys.argv[1], flush_interval=3600)
client._engine.threads.start = lambda _: True  # else a full batch would go at once
for line in sys.stdin:
    first, count, name = line.split()
    for n in range(int(first), int(first) + int(count)):
        assert client.track_event(name, "jane@example.com", {"n": n, "of": sys.argv[2]})
    print("tracked", flush=True)
"""


@pytest.fixture
def server(server, monkeypatch) -> DevServer:
    set_environment(monkeypatch, API_KEY=KEY, BASE_URL=server.url)
    return server


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "journal"


class Ended(commands.Ended):
    """What is written as JSON lines, too."""

    @property
    def lines(self) -> List[Dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(capsys, server) -> Callable[..., Ended]:
    """Run a command in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Ended(status, *capsys.readouterr())

    return run


# What may leave a request under way when it ends: in this process it would go on, into the next test.
def run_process(*arguments: object, within_s: float = 30.0, **env: str) -> Ended:
    """Run a command in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env={**os.environ, **env},
        capture_output=True,
        encoding="utf-8",
        timeout=within_s,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def listed(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.iterdir())


class Writer:
    """A process with a journal."""

    def __init__(self, root: Path, of: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root), of], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self._process.pid

    def track(self, count: int, *, first: int = 0, name: str = "login") -> None:
        self._process.stdin.write(f"{first} {count} {name}\n".encode())
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"tracked\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def writing(root: Path, of: str = "a") -> Iterator[Writer]:
    writer = Writer(root, of)
    try:
        yield writer
    finally:
        writer.kill()


def leave_behind(root: Path, count: int, of: str = "a") -> str:
    """Leave the journal of a process that was killed; returns the name of its directory."""
    before = listed(root) if root.exists() else []
    with writing(root, of) as writer:
        writer.track(count)
    (name,) = [name for name in listed(root) if name not in before]
    return name


def segment_with_events(root: Path, name: str) -> Path:
    (record, *_) = [record for record in inspect.events(root) if record.directory == name]
    return root / name / f"{record.segment_id:08d}.seg"


def write_letters(
    root: Path, *events: Dict[str, object], reason: str = "invalid", name: str = "memory"
) -> None:
    root.mkdir(exist_ok=True)
    records = [json.dumps(event).encode() for event in events]
    assert dead.write(
        root, name, records, reason=reason, status=400, message="no good", key="k", max_journal_bytes=1 << 40
    )


def event(n: int) -> Dict[str, object]:
    return {
        "event": "login",
        "customer_email": "jane@example.com",
        "timestamp": "2025-12-01T10:00:00.000Z",
        "properties": {"n": n},
    }


def arrived(server: DevServer) -> List[int]:
    return sorted(event.properties["n"] for event in server.events())


def letters_of(root: Path) -> List[dead.Letter]:
    return [letter for path in dead.files(root) for letter in dead.read(path)]


def files_of(root: Path) -> Dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# stats


def test_stats_counts_the_events_of_exited_and_running_processes(run, root):
    gone = leave_behind(root, 30)
    with writing(root, "b") as writer:
        writer.track(12)
        counted = run("journal", "stats", "--json", root)
        shown = run("journal", "stats", root)
    assert (counted.status, shown.status) == (0, 0)
    by_name = {each["name"]: each for each in counted.json["directories"]}
    assert len(by_name) == 2
    dead_one = by_name.pop(gone)
    (living,) = by_name.values()
    assert (dead_one["process"], dead_one["sender"], dead_one["waiting"]) == ("dead", False, 30)
    assert (living["process"], living["sender"], living["waiting"]) == ("alive", True, 12)
    assert living["pid"] == writer.pid
    assert time.strftime("%Y-%m-%d", time.gmtime()) in living["created"]
    assert counted.json["total"]["waiting"] == 42
    assert counted.json["total"]["bytes"] == sum(path.stat().st_size for path in root.glob("*/*.seg"))
    assert (counted.json["dead_letters"], counted.json["bad_segments"]) == (0, 0)
    header, *rows = shown.out.splitlines()
    columns = "directory process sender pid created segments bytes waiting leased done"
    assert header.split() == columns.split()
    assert rows[-2:] == ["dead letters: 0", "bad segments: 0"]
    cells = [row.split() for row in rows[:-3]]
    assert min(cells)[:3] in ([gone, "dead", "no"], [living["name"], "alive", "yes"])
    assert re.fullmatch(r"total 2 +\d+ +\d+ +42 +0 +0", rows[-3])


def test_stats_of_a_journal_whose_events_were_all_sent_are_zeros(run, root):
    root.mkdir()
    shown = run("journal", "stats", "--json", root)
    assert (shown.status, shown.json["directories"], shown.json["total"]["waiting"]) == (0, [], 0)


def test_stats_distinguishes_what_is_leased_from_what_is_done(run, root, server):
    name = leave_behind(root, 250)
    server.faults([{"path": "/track", "hang": True}])
    with relaying(root, "--shutdown-timeout", "0.2") as relay:
        eventually(lambda: run("journal", "stats", "--json", root).json["total"]["leased"] > 0)
        relay.send_signal(signal.SIGTERM)
        assert relay.wait(20) == 0
    (counted,) = run("journal", "stats", "--json", root).json["directories"]
    assert (counted["name"], counted["waiting"] + counted["leased"], counted["done"]) == (name, 250, 0)
    assert counted["leased"] >= 100


def test_reading_leaves_every_byte_and_every_lock_as_it_was(run, root):
    leave_behind(root, 20)
    write_letters(root, event(1))
    before = files_of(root)
    for command in ("stats", "peek", "dead", "check"):
        assert run("journal", command, root).status == 0
    assert files_of(root) == before
    (home,) = inspect.homes(root)
    assert (home.is_alive, home.has_sender) == (False, False)


def test_a_writer_is_not_disturbed_by_a_thousand_looks(root, server):
    with writing(root) as writer:
        writer.track(1)
        (name,) = listed(root)
        for _ in range(1000):
            assert inspect.is_held(root / name / "owner.lock")
        writer.track(100, first=1)
    assert not inspect.is_held(root / name / "owner.lock")
    assert [record.payload for record in inspect.events(root)] != []


def test_a_directory_can_be_adopted_after_a_look(root, server):
    name = leave_behind(root, 1)
    assert not inspect.is_held(root / name / "owner.lock")
    home = JournalDirectory.adopt(root, name)
    assert home is not None
    assert inspect.is_held(root / name / "owner.lock")
    home.close()


# peek


def test_peek_shows_the_first_events_and_where_they_stand(run, root):
    name = leave_behind(root, 15)
    shown = run("journal", "peek", root)
    assert [line["event"]["properties"]["n"] for line in shown.lines] == list(range(10))
    first = shown.lines[0]
    assert (first["directory"], first["offset"], first["state"]) == (name, 64, "waiting")
    assert first["event"]["customer_email"] == "jane@example.com"
    assert run("journal", "peek", "--json", root).out == shown.out
    assert len(run("journal", "peek", "-n", "3", root).lines) == 3


def test_peek_shows_all_of_them_one_directory_after_the_other(run, root):
    names = sorted([leave_behind(root, 15, "a"), leave_behind(root, 25, "b")])
    lines = run("journal", "peek", "--all", root).lines
    assert len(lines) == 40
    assert list(dict.fromkeys(line["directory"] for line in lines)) == names


def test_peek_into_a_pipe_that_is_closed_ends_quietly(root, server):
    leave_behind(root, 3000)
    process = subprocess.Popen(
        [*COMMAND, "journal", "peek", "--all", str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(20) == 1


# drain


@pytest.mark.parametrize("as_json", [False, True])
def test_drain_sends_what_dead_processes_left(root, server, as_json):
    leave_behind(root, 150, "a")
    leave_behind(root, 70, "b")
    done = run_process("journal", "drain", *(["--json"] if as_json else []), root)
    assert (done.status, done.err) == (0, "")
    if as_json:
        assert done.json == {"delivered": 220, "rejected": 0, "left": 0}
    else:
        assert done.out == "delivered: 220, rejected: 0, left: 0\n"
    assert len(arrived(server)) == 220
    assert listed(root) == []


def test_drain_leaves_the_events_of_a_running_process_to_it(run, root, server):
    with writing(root) as writer:
        writer.track(5)
        done = run("journal", "drain", "--json", root)
        assert (done.status, done.json) == (0, {"delivered": 0, "rejected": 0, "left": 0})
        assert server.counts().events == 0


def test_drain_ends_in_time_and_reports_what_is_left(run, root, server):
    leave_behind(root, 250)
    server.faults([{"path": "/track", "hang": True}])
    started_s = time.monotonic()
    done = run_process("journal", "drain", "--json", "--timeout", "0.5", root)
    assert time.monotonic() - started_s < 15  # it would take 40
    assert (done.status, done.json) == (1, {"delivered": 0, "rejected": 0, "left": 250})
    server.clear_faults()
    assert run("journal", "drain", "--json", root).json == {"delivered": 250, "rejected": 0, "left": 0}
    assert arrived(server) == list(range(250))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["drain", "replay"])
def test_a_signal_ends_what_sends_early_and_all_is_kept(run, root, server, command, number):
    leave_behind(root, 3)
    write_letters(root, event(10), event(11))
    server.faults([{"path": "/track", "hang": True}])
    process = subprocess.Popen([*COMMAND, "journal", command, "--json", str(root)], stdout=subprocess.PIPE)
    eventually(lambda: server.counts().requests > 0)
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert json.loads(out)["left"] == (3 if command == "drain" else 2)
    server.clear_faults()
    assert run("journal", "drain", root).status == 0
    assert run("journal", "replay", root).status == 0
    assert arrived(server) == [0, 1, 2, 10, 11]


def test_drain_gives_up_when_the_server_is_not_there_and_gives_the_reason(run, root, server):
    leave_behind(root, 5)
    with contextlib.closing(socket.socket()) as taken:  # the port is ours, and nobody listens there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/api/v1"
        done = run_process("journal", "drain", "--base-url", url, root)
    assert (done.status, done.out) == (1, "delivered: 0, rejected: 0, left: 5\n")
    assert "could not connect" in done.err


def test_drain_keeps_what_is_rejected(run, root, server):
    leave_behind(root, 3)
    server.faults([{"path": "/track", "status": 400}])
    done = run("journal", "drain", "--json", root)
    assert (done.status, done.json) == (0, {"delivered": 0, "rejected": 3, "left": 0})
    assert len(letters_of(root)) == 3


@pytest.mark.parametrize("command", ["drain", "stats", "check"])
def test_a_terminal_sees_progress(root, server, command):
    leave_behind(root, 300)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, "journal", command, str(root)],
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    out, _ = process.communicate(timeout=30)
    shown = b""
    with contextlib.suppress(OSError):  # the other side is closed, and all is read
        while True:
            shown += os.read(ours, 4096)
    os.close(ours)
    assert process.returncode == 0
    assert out
    what = {"drain": b"sent", "stats": b"scanned", "check": b"checked"}[command]
    assert (b"%b: " % what) in shown
    assert b"Traceback" not in shown


# dead letters


def test_dead_letters_are_listed_and_exported(run, root):
    write_letters(root, event(1), event(2))
    write_letters(root, event(3), reason="too_large")
    shown = run("journal", "dead", root)
    header, *rows = shown.out.splitlines()
    assert header.split() == ["rejected", "status", "reason", "event", "message"]
    assert [row.split()[1:] for row in rows] == [
        ["400", "invalid", "login", "no", "good"],
        ["400", "invalid", "login", "no", "good"],
        ["400", "too_large", "login", "no", "good"],
    ]
    assert "jane@" not in shown.out
    exported = run("journal", "dead", "--json", root)
    assert [line["event"] for line in exported.lines] == [event(1), event(2), event(3)]
    assert {line["idempotency_key"] for line in exported.lines} == {"k"}
    assert [
        line["event"] for line in run("journal", "dead", "--json", "--reason", "too_large", root).lines
    ] == [event(3)]


def test_what_a_server_said_does_nothing_to_a_terminal(run, root):
    root.mkdir()
    dead.write(
        root,
        "memory",
        [b"{}"],
        reason="x",
        status=400,
        message="\x1b[2J\nbold é",
        key="k",
        max_journal_bytes=1 << 40,
    )
    out = run("journal", "dead", root).out
    assert "\\x1b[2J\\nbold é" in out
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize("as_json", [False, True])
def test_replay_delivers_dead_letters(root, server, as_json):
    write_letters(root, event(1), event(2))
    write_letters(root, event(3), name="0" * 16)
    done = run_process("journal", "replay", *(["--json"] if as_json else []), root)
    assert (done.status, done.err) == (0, "")
    counts = {"replayed": 3, "delivered": 3, "rejected": 0, "left": 0, "kept": 0}
    if as_json:
        assert done.json == counts
    else:
        assert done.out == "replayed: 3, delivered: 3, rejected: 0, left: 0, kept: 0\n"
    assert arrived(server) == [1, 2, 3]
    assert {each.timestamp for each in server.events()} == {"2025-12-01T10:00:00.000Z"}
    assert listed(root / "dead") == []
    assert listed(root) == ["dead"]


def test_replay_keeps_letters_of_other_reasons_and_lines_that_are_none(run, root, server):
    write_letters(root, event(1), event(2), reason="too_large")
    write_letters(root, event(3))
    (path,) = dead.files(root)
    path.write_bytes(path.read_bytes() + b'{"rejected_at":"20')
    done = run("journal", "replay", "--json", "--reason", "invalid", root)
    assert (done.status, done.json) == (
        0,
        {"replayed": 1, "delivered": 1, "rejected": 0, "left": 0, "kept": 2},
    )
    assert arrived(server) == [3]
    assert [letter.event for letter in letters_of(root)] == [event(1), event(2)]
    assert path.read_bytes().endswith(b'}\n{"rejected_at":"20')
    write_letters(root, event(4))
    assert [letter.event for letter in letters_of(root)] == [event(1), event(2), event(4)]


def test_what_is_rejected_again_is_a_dead_letter_again(run, root, server):
    write_letters(root, event(1), event(2), event(3))
    server.faults([{"path": "/track", "status": 400}])
    done = run("journal", "replay", "--json", root)
    assert (done.status, done.json) == (
        1,
        {"replayed": 3, "delivered": 0, "rejected": 3, "left": 0, "kept": 0},
    )
    assert sorted(letter.event["properties"]["n"] for letter in letters_of(root)) == [1, 2, 3]
    assert {letter.message for letter in letters_of(root)} != {"no good"}


def test_what_a_replay_could_not_send_is_in_the_journal(run, root, server):
    write_letters(root, event(1), event(2))
    server.faults([{"path": "/track", "hang": True}])
    done = run_process("journal", "replay", "--json", "--timeout", "0.3", root)
    assert (done.status, done.json) == (
        1,
        {"replayed": 2, "delivered": 0, "rejected": 0, "left": 2, "kept": 0},
    )
    assert letters_of(root) == []
    server.clear_faults()
    assert run("journal", "drain", root).status == 0
    assert arrived(server) == [1, 2]


def test_a_replay_sends_no_other_events(run, root, server):
    leave_behind(root, 4)
    write_letters(root, event(100))
    assert run("journal", "replay", "--json", root).json["delivered"] == 1
    assert arrived(server) == [100]


def test_a_replay_sends_a_number_as_it_was_tracked(run, root, server):
    root.mkdir()
    amount = b"12.340000000000000000000001"
    record = b'{"event":"paid","customer_email":"jane@example.com","timestamp":"2025-12-01T10:00:00Z"'
    record += b',"properties":{"amount":%b}}' % amount
    dead.write(
        root, "memory", [record], reason="x", status=400, message=None, key="k", max_journal_bytes=1 << 40
    )
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
        run_process("journal", "replay", "--timeout", "0.3", "--base-url", url, root)
    (left,) = inspect.events(root)
    assert left.payload == record


KILLED_IN_REPLAY = """\
import os, signal, sys
from windback.journal import dead
dead.Taking.keep = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from windback.cli import main
main(["journal", "replay", sys.argv[1]])
"""


def test_a_replay_that_is_killed_doubles_at_worst(run, root, server):
    write_letters(root, event(1), event(2))
    server.faults([{"path": "/track", "status": 503}])
    done = subprocess.run([sys.executable, "-c", KILLED_IN_REPLAY, str(root)], timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    server.clear_faults()
    assert len(letters_of(root)) == 2
    assert run("journal", "drain", "--json", root).json["delivered"] == 2
    assert run("journal", "replay", "--json", root).json["delivered"] == 2
    assert arrived(server) == [1, 1, 2, 2]


def test_two_replays_take_a_letter_once_and_writers_go_on(run, root, server):
    write_letters(root, event(1))
    (path,) = dead.files(root)
    with dead.Taking(path) as taking:
        done = run("journal", "replay", "--json", root)
        assert (done.status, done.json["replayed"], done.json["kept"]) == (1, 0, 1)
        assert "another replay" in done.err
        write_letters(root, event(2))
        taking.keep([])
    assert [letter.event for letter in letters_of(root)] == [event(2)]


def test_a_letter_written_behind_one_that_was_cut_off_is_whole(root):
    write_letters(root, event(1), event(2))
    (path,) = dead.files(root)
    path.write_bytes(path.read_bytes()[:-20])
    write_letters(root, event(3))
    assert [letter.event for letter in letters_of(root)] == [event(1), event(3)]


def test_a_replay_on_a_full_disk_keeps_the_letters(run, root, monkeypatch):
    write_letters(root, event(1), event(2))
    free = os.statvfs(root)
    monkeypatch.setattr("os.statvfs", lambda _: os.statvfs_result([*free[:3], 0, 0, *free[5:10]]))
    done = run("journal", "replay", "--json", root)
    assert (done.status, done.json["replayed"], done.json["kept"]) == (1, 0, 2)
    assert "no room" in done.err
    assert len(letters_of(root)) == 2


# check


def test_check_finds_nothing_wrong_with_what_a_kill_left(run, root):
    leave_behind(root, 12_000)
    shown = run("journal", "check", root)
    assert shown.status == 0
    assert re.fullmatch(r"\d+ segments, 1 ledger, 12,000 events: no damage\n", shown.out)
    found = run("journal", "check", "--json", root).json
    assert (found["damage"], found["events"], found["lost"]) == ([], 12_000, 0)


def test_check_finds_no_damage_in_what_is_being_written(run, root):
    with writing(root) as writer:
        writer.track(12_000)
        assert run("journal", "check", "--json", root).json["events"] == 12_000
        assert run("journal", "check", root).status == 0


def flip(path: Path, at: int, byte: int = 0x10) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= byte
    path.write_bytes(data)


def test_check_finds_a_flipped_bit(run, root):
    name = leave_behind(root, 50)
    path = segment_with_events(root, name)
    flip(path, 64 + 16 + 5)
    shown = run("journal", "check", root)
    assert shown.status == 1
    assert shown.out.splitlines() == [
        f"damage: {name}/{path.name}: damaged between records; lost: 1 or more",
        "1 segment, 1 ledger, 49 events: damaged: 1, lost: 1 or more",
    ]
    found = run("journal", "check", "--json", root)
    assert (found.status, found.json["lost"]) == (1, 1)
    assert found.json["damage"] == [{"path": str(path), "text": "damaged between records", "lost": 1}]


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda path: flip(path, 3), "not a segment of a windback journal"),
        (lambda path: flip(path, 20), "header of this segment is damaged"),
        (lambda path: os.truncate(path, 3000), "cut short: 3,000 of 1,048,576 bytes"),
        (lambda path: os.truncate(path, 10), "cut short: 10 of 1,048,576 bytes"),
        (lambda path: path.write_bytes(b""), "cut short: 0 of 1,048,576 bytes"),
    ],
    ids=["magic", "header", "short", "no header", "empty"],
)
@pytest.mark.parametrize("kind", ["seg", "ledger"])
def test_check_names_the_damage_and_every_command_still_runs(run, root, harm, text, kind):
    name = leave_behind(root, 50)
    path = segment_with_events(root, name) if kind == "seg" else next((root / name).glob("*.ledger"))
    harm(path)
    found = run("journal", "check", "--json", root)
    assert found.status == 1
    (damage,) = found.json["damage"]
    assert damage["path"] == str(path)
    assert text in damage["text"]
    for command in ("stats", "peek", "dead"):
        assert run("journal", command, root).status == 0


def test_check_sees_that_the_end_of_a_sealed_segment_is_zeros(run, root):
    name = leave_behind(root, 12_000)
    sealed = [
        path for path in (root / name).glob("*.seg") if struct.unpack_from("<I", path.read_bytes(), 60)[0]
    ]
    data = bytearray(sealed[0].read_bytes())
    data[-4096:] = bytes(4096)
    sealed[0].write_bytes(data)
    found = run("journal", "check", "--json", root)
    assert found.status == 1
    assert "sealed at" in found.json["damage"][0]["text"]
    assert found.json["lost"] >= 1


def test_check_names_files_of_other_programs_newer_versions_and_what_was_set_aside(run, root):
    name = leave_behind(root, 5)
    newer = leave_behind(root, 5, "b")
    path = segment_with_events(root, newer)
    head = bytearray(path.read_bytes())
    struct.pack_into("<H", head, 8, fmt.VERSION + 1)
    struct.pack_into("<I", head, 40, zlib.crc32(bytes(head[:40])))
    path.write_bytes(head)
    (root / name / "notes.txt").write_text("mine")
    (root / "other.db").write_text("theirs")
    (root / "bad").mkdir()
    (root / "bad" / f"{name}-00000009.seg").write_bytes(b"x")
    shown = run("journal", "check", root)
    assert shown.status == 0
    assert shown.out.splitlines() == [
        f"newer version: {newer}/{path.name}: a journal of version 2; this windback reads up to 1",
        "not ours: other.db",
        f"not ours: {name}/notes.txt",
        f"set aside: bad/{name}-00000009.seg",
        "1 segment, 1 ledger, 5 events: no damage",
    ]
    stats = run("journal", "stats", root).out
    assert f"{newer}: left alone: a journal of version 2" in stats
    assert "bad segments: 1" in stats
    done = run("journal", "drain", "--json", root)
    assert (done.status, done.json) == (1, {"delivered": 5, "rejected": 0, "left": 0})
    assert path.exists()


def test_check_finds_what_is_not_a_dead_letter(run, root):
    write_letters(root, event(1))
    (path,) = dead.files(root)
    path.write_bytes(path.read_bytes() + b"{}\nrubbish\n")
    found = run("journal", "check", "--json", root)
    assert found.status == 1
    assert found.json["damage"] == [{"path": str(path), "text": "lines that are not dead letters", "lost": 2}]


# relay


@contextlib.contextmanager
def relaying(root: Path, *options: str, **env: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [*COMMAND, "relay", "--journal", str(root), *options],
        stderr=subprocess.PIPE,
        env={**os.environ, **env},
    )
    try:
        process.first = process.stderr.readline().decode()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_relay_delivers_what_three_killed_writers_left_and_ends_on_sigterm(root, server):
    with relaying(root) as relay:
        assert str(root) in relay.first
        for number in range(3):
            with writing(root, str(number)) as writer:
                writer.track(120, first=1000 * number)
            eventually(lambda number=number: server.counts().events == 120 * (number + 1))
        eventually(lambda: listed(root) == [])
        relay.send_signal(signal.SIGTERM)
        started_s = time.monotonic()
        assert relay.wait(20) == 0
        assert time.monotonic() - started_s < 5
        said = relay.stderr.read().decode()
    assert arrived(server) == [1000 * number + n for number in range(3) for n in range(120)]
    (line,) = said.splitlines()
    assert re.search(
        r"360 events read, 360 delivered, 0 rejected, 0 left in the journals; \d+ requests", line
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_relay_ends_within_its_deadline_when_the_server_hangs(root, server, number):
    leave_behind(root, 250)
    server.faults([{"path": "/track", "hang": True}])
    with relaying(root, "--shutdown-timeout", "0.5") as relay:
        eventually(lambda: server.counts().requests > 0)
        started_s = time.monotonic()
        relay.send_signal(number)
        assert relay.wait(20) == 0
        assert time.monotonic() - started_s < 3
        assert "250 left in the journals" in relay.stderr.read().decode()
    server.clear_faults()
    once = run_process("relay", "--once", "--journal", root)
    assert once.status == 0
    assert arrived(server) == list(range(250))


def test_a_relay_shows_nothing_of_customers_and_keys(root, server):
    leave_behind(root, 3)
    server.faults([{"path": "/track", "status": 400, "body": f"no jane@example.com with {KEY}"}])
    done = run_process("relay", "--once", "--journal", root)
    assert done.status == 0
    assert "3 rejected" in done.err
    assert "no *** with" in done.err
    assert "jane" not in done.err
    assert KEY not in done.err
    lines = done.err.splitlines()
    assert [line for line in lines if not re.match(r"\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ ", line)] == []


@pytest.mark.parametrize("fault", [{"status": 503}, {"drop": "before"}])
def test_a_relay_that_is_run_once_reports_by_its_status_that_not_all_went(root, server, fault):
    leave_behind(root, 3)
    server.faults([{"path": "/track", **fault}])
    done = run_process("relay", "--once", "--shutdown-timeout", "0.2", "--journal", root)
    assert done.status == 1
    assert "3 left in the journals" in done.err


def test_a_relay_takes_its_directory_from_the_environment_and_its_options_to_heart(root, server):
    leave_behind(root, 25)
    once = run_process(
        *("relay", "--once", "--batch-size", "10", "--max-in-flight", "1", "--compress"),
        *("--flush-interval", "0.1", "--poll-interval", "0.01"),
        WINDBACK_JOURNAL=str(root),
    )
    assert once.status == 0
    assert [request.headers["content-encoding"] for request in server.requests()] == ["gzip"] * 3


# what is wrong on the command line


@pytest.mark.parametrize("command", ["stats", "peek", "drain", "dead", "replay", "check"])
def test_a_place_without_a_journal_is_one_line_and_status_2(run, tmp_path, command):
    (tmp_path / "file").write_text("x")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("x")
    for place, why in (
        ("none", "does not exist"),
        ("file", "is not a directory"),
        ("else", "does not contain a journal"),
    ):
        done = run("journal", command, tmp_path / place)
        assert (done.status, done.out) == (2, "")
        assert done.err == f"windback journal {command}: '{tmp_path / place}' {why}\n"


@pytest.mark.parametrize("command", [["journal", "drain"], ["journal", "replay"], ["relay", "--journal"]])
def test_a_missing_or_wrong_key_is_one_line_and_status_2(run, root, monkeypatch, command):
    root.mkdir()
    monkeypatch.delenv("WINDBACK_API_KEY")
    done = run(*command, root)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"windback {' '.join(command[:2]).replace(' --journal', '')}: no API key: ")
    assert len(done.err.splitlines()) == 1
    monkeypatch.setenv("WINDBACK_API_KEY", "pub_not_this")
    done = run(*command, root)
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert "not_this" not in done.err


def test_a_relay_without_a_usable_directory_is_one_line_and_status_2(run, tmp_path):
    (tmp_path / "file").write_text("x")
    assert run("relay").err == (
        "windback relay: --journal or --broker is required: give --journal DIR or --broker URL, "
        "or set WINDBACK_JOURNAL or WINDBACK_BROKER\n"
    )
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        done = run("relay", "--journal", place)
        assert done.status == 2
        (line,) = done.err.splitlines()
        assert str(place) in line or str(place.parent) in line


@pytest.mark.parametrize(
    "wrong",
    [
        ["--poll-interval", "0"],
        ["--poll-interval", "nan"],
        ["--max-in-flight", "-1"],
        ["--batch-size", "x"],
        ["--flush-interval", "inf"],
        ["--shutdown", "1"],
    ],
    ids=" ".join,
)
def test_an_option_that_makes_no_sense_is_refused(run, root, wrong):
    done = run("relay", "--journal", root, *wrong)
    assert done.status == 2
    assert wrong[0] in done.err
    assert not root.exists()


def test_a_batch_larger_than_the_api_takes_is_refused(run, root):
    done = run("relay", "--journal", root, "--batch-size", "101")
    assert done.status == 2
    assert done.err == "windback relay: batch_size must be between 1 and 100, not 101\n"


def test_the_commands_leave_logging_and_signals_as_they_were(run, root):
    leave_behind(root, 3)
    log = logging.getLogger("windback")
    before = [*log.handlers], log.level, log.propagate, signal.getsignal(signal.SIGTERM)
    assert run("relay", "--once", "--journal", root).status == 0
    assert run("journal", "drain", root).status == 0
    assert ([*log.handlers], log.level, log.propagate, signal.getsignal(signal.SIGTERM)) == before


# what is written about it


def all_commands(command, name: str = "windback") -> Iterator:
    within = getattr(command, "commands", {})
    yield name, command, within
    for each, child in within.items():
        yield from all_commands(child, f"{name} {each}")


LEAVES = {name: command for name, command, within in all_commands(get_command(app)) if not within}


def test_these_are_all_commands():
    journal = {f"windback journal {name}" for name in ("stats", "peek", "drain", "dead", "replay", "check")}
    broker = {f"windback broker {name}" for name in ("stats", "dead", "replay")}
    others = {
        f"windback {name}"
        for name in (
            "dev",
            "send",
            "import",
            "tail",
            "doctor",
            "init",
            "relay",
            "scrub",
            "status",
            "webhook send",
        )
    }
    assert set(LEAVES) == {*others, *journal, *broker}


def test_each_command_and_option_has_help():
    for name, command, within in all_commands(get_command(app)):
        assert command.help, name
        assert {each.help for each in within.values()}.isdisjoint({None, ""}), name
        assert [each.name for each in command.params if not each.help] == []


@pytest.mark.parametrize("name", sorted(set(LEAVES) - {"windback dev"}))
def test_each_command_and_option_is_in_the_docs(name):
    is_older = name.split()[1] in ("relay", "journal", "broker")
    page = (ROOT / "docs" / ("journal-cli.md" if is_older else "cli.md")).read_text(encoding="utf-8")
    assert name in page
    options = [text for each in LEAVES[name].params for text in each.opts if text[:2] == "--"]
    assert [text for text in options if text != "--help" and f"`{text}" not in page] == []
    assert "journal-cli.md" in (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def test_the_systemd_unit_starts_a_relay_that_ends_before_it_is_killed():
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str
    unit.read(ROOT / "examples" / "windback-relay.service", encoding="utf-8")
    service = unit["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.endswith("/windback")
    command, *options = arguments
    given = LEAVES[f"windback {command}"].make_context(command, options).params
    assert given["journal"] == f"/var/lib/{service['StateDirectory']}"
    assert float(service["TimeoutStopSec"]) > given["shutdown_timeout"] + 1
    assert (service["Type"], service["KillSignal"], service["Restart"]) == ("exec", "SIGTERM", "on-failure")
    assert "EnvironmentFile" in service
    assert not re.search(r"sk_\w", (ROOT / "examples" / "windback-relay.service").read_text(encoding="utf-8"))
