"""Every kind of worker and queue, and every feature: each pair works as all others do, or says why not."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple

import pytest
from relays import running
from tracking import JANE, adds_up, numbers

from windback import AsyncWindback, ClosedError, ConfigurationError, Windback, WindbackError, scrub
from windback.relay import BrokerRelay, Relay

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")


LINE = (
    "{} raised RuntimeError: no reason; it is called for later events as well, and further errors are only "
    "counted (stats().hook_errors)"
)


class Kind(NamedTuple):
    """A client, and what sends its events on."""

    make: type
    options: Dict[str, object]
    journal: bool = False
    broker: bool = False
    #: No process can be started, so a thread does what the sender process would do.
    in_thread: bool = False

    @property
    def is_async(self):
        return self.make is AsyncWindback

    @property
    def has_relay(self):
        return self.broker or self.options.get("worker", "") is None


KINDS = {
    "thread": Kind(Windback, {"worker": "thread"}),
    "journal": Kind(Windback, {}, journal=True),
    "process": Kind(Windback, {"worker": "process"}),
    "process in a thread": Kind(Windback, {"worker": "process"}, in_thread=True),
    "relay": Kind(Windback, {"worker": None}, journal=True),
    "broker": Kind(Windback, {}, broker=True),
    "process and broker": Kind(Windback, {"worker": "process"}, broker=True),
    "journal and broker": Kind(Windback, {}, journal=True, broker=True),
    "task": Kind(AsyncWindback, {"worker": "task"}),
    "thread of a loop": Kind(AsyncWindback, {"worker": "thread"}),
    "journal of a loop": Kind(AsyncWindback, {"worker": "task"}, journal=True),
    "process of a loop": Kind(AsyncWindback, {"worker": "process"}),
    "relay of a loop": Kind(AsyncWindback, {"worker": None}, journal=True),
    "broker of a loop": Kind(AsyncWindback, {"worker": "task"}, broker=True),
}


class World:
    """One kind, with a server; and with a relay where the kind has one."""

    def __init__(self, kind: Kind, server, folder: Path, key: str, redis_url: str, monkeypatch) -> None:
        self.kind = kind
        self._monkeypatch = monkeypatch
        self.server = server
        self.folder = folder
        self.key = key
        self.options: Dict[str, object] = {"api_key": key, "base_url": server.url, "flush_interval": 0.01}
        self.options.update(kind.options)
        if kind.journal:
            self.options["journal"] = str(folder)
        if kind.broker:
            self.options["broker"] = redis_url

    def client(self, **options):
        if self.kind.in_thread:
            self._monkeypatch.setattr(sys, "executable", "")
        return self.kind.make(**{**self.options, **options})

    def relay(self, **options):
        shared = {"base_url": self.server.url, **options}
        if self.kind.broker:
            return BrokerRelay(self.options["broker"], self.key, **shared)
        return Relay(self.folder, self.key, flush_interval=0.01, **shared)

    @contextlib.contextmanager
    def relaying(self, **options) -> Iterator[object]:
        """Run a relay, where there is one, while a block of code runs."""
        if not self.kind.has_relay:
            yield None
            return
        with running(self.relay(**options)) as relay:
            yield relay


@pytest.fixture(params=KINDS)
def world(request, server, tmp_path, mark, monkeypatch):
    kind = KINDS[request.param]
    redis_url = request.getfixturevalue("redis_server").url if kind.broker else ""
    return World(kind, server, tmp_path / "journal", f"sk_test_{mark}", redis_url, monkeypatch)


async def done(value):
    """Return what a method of either client returns."""
    return await value if asyncio.iscoroutine(value) else value


def begin(value):
    """Run a coroutine up to where it first waits: a hook, which can't await, gets its error all the same."""
    if asyncio.iscoroutine(value):
        with contextlib.closing(value):
            value.send(None)


async def track(client, wanted):
    for n in wanted:
        assert await done(client.track_event("login", JANE, {"n": n}))


def hook_lines(caplog):
    return [each.getMessage() for each in caplog.records if " raised " in each.getMessage()]


