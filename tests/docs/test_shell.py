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
from servers import UVICORN_ENDS_BY_SIGNAL

from windback.devserver import DevServer

ROOT = Path(__file__).resolve().parents[2]
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
APP = "from fastapi import FastAPI\n\napp = FastAPI()\n"
#: What `doctor --app` finds a problem in.
WITHOUT_MIDDLEWARE = """
from fastapi import FastAPI, Request
from windback import Windback

app = FastAPI()
client = Windback()


@app.get("/export")
def export(request: Request):
    client.track_event("export", request.headers["X-User"])
    return "done"
"""
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
    text = re.sub(r"in \d+(?:\.\d+)? s\b", "in N s", text)
    return [re.sub(r"[\d,.]+ ms", "MS", line.rstrip()) for line in text.splitlines()]


def narrow(lines):
    """Return *lines* with single spaces: the columns of a table depend on its widest cell."""
    return [" ".join(line.split()) for line in lines]


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def program_of(page):
    """Return the program that a page has under "See it" or "A whole …", else its first block."""
    for part in re.findall(
        r"^## (?:See it|A whole [^\n]+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL
    ):
        if blocks(part):
            return blocks(part)[0]
    return blocks(page)[0] if blocks(page) else WITHOUT_MIDDLEWARE


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


def put_programs(folder, page):
    """Write what the commands of a page run, as the page names it."""
    for name in set(re.findall(r"`((?:app|main|test_app)\.py)`", page)):
        (folder / name).write_text(program_of(page))
    (folder / "script.py").write_text(SCRIPT)
    if not (folder / "app.py").exists():
        (folder / "app.py").write_text(SCRIPT)


#: Run with a Redis, or in a project of their own, by tests/integration/test_integration_pages.py.
ELSEWHERE = ("windback dev -- rq", "windback dev -- celery", "windback doctor --app shop")


def here(start):
    return [each for each in examples(start) if not each.values[0].startswith(ELSEWHERE)]


@pytest.mark.parametrize(("command", "output", "page"), here("windback dev -- "))
def test_dev_with_a_program(command, output, page, tmp_path):
    put_programs(tmp_path, page)
    if "journal drain" in command:
        run("windback dev --port 0 -- python app.py", tmp_path)
    folder = re.search(r"^In `(examples/\w+)`", page, re.MULTILINE)
    out = plain(run(command.replace("dev --", "dev --port 0 --"), ROOT / folder[1] if folder else tmp_path))
    wanted = [line for line in narrow(plain(output)) if line != "…"]
    assert wanted
    assert [line for line in wanted if line not in narrow(out)] == [], out


@pytest.mark.parametrize(
    ("command", "output", "_page"),
    [each for each in examples("windback dev") if each.values[0] == "windback dev"],
)
def test_the_banner_of_dev(command, output, _page, tmp_path):
    out = plain(run(f"{command} --port 0 -- python -c pass", tmp_path))
    assert out[: len(plain(output))] == plain(output)


@pytest.mark.parametrize(
    ("command", "output", "_page"),
    [each for each in examples("windback doctor") if "problem  key" in each.values[1]],
)
def test_doctor_without_a_key(command, output, _page, server, tmp_path):
    out = narrow(plain(run(command, tmp_path, WINDBACK_BASE_URL=server.url)))
    assert matches(narrow(plain(output)), out), out


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM")
@pytest.mark.skipif(not UVICORN_ENDS_BY_SIGNAL, reason="the page shows what a newer uvicorn does")
@pytest.mark.parametrize(("command", "output", "page"), here("windback doctor --app"))
def test_doctor_with_an_application(command, output, page, tmp_path):
    (tmp_path / "main.py").write_text(program_of(page))
    assert narrow(plain(run(command, tmp_path))) == narrow(plain(output))


@pytest.mark.parametrize(("command", "output", "_page"), list(examples("windback --version")))
def test_version(command, output, _page, tmp_path):
    assert re.fullmatch(r"windback \d+\.\d+\.\d+\n", output)
    assert re.match(r"windback \d+\.\d+\.\d+", run(command, tmp_path))


@pytest.mark.parametrize(("command", "output", "page"), list(examples("pytest")))
def test_pytest(command, output, page, tmp_path):
    put_programs(tmp_path, page)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("WINDBACK_", "PYTEST_"))
    }
    ended = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=tmp_path,
        env={**kept, "PATH": path},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert output.strip() in ended.stdout


@pytest.mark.parametrize(
    ("command", "output", "page"), [each for each in examples("python app.py") if each.values[1].strip()]
)
def test_python(command, output, page, tmp_path):
    put_programs(tmp_path, page)
    ended = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert plain(ended.stdout) == plain(output)


@pytest.mark.skipif(sys.platform == "win32", reason="no sockets of this kind")
def test_status(tmp_path):
    """The page has an outage in it; here is one with as many lines, and other numbers."""
    ((_, output, _),) = [
        each.values for each in examples("windback status") if each.values[1].lstrip().startswith("pid")
    ]
    directory = tmp_path / "s"
    (tmp_path / "app.py").write_text(WAITS)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
    settings = {"WINDBACK_STATUS": str(directory), "WINDBACK_API_KEY": "sk_test_status"}
    with subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=tmp_path,
        env={
            **kept,
            **settings,
            "WINDBACK_PROJECT_SLUG": "shop",
            "PYTHONPATH": str(ROOT / "src"),
            "PATH": path,
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        out = run(f"windback status {directory}", tmp_path)
        process.stdin.close()
    assert [shape(line) for line in out.splitlines()] == [shape(line) for line in output.splitlines()], out


#: An application whose events wait, since nothing answers there.
WAITS = """
import sys, time, windback
client = windback.Windback(base_url="http://127.0.0.1:9/api/v1", shutdown_timeout=0)
for _ in range(3):
    client.track_event("login", "jane@example.com")
while client.stats().problem is None:
    time.sleep(0.01)
print("ready", flush=True)
sys.stdin.read()
"""


def shape(line):
    """Return what a line is about: its label, or the names of its columns."""
    label = re.match(r"\s*([a-z ]+):", line)
    if label:
        return label[1]
    return re.sub(r"[\d.,]+", "N", " ".join(line.split())) if "pid" in line else len(line.split()) > 3


def test_each_command_that_is_named_for_running_is_run():
    """What these commands print is compared; the others need a file, a Redis or a journal of a reader."""
    named = ("windback doctor", "windback dev", "windback send", "windback tail", "windback status")
    shown = {each.id for start in named for each in examples(start) if each.values[1].strip()}
    run_here = {
        each.id
        for start in ("windback dev -- ", "windback doctor --app", "windback send", "windback tail")
        for each in examples(start)
    }
    run_here |= {each.id for each in examples("windback doctor") if "problem  key" in each.values[1]}
    run_here |= {each.id for each in examples("windback status") if "pid" in each.values[1]}
    run_here |= {each.id for each in examples("windback dev") if each.values[0] == "windback dev"}
    # One shows what only the real API has: its address, DNS and TLS.
    left = shown - run_here
    assert len(left) <= 1, left
