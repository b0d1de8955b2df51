"""The ASGI middleware, in this process: scopes, events of requests, route templates, wrong use."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import warnings
from contextlib import asynccontextmanager, suppress

import anyio
import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

import windback
from windback import AsyncWindback, ConfigurationError, Windback, context
from windback.asgi import WindbackMiddleware
from windback.devserver import DevServer
from windback.fastapi import Track, get_tracker
from windback.testing import capturing

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions say that httpx will be replaced
    from starlette.testclient import TestClient

JANE = "jane@example.com"
OPTIONS = {"api_key": "sk_test_1", "base_url": "http://127.0.0.1:9/api/v1", "shutdown_timeout": 0.0}


@pytest.fixture
def events():
    with capturing() as events:
        yield events


@pytest.fixture(params=[Windback, AsyncWindback])
def client(request, events):
    return request.param(**OPTIONS)


@pytest.fixture
def default(events):
    windback.set_client(Windback(**OPTIONS))
    yield windback.get_client()
    windback.set_client(None)


def ask(app, *paths, method="GET", headers=None):
    """Return the statuses of requests that are made one after the other."""

    async def main():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as browser:
            return [(await browser.request(method, path, headers=headers)).status_code for path in paths]

    return asyncio.run(main())


def find(scope):
    """The customer is in a header, as a test's way to log in."""
    headers = dict(scope["headers"])
    return headers[b"x-user"].decode() if b"x-user" in headers else None


# -- scopes ----------------------------------------------------------------------------------------


def sync_dependency():
    context.bind(customer_email=JANE)


async def async_dependency():
    context.bind(customer_email=JANE)


def yield_dependency():
    context.bind(customer_email=JANE)
    yield


async def async_yield_dependency():
    context.bind(customer_email=JANE)
    yield


@pytest.mark.parametrize(
    "dependency", [sync_dependency, async_dependency, yield_dependency, async_yield_dependency]
)
@pytest.mark.parametrize("kind", ["sync", "async", "background", "explicit client"])
@pytest.mark.parametrize("around", ["alone", "in BaseHTTPMiddleware", "mounted"])
def test_each_kind_of_endpoint_sees_what_each_kind_of_dependency_binds(  # noqa: C901 - one app for each kind
    default, events, dependency, kind, around
):
    app = FastAPI()
    bound = [Depends(dependency)]
    if kind == "async":

        @app.get("/x", dependencies=bound)
        async def endpoint(track: Track):
            return track("a")

    elif kind == "sync":

        @app.get("/x", dependencies=bound)
        def endpoint_sync(track: Track):
            return track("a")

    elif kind == "background":

        @app.get("/x", dependencies=bound)
        def endpoint_background(track: Track, tasks: BackgroundTasks):
            tasks.add_task(track, "a")

    else:

        @app.get("/x", dependencies=bound)
        async def endpoint_explicit():
            return default.track("a")

    path = "/x"
    if around == "mounted":
        outer = FastAPI()
        outer.mount("/in", app)
        app, path = outer, f"/in{path}"
    if around == "in BaseHTTPMiddleware":

        async def dispatch(request, call_next):
            return await call_next(request)

        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    app.add_middleware(WindbackMiddleware)
    assert ask(app, path) == [200]
    assert [(each.event, each.customer_email) for each in events] == [("a", JANE)]


@pytest.mark.parametrize("finds", ["sync", "async"])
def test_two_hundred_requests_at_the_same_time_never_see_anothers_customer(client, events, finds):
    app = FastAPI()

    async def find_async(scope):
        await asyncio.sleep(0.001)
        return find(scope)

    app.add_middleware(WindbackMiddleware, client, customer=find if finds == "sync" else find_async)

    @app.get("/async/{n}")
    async def on_loop(n: int, track: Track):
        context.bind(n=n)
        await asyncio.sleep(0.001)
        return track("a", {"own": n})

    @app.get("/sync/{n}")
    def in_thread(n: int, track: Track):
        context.bind(n=n)
        time.sleep(0.001)
        return track("a", {"own": n})

    async def main():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as browser:
            answers = await asyncio.gather(
                *(
                    browser.get(f"/{kind}/{n}", headers={"x-user": f"{n}@example.com"})
                    for n in range(100)
                    for kind in ("sync", "async")
                )
            )
        assert {answer.text for answer in answers} == {"true"}

    asyncio.run(main())
    assert len(events) == 200
    for each in events:
        assert each.properties["n"] == each.properties["own"]
        assert each.customer_email == f"{each.properties['n']}@example.com"


