"""Webhooks that `windback dev` sends, received by applications in real servers."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
from collections import Counter
from contextlib import closing
from datetime import datetime, timedelta, timezone
from http.client import HTTPConnection
from pathlib import Path

import pytest
from calls import eventually
from commands import Ended, set_environment
from servers import GUNICORN, UVICORN, AppServer

from windback.cli import main
from windback.devserver import DevServer
from windback.webhooks import MAX_BODY_BYTES, sign

SECRET = "whsec_local"
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "webhooks.md").read_text(encoding="utf-8")

FASTAPI = """\
from fastapi import FastAPI
from windback.fastapi import webhook_router

app = FastAPI()
calls = []

@app.get("/calls")
def get_calls():
    return calls

async def save(alert):
    calls.append(alert.id)
    print("handled", alert.id, flush=True)
    if (alert.customer_email or "").startswith("fails") and calls.count(alert.id) == 1:
        raise RuntimeError("a bug of the handler")

def save_in_a_thread(alert):
    import threading
    assert threading.current_thread() is not threading.main_thread()
    print("handled in a thread", alert.id, flush=True)

app.include_router(webhook_router(save))
app.include_router(webhook_router(save_in_a_thread, path="/hooks/thread/"))
"""

FLASK = """\
from flask import Flask, jsonify, request
from windback.flask import webhook_blueprint

app = Flask("app")
calls = []

@app.get("/calls")
def get_calls():
    return jsonify(calls)

def save(alert):
    calls.append(alert.id)
    print("handled", alert.id, flush=True)
    if (alert.customer_email or "").startswith("fails") and calls.count(alert.id) == 1:
        raise RuntimeError("a bug of the handler")

async def save_async(alert):
    print("handled by the other kind", alert.id, flush=True)

@app.before_request
def read_before():
    if request.path.startswith("/hooks/read"):
        assert request.get_data()

app.register_blueprint(webhook_blueprint(save))
app.register_blueprint(webhook_blueprint(save_async, path="/hooks/thread/"))
app.register_blueprint(webhook_blueprint(save_async, path="/read"), url_prefix="/hooks")
"""

DJANGO_URLS = """\
from django.http import JsonResponse
from django.urls import path, re_path
from windback.django import webhook_view

calls = []

def get_calls(request):
    return JsonResponse(calls, safe=False)

def save(alert):
    calls.append(alert.id)
    print("handled", alert.id, flush=True)
    if (alert.customer_email or "").startswith("fails") and calls.count(alert.id) == 1:
        raise RuntimeError("a bug of the handler")

async def save_async(alert):
    save(alert)

async def save_quietly(alert):
    print("handled by the other kind", alert.id, flush=True)

