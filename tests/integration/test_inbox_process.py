"""The inbox of the local server as a process: its files, its command, and who may ask."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Dict, Iterator, List, Optional
from urllib.parse import quote

import pytest
from calls import call, eventually
from inbox_calls import Stream, _number, create, get, track

from windback.devserver import DevServer, DevServerError
from windback.devserver.labels import label

SOURCE = Path(__file__).resolve().parents[2] / "src"
COMMAND = [sys.executable, "-m", "windback.devserver"]


@pytest.fixture
def key() -> str:
    """A key of this test alone: an inbox of its own."""
    return f"sk_test_inbox_{os.getpid()}_{next(_number)}"


@pytest.fixture(scope="module")
def server() -> Iterator[DevServer]:
    """One for all tests, which keep out of each other's way by their keys."""
    with DevServer(strict=False, generate_s=0.05) as running:
        yield running
        assert running.log() == "", "the server printed warnings or tracebacks"


# What is kept


def test_the_cap_evicts_the_oldest_and_never_refuses_and_counts_stay_right(key):
    with DevServer(keep_events=200) as small:
        for first in range(0, 1_000, 50):
            events = ({"event": f"e{n % 2}", "properties": {"n": first + n}} for n in range(50))
            assert track(small, key, *events, idempotency_key=f"k{first}").status == 200
        counts = small.counts()
        assert (counts.events, counts.stored + counts.evicted) == (1_000, 1_000)
        assert 150 <= counts.stored <= 200
        kept = small.events()
        assert [event.properties["n"] for event in kept] == list(range(1_000 - len(kept), 1_000))
        page = get(small, "events", limit=1)
        assert (page["total"], page["stored"], page["evicted"]) == (len(kept), len(kept), 1_000 - len(kept))
        assert (small.count(), small.count("event:e0"), small.count("-event:e0", key=key)) == (
            1_000,
            500,
            500,
        )
        assert small.count("event:e0", key="sk_other") == 0
        exact = get(small, "count", q="n>-1")
        assert (exact["count"], exact["exact"]) == (len(kept), False)
        assert get(small, "names")["data"][0] == {"event": "e0", "count": 500, "ignored": 0}
        gone = call(small, "GET", "/_dev/events/1").json
        assert (gone["evicted"], gone["neighbours"]) == (True, {"newer": kept[0].id, "older": None})
        small.clear("event:e0")
        assert (small.count(), small.counts().events) == (500, 500)


def test_the_cap_may_be_one_of_bytes(key):
    with DevServer(keep_bytes=100_000) as small:
        for n in range(40):
            track(small, key, {"event": "e", "properties": {"n": n, "text": "x" * 10_000}})
        assert (small.counts().events, small.counts().stored) == (40, 9)
        track(small, key, {"event": "huge", "properties": {"text": "x" * 300_000}})
        assert [event.event for event in small.events()] == ["huge"]
        track(small, key, {"event": "small"})
        assert [event.event for event in small.events()] == ["small"]
        assert small.counts().events == 42


def test_a_file_survives_a_kill_and_is_for_its_owner_alone(tmp_path, key):
    path = tmp_path / "dev.db"
    dev = DevServer(db=path, keep_events=100, strict=False)
    with dev:
        for n in range(150):
            track(dev, key, {"event": "e", "properties": {"n": n}}, {"event": ""})
        create(dev, key)
        before, events, mark = dev.counts(), dev.events(), dev.mark()
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        dev.kill()
        dev.start()
        after = dev.counts()
        assert (after.events, after.ignored, after.stored, after.evicted, after.churn_events) == (
            *(before.events, before.ignored, before.stored, before.evicted),
            1,
        )
        assert dev.events() == events
        track(dev, key, {"event": "new"})
        assert dev.events()[-1].id == mark + 1
        assert dev.events()[-1].request_id not in {event.request_id for event in events}
        assert dev.count("event:e") == 150


@pytest.mark.skipif(sys.platform == "win32", reason="nothing keeps a second server out there")
def test_a_file_is_used_by_one_server_at_a_time(tmp_path, key):
    path = tmp_path / "dev.db"
    with DevServer(db=path) as first:
        track(first, key, {"event": "one"})
        with pytest.raises(DevServerError, match=r"dev\.db as database: another windback dev is using it"):
            DevServer(db=path).start()
        assert first.count() == 1
    with DevServer(db=path) as second:
        assert second.count() == 1


