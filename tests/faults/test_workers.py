"""Workers come when there is work, no more than may send at once, and go; one that dies loses nothing."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from pathlib import Path

import pytest
from deadlines import SLACK_S
from inside import engine_of, scheduler_of, start_by
from tracking import JANE, numbers

from windback import AsyncWindback, Windback, clock
from windback.http.transport import AsyncTransport

OPTIONS = {"api_key": "sk_test_1", "project_slug": "my-project"}


def track(client, count):
    for n in range(count):
        assert client.track_event("login", JANE, {"n": n})


async def track_async(client, count):
    for n in range(count):
        assert await client.track_event("login", JANE, {"n": n})


# -- they come and go ----------------------------------------------------------------------------


def test_no_worker_before_the_first_event(server):
    threads = threading.active_count()
    with Windback(**OPTIONS, base_url=server.url) as client:
        client.track_events([{"event": "login", "customer_email": JANE}])
        client.create_churn_event(customer_email=JANE)
        client.flush()
        assert client.stats().workers == 0
        assert threading.active_count() == threads
        client.track_event("login", JANE)
        assert client.stats().workers == 1
        assert client.flush(10)
    assert server.counts().events == 2


def tasks():
    """Return each thread of this process with how often it went to sleep."""
    counts = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            status = (task / "status").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        (line,) = (line for line in status.splitlines() if line.startswith("voluntary_ctxt_switches"))
        counts[task.name] = int(line.split()[1])
    return counts


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts context switches, in Linux's /proc")
@pytest.mark.parametrize("used", ["interval", "full", "several"])
def test_an_idle_worker_is_never_woken(server, monkeypatch, eventually, used):
    monkeypatch.setattr("windback.delivery.scheduler.SPARE_WORKER_S", 0.05)
    before = set(tasks())
    with Windback(**OPTIONS, base_url=server.url, batch_size=10, flush_interval=0.05) as client:
        if used == "several":
            server.faults([{"path": "/track", "latency": 0.1, "times": 4}])
        track(client, {"interval": 3, "full": 10, "several": 40}[used])
        eventually(lambda: client.stats().delivered == client.stats().accepted)
        eventually(lambda: client.stats().workers == 1)
        steps = []
        scheduler = scheduler_of(client)
        next_step = scheduler.next_step
        # The worker looks it up at each step, so this sees the very next one.
        scheduler.next_step = lambda *args, **kwargs: steps.append(args) or next_step(*args, **kwargs)
        eventually(lambda: len(set(tasks()) - before) == 1)
        (worker,) = set(tasks()) - before
        eventually(lambda: is_at_rest(worker))
        steps.clear()
        switches = tasks()[worker]
        time.sleep(2)  # being idle is the subject
        assert tasks()[worker] == switches
        assert steps == []
        del scheduler.next_step


def is_at_rest(task):
    """Whether a thread sleeps, as it did 0.1 s ago: the last step towards sleep takes no longer."""
    before = tasks()[task]
    time.sleep(0.1)
    return tasks()[task] == before


@pytest.mark.parametrize("kind", ["sync", "task", "thread"])
def test_the_server_sees_no_more_parallel_requests_than_max_in_flight(held, kind):
    options = {**OPTIONS, "base_url": held.url, "batch_size": 5, "max_in_flight": 3}

    most_workers = []

    def see_three(client):
        held.wait_until_holding(3)
        most_workers.append(client.stats().workers)
        held.answer()

    if kind == "sync":
        with Windback(**options) as client:
            track(client, 200)
            see_three(client)
            assert client.flush(15)
    else:

        async def main():
            async with AsyncWindback(**options, worker=kind) as client:
                await track_async(client, 200)
                await asyncio.get_running_loop().run_in_executor(None, see_three, client)
                assert await client.flush(15)
                return client

        client = asyncio.run(main())
    assert held.most == 3
    assert held.seen == 40
    assert most_workers == [3]
    assert client.stats().delivered == 200


def test_one_in_flight_is_one_in_flight(held):
    with Windback(**OPTIONS, base_url=held.url, batch_size=1, max_in_flight=1) as client:
        track(client, 30)
        held.wait_until_holding(1)
        held.answer()
        assert client.flush(15)
        assert client.stats().workers == 1
    assert held.most == 1


def test_a_second_worker_comes_only_when_a_full_batch_waits(held):
    with Windback(**OPTIONS, base_url=held.url, batch_size=10, flush_interval=0.001) as client:
        track(client, 1)
        held.wait_until_holding(1)
        track(client, 9)
        assert client.stats().workers == 1
        track(client, 1)
        assert client.stats().workers == 2
        held.wait_until_holding(2)
        track(client, 9)
        assert client.stats().workers == 2
        assert held.most == 2
        held.answer()
    assert client.stats().delivered == 20


def test_what_does_not_fill_a_batch_waits_for_the_worker_that_is_there(held):
    """It is due since long, but a second connection for a few events would cost more than it gives."""
    with Windback(**OPTIONS, base_url=held.url, batch_size=10, flush_interval=0.001) as client:
        track(client, 1)
        held.wait_until_holding(1)
        track(client, 9)
        held.answer(1)
        held.wait_until_seen(2)
        assert client.stats().workers == 1
        held.answer()


def test_spare_workers_go_and_come_back(held, monkeypatch, eventually):
    monkeypatch.setattr("windback.delivery.scheduler.SPARE_WORKER_S", 0.1)
    with Windback(**OPTIONS, base_url=held.url, batch_size=10, max_in_flight=4) as client:
        for _ in range(2):
            track(client, 40)
            held.wait_until_holding(4)
            assert client.stats().workers == 4
            held.answer(4)
            eventually(lambda: client.stats().workers == 1)
        held.answer()
    assert client.stats().delivered == 80
    assert client.stats().worker_deaths == 0


def test_all_workers_go_when_the_client_closes(server, eventually):
    before = (
        {each.name for each in Path("/proc/self/task").iterdir()}
        if Path("/proc/self/task").exists()
        else None
    )
    with Windback(**OPTIONS, base_url=server.url, batch_size=10) as client:
        track(client, 100)
    eventually(lambda: client.stats().workers == 0)
    if before is not None:
        eventually(lambda: {each.name for each in Path("/proc/self/task").iterdir()} <= before)


def test_a_batch_goes_when_it_is_full_without_waiting_for_the_interval(held):
    with Windback(**OPTIONS, base_url=held.url, batch_size=10, flush_interval=3600) as client:
        track(client, 9)
        assert held.seen == 0
        track(client, 1)
        held.wait_until_holding(1)
        held.answer()


def test_bytes_fill_a_batch_too(held):
    with Windback(
        **OPTIONS, base_url=held.url, flush_interval=3600, max_batch_bytes=5_000, max_event_bytes=4_000
    ) as client:
        client.track_event("login", JANE, {"text": "x" * 2_800})
        client.track_event("login", JANE, {"text": "x" * 2_800})
        held.wait_until_holding(1)
        held.answer()
        assert client.flush(10)
    assert held.seen == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the counts are those of Linux")
def test_idle_workers_do_not_wake_up(server, eventually, way):
    def waits():
        """How often each thread but this one has waited for anything."""
        return {
            task.name: line
            for task in Path("/proc/self/task").iterdir()
            if int(task.name) != threading.get_native_id()
            for line in (task / "status").read_text(encoding="ascii").splitlines()
            if line.startswith("voluntary")
        }

    def is_quiet():
        before = waits()
        time.sleep(0.5)  # what does not happen has no event to wait for
        return waits() == before

    with Windback(**OPTIONS, base_url=server.url, flush_interval=0.05) as client:
        track(client, 10)
        assert client.flush(10)
        assert client.stats().workers == 1
        eventually(is_quiet)
        track(client, 1)
        eventually(lambda: client.stats().delivered == 11)


# -- they die ------------------------------------------------------------------------------------

DEATHS = [ValueError("boom"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()]


@pytest.mark.parametrize("error", DEATHS, ids=lambda error: type(error).__name__)
def test_a_worker_that_dies_is_replaced_and_loses_nothing(server, monkeypatch, caplog, error, way):
    attempt = way.attempt
    deaths = [error, error]

    def fail(self, *args):
        if deaths:
            raise deaths.pop()
        return attempt(self, *args)

    monkeypatch.setattr(way, "attempt", fail)
    with Windback(**OPTIONS, base_url=server.url, batch_size=10) as client:
        track(client, 95)
        assert client.flush(10)
        stats = client.stats()
        assert (stats.worker_deaths, stats.delivered, stats.pending) == (2, 95, 0)
    assert numbers(server) == list(range(95))
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert type(error).__name__ in caplog.text


def test_the_next_event_starts_another_worker(server, monkeypatch, eventually, way):
    """Nobody flushes: an app that only tracks recovers as well."""
    attempt = way.attempt
    deaths = [SystemExit()]

    def fail(self, *args):
        if deaths:
            raise deaths.pop()
        return attempt(self, *args)

    monkeypatch.setattr(way, "attempt", fail)
    with Windback(**OPTIONS, base_url=server.url, flush_interval=0.001) as client:
        track(client, 1)
        eventually(lambda: client.stats().worker_deaths == 1 and client.stats().workers == 0)
        assert client.stats().pending == 1
        assert client.track_event("login", JANE, {"n": 1})
        eventually(lambda: client.stats().delivered == 2)
    assert numbers(server) == [0, 1]


def test_a_worker_that_dies_after_the_server_took_the_batch_repeats_it_under_the_same_key(
    server, monkeypatch, way
):
    attempt = way.attempt
    deaths = [SystemExit()]

    def fail(self, *args):
        answer = attempt(self, *args)
        if deaths:
            raise deaths.pop()
        return answer

    monkeypatch.setattr(way, "attempt", fail)
    with Windback(**OPTIONS, base_url=server.url) as client:
        track(client, 10)
        assert client.flush(10)
    counts = server.counts()
    assert (counts.events, counts.duplicates, counts.duplicate_events) == (10, 1, 10)


def test_a_task_that_dies_is_replaced_and_loses_nothing(server, monkeypatch):
    attempt = AsyncTransport.attempt
    deaths = [ValueError("boom"), MemoryError()]

    async def fail(self, *args):
        if deaths:
            raise deaths.pop()
        return await attempt(self, *args)

    monkeypatch.setattr(AsyncTransport, "attempt", fail)

    async def main():
        async with AsyncWindback(**OPTIONS, base_url=server.url, batch_size=10) as client:
            await track_async(client, 95)
            assert await client.flush(10)
            stats = client.stats()
            assert (stats.worker_deaths, stats.delivered, stats.pending) == (2, 95, 0)

    asyncio.run(main())
    assert numbers(server) == list(range(95))


@pytest.mark.parametrize("worker", ["sync", "task"])
def test_flush_ends_though_every_worker_dies(dead_url, monkeypatch, worker, way):
    """As where the certificates that the environment names are not there: no connection can even be made."""

    def fail(*_):
        message = "no such file"
        raise FileNotFoundError(message)

    monkeypatch.setattr(way, "__init__", fail)
    monkeypatch.setattr(AsyncTransport, "__init__", fail)
    if worker == "sync":
        client = Windback(**OPTIONS, base_url=dead_url)
        track(client, 3)
        patient, result = client.flush(0.3), client.flush()
        client.close(0.1)
    else:

        async def main():
            client = AsyncWindback(**OPTIONS, base_url=dead_url)
            await track_async(client, 3)
            results = await client.flush(0.3), await client.flush()
            await client.close(0.1)
            return (client, *results)

        client, patient, result = asyncio.run(main())
    assert (patient.pending, result.pending) == (3, 3)
    assert result.problem is not None
    stats = client.stats()
    assert stats.worker_deaths < 50  # no worker after the other, as fast as they can be started
    assert stats.accepted == stats.dropped + stats.pending == 3


def test_a_certificate_file_that_is_missing_is_named(run):
    code = """\
        from windback import Windback, WindbackError

        client = Windback(shutdown_timeout=0.5, max_retries=0)
        client.track_event("login", "jane@example.com")
        result = client.flush()
        assert not result and result.pending == 1
        print(result.problem)
        try:
            client.create_churn_event(customer_email="jane@example.com")
        except Exception as error:
            print(type(error).__name__)
    """
    ended = run(code, url="http://127.0.0.1:9/api/v1", SSL_CERT_FILE="/nowhere/certificates.pem")
    assert ended.status == 0
    assert "not delivered" in ended.err
    assert len(ended.out) == 2
    assert ended.out[0] != "None"


def test_a_worker_that_dies_wakes_a_flush_only_once(dead_url):
    """Another may end the same flush before the flusher got to run."""
    client = Windback(**OPTIONS, base_url=dead_url)
    scheduler = scheduler_of(client)
    workers = []
    start_by(client, lambda worker: workers.append(worker) or True)  # this test is the workers
    client.track_event("login", JANE)
    from windback.api.answer import Answer
    from windback.delivery.workers.threads import ThreadWaker

    flush = scheduler.begin_flush(ThreadWaker(), has_timeout=True)
    assert scheduler.next_step(workers[0], 0.0, ThreadWaker()).batch is not None
    scheduler.retire(workers[0], 0.0, died=True)
    assert scheduler.add_worker()
    assert scheduler.next_step(workers[1], 0.0, ThreadWaker()).batch is not None
    scheduler.settle(workers[1], Answer(200), clock.Moment(0.0, 0.0), gzipped=False)
    scheduler.put_down(workers[1])
    assert flush.done
    assert scheduler.end_flush(flush)
    client.close(0)


# -- they can't be started -----------------------------------------------------------------------


@pytest.fixture
def no_threads(monkeypatch):
    """A system that is out of threads. Returns what makes it have some again."""

    def refuse(*_, **__):
        message = "can't start new thread"
        raise RuntimeError(message)

    with monkeypatch.context() as patch:
        patch.setattr("_thread.start_new_thread", refuse)
        for name in ("_start_new_thread", "_start_joinable_thread"):
            patch.setattr(threading, name, refuse, raising=False)
        yield patch.undo


def test_the_caller_sends_at_flush_where_no_thread_can_be_started(server, no_threads):
    with Windback(**OPTIONS, base_url=server.url, batch_size=10) as client:
        track(client, 95)
        assert client.stats().workers == 0
        result = client.flush(10)
        assert result
        assert result.delivered == 95
        track(client, 5)
        assert client.flush()
        track(client, 5)
    assert client.stats().delivered == 105
    assert client.stats().workers == 0
    assert server.counts().events == 105


def test_workers_come_as_soon_as_threads_can_be_started_again(server, no_threads, eventually):
    with Windback(**OPTIONS, base_url=server.url, flush_interval=0.001) as client:
        track(client, 10)
        assert client.stats().workers == 0
        no_threads()
        tracked = 10

        def are_delivered():
            nonlocal tracked
            track(client, 1)
            tracked += 1
            return client.stats().delivered >= 10

        eventually(are_delivered)
        assert tracked < 1_000  # of a client that is used now and then, too
        assert client.flush()
        assert client.stats().delivered == tracked


def test_a_system_without_threads_is_asked_ten_times_a_second(server, monkeypatch):
    asked = []
    with Windback(**OPTIONS, base_url=server.url) as client:
        now_s = clock.now_s()
        with monkeypatch.context() as patch:
            patch.setattr(engine_of(client).threads, "start", asked.append)
            patch.setattr(clock, "now_s", lambda: now_s)
            track(client, 500)
            assert len(asked) == 1
            now_s += 0.1
            track(client, 500)
            assert len(asked) == 2


def test_a_flush_of_the_caller_obeys_its_timeout(silent_url, no_threads):
    client = Windback(**OPTIONS, base_url=silent_url)
    engine_of(client).connections.transport()
    track(client, 5)
    started_s = time.monotonic()
    result = client.flush(0.3)
    assert time.monotonic() - started_s <= 0.3 + SLACK_S
    assert result.pending == 5
    started_s = time.monotonic()
    client.close(0.3)
    assert time.monotonic() - started_s <= 0.3 + SLACK_S


@pytest.mark.parametrize("worker", ["task", "thread"])
def test_an_async_client_sends_where_no_thread_can_be_started(server, no_threads, worker):
    async def main():
        async with AsyncWindback(**OPTIONS, base_url=server.url, worker=worker, batch_size=10) as client:
            await track_async(client, 95)
            assert await client.flush(10)
            await track_async(client, 5)
        return client

    client = asyncio.run(main())
    assert client.stats().delivered == 100
    assert server.counts().events == 100


@pytest.mark.parametrize("kind", ["sync", "task", "thread"])
def test_the_exit_sends_where_no_thread_could_be_started(server, run, kind):
    code = f"""\
        import _thread, asyncio, threading
        from windback import AsyncWindback, Windback

        def refuse(*_, **__):
            raise RuntimeError("can't start new thread")

        _thread.start_new_thread = threading._start_new_thread = threading._start_joinable_thread = refuse

        if {kind!r} == "sync":
            client = Windback(batch_size=10)
            for n in range(95):
                client.track_event("login", "jane@example.com", {{"n": n}})
        else:
            client = AsyncWindback(batch_size=10, worker={kind!r})

            async def main():
                for n in range(95):
                    await client.track_event("login", "jane@example.com", {{"n": n}})

            asyncio.run(main())
    """
    ended = run(code, url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(95))


def test_a_loop_that_takes_no_task_is_asked_again(server, caplog):
    """A task factory may raise, and in Python 3.8 so may asyncio, where many threads have a loop."""
    refusals = [3]

    def refuse_at_first(loop, work, **options):
        if refusals[0]:
            refusals[0] -= 1
            raise IndexError("pop from empty list")
        return asyncio.Task(work, loop=loop, **options)

    async def main():
        client = AsyncWindback(**OPTIONS, base_url=server.url)
        asyncio.get_running_loop().set_task_factory(refuse_at_first)
        assert await client.track_event("login", JANE, {"n": 1})
        while not client.stats().delivered:  # the test's own time limit ends it
            await asyncio.sleep(0.01)
        await client.close()

    asyncio.run(main())
    assert refusals == [0]
    assert numbers(server) == [1]
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == [
        "a worker ended with IndexError; the next event starts another"
    ]


@pytest.mark.parametrize(
    "bound",
    [{"max_queue_size": 1}, {"max_queue_bytes": 1_000, "max_event_bytes": 500}],
    ids=["count", "bytes"],
)
def test_a_caller_who_waits_for_room_sleeps(held, bound):
    client = Windback(
        **OPTIONS, **bound, base_url=held.url, max_in_flight=1, overflow="block", block_timeout=0.5,
        flush_interval=0.001,
    )  # fmt: skip
    event = {"text": "x" * 300}  # two of them fit into the bytes, three don't
    assert client.track_event("login", JANE, event)
    held.wait_until_holding(1)
    assert client.track_event("login", JANE, event)
    started_s, cpu_s = time.monotonic(), time.thread_time()
    assert client.track_event("login", JANE, event) is False
    assert time.monotonic() - started_s >= 0.5
    assert time.thread_time() - cpu_s < 0.05
    held.answer()
    assert client.close(10)


def test_callers_who_gave_up_waiting_for_room_are_forgotten(held):
    """Else those who wait now would be woken after all of them."""
    client = Windback(
        **OPTIONS, base_url=held.url, batch_size=5, max_queue_size=5, max_in_flight=1, overflow="block",
        block_timeout=0.001,
    )  # fmt: skip
    track(client, 5)
    held.wait_until_holding(1)
    track(client, 5)
    for _ in range(50):
        assert client.track_event("login", JANE) is False
    assert not scheduler_of(client).parking.callers
    assert client.stats().refused == {"queue_full": 50}
    held.answer()
    assert client.close(10)
