"""The pytest plugin: tests send nothing to the real API, and can check which events were tracked.

It is active if windback and pytest are installed. A test fails if its client connects to another machine, or
tracks events that would go there, unless it is marked `windback_live`. Fixtures are part of their test.
Requests to localhost and to mocked servers are allowed. The fixture `windback_events` captures instead of
sending; `windback_dev` makes clients send to a local server.
"""

from __future__ import annotations

from typing import Generator, Optional

import pytest

from ..devserver.process import DevServer
from .blocking import Blocking
from .captured import CapturedEvents, capturing
from .local import Inbox

_MARK = "windback_live"

_blocking = Blocking()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", f"{_MARK}: this test may send to the real Windback API")


def _blocked(item: pytest.Item) -> Generator[None, object, object]:
    """Refuse connections to other machines during one phase of a test; fail it if there were any."""
    if item.get_closest_marker(_MARK) is not None:
        return (yield)
    _blocking.begin()
    hosts: Optional[str] = None
    try:
        result = yield
    finally:
        hosts = _blocking.end()
    if hosts is not None:
        pytest.fail(
            f"this test would have sent events to {hosts}: use the windback_events fixture, point the client "
            f"at a server of your own, pass enabled=False, or mark the test with {_MARK}",
            pytrace=False,
        )
    return result


# Each phase separately, so that a fixture fails where it sends: applications often track while they shut
# down.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the setup of fixtures."""
    return (yield from _blocked(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the test."""
    return (yield from _blocked(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the teardown of fixtures."""
    return (yield from _blocked(item))


@pytest.fixture
def windback_events() -> Generator[CapturedEvents, None, None]:
    """Capture the events of all clients, also of those made before. Nothing is queued or sent.

    Events are checked and pass `before_send` as usual. Plain calls are not captured: they need an answer.

    Returns:
        The captured events.
    """
    with capturing() as events:
        yield events


@pytest.fixture(scope="session")
def windback_dev_server() -> Generator[DevServer, None, None]:
    """Start the local server, on a free port, once for all tests (of a worker of pytest-xdist)."""
    with DevServer() as server:
        yield server


@pytest.fixture
def windback_dev(
    windback_dev_server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> Generator[Inbox, None, None]:
    """Give the test an inbox of its own in the local server, by a key that nobody else has.

    Clients without a key and an address find both in the environment.
    """
    inbox = Inbox(windback_dev_server)
    for name, value in inbox.environment.items():
        monkeypatch.setenv(name, value)
    yield inbox
    inbox.clear_faults()