def test_a_file_that_is_not_ours_keeps_its_mode(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("notes")
    path.chmod(0o644)
    with pytest.raises(DevServerError, match=r"notes\.txt as database"):
        DevServer(db=path).start()
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("notes", 0o644)


def test_a_file_of_another_version_is_set_aside_and_named(tmp_path, key):
    path = tmp_path / "dev.db"
    with DevServer(db=path) as dev:
        track(dev, key, {"event": "old"})
    old = set_version(path, 99)
    (tmp_path / "dev.db.schema-99").write_text("somebody's")
    with Command("--port", "0", "--db", str(path)) as running:
        assert running.server.events() == []
        assert f"the database was of another version and now lies in {path}.schema-99.1" in running.banner
    assert (tmp_path / "dev.db.schema-99.1").read_bytes() == old
    set_version(path, 98)
    with DevServer(db=path) as quiet:
        assert quiet.log() == (
            f"windback dev: the database was of another version and now lies in {path}.schema-98\n"
        )
    assert (tmp_path / "dev.db.schema-99").read_text() == "somebody's"


def set_version(path: Path, version: int) -> bytes:
    with closing(sqlite3.connect(str(path))) as database:
        database.execute("PRAGMA journal_mode=DELETE")
        database.execute(f"PRAGMA user_version = {version}")
        database.commit()
    return path.read_bytes()


# The command


def environment() -> Dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


class Command:
    """`windback dev` with some options; its banner, once it serves."""

    def __init__(self, *arguments: str) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*COMMAND, "--until-stdin-closes", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def __enter__(self) -> Command:
        self.banner = ""
        while "faults " not in self.banner:
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(self.process.stderr.read())
            self.banner += line
        self.server = DevServer(port=int(re.search(r":(\d+)/", self.banner)[1]))
        return self

    def __exit__(self, *_) -> None:
        with self.process:
            _, self.errors = self.process.communicate(timeout=30)


def test_the_banner_reports_all_that_one_needs():
    with Command("--port", "0") as running:
        port = running.server.port
        url = f"http://127.0.0.1:{port}"
        assert running.banner.splitlines()[0] == f"windback dev server on {url}/api/v1"
        lines = {" ".join(line.split()) for line in running.banner.splitlines()}
        assert f"page {url}/" in lines
        assert f"paste export WINDBACK_BASE_URL={url}/api/v1" in lines
        assert "export WINDBACK_API_KEY=sk_test_local" in lines
        assert "export WINDBACK_PROJECT_SLUG=my-project" in lines
        memory = (
            "data in memory, gone when this ends (--db FILE keeps it); the newest 10,000 events or 200 MB"
        )
        assert memory in lines
        assert any(line.startswith("faults off") for line in lines)
        health = get(running.server, "health")
        assert (health["status"], health["base_url"], health["page_url"]) == (
            "ok",
            url + "/api/v1",
            url + "/",
        )
        assert (health["db"], health["strict"], health["keep_events"]) == (None, False, 10_000)
        assert track(running.server, "sk_test_local", {"event": ""}).status == 200
        if Path("/proc").is_dir():
            # Of its own time: how busy the machine is beside it is no property of the server.
            assert cpu_seconds(running.process.pid) < 1
            assert health["ready_in_s"] > 0
        with pytest.raises(OSError, match=r"refused|No route|unreachable|Cannot assign"):
            socket.create_connection((other_address(), port), timeout=5).close()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def other_address() -> str:
    """An address of this machine that is not the one the server listens on."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            address = probe.getsockname()[0]
        except OSError:  # no network
            address = "127.0.0.2"
    return "127.0.0.2" if address == "127.0.0.1" else address


def test_a_database_file_is_named_in_the_banner(tmp_path):
    path = tmp_path / "dev.db"
    with Command("--port", "0", "--db", str(path), "--keep-events", "0", "--keep-bytes", "0") as running:
        assert f"  data      in {path}; all events\n" in running.banner
        assert get(running.server, "health")["db"] == str(path)


def test_a_taken_port_is_answered_with_the_next_one_and_by_whom():
    holder = take_default_port()
    try:
        with Command() as running:
            assert running.server.port != 8787
            assert f"export WINDBACK_BASE_URL=http://127.0.0.1:{running.server.port}/api/v1" in running.banner
            assert "note      port 8787 is taken" in running.banner
            if holder is not None and Path("/proc").is_dir():
                assert f"(pid {os.getpid()})" in running.banner
    finally:
        if holder is not None:
            holder.close()


def take_default_port() -> Optional[socket.socket]:
    """Listen on the default port, unless somebody does already."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind(("127.0.0.1", 8787))
    except OSError:
        holder.close()
        return None
    holder.listen()
    return holder


def test_a_named_port_that_is_taken_ends_it_with_2_and_reports_by_whom(server):
    done = subprocess.run(
        [*COMMAND, "--port", str(server.port)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"cannot listen on 127.0.0.1 port {server.port}: " in done.stderr
    assert "--port 0" in done.stderr
    if Path("/proc").is_dir():
        assert f"by another windback dev (pid {server.pid})" in done.stderr


def test_a_ready_file_shows_a_test_where_and_when(tmp_path):
    path = tmp_path / "ready.json"
    with Command("--port", "0", "--ready-file", str(path)) as running:
        ready = json.loads(path.read_text())
        assert ready == get(running.server, "health")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--host", "192.0.2.1"], "--allow-host"),
        (["--allow-host", "http://x"], "not the name or address of a host"),
        (["--allow-host", "*"], "not the name or address of a host"),
        (["--allow-origin", "x"], "not a URL"),
        (["--allow-origin", "http://x/path"], "not an origin"),
        (["--keep-events", "-1"], "not a whole number"),
        (["--keep-bytes", "many"], "not a whole number"),
    ],
    ids=" ".join,
)
def test_an_option_that_makes_no_sense_is_a_usage_error(arguments, text):
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, env=environment(), check=False
    )
    assert done.returncode == 2
    assert text in done.stderr


