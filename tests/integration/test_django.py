"""The Django app in this process: transactions, the middleware, settings, checks and commands."""

from __future__ import annotations

import asyncio
import io
import shutil
import tempfile
import time
import traceback
from contextlib import contextmanager, nullcontext, suppress

import django
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core import checks
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import include, path, re_path

import windback
from windback import ConfigurationError, context
from windback.testing import capturing

JANE = "jane@example.com"
KEY = "sk_test_django_secret"
OPTIONS = {"shutdown_timeout": 0.0, "flush_interval": 3600}
WINDBACK = {"API_KEY": KEY, "BASE_URL": "http://127.0.0.1:9/api/v1", "OPTIONS": OPTIONS}
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "windback.django.WindbackMiddleware",
]
FOLDER = tempfile.mkdtemp()

settings.configure(
    SECRET_KEY="key",  # noqa: S106 - it opens nothing
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    ALLOWED_HOSTS=["testserver"],
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "windback.django"],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    MIDDLEWARE=MIDDLEWARE,
    DATABASES={
        name: {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{FOLDER}/{name}"}
        for name in ("default", "other")
    },
    WINDBACK=WINDBACK,
)
django.setup()

from django.contrib.auth.models import User  # noqa: E402 - it needs the settings

from windback.django import (  # noqa: E402
    Command,
    WindbackMiddleware,
    conf,
    track,
    track_event,
)
from windback.django import client as django_client  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def _database():
    call_command("migrate", verbosity=0)
    User.objects.create_user("jane", JANE)
    User.objects.create_user("nobody")
    yield
    connections.close_all()
    shutil.rmtree(FOLDER)


@pytest.fixture(autouse=True)
def _one_warning_for_each_test(monkeypatch):
    monkeypatch.setattr("windback.default._is_warned", False)


@pytest.fixture
def events():
    with capturing() as events:
        yield events


def changed(**more):
    """Override keys of the setting WINDBACK."""
    return override_settings(WINDBACK={**WINDBACK, **more})


@contextmanager
def logged_in(name="jane"):
    browser = Client()
    browser.force_login(User.objects.get(username=name))
    yield browser


# -- views -----------------------------------------------------------------------------------------


def seen(request, n, org=None):
    return JsonResponse({"tracked": track("seen", {"n": n})})


def streamed(request, n):
    def body():
        for part in range(n):
            track("part", {"part": part})
            yield b"x"

    return StreamingHttpResponse(body())


async def streamed_async(request, n):
    async def body():
        for part in range(n):
            track("part", {"part": part})
            await asyncio.sleep(0)
            yield b"x"

    return StreamingHttpResponse(body())


async def seen_async(request, n):
    tracked = [track("seen", {"n": n}), track("seen again", {"n": n})]
    await asyncio.sleep(0)
    return JsonResponse({"tracked": tracked})


def in_atomic(request, how):
    with transaction.atomic():
        tracked = track("order", {"how": how})
        if how == "rollback":
            transaction.set_rollback(True)
    return JsonResponse({"tracked": tracked})


def quiet(request):
    return HttpResponse("quiet")


def fails(request):
    raise KeyError("fails")


def bound(request):
    context.bind(customer_email="joe@example.com", plan="pro")
    return JsonResponse({"tracked": track("bound")})


items = [path("items/<int:n>", seen), re_path(r"^old/(?P<n>[0-9]+)/$", seen)]
urlpatterns = [
    path("v1/<str:org>/", include([path("seen/<int:n>", seen)])),
    path("in/", include(items)),
    path("async/<int:n>", seen_async),
    path("streamed/<int:n>", streamed),
    path("streamed_async/<int:n>", streamed_async),
    path("order/<str:how>", in_atomic),
    path("quiet", quiet),
    path("fails", fails),
    path("bound", bound),
]


def find_in_header(request):
    return request.headers.get("x-user")


async def find_in_header_async(request):
    await asyncio.sleep(0)
    return request.headers.get("x-user")


def find_and_fail(request):
    raise RuntimeError("no database")


# -- transactions ----------------------------------------------------------------------------------


def test_outside_of_a_transaction_an_event_is_sent_immediately(events):
    assert track_event("login", JANE)
    assert [each.event for each in events] == ["login"]


