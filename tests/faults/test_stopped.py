"""A sender or a relay that is stopped (SIGSTOP) sends nothing: `problem` says so, and how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest
from inside import running_sender
from servers import environment
from tracking import JANE

from windback import Windback

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux says whether a process is stopped"
)


@contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def check(client, pid, what, eventually):
    """Stop the process that sends, and compare what flush and stats say before and after it goes on."""
    with stopped(pid):
        assert client.track_event("login", JANE, {"n": 1})
        wanted = f"{what} (process {pid}) is stopped and sends nothing; continue it: `kill -CONT {pid}`"
        eventually(lambda: client.stats().problem == wanted)  # a signal takes a moment
        result = client.flush()  # without a timeout it ends, because there is no hope
        assert (bool(result), result.pending, result.problem) == (False, 1, wanted)
    result = client.flush(30)
    assert (bool(result), result.problem) == (True, None)
    assert client.stats().problem is None


def test_a_stopped_sender(server, mark, eventually):
    with Windback(f"sk_test_{mark}", base_url=server.url, worker="process", flush_interval=0.01) as client:
        assert client.track_event("login", JANE, {"n": 0})
        assert client.flush(30)
        check(client, running_sender(client).process.pid, "the sender", eventually)
    assert len(server.events()) == 2


def test_a_stopped_relay(server, tmp_path, eventually):
    root = tmp_path / "journal"
    client = Windback("sk_test_1", base_url=server.url, worker=None, journal=root)
    assert client.track_event("login", JANE, {"n": 0})
    command = [sys.executable, "-m", "windback", "relay", "--journal", str(root)]
    relay = subprocess.Popen(command, env=environment(server.url), stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: not client.stats().pending)
        check(client, relay.pid, "the relay", eventually)
        client.close(10)
    finally:
        relay.terminate()
        relay.wait(30)
    assert len(server.events()) == 2


def test_without_a_relay_it_reports_for_how_long(dead_url, tmp_path, eventually):
    client = Windback("sk_test_1", base_url=dead_url, worker=None, journal=tmp_path / "journal")
    assert client.track_event("login", JANE)
    assert "(for 0 s)" in client.stats().problem
    eventually(lambda: "(for 2 s)" in client.stats().problem)
    assert "(for " in client.flush(0.1).problem
    client.close(0)
