"""`windback tail`: real processes beside a real server, which comes and goes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from typing import Iterator

import pytest
from commands import COMMAND, set_environment

from windback import Windback
from windback.cli import main
from windback.devserver import DevServer

JANE = "jane@example.com"
# Several processes in a row, each of which has to load everything.
pytestmark = pytest.mark.timeout(180)
KEY, OTHER_KEY = "sk_test_one", "sk_test_two"


@pytest.fixture(scope="module")
def running():
    with DevServer(strict=False) as server:
        yield server


@pytest.fixture
def server(server, monkeypatch):
    set_environment(monkeypatch, BASE_URL=server.url)
    return server


def send(server, *names, key=KEY, **properties):
    with Windback(key, base_url=server.url) as client:
        events = [{"event": name, "customer_email": JANE, "properties": properties} for name in names]
        client.track_events(events)


class Tail:
    """A tail that runs, and what it writes."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "tail", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        self._texts = {self.process.stdout: b"", self.process.stderr: b""}

    def _read_until(self, stream, text: bytes) -> bytes:
        deadline = time.monotonic() + 40
        while text not in self._texts[stream]:
            ready = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, (text, self._texts)
            piece = os.read(stream.fileno(), 65_536)
            assert piece, (text, self._texts)
            self._texts[stream] += piece
        return self._texts[stream]

    def read_until(self, text: str) -> str:
        return self._read_until(self.process.stdout, text.encode()).decode()

    def hear(self, text: str) -> str:
        return self._read_until(self.process.stderr, text.encode()).decode()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def tailing(*arguments: str) -> Iterator[Tail]:
    tail = Tail(*arguments)
    try:
        yield tail
    finally:
        tail.close()


def test_events_are_shown_as_they_come_each_on_a_line(server):
    send(server, "before")
    with tailing("-n", "1") as tail:
        tail.read_until("before")  # so it listens
        send(server, "login", plan="pro", n=3)
        send(server, "logout")
        lines = tail.read_until("logout").splitlines()
    assert [line.split("  ")[1:] for line in lines] == [
        ["before", JANE],
        ["login", JANE, "plan=pro", "n=3"],
        ["logout", JANE],
    ]
    assert all(line[2] == line[5] == ":" for line in lines)


def test_a_search_and_a_key_choose_what_is_shown_and_a_count_ends_it(server):
    send(server, "before", key=OTHER_KEY)
    arguments = ["-n", "1", "--key", OTHER_KEY, "-q", "-event:noise", "--count", "3", "--json"]
    with tailing(*arguments) as tail:
        tail.read_until("before")
        send(server, "not_mine")
        send(server, "noise", "login", "noise", "logout", key=OTHER_KEY)
        out = tail.read_until("logout")
        assert tail.process.wait(20) == 0
    events = [json.loads(line) for line in out.splitlines()]
    assert [each["event"] for each in events] == ["before", "login", "logout"]
    assert {each["customer_email"] for each in events} == {JANE}


def test_a_server_that_comes_back_is_followed_and_nothing_in_between_is_left_out(server, tmp_path):
    with DevServer(db=tmp_path / "db") as other, tailing("--base-url", other.url, "-n", "1") as tail:
        send(other, "first")
        tail.read_until("first")
        other.kill()
        tail.hear("the server is gone; waiting for it")
        other.start()
        send(other, "second")
        tail.hear("the server is back")
        send(other, "third")
        out = tail.read_until("third")
    assert [line.split("  ")[1] for line in out.splitlines()] == ["first", "second", "third"]


def test_what_the_real_api_ignores_is_said_so(server):
    send(server, "login")
    with tailing("-n", "1") as tail:
        tail.read_until("login")
        with Windback(KEY, base_url=server.url) as client:
            client.track_events([{"event": "login", "customer_email": "jane@"}])
        out = tail.read_until("got")
    assert "ignored by the real API: events[0].customer_email: expected an address" in out


def test_what_was_sent_does_nothing_to_a_terminal(server):
    send(server, "\x1b[2J", **{"\x1b]0;x\x07": "[bold]é\n\x1b[31m"})
    with tailing("-n", "1", "--count", "1") as tail:
        out = tail.read_until("\n")
    assert "\x1b" not in out
    assert "\\x1b[2J" in out
    assert "[bold]" in out


def test_ctrl_c_ends_it(server):
    send(server, "login")
    with tailing("-n", "1") as tail:
        tail.read_until("login")
        tail.process.send_signal(signal.SIGINT)
        _, err = tail.process.communicate(timeout=20)
        assert (tail.process.returncode, err) == (130, b"")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-q", "event:"], "column 7: "),
        (["--base-url", "https://example.com/api/v1"], "is not a local server; its URL starts with http://"),
        (["--base-url", "http://127.0.0.1:1"], "no local server at http://127.0.0.1:1 ("),
        (["-n", "-1"], "-n"),
    ],
)
def test_what_can_not_be_shown_is_one_line_and_status_2(server, capsys, arguments, says):
    assert main(["tail", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


def test_the_real_api_is_not_what_is_tailed(server, capsys, monkeypatch):
    monkeypatch.setenv("WINDBACK_BASE_URL", "http://api.example.com/api/v1")
    assert main(["tail"]) == 2
    assert "choose the local server with --base-url" in capsys.readouterr().err
