"""The metrics of clients, as Prometheus reads them."""

from __future__ import annotations

import gc
import os
import re
import shlex
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from calls import eventually
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from servers import AppServer

import windback
from windback import prometheus

ROOT = Path(__file__).resolve().parents[2]


def scrape(registry):
    return values(generate_latest(registry).decode())


def values(text):
    families = text_string_to_metric_families(text)
    return {
        (sample.name, sample.labels.get("project"), sample.labels.get("reason")): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def value(found, name, reason=None, project="shop"):
    return found[f"windback_client_{name}", project, reason]


def make(server, slug="shop", **options):
    return windback.Windback("sk_test_1", slug, base_url=server.url, **options)


def test_the_metrics_are_the_counters_of_the_client(server):
    registry = CollectorRegistry()
    with make(server, before_send=lambda event: event if event["event"] == "login" else None) as client:
        prometheus.register(client, registry)
        for _ in range(250):
            client.track_event("login", "jane@example.com")
        client.track_event("noise", "jane@example.com")
        assert client.flush(30)
        found, stats = scrape(registry), client.stats()
        assert value(found, "accepted_events_total") == 250 == stats.delivered
        assert value(found, "sent_events_total") == 250
        assert value(found, "requests_total") == stats.requests
        assert value(found, "refused_events_total", "before_send") == 1
        assert value(found, "pending_events") == value(found, "held_up") == 0


def test_what_was_accepted_is_the_sum_of_the_outcomes_while_the_api_is_down():
    registry = CollectorRegistry()
    client = windback.Windback("sk_test_1", "shop", base_url="http://127.0.0.1:9", shutdown_timeout=0)
    prometheus.register(client, registry)
    for _ in range(30):
        client.track_event("login", "jane@example.com")
    eventually(lambda: client.stats().problem is not None, within_s=40)
    found = scrape(registry)
    assert value(found, "accepted_events_total") == 30 == value(found, "pending_events")
    assert value(found, "held_up") == 1
    client.close(0)
    # A batch that is in a request is dropped when that has failed.
    eventually(lambda: value(scrape(registry), "dropped_events_total") == 30)


def test_registering_again_changes_nothing(server):
    registry = CollectorRegistry()
    with make(server) as client:
        for each in (client, client, client.with_options(timeout=3)):
            prometheus.register(each, registry)
        client.track_event("login", "jane@example.com")
        assert value(scrape(registry), "accepted_events_total") == 1


def test_clients_are_added_up_by_project(server):
    registry = CollectorRegistry()
    with make(server) as one, make(server) as two, make(server, "other") as other:
        for client in (one, two, other):
            prometheus.register(client, registry)
            client.track_event("login", "jane@example.com")
        found = scrape(registry)
        assert value(found, "accepted_events_total") == 2
        assert value(found, "accepted_events_total", project="other") == 1


def test_a_counter_does_not_fall_when_a_client_goes(server):
    registry = CollectorRegistry()
    client = make(server)
    prometheus.register(client, registry)
    client.track_event("login", "jane@example.com")
    client.close()
    assert value(scrape(registry), "sent_events_total") == 1
    del client
    gc.collect()
    assert value(scrape(registry), "sent_events_total") == 1


@pytest.mark.parametrize("worker", ["thread", "process", None])
def test_a_client_that_is_closed_with_pending_events_is_still_reported(worker, tmp_path):
    registry = CollectorRegistry()
    client = windback.Windback(
        "sk_test_1", "shop", base_url="http://127.0.0.1:9", worker=worker, journal=tmp_path
    )
    prometheus.register(client, registry)
    client.track_event("login", "jane@example.com")
    client.close(0)
    found, report = scrape(registry), client.report()
    assert value(found, "accepted_events_total") == 1 == report.stats.accepted
    left = value(found, "pending_events") + value(found, "dropped_events_total")
    assert left == 1, report


def test_the_default_client_is_the_one_at_the_time_of_a_scrape(server, no_environment):
    registry = CollectorRegistry()
    prometheus.register(registry=registry)
    with make(server) as client:
        windback.set_client(client)
        try:
            client.track_event("login", "jane@example.com")
            assert value(scrape(registry), "accepted_events_total") == 1
        finally:
            windback.set_client(None)


@pytest.mark.parametrize("arguments", [{"client": 3}, {"registry": 3}])
def test_a_wrong_argument_is_an_error_of_the_configuration(arguments):
    with pytest.raises(windback.ConfigurationError, match="must be a"):
        prometheus.register(**arguments)


def test_what_a_client_counted_before_it_was_closed_is_not_lost_between_two_scrapes(server):
    registry = CollectorRegistry()
    with make(server) as client:
        prometheus.register(client, registry)
        client.track_event("login", "jane@example.com")
    del client
    gc.collect()
    assert value(scrape(registry), "sent_events_total") == 1


def test_the_age_of_the_oldest_event_is_that_of_its_timestamp(held_up):
    registry = CollectorRegistry()
    prometheus.register(held_up, registry)
    assert value(scrape(registry), "oldest_event_seconds") == 0
    held_up.track_event("login", "jane@example.com", timestamp="2001-01-01T00:00:00Z")
    held_up.track_event("login", "jane@example.com")
    assert value(scrape(registry), "oldest_event_seconds") > 20 * 365 * 86_400


@pytest.fixture
def held_up():
    client = windback.Windback("sk_test_1", "shop", base_url="http://127.0.0.1:9", shutdown_timeout=0)
    yield client
    client.close(0)


def test_a_forked_child_has_not_counted_what_its_parent_did(server):
    registry = CollectorRegistry()
    with make(server) as client, make(server) as gone:
        prometheus.register(client, registry)
        prometheus.register(gone, registry)
        for each in (client, gone):
            each.track_event("login", "jane@example.com")
        gone.close()
        del gone, each
        gc.collect()
        assert value(scrape(registry), "accepted_events_total") == 2
        child = os.fork()
        if child == 0:
            os._exit(int(value(scrape(registry), "accepted_events_total")))
        assert os.waitpid(child, 0)[1] == 0


# -- multiprocess mode, in real gunicorn workers ----------------------------------------------------

APPLICATION = """\
import os, threading
import windback
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from windback import prometheus

prometheus._WRITE_S = 0.1
prometheus.register()
prometheus.register(windback.get_client())

def application(environ, start_response):
    path = environ["PATH_INFO"]
    body = b""
    if path == "/metrics":
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        body = generate_latest(registry)
    elif path == "/track":
        windback.get_client().track_event("login", "jane@example.com")
        body = b"%d" % os.getpid()
    elif path == "/refused":
        windback.get_client()._engine.refusals.refuse("queue_full")
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def fetch(app, path):
    """Return what an application answers; nothing to a scrape that came in the wrong moment."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{app.port}{path}") as answer:
            return answer.read().decode()
    except urllib.error.HTTPError:
        # prometheus_client reads the file of a worker that has just made it, and is still empty.
        assert re.search(r"struct\.error|mmap", app.output()), app.output()
        return ""
    except ConnectionError:  # by a worker that ends: gunicorn before 24 closes connections without an answer
        return ""


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_multiprocess_mode_adds_up_the_workers_of_gunicorn(server, tmp_path, kind, preload):
    folder = tmp_path / "metrics"
    folder.mkdir()
    config = "from prometheus_client import multiprocess\n" if not preload else ""
    config += (
        "def child_exit(server, worker):\n"
        "    from prometheus_client import multiprocess\n"
        "    multiprocess.mark_process_dead(worker.pid)\n"
    )
    command = [sys.executable, "-m", "gunicorn", "--workers=3", f"--worker-class={kind}", "--threads=2"]
    command += [*(["--preload"] if preload else []), "--bind=127.0.0.1:{port}", "app:application"]
    files = {"app.py": APPLICATION, "gunicorn.conf.py": config}
    with AppServer(tmp_path, files, command, server.url, PROMETHEUS_MULTIPROC_DIR=str(folder)) as app:

        def get(path):
            return fetch(app, path)

        def read():
            return values(get("/metrics"))

        def reads(name, wanted, reason=None):
            return read().get((f"windback_client_{name}", "my-project", reason)) == wanted

        pids = set()
        tracked = 0
        while len(pids) < 2 or tracked < 40:
            pids.add(int(get("/track")))
            tracked += 1
        get("/refused")
        eventually(lambda: reads("accepted_events_total", tracked))
        eventually(lambda: reads("sent_events_total", tracked))
        eventually(lambda: reads("refused_events_total", 1, "queue_full"))
        eventually(lambda: reads("pending_events", 0) and reads("held_up", 0))
        # A worker that is killed leaves its counts; another takes its place, and begins at 0.
        os.kill(min(pids), signal.SIGKILL)
        for _ in range(10):
            get("/track")
        eventually(lambda: reads("sent_events_total", tracked + 10))
        time.sleep(0.5)  # several more writes, which count nothing twice
        eventually(lambda: reads("sent_events_total", tracked + 10))
        # A reload ends each worker, which writes its last counts.
        get("/track")
        app.signal(signal.SIGHUP)
        eventually(lambda: reads("sent_events_total", tracked + 11))