urlpatterns = [
    path("calls", get_calls),
    re_path("^windback/?$", webhook_view(save)),
    path("hooks/thread", webhook_view(save_quietly)),
    path("hooks/read", webhook_view(save_quietly)),
]
"""
DJANGO = {
    "urls.py": DJANGO_URLS,
    "settings.py": """\
        SECRET_KEY = "key"
        ROOT_URLCONF = "urls"
        ALLOWED_HOSTS = ["*"]
        INSTALLED_APPS = ["windback.django"]
        MIDDLEWARE = [
            "urls_middleware.read_before",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "windback.django.WindbackMiddleware",
        ]
        """,
    "urls_middleware.py": """\
        def read_before(get_response):
            def middleware(request):
                if request.path.startswith("/hooks/read"):
                    assert request.body
                return get_response(request)
            return middleware
        """,
    "wsgi.py": """\
        import os
        from django.core.wsgi import get_wsgi_application
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        application = get_wsgi_application()
        """,
    "asgi.py": """\
        import os
        from django.core.asgi import get_asgi_application
        os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
        application = get_asgi_application()
        """,
}
DJANGO_ASYNC = {**DJANGO, "urls.py": DJANGO_URLS.replace("webhook_view(save)", "webhook_view(save_async)")}

APPS = {
    "fastapi": ({"app.py": FASTAPI}, [*UVICORN, "app:app"]),
    "flask": ({"app.py": FLASK}, [*GUNICORN, "--threads", "4", "app:app"]),
    "django": (DJANGO, [*GUNICORN, "--threads", "4", "wsgi"]),
    "django under asgi": (DJANGO_ASYNC, [*UVICORN, "asgi:application"]),
}
#: Django under ASGI puts a body into a file before it calls a view.
READ_NO_FURTHER = [name for name in APPS if name != "django under asgi"]


@pytest.fixture(scope="module", params=APPS)
def app(request, tmp_path_factory):
    files, command = APPS[request.param]
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    with AppServer(
        folder, files, command, "http://127.0.0.1:9", path="/calls", WINDBACK_WEBHOOK_SECRET=SECRET
    ) as server:
        yield server


def alert(number, *, at=None, email="jane@example.com", **more):
    at = datetime.now(timezone.utc) if at is None else at
    payload = {
        "event": "churn_risk.alert",
        "customer_email": email,
        "risk_score": 90,
        "triggered_at": at.isoformat(),
        "opaque_id": f"alert_{number}",
        **more,
    }
    return json.dumps(payload).encode()


def post(app, body, signature=None, path="/windback"):
    signature = sign(body, SECRET) if signature is None else signature
    return app.get(path, "POST", body, X_Windback_Signature=signature)


def handled(app, number):
    return app.output().splitlines().count(f"handled {number}")


def test_an_alert_of_the_local_server_arrives_and_a_bug_of_the_handler_makes_it_come_again(app):
    url = f"http://127.0.0.1:{app.port}/windback"
    with DevServer(webhook_url=url, webhook_delays=[0.1, 0.1, 0.1]) as server:
        for email, statuses in (("jane@example.com", [200]), ("fails@example.com", [500, 200])):
            server.reset()
            sent = server.send_alert(email, 92)
            eventually(lambda: server.webhooks()[0].state == "delivered", within_s=30)
            assert [each.status for each in server.webhooks()[0].attempts] == statuses
            assert handled(app, sent.id) == len(statuses)


def test_a_duplicate_is_answered_without_a_call_of_the_handler(app):
    body = alert("twice")
    assert [post(app, body) for _ in range(3)] == [200, 200, 200]
    assert handled(app, "alert_twice") == 1


def test_an_alert_that_the_local_server_sends_again_is_a_duplicate_for_its_receiver(app):
    with DevServer(webhook_url=f"http://127.0.0.1:{app.port}/windback", webhook_secret=SECRET) as server:
        sent = server.send_alert("jane@example.com", 87)

        def answers():
            (delivery,) = server.webhooks()
            return [each.status for each in delivery.attempts]

        eventually(lambda: answers() == [200])
        assert server.resend_alert(sent.id).body == sent.body
        eventually(lambda: answers() == [200, 200])
        assert app.output().count(f"handled {sent.id}") == 1


@pytest.mark.parametrize("path", ["/windback/", "/windback"])
def test_a_slash_at_the_end_makes_no_difference(app, path):
    body = alert(f"slash {path}")
    assert post(app, body, path=path) == 200


def test_a_handler_of_the_other_kind_is_called_too(app):
    """A sync one in a thread of FastAPI, an async one by Flask and Django."""
    body = alert("thread")
    assert post(app, body, path="/hooks/thread") == 200
    assert "alert_thread" in app.output()


@pytest.mark.parametrize("app", ["flask", "django", "django under asgi"], indirect=True)
def test_a_body_that_the_application_has_read_already_is_received(app):
    assert post(app, alert("read"), path="/hooks/read") == 200
    assert post(app, alert("read, wrong"), "00", path="/hooks/read") == 401


@pytest.mark.parametrize(
    ("signature", "status"),
    [("00" * 32, 401), ("", 401), ("\xe9" * 64, 401), ("a, b", 401)],
)
def test_a_wrong_signature_is_answered_401(app, signature, status):
    assert post(app, alert("wrong"), signature) == status
    assert handled(app, "alert_wrong") == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (alert("late", at=datetime.now(timezone.utc) - timedelta(hours=1)), 400),
        (b"x" * (MAX_BODY_BYTES + 1), 413),
    ],
    ids=["empty", "no object", "no JSON", "late", "large"],
)
def test_a_wrong_body_is_answered_400_or_413(app, body, status):
    assert post(app, body) == status


@pytest.mark.parametrize("app", READ_NO_FURTHER, indirect=True)
def test_a_body_without_an_end_is_read_no_further(app):
    """The answer comes though most of what was announced was never sent."""
    with socket.create_connection(("127.0.0.1", app.port), timeout=60) as connection:
        head = "POST /windback HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 1000)
        assert connection.recv(12) == b"HTTP/1.1 413"


def chunks(body, size=7):
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def post_raw(app, body, *signatures):
    """Return the status of a delivery whose body is sent as it is, in chunks."""
    lines = ["POST /windback HTTP/1.1", "Host: x", "Connection: close", "Transfer-Encoding: chunked"]
    lines += [f"X-Windback-Signature: {each}" for each in signatures]
    with socket.create_connection(("127.0.0.1", app.port), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return int(connection.recv(12).split()[1])


def test_a_body_in_chunks_is_received(app):
    body = alert("chunks")
    assert post_raw(app, chunks(body), sign(body, SECRET)) == 200
    assert handled(app, "alert_chunks") == 1
    assert post_raw(app, chunks(body + b" "), sign(body, SECRET)) == 401


def test_malformed_chunks_are_the_senders_fault(app):
    body = alert("malformed")
    assert post_raw(app, b"zz\r\n" + body, sign(body, SECRET)) == 400
    assert handled(app, "alert_malformed") == 0


def test_two_signatures_are_none_whichever_comes_first(app):
    body = alert("two")
    right, wrong = sign(body, SECRET), "0" * 64
    for signatures in ((right, wrong), (wrong, right)):
        assert post_raw(app, chunks(body), *signatures) == 401
    assert handled(app, "alert_two") == 0


def test_a_sender_that_goes_away_is_no_error_of_the_application(app):
    for number in range(5):
        with socket.create_connection(("127.0.0.1", app.port), timeout=60) as connection:
            head = "POST /windback HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n"
            connection.sendall(head.encode() + b"x" * number)
    assert post(app, alert("after it")) == 200
    assert "Disconnect" not in app.output()


def test_a_get_is_not_a_delivery(app):
    assert app.get("/windback") == 405


#: Fuzzed requests to each application: FUZZED_WEBHOOKS=10000 for a longer look.
FUZZED = int(os.environ.get("FUZZED_WEBHOOKS", "1000"))
ODD_VALUES = [
    *(None, True, -1, 0, 1e308, 10**30, "", "\x00", "\ud800", "jane@example.com", "2026-02-30T25:61:00Z"),
    *("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", [], {}, [[]], [None], [{"name": None}]),
    *([{"name": "a", "weight": "b"}], "x" * 5000, {"a": {"b": {"c": []}}}, "churn_risk.alert"),
]


def fuzzed_body(rng):
    """Return a body: an alert with odd values, or with bytes that were changed, cut, nested or repeated."""
    payload = json.loads(alert("fuzz"))
    for _ in range(rng.randrange(4)):
        payload[rng.choice([*payload, "customer_id", "timestamp", "opaque_id", "x"])] = rng.choice(ODD_VALUES)
    for name in rng.sample(list(payload), rng.randrange(3)):
        del payload[name]
    body = bytearray(json.dumps(payload).encode())
    for _ in range(rng.choice([0, 0, 1, 3])):
        body[rng.randrange(len(body))] = rng.randrange(256)
    kind = rng.randrange(20)
    if kind == 0:
        del body[rng.randrange(len(body)) :]
    elif kind == 1:
        body = bytearray(b"[" * 5000 + b"]" * 5000)
    elif kind == 2:
        body = body * 2
    return bytes(body)


def fuzzed_signatures(rng, body):
    """Return the values of the header, which may be there several times, or not at all."""
    right = sign(body, SECRET)
    odd = "".join(chr(rng.choice([*range(32, 127), *range(160, 256)])) for _ in range(rng.randrange(1, 80)))
    wrong = [[], [""], [odd], [right.upper()], [right, odd], [odd, right], [right[:-1]], ["x" * 7000]]
    return rng.choice([*wrong, [f"sha256={right}"], ["0" * 64], *([[right]] * 10)])


def test_no_fuzzed_request_is_a_5xx(app):
    rng = random.Random(7)
    statuses = Counter()
    with closing(HTTPConnection("127.0.0.1", app.port, timeout=60)) as connection:
        for _ in range(FUZZED):
            body = fuzzed_body(rng)
            connection.putrequest("POST", "/windback")
            connection.putheader("Content-Length", str(len(body)))
            for signature in fuzzed_signatures(rng, body):
                connection.putheader("X-Windback-Signature", signature.encode("latin-1"))
            connection.endheaders(body)
            answer = connection.getresponse()
            answer.read()
            statuses[answer.status] += 1
            if answer.will_close:
                connection.close()
    assert {200, 400, 401} <= set(statuses)
    assert max(statuses) < 500, app.output()[-3000:]


@pytest.mark.parametrize("secret", [None, "", "sk_live_1"])
@pytest.mark.parametrize("text", [FASTAPI, FLASK, DJANGO_URLS], ids=["fastapi", "flask", "django"])
def test_a_server_without_a_secret_does_not_start(tmp_path, text, secret):
    (tmp_path / "app.py").write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
    if secret is not None:
        environment["WINDBACK_WEBHOOK_SECRET"] = secret
    ended = subprocess.run(
        [sys.executable, "-c", "import app"],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=60,
        text=True,
    )
    assert ended.returncode == 1
    assert "WINDBACK_WEBHOOK_SECRET" in ended.stderr


# -- windback webhook send -------------------------------------------------------------------------


def sent(capsys, app, *options, path="/windback"):
    status = main(["webhook", "send", "--to", f"http://127.0.0.1:{app.port}{path}", *options])
    return Ended(status, *capsys.readouterr())


def test_the_command_sends_an_alert_that_is_handled(app, capsys, monkeypatch):
    set_environment(monkeypatch)  # the secret is that of the local server
    ended = sent(capsys, app, "--id", "alert_cli", "--email", "jo@example.com", "--score", "55")
    assert (ended.status, ended.out, ended.err) == (0, 'alert: 200 {"status":"ok"}\n', "")
    again = sent(capsys, app, "--id", "alert_cli", "--json")
    assert again.json["answer"] == '{"status":"duplicate"}'
    assert handled(app, "alert_cli") == 1


@pytest.mark.parametrize(
    ("options", "statuses"),
    [
        (["--duplicate"], ["200", "200"]),
        (["--late"], ["400"]),
        (["--wrong-signature"], ["401"]),
        (["--wrong-signature", "--duplicate"], ["401", "401"]),
    ],
)
def test_the_command_sends_wrong_ones_on_demand(app, capsys, monkeypatch, options, statuses):
    set_environment(monkeypatch, WEBHOOK_SECRET=f"{SECRET},whsec_old")
    ended = sent(capsys, app, *options)
    assert ended.status == 0
    assert [line.split()[1] for line in ended.out.splitlines()] == statuses


def test_the_command_reports_why_an_answer_is_not_the_right_one(app, capsys, monkeypatch):
    set_environment(monkeypatch, WEBHOOK_SECRET=f"{SECRET}_other")
    ended = sent(capsys, app)
    assert ended.status == 1
    assert "expected 2xx: the secret of the application differs" in ended.out
    assert sent(capsys, app, path="/nowhere").out.endswith("is this the right path?\n")


@pytest.mark.parametrize(
    ("url", "variables", "says"),
    [
        ("http://127.0.0.1:9/x", {}, "http://127.0.0.1:9/x: "),
        ("https://app.example.com/x", {}, "set WINDBACK_WEBHOOK_SECRET"),
        ("http://127.0.0.1:9/x", {"WEBHOOK_SECRET": "sk_live_1"}, "is an API key"),
        ("ftp://app", {}, "starts with http"),
        ("127.0.0.1:8000/x", {}, "starts with http"),
    ],
)
def test_the_command_refuses_what_can_not_work(capsys, monkeypatch, url, variables, says):
    set_environment(monkeypatch, **variables)
    assert main(["webhook", "send", "--to", url]) == 2
    assert says in capsys.readouterr().err


#: As the page has it.
SEEN = re.findall(r"```python\n(import redis\n\n\nclass SeenInRedis:.*?)```", PAGE, re.DOTALL)[0]
WITH_REDIS = f"""\
import os
from flask import Flask, request
from windback.flask import webhook_blueprint

