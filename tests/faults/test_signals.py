"""With handle_signals=True a signal delivers first; then the process ends as without the SDK."""

from __future__ import annotations

import signal
import sys
import threading
import time

import pytest
from calls import eventually
from deadlines import SLACK_S
from tracking import numbers

from windback import Windback

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="signals end a process there without a handler"
)

TOOLS = """\
    import asyncio, os, select, signal, sys, threading, time
    from windback import AsyncWindback, Windback

    def track(client, count=95):
        for n in range(count):
            assert client.track_event("login", "jane@example.com", {"n": n})

    def send(number=signal.SIGTERM):
        os.kill(os.getpid(), number)

    def be_busy():
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            sum(range(1000))

"""


@pytest.mark.parametrize(
    "rest", ["time.sleep(20)", "be_busy()", "threading.Event().wait(20)", "select.select([], [], [], 20)"]
)
def test_sigterm_delivers_and_ends_the_process_as_without_us(server, run, rest):
    code = f"""\
    # Beside a busy thread, on a busy machine, loading httpx alone can take seconds.
    client = Windback(handle_signals=True, flush_interval=3600, batch_size=10, shutdown_timeout=25)
    track(client)
    send()
    {rest}
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (-signal.SIGTERM, "")
    assert numbers(server) == list(range(95))


@pytest.mark.parametrize(
    ("end", "status"), [("sys.exit(3)", 3), ("os._exit(4)", 4), ("os.kill(os.getpid(), 9)", -9)]
)
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_the_earlier_handler_runs_after_the_delivery(server, run, number, end, status):
    code = f"""\
    def earlier(number, frame):
        print(signal.Signals(number).name, frame is not None, flush=True)
        {end}

    signal.signal(signal.{number}, earlier)
    client = Windback(handle_signals=True, flush_interval=3600)
    track(client)
    send(signal.{number})
    time.sleep(20)
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err, ended.out) == (status, "", [f"{number} True"])
    assert numbers(server) == list(range(95))


def test_a_handler_that_returns_is_called_once_for_each_signal(server, run):
    code = """\
    calls = []
    signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    client = Windback(handle_signals=True, flush_interval=3600)
    for sent in range(1, 4):
        track(client, 10)
        send()
        while len(calls) < sent:
            time.sleep(0.001)
        assert client.stats().delivered == 10 * sent, client.stats()
    time.sleep(0.2)
    assert len(calls) == 3
    track(client, 10)
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert len(numbers(server)) == 40


def test_a_signal_that_comes_while_our_lock_is_held_delivers(server, run):
    code = """\
    client = Windback(handle_signals=True, flush_interval=3600)
    track(client)
    with client._engine.scheduler.lock:
        send()
        time.sleep(0.3)
    time.sleep(20)
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (-signal.SIGTERM, "")
    assert numbers(server) == list(range(95))


def test_the_application_goes_on_while_it_delivers(held, run, tmp_path):
    """What it tracks after the delivery began is accepted, not waited for, and counted in one line."""
    tracked = tmp_path / "tracked"
    code = f"""\
    client = Windback(handle_signals=True, flush_interval=3600, batch_size=10, shutdown_timeout=20)
    track(client, 10)
    send()
    while not client._engine.scheduler.flushes.are_urgent:
        time.sleep(0.001)
    track(client, 5)
    open({str(tracked)!r}, "w").close()
    time.sleep(20)
    """

    def answer() -> None:
        held.wait_until_holding(1)
        eventually(tracked.exists, 15)
        held.answer(1)

    releaser = threading.Thread(target=answer)
    releaser.start()
    ended = run(TOOLS + code, url=held.url)
    releaser.join()
    assert (ended.status, ended.err) == (
        -signal.SIGTERM,
        "5 events were not delivered before the process ended\n",
    )


