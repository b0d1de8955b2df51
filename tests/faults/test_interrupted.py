"""An application may call in from anywhere, and be interrupted anywhere: no call hangs, no client dies of it.

Signal handlers and finalizers run between any two steps of a thread, also while it is in a call of ours. An
exception that one of them raises (Ctrl-C, a soft time limit) strikes at any instruction.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from calls import ends, eventually
from inside import engine_of, link_of
from strikes import Interruption, Strike
from tracking import JANE, adds_up

from windback import Windback

TASKS = Path("/proc/self/task")
OPTIONS = {"api_key": "sk_test_1", "project_slug": "my-project"}
QUEUES = {
    "memory": "",
    "journal": "journal={root!r}",
    "process": "journal={root!r}, worker='process'",
    "relay": "journal={root!r}, worker=None",
    "broker": "broker={broker!r}",
}
POLICIES = ["drop_newest", "drop_oldest", "block", "raise"]
# A journal keeps what was accepted, so it discards nothing to make room.
COMBINATIONS = [
    (queue, overflow)
    for queue in QUEUES
    for overflow in POLICIES
    if queue in ("memory", "broker") or overflow != "drop_oldest"
]

CALLS = """\
import faulthandler, gc, os, signal, threading, time
faulthandler.dump_traceback_later(60, exit=True)
from windback import ClosedError, QueueFullError, Windback
client = None
depth = 0

def track():
    try:
        client.track_event("tick", "jane@example.com", {{"from": "outside"}})
    except QueueFullError:
        pass

def make():
    global client
    client = Windback(
        {options}, max_queue_size=40, flush_interval=0.01, block_timeout=0.01, shutdown_timeout=0.2
    )

def call_everything():
    for _ in range(20):
        track()
    client.stats()
    client.flush(0.01)
    client.stats()
    client.flush(0.01)
    client.with_options(timeout=1.0)
    client.close(0.01)
    client.stats()
"""

FINALIZERS = """\
class Tracks:
    def __init__(self):
        self.itself = self

    def __del__(self):
        track()
        client.stats()

thresholds = gc.get_threshold()
for threshold in (1, 2, 3, 5, 8, 13, 21, 34, 50):
    make()
    [Tracks() for _ in range(30)]
    gc.set_threshold(threshold)
    call_everything()
    gc.set_threshold(*thresholds)
    gc.collect()
print("ended")
os._exit(0)
"""

HANDLERS = """\
calls = 0

def handle(*_):
    global calls, depth
    if depth > 2:  # a slow machine, where the next signal comes before this handler is done
        return
    depth += 1
    calls += 1
    try:
        track()
        client.stats()
        if depth == 1:
            client.flush(0.001)
    except ClosedError:
        pass
    finally:
        depth -= 1

signal.signal(signal.SIGALRM, handle)
deadline = time.monotonic() + 4
while time.monotonic() < deadline or calls < 20:
    make()
    signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
    call_everything()
    signal.setitimer(signal.ITIMER_REAL, 0)
