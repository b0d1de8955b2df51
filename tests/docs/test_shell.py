"""Commands of the docs print what the docs show, on a local server; times and ports are left out."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from commands import COMMAND

from windback.devserver import DevServer

ROOT = Path(__file__).resolve().parents[2]
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
APP = "from fastapi import FastAPI\n\napp = FastAPI()\n"
SCRIPT = 'import windback\nwindback.Windback().track_event("login", "jane@example.com")\n'


def examples(start):
    """Yield page, command and output of each example whose command begins with *start*."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for block in CONSOLE.findall(text):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                if command.startswith(start):
                    yield pytest.param(command, output, text, id=f"{page.stem}: {command[:40]}")


def plain(text):
    """Return the lines of *text* without what differs from run to run."""
    text = re.sub(r"\d\d\d\d-\d\d-\d\dT[\d:.]+Z|\d\d:\d\d:\d\d\.\d+", "TIME", text)
    text = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", text)
    return [re.sub(r"\d+ ms", "MS", line.rstrip()) for line in text.splitlines()]


def matches(wanted, found):
    """Return whether lines are as *wanted*; `…` stands for any number of them."""
    if not wanted:
        return not found
    if wanted[0] == "…":
        return any(matches(wanted[1:], found[n:]) for n in range(len(found) + 1))
    return bool(found) and wanted[0] == found[0] and matches(wanted[1:], found[1:])


@pytest.fixture(scope="module")
def server():
    with DevServer(strict=False) as running:
        yield running


def run(command, folder, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    arguments = [*COMMAND, *shlex.split(command)[1:]]
    ended = subprocess.run(
        arguments,
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT / "src"), "PATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.stdout


@pytest.mark.parametrize(("command", "output", "_page"), list(examples("windback scrub")))
def test_scrub(command, output, _page, tmp_path):
    assert plain(run(command, tmp_path)) == plain(output)


@pytest.mark.parametrize(("command", "output", "_page"), list(examples("windback send")))
def test_send(command, output, _page, server, tmp_path):
    out = run(command, tmp_path, WINDBACK_BASE_URL=server.url, WINDBACK_API_KEY="sk_test_send")
    assert plain(out) == plain(output)


@pytest.mark.parametrize(("command", "output", "_page"), list(examples("windback init")))
def test_init(command, output, _page, tmp_path):
    (tmp_path / "app.py").write_text(APP)
    out = plain(run(command, tmp_path))
    assert matches(plain(output), out), out
    assert [line for line in out if "\\" in line] == []


@pytest.mark.parametrize(("command", "output", "_page"), list(examples("windback tail")))
def test_tail(command, output, _page, server, tmp_path):
    variables = {"WINDBACK_BASE_URL": server.url, "WINDBACK_API_KEY": "sk_test_tail"}
    run("windback send login --email jane@example.com -p plan=pro -p seats=3", tmp_path, **variables)
    bad = {"event": "signup", "customer_email": "jane@", "properties": {}}
    httpx.post(f"{server.url}/track", headers={"X-API-Key": "sk_test_tail"}, json={"events": [bad]})
    command += " --key sk_test_tail --count 2 --number 2"
    assert plain(run(command, tmp_path, **variables)) == plain(output)


@pytest.mark.parametrize(("command", "output", "page"), list(examples("windback dev -- python")))
def test_dev_with_a_program(command, output, page, tmp_path):
    first_block = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[:1]
    as_app = first_block[0] if "of this page as `app.py`" in page else SCRIPT
    (tmp_path / "app.py").write_text(as_app)
    (tmp_path / "script.py").write_text(SCRIPT)
    folder = re.search(r"^In `(examples/\w+)`", page, re.MULTILINE)
    out = plain(run(command.replace("dev --", "dev --port 0 --"), ROOT / folder[1] if folder else tmp_path))
    assert [line for line in plain(output) if line not in out] == [], out


@pytest.mark.parametrize(
    ("command", "output", "_page"),
    [each for each in examples("windback dev") if each.values[0] == "windback dev"],
)
def test_the_banner_of_dev(command, output, _page, tmp_path):
    out = plain(run(f"{command} --port 0 -- python -c pass", tmp_path))
    assert out[: len(plain(output))] == plain(output)


def test_doctor_without_a_key(server, tmp_path):
    ((command, output, _),) = [
        each.values for each in examples("windback doctor") if "problem  key" in each.values[1]
    ]
    out = plain(run(command, tmp_path, WINDBACK_BASE_URL=server.url))
    assert matches(
        [" ".join(line.split()) for line in plain(output)], [" ".join(line.split()) for line in out]
    )