def test_an_event_is_sent_when_its_transaction_commits(events):
    with transaction.atomic():
        assert track_event("order", JANE, {"total": 99})
        assert events == []
    assert [(each.event, each.customer_email, each.properties) for each in events] == [
        ("order", JANE, {"total": 99})
    ]


def test_an_event_of_a_transaction_that_is_rolled_back_is_not_sent(events):
    with suppress(RuntimeError), transaction.atomic():
        assert track_event("order", JANE)
        raise RuntimeError("out of stock")
    assert events == []


def test_a_savepoint_that_is_rolled_back_takes_its_events_and_no_others(events):
    with transaction.atomic():
        track_event("outer", JANE, {"n": 1})
        with transaction.atomic():
            track_event("kept", JANE)
        with suppress(KeyError), transaction.atomic():
            track_event("lost", JANE)
            with transaction.atomic():
                track_event("lost too", JANE)
            raise KeyError
        track_event("outer", JANE, {"n": 2})
    assert [each.event for each in events] == ["outer", "kept", "outer"]


def test_an_event_has_the_values_and_the_time_of_the_call(events):
    with transaction.atomic():
        properties = {}
        for n in range(3):
            properties["n"] = n
            track_event("step", JANE, properties)
        time.sleep(0.01)
        track_event("after the calls", JANE, on_commit=False)
    after, *steps = events
    assert after.event == "after the calls"
    assert [each.properties["n"] for each in steps] == [0, 1, 2]
    assert all(each.timestamp < after.timestamp for each in steps)


def test_a_mistake_raises_at_the_call_and_not_at_the_commit(events):
    with transaction.atomic():
        with pytest.raises(windback.InvalidEventError):
            track_event("order", "no address")
        with pytest.raises(windback.InvalidEventError):
            track_event("order", JANE, {"when": object()})
        track_event("fine", JANE)
    assert [each.event for each in events] == ["fine"]


def test_using_names_the_database_whose_transaction_counts(events):
    with transaction.atomic(using="other"):
        track_event("of default", JANE)
        track_event("of other", JANE, using="other")
        assert [each.event for each in events] == ["of default"]
    assert [each.event for each in events] == ["of default", "of other"]
    with suppress(RuntimeError), transaction.atomic(using="other"), transaction.atomic():
        track_event("of default", JANE)
        track_event("of other", JANE, using="other")
        transaction.set_rollback(True, using="other")
        raise RuntimeError
    assert len(events) == 2


def test_on_commit_of_the_call_wins_over_the_setting(events):
    with changed(ON_COMMIT=False), transaction.atomic():
        track_event("at once", JANE)
        assert len(events) == 1
        track_event("later", JANE, on_commit=True)
        assert len(events) == 1
    with transaction.atomic():
        track_event("at once", JANE, on_commit=False)
        assert [each.event for each in events] == ["at once", "later", "at once"]


def test_callbacks_of_others_that_raise_and_a_closed_client_harm_nobody(events):
    ran = []
    with transaction.atomic():
        transaction.on_commit(lambda: 1 / 0, robust=True)
        track_event("order", JANE)
        transaction.on_commit(lambda: ran.append(1))
    assert ([each.event for each in events], ran) == (["order"], [1])


def test_a_client_that_is_closed_before_the_commit_refuses_and_the_commit_goes_on():
    ran = []
    with changed(API_KEY="sk_test_closed"):
        own = conf.get_client()
        with transaction.atomic():
            assert track_event("order", JANE)
            own.close(0)
            transaction.on_commit(lambda: ran.append(1))
        assert ran == [1]
        assert dict(own.stats().refused) == {"closed": 1}


def test_before_send_gets_the_event_at_the_call(events):
    def drop_all(event):
        return None

    with changed(OPTIONS={**OPTIONS, "before_send": drop_all}), transaction.atomic():
        assert not track_event("order", JANE)
        assert connection.run_on_commit == []


# -- the middleware --------------------------------------------------------------------------------


def test_the_customer_is_the_user_who_is_logged_in(events):
    with logged_in() as browser:
        assert browser.get("/v1/acme/seen/5").json() == {"tracked": True}
    assert Client().get("/v1/acme/seen/6").json() == {"tracked": False}
    with logged_in("nobody") as browser:
        assert browser.get("/v1/acme/seen/7").json() == {"tracked": False}
    assert [(each.customer_email, each.properties) for each in events] == [(JANE, {"n": 5})]
    assert context.current() is None


