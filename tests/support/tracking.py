"""What most tests with a server do: track numbered events, and look which ones arrived."""

from __future__ import annotations

from pathlib import Path

JANE = "jane@example.com"
#: For clients whose key and project don't matter.
OPTIONS = {"api_key": "sk_test_1", "project_slug": "my-project"}
#: The first lines of a child process, indented as the code of a test, with `track` as below.
TOOLS = """\
    import logging, os, signal, sys, threading, time
    from pathlib import Path
    from windback import Windback

    def track(client, numbers):
        for n in numbers:
            assert client.track_event("login", "jane@example.com", {"n": n})

"""
#: A program that tracks numbered events into the journal *root*, from *start* up to *end*, and is killed.
LEAVE = """\
import os, signal, sys
from windback import Windback
client = Windback(journal={root!r}, flush_interval=3600)
for n in range({start}, {end}):
    client.track_event("login", "jane@example.com", {{"n": n}})
os.kill(os.getpid(), signal.SIGKILL)
"""


def track(client, numbers):
    for n in numbers:
        assert client.track_event("login", JANE, {"n": n})


def numbers(server):
    """Which events the server has, with each as often as it came."""
    events = server.events()
    assert all("n" in stored.properties for stored in events), events  # one that another test left
    return sorted(stored.properties["n"] for stored in events)


def adds_up(stats):
    return stats.accepted == stats.delivered + stats.rejected + stats.dropped + stats.pending


def left_in(root: Path):
    """Journals that somebody still has to send from."""
    return sorted(path.name for path in root.iterdir() if path.name not in ("bad", "dead"))