def test_a_signal_that_wakes_nothing_is_sent_once_more(server, run):
    """As one that comes when the main thread is about to block, and does not look for signals any more."""
    code = """\
    sent, kill = [], os.kill

    def kill_at_the_third(*arguments):
        sent.append(arguments)
        if len(sent) == 3:
            kill(*arguments)

    signal.signal(signal.SIGTERM, lambda *_: (print(len(sent), flush=True), os._exit(0)))
    client = Windback(handle_signals=True, flush_interval=3600)
    track(client)
    os.kill = kill_at_the_third
    kill(os.getpid(), signal.SIGTERM)
    time.sleep(25)
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["3"], "")
    assert numbers(server) == list(range(95))


@pytest.mark.parametrize("clients", [1, 3])
def test_an_endpoint_that_never_answers_holds_the_end_no_longer_than_asked(silent_url, run, clients):
    code = f"""\
    clients = [Windback(handle_signals=True, shutdown_timeout=1) for _ in range({clients})]
    for client in clients:
        client._engine.connections.transport()
        track(client, 10)
    print(time.time(), flush=True)
    send()
    time.sleep(20)
    """
    ended = run(TOOLS + code, url=silent_url)
    took_s = time.time() - float(ended.out[0])
    lost = f"{10 * clients} events were not delivered before the process ended\n"
    assert (ended.status, ended.err) == (-signal.SIGTERM, lost)
    assert 0.9 <= took_s <= 1.0 + SLACK_S


@pytest.mark.parametrize("kind", ["Windback(worker='thread', ", "AsyncWindback(worker='task', "])
@pytest.mark.parametrize("is_in_file", [False, True], ids=["memory", "journal"])
def test_what_a_signal_leaves_undelivered_is_one_line_with_its_number(
    silent_url, run, tmp_path, kind, is_in_file
):
    journal = str(tmp_path / "journal") if is_in_file else None
    code = f"""\
    async def main():
        client = {kind}handle_signals=True, shutdown_timeout=0.5, journal={journal!r})
        for n in range(60):
            told = client.track_event("login", "jane@example.com", {{"n": n}})
            assert (await told if asyncio.iscoroutine(told) else told)
        send()
        await asyncio.sleep(20)

    asyncio.run(main())
    """
    ended = run(TOOLS + code, url=silent_url)
    assert ended.status == -signal.SIGTERM
    said = "60 events were not delivered before the process ended"
    assert [line for line in ended.err.splitlines() if "events" in line] == ([] if is_in_file else [said])


def test_a_second_signal_does_not_wait(silent_url, run):
    code = """\
    client = Windback(handle_signals=True, shutdown_timeout=15)
    track(client, 10)
    send()
    time.sleep(0.2)
    send()
    time.sleep(20)
    """
    ended = run(TOOLS + code, url=silent_url)
    assert (ended.status, ended.err) == (-signal.SIGTERM, "")
    assert ended.took_s < 10


def test_ctrl_c_is_a_keyboard_interrupt_immediately_and_the_exit_delivers(server, run):
    code = """\
    client = Windback(handle_signals=True, flush_interval=3600)
    track(client)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        send(signal.SIGINT)
        time.sleep(20)
    except KeyboardInterrupt:
        sys.exit(130)
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (130, "")
    assert numbers(server) == list(range(95))


