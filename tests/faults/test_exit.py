"""A process that ends, in whatever way, delivers what it tracked in time, or says what it left."""

from __future__ import annotations

import re
import threading
import time

import pytest
from deadlines import SLACK_S
from raw_server import RawServer, response
from tracking import numbers

#: What the exit may take beyond shutdown_timeout.

DEV = ("-X", "dev", "-W", "error")
FIVE_LINES = """\
    from windback import Windback

    client = Windback()
    client.track_event("signup", "jane@example.com", {"plan": "pro"})
    print("tracked")
"""
MANY = """\
    from windback import Windback

    client = Windback(batch_size=20)
    for n in range(200):
        assert client.track_event("login", "jane@example.com", {"n": n})
"""


@pytest.mark.parametrize("options", [(), DEV], ids=["plain", "dev"])
def test_a_script_of_five_lines_delivers_its_event(server, run, options):
    ended = run(FIVE_LINES, *options, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["tracked"], "")
    (stored,) = server.events()
    assert (stored.event, stored.customer_email) == ("signup", "jane@example.com")
    assert stored.properties == {"plan": "pro"}
    assert server.counts().track_requests == 1


@pytest.mark.parametrize("options", [(), DEV], ids=["plain", "dev"])
def test_ten_full_batches_are_delivered_at_exit(server, run, options):
    ended = run(MANY, *options, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(200))


def test_the_exit_sends_beside_the_worker_that_there_is(run):
    # Each answer waits for a second request: one sender alone would wait until its timeout.
    both = threading.Barrier(2)

    def answer(connection, _):
        both.wait(30.0)
        connection.sendall(response("200 OK"))

    server = RawServer(answer)
    code = """\
        from windback import Windback

        client = Windback(batch_size=1, flush_interval=60, max_in_flight=2, shutdown_timeout=60)
        client.track_event("login", "jane@example.com")
        while not client.stats().in_flight:
            pass
        client.track_event("login", "jane@example.com")
        print(client.stats().pending)
    """
    ended = run(code, *DEV, url=server.url())
    server.close()
    assert (ended.status, ended.out, ended.err) == (0, ["2"], "")
    assert len(server.requests) == 2


def test_an_exit_with_as_many_workers_as_there_may_be_ends_with_the_last_answer(run):
    """The main thread has nothing to send then, and waits for the workers."""

    def answer(connection, _):
        time.sleep(0.05)
        connection.sendall(response("200 OK"))

    server = RawServer(answer)
    code = """\
        import windback.delivery.scheduler
        from windback import Windback

        windback.delivery.scheduler.SPARE_WORKER_S = 60
        client = Windback(batch_size=1, flush_interval=60, max_in_flight=4, shutdown_timeout=60)
        for _ in range(100):
            client.track_event("login", "jane@example.com")
        while client.stats().in_flight < 4:
            pass
    """
    ended = run(code, *DEV, url=server.url(), timed=True)
    server.close()
    assert (ended.status, ended.err) == (0, "")
    assert len(server.requests) == 100
    assert ended.took_s < 20  # a third of shutdown_timeout


def test_sys_exit_delivers_and_keeps_its_status(server, run):
    ended = run(MANY + "    import sys\n    sys.exit(7)\n", *DEV, url=server.url)
    assert (ended.status, ended.err) == (7, "")
    assert numbers(server) == list(range(200))


def test_an_unhandled_exception_delivers_and_is_all_that_is_said(server, run):
    ended = run(MANY + "    raise LookupError('the app failed')\n", *DEV, url=server.url)
    assert ended.status == 1
    assert ended.err.startswith("Traceback")
    assert ended.err.endswith("LookupError: the app failed\n")
    assert ended.err.count("Traceback") == 1
    assert "windback" not in ended.err
    assert numbers(server) == list(range(200))


@pytest.mark.parametrize("options", [(), DEV], ids=["plain", "dev"])
def test_a_client_that_was_closed_leaves_nothing_behind(server, run, options):
    code = """\
        import gc
        from windback import Windback

        for n in range(20):
            with Windback() as client:
                client.track_event("login", "jane@example.com", {"n": n})
            del client
            gc.collect()
    """
    ended = run(code, *options, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(20))


