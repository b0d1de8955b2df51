"""The ends that `test_exit.py` does not have: odd moments, odd threads, odd ways to start an interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deadlines import SLACK_S
from tracking import numbers

import windback

ERRORS = ("-W", "error")
#: What a program without logging of its own prints when it tracks after the exit has drained its client.
CLOSED = (
    "track_event was called after this client was closed: the event is not sent; "
    "further ones are only counted, in stats().refused['closed']"
)

TOOLS = """\
    import atexit, os, signal, sys, threading, time
    # Registered first, so called last: after the exit has drained everything.
    atexit.register(lambda: print(check(), flush=True))
    from windback import AsyncWindback, Windback

    clients = []

    def make(kind=Windback, **options):
        clients.append(kind(shutdown_timeout=30, **options))
        return clients[-1]

    def check():
        for client in clients:
            stats = client.stats()
            assert stats.accepted == stats.delivered + stats.rejected + stats.dropped + stats.pending, stats
        return sum(client.stats().delivered for client in clients)

    def track(client, start=0, count=20):
        for n in range(start, start + count):
            assert client.track_event("login", "jane@example.com", {"n": n})

"""


def test_os_exit_ends_immediately_and_loses_what_waits(server, run):
    code = """\
    client = make(flush_interval=3600)
    track(client)
    assert client.flush(10)
    track(client, 100)
    os._exit(5)
    """
    ended = run(TOOLS + code, *ERRORS, url=server.url)
    assert (ended.status, ended.err) == (5, "")
    assert numbers(server) == list(range(20))


def test_an_exit_while_a_batch_is_in_flight_waits_for_its_answer(server, run):
    server.faults([{"latency": 0.7}])
    code = """\
    client = make(batch_size=10)
    track(client)
    while not client.stats().in_flight:
        time.sleep(0.001)
    """
    ended = run(TOOLS + code, *ERRORS, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["20"], "")
    assert numbers(server) == list(range(20))


def test_an_exit_with_a_hundred_thousand_pending_delivers_them(server, run):
    code = """\
    client = make(flush_interval=3600)
    client._engine.scheduler.exiting = True  # no worker starts, so all of it is there at the end
    for n in range(100_000):
        assert client.track_event("login", "jane@example.com")
    assert client.stats().pending == 100_000
    """
    ended = run(TOOLS + code, *ERRORS, url=server.url, within_s=50)
    assert (ended.status, ended.out, ended.err) == (0, ["100000"], "")
    assert server.counts().events == 100_000


def test_clients_of_all_kinds_end_together(server, run):
    code = """\
    import asyncio

    for kind in range(3):
        track(make(flush_interval=3600), 100 * kind)

    async def main(client, start):
        for n in range(start, start + 20):
            assert await client.track_event("login", "jane@example.com", {"n": n})

    for kind, worker in ((3, "task"), (4, "thread")):
        asyncio.run(main(make(AsyncWindback, flush_interval=3600, worker=worker), 100 * kind))
    """
    ended = run(TOOLS + code, *ERRORS, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["100"], "")
    assert numbers(server) == [100 * kind + n for kind in range(5) for n in range(20)]


def test_a_client_that_tracked_nothing_loads_nothing_at_exit(dead_url, run):
    code = """\
    import atexit, sys
    atexit.register(lambda: print([name for name in ("httpx", "anyio", "tenacity") if name in sys.modules]))
    from windback import AsyncWindback, Windback

    clients = Windback(), AsyncWindback()
    """
    ended = run(code, *ERRORS, url=dead_url)
    assert (ended.status, ended.out, ended.err) == (0, ["[]"], "")


def test_exit_handlers_of_other_libraries_may_track(server, run):
    """Those registered after the client are called before its own; for others it is closed and refuses."""
    code = """\
    def late():
        assert not client.track_event("login", "jane@example.com", {"n": 100})
        print(dict(client.stats().refused))

    atexit.register(late)
    client = make(flush_interval=3600)
    atexit.register(lambda: track(client, 50))
    track(client)
    """
    ended = run(TOOLS + code, *ERRORS, url=server.url)
    assert (ended.status, ended.out) == (0, ["{'closed': 1}", "40"])
    assert ended.err.splitlines() == [CLOSED]
    assert numbers(server) == [*range(20), *range(50, 70)]


def test_what_finalizers_track_is_accepted_or_refused_and_nothing_breaks(server, run):
    code = """\
    import weakref

    class Session:
        def __del__(self):
            client.track_event("login", "jane@example.com", {"n": 100})

    client = make(flush_interval=3600)
    session = Session()
    weakref.finalize(Session, lambda: None)
    track(client)
    """
    ended = run(TOOLS + code, *ERRORS, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server)[:20] == list(range(20))


def test_sys_exit_in_another_thread_ends_nothing_else(server, run):
    code = """\
    client = make(flush_interval=3600)

    def work():
        track(client, 100)
        sys.exit(9)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    track(client)
    """
    ended = run(TOOLS + code, *ERRORS, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["40"], "")


def test_a_thread_that_outlives_the_main_one_tracks_on(server, run):
    code = """\
    client = make(flush_interval=3600)

    def work():
        for n in range(50):
            time.sleep(0.01)
            track(client, n, 1)

    threading.Thread(target=work).start()
    """
    ended = run(TOOLS + code, *ERRORS, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["50"], "")


@pytest.mark.parametrize("pool", ["ThreadPoolExecutor(4)", "ThreadPoolExecutor(1)"])
def test_workers_of_an_executor_that_nobody_shut_down(server, run, pool):
    code = f"""\
    import concurrent.futures

    client = make(flush_interval=3600)
    pool = concurrent.futures.{pool}
    for n in range(50):
        pool.submit(track, client, n, 1)
    """
    ended = run(TOOLS + code, *ERRORS, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["50"], "")
    assert numbers(server) == list(range(50))


def test_an_executor_whose_worker_makes_the_client(server, run):
    code = """\
    import concurrent.futures

    def work():
        track(make(flush_interval=3600))

    concurrent.futures.ThreadPoolExecutor(1).submit(work).result()
    """
    ended = run(TOOLS + code, *ERRORS, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["20"], "")


@pytest.mark.skipif(sys.platform == "win32", reason="no process can be sent a SIGINT there")
@pytest.mark.parametrize("warm", [False, True])
def test_ctrl_c_delivers_and_keeps_its_exit_status(server, run, warm):
    code = f"""\
    client = make(flush_interval=3600)
    if {warm}:
        assert client._engine.connections.transport()
    track(client)
    signal.raise_signal(signal.SIGINT)
    """
    ended = run(TOOLS + code, *ERRORS, url=server.url)
    assert ended.status == -signal.SIGINT
    assert ended.out == ["20"]
    assert ended.err.splitlines()[-1] == "KeyboardInterrupt"
    assert "windback" not in ended.err
    assert numbers(server) == list(range(20))


def test_a_second_ctrl_c_ends_the_wait_of_the_exit(silent_url, run):
    code = """\
    import os, signal, threading
    from windback import Windback

    client = Windback(shutdown_timeout=20)
    client._engine.connections.transport()
    client.track_event("login", "jane@example.com")
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    """
    ended = run(code, url=silent_url)
    assert ended.took_s < 10
    assert "KeyboardInterrupt" in ended.err


# With -OO all modules are compiled anew, which takes seconds on a busy machine.
START = (
    'from windback import Windback; Windback(shutdown_timeout=25).track_event("login", "jane@example.com")\n'
)


@pytest.mark.parametrize(
    "how",
    ["-c", "-m", "stdin", "-I", "-X dev", "-S -E -s", "-OO", "-u", "-B -q"],
    ids=lambda how: how.strip("-"),
)
def test_each_way_to_start_an_interpreter(server, tmp_path, how):
    (tmp_path / "script.py").write_text(START, encoding="utf-8")
    package = str(Path(windback.__file__).resolve().parents[1])
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")},
        "PYTHONPATH": package,
        "WINDBACK_API_KEY": "sk_test_1",
        "WINDBACK_BASE_URL": server.url,
    }
    paths = [package, *(path for path in sys.path if path.endswith("site-packages"))]
    text = (
        f"import sys; sys.path[:0] = {paths!r}; {START}"  # -I and -E do not read PYTHONPATH, -S no packages
    )
    arguments = {
        "-c": ["-c", START],
        "-m": ["-m", "script"],
        "stdin": ["-"],
    }.get(how, [*how.split(), "-c", text])
    ended = subprocess.run(
        [sys.executable, *ERRORS, *arguments],
        cwd=tmp_path,
        env=environment,
        input=START,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert server.counts().events == 1


def test_an_end_in_the_middle_of_the_workers_imports(server, run):
    """From no pause at all to one in which the worker has loaded everything."""
    for n in range(12):
        code = f"""\
        import time
        from windback import Windback
        client = Windback(flush_interval=0.001)
        client.track_event("login", "jane@example.com", {{"n": {n}}})
        time.sleep({0.02 * n})
        """
        ended = run(code, *ERRORS, url=server.url)
        assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(12))


def test_an_exit_takes_no_longer_because_of_a_clock_that_started_late(silent_url, run):
    """The deadline counts from the exit, not from the last event."""
    code = """\
    from windback import Windback
    import time
    client = Windback(shutdown_timeout=0.5)
    client._engine.connections.transport()
    client.track_event("login", "jane@example.com")
    time.sleep(1)
    """
    ended = run(code, url=silent_url, timed=True)
    assert ended.took_s <= 0.5 + SLACK_S
    assert "1 event was not delivered" in ended.err
