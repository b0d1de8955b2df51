"""A real Redis, both ways of batches to the API, and an environment without settings."""

from __future__ import annotations

import os
import signal
import sys
from typing import Callable, Iterator

import pytest
from redis_server import MISSING, RedisServer, find_redis_server

from windback.delivery.connections import Connections
from windback.http.lane import Lane
from windback.http.transport import SyncTransport


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> Iterator[None]:
    """Processes can be interrupted, also where the tests run in a background that can't: it is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def make_redis(tmp_path_factory) -> Iterator[Callable[..., RedisServer]]:
    """Make a Redis with options of its own; it is not started yet. None at all is a failure, not a skip."""
    binary = find_redis_server()
    if binary is None:
        pytest.fail(MISSING)
    made = []

    def make(*options: str) -> RedisServer:
        server = RedisServer(binary, tmp_path_factory.mktemp("redis"), *options)
        made.append(server)
        return server

    yield make
    for server in made:
        server.close()


@pytest.fixture
def redis_server(make_redis) -> RedisServer:
    """A Redis that runs, with nothing in it."""
    server = make_redis()
    server.start()
    return server


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=["lane", "httpx"])
def way(request, monkeypatch) -> type:
    """How batches of threads reach the API: by the lane, or by httpx, as with a proxy."""
    if request.param == "lane":
        return Lane
    monkeypatch.setattr(Connections, "_batch_way", Connections.transport)
    return SyncTransport


@pytest.fixture
def no_environment(monkeypatch) -> None:
    """Nothing that the machine of whoever runs the tests has set counts."""
    for name in list(os.environ):
        if name.startswith("WINDBACK_"):
            monkeypatch.delenv(name)
