"""`windback doctor --app`: real applications in real servers, some of which lose what they track."""

from __future__ import annotations

import json
import textwrap
from typing import NamedTuple

import pytest
from commands import set_environment
from servers import UVICORN_ENDS_BY_SIGNAL

from windback.cli import main

ASGI = """\
    from fastapi import FastAPI
    from windback import get_client
    from windback.fastapi import WindbackMiddleware

    app = FastAPI()
    {middleware}

    @app.get("/export")
    def export(n: int = 1):
        for _ in range(n):
            get_client().track_event("export", "jane@example.com")
        return {{}}
"""
MIDDLEWARE = "app.add_middleware(WindbackMiddleware)"
FLASK = """\
    from flask import Flask, request
    from windback import get_client

    app = Flask(__name__)

    @app.get("/")
    def export():
        email = request.headers.get("X-User")
        if email:
            get_client().track_event("export", email)
        return {}
"""
WSGI = """\
    from windback import Windback, get_client, set_client

    set_client(Windback(handle_signals=SIGNALS))

    def app(environ, start_response):
        get_client().track_event("hit", "jane@example.com")
        start_response("200 OK", [])
        return [b"done"]
"""


class Found(NamedTuple):
    status: int
    states: dict
    texts: dict
    err: str


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    set_environment(monkeypatch)  # it needs no key
    monkeypatch.chdir(tmp_path)

    def run(text: str, *more: str) -> Found:
        (tmp_path / "mine.py").write_text(textwrap.dedent(text), encoding="utf-8")
        capsys.readouterr()
        status = main(["doctor", "--app", "mine:app", "--json", "--timeout", "8", *more])
        out, err = capsys.readouterr()
        checks = json.loads(out)["checks"]
        return Found(
            status,
            {each["name"]: each["state"] for each in checks},
            {each["name"]: each["text"] for each in checks},
            err,
        )

    return run


def test_an_application_with_the_middleware_keeps_all(doctor):
    found = doctor(ASGI.format(middleware=MIDDLEWARE), "--path", "/export?n=2")
    assert found.texts["application"] == "mine:app is an ASGI application of fastapi"
    assert found.texts["events"] == "of one request: 2 export"
    assert found.texts["SIGTERM"] == "20 of 20 events survived"
    assert found.status == 0


def test_an_application_without_it_loses_all_and_is_told_what_to_add(doctor):
    found = doctor(ASGI.format(middleware=""), "--path", "/export")
    if not UVICORN_ENDS_BY_SIGNAL:
        assert found.texts["SIGTERM"] == "10 of 10 events survived"
        return
    assert found.states["SIGTERM"] == "problem"
    assert found.texts["SIGTERM"].startswith("0 of 10 events survived; app.add_middleware(")
    assert found.status == 1


def test_a_wsgi_application_runs_in_gunicorn(doctor):
    found = doctor(FLASK, "--header", "X-User: jane@example.com")
    assert found.texts["server"] == "gunicorn answers"
    assert found.texts["SIGTERM"] == "10 of 10 events survived"
    assert found.status == 0


@pytest.mark.parametrize("signals", [False, True])
def test_without_gunicorn_it_runs_in_the_server_of_the_standard_library(doctor, monkeypatch, signals):
    monkeypatch.setattr("windback.cli.doctor_app.find_spec", lambda _: None)
    found = doctor(WSGI.replace("SIGNALS", str(signals)))
    assert found.texts["server"] == "wsgiref answers"
    if signals:
        assert found.texts["SIGTERM"] == "10 of 10 events survived"
    else:
        assert "; windback.set_client(Windback(handle_signals=True))" in found.texts["SIGTERM"]
    assert found.status == (0 if signals else 1)


def test_a_path_that_tracks_nothing_is_distinguished_from_a_loss(doctor):
    found = doctor(FLASK)
    assert found.states["request"] == "ok"
    assert found.states["events"] == "problem"
    assert "--header" in found.texts["events"]
    assert "SIGTERM" not in found.states


def test_a_status_that_is_an_error_is_shown(doctor):
    found = doctor(FLASK, "--path", "/nowhere")
    assert (found.states["request"], found.texts["request"]) == ("warning", "GET /nowhere: 404")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import nothing_of_that_name\n", "No module named 'nothing_of_that_name'"),
        ("other = 1\n", "has no attribute 'app'"),
    ],
)
def test_an_application_that_cannot_be_imported_is_one_line(doctor, text, words):
    found = doctor(text)
    assert found.states == {"application": "problem"}
    assert words in found.texts["application"]


def test_an_application_that_ends_at_its_start_is_one_line(doctor):
    text = FLASK + "\n    import sys\n    if 'gunicorn' in sys.modules:\n        sys.exit('no database')\n"
    found = doctor(text)
    assert found.states["server"] == "problem"
    assert found.texts["server"].startswith("gunicorn did not start; ")
    assert "no database" in found.err


@pytest.mark.parametrize(
    "line",
    [
        ["--app", "main"],
        ["--app", "main:"],
        ["--app", "main:app", "--path", "export"],
        ["--app", "main:app", "--header", "X-User"],
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(line, capsys):
    assert main(["doctor", *line]) == 2
    assert capsys.readouterr().err.startswith("windback doctor: --")