def test_nothing_of_a_request_is_left_for_the_next(default, events):
    app = FastAPI()
    app.add_middleware(WindbackMiddleware)

    @app.get("/{name}")
    async def endpoint(name: str, track: Track):
        if name != "nobody":
            context.bind(customer_email=f"{name}@example.com", name=name)
        return track(name)

    assert ask(app, "/jane", "/nobody", "/joe") == [200, 200, 200]
    assert [(each.customer_email, each.properties) for each in events] == [
        ("jane@example.com", {"name": "jane"}),
        ("joe@example.com", {"name": "joe"}),
    ]
    assert dict(default.stats().refused) == {"no_customer": 1}


def test_the_customer_is_looked_up_at_the_first_event_once(client, events):
    calls = []

    async def customer(scope):
        calls.append(scope["path"])
        return JANE

    app = FastAPI()
    app.add_middleware(WindbackMiddleware, client, customer=customer)

    @app.get("/quiet")
    async def quiet():
        return 1

    @app.get("/loud")
    async def loud(track: Track):
        return [track("a"), track("b", {"n": 1})]

    assert ask(app, "/quiet", "/loud", "/quiet") == [200] * 3
    assert calls == ["/loud"]
    assert [(each.event, each.customer_email) for each in events] == [("a", JANE), ("b", JANE)]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("found", [RuntimeError("no database"), 42, "jane"])
def test_a_customer_that_fails_is_counted_and_the_request_unharmed(client, events, caplog, is_async, found):
    def customer(scope):
        if isinstance(found, Exception):
            raise found
        return found

    async def customer_async(scope):
        return customer(scope)

    app = FastAPI()
    app.add_middleware(
        WindbackMiddleware,
        client,
        customer=customer_async if is_async else customer,
        request_event="api_call",
    )

    @app.get("/")
    async def endpoint(track: Track):
        track("a")
        return track("b")

    assert ask(app, "/", "/") == [200, 200]
    assert events == []
    assert client.stats().hook_errors == 2
    assert dict(client.stats().refused) == {"no_customer": 4}
    assert len(caplog.messages) == 1


def test_a_slow_customer_does_not_delay_the_answer(client, events, monkeypatch):
    monkeypatch.setattr(context, "RESOLVE_S", 0.05)
    order = []

    async def customer(scope):
        order.append("looks")
        await anyio.sleep(3600)

    async def app(scope, receive, send):
        client._track_now("a", None, None)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def send(message):
        order.append(message["type"])

    async def main():
        scope = {"type": "http", "path": "/", "method": "GET", "headers": []}
        await WindbackMiddleware(app, client, customer=customer)(scope, None, send)

    asyncio.run(main())
    assert order == ["http.response.start", "http.response.body", "looks"]
    assert client.stats().hook_errors == 1
    assert dict(client.stats().refused) == {"no_customer": 1}


def test_an_event_on_a_websocket_does_not_wait_for_its_end(client, events):
    async def customer(scope):
        return JANE

    app = FastAPI()
    app.add_middleware(WindbackMiddleware, client, customer=customer)

    @app.websocket("/ws")
    async def chat(websocket: WebSocket, track: Track):
        await websocket.accept()
        while await websocket.receive_text() != "end":
            track("message")
            await websocket.send_text(f"{len(events)}")

    with TestClient(app) as browser, browser.websocket_connect("/ws") as socket:
        seen = []
        for _ in range(3):
            socket.send_text("hello")
            seen.append(socket.receive_text())
        socket.send_text("end")
    assert seen == ["0", "2", "3"]  # the first waits until the next message is received
    assert len(events) == 3