def test_help_lists_what_lan_and_docker_need():
    done = subprocess.run(
        [*COMMAND, "--help"], capture_output=True, text=True, timeout=60, env=environment(), check=True
    )
    for option in (
        "--allow-host",
        "--allow-origin",
        "--keep-events",
        "--keep-bytes",
        "--strict",
        "--ready-file",
    ):
        assert option in done.stdout


def test_ctrl_c_ends_it_immediately_with_streams_and_waits_open(key):
    running = Command("--port", "0")
    with running:
        stream = Stream(running.server)
        stream.until("state")
        running.server.faults([{"hang": True, "times": 1}])
        ends: List[object] = []

        def hold(path: str, method: str = "GET") -> None:
            try:
                body = {"event": "e", "customer_email": "a@b.c"} if method == "POST" else None
                ends.append(call(running.server, method, path, body, {"x-api-key": key}).status)
            except (http.client.HTTPException, ConnectionError) as error:
                ends.append(type(error).__name__)

        held = [
            threading.Thread(target=hold, args=("/_dev/wait?event=never&timeout=600",)),
            threading.Thread(target=hold, args=("/api/v1/track", "POST")),
        ]
        # One that never reads, with more to hear than the buffers between the two hold.
        deaf = socket.create_connection(("127.0.0.1", running.server.port))
        deaf.sendall(b"GET /_dev/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        idle = http.client.HTTPConnection("127.0.0.1", running.server.port)
        idle.request("GET", "/_dev/health")
        assert idle.getresponse().read()  # and is kept open
        for thread in held:
            thread.start()
        eventually(lambda: running.server.counts().requests == 1)
        large = [{"event": "e", "properties": {"text": "x" * 9_000}}] * 100
        for _ in range(12):
            assert track(running.server, key, *large).status == 200
        running.process.send_signal(signal.SIGINT)
        # Within a second, on a machine that has time for it; not after the minutes that the wait would take.
        running.process.wait(30)
        for thread in held:
            thread.join(30)
        assert running.process.returncode == 0
        assert len(ends) == 2
        with closing(stream), suppress(http.client.HTTPException, ConnectionError):
            assert all(name != "nothing" for name, _ in stream)  # it ends
        deaf.close()
        idle.close()
    assert "Traceback" not in running.errors
    assert "ASGI" not in running.errors


# Who may ask


@pytest.mark.parametrize(
    "path", ["/", "/plain", "/page/app.js", "/_dev/events", "/_dev/stream", "/api/v1/track"]
)
def test_a_foreign_host_is_refused_everywhere(server, key, path):
    for host in ("evil.example", "127.0.0.1.evil.example:80", "[2001:db8::1]:80", ""):
        if not host and path.startswith("/api"):
            continue
        reply = call(server, "GET", path, None, {"host": host, "x-api-key": key})
        assert reply.status == 421, host
        assert reply.json["code"] == "MISDIRECTED"
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "127.1.2.3:80", "[::1]:99"):
        if path != "/_dev/stream":
            assert call(server, "GET", path, None, {"host": host, "x-api-key": key}).status != 421
    assert server.count(key=key) == 0


def test_a_foreign_origin_is_refused_everywhere_but_in_the_cancel_flow(server, key):
    own = f"http://127.0.0.1:{server.port}"
    for origin in (
        "https://evil.example",
        "http://localhost:3000",
        "null",
        f"https://127.0.0.1:{server.port}",
    ):
        for method, path in (
            ("POST", "/api/v1/track"),
            ("GET", "/_dev/events"),
            ("GET", "/_dev/stream"),
            ("POST", "/_dev/reset"),
            ("DELETE", "/_dev/faults"),
        ):
            reply = call(server, method, path, {}, {"origin": origin, "x-api-key": key})
            assert (reply.status, reply.json["code"]) == (403, "FORBIDDEN"), (origin, path)
            assert "access-control-allow-origin" not in reply.headers
    assert call(server, "GET", "/_dev/events", None, {"origin": own}).status == 200
    body = {"event": "e", "customer_email": "a@b.c"}
    assert call(server, "POST", "/api/v1/track", body, {"origin": own, "x-api-key": key}).status == 200


