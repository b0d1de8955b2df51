"""A forked child starts empty and sends its own events; what was the parent's, the parent sends."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")

OPTIONS = ("-W", "error")

FULL = "the queue is full, and the oldest events make room; they are counted in stats()\n"
TOOLS = """\
    import os, sys, time
    from windback import AsyncWindback, Stats, Windback

    PATIENT = {"shutdown_timeout": 20}  # children that load their modules all at once take a while

    def fork(work, *, end=os._exit):
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except Exception:
                import traceback
                traceback.print_exc()
                os._exit(1)
            end(0)
        return pid

    def join(pids):
        for pid in pids:
            status = os.waitpid(pid, 0)[1]
            assert status == 0, f"a child ended with {status}"

    def track(who, count=10):
        for n in range(count):
            assert client.track_event("login", "jane@example.com", {"who": who, "n": n})

"""


def expected(*who, count=10):
    return sorted((each, n) for each in who for n in range(count))


def arrived(server):
    return sorted((stored.properties["who"], stored.properties["n"]) for stored in server.events())


def test_parent_and_children_each_deliver_their_own_events_once(server, run):
    """The client was used before, so connection and worker exist; more events wait when the forks come."""
    code = (
        TOOLS
        + """\
    client = Windback(**PATIENT, flush_interval=3600)
    track("before")
    assert client.flush(10)
    track("waiting")

    def work(child):
        assert client.stats() == Stats(), client.stats()
        track(child)
        if child == "flushes":
            assert client.flush(10)
            assert client.stats().delivered == 10

    pids = []
    for child in ("ends", "ends-too", "flushes", "closes"):
        # sys.exit runs the exit handlers, as a worker of gunicorn does.
        pids.append(fork(lambda: (work(child), child == "closes" and client.close()), end=sys.exit))
    track("after")
    join(pids)
    stats = client.stats()
    assert stats.accepted == 30 and stats.delivered == 10 and stats.pending == 20, stats
    assert client.flush(10)
    assert client.stats().delivered == 30
    """
    )
    ended = run(code, *OPTIONS, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert arrived(server) == expected("before", "waiting", "ends", "ends-too", "flushes", "closes", "after")


def test_a_request_under_way_stays_the_parents(held, run):
    code = (
        TOOLS
        + """\
    client = Windback(**PATIENT, batch_size=10)
    track("parent", 40)
    while client.stats().in_flight < 40:
        time.sleep(0.001)

    def work():
        assert client.stats() == Stats(), client.stats()
        assert client.flush(0)

    join([fork(work, end=sys.exit)])
    assert client.stats().in_flight == 40
    # The fifth request, which tells the server that it may answer.
    client.track_events([{"event": "login", "customer_email": "jane@example.com"}])
    assert client.flush(10)
    """
    )

    def answer() -> None:
        held.wait_until_seen(5)
        held.answer()

    thread = threading.Thread(target=answer)
    thread.start()
    ended = run(code, *OPTIONS, url=held.url)
    thread.join()
    assert (ended.status, ended.err) == (0, "")
    assert held.seen == 5


def test_close_in_a_child_does_not_disturb_the_parent(server, run):
    code = (
        TOOLS
        + """\
    client = Windback(**PATIENT)
    track("before")
    assert client.flush(10)
    track("waiting")

    def work():
        assert client.close()
        try:
            client.flush()
        except Exception as error:
            assert type(error).__name__ == "ClosedError"
        else:
            raise AssertionError("the child's client is open")

    join([fork(work)])
    track("after")
    assert client.flush(10)
    assert client.stats().delivered == 30
    """
    )
    ended = run(code, *OPTIONS, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert arrived(server) == expected("before", "waiting", "after")


def test_a_client_that_only_children_use(server, run):
    code = (
        TOOLS
        + """\
    client = Windback(**PATIENT)
    join([fork(lambda: track(str(child)), end=sys.exit) for child in range(4)])
    assert client.stats() == Stats()
    """
    )
    ended = run(code, *OPTIONS, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert arrived(server) == expected("0", "1", "2", "3")


def test_a_grandchild_is_a_child(server, run):
    code = (
        TOOLS
        + """\
    client = Windback(**PATIENT)
    track("parent")

    def child():
        track("child")
        join([fork(lambda: (client.stats() == Stats() or 1 / 0, track("grandchild")), end=sys.exit)])

    join([fork(child, end=sys.exit)])
    """
    )
    ended = run(code, *OPTIONS, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert arrived(server) == expected("parent", "child", "grandchild")


@pytest.mark.parametrize(("module", "failures"), [("h11", 0), ("tenacity", 1)])
def test_a_fork_while_the_worker_still_loads_its_modules(server, run, module, failures):
    """As an app that tracks "started" and forks at once does: the child must not wait for an import."""
    server.faults([{"path": "/track", "status": 503, "times": failures}] * failures)
    code = (
        TOOLS
        + """\
    class Slow:
        # The lock of a module that is being imported is held by the thread that imports it.
        def find_spec(self, name, path=None, target=None):
            if name == "MODULE":
                loading.append(name)
                time.sleep(0.3)

    loading = []
    sys.meta_path.insert(0, Slow())
    client = Windback(flush_interval=0.001)
    track("parent")
    while not loading:
        time.sleep(0.001)

    def work():
        track("child")
        assert client.flush(10), client.stats()

    join([fork(work)])
    assert client.flush(10)
    """
    ).replace("MODULE", module)
    ended = run(code, *OPTIONS, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert arrived(server) == expected("parent", "child")


def test_a_fork_that_waits_in_vain_for_an_import_leaves_a_child_that_delivers(server, run):
    """What another thread loads here is nothing that the client needs: that is loaded already."""
    code = (
        TOOLS
        + """\
    import threading
    from windback.process import lifecycle

    lifecycle._LOADING_S = 0.05
    client = Windback(flush_interval=0.001)
    track("parent")
    assert client.flush(10)

    def work():
        track("child")
        assert client.flush(10), client.stats()

    # The main thread loads: a worker in the child could have the identity of any other one, and its locks.
    forking = threading.Thread(target=lambda: join([fork(work)]))
    with lifecycle.loading:
        forking.start()
        forking.join()
    """
    )
    ended = run(code, *OPTIONS, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert arrived(server) == expected("parent", "child")


def test_a_fork_never_meets_the_library_half_loaded_that_ends_threads(dead_url, run):
    """Before 3.9.6 the first thread that ends makes glibc load it; a child with half of it crashes."""
    code = """\
    from windback import Windback

    client = Windback(shutdown_timeout=0)
    print("libgcc_s" in open("/proc/self/maps").read())
    """
    is_needed = sys.platform == "linux" and sys.version_info < (3, 9, 6)
    ended = run(code, url=dead_url)
    assert is_needed <= (ended.out == ["True"])
    assert (ended.status, ended.err) == (0, "")


def test_fifty_forks_while_eight_threads_track(server, run):
    """What a thread held when the fork came, a lock, a half-done eviction, is not there in the child."""
    code = (
        TOOLS
        + """\
    import threading
    import httpcore, windback.http.transport  # each child would have to load them

    # The parent's queue never fills a batch and is never due, so the parent sends nothing.
    client = Windback(max_queue_size=50, overflow="drop_oldest", flush_interval=3600)
    sys.setswitchinterval(0.0005)  # or each step of the main thread waits for all the others
    state = "pause"

    def busy(call):
        while state != "stop":
            if state == "go":
                call()
            else:
                time.sleep(0.001)

    calls = [lambda: track("parent", 1)] * 8 + [client.stats]
    threads = [threading.Thread(target=busy, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()

    def work():
        stats = client.stats()
        assert stats == Stats(), stats
        track(str(child), 3)
        result = client.flush(10)
        assert result and result.delivered == 3, result
        assert client.stats().accepted == 3

    try:
        for child in range(50):
            state = "go"
            enough = client.stats().accepted + 20
            while client.stats().accepted < enough:
                time.sleep(0)
            pid = fork(work)
            state = "pause"  # a child has enough to do without them
            join([pid])
    finally:
        state = "stop"
    for thread in threads:
        thread.join()
    stats = client.stats()
    assert stats.delivered == 0 and stats.accepted == stats.dropped + stats.pending, stats
    """
    )
    ended = run(code, url=server.url, within_s=45)
    assert (ended.status, ended.err) == (0, FULL)
    children = [each for each in arrived(server) if each[0] != "parent"]
    assert children == expected(*map(str, range(50)), count=3)


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_deliver_at_their_end(server, run, method, made):
    """They end by os._exit, so without exit handlers, whatever was loaded first."""
    code = f"""\
import sys, time
if {made!r} == "after":
    import multiprocessing
from windback import Windback

client = Windback(shutdown_timeout=20, flush_interval=3600)
import multiprocessing

def track(who):
    for n in range(10):
        assert client.track_event("login", "jane@example.com", {{"who": who, "n": n}})

def grandchild(who):
    track(who)

def work(who):
    track(who)
    process = multiprocessing.get_context({method!r}).Process(target=grandchild, args=("of " + who,))
    process.start()
    process.join()
    assert process.exitcode == 0
    if who == "1":
        sys.exit(3)

if __name__ == "__main__":
    track("parent")
    context = multiprocessing.get_context({method!r})
    processes = [context.Process(target=work, args=(str(n),)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 3]
    """
    ended = run(code, *OPTIONS, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert arrived(server) == expected("parent", "0", "1", "of 0", "of 1")


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize(
    ("package", "method"),
    # A copy of multiprocessing under another name can't spawn: it would start what it was copied from.
    [
        *((each, method) for each in ("multiprocess", "billiard") for method in ("fork", "spawn")),
        ("copy_of", "fork"),
    ],
)
def test_processes_of_packages_like_multiprocessing_deliver_at_their_end(
    server, run, tmp_path, package, method, made
):
    """Multiprocess is what datasets and pathos use; any other with its interface is known by that alone."""
    if package == "copy_of":
        shutil.copytree(Path(multiprocessing.__file__).parent, tmp_path / "copy_of")
    # A module of its own: billiard before 4.3 can't spawn what is in the script itself.
    (tmp_path / "jobs.py").write_text(f"""\
if {made!r} == "after":
    import {package}
from windback import Windback

client = Windback(shutdown_timeout=20, flush_interval=3600)
import {package}

def track(who):
    for n in range(10):
        assert client.track_event("login", "jane@example.com", {{"who": who, "n": n}})

def work(who):
    track(who)

def main():
    track("parent")
    context = {package}.get_context({method!r})
    processes = [context.Process(target=work, args=(str(n),)) for n in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
""")
    code = f"""\
import sys
sys.path.insert(0, {str(tmp_path)!r})
import jobs
if __name__ == "__main__":
    jobs.main()
"""
    ended = run(code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert arrived(server) == expected("parent", "0", "1")


def test_modules_that_are_loaded_lazily_stay_unloaded_when_a_process_forks(server, run):
    code = """\
    import importlib.util, os, sys
    spec = importlib.util.find_spec("colorsys")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    lazy = sys.modules["colorsys"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lazy)
    from windback import Windback

    Windback()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert type(lazy).__name__ == "_LazyModule"
    """
    ended = run(code, url=server.url)
    assert (ended.status, ended.err) == (0, "")


def test_a_client_made_in_a_child_of_a_process_that_only_loaded_the_module(server, run):
    code = """\
    import os, sys
    import windback, windback.process.lifecycle

    pid = os.fork()
    if pid == 0:
        client = windback.Windback(flush_interval=3600)
        for n in range(10):
            assert client.track_event("login", "jane@example.com", {"who": "child", "n": n})
        assert client.stats().pending == 10
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    """
    ended = run(code, *OPTIONS, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert arrived(server) == expected("child")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_process_pool_deliver_at_their_end(server, run, method):
    code = f"""\
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from windback import Windback

client = Windback(shutdown_timeout=20, flush_interval=3600)

def work(n):
    return client.track_event("login", "jane@example.com", {{"who": "pool", "n": n}})

if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context({method!r})) as pool:
        assert all(pool.map(work, range(20)))
    with multiprocessing.get_context({method!r}).Pool(2) as pool:
        assert all(pool.map(work, range(20, 40)))
        pool.close()
        pool.join()
    """
    ended = run(code, *OPTIONS, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert arrived(server) == expected("pool", count=40)


@pytest.mark.parametrize("worker", ["task", "thread"])
@pytest.mark.parametrize("how", ["asyncio", "trio"])
def test_a_fork_between_event_loops(server, run, how, worker):
    code = (
        TOOLS
        + f"""\
    import {how}

    client = AsyncWindback(**PATIENT, worker={worker!r})

    async def main(who, flush):
        if {how!r} == "asyncio":  # debug mode says what held the loop for 0.1 s, and a busy machine does
            asyncio.get_running_loop().slow_callback_duration = 10
        for n in range(10):
            assert await client.track_event("login", "jane@example.com", {{"who": who, "n": n}})
        if flush:
            assert await client.flush(10)

    def loop(*args):
        {how}.run({"main(*args)" if how == "asyncio" else "main, *args"})

    def work(child, flush):
        assert client.stats() == Stats(), client.stats()
        loop(child, flush)

    loop("before", True)
    loop("waiting", False)
    join([
        fork(lambda: work("flushes", True)),
        fork(lambda: work("ends", False), end=sys.exit),
    ])
    loop("after", True)
    assert client.stats().delivered == 30, client.stats()
    """
    )
    ended = run(code, *OPTIONS, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert arrived(server) == expected("before", "waiting", "flushes", "ends", "after")
