"""Every snippet of Windback's docs page "Python SDK" runs as the page prints it, and so does its async twin.

The snippets stand here as they stand there, key and slug included; WINDBACK_BASE_URL sends them to a local
server. The twin of a snippet is made from it by `as_async`.
"""

from __future__ import annotations

import ast
import http.client
import inspect
import json
import re
import sqlite3
from contextlib import closing
from typing import Callable, Dict, List, Mapping

import anyio
import pytest

from windback import AsyncWindback, Windback
from windback.devserver import DevServer

QUICK_START = """
from windback import Windback

client = Windback(
    api_key="sk_live_your_secret_key",
    project_slug="my-project",
)

# Track a customer event
client.track_event(
    event="feature_used",
    customer_email="jane@example.com",
    properties={
        "feature": "exports",
        "plan": "pro",
    },
)
"""

TRACK_EVENTS = """
# Track a single event
client.track_event(
    event="feature_used",
    customer_email="jane@example.com",
    properties={
        "feature": "dashboard",
        "duration_seconds": 120,
    },
)

# Track a batch of events
client.track_events([
    {
        "event": "login",
        "customer_email": "jane@example.com",
        "timestamp": "2025-12-01T10:00:00Z",
    },
    {
        "event": "subscription_renewed",
        "customer_email": "jane@example.com",
        "properties": {"plan": "pro", "mrr": 2999},
    },
])
"""

CREATE_CHURN_EVENTS = """
event = client.create_churn_event(
    customer_email="jane@example.com",
    customer_name="Jane Smith",
    event_type="cancellation",
    cancel_reason="Missing integrations we need",
    mrr=4999,
    currency="usd",
    plan_name="Team Pro",
    tenure_days=180,
)

print(event.id)      # "evt_abc123"
print(event.status)  # "new"
"""

CANCEL_FLOW = """
# Submit a cancel flow response
client.submit_cancel_flow(
    customer_email="jane@example.com",
    cancel_reason="Too expensive for our team",
    feedback_text="Love the product but budget is tight",
    selected_offer="downgrade",
)

# Report just the cancel reason
client.report_cancel_reason(
    customer_email="jane@example.com",
    reason="switching_competitor",
)
"""

ASYNC_SUPPORT = """
from windback import AsyncWindback

client = AsyncWindback(
    api_key="sk_live_your_secret_key",
    project_slug="my-project",
)

# All methods are async
event = await client.create_churn_event(
    customer_email="jane@example.com",
    event_type="cancellation",
    cancel_reason="Too expensive",
    mrr=2999,
)

await client.track_event(
    event="feature_used",
    customer_email="jane@example.com",
    properties={"feature": "exports"},
)
"""

ERROR_HANDLING = """
from windback import WindbackError

try:
    event = client.create_churn_event(...)
except WindbackError as e:
    print(e.status)   # HTTP status code
    print(e.message)  # Error message
    print(e.code)     # Error code (e.g., "INVALID_API_KEY")
"""

#: Not on the page, which shows it only by name: the arguments are those of the docs-tree pages.
CREATE_RECOVERY_TEMPLATE = """
template = client.create_recovery_template(
    cancel_reason="too_expensive",
    name="A smaller plan",
    subject="Stay, {{customer_name}}",
    body="There is a plan for less.",
)
"""

NEW_CLIENT = QUICK_START.partition("# Track")[0]

#: The page's method reference. Its "..." leaves the rest open; the snippets above fix the names they use.
METHOD_REFERENCE = {
    "track_event": ["event", "customer_email", "properties", "timestamp"],
    "track_events": ["events"],
    "create_churn_event": [
        *("customer_email", "customer_name", "event_type", "cancel_reason"),
        *("mrr", "currency", "plan_name", "tenure_days"),
    ],
    "submit_cancel_flow": ["customer_email", "cancel_reason", "feedback_text", "selected_offer"],
    "report_cancel_reason": ["customer_email", "reason", "event_id"],
    "create_recovery_template": ["cancel_reason", "name", "subject", "body", "is_active"],
}

#: What the docs-tree pages have beyond that: by name only, and never required.
DOCS_TREE = {
    "submit_cancel_flow": [
        *("cancel_reason_text", "customer_name", "provider", "plan_name", "mrr", "currency", "tenure_days"),
    ],
}

