"""The pytest plugin, in pytest runs of its own: no test reaches the real API, each sees what it tracked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import windback
from windback.devserver import DevServer

HEAD = """\
import asyncio
import pytest, respx, httpx
from windback import AsyncWindback, InvalidEventError, Windback, WindbackError
from windback.testing import CapturedEvent

JANE = "jane@example.com"
"""


@pytest.fixture
def run_pytest(tmp_path):
    """Run pytest with the plugin on a test file; return its outcomes by name, and what it printed."""

    def run(code, **environment):
        (tmp_path / "test_app.py").write_text(HEAD + textwrap.dedent(code), encoding="utf-8")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "windback.testing.plugin", "-p", "no:cacheprovider"),
                *("-vrA", "--strict-markers", "-W", "error", "--tb=short"),
                *("-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)),
            ],
            cwd=tmp_path,
            env={
                **inherited,
                "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]),
                "WINDBACK_API_KEY": "sk_test_1",
                "WINDBACK_PROJECT_SLUG": "shop",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # those of the other extras take seconds to load
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        outcomes = dict(re.findall(r"^(?:test_app.py)::(\w+) ([A-Z]+)", ended.stdout, re.MULTILINE))
        return outcomes, ended.stdout + ended.stderr

    return run


def test_a_real_send_fails_the_test_and_reaches_nobody(run_pytest):
    outcomes, said = run_pytest("""
        client = Windback(flush_interval=3600)

        def test_tracks_and_flushes():
            client.track_event("login", JANE)
            assert not client.flush(0.5)

        def test_tracks_only():
            for _ in range(1000):  # more than travel at once
                client.track_event("login", JANE)

        def test_innocent():
            stats = client.stats()
            assert (stats.accepted, stats.pending, stats.rejected_by_reason) == (1001, 0, {"forbidden": 1001})

        def test_calls():
            with pytest.raises(WindbackError, match="tests send nothing to api.windbackai.com"):
                Windback(timeout=60).create_churn_event(JANE)  # which is not tried again and again

        def test_tracks_in_a_loop():
            async def main():
                await AsyncWindback(flush_interval=3600).track_event("login", JANE)
            asyncio.run(main())

        def test_calls_in_a_loop():
            async def main():
                with pytest.raises(WindbackError, match="tests send nothing"):
                    await AsyncWindback(max_retries=0).create_churn_event(JANE)
            asyncio.run(main())
    """)
    assert outcomes == {
        "test_tracks_and_flushes": "FAILED",
        "test_tracks_only": "FAILED",
        "test_innocent": "PASSED",
        "test_calls": "FAILED",
        "test_tracks_in_a_loop": "FAILED",
        "test_calls_in_a_loop": "FAILED",
    }, said
    assert "this test would have sent events to api.windbackai.com: use the windback_events fixture" in said


def test_a_server_on_this_machine_and_a_mocked_one_are_nobodys_business(run_pytest):
    with DevServer() as server:
        outcomes, said = run_pytest(
            """
            import os

            def test_of_this_machine():
                client = Windback(base_url=os.environ["SERVER"])
                assert client.track_event("login", JANE)
                assert client.flush(5)
                client.close()

            @respx.mock
            def test_mocked():
                route = respx.post("https://api.windbackai.com/api/v1/track")
                route.mock(httpx.Response(200, json={}))
                with httpx.Client() as mocked, Windback(http_client=mocked) as client:
                    client.track_event("login", JANE)
                assert route.called

            def test_switched_off():
                assert not Windback(enabled=False).track_event("login", JANE)
            """,
            SERVER=server.url,
        )
        assert server.counts().events == 1
    assert set(outcomes.values()) == {"PASSED"}, said
    assert len(outcomes) == 3


def test_a_broker_elsewhere_is_the_real_thing_too_and_one_on_this_machine_is_not(run_pytest, redis_server):
    outcomes, said = run_pytest(
        """
        import os

        def test_tracks_only():
            client = Windback(broker="redis://:s3cret@redis.example.com", flush_interval=3600)
            client.track_event("login", JANE)

        def test_of_this_machine():
            with Windback(broker=os.environ["REDIS"]) as client:
                assert client.track_event("login", JANE)
                assert client.flush(5)
        """,
        REDIS=redis_server.url,
    )
    assert outcomes == {"test_tracks_only": "FAILED", "test_of_this_machine": "PASSED"}, said
    assert "this test would have sent events to redis.example.com: use the windback_events fixture" in said


def test_a_marked_test_may_send(run_pytest):
    outcomes, said = run_pytest("""
        @pytest.mark.windback_live
        def test_live():
            # Nobody is there, and who may send gets to know that.
            client = Windback(base_url="https://windback.invalid/api/v1", max_retries=0)
            with pytest.raises(WindbackError) as caught:
                client.create_churn_event(JANE)
            assert "tests send nothing" not in str(caught.value)
    """)
    assert outcomes == {"test_live": "PASSED"}, said


def test_the_fixture_lists_events_in_the_order_of_the_calls(run_pytest):
    outcomes, said = run_pytest("""
        early = Windback()

        def shout(event):
            return {**event, "event": event["event"].upper()} if event["event"] != "secret" else None

        def test_sync(windback_events):
            assert early.track_event("login", JANE, {"plan": "pro"}, timestamp="2025-12-01T10:00:00Z") is True
            late = Windback(before_send=shout)
            assert late.track_event("signup", JANE)
            assert not late.track_event("secret", JANE)
            result = late.track_events([{"event": each, "customer_email": JANE} for each in "ab"])
            assert (result.sent, result.requests, result.refused) == (2, 1, 0)
            assert [each.event for each in windback_events] == ["login", "SIGNUP", "A", "B"]
            assert windback_events[0] == CapturedEvent("login", JANE, {"plan": "pro"}, "2025-12-01T10:00:00Z")
            assert windback_events.one("login").properties == {"plan": "pro"}
            assert early.stats().accepted == 0
            assert early.flush()

        def test_async(windback_events):
            async def main():
                client = AsyncWindback()
                assert await client.track_event("login", JANE, timestamp="2025-12-01T10:00:00Z")
                await client.track_events([{"event": "a", "customer_email": JANE}])
                assert await client.flush()

            asyncio.run(main())
            assert [each.event for each in windback_events] == ["login", "a"]

        def test_bad_input_is_as_bad(windback_events):
            with pytest.raises(InvalidEventError, match="INVALID_EVENT: customer_email: "):
                early.track_event("login", "nobody")
            with pytest.raises(InvalidEventError, match=r": events\\[0\\]"):
                early.track_events([{"event": "a", "customer_email": "nobody"}])
            assert windback_events == []

        def test_one_reports_what_there_is(windback_events):
            early.track_event("login", JANE)
            with pytest.raises(AssertionError, match="'signup' was tracked 0 times, not 1; 1 event was:"):
                windback_events.one("signup")

        def test_closed_is_closed(windback_events):
            client = Windback()
            client.close()
            assert client.track_event("login", JANE) is False
            assert windback_events == []
    """)
    assert set(outcomes.values()) == {"PASSED"}, said
    assert len(outcomes) == 5


def test_events_are_captured_however_they_are_tracked(run_pytest):
    outcomes, said = run_pytest("""
        import functools
        import windback.context

        client = Windback()
        track, track_all, track_here = client.track_event, client.track_events, client.track
        loosely = functools.partial(track, "partial")
        async_track = AsyncWindback().track_event
        prepared = client.prepare("prepared", JANE)

        def test_what_a_module_bound_before(windback_events):
            assert track("bound", JANE) and loosely(customer_email=JANE, properties={"n": 1})
            assert track_all([{"event": "of_many", "customer_email": JANE}]).sent == 1
            assert prepared.send()
            with windback.context.bound(customer_email=JANE, plan="pro"):
                assert track_here("in_scope", {"n": 2})
            assert [each.event for each in windback_events] == [
                "bound", "partial", "of_many", "prepared", "in_scope"
            ]
            assert windback_events[-1].properties == {"plan": "pro", "n": 2}

        def test_what_an_async_client_bound_before(windback_events):
            async def main():
                assert await async_track("bound", JANE)
            asyncio.run(main())
            assert [each.event for each in windback_events] == ["bound"]

        def test_each_test_has_its_own(windback_events):
            assert windback_events == []
            assert client.with_options(timeout=1).track_event("copy", JANE)
            assert [each.event for each in windback_events] == ["copy"]
    """)
    assert set(outcomes.values()) == {"PASSED"}, said
    assert len(outcomes) == 3


def test_assertions_pass_for_what_was_tracked_and_return_it(run_pytest):
    outcomes, said = run_pytest("""
        def test_tracked(windback_events):
            client = Windback()
            for plan in ("pro", "free"):
                client.track_event("login", JANE, {"plan": plan, "n": 1})
            first, second = windback_events.assert_tracked("login")
            assert (first.properties["plan"], second.properties["plan"]) == ("pro", "free")
            (only,) = windback_events.assert_tracked("login", properties={"plan": "free"})
            assert only == second
            windback_events.assert_tracked("login", count=2)
            windback_events.assert_tracked("logout", count=0)
            windback_events.assert_not_tracked("logout")
            windback_events.assert_not_tracked("login", properties={"plan": "team"})
            windback_events.assert_tracked("login", properties={"n": pytest.approx(1.0)})
    """)
    assert outcomes == {"test_tracked": "PASSED"}, said


def test_a_failed_assertion_shows_what_came_and_the_nearest_misses(run_pytest):
    outcomes, said = run_pytest("""
        def fill():
            client = Windback()
            client.track_event("login", "jim@example.com", {"plan": "pro", "seats": "3"})
            client.track_event("Login", JANE, {"plan": "free"})
            client.track_event("export", JANE)

        def test_a(windback_events):
            fill()
            wanted = {"plan": "pro", "seats": 3}
            windback_events.assert_tracked("login", customer_email=JANE, properties=wanted)

        def test_b(windback_events):
            fill()
            windback_events.assert_tracked("export", count=2)

        def test_c(windback_events):
            fill()
            windback_events.assert_not_tracked("export", customer_email=JANE)

        def test_d(windback_events):
            windback_events.assert_tracked("export")
    """)
    assert set(outcomes.values()) == {"FAILED"}, said
    shown = [
        "'login' of jane@example.com with plan='pro' seats=3 was not tracked; 3 events were:",
        "1  login   jim@example.com   plan='pro' seats='3'",
        "2  Login   jane@example.com  plan='free'",
        "3  export  jane@example.com",
        "nearest:",
        (
            "1: customer_email is 'jim@example.com', not 'jane@example.com'; "
            "seats is '3', not 3 (the type differs)"
        ),
        "2: event is 'Login', not 'login' (the case differs); plan is 'free', not 'pro'; there is no seats",
        "'export' was tracked 1 time, not 2; 3 events were:",
        "'export' of jane@example.com was tracked 1 time, and should not have been; 3 events were:",
        "'export' was not tracked; no event was",
    ]
    assert [line for line in shown if line not in said] == []
    assert "3: event is 'export', not 'login'" not in said  # nobody misspelt that


NOTE = """
    import os, subprocess, sys

    @pytest.fixture(autouse=True)
    def note(windback_dev_server):
        with open("processes", "a") as file:
            file.write(f"{os.getpid()} {windback_dev_server.pid}\\n")
