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
                *(
                    "-p",
                    "no:windback",
                    "-p",
                    "no:asyncio",
                    "-vrA",
                    "--strict-markers",
                    "-W",
                    "error",
                    "--tb=short",
                ),
                *("-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)),
            ],
            cwd=tmp_path,
            env={
                **inherited,
                "PYTHONPATH": str(Path(windback.__file__).resolve().parents[1]),
                "WINDBACK_API_KEY": "sk_test_1",
                "WINDBACK_PROJECT_SLUG": "shop",
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
            client.track_event("login", JANE)

        def test_innocent():
            assert client.stats().pending == 0

        def test_calls():
            with pytest.raises(WindbackError, match="tests send nothing to api.windbackai.com"):
                Windback(max_retries=0).create_churn_event(JANE)

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
                with Windback() as client:
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

        def test_one_says_what_there_is(windback_events):
            early.track_event("login", JANE)
            with pytest.raises(AssertionError, match="'signup' was tracked 0 times, not 1; 1 event was:"):
                windback_events.one("signup")

        def test_closed_is_closed(windback_events):
            client = Windback()
            client.close()
            with pytest.raises(WindbackError, match="closed"):
                client.track_event("login", JANE)
    """)
    assert set(outcomes.values()) == {"PASSED"}, said
    assert len(outcomes) == 5


def test_pytest_finds_the_plugin_by_its_entry_point():
    entry_points = pytest.importorskip("importlib.metadata").entry_points()
    group = (
        entry_points.select(group="pytest11") if hasattr(entry_points, "select") else entry_points["pytest11"]
    )
    assert "windback.testing.plugin" in {each.value for each in group if each.name == "windback"}