def test_the_names_of_multiprocess_mode_are_those_of_a_registry(tmp_path, server):
    code = """
import sys, windback
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from windback import prometheus
with windback.Windback("sk_test_1", "shop", base_url=sys.argv[1]) as client:
    prometheus.register(client)
    client.track_event("login", "jane@example.com")
prometheus._files.write()
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code, server.url],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    registry = CollectorRegistry()
    with make(server) as client:
        prometheus.register(client, registry)
        client.track_event("login", "jane@example.com")
    alone, several = scrape(registry), values(done.stdout)
    assert set(several) == set(alone)
    assert value(several, "sent_events_total") == 1


def blocks_of_page(language):
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    section = page[page.index("### Several processes") : page.index("### What to alert on")]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def test_the_example_of_the_page_adds_up_the_workers_of_gunicorn(server, tmp_path):
    application, config = blocks_of_page("python")
    (shell,) = blocks_of_page("sh")
    command = shlex.split(shell.splitlines()[-1])
    assert command[0] == "gunicorn"
    folder = tmp_path / "metrics"
    folder.mkdir()
    command = [sys.executable, "-m", *command, "--bind=127.0.0.1:{port}"]
    files = {"app.py": application, "gunicorn.conf.py": config}
    with AppServer(tmp_path, files, command, server.url, PROMETHEUS_MULTIPROC_DIR=str(folder)) as app:
        for _ in range(20):
            assert fetch(app, "/") == "hello"
        accepted = "windback_client_accepted_events_total", "my-project", None
        # AppServer has asked for a page, too, to see that the application is there.
        eventually(lambda: values(fetch(app, "/metrics")).get(accepted, 0) >= 20, within_s=60)
        eventually(lambda: values(fetch(app, "/metrics")).get(accepted) == len(server.events()), within_s=60)


def test_a_program_in_order_has_no_series_of_what_never_happened(server, tmp_path):
    registry = CollectorRegistry()
    rare = {"repeated_requests_total", "worker_deaths_total", "hook_errors_total", "journal_bytes"}

    def found():
        return {name[len("windback_client_") :] for name, *_ in scrape(registry)} & rare

    def fail(_):
        raise ValueError

    with make(server) as client, make(server, journal=tmp_path, on_delivery=fail) as other:
        prometheus.register(client, registry)
        client.track_event("login", "jane@example.com")
        assert client.flush(30)
        assert found() == set()
        prometheus.register(other, registry)
        assert found() == {"journal_bytes"}
        server.faults([{"status": 503, "times": 1}])
        other.track_event("login", "jane@example.com")
        assert other.flush(30)
        assert found() == {"repeated_requests_total", "hook_errors_total", "journal_bytes"}
    assert "journal_bytes" in found()  # a gauge does not go away again


def test_a_scrape_of_100_clients_costs_little():
    """5 ms on a free machine; here no more than a hundred times what one client's stats cost, and a bit."""
    registry = CollectorRegistry()
    clients = [windback.Windback("sk_test_1", f"project-{number % 4}") for number in range(100)]
    for client in clients:
        prometheus.register(client, registry)

    def least(function):
        times = []
        for _ in range(9):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
        return min(times)

    of_stats = least(lambda: [client.stats() for client in clients])
    assert least(lambda: generate_latest(registry)) < 20 * of_stats
