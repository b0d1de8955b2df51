"""Several projects through one broker: each has a key, in relays alone, and waits for no other."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from relays import running
from tracking import JANE

import windback
from windback import ConfigurationError, Windback
from windback.broker.layout import PROJECTS, fields_of, keys_of
from windback.devserver import DevServer
from windback.relay import BrokerRelay

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="it runs no redis-server"),
    pytest.mark.usefixtures("no_environment"),
]

SHOP, BLOG, NONE = "sk_shop_5ecret", "sk_blog_5ecret", "sk_none_5ecret"
KEYS = {"shop": SHOP, "blog": BLOG, "": NONE}


@pytest.fixture
def track(redis_server):
    """Track events as an application of a project does, which has no key."""

    def track(project, numbers):
        with Windback(broker=redis_server.url, project_slug=project or None) as client:
            for n in numbers:
                assert client.track_event("login", JANE, {"project": project, "n": n})
            assert client.flush(20)

    return track


class Recorder:
    """A server that takes everything, and knows under which key each event came."""

    def __init__(self):
        self.seen = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                events = body.get("events", [body])
                outer.seen += [
                    (self.headers["x-api-key"], each["properties"]["project"], each["properties"]["n"])
                    for each in events
                ]
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/api/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def recorder():
    server = Recorder()
    yield server
    server.close()


@pytest.mark.parametrize("how", ["argument", "environment", "both variables", "file"])
def test_each_project_is_sent_with_its_own_key(
    redis_server, track, recorder, how, tmp_path, monkeypatch, eventually
):
    for project in KEYS:
        track(project, range(100))
    options = {"broker": redis_server.url, "base_url": recorder.url}
    pairs = ",".join(f"{project}={key}" for project, key in KEYS.items())
    if how == "file":
        path = tmp_path / "keys"
        path.write_text("# of three projects\n\n" + pairs.replace(",", "\n").replace("=", " = "), "utf-8")
        path.chmod(0o600)
        done = relay_command(redis_server.url, "--base-url", recorder.url, "--keys", str(path), "--once")
        assert (done.returncode, "300 events read, 300 delivered" in done.stderr) == (0, True), done.stderr
    else:
        if how == "argument":
            options["api_keys"] = KEYS
        elif how == "environment":
            monkeypatch.setenv("WINDBACK_API_KEYS", pairs)
        else:
            monkeypatch.setenv("WINDBACK_API_KEYS", f"shop={SHOP},={NONE}")
            monkeypatch.setenv("WINDBACK_API_KEY", BLOG)
            monkeypatch.setenv("WINDBACK_PROJECT_SLUG", "blog")
        with running(BrokerRelay(**options)) as relay:
            eventually(lambda: len(recorder.seen) == 300)
            eventually(lambda: relay.left() == 0)
        assert relay.stats().delivered == 300
        assert {project: each.delivered for project, each in relay.by_project().items()} == dict.fromkeys(
            KEYS, 100
        )
    wanted = [(key, project, n) for project, key in KEYS.items() for n in range(100)]
    assert sorted(recorder.seen) == sorted(wanted)


def relay_command(broker, *options, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from windback.cli import main; raise SystemExit(main())", "relay", *options],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]),
            "WINDBACK_BROKER": broker,
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )


def test_events_of_a_project_without_a_key_stay_and_are_logged_once(
    redis_server, track, recorder, caplog, monkeypatch, eventually
):
    monkeypatch.setattr("windback.relay.broker.WATCH_S", 0.05)
    track("shop", range(10))
    track("blog", range(10))
    with running(BrokerRelay(redis_server.url, api_keys={"shop": SHOP}, base_url=recorder.url)) as relay:
        eventually(lambda: len(recorder.seen) == 10)
        track("", range(10))  # one that comes later
        eventually(lambda: "applications without a project" in caplog.text)
        track("blog", range(10, 20))
        eventually(lambda: relay.left() == 0)
    told = [record.message for record in caplog.records if "no key" in record.message]
    assert told == [
        (
            f"broker {redis_server.url}: events of {whose} are not sent, because there is no key for them "
            "(see WINDBACK_API_KEYS)"
        )
        for whose in ("the project 'blog'", "applications without a project")
    ]
    assert {key for key, _, _ in recorder.seen} == {SHOP}
    with running(BrokerRelay(redis_server.url, api_keys={"blog": BLOG, "": NONE}, base_url=recorder.url)):
        eventually(lambda: len(recorder.seen) == 40)
    assert sorted(recorder.seen)[:30] == sorted(
        [(BLOG, "blog", n) for n in range(20)] + [(NONE, "", n) for n in range(10)]
    )


def test_a_project_that_is_held_up_holds_up_no_other(redis_server, track, eventually):
    """One has a key that the API does not take; the other one's events go out meanwhile."""
    with DevServer(keys=[SHOP]) as server:
        track("blog", range(2000))
        track("shop", range(2000))
        relay = BrokerRelay(redis_server.url, api_keys={"shop": SHOP, "blog": BLOG}, base_url=server.url)
        with running(relay):
            eventually(lambda: relay.by_project()["shop"].delivered == 2000, 30)
            eventually(lambda: relay.by_project()["blog"].problem is not None)
        stats = relay.by_project()
        assert (stats["shop"].delivered, stats["shop"].pending, stats["shop"].problem) == (2000, 0, None)
        assert (stats["blog"].delivered, stats["blog"].rejected) == (0, 0)
        assert len(server.events()) == 2000
        left = redis_server.client.xrange(keys_of("blog").events)
        assert sum(int(fields["count"]) for _, fields in left) == 2000


