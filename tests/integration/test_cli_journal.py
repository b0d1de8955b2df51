"""`windback journal stats`, `peek`, `check` and their errors: real processes, real journals, a real server.

A journal is made by a process that tracks events, never sends, and is killed with SIGKILL.
"""

from __future__ import annotations

import configparser
import logging
import os
import re
import shlex
import signal
import struct
import subprocess
import time
import zlib
from pathlib import Path
from typing import Callable, Dict, Iterator

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
from typer.main import get_command

from windback.cli.app import app
from windback.devserver import DevServer
from windback.journal import dead, inspect
from windback.journal import format as fmt
from windback.journal.directory import JournalDirectory

ROOT = Path(__file__).resolve().parents[2]


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


def segment_with_events(root: Path, name: str) -> Path:
    (record, *_) = [record for record in inspect.events(root) if record.directory == name]
    return root / name / f"{record.segment_id:08d}.seg"


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