#: What may be left out, because a snippet leaves it out or a documented default exists.
OPTIONAL = {
    *(
        "properties",
        "timestamp",
        "customer_name",
        "event_type",
        "mrr",
        "currency",
        "plan_name",
        "tenure_days",
    ),
    *("feedback_text", "selected_offer", "event_id", "is_active"),
}

Run = Callable[..., Dict[str, object]]


def as_async(snippet: str) -> str:
    """The same snippet for AsyncWindback: the other class, and an `await` before each call."""
    return re.sub(r"\bclient\.", "await client.", re.sub(r"\bWindback\b", "AsyncWindback", snippet))


@pytest.fixture
def server(server, monkeypatch):
    monkeypatch.setenv("WINDBACK_BASE_URL", server.url)
    return server


async def _run_async(*snippets: str) -> Dict[str, object]:
    names: Dict[str, object] = {}
    try:
        for snippet in snippets:
            # As in the asyncio REPL: `await` at the top level makes the code a coroutine.
            code = compile(snippet, "<page>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            outcome = eval(code, names)  # noqa: S307 - the page's own words
            if outcome is not None:
                await outcome
    finally:
        await names["client"].close()  # type: ignore[attr-defined]
    return names


def _run_sync(*snippets: str) -> Dict[str, object]:
    names: Dict[str, object] = {}
    try:
        for snippet in snippets:
            exec(compile(snippet, "<page>", "exec"), names)  # noqa: S102 - the page's own words
    finally:
        names["client"].close()  # type: ignore[attr-defined]
    return names


@pytest.fixture(params=["sync", "asyncio", "trio"])
def run(request) -> Run:
    """Runs snippets one after the other in one namespace and closes their client; gives the namespace."""
    if request.param == "sync":
        return _run_sync
    return lambda *snippets: anyio.run(_run_async, *map(as_async, snippets), backend=request.param)


def churn_events(server: DevServer) -> List[Mapping[str, object]]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        key = {"X-API-Key": "sk_live_your_secret_key"}
        connection.request("GET", "/api/v1/projects/my-project/churn-events", headers=key)
        return json.load(connection.getresponse())["data"]


def test_quick_start(server, run):
    run(QUICK_START)
    (event,) = server.events()
    assert (event.event, event.customer_email) == ("feature_used", "jane@example.com")
    assert event.properties == {"feature": "exports", "plan": "pro"}
    (request,) = server.requests()
    assert (request.method, request.path) == ("POST", "/api/v1/track")


def test_track_events(server, run):
    run(NEW_CLIENT, TRACK_EVENTS)
    by_name = {event.event: event for event in server.events()}
    assert sorted(by_name) == ["feature_used", "login", "subscription_renewed"]
    assert {event.customer_email for event in by_name.values()} == {"jane@example.com"}
    assert by_name["feature_used"].properties == {"feature": "dashboard", "duration_seconds": 120}
    assert by_name["login"].timestamp == "2025-12-01T10:00:00Z"
    assert by_name["login"].properties == {}
    assert by_name["subscription_renewed"].properties == {"plan": "pro", "mrr": 2999}
    # The batch is a request of its own, sent at once.
    assert by_name["login"].batch_id == by_name["subscription_renewed"].batch_id
    assert server.counts().requests == 2


def test_create_churn_events(server, run, capsys):
    names = run(NEW_CLIENT, CREATE_CHURN_EVENTS)
    (stored,) = churn_events(server)
    sent = {
        "customer_email": "jane@example.com",
        "customer_name": "Jane Smith",
        "event_type": "cancellation",
        "cancel_reason": "Missing integrations we need",
        "mrr": 4999,
        "currency": "usd",
        "plan_name": "Team Pro",
        "tenure_days": 180,
    }
    assert {name: stored[name] for name in sent} == sent
    assert capsys.readouterr().out.splitlines() == [stored["id"], "new"]
    event = names["event"]
    assert {name: getattr(event, name) for name in sent} == sent


def test_cancel_flow(server, run):
    run(NEW_CLIENT, CANCEL_FLOW)
    submit, find, report = server.requests()
    # The flow made the churn event that the reason is then reported for, by the email alone.
    (stored,) = churn_events(server)
    assert stored["customer_email"] == "jane@example.com"
    assert stored["cancel_reason"] == "switching_competitor"
    assert server.counts().cancel_flows == 1
    assert (submit.method, submit.path) == ("POST", "/api/v1/cancel-flow/submit")
    assert (find.method, find.path) == ("GET", "/api/v1/projects/my-project/churn-events")
    assert (report.method, report.path) == ("PATCH", f"{find.path}/{stored['id']}/cancel-reason")


def test_the_words_of_the_cancel_flow_arrive(run, tmp_path, monkeypatch):
    file = tmp_path / "server.db"
    with DevServer(db=file) as server:
        monkeypatch.setenv("WINDBACK_BASE_URL", server.url)
        run(NEW_CLIENT, CANCEL_FLOW.partition("# Report")[0])
        (stored,) = churn_events(server)
    assert stored["cancel_reason"] == "Too expensive for our team"
    # No endpoint shows the other two.
    with closing(sqlite3.connect(file)) as db:
        rows = db.execute("SELECT feedback_text, selected_offer FROM cancel_flows").fetchall()
    assert rows == [("Love the product but budget is tight", "downgrade")]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_async_support(server, backend):
    names = anyio.run(_run_async, ASYNC_SUPPORT, backend=backend)
    assert isinstance(names["client"], AsyncWindback)
    (stored,) = churn_events(server)
    sent = {"customer_email": "jane@example.com", "cancel_reason": "Too expensive", "mrr": 2999}
    assert {name: stored[name] for name in sent} == sent
    assert names["event"].id == stored["id"]  # type: ignore[attr-defined]
    (event,) = server.events()
    assert (event.event, event.customer_email) == ("feature_used", "jane@example.com")
    assert event.properties == {"feature": "exports"}


def test_error_handling(run, capsys, monkeypatch):
    with DevServer(keys=["sk_live_another_key"]) as server:
        monkeypatch.setenv("WINDBACK_BASE_URL", server.url)
        run(NEW_CLIENT, ERROR_HANDLING.replace("...", 'customer_email="jane@example.com"'))
        assert server.counts().by_status == {401: 1}
        assert server.counts().churn_events == 0
    status, message, code = capsys.readouterr().out.splitlines()
    assert (status, code) == ("401", "INVALID_API_KEY")
    assert "key" in message
    assert "sk_live" not in message


def test_error_handling_with_the_dots_of_the_page(server, run, capsys):
    """`...` is an argument, too; it is refused by the error that the page catches, and nothing is sent."""
    run(NEW_CLIENT, ERROR_HANDLING)
    status, message, _ = capsys.readouterr().out.splitlines()
    assert status == "None"
    assert "customer_email" in message
    assert server.counts().requests == 0


def test_the_sixth_method(server, run):
    names = run(NEW_CLIENT, CREATE_RECOVERY_TEMPLATE)
    template = names["template"]
    assert server.counts().templates == 1
    assert template.id.startswith("tpl_")  # type: ignore[attr-defined]
    assert template.subject == "Stay, {{customer_name}}"  # type: ignore[attr-defined]
    assert template.is_active is True  # type: ignore[attr-defined]


def parameters(kind: type, method: str) -> List[inspect.Parameter]:
    return list(inspect.signature(getattr(kind, method)).parameters.values())[1:]


@pytest.mark.parametrize("kind", [Windback, AsyncWindback])
@pytest.mark.parametrize("method", METHOD_REFERENCE)
def test_method_reference(kind, method):
    found = parameters(kind, method)
    beyond = DOCS_TREE.get(method, [])
    of_the_page = len(found) - len(beyond)
    assert [each.name for each in found[of_the_page:]] == beyond
    assert all(each.kind == each.KEYWORD_ONLY and each.default is None for each in found[of_the_page:])
    found = found[:of_the_page]
    assert [each.name for each in found] == METHOD_REFERENCE[method]
    by_position = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    assert all(each.kind in by_position for each in found), "every one can be given by its name"
    required = [each.name for each in found if each.default is inspect.Parameter.empty]
    optional = OPTIONAL | ({"cancel_reason"} if method == "create_churn_event" else set())
    assert required == [name for name in METHOD_REFERENCE[method] if name not in optional]


@pytest.mark.parametrize("method", METHOD_REFERENCE)
def test_both_classes_take_the_same_arguments(method):
    assert parameters(Windback, method) == parameters(AsyncWindback, method)
    assert inspect.iscoroutinefunction(getattr(AsyncWindback, method))
    assert not inspect.iscoroutinefunction(getattr(Windback, method))


def test_the_constructors_take_the_same_arguments():
    assert parameters(Windback, "__init__") == parameters(AsyncWindback, "__init__")
