"""The Flask extension: in this process with its test client, and under gunicorn."""

from __future__ import annotations

import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import flask
import flask_login
import pytest
from servers import GUNICORN, AppServer

from windback import ConfigurationError, Windback, context
from windback.flask import FlaskWindback
from windback.process import lifecycle
from windback.testing import capturing

JANE = "jane@example.com"
OPTIONS = {"api_key": "sk_test_1", "base_url": "http://127.0.0.1:9/api/v1", "shutdown_timeout": 0.0}
CONFIG = {
    "WINDBACK_API_KEY": "sk_test_flask",
    "WINDBACK_BASE_URL": "http://127.0.0.1:9/api/v1",
    "WINDBACK_OPTIONS": {"shutdown_timeout": 0.0, "flush_interval": 3600},
}


@pytest.fixture
def events():
    with capturing() as events:
        yield events


@pytest.fixture
def client(events):
    return Windback(**OPTIONS)


def make_app(wb, **config):
    app = flask.Flask("shop")
    app.config.update(config)
    wb.init_app(app)
    items = flask.Blueprint("items", "items", url_prefix="/v1/<org>")

    @items.route("/items/<int:n>", methods=["GET", "POST"])
    def item(org, n):
        return {"tracked": wb.track("seen", {"n": n})}

    @app.get("/fails")
    def fails():
        raise KeyError("fails")

    @app.get("/stream")
    def stream():
        @flask.stream_with_context
        def body():
            yield f"{wb.track('streamed')}"

        return flask.Response(body())

    app.register_blueprint(items)
    return app


def with_loader(wb):
    wb.customer_loader(lambda: flask.request.headers.get("x-user"))
    return wb


def test_the_customer_is_that_of_the_loader_once_for_each_request(client, events):
    wb = FlaskWindback(client=client)
    calls = []

    @wb.customer_loader
    def load():
        calls.append(flask.request.path)
        return flask.request.headers.get("x-user")

    app = make_app(wb)

    @app.get("/both")
    def both():
        context.bind(plan="pro")
        return f"{wb.track('a')} {wb.track('b', {'n': 1})}"

    browser = app.test_client()
    assert browser.get("/both", headers={"x-user": JANE}).text == "True True"
    assert browser.get("/both").text == "False False"
    assert calls == ["/both", "/both"]
    assert [(each.event, each.customer_email, each.properties) for each in events] == [
        ("a", JANE, {"plan": "pro"}),
        ("b", JANE, {"plan": "pro", "n": 1}),
    ]
    assert dict(client.stats().refused) == {"no_customer": 2}
    assert context.current() is None


def test_flask_logins_user_is_the_customer(client, events):
    wb = FlaskWindback(client=client)
    app = make_app(wb, SECRET_KEY="key")  # noqa: S106 - it opens nothing
    login = flask_login.LoginManager(app)

    class User(flask_login.UserMixin):
        id = "1"
        email = JANE

    login.user_loader(lambda _: User())

    @app.get("/login")
    def log_in():
        flask_login.login_user(User())
        return "in"

    browser = app.test_client()
    assert browser.get("/v1/acme/items/1").json == {"tracked": False}
    browser.get("/login")
    assert browser.get("/v1/acme/items/2").json == {"tracked": True}
    assert [each.customer_email for each in events] == [JANE]


@pytest.mark.parametrize("found", [RuntimeError("no database"), 42])
def test_a_loader_that_fails_harms_no_request(client, events, found):
    wb = FlaskWindback(client=client)

    @wb.customer_loader
    def load():
        if isinstance(found, Exception):
            raise found
        return found

    app = make_app(wb, WINDBACK_REQUEST_EVENT="api_call")
    assert app.test_client().get("/v1/a/items/1").json == {"tracked": False}
    assert (client.stats().hook_errors, events) == (1, [])


