"""`windback scrub`, `--scrub` of the commands that send, and what docs/privacy.md says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from commands import set_environment

from windback.cli import main
from windback.devserver import DevServer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\$ (windback scrub .*)\n((?:[^$`].*\n)*)", PAGE, re.MULTILINE)
CARD = "4111 1111 1111 1111"


@pytest.fixture
def server(monkeypatch):
    with DevServer() as server:
        set_environment(monkeypatch, API_KEY="sk_test_scrub", BASE_URL=server.url)
        yield server


def test_the_page_has_examples():
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize(("command", "shown"), EXAMPLES)
def test_an_example_of_the_page(command, shown, capsys):
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == shown


def test_the_examples_in_python(no_environment, monkeypatch):
    monkeypatch.setenv("WINDBACK_API_KEY", "sk_test_1")
    monkeypatch.setenv("WINDBACK_ENABLED", "0")
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(code, "docs/privacy.md", "exec"), {})  # noqa: S102 - our own page


def test_an_exact_number_stays_exact(capsys):
    assert main(["scrub", '{"n": 12345678901234567890.10, "note": "' + CARD + '"}']) == 0
    assert capsys.readouterr().out == '{"n":12345678901234567890.10,"note":"[card]"}\n'


def test_lines_of_standard_input(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", iter([f"card {CARD}\n", "plain\r\n"]))
    assert main(["scrub"]) == 0
    assert capsys.readouterr().out == "card [card]\nplain\n"


def test_a_name_that_is_not_a_scrubber(capsys):
    assert main(["scrub", "--scrub", "cards,emial", "x"]) == 2
    assert "'emial' is not one of standard, keys, cards" in capsys.readouterr().err


def test_send(server, capsys):
    arguments = ["send", "login", "--email", "jane@example.com", "-p", f"note={CARD}"]
    assert main([*arguments, "--scrub", "cards"]) == 0
    (event,) = server.events()
    assert event.properties == {"note": "[card]"}
    assert CARD not in capsys.readouterr().out


def test_import(server, tmp_path, capsys):
    file = tmp_path / "rows.csv"
    file.write_text(
        f"customer_email,event,note,password\njane@example.com,login,{CARD},x\n", encoding="utf-8"
    )
    command = ["import", str(file), "--scrub", "standard", "--json"]
    assert main([*command, "--dry-run"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert dry["first"][0]["properties"] == {"note": "[card]", "password": "[scrubbed]"}
    assert main(command) == 0
    assert [each.properties for each in server.events()] == [dry["first"][0]["properties"]]
    assert main(["import", str(file)]) == 2, "other bytes would have other keys, and rows count twice"
    assert "was started with other" in capsys.readouterr().err
