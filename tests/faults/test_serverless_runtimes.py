"""`flush_after` in the runtimes of the clouds, which freeze a process between invocations."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest
from lambda_runtime import Answer, LambdaRuntime
from servers import AppServer
from tracking import numbers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="nothing is frozen there")

LAMBDA = """\
import asyncio
from windback import AsyncWindback, Windback
from windback.serverless import flush_after

client = Windback(flush_interval=3600)
async_client = AsyncWindback(flush_interval=3600)

@flush_after(timeout={timeout})
def handler(event, context):
    client.track_event("login", "jane@example.com", event)
    if event["n"] == 2:
        raise KeyError("the handler's own")
    return event

@flush_after(async_client, timeout=30)
async def track(event):
    await async_client.track_event("login", "jane@example.com", event)
    return event

def handler_of_tasks(event, context):
    return asyncio.run(track(event))

def without(event, context):
    client.track_event("login", "jane@example.com", event)
"""


@pytest.fixture
def lambda_function(tmp_path, server):
    def start(handler, timeout=30):
        (tmp_path / "app.py").write_text(LAMBDA.replace("{timeout}", str(timeout)), encoding="utf-8")
        return LambdaRuntime(tmp_path, handler, server.url)

    return start


def test_lambda_four_of_four_although_it_is_frozen(lambda_function, server):
    with lambda_function("app.handler") as function:
        for n in range(4):
            answer = function.invoke({"n": n}, frozen_s=1.0)
            # It is frozen now, so nothing can come later.
            assert numbers(server) == list(range(n + 1)), function.output()
            if n == 2:
                assert answer.kind == "error"
                assert answer.body["errorType"] == "KeyError"
            else:
                assert answer == Answer("response", {"n": n})


def test_lambda_with_an_async_client(lambda_function, server):
    with lambda_function("app.handler_of_tasks") as function:
        for n in range(4):
            assert function.invoke({"n": n}) == Answer("response", {"n": n}), function.output()
            assert numbers(server) == list(range(n + 1)), function.output()


def test_lambda_without_it_would_deliver_nothing(lambda_function, server):
    """Shows that the tests here measure what they say."""
    with lambda_function("app.without") as function:
        for n in range(4):
            function.invoke({"n": n})
    assert numbers(server) == []


def test_lambda_in_an_outage_answers_in_time_and_delivers_later(lambda_function, server):
    server.faults([{"latency": 60.0}])
    with lambda_function("app.handler", timeout=1) as function:
        for n in (0, 1):
            assert function.invoke({"n": n}) == Answer("response", {"n": n})
        assert "1 event waits for the next invocation of this process" in function.output()
        assert "2 events wait for the next invocation of this process" in function.output()
        server.faults([])
        for n in range(3, 60):
            function.invoke({"n": n})
            if len(numbers(server)) == n:  # there is no 2
                return
        pytest.fail(function.output())


def test_lambda_flushes_no_longer_than_the_invocation_may_take(lambda_function, server):
    server.faults([{"latency": 60.0}])
    with lambda_function("app.handler", timeout=600) as function:
        assert function.invoke({"n": 0}, within_s=5) == Answer("response", {"n": 0})
        assert "1 event waits" in function.output()


GCF = """\
import functions_framework
from windback import Windback
from windback.serverless import flush_after

client = Windback(flush_interval=3600)

@functions_framework.http
@flush_after(timeout=30)
def over_http(request):
    if "n" in request.args:
        client.track_event("login", "jane@example.com", {"n": int(request.args["n"])})
    return "done"

@functions_framework.cloud_event
@flush_after(client, timeout=30)
def on_event(event):
    client.track_event("login", "jane@example.com", {"n": event.data["n"]})
"""


def functions_framework(target, signature):
    options = ["--target", target, "--signature-type", signature, "--source", "main.py", "--port", "{port}"]
    code = (
        "import sys; from functions_framework._cli import _cli; sys.argv[0] = 'functions-framework'; _cli()"
    )
    return [sys.executable, "-c", code, *options]


def test_functions_framework_over_http(tmp_path, server):
    command = functions_framework("over_http", "http")
    with AppServer(tmp_path, {"main.py": GCF}, command, server.url, path="/") as app:
        for n in range(4):
            assert app.get(f"/?n={n}") == 200
            assert numbers(server) == list(range(n + 1)), app.output()


def test_functions_framework_with_a_cloud_event(tmp_path, server):
    command = functions_framework("on_event", "cloudevent")
    with AppServer(tmp_path, {"main.py": GCF}, command, server.url, path="/") as app:
        for n in range(4):
            status = app.get(
                "/",
                "POST",
                json.dumps({"n": n}).encode(),
                content_type="application/json",
                ce_id=str(n),
                ce_source="/test",
                ce_specversion="1.0",
                ce_type="com.example.test",
            )
            assert status == 200, app.output()
            assert numbers(server) == list(range(n + 1)), app.output()


AZURE = """\
import asyncio
import azure.functions as func
from windback import Windback
from windback.serverless import flush_after

client = Windback(flush_interval=3600)
app = func.FunctionApp()

@app.route(route="sync")
@flush_after(timeout=30)
def over_http(req: func.HttpRequest) -> func.HttpResponse:
    client.track_event("login", "jane@example.com", {"n": int(req.params["n"])})
    return func.HttpResponse("done")

@app.route(route="async")
@flush_after(timeout=30)
async def in_a_task(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    client.track_event("login", "jane@example.com", {"n": int(req.params["n"])})
    return func.HttpResponse("done")

@app.timer_trigger(schedule="0 */5 * * * *", arg_name="timer")
@flush_after(client, timeout=30)
def on_timer(timer: func.TimerRequest) -> None:
    client.track_event("login", "jane@example.com", {"n": 2})

found = {each.get_function_name(): each.get_user_function() for each in app.get_functions()}
request = lambda n: func.HttpRequest("GET", "/", params={"n": n}, body=b"")
assert found["over_http"](request(0)).get_body() == b"done"
assert asyncio.run(found["in_a_task"](req=request(1), context=None)).get_body() == b"done"
found["on_timer"](None)
print(client.stats().delivered)
"""


def test_azure_functions(server, run):
    ended = run(textwrap.dedent(AZURE), url=server.url)
    assert (ended.status, ended.out) == (0, ["3"]), ended.err
    assert numbers(server) == [0, 1, 2]