"""
DEV = """

    def track(name, count=1, **properties):
        with Windback(os.environ["WINDBACK_API_KEY"], base_url=os.environ["WINDBACK_BASE_URL"]) as client:
            for n in range(count):
                client.track_event(name, JANE, {"n": n, **properties})

    def test_events_arrive(windback_dev):
        track("login", 3)
        events = windback_dev.wait("login", count=3)
        assert [each.properties["n"] for each in events] == [0, 1, 2]
        assert [each.event for each in windback_dev.events()] == ["login"] * 3
        (only,) = windback_dev.assert_tracked("login", customer_email=JANE, properties={"n": 2})
        assert only.customer_email == JANE

    def test_nobody_sees_what_others_sent(windback_dev):
        assert windback_dev.events() == []
        windback_dev.assert_tracked("login", count=0)

    def test_a_client_that_is_told_nothing_finds_it(windback_dev):
        with Windback() as client:
            client.track_event("login", JANE)
        assert windback_dev.wait("login")

    def test_faults_end_by_themselves(windback_dev):
        windback_dev.faults(status=503, times=2)
        with Windback(windback_dev.key, base_url=windback_dev.url) as client:
            client.track_event("login", JANE)
            assert client.flush(20)
        windback_dev.wait("login")
        assert [each.status for each in windback_dev.requests()] == [503, 503, 200]

    def test_faults_of_one_test_are_no_others(windback_dev):
        windback_dev.faults(status=401)
        with pytest.raises(WindbackError):
            track_now(windback_dev)

    def test_after_faults(windback_dev):
        track_now(windback_dev)
        windback_dev.faults(status=401)
        windback_dev.clear_faults()
        track_now(windback_dev)

    def track_now(inbox):
        client = Windback(inbox.key, base_url=inbox.url, max_retries=0)
        client.track_events([{"event": "a", "customer_email": JANE}])

    def test_waits_for_a_child(windback_dev):
        code = (
            "import time; from windback import Windback; time.sleep(0.2); c = Windback();"
            f"c.track_event('late', '{JANE}', {{'plan': 'pro'}}); c.close()"
        )
        child = subprocess.Popen([sys.executable, "-c", code])
        windback_dev.assert_tracked("late", properties={"plan": "pro"}, timeout=30)
        assert child.wait() == 0
