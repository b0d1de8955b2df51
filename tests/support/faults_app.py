"""The program of one cell of `tests/faults_table.py`: it tracks numbered events while a fault happens.

    python faults_app.py '{"action": "track", "kind": "thread", "url": …}'

It prints a line of JSON at each look: the counters, and how many calls of track_event returned True.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time

import windback
from windback.relay import Relay

SPEC = json.loads(sys.argv[1])
EVENTS = SPEC["events"]
IS_ASYNC = SPEC["is_async"]
#: How each call ended. A list, because a handler that counts may interrupt `+= 1`, but not `append`.
TOLD = []


def make():
    options = dict(SPEC["options"], api_key=SPEC["key"], base_url=SPEC["url"], worker=SPEC["worker"])
    if SPEC["journal"]:
        options["journal"] = SPEC["journal"]
    if SPEC["action"] == "foreign client":
        options["http_client"] = raising_client()
    return (windback.AsyncWindback if IS_ASYNC else windback.Windback)(batch_size=10, **options)


def raising_client():
    import httpx

    if not IS_ASYNC:
        return httpx.Client(event_hooks={"response": [lambda response: response.raise_for_status()]})

    async def check(response):
        response.raise_for_status()

    return httpx.AsyncClient(event_hooks={"response": [check]})


async def done(value):
    """Return the result of a method of either client."""
    return await value if asyncio.iscoroutine(value) else value


async def track(client, number):
    is_accepted = await done(client.track_event("login", "jane@example.com", {"n": number}))
    TOLD.append("accepted" if is_accepted else "refused")


async def track_all(client, numbers):
    for number in numbers:
        await track(client, number)


async def flush(client):
    """Flush until all is delivered: a flush returns early while something holds delivery up."""
    deadline_s = time.monotonic() + SPEC["flush_s"]
    while not await done(client.flush(SPEC["flush_s"])) and time.monotonic() < deadline_s:
        await asyncio.sleep(0.1)


def say(client, name):
    stats = client.stats()
    outcomes = {key: getattr(stats, key) for key in ("delivered", "rejected", "dropped", "pending")}
    counts = {"accepted": stats.accepted, **outcomes, "problem": stats.problem}
    told = {answer: TOLD.count(answer) for answer in ("accepted", "refused", "interrupted")}
    print(json.dumps({"name": name, "told": told, "counts": counts}), flush=True)


# -- what happens while it tracks -------------------------------------------------------------------


async def plainly(client):
    await track_all(client, range(EVENTS))


async def and_forks(client):
    """Fork in the middle: the child tracks events of its own and ends as a program does."""
    await track_all(client, range(EVENTS // 2))
    child = os.fork()
    if child == 0:
        TOLD.clear()
        await track_all(client, range(EVENTS, EVENTS + 20))
        client.close(30)  # on a busy machine the child takes seconds to import its HTTP client
        say(client, "child")
        os._exit(0)
    os.waitpid(child, 0)  # noqa: ASYNC222 - there is no other task
    await track_all(client, range(EVENTS // 2, EVENTS))


async def from_a_signal_handler(client):
    """A handler tracks every 2 ms, also in the middle of a call."""
    numbers = iter(range(EVENTS, 2 * EVENTS))

    def handle(*_):
        number = next(numbers, None)
        if number is None:
            return
        # A handler can't await; `track_event` of an AsyncWindback accepts before it first waits.
        call = client.track_event("login", "jane@example.com", {"n": number})
        if asyncio.iscoroutine(call):
            try:
                call.send(None)
            except StopIteration as answer:
                call = answer.value
        TOLD.append("accepted" if call is True else "refused")

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    for number in range(EVENTS):
        await track(client, number)
        time.sleep(0.001)  # noqa: ASYNC251 - the signal comes in it
    signal.setitimer(signal.ITIMER_REAL, 0)


class InterruptionError(Exception):
    """Raised by a signal handler, as a soft time limit does."""


async def interrupted(client):
    """A handler raises every 2 ms, wherever the main thread is."""
    can_raise = False

    def handle(*_):
        nonlocal can_raise
        if can_raise:
            can_raise = False  # once for each call
            raise InterruptionError

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    for number in range(EVENTS):
        try:
            can_raise = True
            is_accepted = await done(client.track_event("login", "jane@example.com", {"n": number}))
            time.sleep(0.001)  # noqa: ASYNC251 - the signal comes in it
            can_raise = False
        except InterruptionError:  # this event may have been accepted or not
            can_raise = False
            TOLD.append("interrupted")
        else:
            TOLD.append("accepted" if is_accepted else "refused")
    signal.setitimer(signal.ITIMER_REAL, 0)


async def in_cancelled_tasks(client):
    """The usual end of a program with tasks: cancel all of them, and wait."""
    await track_all(client, range(EVENTS))
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def in_many_clients(client):
    """A client for each call, as in a view that makes its own."""
    own = [make() for _ in range(6)]
    for number in range(EVENTS):
        await track(own[number % 6], number)
    for each in own:
        await done(each.flush(20))
        await done(each.close())


WAYS = {
    "fork": and_forks,
    "handler": from_a_signal_handler,
    "interrupt": interrupted,
    "cancel": in_cancelled_tasks,
    "foreign client": plainly,
}


async def main():
    action = SPEC["action"]
    client = make()
    if action == "next":  # the next process with this journal
        await flush(client)
        say(client, "end")
        await done(client.close())
        return
    await WAYS.get(action, plainly)(client)
    say(client, "tracked")
    if action == "wait":  # for the signal that ends it
        while True:
            await asyncio.sleep(0.05)
    if action == "end":  # in order, but without a word to the client
        return
    await flush(client)
    say(client, "flushed")
    await done(client.close(SPEC["close_s"]))
    # A batch that is in a request at that moment is settled when its answer is there.
    deadline_s = time.monotonic() + 5
    while client.stats().pending and SPEC["is_in_memory"] and time.monotonic() < deadline_s:
        await asyncio.sleep(0.02)
    say(client, "end")


def relay():
    there = Relay(SPEC["journal"], SPEC["key"], base_url=SPEC["url"])
    threading.Thread(target=lambda: (sys.stdin.read(), there.stop()), daemon=True).start()
    there.run()


if __name__ == "__main__":
    if SPEC["action"] == "relay":
        relay()
    else:
        asyncio.run(main())