def test_an_ignored_signal_stays_ignored(server, run):
    code = """\
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    client = Windback(handle_signals=True)
    track(client)
    send()
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(95))


SIGNAL_WHILE_HELD = {
    # A daemon thread: the end of the script does not wait for it, so the exit has begun.
    "during-the-exit": "threading.Thread(target=send_when_under_way, daemon=True).start()",
    # The script ends while the drain that the signal began is under way.
    "before-the-exit": "send(); wait_until_under_way()",
}


@pytest.mark.parametrize("end", SIGNAL_WHILE_HELD.values(), ids=SIGNAL_WHILE_HELD)
def test_an_exit_and_a_signal_together_deliver_and_keep_the_signal(held, run, end):
    code = f"""\
    def wait_until_under_way():
        while not client.stats().in_flight:
            time.sleep(0.005)

    def send_when_under_way():
        wait_until_under_way()
        send()
        print("sent", flush=True)

    client = Windback(handle_signals=True, flush_interval=3600, shutdown_timeout=25)
    track(client)
    {end}
    """

    def answer():
        held.wait_until_holding(1)
        time.sleep(0.6)  # what has to happen meanwhile is seen nowhere from here
        held.answer()

    answerer = threading.Thread(target=answer)
    answerer.start()
    ended = run(TOOLS + code, url=held.url)
    answerer.join()
    assert (ended.status, ended.err) == (-signal.SIGTERM, "")
    assert held.seen == 1


@pytest.mark.parametrize("worker", ["task", "thread"])
def test_a_loop_that_runs_delivers(server, run, worker):
    code = f"""\
    async def main():
        client = AsyncWindback(handle_signals=True, flush_interval=3600, batch_size=10, worker={worker!r})
        for n in range(95):
            assert await client.track_event("login", "jane@example.com", {{"n": n}})
        send()
        await asyncio.sleep(20)

    asyncio.run(main())
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (-signal.SIGTERM, "")
    assert numbers(server) == list(range(95))


def test_a_forked_child_delivers_its_own(server, run):
    code = """\
    client = Windback(handle_signals=True, flush_interval=3600)
    track(client, 5)
    pid = os.fork()
    if pid == 0:
        for n in range(100, 110):
            client.track_event("login", "jane@example.com", {"n": n})
        send()
        time.sleep(20)
    assert os.waitpid(pid, 0)[1] == signal.SIGTERM
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == [*range(5), *range(100, 110)]


def test_where_no_thread_can_be_started_the_signal_is_passed_on_immediately(server, run):
    code = """\
    import _thread

    def refuse(*_):
        raise RuntimeError("can't start new thread")

    _thread.start_new_thread = refuse
    client = Windback(handle_signals=True)
    track(client, 5)
    send()
    time.sleep(20)
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.err) == (-signal.SIGTERM, "")
    assert numbers(server) == []


def test_without_clients_a_signal_does_what_it_did(dead_url, run):
    code = """\
    Windback(handle_signals=True).close()
    send()
    time.sleep(20)
    """
    ended = run(TOOLS + code, url=dead_url)
    assert (ended.status, ended.err) == (-signal.SIGTERM, "")


def test_outside_of_the_main_thread_it_is_one_warning_and_later_works(server, run):
    code = """\
    clients = []
    for _ in range(2):
        make = lambda: clients.append(Windback(handle_signals=True, flush_interval=3600))
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    {take}
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    track(clients[0])
    send()
    time.sleep(20)
    """
    for take in ("Windback(handle_signals=True)", "clients[1].stats()", "clients[1].flush()"):
        server.reset()
        ended = run(TOOLS + code.format(take=take), url=server.url)
        assert ended.status == -signal.SIGTERM
        assert len(ended.err.splitlines()) == 1
        assert "handle_signals=True has no effect yet" in ended.err
        assert numbers(server) == list(range(95))


def test_once_taken_a_handler_that_the_application_sets_stays(dead_url, run):
    code = """\
    client = Windback(handle_signals=True)
    mine = lambda *_: None
    signal.signal(signal.SIGTERM, mine)
    client.stats(), client.flush()
    assert signal.getsignal(signal.SIGTERM) is mine
    """
    ended = run(TOOLS + code, url=dead_url)
    assert (ended.status, ended.err) == (0, "")


# -- programs that get signals from an event loop ---------------------------------------------------