def test_only_the_project_that_is_asked_to_waits(redis_server, track, recorder, eventually):
    track("blog", range(10))
    track("shop", range(10))
    redis_server.client.set(keys_of("blog").pause, 1, px=60_000)
    with running(BrokerRelay(redis_server.url, api_keys=KEYS, base_url=recorder.url)):
        eventually(lambda: len(recorder.seen) == 10)
        eventually(lambda: redis_server.client.xlen(keys_of("shop").events) == 0)
    assert {key for key, _, _ in recorder.seen} == {SHOP}
    assert redis_server.client.xlen(keys_of("blog").events) >= 1


def test_an_entry_of_another_project_is_never_sent_with_this_ones_key(
    redis_server, track, recorder, eventually
):
    fields = fields_of([b'{"event":"login"}'], "key", "blog")
    redis_server.client.xadd(keys_of("shop").events, dict(zip(fields[::2], fields[1::2])))
    track("shop", range(1))
    with running(BrokerRelay(redis_server.url, api_keys={"shop": SHOP}, base_url=recorder.url)):
        eventually(lambda: redis_server.client.xlen(keys_of("shop").events) == 0)
    assert recorder.seen == [(SHOP, "shop", 0)]
    ((_, letter),) = redis_server.client.xrange(keys_of("shop").dead)
    assert "it belongs to the project b'blog', whose stream is another" in letter["message"]
    assert letter["of:events"] == '{"event":"login"}'


def test_a_redis_that_forgot_the_projects_learns_of_them_again(redis_server, monkeypatch):
    monkeypatch.setattr("windback.broker.sink._NAMED_EVERY_S", 0.0)
    with Windback(broker=redis_server.url, project_slug="shop") as client:
        for n in range(2):
            redis_server.client.flushall()
            assert client.track_event("login", JANE, {"n": n})
            assert client.flush(20)
            assert redis_server.client.smembers(PROJECTS) == {"shop"}


BAD = [
    ({}, "no API key"),
    ({"api_keys": {}}, "no API key"),
    ({"api_keys": {"shop": "pub_5ecret"}}, "the key of 'shop' must start with sk_; this is a public key"),
    ({"api_keys": {"shop": 7}}, "the key of 'shop' must be a string that starts with sk_, not an int"),
    ({"api_keys": {"a b": SHOP}}, "project_slug 'a b' must be letters"),
    ({"api_keys": [SHOP]}, "api_keys must map the slugs of projects to keys, and is a list"),
    (
        {"api_keys": {"shop": SHOP}, "api_key": BLOG, "project_slug": "shop"},
        "two keys for the project 'shop'",
    ),
    ({"api_keys": {"": SHOP}, "api_key": BLOG}, "two keys for events without a project"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=[says for _, says in BAD])
def test_keys_that_can_not_be_right_are_reported_without_them(redis_server, options, says):
    with pytest.raises(ConfigurationError) as caught:
        BrokerRelay(redis_server.url, **options)
    assert says in str(caught.value)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    here, *others = "".join(shown.format()).split("/windback/relay/broker.py")
    del here  # the frame of this test has them
    assert "5ecret" not in "".join(others)


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("shop=sk_5ecret", 0o604, "is readable by other users: chmod 600"),
        ("shop=sk_5ecret", 0o640, "is readable by other users: chmod 600"),
        ("sk_5ecret", 0o600, "must be slug=sk_…, separated by commas or line ends; number 1 can't be read"),
        ("shop=sk_5ecret\nblog=", 0o600, "number 2 can't be read"),
        ("shop=sk_5ecret\nshop=sk_5ecret2", 0o600, "contains two keys for one project"),
        ("# nothing\n", 0o600, "contains no key"),
        (None, 0o600, "can't read keys from"),
    ],
)
def test_a_file_of_keys_that_will_not_do_is_one_line_and_status_2(tmp_path, text, mode, says):
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        if not os.getuid():
            os.chown(path, -1, 12345)  # the group of root may be anybody's who reads it for a service
    done = relay_command("redis://127.0.0.1:1/0", "--keys", str(path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert says in done.stderr
    assert "5ecret" not in done.stderr


def test_a_variable_of_keys_that_will_not_do_is_one_line_and_status_2():
    done = relay_command("redis://127.0.0.1:1/0", WINDBACK_API_KEYS=f"shop={SHOP},{BLOG}")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "WINDBACK_API_KEYS must be slug=sk_…, separated by commas or line ends; number 2" in done.stderr
    assert "5ecret" not in done.stderr


def test_many_projects_end_in_time_while_redis_hangs(redis_server, recorder):
    """Their ends run side by side."""
    keys = {f"project-{n}": f"sk_{n}" for n in range(8)}
    relay = BrokerRelay(
        redis_server.url, api_keys=keys, base_url=recorder.url, timeout=1, shutdown_timeout=0.5
    )
    thread = threading.Thread(target=relay.run)
    thread.start()
    redis_server.signal(signal.SIGSTOP)
    try:
        started_s = time.monotonic()
        relay.stop()
        thread.join(30)
        assert time.monotonic() - started_s < 12
    finally:
        redis_server.signal(signal.SIGCONT)
        thread.join()
