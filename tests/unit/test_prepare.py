"""prepare: an event that is checked and encoded now, and queued later or never."""

from __future__ import annotations

import gc
import weakref

import pytest
from inside import engine_of

import windback
from windback import AsyncWindback, ConfigurationError, InvalidEventError, PreparedEvent, Windback
from windback.testing import capturing

JANE = "jane@example.com"
OPTIONS = {
    "api_key": "sk_test_1",
    "base_url": "http://127.0.0.1:9/api/v1",
    "shutdown_timeout": 0.0,
    "flush_interval": 3600,
}


@pytest.fixture(params=[Windback, AsyncWindback])
def make(request):
    made = []

    def make(**options):
        made.append(request.param(**{**OPTIONS, **options}))
        return made[-1]

    yield make
    for client in made:
        engine_of(client).close(0)


def test_what_was_given_counts_not_what_it_became_and_it_is_sent_once(make):
    client = make()
    properties = {"n": 1}
    with capturing() as events:
        prepared = client.prepare("order", JANE, properties, timestamp="2026-01-01T00:00:00Z")
        assert isinstance(prepared, PreparedEvent)
        properties["n"] = 2
        assert events == []
        assert prepared.send() is True
        assert prepared.send() is False
    (event,) = events
    assert (event.properties, event.timestamp) == ({"n": 1}, "2026-01-01T00:00:00Z")


def test_it_is_stamped_at_the_call(make):
    client = make()
    with capturing() as events:
        first = client.prepare("first", JANE)
        client.prepare("second", JANE).send()
        first.send()
    assert events[0].timestamp >= events[1].timestamp


def test_nothing_counts_before_it_is_sent(make):
    client = make()
    kept = [client.prepare("order", JANE) for _ in range(3)]
    assert client.stats().accepted == 0
    assert kept[0].send() is True
    assert (client.stats().accepted, client.stats().pending) == (1, 1)


def test_an_invalid_event_raises_in_its_line(make):
    with pytest.raises(InvalidEventError, match="customer_email"):
        make().prepare("order", "jane")


def test_before_send_is_called_by_prepare(make):
    client = make(before_send=lambda event: None if event["event"] == "secret" else {**event, "event": "x"})
    with capturing() as events:
        assert client.prepare("secret", JANE) is None
        assert client.prepare("order", JANE).send() is True
    assert [each.event for each in events] == ["x"]
    assert dict(client.stats().refused) == {"before_send": 1}


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block", "raise"])
def test_send_never_raises_for_a_full_queue(make, overflow):
    client = make(max_queue_size=1, overflow=overflow, block_timeout=0.01)
    client.prepare("order", JANE).send()
    prepared = client.prepare("order", JANE)
    answer = prepared.send()
    assert answer is (overflow == "drop_oldest")
    assert dict(client.stats().refused) == ({} if answer else {"queue_full": 1})


def test_send_after_close_is_refused(make):
    client = make()
    prepared = client.prepare("order", JANE)
    engine_of(client).close(0)
    assert prepared.send() is False
    assert dict(client.stats().refused) == {"closed": 1}


def test_a_disabled_client_refuses(make):
    client = make(enabled=False)
    assert client.prepare("order", JANE).send() is False
    assert dict(client.stats().refused) == {"disabled": 1}


def test_a_client_that_nobody_holds_is_not_kept_by_the_way_tests_find_it():
    client = Windback(**OPTIONS)
    client.close(0)
    seen = weakref.ref(client)
    del client
    gc.collect()
    assert seen() is None


@pytest.fixture
def no_default(monkeypatch, no_environment):
    windback.set_client(None)
    yield monkeypatch
    windback.set_client(None)


def test_get_client_makes_one_from_the_environment_at_first_use(no_default):
    with pytest.raises(ConfigurationError, match="WINDBACK_API_KEY"):
        windback.get_client()
    no_default.setenv("WINDBACK_API_KEY", "sk_test_1")
    no_default.setenv("WINDBACK_BASE_URL", OPTIONS["base_url"])
    client = windback.get_client()
    assert isinstance(client, Windback)
    assert windback.get_client() is client


def test_set_client_puts_yours_there(no_default):
    client = Windback(**OPTIONS)
    windback.set_client(client)
    assert windback.get_client() is client
    client.close(0)
    assert windback.get_client() is client


@pytest.mark.parametrize("wrong", [AsyncWindback(**OPTIONS), Windback, "sk_test_1"])
def test_set_client_takes_a_windback(no_default, wrong):
    with pytest.raises(ConfigurationError, match=r"set_client takes a Windback, not an? "):
        windback.set_client(wrong)
