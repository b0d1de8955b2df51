"""`client.report()` and `windback status`: what a process has queued, and what a kill would lose, is true."""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from calls import eventually
from commands import COMMAND
from inside import encoder_of, engine_of
from servers import AppServer, environment
from tracking import JANE, numbers

import windback
from windback import AsyncWindback, ConfigurationError, Windback
from windback.journal import inspect
from windback.journal.directory import is_held

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="unix sockets")

#: Tracks 20 events, writes its report, and waits for its end.
APPLICATION = """\
import json, sys, time
from windback import Windback

options = json.loads(sys.argv[1])
client = Windback("sk_test_1", "shop", **options)
for n in range(20):
    assert client.track_event("login", "jane@example.com", {"n": n})
time.sleep(float(sys.argv[2]))
print(json.dumps(client.report().to_wire()), flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder():
    """A directory with a short path: that of a socket has at most 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="wb", dir="/tmp"))
    yield path / "status"
    shutil.rmtree(path)


@pytest.fixture
def start(tmp_path):
    """Start an application; kills it at the end."""
    with contextlib.ExitStack() as stack:

        def start(url, pause_s=0.0, code=APPLICATION, **options):
            process = subprocess.Popen(
                [sys.executable, "-c", code, json.dumps({"base_url": url, **options}), str(pause_s)],
                env=environment(url, TEST_MARK=os.environ.get("TEST_MARK", "")),
                stdout=subprocess.PIPE,
                cwd=tmp_path,
            )
            stack.callback(process.stdout.close)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