def test_plain_calls_leave_nothing_behind(server, run):
    code = """\
        from windback import Windback

        client = Windback()
        client.create_churn_event(customer_email="jane@example.com")
        client.track_events([{"event": "login", "customer_email": "jane@example.com"}])
    """
    ended = run(code, *DEV, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert (server.counts().churn_events, server.counts().events) == (1, 1)


def test_threads_that_still_track_at_the_end_disturb_nothing(server, run):
    code = """\
        import threading
        from windback import Windback

        client = Windback()
        started = threading.Barrier(5)

        def track():
            started.wait()
            while not client.stats().refused:  # what an app gets that goes on while its process ends
                client.track_event("login", "jane@example.com", {"n": 0})

        for _ in range(4):
            threading.Thread(target=track, daemon=True).start()
        started.wait()
        client.track_event("last", "jane@example.com")
        """
    ended = run(code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert "last" in {stored.event for stored in server.events()}


@pytest.mark.parametrize(
    "kind", ["thread", "no-worker-yet", "async-task", "async-thread"], ids=lambda kind: kind
)
def test_no_thread_is_started_during_the_exit(server, run, kind):
    code = f"""\
        import _thread, atexit, os, sys, threading

        started = []

        def watch(module, name):
            start = getattr(module, name, None)
            if start is not None:
                def watched(*args, **kwargs):
                    if exiting:
                        os.write(2, b"a thread was started during the exit\\n")
                    started.append(name)
                    return start(*args, **kwargs)
                setattr(module, name, watched)

        exiting = False
        for module, name in (
            (_thread, "start_new_thread"),
            (threading, "_start_new_thread"),
            (threading, "_start_joinable_thread"),
        ):
            watch(module, name)

        def begin():
            global exiting
            exiting = True

        import asyncio
        from windback import AsyncWindback, Windback

        async def track(client):
            for n in range(200):
                await client.track_event("login", "jane@example.com", {{"n": n}})

        kind = {kind!r}
        if kind.startswith("async"):
            client = AsyncWindback(worker=kind[6:], batch_size=20)
            asyncio.run(track(client))
        else:
            client = Windback(batch_size=20)
            if kind == "no-worker-yet":
                client._engine._start_worker = client._engine.scheduler._start_worker = lambda *_: False
            for n in range(200):
                client.track_event("login", "jane@example.com", {{"n": n}})
            if kind == "no-worker-yet":
                assert client.stats().workers == 0
        atexit.register(begin)  # the last to be registered is the first to be called
    """
    ended = run(code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(200))


HANGING = """\
    import time
    from windback import Windback

    client = Windback(shutdown_timeout=1.0, batch_size=20)
    for n in range(200):
        client.track_event("login", "jane@example.com", {"n": n})
    while client.stats().in_flight == 0:
        time.sleep(0.01)
"""


def only_line_about_the_rest(err):
    """Return how many events were left, as the only line that says so tells it."""
    lines = [line for line in err.splitlines() if "not delivered" in line]
    assert len(lines) == 1, err
    others = [line for line in err.splitlines() if line not in lines]
    assert all("cannot deliver" in line for line in others), err
    assert len(others) <= 1, err
    match = re.match(r"(\d+) events? ", lines[0])
    assert match is not None, lines
    return int(match.group(1))


def test_an_endpoint_that_never_answers_holds_the_exit_no_longer_than_asked(silent_url, run):
    ended = run(HANGING, timed=True, url=silent_url)
    assert ended.status == 0
    assert ended.took_s <= 1.0 + SLACK_S
    assert only_line_about_the_rest(ended.err) == 200


def test_an_endpoint_that_drips_holds_the_exit_no_longer_than_asked(dripping_url, run):
    ended = run(HANGING, timed=True, url=dripping_url)
    assert ended.took_s <= 1.0 + SLACK_S
    assert only_line_about_the_rest(ended.err) == 200


def test_an_exit_in_the_middle_of_a_backoff_tries_immediately_and_delivers(server, run):
    """The pause that the worker is in would outlast the exit."""
    server.faults([{"path": "/track", "status": 503, "times": 1}])
    code = """\
        import time, windback.delivery.retry
        from windback import Windback

        windback.delivery.retry.backoff_s = lambda attempt, rng: 30.0
        client = Windback(flush_interval=0.01, shutdown_timeout=10.0)
        client.track_event("login", "jane@example.com", {"n": 0})
        while client.stats().requests == 0:
            time.sleep(0.001)
        """
    ended = run(code, timed=True, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert ended.took_s < 5
    assert numbers(server) == [0]


def test_an_exit_in_the_middle_of_a_backoff_is_bounded_where_the_next_try_hangs(server, run):
    server.faults([{"path": "/track", "status": 503, "times": 1}, {"path": "/track", "hang": True}])
    code = """\
        import time, windback.delivery.retry
        from windback import Windback

        windback.delivery.retry.backoff_s = lambda attempt, rng: 30.0
        client = Windback(flush_interval=0.01, shutdown_timeout=1.0)
        client.track_event("login", "jane@example.com", {"n": 0})
        while client.stats().requests == 0:
            time.sleep(0.001)
        """
    ended = run(code, timed=True, url=server.url)
    assert ended.status == 0
    assert ended.took_s <= 1.0 + SLACK_S
    assert only_line_about_the_rest(ended.err) == 1


def test_a_server_that_is_down_holds_the_exit_no_longer_than_asked(dead_url, run):
    code = """\
        from windback import Windback

        client = Windback(shutdown_timeout=1.0, batch_size=20)
        for n in range(200):
            client.track_event("login", "jane@example.com", {"n": n})
        """
    ended = run(code, timed=True, url=dead_url)
    assert ended.status == 0
    assert ended.took_s <= 1.0 + SLACK_S
    assert only_line_about_the_rest(ended.err) == 200


def test_several_clients_share_one_deadline(silent_url, run):
    code = """\
        from windback import Windback

        clients = [Windback(shutdown_timeout=1.0) for _ in range(4)]
        for client in clients:
            client.track_event("login", "jane@example.com")
        """
    ended = run(code, timed=True, url=silent_url)
    assert ended.took_s <= 1.0 + SLACK_S
    assert only_line_about_the_rest(ended.err) == 4


# Debug mode says what held the loop for 0.1 s, and a busy machine does.
PATIENT = "asyncio.get_running_loop().slow_callback_duration = 10"
ASYNC = """\
    import asyncio
    from windback import AsyncWindback

    client = AsyncWindback(shutdown_timeout={timeout}, worker={worker!r}, batch_size=20)

    async def main():
        if {how!r} != "trio":
            PATIENT
        for n in range(200):
            await client.track_event("login", "jane@example.com", {{"n": n}})
        {wait}

    {run}
""".replace("PATIENT", PATIENT)
ASYNC_RUNS = {
    "asyncio": "asyncio.run(main())",
    # As much old code does: the loop is closed over tasks that nobody cancelled.
    "loop-closed": "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()",
    "trio": "import trio; trio.run(main)",
}


@pytest.mark.parametrize("how", ASYNC_RUNS)
@pytest.mark.parametrize("worker", ["task", "thread"])
def test_what_a_loop_left_behind_is_sent_at_exit(server, run, how, worker):
    code = ASYNC.format(timeout=5.0, worker=worker, wait="", how=how, run=ASYNC_RUNS[how])
    ended = run(code, *DEV, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(200))


@pytest.mark.parametrize("how", ASYNC_RUNS)
def test_what_a_loop_left_behind_is_sent_by_several_requests_at_once(run, how):
    # Each answer waits for nine others: one sender alone would wait until its timeout.
    all_ten = threading.Barrier(10)

    def answer(connection, _):
        all_ten.wait(30.0)
        connection.sendall(response("200 OK"))

    server = RawServer(answer)
    code = ASYNC.format(timeout=60.0, worker="task", wait="", how=how, run=ASYNC_RUNS[how])
    code = code.replace("batch_size=20", "batch_size=20, max_in_flight=10")
    ended = run(code, *DEV, url=server.url())
    server.close()
    assert (ended.status, ended.err) == (0, "")
    assert len(server.requests) == 10


def test_the_loop_of_the_exit_leaves_the_current_one_to_the_application(server, run):
    code = """\
    import asyncio, atexit

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    atexit.register(lambda: print(asyncio.get_event_loop() is loop, client.stats().delivered))
"""
    ends = "loop.run_until_complete(main()); atexit.register(loop.run_until_complete, asyncio.sleep(0))"
    code += ASYNC.format(timeout=20.0, worker="task", wait="", how="asyncio", run=ends)
    ended = run(code, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["True 200"], "")
    assert numbers(server) == list(range(200))


@pytest.mark.parametrize("how", ["asyncio", "trio"])
def test_ctrl_c_ends_an_exit_that_sends_in_a_loop(silent_url, run, how):
    code = """\
    import atexit, os, signal, threading, time

    def interrupt():
        while client.stats().in_flight < 80:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    atexit.register(lambda: print("over"))
"""
    begins = f"threading.Thread(target=interrupt, daemon=True).start(); {ASYNC_RUNS[how]}"
    code += ASYNC.format(timeout=60.0, worker="task", wait="", how=how, run=begins)
    ended = run(code.replace("batch_size=20", "batch_size=20, max_in_flight=4"), url=silent_url)
    assert ended.out == ["over"]
    assert "KeyboardInterrupt" in ended.err
    assert "destroyed" not in ended.err
    assert "never awaited" not in ended.err


def test_ctrl_c_in_a_request_of_a_trio_worker_reaches_the_application(dead_url, run):
    """Trio keeps Ctrl-C from the worker, but not from the tasks that anyio makes for it to connect."""
    code = """\
        import signal, socket
        import trio
        from windback import AsyncWindback

        client = AsyncWindback(shutdown_timeout=0, worker="task")

        def connect(*_):
            signal.raise_signal(signal.SIGINT)

        async def main():
            await client.track_event("login", "jane@example.com")
            socket.socket.connect = connect
            await trio.sleep(60)

        try:
            trio.run(main)
        except KeyboardInterrupt:
            print("interrupted", client.stats().pending)
    """
    ended = run(code, url=dead_url)
    assert (ended.status, ended.out) == (0, ["interrupted 1"])
    assert ended.err == "1 event was not delivered before the process ended\n"


def test_an_exit_inside_of_a_running_loop_sends_all(server, run):
    """What calls exit handlers itself, such as a child process of multiprocessing, may do so in a task."""
    wait = """
        import atexit
        atexit._run_exitfuncs()
        print(client.stats().delivered)"""
    code = ASYNC.format(timeout=20.0, worker="task", wait=wait, how="asyncio", run=ASYNC_RUNS["asyncio"])
    ended = run(code, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["200"], "")
    assert numbers(server) == list(range(200))


@pytest.mark.parametrize("how", ["asyncio", "trio"])
def test_what_is_tracked_while_a_loop_goes_down_is_sent(server, run, how):
    """As cleaning up does: all tasks are cancelled already, those that would send it too."""
    code = f"""\
        import {how}
        from windback import AsyncWindback

        client = AsyncWindback(batch_size=1)

        async def session():
            try:
                await {how}.sleep(3600)
            finally:
                for n in range(5):
                    await client.track_event("logout", "jane@example.com", {{{{"n": n}}}})

        async def main():
            {{start}}
            await {how}.sleep(0.01)

        {how}.run({{main}})
        """
    if how == "asyncio":
        code = code.format(start=f"{PATIENT}; task = asyncio.create_task(session())", main="main()")
    else:
        code = code.format(start="trio.lowlevel.spawn_system_task(session)", main="main")
    ended = run(code, *DEV, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(5))


@pytest.mark.parametrize("how", ["asyncio", "trio"])
def test_a_loop_that_ends_with_requests_under_way_loses_and_doubles_nothing(server, run, how):
    server.faults([{"path": "/track", "latency": 0.3, "times": 4}])
    wait = f"""
        import {how} as lib
        while client.stats().in_flight < 80:
            await lib.sleep(0.01)"""
    code = ASYNC.format(timeout=20.0, worker="task", wait=wait, how=how, run=ASYNC_RUNS[how])
    ended = run(code, *DEV, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(200))


@pytest.mark.parametrize("endpoint", ["silent_url", "dead_url", "dripping_url"])
def test_what_a_loop_left_behind_holds_the_exit_no_longer_than_asked(request, run, endpoint):
    """Nobody but the exit itself can send it, so each step of that request has to obey the deadline."""
    code = ASYNC.format(timeout=1.0, worker="task", wait="", how="asyncio", run=ASYNC_RUNS["asyncio"])
    ended = run(code, timed=True, url=request.getfixturevalue(endpoint))
    assert ended.status == 0
    assert ended.took_s <= 1.0 + SLACK_S
    assert only_line_about_the_rest(ended.err) == 200


def test_a_client_without_events_costs_the_exit_nothing(dead_url, run):
    code = """\
        import sys
        from windback import AsyncWindback, Windback

        clients = [Windback(), AsyncWindback()]
        assert "httpx" not in sys.modules
        """
    ended = run(code, *DEV, timed=True, url=dead_url)
    assert (ended.status, ended.err) == (0, "")
    assert ended.took_s < SLACK_S
