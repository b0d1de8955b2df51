"""worker="process": what was accepted is delivered by a process of its own, whichever of the two dies."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from commands import SOURCE
from inside import queue_of, running_sender
from tracking import JANE, TOOLS, adds_up, numbers, track

from windback import AsyncWindback, ConfigurationError, QueueFullError, Windback
from windback.config import _shared_memory
from windback.sender import supervisor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")

OPTIONS = {"api_key": "sk_test_1", "worker": "process"}
#: This server takes it for no email address, the client does.
POISON = "jane@"
TOOLS += """\
    def sender_of(client):
        deadline = time.monotonic() + 20
        while client._engine._link._running is None or client._engine._link._running.process is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return client._engine._link._running.process.pid

"""


def children(pid):
    """Return the processes that *pid* started and that run."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [int(each) for each in found]


def sender_of(client):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        running = running_sender(client)
        if running is not None:
            return running.process.pid
        time.sleep(0.005)
    raise AssertionError


def is_gone(pid):
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return True


@pytest.fixture
def run(run, mark):
    """Run it with a key that no other test has.

    What a test leaves in shared memory is delivered by who has the same key and, by chance, the same port.
    """
    places = set()

    def run_alone(code, *options, url, **others):
        key = f"sk_test_{mark}"
        places.add(_shared_memory({"api_key": key, "base_url": url, "broker": False}))
        return run(code, *options, url=url, WINDBACK_API_KEY=key, **others)

    yield run_alone
    for place in places:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def make(server, tmp_path):
    made = []

    def make(**options):
        options = {**OPTIONS, "base_url": server.url, "journal": tmp_path / "journal", **options}
        made.append(Windback(**options))
        return made[-1]

    yield make
    for client in made:
        running = running_sender(client)
        client.close(0)
        if running is not None and running.process is not None:
            with suppress(ProcessLookupError):  # it would try for minutes to deliver what a test left
                os.kill(running.process.pid, signal.SIGKILL)


def left_in(root):
    return [path.name for path in Path(root).iterdir() if path.name not in ("bad", "dead")]