"""


def processes(folder):
    """Return those that ran tests, and their servers."""
    lines = {*(folder / "processes").read_text().splitlines()}
    return len({line.split()[0] for line in lines}), len(lines)


def test_the_local_server_has_an_inbox_for_each_test(run_pytest, tmp_path):
    outcomes, said = run_pytest(NOTE + DEV)
    assert set(outcomes.values()) == {"PASSED"}, said
    assert len(outcomes) == 7
    assert processes(tmp_path) == (1, 1)


def test_each_worker_of_xdist_has_a_server_of_its_own(run_pytest, tmp_path):
    code = """
    @pytest.mark.parametrize("n", range(4))
    def test_one(windback_dev, n):
        Windback().track_events([{"event": "a", "customer_email": JANE}])
        assert len(windback_dev.wait("a")) == 1
    """
    _, said = run_pytest(NOTE + code, PYTEST_ADDOPTS="-p xdist -n 2")
    assert "4 passed" in said
    assert processes(tmp_path) == (2, 2)


def test_waiting_in_vain_shows_what_came(run_pytest):
    outcomes, said = run_pytest("""
        def track(inbox, name):
            Windback(inbox.key, base_url=inbox.url).track_events([{"event": name, "customer_email": JANE}])

        def test_a(windback_dev):
            track(windback_dev, "Login")
            windback_dev.wait("login", count=2, timeout=0.2)

        def test_b(windback_dev):
            track(windback_dev, "logon")
            windback_dev.assert_tracked("login", timeout=0.2)
    """)
    assert set(outcomes.values()) == {"FAILED"}, said
    assert "0 of 2 came within 0.2 s; 1 x `Login`: the case differs" in said
    assert "1  Login  jane@example.com" in said
    assert "'login' was not tracked; 1 event was:" in said
    assert "1: event is 'logon', not 'login'" in said


UNITTEST = """\
import os, unittest
from windback import Windback
from windback.testing import LocalServerTestCase, WindbackTestCase