def test_requests_are_tracked_by_their_rule(client, events):
    wb = with_loader(FlaskWindback(client=client))
    app = make_app(wb, WINDBACK_REQUEST_EVENT="api_call")
    browser = app.test_client()
    for n in range(50):
        browser.get(f"/v1/org{n}/items/{n}?token=secret", headers={"x-user": JANE})
    browser.post("/v1/a/items/1", headers={"x-user": JANE})
    assert browser.get("/fails", headers={"x-user": JANE}).status_code == 500
    browser.get("/nope", headers={"x-user": JANE})
    browser.get("/v1/a/items/1")
    calls = events.named("api_call")
    assert [(each.properties["route"], each.properties["status"]) for each in calls] == [
        *[("/v1/<org>/items/<int:n>", 200)] * 51,
        ("/fails", 500),
    ]
    assert calls[50].properties["method"] == "POST"
    assert {*calls[0].properties} == {"method", "route", "status", "duration_ms"}
    assert "secret" not in repr(calls)


def test_an_exception_that_is_passed_on_is_a_500(client, events):
    wb = with_loader(FlaskWindback(client=client))
    app = make_app(wb, WINDBACK_REQUEST_EVENT="api_call", PROPAGATE_EXCEPTIONS=True)
    with pytest.raises(KeyError):
        app.test_client().get("/fails", headers={"x-user": JANE})
    assert [each.properties["status"] for each in events] == [500]


def test_a_streamed_body_still_knows_its_customer(client, events):
    wb = with_loader(FlaskWindback(client=client))
    app = make_app(wb, WINDBACK_REQUEST_EVENT="api_call")
    assert app.test_client().get("/stream", headers={"x-user": JANE}).text == "True"
    # Flask before 3.1 ends a request after its body.
    assert sorted(each.event for each in events) == ["api_call", "streamed"]
    assert context.current() is None


def test_a_hundred_apps_of_one_factory_have_one_client_and_no_thread():
    before, threads = len(lifecycle.engines()), threading.active_count()
    seen = set()
    for _ in range(100):
        wb = FlaskWindback()
        app = make_app(wb, **{**CONFIG, "WINDBACK_API_KEY": "sk_test_closed_below"})
        with app.app_context():
            assert wb.track_event("login", JANE)
            seen.add(wb.client)
    assert len(seen) == 1
    assert len(lifecycle.engines()) - before <= 1
    assert threading.active_count() - threads <= 1
    seen.pop().close(0)


def test_init_app_twice_does_nothing_the_second_time(client, events):
    wb = FlaskWindback(client=client)
    app = make_app(with_loader(wb))
    wb.init_app(app)
    FlaskWindback(app, client)
    assert app.extensions["windback"] is wb
    app.test_client().get("/v1/a/items/1", headers={"x-user": JANE})
    assert len(events) == 1


def test_a_second_extension_for_an_app_tracks_as_the_first(client, events):
    app = make_app(with_loader(FlaskWindback(client=client)))
    second = FlaskWindback(app, client)

    @app.get("/second")
    def ask_second():
        return {"tracked": second.track("a")}

    assert app.test_client().get("/second", headers={"x-user": JANE}).json == {"tracked": True}
    assert [(each.event, each.customer_email) for each in events] == [("a", JANE)]


def test_outside_of_an_app_context_it_is_the_only_app_or_an_error():
    wb = FlaskWindback()
    with pytest.raises(ConfigurationError, match="no app yet"):
        wb.track_event("login", JANE)
    first = make_app(wb, **CONFIG)
    assert wb.client is wb.client
    second = make_app(wb, **CONFIG)
    with pytest.raises(ConfigurationError, match="2 apps use this FlaskWindback"):
        wb.track_event("login", JANE)
    with second.app_context(), capturing() as events:
        assert wb.track_event("login", JANE)
    assert len(events) == 1
    assert first is not second


@pytest.mark.parametrize(
    "wrong",
    [
        {"WINDBACK_OPTIONS": {"flush_intervall": 1}},
        {"WINDBACK_OPTIONS": "flush_interval"},
        {"WINDBACK_API_KEY": "not a key"},
    ],
)
def test_wrong_settings_harm_no_request_and_say_so_once(monkeypatch, caplog, wrong):
    monkeypatch.setattr("windback.default._is_warned", False)
    wb = with_loader(FlaskWindback())
    app = make_app(wb, **{**CONFIG, **wrong, "WINDBACK_REQUEST_EVENT": "api_call"})
    browser = app.test_client()
    for _ in range(3):
        assert browser.get("/v1/a/items/1", headers={"x-user": JANE}).json == {"tracked": False}
    assert [each for each in caplog.messages if "no client could be made" in each] == caplog.messages[:1]
    with app.app_context(), pytest.raises(ConfigurationError):
        wb.client  # noqa: B018