def test_a_request_that_tracks_nothing_makes_no_query(events, django_queries):
    with logged_in() as browser, django_queries() as queries:
        browser.get("/quiet")
    assert queries == []


@pytest.fixture
def django_queries():
    @contextmanager
    def record():
        queries = []

        def note(execute, sql, *rest):
            queries.append(sql)
            return execute(sql, *rest)

        with connection.execute_wrapper(note):
            yield queries

    return record


@pytest.mark.parametrize(("how", "count"), [("commit", 1), ("rollback", 0)])
def test_track_in_a_view_waits_for_the_commit_too(events, how, count):
    with logged_in() as browser:
        assert browser.get(f"/order/{how}").json() == {"tracked": True}
    assert [(each.event, each.customer_email) for each in events] == [("order", JANE)] * count


def test_an_async_view_tracks_for_its_user(events):
    async def ask(cookies):
        browser = AsyncClient()
        browser.cookies = cookies
        return [(await browser.get(f"/async/{n}")).json() for n in range(2)]

    with logged_in() as sync_browser:
        assert asyncio.run(ask(sync_browser.cookies)) == [{"tracked": [True, True]}] * 2
    assert [(each.event, each.customer_email, each.properties["n"]) for each in events] == [
        (event, JANE, n) for n in range(2) for event in ("seen", "seen again")
    ]


def test_a_streamed_body_still_knows_its_customer(events):
    with logged_in() as browser:
        assert b"".join(browser.get("/streamed/3")) == b"xxx"
    assert [(each.customer_email, each.properties["part"]) for each in events] == [
        (JANE, n) for n in range(3)
    ]
    assert not track("afterwards")


@pytest.mark.parametrize("customer", [None, "find_async"])
def test_an_async_streamed_body_still_knows_its_customer(events, customer):
    async def find_async(_):
        await asyncio.sleep(0)
        return JANE

    async def read():
        browser = AsyncClient()
        await sync_to_async(browser.force_login)(await User.objects.aget(username="jane"))
        return b"".join([part async for part in await browser.get("/streamed_async/3")])

    with changed(CUSTOMER=find_async) if customer else nullcontext():
        assert asyncio.run(read()) == b"xxx"
    assert [(each.customer_email, each.properties["part"]) for each in events] == [
        (JANE, n) for n in range(3)
    ]


def test_a_file_is_left_to_the_server(events):
    request = RequestFactory().get("/")
    response = FileResponse(io.BytesIO(b"file"))
    assert WindbackMiddleware(lambda _: response)(request).file_to_stream is not None


def test_an_anonymous_async_request_is_answered_and_its_events_are_refused(events):
    client = conf.get_client()
    before = client.stats().refused.get("no_customer", 0)

    async def ask():
        return (await AsyncClient().get("/async/1")).status_code

    assert asyncio.run(ask()) == 200
    assert events == []
    assert client.stats().refused["no_customer"] == before + 2


def test_a_sync_view_under_asgi_tracks_for_its_user_and_on_commit(events):
    async def ask(cookies):
        browser = AsyncClient()
        browser.cookies = cookies
        for path_ in ("/v1/acme/seen/1", "/order/commit", "/order/rollback"):
            assert (await browser.get(path_)).json() == {"tracked": True}

    with logged_in() as sync_browser:
        asyncio.run(ask(sync_browser.cookies))
    assert [(each.event, each.customer_email) for each in events] == [("seen", JANE), ("order", JANE)]


def test_what_is_bound_wins_and_is_gone_after_the_request(events):
    with logged_in() as browser:
        browser.get("/bound")
        browser.get("/v1/acme/seen/1")
    assert [(each.customer_email, each.properties) for each in events] == [
        ("joe@example.com", {"plan": "pro"}),
        (JANE, {"n": 1}),
    ]


@pytest.mark.parametrize("customer", [f"{__name__}.find_in_header", find_in_header])
def test_customer_is_a_function_or_its_path(events, customer):
    with changed(CUSTOMER=customer):
        assert Client().get("/v1/a/seen/1", headers={"x-user": JANE}).json() == {"tracked": True}
        assert Client().get("/v1/a/seen/1").json() == {"tracked": False}
    assert [each.customer_email for each in events] == [JANE]