def test_pages_of_this_machine_may_use_the_cancel_flow(server):
    page = {"origin": "http://localhost:3000", "x-api-key": "pub_test_1"}
    offers = "/api/v1/cancel-flow/offers?reason=x"
    reply = call(server, "GET", offers, None, page)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, page["origin"])
    assert reply.headers["vary"] == "origin"
    asks = {"origin": page["origin"], "access-control-request-method": "POST"}
    allowed = call(server, "OPTIONS", "/api/v1/cancel-flow/submit", None, asks)
    assert (allowed.status, allowed.headers["access-control-allow-methods"]) == (204, "GET, POST")
    assert "x-api-key" in allowed.headers["access-control-allow-headers"]
    refused = call(server, "OPTIONS", "/api/v1/track", None, asks)
    assert refused.status == 403
    assert "access-control-allow-origin" not in refused.headers
    assert call(server, "GET", offers, None, {**page, "origin": "http://evil.example"}).status == 403
    no_key = call(server, "GET", offers, None, {"origin": page["origin"]})
    assert (no_key.status, no_key.headers["access-control-allow-origin"]) == (401, page["origin"])


def test_allow_host_and_allow_origin_let_others_in(key):
    arguments = ("--host", "0.0.0.0", "--allow-host", "dev.lan", "--allow-origin", "http://app.lan:3000")  # noqa: S104
    with Command("--port", "0", *arguments) as running:
        dev = running.server
        assert call(dev, "GET", "/_dev/events", None, {"host": "dev.lan:80"}).status == 200
        for host in ("other.lan", f"0.0.0.0:{dev.port}"):
            assert call(dev, "GET", "/_dev/events", None, {"host": host}).status == 421
        app = {"origin": "http://app.lan:3000", "x-api-key": key}
        assert track(dev, key, {"event": "e"}, origin="http://app.lan:3000").status == 200
        assert call(dev, "GET", "/_dev/events", None, app).status == 200
        offers = call(dev, "GET", "/api/v1/cancel-flow/offers?reason=x", None, app)
        assert offers.headers["access-control-allow-origin"] == "http://app.lan:3000"
        assert call(dev, "GET", "/_dev/events", None, {"origin": "http://app.lan:3001"}).status == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "reset"),
        ("POST", "mark"),
        ("POST", "send"),
        ("PUT", "faults"),
        ("POST", "faults"),
        ("PATCH", "faults/fault_1"),
        ("PUT", "offers"),
        ("POST", "webhooks"),
        ("POST", "churn-events/evt_x/move"),
        ("POST", "churn-events/evt_x/lost"),
    ],
)
def test_what_changes_something_needs_json_which_no_form_can_send(server, method, path):
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = call(server, method, f"/_dev/{path}", b"{}", {"content-type": content_type})
        assert (reply.status, reply.json["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


def test_the_page_may_load_nothing_from_elsewhere(server):
    for path in ("/", "/plain", "/page/index.html"):
        reply = call(server, "GET", path)
        assert reply.status == 200
        policy = dict(
            part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";")
        )
        assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == (
            "'none'",
            "'self'",
            "'self'",
        )
        assert (policy["base-uri"], policy["frame-ancestors"]) == ("'none'", "'none'")
        assert reply.headers["x-content-type-options"] == "nosniff"
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/x.js", "/page/"):
        assert call(server, "GET", path).status == 404
    events = call(server, "GET", "/_dev/events")
    assert (events.headers["content-type"], events.headers["x-content-type-options"]) == (
        "application/json",
        "nosniff",
    )


def test_what_events_say_is_text_in_the_list_without_scripts(server, key):
    evil = '<img src=x onerror="alert(1)">'
    track(
        server,
        key,
        {"event": evil, "customer_email": f"{evil.replace(' ', '')}@x", "properties": {evil: evil}},
        {"event": evil, "customer_email": evil},
    )
    page = call(server, "GET", f"/plain?q={quote(f'key:{label(key)}')}")
    text = page.raw.decode()
    assert "<img" not in text
    assert text.count("&lt;img") >= 4
    assert "ignored by the real API: events[1].customer_email: expected an address" in text
    assert 'value="&quot;&gt;&lt;script"' in call(server, "GET", "/plain?q=%22%3E%3Cscript").raw.decode()
    assert "column 1: the closing quote is missing" in call(server, "GET", "/plain?q=%22").raw.decode()