RUNNERS = {
    "asyncio": "asyncio.run(main())",
    "uvloop": "import uvloop; uvloop.run(main())",
}


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS)
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_loop_that_gets_the_signal_gets_it_once(server, run, runner, number):
    code = f"""\
    calls = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.{number}, calls.append, 1)
        client = Windback(handle_signals=True, flush_interval=3600)
        track(client)
        send(signal.{number})
        while not calls:
            await asyncio.sleep(0.01)
        while client.stats().pending:  # nobody here flushes it
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        print(calls)
        track(client, 1)
        send(signal.{number})
        while len(calls) < 2 or client.stats().pending:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        print(calls)

    {runner}
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["[1]", "[1, 1]"], "")


def test_a_descriptor_of_the_programs_own_is_written_once(server, run):
    code = """\
    import socket
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    client = Windback(handle_signals=True, flush_interval=3600)
    track(client)
    send()
    assert ours.recv(10) == bytes([signal.SIGTERM])
    while client.stats().pending:
        time.sleep(0.01)
    ours.settimeout(0.5)
    try:
        print(ours.recv(10))
    except socket.timeout:
        print("once")
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["once"], "")


AIOHTTP = """\
    from aiohttp import web

    async def start(app):
        app[KEY] = {kind}(handle_signals=True, flush_interval=3600)
        for n in range(95):
            result = app[KEY].track_event("login", "jane@example.com", {{"n": n}})
            assert await result if asyncio.iscoroutine(result) else result
        threading.Timer(0.5, send).start()

    async def cleanup(app):
        print("cleanup starts", flush=True)
        await asyncio.sleep(1)
        print("cleanup done", flush=True)

    KEY = web.AppKey("client", object) if hasattr(web, "AppKey") else "client"
    app = web.Application()
    app.on_startup.append(start)
    app.on_cleanup.append(cleanup)
    web.run_app(app, host="127.0.0.1", port=0, print=None)
    print("ended normally")
    """


@pytest.mark.parametrize("kind", ["Windback", "AsyncWindback"])
def test_aiohttp_cleans_up_in_peace(server, run, kind):
    ended = run(TOOLS + AIOHTTP.format(kind=kind), url=server.url)
    assert (ended.status, ended.out) == (0, ["cleanup starts", "cleanup done", "ended normally"])
    assert numbers(server) == list(range(95))


HYPERCORN = """\
    import hypercorn.asyncio, hypercorn.config

    async def app(scope, receive, send_answer):
        global client
        if scope["type"] != "lifespan":
            raise NotImplementedError
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                client = Windback(handle_signals=True, flush_interval=3600)
                track(client)
                threading.Timer(0.5, send).start()
            else:
                print("cleanup starts", flush=True)
                await asyncio.sleep(1)
                print("cleanup done", flush=True)
            await send_answer({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return

    config = hypercorn.config.Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    import hypercorn.run
    config.application_path = "unused"
    from hypercorn.asyncio.run import worker_serve
    from hypercorn.app_wrappers import ASGIWrapper

    asyncio.run(worker_serve(ASGIWrapper(app), config))
    print("ended normally")
    """


def test_hypercorn_shuts_down_in_peace(server, run):
    ended = run(TOOLS + HYPERCORN, url=server.url)
    assert (ended.status, ended.out) == (0, ["cleanup starts", "cleanup done", "ended normally"]), ended.err
    assert numbers(server) == list(range(95))


def test_where_os_kill_would_end_the_process_the_signal_is_raised(server, run):
    """As on Windows, where os.kill is TerminateProcess for every signal but two."""
    code = """\
    calls = []
    signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    client = Windback(handle_signals=True, flush_interval=3600)
    track(client)
    kill = os.kill
    os.kill = lambda pid, number: os._exit(77)
    import windback.process.signals as signals
    signals.os = type(sys)("os")
    signals.os.__dict__.update(os.__dict__, name="nt")
    kill(os.getpid(), signal.SIGTERM)
    while not calls:
        time.sleep(0.01)
    print(client.stats().pending)
    """
    ended = run(TOOLS + code, url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["0"], "")


def test_without_the_option_no_handler_is_installed(dead_url):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    Windback("sk_test_1", base_url=dead_url).close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
