"""The applications in `examples/`, in the servers that their first lines name: what they track arrives."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from calls import eventually
from django_project import run
from servers import UVICORN, AppServer, environment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

COMMANDS = {
    "fastapi": [*UVICORN, "--app-dir", f"{EXAMPLES}", "fastapi_app:app"],
    "flask": [sys.executable, "-m", "flask", "--app", f"{EXAMPLES / 'flask_app.py'}", "run", "-p", "{port}"],
    "django": [sys.executable, f"{EXAMPLES / 'django_app/manage.py'}", "runserver", "{port}", "--noreload"],
}
#: The file with the lines that a user adds, and those of them that are for more than the set-up.
LINES = {
    "fastapi": ("fastapi_app.py", ["from windback import get_client"]),  # tracks for any customer
    "flask": ("flask_app.py", []),
    "django": ("django_app/settings.py", ['WINDBACK = {"CUSTOMER": "urls.find_customer"}']),  # no user model
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_an_example_tracks_arrives_also_at_sigterm(tmp_path, server, name):
    with AppServer(tmp_path, {}, COMMANDS[name], server.url, path="/imported/0") as app:
        eventually(server.events, 50)  # it is warm: the examples leave the time for delivery at its default
        statuses = [app.get("/export", X_User="jane@example.com"), app.get("/export")]
        assert statuses == [200, 200]
        assert app.get("/imported/7") == 200
        said = app.end()
    found = [(each.event, each.customer_email, each.properties) for each in server.events()]
    exports = [each for each in found if each[0] == "export"]
    assert exports == [("export", "jane@example.com", {"rows": 3})], said
    assert ("imported", "joe@example.com", {"rows": 7}) in found, said
    assert "Traceback" not in said


def test_the_tests_of_the_django_example_pass_and_send_nothing(server):
    ended = run(EXAMPLES / "django_app", server.url, "manage.py", "test")
    assert "Ran 2 tests" in ended.stderr
    assert ended.returncode == 0, ended.stderr
    assert server.events() == []


@pytest.mark.parametrize("name", LINES)
def test_the_set_up_is_two_lines(name):
    """Counts the statements of the file that name windback: no docstring and no comment."""
    file, more = LINES[name]
    text = (EXAMPLES / file).read_text(encoding="utf-8")
    statements = [
        ast.get_source_segment(text, node) or ""
        for node in ast.parse(text).body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    lines = [each for each in statements if "windback" in each.lower()]
    assert set(more) <= set(lines)
    assert len(lines) - len(more) == 2


@pytest.mark.skipif(sys.version_info < (3, 9), reason="benchmarks are run on newer interpreters")
def test_the_script_of_the_page_about_other_clients_finds_all_events_after_sigterm():
    script = EXAMPLES.parent / "benchmarks" / "ecosystem.py"
    ended = subprocess.run(
        [sys.executable, str(script), "windback", "--rounds", "1"],
        env=environment("http://127.0.0.1:9"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"^\| windback \| \S+ \| 2 \| 50 of 50 \|", ended.stdout, re.MULTILINE), ended.stdout