def test_all_arrives_once_and_the_numbers_agree(world, eventually):
    async def main():
        client = world.client()
        await track(client, range(25))
        with world.relaying():
            result = await done(client.flush(20))
            assert (bool(result), result.pending, result.problem) == (True, 0, None)
            stats = client.stats()
            assert (stats.accepted, stats.delivered, stats.rejected, stats.dropped) == (25, 25, 0, 0)
            assert (stats.pending, stats.refused, stats.hook_errors) == (0, {}, 0)
            eventually(lambda: len(world.server.events()) == 25)
        await track(client, range(25, 30))
        with world.relaying():
            assert await done(client.close(20)) or world.kind.has_relay
            eventually(lambda: len(world.server.events()) == 30)
        stats = client.stats()
        assert stats.accepted == 30
        assert adds_up(stats)

    asyncio.run(main())
    assert numbers(world.server) == list(range(30))


def test_before_send(world, eventually, caplog):
    def before_send(event):
        n = event["properties"]["n"]
        if n % 3 == 1:
            return None
        if n % 3 == 2:
            raise RuntimeError("no reason")
        return {**event, "properties": {"n": n + 100}}

    async def main():
        client = world.client(before_send=before_send)
        for n in range(9):
            assert await done(client.track_event("login", JANE, {"n": n})) is (n % 3 == 0)
        stats = client.stats()
        assert (stats.accepted, stats.hook_errors) == (3, 3)
        assert stats.refused == {"before_send": 3, "before_send_error": 3}
        with world.relaying():
            assert await done(client.flush(20))
            eventually(lambda: len(world.server.events()) == 3)
            await done(client.close(20))
        assert client.stats().hook_errors == 3

    asyncio.run(main())
    assert numbers(world.server) == [100, 103, 106]
    assert hook_lines(caplog) == [LINE.format("before_send")]


def test_scrubbers(world, eventually, caplog):
    """Nothing private reaches the server, nor a file or a Redis on the way."""

    def fails(text, place):
        if text == "fail":
            raise RuntimeError("no reason")
        return text

    async def main():
        client = world.client(scrub=[*scrub.STANDARD, fails])
        cards = {"note": "4111 1111 1111 1111", "password": "hunter2", "mail": "bob@example.com"}
        assert await done(client.track_event("login", JANE, {"n": 0, **cards}))
        assert await done(client.track_event("login", JANE, {"n": 1, "deep": [{"note": "fail"}]}))
        for each in world.folder.rglob("*") if world.kind.journal else ():
            assert not each.is_file() or b"hunter2" not in each.read_bytes()
        with world.relaying():
            assert await done(client.flush(20))
            eventually(lambda: len(world.server.events()) == 2)
            await done(client.close(20))
        assert (client.stats().accepted, client.stats().hook_errors) == (2, 1)

    asyncio.run(main())
    first, second = (each.properties for each in world.server.events())
    assert first == {"n": 0, "note": "[card]", "password": "[scrubbed]", "mail": "[email]"}
    assert second == {"n": 1, "deep": [{"note": "[scrubbed]"}]}
    assert {each.customer_email for each in world.server.events()} == {JANE}
    assert hook_lines(caplog) == [LINE.format("scrub")]


def with_hook(world, hook):
    """Return a client and the options of a relay: on_delivery is given to what delivers."""
    if world.kind.options.get("worker", "") is None:
        return world.client(batch_size=5), {"on_delivery": hook}
    return world.client(batch_size=5, on_delivery=hook), {}


def test_on_delivery(world, eventually, caplog):
    reports: List[object] = []

    def on_delivery(report):
        reports.append(report)
        raise RuntimeError("no reason")

    async def main():
        client, options = with_hook(world, on_delivery)
        await track(client, range(10))
        with world.relaying(**options) as relay:
            assert await done(client.flush(20))
            counted = relay if options else client
            eventually(lambda: sum(each.count for each in reports) == 10)
            eventually(lambda: counted.stats().hook_errors == len(reports))
            await done(client.close(20))

    asyncio.run(main())
    assert {(each.outcome, each.reason) for each in reports} == {("delivered", "ok")}
    sent = sorted(event["properties"]["n"] for each in reports for event in each.events)
    assert sent == list(range(10))
    assert hook_lines(caplog) == [LINE.format("on_delivery")]