def test_an_async_customer_is_awaited_under_asgi_and_refused_under_wsgi(events):
    async def ask():
        return (await AsyncClient().get("/async/1", headers={"x-user": JANE})).status_code

    with changed(CUSTOMER=find_in_header_async):
        assert asyncio.run(ask()) == 200
        assert [each.customer_email for each in events] == [JANE, JANE]
        before = conf.get_client().stats().hook_errors
        assert Client().get("/v1/a/seen/1", headers={"x-user": JANE}).status_code == 200
        assert conf.get_client().stats().hook_errors == before + 1
    assert len(events) == 2


@pytest.mark.parametrize(
    ("number", "customer"),
    list(enumerate([find_and_fail, lambda _: 42, "no.such.module", f"{__name__}.nothing", 5])),
)
def test_a_customer_that_fails_harms_no_request(events, caplog, monkeypatch, number, customer):
    monkeypatch.setattr("windback.django.middleware._warned", set())
    with changed(CUSTOMER=customer, REQUEST_EVENT="api_call", PROJECT_SLUG=f"fails-{number}"):
        for _ in range(3):
            assert Client().get("/v1/a/seen/1").json() == {"tracked": False}
        errors = conf.get_client().stats().hook_errors
    assert events == []
    assert len([each for each in caplog.messages if "customer" in each.lower()]) == 1
    assert errors == (3 if callable(customer) else 0)


def test_requests_are_tracked_by_their_route(events):
    with changed(REQUEST_EVENT="api_call"):
        with logged_in() as browser:
            for n in range(20):
                browser.get(f"/v1/org{n}/seen/{n}?token=secret")
            browser.get("/in/old/5/")
            browser.post("/quiet")
            browser.raise_request_exception = False
            assert browser.get("/fails").status_code == 500
            assert browser.get("/nope").status_code == 404
        Client().get("/quiet")
    calls = events.named("api_call")
    found = [
        (each.properties["method"], each.properties["route"], each.properties["status"]) for each in calls
    ]
    assert found == [
        *[("GET", "/v1/<str:org>/seen/<int:n>", 200)] * 20,
        ("GET", "/in/old/(?P<n>[0-9]+)/", 200),
        ("POST", "/quiet", 200),
        ("GET", "/fails", 500),
    ]
    assert set(calls[0].properties) == {"method", "route", "status", "duration_ms"}
    assert "secret" not in repr(calls)


def test_requests_are_tracked_under_asgi_too(events):
    async def ask():
        browser = AsyncClient(raise_request_exception=False)
        for path_ in ("/async/1", "/v1/a/seen/2", "/fails"):
            await browser.get(path_, headers={"x-user": JANE})

    with changed(REQUEST_EVENT="api_call", CUSTOMER=find_in_header_async):
        asyncio.run(ask())
    found = [(each.properties["route"], each.properties["status"]) for each in events.named("api_call")]
    assert found == [("/async/<int:n>", 200), ("/v1/<str:org>/seen/<int:n>", 200), ("/fails", 500)]


def test_the_middleware_twice_is_one_scope_one_event_and_one_warning(events, caplog, monkeypatch):
    monkeypatch.setattr("windback.django.middleware._warned", set())
    with changed(REQUEST_EVENT="api_call"), override_settings(MIDDLEWARE=[*MIDDLEWARE, MIDDLEWARE[-1]]):
        with logged_in() as browser:
            browser.get("/quiet")
            browser.get("/quiet")
    assert len(events) == 2
    assert len([each for each in caplog.messages if "twice" in each]) == 1


def test_without_the_middleware_there_is_no_customer(events):
    with override_settings(MIDDLEWARE=MIDDLEWARE[:-1]), logged_in() as browser:
        assert browser.get("/v1/a/seen/1").json() == {"tracked": False}
    assert events == []


def test_a_middleware_made_by_hand_is_sync_or_async_as_what_it_wraps(events):
    async def answer(request):
        return HttpResponse("async")

    sync = WindbackMiddleware(lambda _: HttpResponse("sync"))
    assert sync(RequestFactory().get("/")).content == b"sync"
    assert asyncio.run(WindbackMiddleware(answer)(RequestFactory().get("/"))).content == b"async"


# -- settings --------------------------------------------------------------------------------------


def test_the_client_is_made_once_and_again_for_other_settings():
    first = conf.get_client()
    assert conf.get_client() is first
    with changed(PROJECT_SLUG="other"):
        assert "'other'" in repr(conf.get_client())
        assert "'other'" in repr(django_client.with_options(timeout=1))
    assert conf.get_client() is first