def test_three_test_clients_in_a_row(default, events):
    app = FastAPI()
    app.add_middleware(WindbackMiddleware)

    @app.get("/")
    def endpoint(track: Track):
        context.bind(customer_email=JANE)
        return track("a")

    for _ in range(3):
        with TestClient(app) as browser:
            assert browser.get("/").json() is True
    assert len(events) == 3


def test_track_can_be_overridden(default, events):
    app = FastAPI()
    app.add_middleware(WindbackMiddleware)

    @app.get("/")
    def endpoint(track: Track):
        return track("a", {"n": 1})

    calls = []
    app.dependency_overrides[get_tracker] = lambda: lambda *args: calls.append(args)
    assert ask(app, "/") == [200]
    assert (calls, events) == ([("a", {"n": 1})], [])


def test_track_without_the_middleware_reports_it_once(default, events, caplog, monkeypatch):
    monkeypatch.setattr("windback.fastapi._warned", set())
    app = FastAPI()

    @app.get("/")
    def endpoint(track: Track):
        return track("a")

    assert ask(app, "/", "/") == [200, 200]
    assert [each.levelno for each in caplog.records if "add_middleware" in each.getMessage()] == [
        logging.WARNING
    ]


def test_trio_is_a_server_too(client, events):
    async def customer(scope):
        await anyio.sleep(0.001)
        return JANE

    async def app(scope, receive, send):
        assert client._track_now("a", None, None)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        pass

    async def main():
        scope = {"type": "http", "path": "/", "method": "GET", "headers": []}
        await WindbackMiddleware(app, client, customer=customer)(scope, None, send)

    anyio.run(main, backend="trio")
    assert [each.customer_email for each in events] == [JANE]


# -- wrong use -------------------------------------------------------------------------------------


def test_installed_twice_there_is_one_scope_one_flush_and_one_warning(caplog, monkeypatch, client, events):
    flushes = []

    async def flush(timeout):  # noqa: ASYNC109 - it has this name
        flushes.append(timeout)
        return 0

    monkeypatch.setattr("windback.process.lifecycle.flush_all_async", flush)
    app = FastAPI()
    app.add_middleware(WindbackMiddleware, client)
    app.add_middleware(WindbackMiddleware, client, customer=lambda _: JANE)

    @app.get("/")
    def endpoint(track: Track):
        return track("a")

    with TestClient(app) as browser:
        assert [browser.get("/").status_code for _ in range(3)] == [200] * 3
    assert [each.customer_email for each in events] == [JANE] * 3
    assert flushes == [None]
    assert sum("installed twice" in each for each in caplog.messages) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"client": "sk_test_1"},
        {"client": Windback},
        {"customer": JANE},
        {"request_event": ""},
        {"request_event": True},
        {"flush_timeout": -1},
    ],
)
def test_wrong_arguments_are_an_error_when_the_application_is_made(wrong):
    with pytest.raises(ConfigurationError):
        WindbackMiddleware(lambda *_: None, **wrong)


def test_fastapi_that_is_not_there_is_named_with_its_install(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "windback.fastapi")
    with pytest.raises(ImportError, match=r'pip install "windback\[fastapi\]"'):
        importlib.import_module("windback.fastapi")


def calls_of(app):
    """Return how many calls of Python and C functions one request takes."""
    made = []

    async def send(message):
        pass

    request = app({"type": "http", "path": "/", "method": "GET", "headers": []}, None, send)
    sys.setprofile(lambda _, event, __: made.append(1) if event in ("call", "c_call") else None)
    try:
        with suppress(StopIteration):
            request.send(None)
    finally:
        sys.setprofile(None)
    return len(made)


