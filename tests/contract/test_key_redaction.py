"""The API key is shown by nothing: no repr, no log, no error, no traceback even with its local variables."""

from __future__ import annotations

import asyncio
import logging
import pickle
import traceback

import anyio
import pytest
from inside import config_of, engine_of

import windback
from windback.devserver import DevServer
from windback.http import transport

# Global, and so in no frame's local variables.
SECRET = "sk_live_5ecret0f7hep1ace"
PUBLIC = "pub_live_70b3hiddena5well"
PARTS = (SECRET[8:], PUBLIC[9:], SECRET[8:16], PUBLIC[9:16])
EMAIL = "jane@example.com"
EVENT = {"event": "seen", "customer_email": EMAIL}
NOWHERE = "http://127.0.0.1:9"


def hides(text):
    """Whether no recognisable part of a key is in *text*."""
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    return not any(part in text for part in PARTS)


def full_text(error):
    """Everything that could be shown of an error, the local variables of all its frames included."""
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "\n".join([*shown.format(), repr(error), str(error), repr(vars(error))])


@pytest.fixture(scope="module")
def running():
    with DevServer() as server:
        yield server


@pytest.fixture
def server(running):
    running.reset()
    return running


def sync_client(url, **options):
    return windback.Windback(SECRET, "shop", public_key=PUBLIC, base_url=url, max_retries=0, **options)


def async_client(url, **options):
    return windback.AsyncWindback(SECRET, "shop", public_key=PUBLIC, base_url=url, max_retries=0, **options)


CALLS = {
    "create_churn_event": (EMAIL,),
    "submit_cancel_flow": (EMAIL, "other"),
    "report_cancel_reason": (EMAIL, "other"),
    "create_recovery_template": ("other", "name", "subject", "body"),
    "track_events": ([EVENT],),
    "get_churn_event": ("evt_1",),
    "list_variants": ("evt_1",),
    "send_variant": ("evt_1", "var_1"),
    "list_recovery_templates": (),
    "get_offer": ("other",),
    "get_recovery_stats": (),
}

FAULTS = {
    "400": {"status": 400},
    "401": {"status": 401},
    "500": {"status": 500},
    "redirect": {"status": 307, "headers": {"location": "https://example.com/"}},
    "HTML for JSON": {"status": 200, "body": "<html>", "content_type": "text/html"},
    "broken connection": {"drop": "before"},
    "no answer": {"hang": True},
}


def test_nothing_that_can_be_printed_shows_a_key():
    for make in (sync_client, async_client):
        client = make(NOWHERE)
        config = config_of(client)
        for each in (
            client,
            config,
            vars(config),
            config.api_key,
            [config.public_key],
            vars(client),
            engine_of(client),
        ):
            assert hides(repr(each))
        assert hides(f"{client} {config} {config.api_key!r:>5}")
        assert "sk_***" in repr(config)


def track_events_reads_200_as_success(name, fault):
    return name == "track_events" and fault == "HTML for JSON"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", CALLS)
def test_no_error_of_a_sync_call_shows_a_key(server, name, fault):
    if track_events_reads_200_as_success(name, fault):
        return
    server.faults([FAULTS[fault]])
    with sync_client(server.url, timeout=0.2) as client:
        with pytest.raises(windback.WindbackError) as caught:
            getattr(client, name)(*CALLS[name])
    assert hides(full_text(caught.value))
    assert hides(pickle.dumps(caught.value))


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.anyio
async def test_no_error_of_an_async_call_shows_a_key(server, name, fault):
    if track_events_reads_200_as_success(name, fault):
        return
    server.faults([FAULTS[fault]])
    async with async_client(server.url, timeout=0.2) as client:
        with pytest.raises(windback.WindbackError) as caught:
            await getattr(client, name)(*CALLS[name])
    assert hides(full_text(caught.value))
    assert hides(pickle.dumps(caught.value))


def test_no_error_of_a_server_that_is_not_there_shows_a_key():
    with sync_client(NOWHERE) as client, pytest.raises(windback.WindbackConnectionError) as caught:
        client.create_churn_event(EMAIL)
    assert hides(full_text(caught.value))


@pytest.mark.anyio
async def test_no_cancelled_call_shows_a_key(server):
    server.faults([{"hang": True}])
    async with async_client(server.url) as client:
        with pytest.raises(TimeoutError) as caught:
            with anyio.fail_after(0.2):
                await client.create_churn_event(EMAIL)
        assert hides(full_text(caught.value))
        task = asyncio.ensure_future(client.create_churn_event(EMAIL))
        while server.counts().requests < 2:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert hides(full_text(cancelled.value))


def test_no_interrupted_call_shows_a_key(server, monkeypatch):
    def interrupt(self, request):
        raise KeyboardInterrupt

    monkeypatch.setattr(transport.httpx.HTTPTransport, "handle_request", interrupt)
    with sync_client(server.url) as client, pytest.raises(KeyboardInterrupt) as caught:
        client.create_churn_event(EMAIL)
    assert hides(full_text(caught.value))


