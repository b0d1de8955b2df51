"""The command line at a terminal, in a pipe, in bash, and without the extra that it is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Iterator, Sequence

import pytest
from commands import COMMAND, SOURCE, set_environment

# Several processes in a row, each of which has to load everything.
pytestmark = pytest.mark.timeout(180)
ESCAPE = b"\x1b"
# Ctrl-C reaches those whose terminal it is.
TAKE_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def server(server, monkeypatch):
    monkeypatch.setenv("WINDBACK_API_KEY", "sk_test_1")
    monkeypatch.setenv("WINDBACK_BASE_URL", server.url)
    return server


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    set_environment(monkeypatch)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


class Terminal:
    """A program at a pseudo-terminal, and all that it wrote there."""

    def __init__(self, command: Sequence[str]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = b""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def read_until(self, pattern: bytes, within_s: float = 80.0) -> None:
        """Read until this is shown; it counts from where the last one ended."""
        start, deadline = len(self.shown), time.monotonic() + within_s
        while not re.search(pattern, self.shown[start:]):
            assert select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0], self.shown
            try:
                self.shown += os.read(self._ours, 4096)
            except OSError:
                raise AssertionError(self.shown) from None

    def end(self, within_s: float = 80.0) -> int:
        """Read until the program ends; its status."""
        with contextlib.suppress(OSError):  # the other side is closed, and all is read
            while select.select([self._ours], [], [], within_s)[0]:
                self.shown += os.read(self._ours, 4096)
        return self.process.wait(within_s)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def make_terminal() -> Iterator:
    made = []

    def make(*command: str) -> Terminal:
        made.append(Terminal(command))
        return made[-1]

    yield make
    for terminal in made:
        terminal.close()


def piped(*arguments: str, **others: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **others},
        capture_output=True,
        check=False,
        timeout=80,
    )


def test_help_has_frames_and_colours_at_a_terminal_and_is_plain_text_elsewhere(make_terminal):
    terminal = make_terminal(*COMMAND, "import", "--help")
    assert terminal.end() == 0
    assert ESCAPE in terminal.shown
    assert "╭".encode() in terminal.shown
    done = piped("import", "--help", FORCE_COLOR="1", PYTHONIOENCODING="utf-8")
    assert done.returncode == 0
    assert ESCAPE not in done.stdout
    assert "╭".encode() not in done.stdout
    assert b"--dry-run" in re.sub(rb"\x1b\[[\d;]*m", b"", terminal.shown)
    assert b"--dry-run" in done.stdout


@pytest.mark.parametrize(
    "arguments", [["doctor"], ["doctor", "--nope"], ["nope"], ["journal", "stats", "/nowhere"]]
)
def test_nothing_but_a_terminal_gets_codes(server, arguments):
    done = piped(*arguments, FORCE_COLOR="1", CLICOLOR_FORCE="1", GITHUB_ACTIONS="true")
    assert done.stdout + done.stderr
    assert ESCAPE not in done.stdout + done.stderr


def test_a_terminal_sees_colours_unless_it_wants_none(make_terminal, server, monkeypatch):
    terminal = make_terminal(*COMMAND, "doctor")
    assert terminal.end() == 0
    assert b"\x1b[32mok" in terminal.shown
    monkeypatch.setenv("NO_COLOR", "1")
    plain = make_terminal(*COMMAND, "doctor")
    assert plain.end() == 0
    assert b"\x1b[32m" not in plain.shown


def test_an_import_shows_how_far_it_is_and_how_long_it_takes(make_terminal, server, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("event,customer_email\n" + "login,jane@example.com\n" * 2_000)
    terminal = make_terminal(*COMMAND, "import", str(path), "--rate", "1500")
    terminal.read_until(rb"imported:")
    terminal.read_until(rb"\d+%")
    terminal.read_until(rb"[\d,]+ rows, [\d,]+ a second")
    terminal.read_until(rb"0:00:0\d")
    assert terminal.end() == 0
    assert b"sent: 2000, bad: 0, rejected: 0" in terminal.shown
    assert server.counts().events == 2_000


def test_ctrl_c_stops_an_import_and_it_reports_how_to_go_on(make_terminal, server, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("event,customer_email\n" + "login,jane@example.com\n" * 2_000)
    terminal = make_terminal(*COMMAND, "import", str(path), "--rate", "200")
    terminal.read_until(rb"[\d,]+ rows, ")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert b"run the same command to continue from there" in terminal.shown
    assert b"Traceback" not in terminal.shown


# completion, in a real bash


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home of its own, with the command on the PATH."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "windback"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom windback.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PS1", "ready> ")
    (tmp_path / ".bashrc").write_text("PS1='ready> '\nbind 'set enable-bracketed-paste off'\n")
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.usefixtures("home")
def test_bash_completes_commands_options_and_choices_once_set_up(make_terminal):
    first = make_terminal("bash", "-i")
    first.read_until(b"ready> ")
    first.type("windback --install-completion\n")
    first.read_until(b"completion installed in")
    first.type("exit\n")
    first.end()
    bash = make_terminal("bash", "-i")
    bash.read_until(b"ready> ")
    for typed, shown in (
        ("windback jou\t", b"rnal "),
        ("windback journal dr\t", b"ain "),
        ("windback import --dry\t", b"-run "),
        ("windback dev --gz\t", b"ip "),
        ("windback dev --gzip acc\t", b"ept "),
    ):
        bash.type(typed)
        bash.read_until(shown)
        bash.type("\x15")  # the line away again


# without the extra


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_without_the_extra_it_reports_in_one_line_what_to_install(tmp_path, name):
    # A module that cannot be found, as when it is not installed.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {name!r}:\n"
        "            raise ModuleNotFoundError('No module named ' + name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    done = piped("dev", PYTHONPATH=os.pathsep.join([str(tmp_path), str(SOURCE)]))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (f"windback: {name} is not installed; run: pip install 'windback[cli]'\n")


def test_it_is_a_module_too():
    command = [sys.executable, "-m", "windback", "relay", "--journal", "x", "--broker", "redis://localhost"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = "windback relay: --journal and --broker can't be combined; give one of them\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_the_local_server_as_a_module_does_without_it():
    code = "import sys, windback.devserver.server; print({'typer', 'rich'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_the_version_and_the_list_of_commands_are_shown():
    def shown(*arguments):
        return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=True).stdout

    assert re.fullmatch(r"windback \d+\.\d+.*\n", shown("--version"))
    assert all(name in shown() for name in ("dev", "send", "import", "tail", "doctor", "relay", "journal"))