def status(folder, *arguments):
    done = subprocess.run(
        [*COMMAND, "status", str(folder), *arguments],
        check=False,
        env=environment("http://127.0.0.1:9"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done


def listed(folder):
    return json.loads(status(folder, "--json").stdout)


# -- the report -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Windback, AsyncWindback])
def test_a_report_has_what_is_queued_and_for_how_long(kind, dead_url):
    client = kind("sk_test_1", "shop", base_url=dead_url, shutdown_timeout=0, worker="thread")
    assert client.report().oldest_s is None
    assert "nothing would be lost" in str(client.report())
    put = engine_of(client).put
    record = encoder_of(client)("login", JANE, None, "2020-02-29T12:00:00Z", 10_000)
    put(record)
    put(encoder_of(client)("login", JANE, None, None, 10_000))
    eventually(lambda: client.report().stats.problem is not None)
    report = client.report()
    assert (report.stats.pending, report.lost_if_killed) == (2, 2)
    assert report.oldest_s > 86_400
    lines = str(report).splitlines()
    assert lines[0] == f'project shop, to {dead_url} by worker="thread"'
    assert lines[1].startswith("queue:     2 events in memory, ")
    assert lines[1].endswith(" days old")
    assert "refused" in lines[4]
    assert lines[5].startswith("if killed: 2 events would be lost")
    with pytest.raises(AttributeError):
        report.project = "other"
    engine_of(client).close(0)


def test_the_oldest_event_is_found_wherever_it_is(held, tmp_path):
    """In a request, given back, or waiting; in memory or in a journal."""
    for options in ({}, {"journal": tmp_path / "journal"}):
        client = Windback("sk_test_1", base_url=held.url, max_in_flight=1, shutdown_timeout=0, **options)
        seen = held.seen
        client.track_event("login", JANE, timestamp="2001-01-01T00:00:00Z")
        held.wait_until_seen(seen + 1)
        client.track_event("login", JANE)
        assert client.report().oldest_s > 20 * 365 * 86_400
        held.answer(1)
        eventually(lambda client=client: client.report().stats.delivered == 1)
        assert client.report().oldest_s < 3600
        client.close(0)


def test_a_timestamp_that_only_before_send_made_does_not_stop_a_report(dead_url):
    client = Windback(
        "sk_test_1",
        base_url=dead_url,
        before_send=lambda event: {**event, "timestamp": "2001-01-01T00:00:00.5+0100"},
    )
    client.track_event("login", JANE)
    assert client.report().oldest_s > 1e8
    client.close(0)


def is_running(process: Path) -> bool:
    """Whether a process of /proc has not ended; one that nobody waited for has."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


KINDS = {
    "memory": {},
    "oldest dropped": {"overflow": "drop_oldest", "max_queue_size": 15},
    "journal": {"journal": "journal"},
    "process": {"journal": "journal", "worker": "process"},
    "relay": {"journal": "journal", "worker": None},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pause_s", [0.0, 1.5], ids=["queued", "tried"])
def test_a_kill_loses_what_the_report_shows(server, dead_url, start, tmp_path, kind, pause_s):
    process = start(dead_url, pause_s, **KINDS[kind])
    report = windback.Report.from_wire(json.loads(process.stdout.readline()))
    process.kill()
    process.wait()
    assert report.stats.pending == (15 if kind == "oldest dropped" else 20)
    assert report.lost_if_killed == (report.stats.pending if report.journal is None else 0)
    assert report.oldest_s is not None
    root = tmp_path / "journal"
    left = [] if not root.exists() else list(inspect.events(root))
    assert len(left) == report.stats.pending - report.lost_if_killed
    assert ("would be lost" in str(report)) is True
    assert ("nothing" in report.what_is_lost()) is (report.lost_if_killed == 0)
    # And what is left arrives, from the next process.
    for sender in Path("/proc").glob("[0-9]*"):  # that of worker="process" has another URL
        with contextlib.suppress(OSError):
            if (
                str(tmp_path).encode()
                in (sender / "cmdline").read_bytes() + os.readlink(sender / "cwd").encode()
            ):
                os.kill(int(sender.name), signal.SIGKILL)
                eventually(lambda each=sender: not is_running(each))  # until then it has the lock
    if left:
        # A thread of the sender may have the lock for a moment after its main thread has ended.
        eventually(lambda: not any(map(is_held, root.glob("*/drain.lock"))))
        with Windback("sk_test_1", base_url=server.url, journal=root) as client:
            assert client.flush(30)
        assert numbers(server) == list(range(20))


def test_a_kill_loses_nothing_that_a_broker_has(redis_server, start):
    code = APPLICATION.replace("time.sleep(float(sys.argv[2]))", "assert client.flush(60)")
    process = start("http://127.0.0.1:9", code=code, broker=redis_server.url)
    report = windback.Report.from_wire(json.loads(process.stdout.readline()))
    process.kill()
    process.wait()
    kept = [
        line
        for key in redis_server.client.scan_iter(_type="stream")
        for _, fields in redis_server.client.xrange(key)
        for line in fields["events"].splitlines()
    ]
    assert (report.stats.delivered, report.lost_if_killed, report.stats.pending) == (20, 0, 0)
    assert report.destination.startswith("redis://")
    assert "sk_test" not in str(report)
    assert len(kept) == 20


def test_events_that_wait_in_memory_for_a_disk_count_as_lost(dead_url, start):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n" + APPLICATION
    process = start(dead_url, 0.5, code=code, journal="journal")
    report = windback.Report.from_wire(json.loads(process.stdout.readline()))
    assert (report.stats.pending, report.lost_if_killed) == (20, 20)
    assert "the disk had no room" in str(report)


# -- windback status --------------------------------------------------------------------------------


def test_several_processes_are_listed_and_exited_ones_are_forgotten(dead_url, start, folder):
    processes = [start(dead_url, status=str(folder)) for _ in range(3)]
    for process in processes:
        process.stdout.readline()
    assert sorted(each["pid"] for each in listed(folder)) == sorted(each.pid for each in processes)
    shown = status(folder).stdout
    assert shown.count("if killed: 20 events would be lost") == 3
    assert "3 clients, 60 events queued, 60 lost if killed" in shown
    processes[0].kill()
    processes[0].wait()
    assert sorted(each["pid"] for each in listed(folder)) == sorted(each.pid for each in processes[1:])
    assert len(list(folder.iterdir())) == 2


def test_only_the_user_can_open_the_socket(dead_url, start, folder):
    start(dead_url, status=str(folder)).stdout.readline()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (socket_,) = folder.iterdir()
    assert stat.S_IMODE(socket_.stat().st_mode) == 0o600


def test_a_directory_that_others_may_write_to_is_not_used(dead_url, folder, caplog):
    folder.mkdir()
    folder.chmod(0o777)
    client = Windback("sk_test_1", base_url=dead_url, status=folder)
    assert "other users may write to it" in caplog.text
    assert list(folder.iterdir()) == []
    client.close(0)


def test_a_stopped_process_does_not_stop_the_command(dead_url, start, folder):
    stopped, running = (start(dead_url, status=str(folder)) for _ in range(2))
    for process in (stopped, running):
        process.stdout.readline()
    stopped.send_signal(signal.SIGSTOP)
    found = {each["pid"]: each for each in listed(folder)}
    assert "may be stopped" in found[stopped.pid]["error"]
    assert found[running.pid]["stats"]["pending"] == 20
    stopped.send_signal(signal.SIGCONT)
    eventually(lambda: all("stats" in each for each in listed(folder)))


def test_no_process_and_no_directory_are_distinguished(folder):
    done = status(folder)
    assert done.returncode == 1
    assert "does not exist" in done.stderr
    folder.mkdir()
    done = status(folder)
    assert (done.returncode, done.stdout) == (1, "no process answers\n")
    assert status(folder / "..", "--interval", "0").returncode == 2


def test_watch_shows_it_moving(server, folder, start):
    code = APPLICATION.replace(
        "time.sleep(600)", "n = 0\nwhile True:\n    client.track_event('a', 'b@c'); time.sleep(0.01)"
    )
    start(server.url, code=code, status=str(folder)).stdout.readline()
    watching = subprocess.Popen(
        [*COMMAND, "status", str(folder), "--watch", "--json", "--interval", "0.3"],
        env=environment(server.url),
        stdout=subprocess.PIPE,
    )
    seen = []
    for line in watching.stdout:
        ((one,),) = [json.loads(line)]
        seen.append(one["stats"]["accepted"])
        if len(seen) == 5:
            break
    watching.send_signal(signal.SIGINT)
    assert watching.wait(30) == 130
    watching.stdout.close()
    assert seen == sorted(set(seen)), "each look shows more than the one before"


def test_a_closed_client_leaves_no_socket_and_no_thread(server, folder):
    before = _thread._count()
    clients = [Windback("sk_test_1", base_url=server.url, status=folder) for _ in range(3)]
    assert len(listed(folder)) == 3
    assert _thread._count() == before + 3
    for client in clients:
        client.close()
    assert list(folder.iterdir()) == []
    eventually(lambda: _thread._count() == before)


def test_the_end_of_a_process_removes_its_socket(server, folder, start):
    code = APPLICATION.replace("time.sleep(600)", "")
    process = start(server.url, code=code, status=str(folder))
    assert process.wait(60) == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("worker", ["thread", "process", None])
def test_a_forked_child_answers_for_itself(dead_url, folder, start, worker):
    code = APPLICATION.replace(
        "time.sleep(600)",
        "import os\nif os.fork() == 0:\n    client.track_event('of', 'the@child')\n"
        "    print(flush=True)\ntime.sleep(600)",
    )
    options = {"journal": "journal"} if worker != "thread" else {}
    process = start(dead_url, code=code, status=str(folder), worker=worker, **options)
    process.stdout.readline()
    process.stdout.readline()
    found = {each["pid"]: each["stats"]["pending"] for each in listed(folder)}
    assert found.pop(process.pid) == 20
    ((child, pending),) = found.items()
    assert pending == 1
    process.kill()
    process.wait()
    assert [each["pid"] for each in listed(folder)] == [child], "the child does not have its parent's socket"
    os.kill(child, signal.SIGKILL)
    eventually(lambda: listed(folder) == [])


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_each_worker_of_gunicorn_is_listed(server, tmp_path, folder, kind):
    application = """\
        from windback import get_client
        client = get_client()

        def application(environ, start_response):
            client.track_event("login", "jane@example.com")
            start_response("200 OK", [("Content-Length", "0")])
            return [b""]
    """
    app = AppServer(
        tmp_path,
        {"app.py": application},
        [
            *(sys.executable, "-m", "gunicorn", "--preload", "--workers=2", f"--worker-class={kind}"),
            "--bind=127.0.0.1:{port}",
            "app:application",
        ],
        server.url,
        WINDBACK_STATUS=str(folder),
    )
    try:
        eventually(lambda: len(listed(folder)) == 3)  # the master, too
        assert app.get("/") == 200  # once more than to see that it is up
        eventually(lambda: sum(each["stats"]["delivered"] for each in listed(folder)) == 2)
        app.end()
    finally:
        app.close()
    assert list(folder.iterdir()) == []


def test_a_path_that_no_socket_can_have_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="at most 80 bytes"):
        Windback("sk_test_1", status=tmp_path / ("x" * 100))
    with pytest.raises(ConfigurationError, match="must be the path"):
        Windback("sk_test_1", status=3)


def test_without_the_option_there_is_no_thread_and_no_socket_module(start, dead_url):
    code = APPLICATION.replace("print(", "print('windback.process.status' in sys.modules or ")
    assert start(dead_url, code=code).stdout.readline().startswith(b"{")


def test_one_that_asks_and_reads_nothing_keeps_no_other_waiting(dead_url, start, folder):
    import socket

    start(dead_url, status=str(folder)).stdout.readline()
    (path,) = folder.iterdir()
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            idle = stack.enter_context(socket.socket(socket.AF_UNIX))
            idle.connect(str(path))
        started = time.monotonic()
        assert len(listed(folder)) == 1
        assert time.monotonic() - started < 60