@pytest.mark.parametrize(
    "body",
    ['{{"error": "bad key {0}", "code": "BAD_{0}"}}', "<html>{0}</html>", '{{"message": "{0} {1}"}}'],
    ids=["documented", "HTML", "of the package"],
)
@pytest.mark.parametrize("status", [401, 500, 302])
def test_no_error_repeats_a_key_that_the_server_repeated(server, body, status):
    text = body.format(SECRET, PUBLIC)
    server.faults(
        [{"status": status, "body": text, "headers": {"x-request-id": SECRET, "location": f"/?k={SECRET}"}}]
    )
    with sync_client(server.url) as client:
        with pytest.raises(windback.WindbackError) as caught:
            client.create_churn_event(EMAIL)
        client.track_event(**EVENT)
        answer = client.flush()
        assert not answer
        assert hides(repr(answer))
        assert hides(repr(client.stats()))
        server.clear_faults()
    error = caught.value
    assert hides("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    assert hides(f"{error} {error!r} {vars(error)}")
    assert hides(pickle.dumps(error))


BAD_OPTIONS = {
    "timeout": {"timeout": -1},
    "unknown overflow": {"overflow": "drop"},
    "slug": {"project_slug": "a/b"},
    "base URL": {"base_url": "http://api.example.com"},
    "http client": {"http_client": 7},
}


@pytest.mark.parametrize("options", BAD_OPTIONS.values(), ids=BAD_OPTIONS)
@pytest.mark.parametrize("make", [windback.Windback, windback.AsyncWindback])
def test_no_configuration_error_shows_a_key(make, options):
    with pytest.raises(windback.ConfigurationError) as caught:
        make(SECRET, public_key=PUBLIC, **options)
    assert hides(full_text(caught.value))


@pytest.mark.parametrize("options", BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_no_configuration_error_shows_a_key_from_the_environment(monkeypatch, options):
    monkeypatch.setenv("WINDBACK_API_KEY", SECRET)
    monkeypatch.setenv("WINDBACK_PUBLIC_KEY", PUBLIC)
    with pytest.raises(windback.ConfigurationError) as caught:
        windback.Windback(**options)
    assert hides(full_text(caught.value))


MISTYPED = {
    "space": lambda: windback.Windback(SECRET + " "),
    "line end": lambda: windback.Windback(api_key=SECRET + "\n"),
    "two prefixes": lambda: windback.Windback("pub_" + SECRET),
    "no prefix": lambda: windback.Windback(SECRET[3:]),
    "bytes": lambda: windback.Windback(SECRET.encode()),
    "in the place of the public one": lambda: windback.Windback(SECRET, public_key=SECRET),
}


@pytest.mark.parametrize("make", MISTYPED.values(), ids=MISTYPED)
def test_no_error_about_a_mistyped_key_shows_it(make):
    with pytest.raises(windback.ConfigurationError) as caught:
        make()
    assert hides(full_text(caught.value))
    assert hides(pickle.dumps(caught.value))


def test_no_error_of_an_event_shows_a_key():
    with sync_client(NOWHERE) as client:
        for call in (
            lambda: client.track_event("seen", EMAIL, {"a": object()}),
            lambda: client.track_events([{"event": ""}]),
            lambda: client.create_churn_event(EMAIL, mrr=-1),
        ):
            with pytest.raises(windback.ValidationError) as caught:
                call()
            assert hides(full_text(caught.value))


def test_no_log_of_any_library_shows_a_key_at_any_level(server, caplog):
    caplog.set_level(logging.DEBUG)
    server.faults([{"status": 500, "times": 2}, {"drop": "before", "times": 1}, {"status": 401, "times": 2}])
    with sync_client(server.url) as client:
        while server.counts().faults < 5:
            client.track_event(**EVENT)
            client.flush()
        client.track_events([EVENT])
        client.submit_cancel_flow(EMAIL, "other")
    assert len(caplog.records) > 10
    assert hides(caplog.text)
    assert all(hides(f"{each.args!r} {each.msg!r}") for each in caplog.records)


def test_no_log_of_a_worker_that_dies_shows_a_key(server, caplog, monkeypatch, way):
    def fail(self, request, timeout_s):
        raise SystemError("from inside")

    caplog.set_level(logging.DEBUG)
    with monkeypatch.context() as patch:
        patch.setattr(way, "attempt", fail)
        client = sync_client(server.url)
        client.track_event(**EVENT)
        client.flush(0.2)
        assert client.stats().worker_deaths >= 1
    client.close()
    assert "from inside" in caplog.text
    assert hides(caplog.text)
    for each in caplog.records:
        if each.exc_info:
            assert hides(full_text(each.exc_info[1]))
