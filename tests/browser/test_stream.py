"""The stream: one for all tabs of a browser, handed on when its tab is closed, resumed when it is cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import List

import pytest

pytestmark = pytest.mark.timeout(240)  # a browser on a busy machine takes its time


class Proxy:
    """A TCP proxy in front of the server, which knows what was asked and can cut all connections."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._ends: List[socket.socket] = []
        self.streams: List[socket.socket] = []  # those that are open
        self.refuses = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            if self.refuses:
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                self._ends += [client, server]
                back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
                back.start()
                self._pump(client, server)
                back.join()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while True:
                data = source.recv(65_536)
                if not data:
                    break
                if b"GET /_dev/stream" in data:
                    self.streams.append(source)
                sink.sendall(data)
        if source in self.streams:
            self.streams.remove(source)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def close(self) -> None:
        self.refuses = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()


@pytest.fixture
def proxy(server):
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def context(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(60_000)
    yield context
    context.close()


def open_tab(context, port: int):
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{port}/")
    page.locator('#live[data-state="live"]').wait_for()
    return page


@pytest.fixture
def shows(until):
    """Wait until the list has these events, newest first, each once."""

    def shows(page, *names: str) -> None:
        until(
            page,
            """names => {
              const cells = [...document.querySelectorAll("tr[data-id] td.event")];
              return JSON.stringify(cells.map((each) => each.innerText.trim())) === JSON.stringify(names);
            }""",
            list(names),
        )

    return shows


def track(client, name: str) -> None:
    assert client.track_event(name, "jane@example.com")
    assert client.flush(timeout=30)


def test_ten_tabs_have_one_stream_and_outlive_the_one_that_leads(context, client, proxy, shows):
    tabs = [open_tab(context, proxy.port) for _ in range(10)]
    track(client, "first")
    for tab in tabs:
        shows(tab, "first")
    assert len(proxy.streams) == 1

    tabs.pop(0).close()
    track(client, "second")
    for tab in tabs:
        shows(tab, "second", "first")
    tabs[0].locator('#live[data-state="live"]').wait_for()
    assert len(proxy.streams) == 1


def test_nothing_is_lost_or_doubled_when_the_stream_is_cut(context, client, proxy, shows):
    tab = open_tab(context, proxy.port)
    track(client, "before")
    shows(tab, "before")

    proxy.refuses = True
    proxy.cut()
    tab.locator("#live", has_text="Reconnecting in").wait_for()
    track(client, "meanwhile")
    tab.locator("#live", has_text="Server stopped, last seen").wait_for()
    shows(tab, "before")  # the list stays
    assert "stale" in tab.locator("body").get_attribute("class")

    proxy.refuses = False
    tab.locator('#live[data-state="live"]').wait_for()
    shows(tab, "meanwhile", "before")
    track(client, "after")
    shows(tab, "after", "meanwhile", "before")


def test_a_server_that_was_restarted_is_found_again(context, client, proxy, shows, server):
    tab = open_tab(context, proxy.port)
    track(client, "before")
    shows(tab, "before")
    server.kill()
    tab.locator('#live[data-state="lost"]').wait_for()
    server.start()  # on the same port, with nothing in memory
    tab.locator('#live[data-state="live"]').wait_for()
    tab.get_by_role("heading", name="Nothing has arrived yet").wait_for()
    track(client, "after")
    shows(tab, "after")
