"""The pytest plugin: tests send nothing to the real API, and can check which events were tracked.

It is active if windback and pytest are installed. A test fails if its client connects to another machine, or
tracks events that would go there, unless it is marked `windback_live`. Fixtures are part of their test.
Requests to localhost and to mocked servers are allowed. The fixture `windback_events` captures instead of
sending; `windback_dev` makes clients send to a local server.

pytest loads this in suites that have nothing to do with Windback, so it must not be the reason that one does
not start: it works with each pytest from 5.4 on and its pluggy, and loads nothing else before the first test.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Generator, Optional

import pytest

if TYPE_CHECKING:
    from ..devserver.process import DevServer
    from .blocking import Blocking
    from .captured import CapturedEvents
    from .local import Inbox

_MARK = "windback_live"

_blocking: Optional[Blocking] = None


class Outcome:
    """What a hook did, as pluggy hands it to wrappers of the old style, which all its versions know."""

    excinfo: object
    _excinfo: object

    def force_exception(self, exception: BaseException) -> None:
        """Have the hook raise this. Only since pluggy 1.1."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", f"{_MARK}: this test may send to the real Windback API")


def _blocked(item: pytest.Item) -> Generator[None, Outcome, None]:
    """Refuse connections to other machines during one phase of a test; fail it if there were any."""
    blocking = None if item.get_closest_marker(_MARK) is not None else _load()
    if blocking is None:
        yield
        return
    blocking.begin()
    hosts: Optional[str] = None
    try:
        outcome = yield
    finally:
        hosts = blocking.end()
    if hosts is not None and outcome.excinfo is None:
        _fail(
            outcome,
            f"this test would have sent events to {hosts}: use the windback_events fixture, point the client "
            f"at a server of your own, pass enabled=False, or mark the test with {_MARK}",
        )


def _load() -> Optional[Blocking]:
    """Return what blocks, made at the first test; None where windback cannot be imported at all."""
    global _blocking  # noqa: PLW0603 - see above
    if _blocking is None:
        with suppress(ImportError):
            from .blocking import Blocking

            _blocking = Blocking()
    return _blocking


def _fail(outcome: Outcome, message: str) -> None:
    try:
        pytest.fail(message, pytrace=False)
    except BaseException as failed:  # noqa: BLE001 - handed on
        if hasattr(outcome, "force_exception"):
            outcome.force_exception(failed)
        else:
            outcome._excinfo = type(failed), failed, failed.__traceback__  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


# Each phase separately, so that a fixture fails where it sends: applications often track while they shut
# down.


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Outcome, None]:
    """Guard the fixtures' beginnings."""
    yield from _blocked(item)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Outcome, None]:
    """Guard the test itself."""
    yield from _blocked(item)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Outcome, None]:
    """Guard the fixtures' ends."""
    yield from _blocked(item)


@pytest.fixture
def windback_events() -> Generator[CapturedEvents, None, None]:
    """Capture the events of all clients, also of those made before. Nothing is queued or sent.

    Events are checked and pass `before_send` as usual. Plain calls are not captured: they need an answer.

    Returns:
        The captured events.
    """
    from .captured import capturing

    with capturing() as events:
        yield events


@pytest.fixture(scope="session")
def windback_dev_server() -> Generator[DevServer, None, None]:
    """Start the local server, on a free port, once for all tests (of a worker of pytest-xdist)."""
    from ..devserver.process import DevServer

    with DevServer() as server:
        yield server


@pytest.fixture
def windback_dev(
    windback_dev_server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> Generator[Inbox, None, None]:
    """Give the test an inbox of its own in the local server, by a key that nobody else has.

    Clients without a key and an address find both in the environment.
    """
    from .local import Inbox

    inbox = Inbox(windback_dev_server)
    for name, value in inbox.environment.items():
        monkeypatch.setenv(name, value)
    yield inbox
    inbox.clear_faults()