JANE = "jane@example.com"

class Captures(WindbackTestCase):
    def test_tracked(self):
        Windback("sk_test_1").track_event("login", JANE, {"plan": "pro"})
        self.assert_tracked("login", properties={"plan": "pro"})
        self.assert_not_tracked("logout")
        self.assertEqual(self.windback_events.one("login").customer_email, JANE)

    def test_others(self):
        self.assertEqual(self.windback_events, [])
        Windback("sk_test_1").track_event("login", JANE)
        self.assert_tracked("Login")

    def test_calls_elsewhere(self):
        with self.assertRaisesRegex(Exception, "tests send nothing to api.windbackai.com"):
            Windback("sk_test_1", "shop", max_retries=0).create_churn_event(JANE)

class Arrives(LocalServerTestCase):
    def test_one(self):
        with Windback() as client:
            client.track_event("login", JANE)
        self.windback_dev.wait("login")

    def test_two(self):
        self.assertEqual(self.windback_dev.events(), [])
        self.assertEqual(os.environ["WINDBACK_API_KEY"], self.windback_dev.key)

class Both(WindbackTestCase, LocalServerTestCase):
    def test_captured(self):
        Windback().track_event("login", JANE)
        self.assert_tracked("login")
        self.windback_dev.assert_tracked("login", count=0)

