"""The alerts and the dashboard of examples/monitoring, with a real Prometheus, applications and a relay."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from calls import eventually
from monitoring import EXAMPLE, ROOT, Monitoring, expressions_of_alerts, program, queries_of_dashboard

from windback.devserver import DevServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it runs no redis-server")


def promtool(*arguments):
    return subprocess.run(
        [program("promtool"), *arguments], cwd=EXAMPLE, capture_output=True, text=True, check=False
    )


def test_each_alert_fires_in_its_case_and_in_no_other():
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    cases = (EXAMPLE / "alerts_test.yml").read_text(encoding="utf-8")
    fire = set(re.findall(r"- alertname: (\w+)\n\s+eval_time: .*\n\s+exp_alerts:", cases))
    silent = set(re.findall(r"- \{ alertname: (\w+), eval_time", cases))
    assert fire == silent == set(expressions_of_alerts())
    assert len(fire) == 9


@pytest.mark.parametrize(
    "arguments", [("check", "rules", "alerts.yml"), ("check", "config", "prometheus.yml")]
)
def test_the_files_are_what_prometheus_wants(arguments):
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_about_monitoring_names_each_alert():
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert [name for name in expressions_of_alerts() if f"`{name}`" not in page] == []


@pytest.fixture
def monitoring(tmp_path, redis_server):
    with DevServer() as server:
        watched = Monitoring(tmp_path, server, redis_server)
        watched.server = server
        yield watched
        watched.close()


@pytest.mark.timeout(300)
def test_every_query_of_the_dashboard_and_of_the_alerts_returns_data(monitoring):
    # For a while the API rejects what the application and the relay send.
    monitoring.server.faults([{"status": 400}])
    eventually(lambda: monitoring.value("max(windback_broker_dead_letters)"), within_s=60)
    eventually(lambda: monitoring.query("windback_client_rejected_events_total"), within_s=60)
    # And for a while it fails, until a queue is full.
    monitoring.server.faults([{"status": 503}])
    full = 'windback_client_refused_events_total{reason="queue_full"}'
    eventually(lambda: monitoring.query(full), within_s=120)
    monitoring.server.faults([])

    queries = queries_of_dashboard("20s")
    assert len(queries) > 15
    missing = dict(queries)

    def all_have_data():
        for name in list(missing):
            if monitoring.query(missing[name]):
                del missing[name]
        return not missing

    try:
        eventually(all_have_data, within_s=60)
    except AssertionError:
        pytest.fail(f"no data: {missing}")
    for name, expression in expressions_of_alerts().items():
        # Without `bool` an alert that does not fire has no data.
        found = monitoring.query(re.sub(r"(==|>) (?=\d)", r"\1 bool ", expression))
        assert found, f"{name}: {expression}"
    # And the numbers are those of the server: both applications track for ever, so the sum only grows.
    sent = monitoring.value("sum(windback_client_sent_events_total{instance=~'.*'})")
    assert sent is not None
    assert sent > 0
    relayed = monitoring.value("sum(windback_relay_sent_events_total)")
    eventually(lambda: (monitoring.value("sum(windback_relay_sent_events_total)") or 0) > (relayed or 0))
    eventually(lambda: monitoring.query("ALERTS{alertname='WindbackDeadLetters', alertstate='firing'}"))