def test_equal_settings_are_one_client():
    first = conf.get_client()
    with override_settings(WINDBACK={**WINDBACK, "OPTIONS": dict(OPTIONS)}):
        assert conf.get_client() is first


def test_switched_off_by_a_setting_nothing_is_sent_and_no_key_needed():
    with override_settings(WINDBACK={"ENABLED": False}):
        assert not track_event("login", JANE)
        assert django_client.stats().accepted == 0


def test_without_settings_it_is_the_client_of_the_process(events):
    own = windback.Windback("sk_test_own", base_url="http://127.0.0.1:9/api/v1", shutdown_timeout=0)
    windback.set_client(own)
    try:
        for empty in ({}, None):
            with override_settings(WINDBACK=empty):
                assert conf.get_client() is own
                assert track_event("login", JANE)
    finally:
        windback.set_client(None)
    assert len(events) == 2


WRONG = [
    ({"OPTIONS": {"flush_intervall": 1}}, r"'flush_intervall'; did you mean 'flush_interval'"),
    ({"OPTIONS": "flush_interval"}, r'WINDBACK\["OPTIONS"\] must be a dict'),
    ({"API_KEY": "no key"}, "api_key"),
    ({"API_KEY": 5}, "api_key must be a string"),
    ({"OPTIONS": {"batch_size": 0}}, "batch_size"),
]


@pytest.mark.parametrize(("wrong", "text"), WRONG)
def test_wrong_settings_harm_no_request_say_so_once_and_fail_the_check(caplog, wrong, text):
    with changed(**wrong, REQUEST_EVENT="api_call"), logged_in() as browser:
        for _ in range(3):
            assert browser.get("/v1/a/seen/1").json() == {"tracked": False}
            assert browser.get("/order/commit").json() == {"tracked": False}
        assert len([each for each in caplog.messages if "no client could be made" in each]) == 1
        with pytest.raises(ConfigurationError, match=text):
            conf.get_client()
        assert {each.id for each in checks_found()} == {"windback.E002"}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"WINDBACK": {"API_KEI": "sk_1"}}, "WINDBACK has no key 'API_KEI'; did you mean 'API_KEY'?"),
        (
            {"WINDBACK": {"TIMEOUT": 1}},
            'WINDBACK has no key \'TIMEOUT\'; write WINDBACK = {"OPTIONS": {"timeout": …}}',
        ),
        (
            {"WINDBACK_API_KEY": "sk_1"},
            'nothing reads the setting WINDBACK_API_KEY; write WINDBACK = {"API_KEY": …}',
        ),
    ],
)
def test_a_setting_that_nothing_reads_is_named_with_the_one_that_is_meant(wrong, text):
    with override_settings(WINDBACK_OWN_PAGES=5, **wrong):
        assert text in [each.msg for each in checks_found()]
        assert not any("OWN_PAGES" in each.msg for each in checks_found())


@pytest.mark.parametrize("wrong", [["API_KEY"], "API_KEY"])
def test_a_setting_that_is_not_a_dict_harms_no_request(caplog, wrong):
    with override_settings(WINDBACK=wrong), logged_in() as browser:
        assert browser.get("/v1/a/seen/1").json() == {"tracked": False}
        assert [each.id for each in checks_found()] == ["windback.E002"]


def test_no_frame_of_an_error_in_the_settings_shows_the_key():
    with changed(OPTIONS={"batch_size": 0}):
        try:
            conf.get_client()
        except ConfigurationError as error:
            shown = traceback.TracebackException.from_exception(error, capture_locals=True)
            text = "".join(shown.format())
    assert "batch_size" in text
    own_frames = text[text.index("conf.get_client()") :]
    assert KEY not in own_frames.split("client_from")[-1]


# -- checks ----------------------------------------------------------------------------------------


def checks_found(*, databases=None):
    return [each for each in checks.run_checks(databases=databases) if str(each.id).startswith("windback.")]


def ids(**more):
    return [each.id for each in checks_found(**more)]


def test_right_settings_pass_the_checks_and_make_no_client():
    before = len(windback.default._made)
    with changed(API_KEY="sk_test_checked_only", ON_COMMIT=True, CUSTOMER=find_in_header):
        assert ids(databases=["default", "other"]) == []
    assert len(windback.default._made) == before


