"""Plain HTTP to a local server, without the SDK, and waiting for what it does."""

from __future__ import annotations

import http.client
import json
import time
from contextlib import closing
from typing import Callable, Dict, Mapping, NamedTuple, Optional

from windback.devserver import DevServer
from windback.devserver.options import CONTROL_PATH


class Reply(NamedTuple):
    status: int
    #: Their names in small letters.
    headers: Dict[str, str]
    raw: bytes

    @property
    def json(self):
        return json.loads(self.raw)


def call(
    server: DevServer,
    method: str,
    path: str,
    body: object = None,
    headers: Optional[Mapping[str, Optional[str]]] = None,
    timeout: float = 30.0,
) -> Reply:
    """One request on a connection of its own; *body* as it is when it is bytes, else as JSON.

    A header that is None is left out.
    """
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {"content-type": "application/json", **(headers or {})}
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)) as connection:
        connection.request(
            method, path, raw, {name: value for name, value in sent.items() if value is not None}
        )
        response = connection.getresponse()
        answered = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, answered, response.read())


def eventually(check: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until *check* holds; fails when it does not in time."""
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def ends(is_over: Callable[[], object], progress: Callable[[], object], hangs_after_s: float) -> bool:
    """Wait until *is_over* holds; False if *progress* stays the same for so long that it hangs."""
    last, deadline_s = progress(), time.monotonic() + hangs_after_s
    while not is_over():
        now = progress()
        if now != last:
            last, deadline_s = now, time.monotonic() + hangs_after_s
        elif time.monotonic() > deadline_s:
            return False
        time.sleep(0.05)
    return True


def ending_faults(port: int) -> str:
    """Return a line of a script that ends the faults of the local server at *port*."""
    url = f"http://127.0.0.1:{port}{CONTROL_PATH}/faults"
    request = f"urllib.request.Request({url!r}, method='DELETE')"
    return f"import urllib.request; urllib.request.urlopen({request}).close()"
