"""`windback journal drain`, `replay` and `windback relay`: real processes, real journals, a real server."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Callable, List

import pytest
from calls import eventually
from cli_journals import (
    KEY,
    Ended,
    commands_of,
    event,
    leave_behind,
    listed,
    relaying,
    write_letters,
    writing,
)
from commands import COMMAND, set_environment

from windback.devserver import DevServer
from windback.journal import dead, inspect


@pytest.fixture
def server(server, monkeypatch) -> DevServer:
    set_environment(monkeypatch, API_KEY=KEY, BASE_URL=server.url)
    return server


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def run(capsys, server) -> Callable[..., Ended]:
    """Run a command in this process."""
    return commands_of(capsys)


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


def arrived(server: DevServer) -> List[int]:
    return sorted(event.properties["n"] for event in server.events())


def letters_of(root: Path) -> List[dead.Letter]:
    return [letter for path in dead.files(root) for letter, _ in dead.read(path)]


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
    run_process("journal", "stats", "--json", root)
    start_s = time.monotonic() - started_s
    started_s = time.monotonic()
    done = run_process("journal", "drain", "--json", "--timeout", "0.5", root)
    assert time.monotonic() - started_s < 10 * (0.5 + start_s)  # a program starts, and stops in time
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


# relay


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