@pytest.mark.usefixtures("no_environment")
def test_no_key_while_enabled_is_e001_with_a_hint():
    with override_settings(WINDBACK={}):
        (found,) = checks_found()
        assert found.id == "windback.E001"
        assert "ENABLED" in found.hint
    with override_settings(WINDBACK={"ENABLED": False}):
        assert ids() == []


@pytest.mark.usefixtures("no_environment")
def test_sending_that_is_switched_off_in_the_environment_needs_no_key(monkeypatch):
    """As in the build of an image: `migrate` and `check` run there."""
    monkeypatch.setenv("WINDBACK_ENABLED", "0")
    with override_settings(WINDBACK={}):
        assert ids() == []
        monkeypatch.setenv("WINDBACK_ENABLED", "perhaps")
        assert ids() == ["windback.E002"]


def test_an_unknown_key_is_e002_with_the_nearest_name():
    with changed(REQEST_EVENT="x"):
        (found,) = checks_found()
        assert (found.id, "'REQUEST_EVENT'" in found.msg) == ("windback.E002", True)


@pytest.mark.parametrize("customer", ["no.such.module", 5, f"{__name__}.JANE"])
def test_a_customer_that_is_no_function_is_e003(customer):
    with changed(CUSTOMER=customer):
        assert ids() == ["windback.E003"]


def test_the_middleware_before_authentication_is_w001():
    with override_settings(MIDDLEWARE=list(reversed(MIDDLEWARE))):
        assert ids() == ["windback.W001"]
    with override_settings(MIDDLEWARE=MIDDLEWARE[-1:]):
        assert ids() == ["windback.W001"]
    with override_settings(MIDDLEWARE=MIDDLEWARE[-1:]), changed(CUSTOMER=find_in_header):
        assert ids() == []


def test_a_database_without_transactions_is_w002(monkeypatch):
    monkeypatch.setitem(vars(connection.features), "supports_transactions", False)
    assert ids(databases=["default", "other"]) == ["windback.W002"]
    with changed(ON_COMMIT=False):
        assert ids(databases=["default"]) == []


def test_a_request_event_with_atomic_requests_is_w003(monkeypatch):
    monkeypatch.setitem(settings.DATABASES["default"], "ATOMIC_REQUESTS", True)
    assert ids() == []
    with changed(REQUEST_EVENT="api_call"):
        assert ids() == ["windback.W003"]


# -- commands --------------------------------------------------------------------------------------


class Import(Command):
    def handle(self, *_, **__):
        context.bind(customer_email=JANE, source="import")
        track("imported", {"rows": 3})
        return "done"


def test_a_command_has_a_scope_and_delivers_before_it_ends(server):
    with changed(BASE_URL=server.url):
        assert call_command(Import(), stdout=io.StringIO()) == "done"
        assert [(each.customer_email, each.properties) for each in server.events("imported")] == [
            (JANE, {"source": "import", "rows": 3})
        ]
    assert context.current() is None


def test_a_command_whose_events_are_not_delivered_is_an_error(server):
    server.faults([{"status": 503}])
    with changed(BASE_URL=server.url, API_KEY="sk_test_undelivered"), override_settings():
        with pytest.raises(CommandError, match="1 event was not delivered"):
            call_command(Import(), stdout=io.StringIO())
        conf.get_client().close(0)
    server.faults([])


def test_windback_check_names_the_client_and_sends_an_event_if_asked(server):
    out = io.StringIO()
    with changed(BASE_URL=server.url, PROJECT_SLUG="shop"):
        call_command("windback_check", stdout=out)
        assert "shop" in out.getvalue()
        assert KEY not in out.getvalue()
        assert server.events() == []
        call_command("windback_check", "--send", stdout=out)
        assert "delivered" in out.getvalue()
        assert [each.event for each in server.events()] == ["windback_check"]


@pytest.mark.usefixtures("no_environment")
def test_windback_check_reports_what_is_wrong(server):
    with override_settings(WINDBACK={}), pytest.raises(CommandError, match="no API key"):
        call_command("windback_check", stdout=io.StringIO())
    server.faults([{"status": 401}])
    with changed(BASE_URL=server.url, API_KEY="sk_test_wrong"):
        with pytest.raises(CommandError, match="did not arrive"):
            call_command("windback_check", "--send", "--timeout", "5", stdout=io.StringIO())
        conf.get_client().close(0)
    server.faults([])
