"""`windback dev` as a command: its options mean what those of `python -m windback.devserver` mean."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import COMMAND as WINDBACK
from commands import set_environment

from windback.cli import main
from windback.devserver import main as devserver
from windback.devserver import options as declared
from windback.devserver.options import READY

# Several processes in a row, each of which has to load everything.
pytestmark = pytest.mark.timeout(180)
COMMAND = [*WINDBACK, "dev"]
TRACKS = """\
import json, os, sys, time
from urllib.request import urlopen
from windback import Windback
with Windback() as client:
    client.track_event("login", "jane@example.com")
address = os.environ["WINDBACK_BASE_URL"].partition("/api")[0]
print(json.dumps([json.load(urlopen(address + "/_dev/counts"))["events"], os.environ["WINDBACK_API_KEY"]]))
"""


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    set_environment(monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["--no-email"],
        ["--port", "0", "--host", "localhost", "--db", "x.db", "--rate-limits", "--quiet", "--strict"],
        ["--key", "sk_a", "--key=pub_b", "--expired-key", "sk_c"],
        ["--max-body-bytes", "7", "--gzip", "415", "--generate-seconds", "0", "--keep-bytes", "5MB"],
        ["--webhook-url", "http://127.0.0.1:9/", "--webhook-secret", "-x", "--webhook-delays", "1,2.5"],
    ],
    ids=lambda line: " ".join(line)[:30],
)
def test_options_mean_what_they_mean_to_the_module(monkeypatch, line):
    seen = []
    monkeypatch.setattr(devserver, "run", lambda options: seen.append(options) or 0)
    assert main(["dev", *line]) == 0
    parser = argparse.ArgumentParser()
    declared.add_arguments(parser)
    joined = [part.replace("--webhook-secret", "--webhook-secret=-x") for part in line if part != "-x"]
    assert seen == [declared.from_arguments(parser.parse_args(joined))]


def test_a_program_finds_the_server_and_both_end_with_it():
    done = subprocess.run(
        [
            *COMMAND,
            "--port",
            "0",
            "--quiet",
            "--key",
            "pub_1",
            "--key",
            "sk_1",
            "--",
            sys.executable,
            "-c",
            TRACKS,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    ready, told = done.stdout.splitlines()
    assert (done.returncode, ready[: len(READY)]) == (0, READY)
    assert json.loads(told) == [1, "sk_1"]


@pytest.mark.parametrize(
    ("code", "status"),
    [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)],
    ids=["status", "signal"],
)
def test_its_status_is_that_of_the_program(code, status):
    arguments = ["--port", "0", "--quiet", "--", sys.executable, "-c", code]
    assert subprocess.run([*COMMAND, *arguments], check=False, timeout=100).returncode == status


def test_a_program_that_is_none_and_a_server_that_does_not_start_are_said_so(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=100
        )

    done = run("--port", "0", "--", "no-such-program")
    assert (done.returncode, done.stderr) == (
        127,
        "windback dev: no-such-program: No such file or directory\n",
    )
    done = run("--port", "0", "--db", str(tmp_path / "no" / "db"), "--", "true")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_program_sends_at_its_end_still_arrives(tmp_path, number):
    """Ctrl-C reaches all of a terminal: the program, which flushes, and the command, which waits for it."""
    code = f"""\
import json, os, signal, sys, time
from urllib.request import urlopen
from windback import Windback
client = Windback(flush_interval=3600)
def end(*_):
    client.close()
    address = os.environ["WINDBACK_BASE_URL"].partition("/api")[0]
    events = json.load(urlopen(address + "/_dev/counts"))["events"]
    open({str(tmp_path / "events")!r}, "w").write(str(events))
    sys.exit(3)
signal.signal({number:d}, end)
client.track_event("login", "jane@example.com")
open({str(tmp_path / "started")!r}, "w").close()
time.sleep(60)
"""
    process = subprocess.Popen(
        [*COMMAND, "--port", "0", "--quiet", "--", sys.executable, "-c", code],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 100
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(100) == 3
    assert (tmp_path / "events").read_text() == "1"
