"""A real Chromium, and a page whose every request, error and breach of the content policy is watched."""

from __future__ import annotations

import json
import shutil
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Callable, Iterator, List, Optional

import pytest

from windback import Windback
from windback.devserver import DevServer

KEY = "sk_test_page"

MISSING = "no chromium: `make pytest` installs one; without make, `playwright install chromium` does"


def find_chromium(own: str) -> Optional[str]:
    """Return the path of a Chromium: the system's, else *own*, the one that Playwright may have installed."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found is not None:
            return found
    return own if Path(own).exists() else None


@pytest.fixture(scope="module")
def browser():
    """One browser for a module. None at all is a failure, not a skip."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = find_chromium(playwright.chromium.executable_path)
        if path is None:
            pytest.fail(MISSING)
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def running() -> Iterator[DevServer]:
    with DevServer(strict=False) as server:  # takes what the API takes, as `windback dev` does
        yield server


@pytest.fixture
def server(running) -> DevServer:
    """The server of the module, emptied."""
    running.reset()
    return running


@pytest.fixture
def client(server) -> Iterator[Windback]:
    with Windback(KEY, "shop", base_url=server.url, flush_interval=0.02) as client:
        yield client


@pytest.fixture
def post(server) -> Callable[..., int]:
    """Send what the SDK would refuse to send; the status."""

    def post(path: str, value: object, **headers: str) -> int:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
        head = {"content-type": "application/json", "x-api-key": KEY, **headers}
        connection.request("POST", "/api/v1" + path, json.dumps(value), head)
        status = connection.getresponse().status
        connection.close()
        return status

    return post


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait until a JavaScript function holds.

    Playwright's own `wait_for_function` has the page evaluate text, in older releases always, and the content
    policy of the page forbids that; `evaluate` does not.
    """

    def until(page, function: str, arg: object = None) -> None:
        deadline = time.monotonic() + 60
        while not page.evaluate(function, arg):
            assert time.monotonic() < deadline, function
            page.wait_for_timeout(50)

    return until


@pytest.fixture
def open_page(browser, server) -> Iterator[Callable[..., object]]:
    """Open an address of the page in a browser profile of its own."""
    contexts = []
    wrong: List[str] = []
    home = f"http://127.0.0.1:{server.port}"

    def heard(message) -> None:
        if "Content Security Policy" in message.text or "Uncaught" in message.text:
            wrong.append(message.text)

    def requested(request) -> None:
        if not request.url.startswith((home, "data:", "about:")):
            wrong.append(f"a request to {request.url}")

    def open_page(path: str = "/", *, wait: bool = True, **options: object):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(f"{error}\n{getattr(error, 'stack', '')}"))
        page.on("console", heard)
        page.on("request", requested)
        page.goto(home + path)
        if wait:
            page.locator('#live[data-state="live"], #live[data-state="paused"]').wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
