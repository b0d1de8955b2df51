"""debug=True: readable lines about each event; and clients without a key while events are captured."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from commands import SOURCE

from windback import AsyncWindback, ConfigurationError, DisabledError, Windback
from windback.devserver import DevServer
from windback.testing import capturing

JANE = "jane@example.com"


@pytest.fixture(scope="module")
def server():
    with DevServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _level():
    logger = logging.getLogger("windback")
    level = logger.level
    yield
    logger.setLevel(level)


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]


@pytest.mark.parametrize("options", [{"debug": True}, {}])
def test_each_event_has_a_line_when_it_is_queued_and_one_when_it_is_delivered(
    server, caplog, monkeypatch, options
):
    if not options:
        monkeypatch.setenv("WINDBACK_DEBUG", "1")
    reports = []
    with Windback(
        "sk_test_1", base_url=server.url, flush_interval=3600, on_delivery=reports.append, **options
    ) as client:
        client.track_event("login", JANE, {"plan": "pro", "n": 1})
        client.track_event("logout", JANE)
        assert client.flush(20)
    assert lines(caplog) == [
        "queued: login of j…@example.com with plan, n, 126 bytes",
        "queued: logout of j…@example.com, 93 bytes",
        "delivered: login of j…@example.com with plan, n (ok, status 200)",
        "delivered: logout of j…@example.com (ok, status 200)",
    ]
    assert [report.count for report in reports] == [2]


def test_what_is_not_sent_has_a_line_too(server, caplog):
    server.faults([{"status": 400, "times": 1}])
    with Windback(
        "sk_test_1",
        base_url=server.url,
        debug=True,
        max_queue_size=1,
        flush_interval=3600,
        batch_size=1,
        before_send=lambda event: None if event["event"] == "secret" else event,
    ) as client:
        assert not client.track_event("secret", JANE)
        client.track_event("login", JANE)
        client.flush(20)
    assert not client.track_event("late", JANE)
    found = lines(caplog)
    assert found[0] == "refused by before_send: secret of j…@example.com"
    assert any(line.startswith("rejected: login of j…@example.com (") for line in found)
    assert found[-1].startswith("refused (see stats().refused): late of j…@example.com")


def test_without_it_there_is_no_line(server, caplog):
    caplog.set_level(logging.DEBUG, "windback")
    with Windback("sk_test_1", base_url=server.url) as client:
        client.track_event("login", JANE)
        assert client.flush(20)
    assert lines(caplog) == []


SCRIPT = """
import logging, sys
{setup}
from windback import Windback
with Windback("sk_test_1", base_url=sys.argv[1], debug=True) as client:
    client.track_event("login", "jane@example.com")
"""


@pytest.mark.parametrize(
    ("setup", "count"),
    [
        ("", 2),
        ("logging.basicConfig(level='INFO')", 2),  # once, by the application's own handler
        ("logging.getLogger('windback').addHandler(logging.NullHandler())", 0),
    ],
)
def test_the_lines_are_seen_once_also_where_no_logging_is_set_up(server, setup, count):
    code = SCRIPT.format(setup=setup)
    ended = subprocess.run(
        [sys.executable, "-c", code, server.url],
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": str(SOURCE)},
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert ended.stderr.count("login of j…@example.com") == count


@pytest.mark.parametrize("kind", [Windback, AsyncWindback])
def test_a_client_that_is_made_while_events_are_captured_needs_no_key(kind, no_environment):
    with capturing() as events:
        client = kind()
        prepared = client.prepare("login", JANE)
        assert prepared is not None
        assert prepared.send()
    assert [each.event for each in events] == ["login"]
    # Afterwards there is still nothing that it could be sent with.
    prepared = client.prepare("login", JANE)
    assert prepared is not None
    assert not prepared.send()
    with pytest.raises(ConfigurationError, match="no API key"):
        kind()


def test_a_plain_call_while_events_are_captured_reports_which_fixture_answers(no_environment):
    with capturing():
        client = Windback(project_slug="shop")
        with pytest.raises(DisabledError, match="use the fixture windback_dev"):
            client.create_churn_event(JANE)