def test_it_delivers_and_the_application_loads_no_http_client(server, run):
    code = """\
    client = Windback(worker="process", batch_size=10, flush_interval=0.01)
    track(client, range(995))
    assert client.flush(20)  # some may have been delivered before it
    assert "httpx" not in sys.modules and "tenacity" not in sys.modules
    stats = client.stats()
    assert (stats.accepted, stats.delivered, stats.pending, stats.worker_deaths) == (995, 995, 0, 0), stats
    client.close()
    """
    ended = run(TOOLS + code, "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(995))


def test_it_loads_nothing_that_is_for_the_command_line(make, tmp_path, monkeypatch):
    pytest.importorskip("rich")
    hook = (
        "import sys\n"
        "def note(name, given):\n"
        "    if name == 'import':\n"
        f"        with open({str(tmp_path / 'loaded')!r}, 'a') as file:\n"
        "            file.write(given[0] + '\\n')\n"
        "sys.addaudithook(note)\n"
    )
    monkeypatch.setattr(supervisor, "_BOOT", hook + supervisor._BOOT)
    client = make()
    track(client, range(3))
    assert client.flush(20)
    loaded = {*(tmp_path / "loaded").read_text(encoding="utf-8").split()}
    assert {"windback.sender.main", "h11"} <= loaded
    assert loaded.isdisjoint({"httpx", "rich", "typer", "click", "windback.cli"})


FOREIGN = (
    *(
        "json",
        "os",
        "select",
        "signal",
        "sitecustomize",
        "orjson",
        "httpx",
        "usercustomize",
        "windback",
        "brotli",
    ),
    *("redis", "exceptiongroup", "rich", "click", "h2", "socksio", "zstandard", "sniffio"),
)


@pytest.mark.parametrize("flags", [(), ("-I",), ("-E", "-s"), ("-O", "-B")], ids=" ".join)
@pytest.mark.parametrize("place", ["working directory", "PYTHONPATH", "folder of the script"])
def test_no_file_of_the_callers_directories_runs_in_the_sender(server, tmp_path, monkeypatch, place, flags):
    """The sender gets the key, so whoever can put a file there could read it."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    ran = tmp_path / "ran"
    for name in FOREIGN:
        text = f"import sys\nif 'app.py' not in sys.argv[0]: open({str(ran)!r}, 'a').write({name!r})\n"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    script = (folder if place == "folder of the script" else tmp_path) / "app.py"
    script.write_text(
        f"""
import sys
sys.path[:] = [each for each in sys.path if each not in ("", {str(folder)!r})]
sys.path.append({str(SOURCE)!r})
if {place == "folder of the script"}:  # behind all else, or it would be the application that loads them
    sys.path.append({str(folder)!r})
from windback import Windback
client = Windback("sk_test_1", base_url={server.url!r}, worker="process")
client.track_event("login", "jane@example.com", {{"n": 1}})
assert client.flush(30), client.stats()
assert client.stats().worker_deaths == 0
assert client._engine._link._running.process is not None
client.close(20)
""",
        encoding="utf-8",
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if place == "PYTHONPATH":
        environment["PYTHONPATH"] = str(folder)
        # The application itself has to start beside these files.
        for name in FOREIGN[:9]:
            (folder / f"{name}.py").unlink()
    done = subprocess.run(
        [sys.executable, *flags, str(script)],
        cwd=folder if place == "working directory" else tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert numbers(server) == [1]
    assert not ran.exists(), ran.read_text(encoding="utf-8")


def test_the_counts_add_up_while_it_sends(make):
    client = make(batch_size=7)
    for start in range(0, 3000, 300):
        track(client, range(start, start + 300))
        stats = client.stats()
        assert adds_up(stats)
        assert stats.accepted == start + 300
    assert client.flush(20)
    assert client.stats().delivered == 3000


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_what_a_killed_application_accepted_arrives_and_nothing_is_started(
    server, run, eventually, tmp_path, where
):
    root = repr(str(tmp_path / "journal")) if where == "disk" else None
    code = f"""\
    client = Windback(worker="process", journal={root}, flush_interval=3600)
    track(client, range(100))
    sender_of(client)
    track(client, range(100, 2500))
    print(client._config.journal, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (-signal.SIGKILL, "")
    eventually(lambda: numbers(server) == list(range(2500)))
    eventually(lambda: left_in(ended.out[0]) == [])


def test_an_application_killed_before_its_sender_runs_leaves_its_events_to_the_next(
    server, run, eventually, tmp_path
):
    root = str(tmp_path / "journal")
    code = f"""\
    client = Windback(worker="process", journal={root!r})
    client._engine._link.wake = lambda: None
    track(client, range(50))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(TOOLS + code, url=server.url).status == -signal.SIGKILL
    assert numbers(server) == []
    with Windback(**OPTIONS, base_url=server.url, journal=root) as client:
        track(client, [50])
        eventually(lambda: numbers(server) == list(range(51)))
        eventually(lambda: client.stats().adopted == 50)
        assert adds_up(client.stats())
    eventually(lambda: left_in(root) == [])


def test_a_killed_sender_is_replaced_and_counted(make, server, eventually):
    server.faults([{"latency": 0.05}])
    client = make(batch_size=10, flush_interval=0.01)
    for round_ in range(4):
        track(client, range(round_ * 100, round_ * 100 + 100))
        eventually(lambda: client.stats().in_flight)
        os.kill(sender_of(client), signal.SIGKILL)
        eventually(lambda round_=round_: client.stats().worker_deaths == round_ + 1)
        assert adds_up(client.stats())
    assert client.flush(20)
    stats = client.stats()
    assert (stats.accepted, stats.delivered, stats.pending) == (400, 400, 0)
    # The server knows a batch that comes again by its key, so each event is there once.
    assert numbers(server) == list(range(400))


def test_a_sender_that_dies_immediately_each_time_is_replaced_by_a_thread(
    make, server, monkeypatch, caplog, eventually
):
    monkeypatch.setattr("windback.sender.supervisor._BOOT", "raise SystemExit(1)")
    with caplog.at_level(logging.WARNING, "windback"):
        client = make(flush_interval=0.01)
        track(client, range(250))
        assert client.flush(20)
    assert [record.getMessage() for record in caplog.records] == [
        (
            "can't start a sender process (each sender process that is started ends immediately); "
            "events are sent from a thread of this process"
        )
    ]
    assert client.stats().worker_deaths == 3
    assert client.close()
    assert numbers(server) == list(range(250))


@pytest.mark.parametrize("executable", ["", "/usr/bin/true", "/nowhere/python3"])
def test_where_no_process_can_be_started_a_thread_sends(make, server, monkeypatch, caplog, executable):
    monkeypatch.setattr(sys, "executable", executable)
    with caplog.at_level(logging.WARNING, "windback"):
        client = make(batch_size=10)
        track(client, range(95))
        assert client.close()
    (record,) = caplog.records
    assert record.getMessage().startswith("can't start a sender process (")
    assert numbers(server) == list(range(95))


@pytest.mark.parametrize("executable", ["python", ""])
def test_a_script_that_ends_immediately_delivers(server, run, eventually, executable):
    code = f"""\
    sys.executable = sys.executable if {executable!r} else ""
    logging.getLogger("windback").setLevel(logging.ERROR)
    client = Windback(worker="process")
    track(client, range(250))
    """
    ended = run(TOOLS + code, "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    eventually(lambda: numbers(server) == list(range(250)))


def test_the_exit_waits_for_nobody(held, run, eventually):
    """The server answers only after the application has ended."""
    code = """\
    client = Windback(worker="process", shutdown_timeout=20)
    track(client, range(100))
    sender_of(client)
    track(client, range(100, 5000))
    """
    ended = run(TOOLS + code, "-W", "error", url=held.url, timed=True)
    assert (ended.status, ended.err) == (0, "")
    assert held.most <= 4
    held.answer()
    held.wait_until_seen(50)


def test_its_key_is_on_no_command_line_in_no_environment_and_in_no_file(make, tmp_path, eventually):
    client = make(api_key="sk_test_of_nobody")
    track(client, range(10))
    pid = sender_of(client)
    assert client.flush(20)
    for seen in ("cmdline", "environ"):
        assert b"of_nobody" not in Path(f"/proc/{pid}/{seen}").read_bytes()
    files = [path for path in (tmp_path / "journal").rglob("*") if path.is_file()]
    assert files
    assert not any(b"of_nobody" in path.read_bytes() for path in files)


def test_flush_reports_what_is_left_and_why(make, dead_url, eventually):
    client = make(base_url=dead_url, max_retries=0)
    track(client, range(30))
    eventually(lambda: client.stats().problem)
    result = client.flush(0.1)
    assert not result
    assert result.pending == 30
    assert "could not connect" in result.problem
    result = client.flush()  # without a timeout it gives up when a batch used up its retries
    assert result.pending == 30
    assert adds_up(client.stats())
    assert client.close(0).pending == 30


def test_an_outage_is_logged_by_the_application_s_own_logger(make, server, caplog, eventually):
    server.faults([{"status": 503, "times": 1}])
    with caplog.at_level(logging.INFO, "windback"):
        client = make(max_retries=0)
        track(client, range(10))
        eventually(lambda: client.stats().problem is not None)
        assert client.flush(30)
        eventually(lambda: len(caplog.records) == 2)  # a line comes by a pipe, the counters do not
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "cannot deliver: " in caplog.messages[0]


def test_delivery_reports_come_back_and_a_hook_that_raises_is_counted(make, eventually):
    reports = []

    def hook(report):
        reports.append(report)
        message = "the hook's"
        raise ValueError(message)

    client = make(batch_size=10, on_delivery=hook)
    track(client, range(30))
    assert client.flush(20)
    eventually(lambda: sum(report.count for report in reports) == 30)
    assert {report.outcome for report in reports} == {"delivered"}
    events = [event for report in reports for event in report.events]
    assert sorted(event["properties"]["n"] for event in events) == list(range(30))
    assert client.stats().hook_errors == len(reports)


def test_what_the_api_rejects_is_counted_and_kept(make, tmp_path):
    client = make()
    track(client, range(5))
    assert client.track_event("poison", POISON, {"n": 5})
    assert client.flush(20)
    stats = client.stats()
    assert (stats.delivered, stats.rejected, stats.rejected_by_reason) == (5, 1, {"invalid": 1})
    (letters,) = (tmp_path / "journal" / "dead").iterdir()
    assert b'"poison"' in letters.read_bytes()


def test_a_fork_gets_a_sender_of_its_own(server, run, eventually):
    code = """\
    client = Windback(worker="process", flush_interval=0.05)
    track(client, range(10))
    assert client.flush(20)
    theirs = sender_of(client)
    pid = os.fork()
    if pid == 0:
        assert client.stats().accepted == 0
        track(client, range(100, 110))
        assert client.flush(20)
        assert sender_of(client) != theirs
        assert client.stats().delivered == 10
        sys.exit(0)
    track(client, range(10, 20))
    assert os.waitpid(pid, 0)[1] == 0
    assert client.flush(20)
    assert sender_of(client) == theirs
    assert client.stats().delivered == 20
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    eventually(lambda: numbers(server) == [*range(20), *range(100, 110)])


def test_a_forked_child_that_lives_on_does_not_keep_the_parent_s_sender(server, run, eventually):
    code = """\
    client = Windback(worker="process")
    track(client, range(10))
    assert client.flush(20)
    print(sender_of(client), flush=True)
    if os.fork() == 0:
        sys.stdout = open(os.devnull, "w")
        os.dup2(sys.stdout.fileno(), 1)
        time.sleep(20)
        os._exit(0)
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    eventually(lambda: is_gone(int(ended.out[0])))


def test_close_lets_the_sender_go_and_removes_the_journal(make, tmp_path, eventually):
    client = make()
    track(client, range(10))
    pid = sender_of(client)
    assert client.close(20)
    assert client.close().pending == 0
    eventually(lambda: is_gone(pid))
    eventually(lambda: left_in(tmp_path / "journal") == [])
    eventually(lambda: pid not in children(os.getpid()))  # a zombie until it is waited for


def test_the_numbers_of_the_end_stay(make, held):
    client = make(base_url=held.url)
    track(client, range(10))
    assert client.close(0.1).pending == 10
    stats = client.stats()
    assert (stats.accepted, stats.delivered, stats.pending) == (10, 0, 10)


def test_a_client_that_tracks_nothing_starts_nothing_and_leaves_nothing(make, tmp_path):
    before = children(os.getpid())
    client = make()
    assert client.flush(1)
    assert client.close()
    assert set(children(os.getpid())) <= set(before)  # one of an earlier test may go meanwhile
    assert left_in(tmp_path / "journal") == []


def test_an_orphan_that_is_asked_to_end_leaves_the_rest_to_the_next(
    server, run, dead_url, tmp_path, eventually
):
    root = str(tmp_path / "journal")
    code = f"""\
    client = Windback(worker="process", journal={root!r})
    track(client, range(10))
    print(sender_of(client), flush=True)
    """
    ended = run(TOOLS + code, url=dead_url)
    pid = int(ended.out[0])
    assert not is_gone(pid)

    def ended_by_a_signal():
        if not is_gone(pid):
            os.kill(pid, signal.SIGTERM)
        return is_gone(pid)

    eventually(ended_by_a_signal)
    assert len(left_in(root)) == 1
    with Windback(**OPTIONS, base_url=server.url, journal=root) as client:
        track(client, [10])
        eventually(lambda: numbers(server) == list(range(11)))


@pytest.mark.parametrize("overflow", ["drop_newest", "raise", "block"])
def test_the_bound_of_the_journal_holds_and_room_comes_back(make, held, overflow):
    big = "x" * 60_000
    client = make(
        base_url=held.url, overflow=overflow, block_timeout=0.2, max_journal_bytes=8 << 20, batch_size=5
    )
    accepted = refused = 0
    while not refused:
        try:
            if client.track_event("big", JANE, {"n": accepted, "big": big}):
                accepted += 1
            else:
                refused += 1
        except QueueFullError:
            refused += 1
        assert accepted < 200
    stats = client.stats()
    assert adds_up(stats)
    assert (stats.accepted, stats.refused) == (accepted, {"queue_full": refused})
    assert stats.journal_bytes <= 8 << 20
    held.answer()
    assert client.flush(20)
    assert client.track_event("big", JANE, {"big": big})


def test_who_waits_for_room_gets_it_as_soon_as_there_is_some(make, held):
    big = "x" * 60_000
    client = make(base_url=held.url, overflow="block", block_timeout=30, max_journal_bytes=8 << 20)
    accepted = 0
    while queue_of(client).intake.has_room_for(70_000):
        assert client.track_event("big", JANE, {"n": accepted, "big": big})
        accepted += 1
        assert accepted < 200
    threading.Timer(0.2, held.answer).start()
    started_s = time.monotonic()
    assert client.track_event("big", JANE, {"big": big})
    assert time.monotonic() - started_s < 25
    assert client.flush(20)


@pytest.mark.parametrize("backend", [asyncio, trio], ids=["asyncio", "trio"])
def test_an_async_client_keeps_all_sending_off_its_loop(server, backend, tmp_path, eventually):
    async def main():
        async with AsyncWindback(**OPTIONS, base_url=server.url, journal=tmp_path, batch_size=10) as client:
            for n in range(95):
                assert await client.track_event("login", JANE, {"n": n})
            assert await client.flush(20)
            stats = client.stats()
            assert (stats.delivered, stats.pending) == (95, 0)
            for n in range(95, 100):
                assert await client.track_event("login", JANE, {"n": n})

    backend.run(main() if backend is asyncio else main)
    assert numbers(server) == list(range(100))


def test_idle_neither_of_the_two_wakes_up(make, eventually):
    client = make(flush_interval=0.01)
    track(client, range(10))
    assert client.flush(20)
    eventually(lambda: queue_of(client).intake.wake_at == 0)
    pid = sender_of(client)

    def switches():
        """How often a thread of either process gave up the processor to wait, the one that looks aside."""
        return {
            str(task): next(
                line
                for line in (task / "status").read_text(encoding="ascii").splitlines()
                if line.startswith("voluntary")
            )
            for process in (pid, os.getpid())
            for task in Path(f"/proc/{process}/task").iterdir()
            if int(task.name) != os.getpid()
        }

    def is_quiet():
        before = switches()
        time.sleep(0.5)  # what does not happen has no event to wait for
        return switches() == before

    eventually(is_quiet)
    track(client, [10])
    eventually(lambda: client.stats().delivered == 11)


def test_a_signal_delivers_first(server, run):
    code = """\
    client = Windback(worker="process", handle_signals=True, flush_interval=3600)
    track(client, range(95))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (-signal.SIGTERM, "")
    assert numbers(server) == list(range(95))


def test_options_that_can_not_work_are_errors(tmp_path):
    import httpx

    with pytest.raises(ConfigurationError, match="http_client can't be used by worker='process'"):
        Windback(**OPTIONS, http_client=httpx.Client())
    with pytest.raises(ConfigurationError, match="'drop_oldest' can't be combined with a journal"):
        Windback(**OPTIONS, overflow="drop_oldest")


def test_disabled_it_starts_nothing():
    before = children(os.getpid())
    client = Windback(**OPTIONS, enabled=False)
    assert not client.track_event("login", JANE)
    assert client.flush()
    assert client.close()
    assert set(children(os.getpid())) <= set(before)  # one of an earlier test may go meanwhile


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads from /proc how often a process slept")
@pytest.mark.parametrize("is_left_alone", [False, True])
def test_in_an_outage_it_sleeps_however_much_waits(make, dead_url, eventually, is_left_alone):
    client = make(base_url=dead_url, max_retries=0)
    track(client, range(1_500))
    eventually(lambda: "the next try" in (client.stats().problem or ""))
    sender = sender_of(client)
    if is_left_alone:
        client.close(0)
    try:
        before = sleeps_of(sender)
        time.sleep(2)
        assert (
            sleeps_of(sender) - before < 200
        )  # 40 by its usual pace, and some for tries; 1,000 if it is busy
    finally:
        os.kill(sender, signal.SIGKILL)


def sleeps_of(pid):
    """How often the threads of a process have waited for anything."""
    states = [path.read_text(encoding="ascii") for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(re.findall(r"\nvoluntary_ctxt_switches:\t([0-9]+)", state)[0]) for state in states)
