"""The applications in `examples/`, in the servers that their first lines name: what they track arrives."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from servers import AppServer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

COMMANDS = {
    "flask": [sys.executable, "-m", "flask", "--app", f"{EXAMPLES / 'flask_app.py'}", "run", "-p", "{port}"],
}
#: The file with the lines that a user adds, and how many these are at most.
LINES = {"flask": ("flask_app.py", 2)}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_an_example_tracks_arrives_also_at_sigterm(tmp_path, server, name):
    with AppServer(tmp_path, {}, COMMANDS[name], server.url, path="/imported/0") as app:
        statuses = [app.get("/export", X_User="jane@example.com"), app.get("/export")]
        assert statuses == [200, 200]
        assert app.get("/imported/7") == 200
        said = app.end()
    found = [(each.event, each.customer_email, each.properties) for each in server.events()]
    assert [each for each in found if each[0] == "export"] == [("export", "jane@example.com", {"rows": 3})]
    assert ("imported", "joe@example.com", {"rows": 7}) in found, said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", LINES)
def test_the_set_up_is_two_lines(name):
    """Counts the statements of the file that name windback: no docstring and no comment."""
    file, most = LINES[name]
    text = (EXAMPLES / file).read_text(encoding="utf-8")
    statements = [
        node
        for node in ast.parse(text).body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and "windback" in (ast.get_source_segment(text, node) or "").lower()
    ]
    assert len(statements) <= most
