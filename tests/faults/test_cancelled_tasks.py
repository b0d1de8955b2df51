"""Tasks of the client that others cancel: whatever was accepted is delivered all the same."""

from __future__ import annotations

import asyncio

import pytest
from tracking import JANE, OPTIONS, adds_up

from windback import AsyncWindback


def test_all_tasks_cancelled_together_lose_nothing_that_an_open_client_accepted(server):
    """The usual recipe of a program that shuts down: cancel all tasks, gather them, stop the loop."""
    clients = []

    async def serve():
        async with AsyncWindback(**OPTIONS, base_url=server.url) as client:
            clients.append(client)
            for n in range(10**6):
                await client.track_event("login", JANE, {"n": n})
                await asyncio.sleep(0.001)

    async def shut_down(loop):
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        loop.stop()

    async def shut_down_soon(loop):
        while not clients or clients[0].stats().accepted < 300:
            await asyncio.sleep(0.01)
        await shut_down(loop)

    loop = asyncio.new_event_loop()
    task = loop.create_task(serve())
    stopper = loop.create_task(shut_down_soon(loop))
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
    finally:
        loop.close()
    assert task.cancelled()
    assert stopper.done()
    assert left == set()
    seen = clients[0].stats()
    assert adds_up(seen)
    assert seen.accepted >= 300
    assert (seen.delivered, seen.dropped) == (seen.accepted, 0)
    assert server.counts().events == seen.accepted


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_client_in_a_cancelled_scope_delivers_before_it_closes(server, backend):
    import anyio

    clients = []

    async def main():
        with anyio.CancelScope() as scope:
            async with AsyncWindback(**OPTIONS, base_url=server.url, flush_interval=3600) as client:
                clients.append(client)
                for n in range(250):
                    await client.track_event("login", JANE, {"n": n})
                await client.flush(10)
                for n in range(50):
                    await client.track_event("login", JANE, {"n": n})
                scope.cancel()
                await anyio.sleep(1)

    anyio.run(main, backend=backend)
    seen = clients[0].stats()
    assert (seen.accepted, seen.delivered, seen.dropped) == (300, 300, 0)


OTHER_TASKS = "tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_program_that_waits_for_all_tasks_of_its_loop_ends(server, run, loop):
    """Each time: after a flush, while an event waits for its interval, and after a plain call."""
    code = f"""
    import asyncio
    import {loop}
    from windback import AsyncWindback

    async def drain():
        {OTHER_TASKS}
        await asyncio.gather(*tasks)
        {OTHER_TASKS}
        return tasks

    async def main():
        client = AsyncWindback(flush_interval=3600, timeout=60)
        for n in range(3):
            assert await client.track_event("login", "jane@example.com", {{"n": n}})
            print(len(await drain()), client.stats().pending, end=" ")
            assert await client.flush(60)
            print(len(await drain()), client.stats().pending, end=" ")
            await client.create_churn_event("jane@example.com")
            print(len(await drain()))
        await client.track_event("login", "jane@example.com", {{"n": 3}})

    loop = {loop}.new_event_loop()
    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    """
    ended = run(code, "-W", "error", url=server.url)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == ["0 1 0 0 0"] * 3
    assert server.counts().events == 4


def test_a_worker_that_sleeps_in_a_closed_loop_is_replaced(server, run):
    """The loop was closed without notice; the next event, in another loop, must not wait for a flush."""
    code = """
    import asyncio
    from windback import AsyncWindback

    client = AsyncWindback(flush_interval=0.01)

    async def track_and_idle():
        await client.track_event("login", "jane@example.com", {"n": 0})
        assert await client.flush(60)
        await asyncio.sleep(0.5)

    async def track_and_wait():
        await client.track_event("login", "jane@example.com", {"n": 1})
        while client.stats().pending:
            await asyncio.sleep(0.01)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(track_and_idle())
    loop.close()
    asyncio.run(track_and_wait())
    print(client.stats().delivered)
    """
    # Who closes a loop without `shutdown_asyncgens` hears of the connections from asyncio.
    ended = run(code, "-W", "ignore", url=server.url)
    assert (ended.status, ended.out, ended.err) == (0, ["2"], "")


def test_tasks_of_the_client_have_names(server):
    async def main():
        async with AsyncWindback(**OPTIONS, base_url=server.url) as client:
            await client.track_event("login", JANE)
            own = {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}
            assert await client.flush(10)
            return own

    assert asyncio.run(main()) == {"windback-worker"}