print("ended")
os._exit(0)
"""


@pytest.fixture
def script(request, tmp_path):
    def script(queue, overflow, code):
        broker = request.getfixturevalue("redis_server").url if queue == "broker" else None
        chosen = QUEUES[queue].format(root=str(tmp_path / "journal"), broker=broker)
        options = ", ".join(filter(None, [chosen, f"overflow={overflow!r}"]))
        return CALLS.format(options=options) + code

    return script


@pytest.mark.parametrize(("queue", "overflow"), COMBINATIONS)
def test_finalizers_that_track_never_wait_for_the_call_that_they_interrupt(
    server, run, script, queue, overflow
):
    ended = run(script(queue, overflow, FINALIZERS), url=server.url, within_s=120.0)
    assert ended.out == ["ended"], ended.err


@pytest.mark.parametrize(("queue", "overflow"), COMBINATIONS)
def test_signal_handlers_that_track_and_flush_never_wait_for_the_call_that_they_interrupt(
    server, run, script, queue, overflow
):
    ended = run(script(queue, overflow, HANDLERS), url=server.url, within_s=120.0)
    assert ended.out == ["ended"], ended.err


@pytest.fixture(autouse=True)
def collected():
    """What a test leaves is collected while its warnings are ignored, and not in a later test."""
    before = threads()
    yield
    ends(lambda: threads() <= before, threads, hangs_after_s=10)
    gc.collect()


def threads():
    return len(list(TASKS.iterdir())) if TASKS.exists() else 0


# A connection or a file that an exception kept from being closed, the garbage collector closes.
pytestmark = [
    pytest.mark.timeout(600),  # hundreds of clients, one for each place
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


# -- an exception at any place of a caller ----------------------------------------------------------


def interrupt(make, call, *, lines):
    """Interrupt *call* at each place that it passes, each time with a new client; yield the clients."""
    number = 0
    while True:
        number += 1
        client = make()
        strike = Strike(number, lines=lines)
        told = Counted(client)
        try:
            with strike:
                call(told)
        except Interruption:
            pass
        yield client, told, strike.place
        if strike.place is None:
            return


class Counted:
    """A client, and how many of its calls of track_event returned True."""

    def __init__(self, client):
        self.client = client
        self.accepted = 0
        self.interrupted = 0

    def track(self):
        self.interrupted += 1
        accepted = self.client.track_event("login", JANE)
        self.interrupted -= 1
        self.accepted += accepted


WORKERS = {
    "thread": {},
    "journal": {"journal": True},
    "process": {"journal": True, "worker": "process"},
}
PUBLIC = {
    "track_event": lambda told: told.track(),
    "second_event": lambda told: told.track(),
    "stats": lambda told: told.client.stats(),
    "flush": lambda told: told.client.flush(10),
}


#: By worker: the calls that are interrupted at the entry of each function, and those at each line. With a
#: process, each place starts an interpreter; a flush with a journal passes too many lines.
CASES = [
    *(("thread", False, call) for call in PUBLIC),
    *(("thread", True, call) for call in PUBLIC),
    *(("journal", False, call) for call in PUBLIC),
    *(("journal", True, call) for call in PUBLIC if call != "flush"),
    ("process", False, "track_event"),
]


@pytest.mark.parametrize(
    ("worker", "lines", "call"),
    CASES,
    ids=[f"{worker}-{'line' if lines else 'function'}-{call}" for worker, lines, call in CASES],
)
def test_an_exception_at_any_place_of_a_call_loses_its_event_at_most(server, tmp_path, worker, call, lines):
    faulthandler.dump_traceback_later(600, exit=True)
    options = dict(WORKERS[worker])
    interrupted = 0

    def make():
        if "journal" in options:  # of its own: what an interrupted call wrote, another client would adopt
            options["journal"] = tempfile.mkdtemp(dir=str(tmp_path))
        client = Windback(
            **OPTIONS, **options, base_url=server.url, flush_interval=0.005, shutdown_timeout=5.0
        )
        if call != "track_event":
            assert client.track_event("login", JANE)
        return client

    for client, told, place in interrupt(make, PUBLIC[call], lines=lines):
        before = 0 if call == "track_event" else 1
        for _ in range(3):
            told.track()
        result = client.flush(20)
        assert result, (place, result, client.stats())
        seen = client.stats()
        assert adds_up(seen), place
        expected = before + told.accepted
        assert expected <= seen.accepted <= expected + told.interrupted, place
        assert (seen.delivered, seen.pending) == (seen.accepted, 0), place
        assert client.close(20), place
        interrupted += place is not None
    faulthandler.cancel_dump_traceback_later()
    assert interrupted > (5 if lines else 2)  # an event enters few functions


@pytest.mark.parametrize("lines", [False, True], ids=["function", "line"])
def test_a_close_that_was_interrupted_can_be_called_again(server, lines):
    def make():
        client = Windback(**OPTIONS, base_url=server.url, flush_interval=0.005, shutdown_timeout=5.0)
        for _ in range(3):
            assert client.track_event("login", JANE)
        return client

    for client, _, place in interrupt(make, lambda told: told.client.close(10), lines=lines):
        client.close(20)
        seen = client.stats()
        assert adds_up(seen), place
        assert (seen.delivered, seen.pending) == (3, 0), place


# -- an exception at any place of a worker -------------------------------------------------------------


class Struck:
    """A strike of `MemoryError` in the first worker thread that begins, at a line's first or second run."""

    def __init__(self, number):
        self.strike = Strike(number, lines=True, error=MemoryError, visits=2)
        self._is_first = threading.Lock()

    def watch(self, threads):
        work = threads._work

        def traced(*args, **kwargs):
            if self._is_first.acquire(blocking=False):
                sys.settrace(self.strike.trace)
            work(*args, **kwargs)

        threads._work = traced


def client_struck(server, kind, journal, number):
    """Return a client and what strikes a worker of it, in this process or in its sender."""
    struck = Struck(number)
    options = {"flush_interval": 0.005, "batch_size": 10, "max_in_flight": 2}
    if kind != "memory":
        options["journal"] = journal
    if kind == "sender":
        options["worker"] = "process"
    client = Windback(**OPTIONS, base_url=server.url, **options)
    if kind == "sender":
        link = link_of(client)
        # The sender itself, in a thread of this process, where a trace function reaches its workers.
        link._use_thread = True
        make = link._make_here

        def made(*args):
            sender = make(*args)
            struck.watch(engine_of(sender).threads)
            return sender

        link._make_here = made
    else:
        struck.watch(engine_of(client).threads)
    return client, struck.strike


#: Every third place, from each of the first three: parts that may run side by side.
PARTS = 3


@pytest.fixture
def no_collection_while_an_error_is_freed():
    """CPython 3.9 and 3.10 crash if garbage is collected while they free a MemoryError; so none is.

    What the error's traceback keeps alive is freed first, and the collector then meets an error that is
    half gone. 3.8 and 3.11 do not crash.
    """
    if sys.version_info[:2] not in ((3, 9), (3, 10)):
        yield
        return
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection_while_an_error_is_freed")
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", ["memory", "journal", "sender"])
def test_no_memory_at_any_line_of_a_worker_loses_and_miscounts_nothing(server, tmp_path, kind, part):
    faulthandler.dump_traceback_later(900, exit=True)
    struck = rounds = 0
    before = threads()
    for number in itertools.count(1 + part, PARTS):
        rounds += 1
        client, strike = client_struck(server, kind, tmp_path / str(number), number)
        told = seen_before = 0
        for n in range(25):
            told += client.track_event("login", JANE, {"n": n, "round": number})
            accepted = client.stats().accepted
            assert seen_before <= accepted <= told, strike.place
            seen_before = accepted
        result = client.flush(30)
        seen = client.stats()
        assert result, (strike.place, result, seen)
        assert adds_up(seen), (strike.place, seen)
        assert (seen.accepted, seen.delivered, seen.pending) == (told, told, 0), strike.place
        assert client.close(20), strike.place
        # A sender, here in threads of this process, ends once it has settled all events of its application.
        eventually(lambda: threads() <= before, within_s=20)
        struck += strike.place is not None
        if strike.place is None:
            break
    faulthandler.cancel_dump_traceback_later()
    assert struck > 100 / PARTS
    arrived = [(stored.properties["round"], stored.properties["n"]) for stored in server.events()]
    assert len(set(arrived)) == len(arrived) == 25 * rounds