def refused(errors, waiting):
    """Return an on_delivery that waits, by each of *waiting*."""

    def on_delivery(_):
        for wait in waiting:
            try:
                begin(wait())
            except WindbackError as error:
                errors.append(error)

    return on_delivery


def test_waiting_inside_on_delivery_is_refused_and_nothing_stops(world, eventually):
    errors: List[WindbackError] = []
    waiting: List[object] = []

    async def main():
        client, options = with_hook(world, refused(errors, waiting))
        await track(client, range(3))
        with world.relaying(**options) as relay:
            waiting[:] = [relay.drain, relay.close] if options else [client.flush, client.close]
            await track(client, range(3, 6))
            await done(client.flush(20))
            eventually(lambda: len(errors) >= 2)
            # Refused, so nothing was closed.
            await track(client, range(6, 9))
            assert await done(client.flush(20))
            eventually(lambda: len(world.server.events()) == 9)
            waiting.clear()
            await done(client.close(20))

    asyncio.run(main())
    assert {error.code for error in errors} == {"FLUSH_IN_HOOK"}
    assert all("would wait for themselves" in str(error) for error in errors)


@pytest.mark.parametrize("world", ["broker"], indirect=True)
def test_waiting_inside_the_on_delivery_of_a_relay_of_a_broker_is_refused(world, server, eventually):
    errors: List[WindbackError] = []
    waiting: List[object] = []
    with world.client() as client, world.relaying(on_delivery=refused(errors, waiting)) as relay:
        waiting[:] = [relay.drain, relay.close]
        assert client.track_event("login", JANE, {"n": 1})
        eventually(lambda: len(errors) >= 2)
        assert client.track_event("login", JANE, {"n": 2})
        eventually(lambda: len(server.events()) == 2)
        waiting.clear()
    assert {error.code for error in errors} == {"FLUSH_IN_HOOK"}


def test_a_task_that_on_delivery_starts_may_wait(server):
    flushes = []

    async def main():
        client = AsyncWindback(
            "sk_test_1",
            base_url=server.url,
            on_delivery=lambda _: flushes.append(asyncio.ensure_future(client.flush(20))),
        )
        await track(client, range(3))
        assert await client.flush(20)
        assert all(await asyncio.gather(*flushes))
        await client.close(20)

    asyncio.run(main())
    assert flushes


def test_waiting_inside_before_send_is_allowed(world, eventually):
    """It runs in the caller, whom no worker waits for."""
    results = []

    def before_send(event):
        if event["event"] == "flush":
            waits = client.flush(20)
            results.append(asyncio.ensure_future(waits) if world.kind.is_async else waits)
        if event["event"] == "close":
            waits = client.close(20)
            results.append(asyncio.ensure_future(waits) if world.kind.is_async else waits)
        return event

    client = world.client(before_send=before_send)

    async def main():
        with world.relaying():
            await track(client, [0])
            assert await done(client.track_event("flush", JANE, {"n": 1}))
            last = await done(client.track_event("close", JANE, {"n": 2}))
            results[:] = [await each if asyncio.isfuture(each) else each for each in results]
            stats = client.stats()
            assert last is (not stats.refused.get("closed")) is world.kind.is_async
            eventually(lambda: len(world.server.events()) == stats.accepted)
            await done(client.close(20))

    asyncio.run(main())
    assert len(results) == 2
    assert results[0]


def test_a_copy_with_other_options_is_the_same_client(world, eventually):
    async def main():
        client = world.client(flush_interval=60)
        copy = client.with_options(timeout=20, max_retries=0)
        await track(client, range(2))
        await track(copy, range(2, 4))
        assert client.stats().accepted == copy.stats().accepted == 4
        assert (await done(copy.track_events([{"event": "now", "customer_email": JANE}]))).sent == 1
        assert world.server.counts().events == 1
        with world.relaying():
            assert await done(copy.flush(20))
            eventually(lambda: world.server.counts().events == 5)
            await done(copy.close(20))
        with pytest.raises(ClosedError):
            await done(client.flush(20))
        assert await done(client.track_event("login", JANE)) is False
        assert client.stats().refused == {"closed": 1}
        assert "closed" in repr(client)

    asyncio.run(main())


