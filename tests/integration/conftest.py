"""A local server for a module, empty before each test."""

from __future__ import annotations

from typing import Iterator

import pytest

from windback.devserver import DevServer


@pytest.fixture(scope="module")
def running() -> Iterator[DevServer]:
    """The server; a module that wants other options makes its own."""
    with DevServer() as server:
        yield server
        assert server.log() == "", "the server printed warnings or tracebacks"


@pytest.fixture
def server(running: DevServer) -> DevServer:
    running.reset()
    return running
