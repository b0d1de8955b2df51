"""The metrics of clients, as Prometheus reads them."""

from __future__ import annotations

import gc
import logging
import time

import pytest
from calls import eventually
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import windback
from windback import prometheus


def scrape(registry):
    families = text_string_to_metric_families(generate_latest(registry).decode())
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


def test_multiprocess_mode_is_a_warning(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with caplog.at_level(logging.WARNING, "windback"):
        prometheus.register(registry=CollectorRegistry())
    assert "multiprocess mode" in caplog.text


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
