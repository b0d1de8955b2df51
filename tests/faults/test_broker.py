"""broker=: the application hands batches to Redis, relays deliver them, whichever of the three dies."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import sys
import threading
import time

import pytest
import redis
import trio
from broker_clients import DEAD, EVENTS, MINE, POISON, making_clients, relay_of
from inside import config_of
from relays import running
from tracking import JANE, TOOLS, adds_up, numbers, track

from windback import AsyncWindback, ConfigurationError, Windback
from windback.broker.inspect import Broker
from windback.broker.layout import GROUP, keys_of
from windback.relay import BrokerRelay
from windback.secrets import broker_address

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="it runs no redis-server"),
    pytest.mark.usefixtures("no_environment"),
]


@pytest.fixture
def make(redis_server, mark):
    with making_clients(redis_server, mark) as make:
        yield make


@pytest.fixture
def make_relay(server, redis_server):
    return functools.partial(relay_of, server, redis_server)


@pytest.fixture
def relaying(make_relay):
    return lambda **options: running(make_relay(**options))


# The way of an event


@pytest.mark.parametrize("options", [{}, {"worker": "process"}, {"journal": "here"}], ids=str)
def test_an_event_goes_through_redis_and_the_application_needs_no_key(
    make, server, redis_server, relaying, eventually, options, tmp_path
):
    if "journal" in options:
        options = {"journal": tmp_path / "journal"}
    client = make(project_slug="my-project", **options)
    track(client, range(1000))
    result = client.flush(20)
    assert (result.pending, client.stats().delivered) == (0, 1000)
    stats = client.stats()
    assert (stats.accepted, stats.delivered, stats.pending) == (1000, 1000, 0)
    entries = redis_server.client.xrange(MINE.events)
    assert sum(int(fields["count"]) for _, fields in entries) == 1000
    assert {fields["project"] for _, fields in entries} == {"my-project"}
    assert numbers(server) == []
    with relaying(project_slug="my-project") as relay:
        eventually(lambda: redis_server.client.xlen(MINE.events) == 0)
        stats = relay.stats()
    assert (stats.accepted, stats.adopted, stats.delivered) == (1000, 1000, 1000)
    assert numbers(server) == list(range(1000))
    assert redis_server.client.xpending(MINE.events, GROUP)["pending"] == 0
    assert redis_server.client.xinfo_consumers(MINE.events, GROUP) == []


@pytest.mark.parametrize("backend", [asyncio, trio], ids=["asyncio", "trio"])
@pytest.mark.parametrize("worker", ["task", "thread"])
def test_an_async_client(server, redis_server, relaying, backend, worker, eventually):
    async def main():
        async with AsyncWindback(broker=redis_server.url, worker=worker) as client:
            for n in range(95):
                assert await client.track_event("login", JANE, {"n": n})
            assert await client.flush(20)
            assert client.stats().delivered == 95
            for n in range(95, 100):
                assert await client.track_event("login", JANE, {"n": n})

    backend.run(main() if backend is asyncio else main)
    with relaying():
        eventually(lambda: len(server.events()) == 100)
    assert numbers(server) == list(range(100))


def test_what_is_tracked_just_before_the_end_is_in_redis_after_it(run, redis_server, dead_url):
    code = f"""\
    client = Windback(broker={redis_server.url!r})
    print(sorted(name for name in ("redis", "httpx") if name in sys.modules))
    track(client, range(10))
    """
    ended = run(TOOLS + code, url=dead_url)
    assert (ended.status, ended.out, ended.err) == (0, ["[]"], "")
    assert sum(int(fields["count"]) for _, fields in redis_server.client.xrange(MINE.events)) == 10


def test_the_same_bytes_arrive_under_the_key_they_got_in_the_application(
    make, server, redis_server, relaying, eventually
):
    client = make(batch_size=10)
    track(client, range(100))
    assert client.flush(20)
    keys = {fields["key"] for _, fields in redis_server.client.xrange(EVENTS)}
    with relaying():
        eventually(lambda: len(server.events()) == 100)
    assert {request.idempotency_key for request in server.requests()} == keys


def test_a_fork_has_connections_of_its_own(run, redis_server, dead_url):
    code = f"""\
    client = Windback(broker={redis_server.url!r})
    track(client, range(100))
    assert client.flush(20)
    pid = os.fork()
    if not pid:
        assert client.stats().accepted == 0
        track(client, range(100, 200))
        assert client.flush(20)
        assert client.stats().delivered == 100
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    track(client, range(200, 300))
    assert client.flush(20)
    assert client.stats().delivered == 200
    """
    ended = run(TOOLS + code, url=dead_url)
    assert (ended.status, ended.err) == (0, "")
    found = [
        line for _, fields in redis_server.client.xrange(MINE.events) for line in fields["events"].split("\n")
    ]
    assert len(found) == len(set(found)) == 300


def test_calls_that_need_the_api_say_that_they_need_a_key(make, server):
    client = make(project_slug="my-project")
    for call in (
        lambda: client.submit_cancel_flow(JANE, "too_expensive"),
        lambda: client.track_events([{"event": "login", "customer_email": JANE}]),
    ):
        with pytest.raises(
            ConfigurationError, match="needs a key; with broker=… only track_event needs none"
        ):
            call()
    client = make(project_slug="my-project", api_key="sk_test_1", base_url=server.url)
    assert client.track_events([{"event": "login", "customer_email": JANE, "properties": {"n": 1}}])
    client.submit_cancel_flow(JANE, "too_expensive")
    assert numbers(server) == [1]


# Redis in trouble


def test_while_redis_is_down_events_wait_and_go_on_when_it_is_back(make_redis, server, eventually, caplog):
    redis_server = make_redis()
    with caplog.at_level(logging.INFO), Windback(
        broker=redis_server.url, flush_interval=0.01, max_retries=0
    ) as client:
        track(client, range(100))
        result = client.flush()
        assert (result.pending, result.delivered) == (100, 0)
        assert result.problem.startswith(f"could not connect: {redis_server.url}: ")
        assert adds_up(client.stats())
        redis_server.start()
        assert client.flush(20)
        redis_server.restart()  # its connections break
        track(client, range(100, 200))
        assert client.flush(20)
        assert client.stats().delivered == 200
    lines = [record.message for record in caplog.records if "cannot deliver" in record.message]
    assert len(lines) == 1
    assert f"could not connect: {redis_server.url}" in lines[0]


def test_a_redis_that_hangs_holds_up_neither_caller_nor_end(make, redis_server):
    client = make(shutdown_timeout=0.5)
    track(client, range(10))
    assert client.flush(20)
    redis_server.signal(signal.SIGSTOP)
    try:
        started_s = time.monotonic()
        track(client, range(10))
        assert client.close().pending == 10
        assert time.monotonic() - started_s < 3
    finally:
        redis_server.signal(signal.SIGCONT)


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ("", "it needs a password"),
        (":wrong%40secret@", "wrong user name or password"),
        ("nobody:wrong%40secret@", "wrong user name or password"),
    ],
)
def test_a_wrong_password_is_reported_without_the_password(make_redis, server, user, says, caplog):
    redis_server = make_redis("--requirepass", "right@secret")
    redis_server.start()
    url = f"redis://{user}127.0.0.1:{redis_server.port}/0"
    with Windback(broker=url, flush_interval=0.01, shutdown_timeout=0) as client:
        track(client, range(10))
        started_s = time.monotonic()
        result = client.flush(20)
        assert time.monotonic() - started_s < 5  # for no try will help
        assert result.pending == 10
        assert result.problem.startswith(f"the broker refuses: {redis_server.url}: {says} (")
        assert adds_up(client.stats())
        assert "secret" not in result.problem + repr(client) + repr(config_of(client))
    with pytest.raises(ConfigurationError, match=says) as caught:
        BrokerRelay(url, "sk_test_1", base_url=server.url)
    assert redis_server.url in str(caught.value)
    assert "secret" not in str(caught.value) + caplog.text
    with Windback(broker=f"redis://:right%40secret@127.0.0.1:{redis_server.port}/0") as client:
        track(client, range(10))
        assert client.flush(20)


def test_a_key_of_another_type_is_reported_and_nothing_is_lost(make, redis_server, make_relay):
    redis_server.client.set(EVENTS, "mine")
    client = make()
    track(client, range(10))
    result = client.flush(20)
    assert result.pending == 10
    assert "contains something other than a stream" in result.problem
    with pytest.raises(ConfigurationError, match="must be a stream, but is a string"):
        make_relay()
    assert redis_server.client.get(EVENTS) == "mine"
    redis_server.client.delete(EVENTS)
    assert client.flush(20)
    assert client.stats().delivered == 10


def test_a_full_stream_keeps_the_batch_and_trims_nothing(make, redis_server, server, relaying, eventually):
    client = make(max_broker_entries=3, batch_size=10, max_retries=0, max_in_flight=1)
    track(client, range(50))
    result = client.flush()
    assert (result.pending, result.delivered) == (20, 30)
    waiting = "3 batches wait there for a relay (max_broker_entries)"
    assert result.problem.startswith(f"the broker accepts no more: {redis_server.url}: {waiting}; ")
    assert redis_server.client.xlen(EVENTS) == 3
    assert adds_up(client.stats())
    with relaying():
        eventually(lambda: redis_server.client.xlen(EVENTS) == 0)
        assert client.flush(20)
        eventually(lambda: len(server.events()) == 50)
    assert numbers(server) == list(range(50))


def test_out_of_memory_is_an_outage_and_a_relay_ends_it(make, redis_server, server, relaying):
    """A relay works in a Redis that takes nothing more, or nothing would ever change."""
    client = make(max_retries=0)
    with relaying():
        pass  # there was one before
    track(client, range(50))
    assert client.track_event("login", POISON)
    assert client.flush(20)
    redis_server.client.config_set("maxmemory", "1")
    track(client, range(50, 60))
    result = client.flush()
    assert result.pending == 10
    assert "Redis is out of memory (maxmemory) and accepts no more" in result.problem
    with relaying(shutdown_timeout=1) as relay:
        deadline = time.monotonic() + 20
        while relay.stats().rejected < 1 or relay.stats().delivered < 50:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        while redis_server.client.xlen(EVENTS):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert redis_server.client.xlen(DEAD) == 1  # which took the place of the batch that it was in
        redis_server.client.config_set("maxmemory", "0")
        assert client.flush(20)
        while redis_server.client.xlen(EVENTS) or len(server.events()) < 60:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert numbers(server) == list(range(60))
    assert redis_server.client.xlen(DEAD) == 1


def test_a_policy_that_deletes_events_is_warned_of(make, redis_server, make_relay, caplog):
    redis_server.client.config_set("maxmemory-policy", "allkeys-lru")
    client = make()
    track(client, range(10))
    assert client.flush(20)
    make_relay().close()
    lines = [record.message for record in caplog.records if "maxmemory-policy" in record.message]
    assert len(lines) == 2
    assert "allkeys-lru" in lines[0]


def test_a_replica_is_reported_and_nothing_is_lost(make, redis_server):
    redis_server.client.replicaof("127.0.0.1", 1)
    client = make(max_retries=0)
    track(client, range(10))
    result = client.flush()
    assert result.pending == 10
    assert "read only replica" in result.problem
    redis_server.client.replicaof("NO", "ONE")
    assert client.flush(20)


def sentinels(make_redis, master, count=2):
    """Start Sentinels that find a dead master soon."""
    text = (
        f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds main 500\n"
        "sentinel failover-timeout main 2000\n"
    )
    made = []
    for _ in range(count):
        each = make_redis()
        each.use_as_sentinel(text)
        each.start()
        made.append(each)
    return made


def is_master(redis_server):
    try:
        return redis_server.client.role()[0] == "master"
    except redis.ConnectionError:
        return False  # a Sentinel that makes it one closes its connections


@pytest.mark.timeout(120)  # Sentinels take their time
def test_through_sentinels_what_is_delivered_goes_on_with_the_next_master(make_redis, server, eventually):
    first, second = make_redis(), make_redis()
    first.start()
    second.start()
    second.client.replicaof("127.0.0.1", first.port)
    eventually(lambda: second.client.info("replication")["master_link_status"] == "up")
    watchers = sentinels(make_redis, first)
    watched = watchers[0].client.sentinel_masters  # redis-py 7.0 can't ask for one of them
    eventually(lambda: watched()["main"]["num-other-sentinels"] == 1)
    eventually(lambda: watched()["main"]["num-slaves"] == 1)
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in watchers)
    url = f"redis+sentinel://{hosts}/main/0"
    relay = BrokerRelay(url, "sk_test_1", base_url=server.url, timeout=1, shutdown_timeout=2)
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        with Windback(broker=url, flush_interval=0.01, timeout=1, max_retries=0) as client:
            track(client, range(100))
            assert client.flush(20)
            eventually(lambda: len(server.events()) == 100)
            eventually(lambda: second.client.xlen(EVENTS) == 0)
            first.kill()
            track(client, range(100, 200))
            assert client.flush(1).pending == 100
            eventually(lambda: is_master(second), 40)
            eventually(lambda: client.flush(5), 40)  # a Sentinel may hear of it a little later
            eventually(lambda: len(server.events()) == 200, 20)
    finally:
        relay.stop()
        thread.join()
    assert numbers(server) == list(range(200))
    with Windback(broker=url.replace("/main/", "/other/"), max_retries=0) as client:
        track(client, range(10))
        result = client.flush()
        assert result.problem.startswith(
            f"could not connect: redis+sentinel://{hosts}/other/0: No master found"
        )
        client.close(0)


SLOTS = 16_384


@pytest.fixture
def cluster(make_redis, eventually):
    """A cluster of three."""
    nodes = [make_redis("--cluster-enabled", "yes", "--cluster-node-timeout", "2000") for _ in range(3)]
    for number, node in enumerate(nodes):
        node.start()
        share = range(number * SLOTS // 3, (number + 1) * SLOTS // 3)
        node.client.execute_command("CLUSTER ADDSLOTS", *share)
        node.client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
    for node in nodes:
        eventually(lambda node=node: len(node.client.execute_command("CLUSTER NODES")) == 3)
        eventually(lambda node=node: node.client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
    return nodes


def move_slot(slot, source, target, nodes):
    ids = {node: node.client.execute_command("CLUSTER MYID") for node in nodes}
    target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
    source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
    for key in source.client.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
        source.client.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
    assert source.client.execute_command("CLUSTER COUNTKEYSINSLOT", slot) == 0
    for node in (target, source, *nodes):
        node.client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])


def test_in_a_cluster_a_slot_that_moves_holds_up_nothing_for_long(cluster, server, eventually):
    slots = {cluster[0].client.execute_command("CLUSTER KEYSLOT", key) for key in (EVENTS, DEAD)}
    (slot,) = slots
    source = cluster[slot * 3 // SLOTS]
    target = cluster[slot * 3 // SLOTS - 1]
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster)
    relay = BrokerRelay(url, "sk_test_1", base_url=server.url, shutdown_timeout=2)
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        with Windback(broker=url, flush_interval=0.01, batch_size=10) as client:
            track(client, range(500))
            assert client.track_event("login", POISON)
            assert client.flush(20)
            move_slot(slot, source, target, cluster)
            track(client, range(500, 1000))
            eventually(lambda: client.flush(10), 40)  # the nodes tell each other of it in their own time
            eventually(lambda: len(server.events()) == 1000, 30)
        eventually(lambda: target.client.xlen(EVENTS) == 0)
        assert target.client.xlen(DEAD) == 1
    finally:
        relay.stop()
        thread.join()
    assert numbers(server) == list(range(1000))


def test_in_a_cluster_each_project_has_a_slot_of_its_own(cluster, server, eventually):
    """What one node carries is no bound for all projects together."""
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster)
    projects = ("shop", "blog", "")
    slots = {
        cluster[0].client.execute_command("CLUSTER KEYSLOT", key)
        for project in projects
        for key in keys_of(project)
    }
    assert len(slots) == 3
    for number, project in enumerate(projects):
        with Windback(broker=url, project_slug=project or None) as client:
            track(client, range(100 * number, 100 * number + 100))
            assert client.track_event("login", POISON)
    relay = BrokerRelay(
        url, api_keys=dict.fromkeys(projects, "sk_test_1"), base_url=server.url, shutdown_timeout=2
    )
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        eventually(lambda: len(server.events()) == 300, 30)
        eventually(lambda: relay.left() == 0)
        standing = relay.standing()
    finally:
        relay.stop()
        thread.join()
    assert numbers(server) == list(range(300))
    assert {each.project: each.dead_letters for each in standing} == dict.fromkeys(projects, 1)
    broker = Broker(broker_address(url))
    assert sorted(letter.project for letter in broker.letters()) == sorted(projects)
    assert all(broker.revive(letter) for letter in broker.letters())
    assert [each.batches for each in broker.numbers()] == [1, 1, 1]
    broker.close()


def test_a_url_of_the_wrong_kind_is_reported(cluster, redis_server, server):
    slot = cluster[0].client.execute_command("CLUSTER KEYSLOT", EVENTS)
    one = f"redis://127.0.0.1:{cluster[slot * 3 // SLOTS - 1].port}/0"
    with pytest.raises(ConfigurationError, match="node of a Redis Cluster, whose URL starts with redis"):
        BrokerRelay(one, "sk_test_1", base_url=server.url)
    with Windback(broker=one, shutdown_timeout=0) as client:
        track(client, range(10))
        assert "node of a Redis Cluster" in client.flush(20).problem
    other = redis_server.url.replace("redis://", "redis+cluster://")
    with pytest.raises(ConfigurationError, match="it is not a Redis Cluster"):
        BrokerRelay(other, "sk_test_1", base_url=server.url)
