"""Journals for the tests of commands: a process tracks events, never sends, and is killed with SIGKILL."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import commands
from commands import COMMAND

from windback.cli import main
from windback.journal import dead

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


class Ended(commands.Ended):
    """What is written as JSON lines, too."""

    @property
    def lines(self) -> List[Dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


def commands_of(capsys) -> Callable[..., Ended]:
    """Return what runs a command in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Ended(status, *capsys.readouterr())

    return run


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