def test_switched_off(world):
    async def main():
        client = world.client(enabled=False)
        assert await done(client.track_event("login", JANE)) is False
        result = await done(client.track_events([{"event": "now", "customer_email": JANE}] * 2))
        assert (result.sent, result.refused) == (0, 2)
        assert client.stats().refused == {"disabled": 3}
        assert await done(client.flush())
        assert await done(client.close())
        assert client.stats().accepted == 0

    asyncio.run(main())
    assert not world.folder.exists()
    assert world.server.counts().events == 0


SCRIPT = """\
import asyncio, os, sys
from windback import AsyncWindback, Windback

def before_send(event):
    if event["event"] == "bad":
        raise ValueError("bad")
    return event

client = {make}(**{options!r}, before_send=before_send, shutdown_timeout=60)

def track(numbers, event="login"):
    async def main():
        for n in numbers:
            answer = client.track_event(event, "jane@example.com", {{"n": n}})
            assert (await answer if asyncio.iscoroutine(answer) else answer) is (event == "login")
    asyncio.run(main())

track([99], event="bad")
track(range(10))
child = os.fork()
if not child:
    stats = client.stats()
    assert (stats.accepted, stats.pending, stats.refused, stats.hook_errors) == (0, 0, {{}}, 0), stats
    track(range(10, 15))
    assert client.stats().accepted == 5
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
track(range(15, 20))
stats = client.stats()
own = stats.accepted - stats.adopted  # a sender process may already have what the child left
assert (own, stats.hook_errors) == (15, 1), stats
"""


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_and_the_end_of_both_processes(world, run, eventually):
    code = SCRIPT.format(make=world.kind.make.__name__, options=world.options)
    if world.kind.in_thread:
        code = f"import sys\nsys.executable = ''\n{code}"
    ended = run(code, url=world.server.url, within_s=120.0, WINDBACK_PROJECT_SLUG="")
    assert ended.status == 0, ended.err
    assert "not delivered" not in ended.err
    with world.relaying():
        eventually(lambda: len(world.server.events()) >= 20)
    assert numbers(world.server) == list(range(20))


APART = {
    "relay and broker": (Windback, {"worker": None, "journal": "j", "broker": "redis://localhost"}, "broker"),
    "relay without a journal": (Windback, {"worker": None}, "worker=None needs journal="),
    "relay and on_delivery": (
        Windback,
        {"worker": None, "journal": "j", "on_delivery": print},
        "on_delivery is never called with worker=None",
    ),
    "task of a sync client": (Windback, {"worker": "task"}, "worker"),
    "journal and drop_oldest": (Windback, {"journal": "j", "overflow": "drop_oldest"}, "drop_oldest"),
    "process and drop_oldest": (Windback, {"worker": "process", "overflow": "drop_oldest"}, "drop_oldest"),
    "memory and fsync": (Windback, {"fsync": "interval"}, "fsync"),
    "process without a journal and fsync": (Windback, {"worker": "process", "fsync": "batch"}, "fsync"),
}


@pytest.mark.parametrize("make", [Windback, AsyncWindback])
@pytest.mark.parametrize("pair", APART)
def test_what_does_not_go_together_reports_it(pair, make, no_environment):
    wanted, options, why = APART[pair]
    if "sync client" in pair and make is not wanted:
        return
    with pytest.raises(ConfigurationError, match=why):
        make("sk_test_1", **options)


def test_an_http_client_and_a_process_do_not_go_together(no_environment):
    import httpx

    with httpx.Client() as http_client, pytest.raises(ConfigurationError, match="worker='process'"):
        Windback("sk_test_1", worker="process", http_client=http_client)