def tearDownModule():
    assert Windback("sk_test_1").track_event.__func__ is Windback.track_event
    assert "WINDBACK_API_KEY" not in os.environ
"""


def test_unittest_has_the_same_and_needs_no_pytest(tmp_path):
    (tmp_path / "test_app.py").write_text(UNITTEST, encoding="utf-8")
    (tmp_path / "pytest.py").write_text("raise ImportError\n", encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "unittest", "-v", "test_app"],
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    results = dict(re.findall(r"^(test_\w+) .*\.\.\. (\w+)$", done.stderr, re.MULTILINE))
    assert results == {
        "test_tracked": "ok",
        "test_others": "FAIL",
        "test_calls_elsewhere": "FAIL",
        "test_one": "ok",
        "test_two": "ok",
        "test_captured": "ok",
    }, done.stderr
    assert "event is 'login', not 'Login' (the case differs)" in done.stderr
    assert "this test would have sent to api.windbackai.com" in done.stderr
    assert "ResourceWarning" not in done.stderr


def test_pytest_finds_the_plugin_by_its_entry_point():
    entry_points = pytest.importorskip("importlib.metadata").entry_points()
    group = (
        entry_points.select(group="pytest11") if hasattr(entry_points, "select") else entry_points["pytest11"]
    )
    assert "windback.testing.plugin" in {each.value for each in group if each.name == "windback"}


def test_no_worker_and_no_queue_gets_around_the_plugin(run_pytest, tmp_path, redis_server):
    """Each of these sends from another place, and one of them not at all: what it tracks is found anyway."""
    _, said = run_pytest(
        """
        import os, pathlib

        ROOT = pathlib.Path(os.environ["ROOT"])
        KINDS = {
            "thread": (Windback, {"worker": "thread"}),
            "journal": (Windback, {"journal": ROOT / "journal"}),
            "process": (Windback, {"worker": "process"}),
            "relay": (Windback, {"worker": None, "journal": ROOT / "relay"}),
            "task": (AsyncWindback, {"worker": "task"}),
            "thread of a loop": (AsyncWindback, {"worker": "thread"}),
            "process of a loop": (AsyncWindback, {"worker": "process"}),
            "relay of a loop": (AsyncWindback, {"worker": None, "journal": ROOT / "relay of a loop"}),
            "broker": (Windback, {"broker": "redis://redis.example.com"}),
            "process and broker": (Windback, {"worker": "process", "broker": "redis://redis.example.com"}),
        }
        EVERY = pytest.mark.parametrize("kind", KINDS)
        OLD = {kind: make(flush_interval=3600, **options) for kind, (make, options) in KINDS.items()}

        def track(client):
            answer = client.track_event("login", JANE)
            return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer

        def close(client, timeout):
            answer = client.close(timeout)
            return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer

        @EVERY
        def test_tracks(kind):
            assert track(OLD[kind])

        @EVERY
        def test_innocent(kind):
            assert OLD[kind].stats().accepted == 1

        @EVERY
        def test_closes(kind):
            make, options = KINDS[kind]
            options = {**options, "journal": ROOT / f"closed {kind}"} if "journal" in options else options
            client = make(flush_interval=3600, **options)
            assert track(client)
            close(client, 0)

        @EVERY
        def test_captured(kind, windback_events):
            track(OLD[kind])
            windback_events.one("login")
            assert OLD[kind].stats().accepted == 1
        """,
        ROOT=str(tmp_path),
    )
    verdicts = {"test_tracks": "FAILED", "test_innocent": "PASSED", "test_captured": "PASSED"}
    found = re.findall(r"^test_app.py::(\w+)\[([^\]]+)\] ([A-Z]+)", said, re.MULTILINE)
    assert len({(test, kind) for test, kind, _ in found}) == 40, said
    assert [each for each in found if each[2] != verdicts.get(each[0], each[2])] == [], said
    closed = {kind: verdict for test, kind, verdict in found if test == "test_closes"}
    # Without time to deliver, a local worker drops its event; what outlives the client would send it.
    assert {closed[kind] for kind in closed if "process" in kind or "relay" in kind} == {"FAILED"}, said


def test_a_sender_process_that_runs_already_ends_before_a_test_can_use_it(run_pytest, tmp_path):
    """127.0.0.2 plays another machine, on which everything that arrives is written down."""
    outcomes, said = run_pytest(
        """
        import http.server, os, pathlib, threading
        import windback.testing.blocking as blocking

        is_loopback = blocking.is_loopback
        blocking.is_loopback = lambda host: host != "127.0.0.2" and is_loopback(host)
        arrived = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                arrived.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.2", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = Windback(
            worker="process", base_url=f"http://127.0.0.2:{server.server_address[1]}/api/v1",
            journal=pathlib.Path(os.environ["ROOT"], "journal"), flush_interval=0.001,
        )

        client.track_event("before", JANE)
        assert client.flush(20)
        assert len(arrived) == 1

        def test_tracks():
            client.track_event("secret", JANE)

        def test_tracks_and_flushes():
            client.track_event("secret", JANE)
            client.flush(20)

        def test_nothing_left():
            stats = client.stats()
            assert (len(arrived), stats.delivered, stats.rejected, stats.pending) == (1, 1, 2, 0), stats
            assert stats.worker_deaths == 0
        """,
        ROOT=str(tmp_path),
    )
    assert outcomes == {
        "test_tracks": "FAILED",
        "test_tracks_and_flushes": "FAILED",
        "test_nothing_left": "PASSED",
    }, said


def test_what_fixtures_send_fails_the_test_that_has_them(run_pytest, tmp_path):
    outcomes, said = run_pytest("""
        client = Windback(flush_interval=3600)

        @pytest.fixture
        def begins():
            client.track_event("login", JANE)

        @pytest.fixture
        def ends():
            yield
            client.track_event("logout", JANE)

        def test_begins(begins):
            pass

        def test_ends(ends):
            pass

        @pytest.mark.windback_live
        def test_live():
            assert client.stats().pending == 0
    """)
    assert outcomes["test_begins"] == "ERROR", said
    assert outcomes["test_live"] == "PASSED", said
    assert re.search(r"ERROR at teardown of test_ends", said), said
    assert said.count("would have sent events to api.windbackai.com") >= 2


def test_what_a_dropped_client_left_to_a_relay_is_blamed_on_its_own_test(run_pytest, tmp_path):
    """The client is closed by itself a moment later, maybe during the next test."""
    outcomes, said = run_pytest(
        """
        import os, pathlib, time
        from windback.process import lifecycle

        def test_drops():
            Windback(worker=None, journal=pathlib.Path(os.environ["ROOT"])).track_event("login", JANE)

        def test_innocent():
            deadline = time.monotonic() + 20
            while lifecycle.engines() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not lifecycle.engines()
        """,
        ROOT=str(tmp_path / "journal"),
    )
    assert outcomes == {"test_drops": "FAILED", "test_innocent": "PASSED"}, said