def test_a_request_that_tracks_nothing_takes_a_dozen_calls_more():
    """About 1.5 microseconds: the middleware looks at nothing of the request, and asks no clock."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    added = calls_of(WindbackMiddleware(app)) - calls_of(app)
    assert 0 < added <= 12
    assert calls_of(WindbackMiddleware(app, customer=find)) - calls_of(app) <= 30


# -- lifespan --------------------------------------------------------------------------------------


def run_lifespan(app):
    """Play the server; return what the application answered."""
    sent = []

    async def main():
        messages = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive():
            return {"type": next(messages)}

        async def send(message):
            sent.append(message["type"])

        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    asyncio.run(main())
    return sent


@pytest.mark.parametrize(
    "kind", ["raises", "returns", "starts and returns", "ends early", "fastapi", "fails"]
)
def test_what_is_queued_is_delivered_before_shutdown_is_answered(kind):
    with DevServer() as server:
        client = Windback("sk_test_1", base_url=server.url, flush_interval=3600)
        arrived = []

        async def app(scope, receive, send):
            client.track_event("login", JANE)
            if kind == "raises":
                raise ValueError
            if kind == "returns":
                return
            await receive()
            if kind == "starts and returns":
                return
            await send({"type": "lifespan.startup.complete"})
            if kind == "ends early":
                return
            await receive()
            client.track_event("late", JANE)
            kinds = {"fails": "lifespan.shutdown.failed"}
            await send({"type": kinds.get(kind, "lifespan.shutdown.complete")})

        inner = app
        if kind == "fastapi":

            @asynccontextmanager
            async def lifespan(_):
                yield
                client.track_event("late", JANE)

            inner = FastAPI(lifespan=lifespan)
        middleware = WindbackMiddleware(inner)

        async def noting(scope, receive, send):
            async def note(message):
                arrived.append(sorted(stored.event for stored in server.events()))
                await send(message)

            await middleware(scope, receive, note)

        sent = run_lifespan(noting)
        end = "lifespan.shutdown.failed" if kind == "fails" else "lifespan.shutdown.complete"
        assert sent == ["lifespan.startup.complete", end]
        late = ["late"] if kind in ("fastapi", "fails") else []
        early = [] if kind == "fastapi" else ["login"]
        assert arrived[-1] == sorted([*early, *late])
        client.close(10)


def test_an_application_that_fails_to_start_fails_as_without_us():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    assert run_lifespan(WindbackMiddleware(app)) == ["lifespan.startup.failed"]

    async def raising(scope, receive, send):
        await receive()
        raise RuntimeError("no database")

    with pytest.raises(RuntimeError, match="no database"):
        run_lifespan(WindbackMiddleware(raising))


# -- events of requests ----------------------------------------------------------------------------


def nested_app():
    app, sub = FastAPI(), FastAPI()
    deep = APIRouter(prefix="/deep/{x}")

    @deep.get("/leaf/{y}")
    def leaf(x: str, y: int):
        return y

    router = APIRouter(prefix="/v1/{tenant}")
    router.include_router(deep)

    @sub.get("/items/{item}")
    def item(item: int):
        return item

    @app.get("/files/{path:path}")
    def file(path: str):
        return path

    @app.get("/items/{item}")
    async def top(item: str):
        return item

    @app.post("/items/{item}")
    async def make(item: str):
        return item

    @app.get("/fails/{item}")
    async def fails(item: str):
        raise KeyError(item)

    async def plain(request):
        return PlainTextResponse("plain")

    app.include_router(router, prefix="/api")
    app.mount("/sub/{org}", sub)
    app.mount("/plain", Starlette(routes=[Mount("/in/{z}", routes=[Route("/e/{q:int}", plain)])]))
    return app


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/items/5", "/items/{item}"),
        ("/items/items", "/items/{item}"),
        ("/files/a/b/c.txt", "/files/{path}"),
        ("/api/v1/acme/deep/d/leaf/9", "/api/v1/{tenant}/deep/{x}/leaf/{y}"),
        ("/api/v1/9/deep/9/leaf/9", "/api/v1/{tenant}/deep/{x}/leaf/{y}"),
        ("/sub/acme/items/5", "/sub/{org}/items/{item}"),
        ("/sub/items/items/5", "/sub/{org}/items/{item}"),
        ("/plain/in/zz/e/1", "/plain/in/{z}/e/{q}"),
        ("/nope", None),
        ("/plain/nope", None),
        ("/sub/acme/nope", None),
        ("/items/5/", None),
    ],
)
def test_the_route_is_a_template_with_the_prefixes_of_mounts_and_routers(client, events, path, route):
    app = nested_app()
    app.add_middleware(WindbackMiddleware, client, customer=find, request_event="api_call")
    ask(app, path, headers={"x-user": JANE})
    if route is not None and "{path}" in route:
        assert [each.properties["route"].replace(":path", "") for each in events] == [route]
    else:
        assert [each.properties["route"] for each in events] == ([] if route is None else [route])


def test_a_thousand_ids_are_one_route_and_nothing_else_gets_into_the_event(client, events):
    app = nested_app()
    app.add_middleware(WindbackMiddleware, client, customer=find, request_event="api_call")
    ask(app, *(f"/items/{n}?token=secret" for n in range(1000)), headers={"x-user": JANE})
    assert len(events) == 1000
    assert {each.properties["route"] for each in events} == {"/items/{item}"}
    for each in events:
        assert set(each.properties) == {"method", "route", "status", "duration_ms"}
        assert (each.properties["method"], each.properties["status"]) == ("GET", 200)
        assert each.properties["duration_ms"] >= 0
        assert "secret" not in repr(each)


def test_only_requests_with_a_customer_that_are_not_excluded_make_events(client, events):
    app = nested_app()
    app.add_middleware(
        WindbackMiddleware, client, customer=find, request_event="api_call", exclude=["/items/1", "/api/*"]
    )
    ask(app, "/items/1", "/items/2", "/api/v1/a/deep/b/leaf/3", headers={"x-user": JANE})
    ask(app, "/items/2")
    assert [each.properties["route"] for each in events] == ["/items/{item}"]
    assert dict(client.stats().refused) == {}


def test_an_exception_is_a_500_and_raised_again(client, events):
    app = nested_app()
    app.add_middleware(WindbackMiddleware, client, customer=find, request_event="api_call")
    transport = httpx.ASGITransport(app)

    async def main():
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as browser:
            await browser.get("/fails/5", headers={"x-user": JANE})

    with pytest.raises(KeyError):
        asyncio.run(main())
    assert [(each.properties["status"], each.properties["route"]) for each in events] == [
        (500, "/fails/{item}")
    ]


def test_methods_and_statuses_are_those_of_the_request(client, events):
    app = nested_app()
    app.add_middleware(WindbackMiddleware, client, customer=find, request_event="api_call")
    assert ask(app, "/items/5", method="POST", headers={"x-user": JANE}) == [200]
    assert ask(app, "/items/5", method="DELETE", headers={"x-user": JANE}) == [405]
    assert ask(app, "/sub/a/items/text", headers={"x-user": JANE}) == [422]
    found = [tuple(each.properties[name] for name in ("method", "route", "status")) for each in events]
    assert found == [
        ("POST", "/items/{item}", 200),
        ("DELETE", "/items/{item}", 405),
        ("GET", "/sub/{org}/items/{item}", 422),
    ]


def test_a_streamed_answer_counts_when_its_body_ends_with_what_was_bound(client, events):
    app = FastAPI()
    app.add_middleware(WindbackMiddleware, client, request_event="api_call")

    @app.get("/rows/{n}")
    def rows(n: int):
        context.bind(customer_email=JANE, plan="pro")

        def body():
            for row in range(n):
                assert events == []
                time.sleep(0.01)
                yield f"{row}\n"

        return StreamingResponse(body())

    assert ask(app, "/rows/5") == [200]
    (event,) = events
    assert event.customer_email == JANE
    assert event.properties["plan"] == "pro"
    assert event.properties["duration_ms"] >= 50


def test_an_async_customer_is_awaited_for_the_event_of_a_request(client, events):
    async def customer(scope):
        await asyncio.sleep(0.001)
        return JANE

    app = nested_app()
    app.add_middleware(WindbackMiddleware, client, customer=customer, request_event="api_call")
    ask(app, "/items/5")
    assert [each.customer_email for each in events] == [JANE]