def test_a_misspelt_option_is_named_with_the_nearest():
    wb = FlaskWindback()
    with make_app(wb, WINDBACK_OPTIONS={"flush_intervall": 1}).app_context():
        with pytest.raises(ConfigurationError, match=r"'flush_intervall'; did you mean 'flush_interval'"):
            wb.client  # noqa: B018


def test_a_misspelt_setting_is_named_with_the_nearest_and_a_setting_of_the_app_is_not(caplog):
    make_app(FlaskWindback(), WINDBACK_API_KEI="sk_1", WINDBACK_TIMEOUT=2, WINDBACK_WEBHOOK_URL="")
    assert [each for each in caplog.messages if "app.config" in each] == [
        "app.config: nothing reads WINDBACK_API_KEI; did you mean 'WINDBACK_API_KEY'?",
        "app.config: nothing reads WINDBACK_TIMEOUT; write timeout into WINDBACK_OPTIONS",
    ]


def test_a_client_that_is_none_is_an_error():
    with pytest.raises(ConfigurationError, match="must be a Windback"):
        FlaskWindback(client="sk_test_1")


APP = """\
from flask import Flask
from windback.flask import FlaskWindback

wb = FlaskWindback()

def create_app():
    app = Flask("shop")
    app.config["WINDBACK_OPTIONS"] = {"shutdown_timeout": 40}  # the machine may do much else
    wb.init_app(app)
    wb.customer_loader(lambda: "jane@example.com")

    @app.get("/health")
    def health():
        return "up"

    @app.get("/<int:n>")
    def track(n):
        return str(wb.track("login", {"n": n}))

    return app

app = create_app()
"""


@pytest.mark.parametrize(
    "options", [["-w", "2"], ["-w", "2", "--preload"], ["-k", "gevent"], ["--threads", "4"]]
)
def test_fifty_of_fifty_arrive_after_sigterm(tmp_path, server, options):
    with AppServer(tmp_path, {"app.py": APP}, [*GUNICORN, *options, "app:app"], server.url) as app:
        assert app.get_all([f"/{n}" for n in range(50)]) == [200] * 50
        said = app.end()
    assert sorted(stored.properties["n"] for stored in server.events("login")) == list(range(50)), said


def test_requests_at_the_same_time_never_see_anothers_customer(tmp_path, server):
    code = APP.replace('lambda: "jane@example.com"', 'lambda: request.headers.get("X-User")')
    code = code.replace("import Flask\n", "import Flask, request\n", 1)
    command = [*GUNICORN, "--threads", "8", "app:app"]
    with AppServer(tmp_path, {"app.py": code}, command, server.url) as app, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(app.get, f"/{n}", X_User=f"customer{n}@example.com") for n in range(200)]
        assert [each.result() for each in answers] == [200] * 200
        app.end()
    found = {stored.properties["n"]: stored.customer_email for stored in server.events("login")}
    assert found == {n: f"customer{n}@example.com" for n in range(200)}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_flask_run_delivers_at_its_end(tmp_path, server, how):
    command = [sys.executable, "-m", "flask", "run", "-p", "{port}"]
    with AppServer(tmp_path, {"app.py": APP}, command, server.url) as app:
        assert app.get_all([f"/{n}" for n in range(50)]) == [200] * 50
        said = app.end(how)
        assert app.status != 0 or how == signal.SIGINT  # ended by the signal, as it would be without windback
    assert sorted(stored.properties["n"] for stored in server.events("login")) == list(range(50)), said


def test_without_a_key_requests_are_answered_and_one_line_reports_it(tmp_path, server):
    with AppServer(tmp_path, {"app.py": APP}, [*GUNICORN, "app:app"], server.url, WINDBACK_API_KEY="") as app:
        assert app.get_all([f"/{n}" for n in range(5)]) == [200] * 5
        said = app.end()
    assert said.count("no client could be made") == 1
