"""AsyncWindback in event loops of every kind: one, several, none yet, gone; and cancelled callers."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import time

import anyio
import pytest
import trio
from inside import scheduler_of, state_of_loop
from tracking import JANE, OPTIONS, adds_up, numbers

from windback import AsyncWindback

each_backend = pytest.mark.parametrize("backend", ["asyncio", "trio"])
each_worker = pytest.mark.parametrize("worker", ["task", "thread"])


@pytest.fixture
def loop(backend):
    """Run an async function in a new event loop, as its users do."""

    def asyncio_run(main, *args):
        async def quiet():
            # Debug mode complains of whatever holds the loop for 0.1 s; a busy machine does.
            asyncio.get_running_loop().slow_callback_duration = 10
            return await main(*args)

        return asyncio.run(quiet(), debug=True)

    return {"asyncio": asyncio_run, "trio": trio.run}[backend]


@pytest.fixture(autouse=True)
def _nothing_left_to_complain_about(caplog):
    """No "Task was destroyed", no unclosed transport: a warning that nobody can raise fails the test too."""
    caplog.set_level(logging.INFO, "asyncio")
    yield
    gc.collect()
    for name in ("asyncio", "trio"):
        records = [
            record for record in caplog.records if record.name == name and record.levelno > logging.INFO
        ]
        assert [record.getMessage() for record in records] == []


async def track(client, numbers):
    for n in numbers:
        assert await client.track_event("login", JANE, {"n": n})


# -- one loop ------------------------------------------------------------------------------------


@each_backend
@each_worker
@pytest.mark.parametrize("managed", [True, False], ids=["async-with", "bare"])
def test_everything_arrives(server, loop, worker, managed):
    async def main():
        client = AsyncWindback(**OPTIONS, base_url=server.url, worker=worker, batch_size=20)
        if managed:
            async with client:
                await track(client, range(250))
        else:
            await track(client, range(250))
            assert await client.flush(10)
        return client.stats()

    stats = loop(main)
    assert (stats.accepted, stats.delivered, stats.worker_deaths) == (250, 250, 0)
    assert numbers(server) == list(range(250))


def tasks(backend):
    """How many tasks the running loop has, its own included."""
    if backend == "asyncio":
        return len(asyncio.all_tasks())
    return sum(len(nursery.child_tasks) for nursery in trio.lowlevel.current_root_task().child_nurseries)


@each_backend
def test_a_thread_drains_and_no_task_does(server, loop, backend, eventually):
    async def main():
        before = tasks(backend)
        client = AsyncWindback(**OPTIONS, base_url=server.url, worker="thread", flush_interval=0.01)
        await track(client, range(10))
        assert client.stats().workers == 1
        eventually(lambda: client.stats().delivered == 10)  # it needs no turn of this loop
        assert tasks(backend) == before
        await client.close()

    loop(main)


@each_backend
@each_worker
def test_closing_leaves_no_task(server, loop, backend, worker):
    async def main():
        before = tasks(backend)
        async with AsyncWindback(**OPTIONS, base_url=server.url, worker=worker) as client:
            await track(client, range(10))
            await client.create_churn_event(customer_email=JANE)
        with anyio.fail_after(5):
            while tasks(backend) > before:
                await anyio.sleep(0)

    loop(main)


@each_backend
@each_worker
def test_an_async_with_that_raises_delivers(server, loop, worker):
    async def main():
        async with AsyncWindback(**OPTIONS, base_url=server.url, worker=worker) as client:
            await track(client, range(10))
            raise LookupError

    with pytest.raises(LookupError):
        loop(main)
    assert numbers(server) == list(range(10))


@each_backend
def test_events_of_many_tasks(server, loop):
    async def main():
        async with AsyncWindback(**OPTIONS, base_url=server.url, batch_size=10) as client:
            async with anyio.create_task_group() as group:
                for start in range(0, 400, 20):
                    group.start_soon(track, client, range(start, start + 20))
                    await anyio.sleep(0)

    loop(main)
    assert numbers(server) == list(range(400))


# -- several loops -------------------------------------------------------------------------------


@each_worker
@pytest.mark.parametrize("flush", [True, False], ids=["flush", "leave"])
def test_one_client_in_one_loop_after_the_other(server, worker, flush):
    """It is made outside of any; what one loop leaves behind the next one sends."""
    client = AsyncWindback(**OPTIONS, base_url=server.url, worker=worker, batch_size=20)

    async def main(start):
        await track(client, range(start, start + 50))
        if flush:
            assert await client.flush(10)
            assert client.stats().delivered == start + 50

    for start in range(0, 150, 50):
        asyncio.run(main(start), debug=True)
    trio.run(main, 150)
    asyncio.run(main(200))

    async def end():
        assert await client.close(10)

    trio.run(end)
    assert numbers(server) == list(range(250))
    assert client.stats().worker_deaths == 0


@each_worker
@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_a_loop_that_was_closed_over_its_tasks_holds_up_nothing(server, worker, max_in_flight):
    """Nobody cancelled them, so the worker there neither works nor ends."""
    client = AsyncWindback(
        **OPTIONS, base_url=server.url, worker=worker, max_in_flight=max_in_flight, flush_interval=3600
    )

    async def main(start):
        await track(client, range(start, start + 50))

    abandoned = [asyncio.new_event_loop() for _ in range(max_in_flight + 1)]
    for n, old in enumerate(abandoned):
        old.run_until_complete(main(n * 50))
        old.close()
    expected = len(abandoned) * 50

    async def end():
        await track(client, range(expected, expected + 50))
        assert await client.flush(10)
        assert await client.close()

    asyncio.run(end())
    assert numbers(server) == list(range(expected + 50))
    # A pending task of a closed loop complains when it is collected; these live on in the client.
    assert all(old.is_closed() for old in abandoned)


@each_worker
def test_a_loop_that_stands_still_between_two_runs(server, worker):
    """As notebooks and old code do: one loop, run again and again."""
    client = AsyncWindback(**OPTIONS, base_url=server.url, worker=worker, flush_interval=0.01)
    loop = asyncio.new_event_loop()
    for start in range(0, 150, 50):
        loop.run_until_complete(track(client, range(start, start + 50)))
    assert loop.run_until_complete(client.flush(10))
    assert loop.run_until_complete(client.close())
    loop.close()
    assert numbers(server) == list(range(150))


@each_worker
def test_one_client_in_loops_of_several_threads_at_the_same_time(server, worker):
    client = AsyncWindback(**OPTIONS, base_url=server.url, worker=worker, batch_size=10)
    together = threading.Barrier(4)
    failures = []

    async def main(start):
        together.wait()
        for n in range(start, start + 100):
            await track(client, [n])
            await asyncio.sleep(0)
        assert await client.flush(20)

    def run(start):
        try:
            asyncio.run(main(start))
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=run, args=(start,)) for start in range(0, 400, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []

    async def end():
        assert await client.close(10)

    asyncio.run(end())
    assert numbers(server) == list(range(400))
    assert adds_up(client.stats())


def test_loops_that_begin_at_the_same_time_keep_what_each_has():
    """Connections and workers of a loop end with it, so a client must not forget any of them."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    forgotten = []

    def run(client, together):
        async def main():
            together.wait()
            mine = state_of_loop(client)
            together.wait()
            if state_of_loop(client) is not mine:
                forgotten.append(mine)

        try:
            asyncio.run(main())
        except IndexError:
            # In Python 3.8 all loops keep their tasks in one set, which is not made for several threads.
            together.abort()
            assert sys.version_info < (3, 9)
        except threading.BrokenBarrierError:
            pass  # as above, in another thread

    try:
        for _ in range(200):
            client, together = AsyncWindback(**OPTIONS), threading.Barrier(8)
            threads = [threading.Thread(target=run, args=(client, together)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval_s)
    assert forgotten == []


def test_a_loop_that_ends_while_others_live_leaves_its_work_to_them(server):
    client = AsyncWindback(**OPTIONS, base_url=server.url, batch_size=10, flush_interval=3600)

    async def outer():
        loop = asyncio.get_running_loop()
        thread_main = lambda: asyncio.run(track(client, range(95)))  # noqa: E731
        await loop.run_in_executor(None, thread_main)
        assert await client.flush(10)
        await client.close()

    asyncio.run(outer())
    assert numbers(server) == list(range(95))


# -- cancelled -----------------------------------------------------------------------------------


@each_backend
@each_worker
def test_a_cancelled_flush_loses_nothing(held, loop, worker):
    async def main():
        client = AsyncWindback(**OPTIONS, base_url=held.url, worker=worker, batch_size=10)
        await track(client, range(95))
        for _ in range(3):
            with anyio.move_on_after(0.02) as scope:
                await client.flush()
            assert scope.cancelled_caught
            assert adds_up(client.stats())
            assert client.stats().pending == 95
        assert not scheduler_of(client).flushes.are_urgent
        held.answer()
        assert await client.flush(10)
        assert client.stats().delivered == 95
        assert await client.close()

    loop(main)
    assert held.seen == 10


@each_backend
@each_worker
def test_one_of_two_flushes_is_cancelled(held, loop, worker):
    async def main():
        async with AsyncWindback(**OPTIONS, base_url=held.url, worker=worker, batch_size=10) as client:
            await track(client, range(95))
            results = []

            async def flush():
                results.append(await client.flush(10))

            async with anyio.create_task_group() as group:
                group.start_soon(flush)
                with anyio.move_on_after(0.05):
                    await client.flush()
                held.answer()
            assert [bool(result) for result in results] == [True]

    loop(main)


@each_backend
@each_worker
def test_a_cancelled_close_loses_nothing_and_can_be_repeated(held, loop, worker):
    async def main():
        client = AsyncWindback(**OPTIONS, base_url=held.url, worker=worker, batch_size=10)
        await track(client, range(95))
        with anyio.move_on_after(0.05) as scope:
            await client.close()
        assert scope.cancelled_caught
        stats = client.stats()
        assert (stats.pending, stats.dropped) == (95, 0)
        held.answer()
        result = await client.close(10)
        assert result
        assert client.stats().delivered == 95
        return client.stats()

    assert adds_up(loop(main))


@each_backend
@each_worker
def test_an_async_with_that_is_cancelled_loses_nothing(server, run, backend, worker):
    """Its close can't wait any more, so the events go at the end of the process."""
    code = f"""\
        import anyio
        from windback import AsyncWindback

        async def main():
            with anyio.CancelScope() as scope:
                async with AsyncWindback(worker={worker!r}, batch_size=10) as client:
                    for n in range(95):
                        await client.track_event("login", "jane@example.com", {{"n": n}})
                    scope.cancel()
                    await anyio.sleep(3600)
            stats = client.stats()
            assert stats.accepted == 95 == stats.delivered + stats.pending, stats

        anyio.run(main, backend={backend!r})
    """
    ended = run(code, "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(95))


@each_backend
@each_worker
def test_a_cancelled_caller_who_waits_for_room_was_not_accepted(held, loop, worker):
    """And holds up none of those who wait behind it."""

    async def main():
        client = AsyncWindback(
            **OPTIONS, base_url=held.url, worker=worker, batch_size=5, max_queue_size=5, max_in_flight=1,
            overflow="block", block_timeout=3600,
        )  # fmt: skip
        answers = []

        async def one():
            answers.append(await client.track_event("login", JANE))

        async def waiting(count):
            with anyio.fail_after(10):
                while len(scheduler_of(client).parking.callers) < count:
                    await anyio.sleep(0)

        await track(client, range(5))
        with anyio.fail_after(10):
            while held.seen < 1:
                await anyio.sleep(0.001)
        await track(client, range(5))
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as cancelled:
                    for _ in range(20):
                        cancelled.start_soon(one)
                    await waiting(20)
                    for _ in range(4):
                        group.start_soon(one)
                    await waiting(24)
                    assert answers == []
                    scope.cancel()
            assert client.stats().accepted == 10
            held.answer(1)  # room for five
            with anyio.fail_after(10):
                while len(answers) < 4:
                    await anyio.sleep(0.001)
        assert answers == [True] * 4
        held.answer()
        assert await client.close(10)
        return client.stats()

    stats = loop(main)
    assert (stats.accepted, stats.delivered) == (14, 14)


# On a busy machine they are cancelled while they connect: see `test_event_loop_libraries`.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
)
@each_backend
def test_a_cancelled_plain_call_disturbs_no_event(held, loop):
    async def main():
        async with AsyncWindback(**OPTIONS, base_url=held.url, batch_size=10) as client:
            await track(client, range(35))
            for _ in range(3):
                with anyio.move_on_after(0.02) as scope:
                    await client.create_churn_event(customer_email=JANE)
                assert scope.cancelled_caught
            assert client.stats().pending == 35
            held.answer()
            assert await client.flush(10)
            assert client.stats().delivered == 35
            await client.track_events([{"event": "login", "customer_email": JANE}])

    loop(main)
    gc.collect()  # what asyncio forgot shows here, and in no other test


@each_backend
def test_cancelled_callers_at_random_moments(server, loop):
    """Whatever they were in the middle of, every event that was accepted arrives once."""
    server.faults([{"path": "/track", "latency": 0.005}])
    accepted = []

    async def main():
        client = AsyncWindback(
            **OPTIONS,
            base_url=server.url,
            batch_size=5,
            max_queue_size=20,
            overflow="block",
            block_timeout=30,
        )

        async def work(start):
            for n in range(start, start + 20):
                assert await client.track_event("login", JANE, {"n": n})
                accepted.append(n)
                if n % 5 == 0:
                    await client.flush()

        for turn in range(15):
            with anyio.move_on_after(0.003 * turn):
                async with anyio.create_task_group() as group:
                    for start in range(5):
                        group.start_soon(work, (turn * 5 + start) * 20)
            assert adds_up(client.stats())
        assert await client.close(10)
        return client.stats()

    stats = loop(main)
    assert stats.delivered == stats.accepted == len(accepted)
    assert numbers(server) == sorted(accepted)
    assert 0 < len(accepted) < 1_500


def test_a_timeout_around_a_flush_as_asyncio_has_it(held):
    async def main():
        async with AsyncWindback(**OPTIONS, base_url=held.url) as client:
            await track(client, range(5))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.flush(), 0.05)
            task = asyncio.create_task(client.flush())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            held.answer()

    started_s = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started_s < 5
    assert held.seen == 1