{SEEN}

app = Flask("app")

@app.get("/calls")
def get_calls():
    return []

@app.before_request
def name_worker():
    if request.method == "POST":
        print("worker", os.getpid(), flush=True)

def save(alert):
    print("handled", alert.id, flush=True)

seen = SeenInRedis(redis.Redis.from_url(os.environ["REDIS_URL"]))
app.register_blueprint(webhook_blueprint(save, seen=seen))
"""


def test_processes_that_remember_alerts_in_redis_handle_each_once(tmp_path, redis_server):
    command = [*GUNICORN, "--workers", "4", "app:app"]
    more = {"WINDBACK_WEBHOOK_SECRET": SECRET, "REDIS_URL": redis_server.url}
    (tmp_path / "app.py").write_text(WITH_REDIS, encoding="utf-8")
    with AppServer(tmp_path, {}, command, "http://127.0.0.1:9", path="/calls", **more) as app:

        def deliver():
            """Deliver each alert once more; the number of the processes that got something so far."""
            assert [post(app, alert(number)) for number in range(3)] == [200, 200, 200]
            return len({line for line in app.output().splitlines() if line.startswith("worker ")})

        eventually(lambda: deliver() > 1)
        eventually(lambda: [handled(app, f"alert_{number}") for number in range(3)] == [1, 1, 1])
        assert [redis_server.client.ttl(f"alert:alert_{number}") > 900 for number in range(3)] == [True] * 3
        redis_server.kill()
        assert post(app, alert(9)) == 500
        redis_server.start()
        assert post(app, alert(9)) == 200
        assert handled(app, "alert_9") == 1
