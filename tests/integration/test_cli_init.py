"""`windback init`: lines that fit into an application, and a file that is left alone where they might not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from commands import COMMAND, SOURCE

APPS = {
    "fastapi": 'import os\nfrom fastapi import FastAPI\n\napp = FastAPI(\n    title="shop",\n)\n',
    "flask": '"""Shop."""\nfrom __future__ import annotations\nimport flask\nshop = flask.Flask("shop")\n',
    "celery": 'from celery import Celery\n\napp = Celery("app", broker="memory://")\n',
    "django": "DEBUG = True\nINSTALLED_APPS = []\nMIDDLEWARE = []\n",
    "lambda": "import json\n\n\ndef handler(event, context):\n    return json.dumps(event)\n",
}
ADDED = {
    "fastapi": ["from windback.fastapi import WindbackMiddleware", "app.add_middleware(WindbackMiddleware)"],
    "flask": ["from windback.flask import FlaskWindback", "wb = FlaskWindback(shop)"],
    "celery": ["from windback import Windback", "client = Windback()"],
    "django": [
        'INSTALLED_APPS += ["windback.django"]',
        'MIDDLEWARE += ["windback.django.WindbackMiddleware"]',
    ],
    "lambda": ["from windback.serverless import flush_after", "@flush_after"],
}


@pytest.fixture
def init(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [*COMMAND, "init", *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("name", APPS)
def test_it_prints_the_lines_and_changes_nothing(tmp_path, init, name):
    (tmp_path / "main.py").write_text(APPS[name], encoding="utf-8")
    ended = init(name)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[: len(ADDED[name]) + 1] == ["# main.py", *ADDED[name]]
    assert "\\n" not in ended.stdout
    assert "\n\n# CI, such as a workflow of GitHub\n" in ended.stdout
    assert (tmp_path / "main.py").read_text(encoding="utf-8") == APPS[name]
    assert [path.name for path in tmp_path.iterdir()] == ["main.py"]


@pytest.mark.parametrize("name", APPS)
def test_what_it_writes_runs_and_a_second_time_changes_nothing(tmp_path, init, name):
    (tmp_path / "main.py").write_text(APPS[name], encoding="utf-8")
    assert init(name, "--write").returncode == 0
    text = (tmp_path / "main.py").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line not in APPS[name].splitlines()] == ADDED[name]
    environment = {"PYTHONPATH": str(SOURCE), "WINDBACK_ENABLED": "0"}
    subprocess.run([sys.executable, "-W", "ignore", "main.py"], cwd=tmp_path, env=environment, check=True)
    again = init(name, "--write")
    assert again.returncode == 1
    assert "nothing is changed: main.py has windback already" in again.stdout
    assert (tmp_path / "main.py").read_text(encoding="utf-8") == text


def test_the_test_that_it_writes_passes(tmp_path, init):
    (tmp_path / "main.py").write_text(APPS["celery"], encoding="utf-8")
    init("celery", "--write")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ended = subprocess.run(
        [*command, "tests"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in ended.stdout, ended.stdout


UNCLEAR = {
    "two applications": (APPS["fastapi"] + "other = FastAPI()\n", "there is more than one place"),
    "made in a function": (
        "from fastapi import FastAPI\n\ndef make():\n    app = FastAPI()\n    return app\n",
        "no fastapi",
    ),
    "no application": ("print(1)\n", "no fastapi application was found here"),
    "not Python": ("app = FastAPI(\n", "no fastapi application was found here"),
    "one line": ("from fastapi import FastAPI; app = FastAPI(); x = [\n1]\n", None),
    "an attribute": ("import fastapi\nclass A:\n    pass\nA.app = fastapi.FastAPI()\n", "no fastapi"),
}


@pytest.mark.parametrize(("text", "why"), UNCLEAR.values(), ids=UNCLEAR)
def test_what_it_does_not_understand_is_left_alone(tmp_path, init, text, why):
    (tmp_path / "main.py").write_text(text, encoding="utf-8")
    ended = init("fastapi", "--write")
    if why is None:  # it may be written, but then it runs
        changed = (tmp_path / "main.py").read_text(encoding="utf-8")
        compile(changed, "main.py", "exec")
        return
    assert ended.returncode == 1
    assert why in ended.stdout
    assert ADDED["fastapi"][1] in ended.stdout  # the lines are printed all the same
    assert (tmp_path / "main.py").read_text(encoding="utf-8") == text
    assert not (tmp_path / "tests").exists()


def test_a_test_that_is_there_is_left_alone(tmp_path, init):
    (tmp_path / "main.py").write_text(APPS["flask"], encoding="utf-8")
    (tmp_path / "tests").mkdir()
    mine = tmp_path / "tests" / "test_windback.py"
    mine.write_text("# mine\n", encoding="utf-8")
    assert init("flask", "--write").returncode == 0
    assert mine.read_text(encoding="utf-8") == "# mine\n"


def test_line_ends_stay_as_they_are(tmp_path, init):
    (tmp_path / "main.py").write_bytes(APPS["celery"].replace("\n", "\r\n").encode())
    assert init("celery", "--write").returncode == 0
    assert b"\n" not in (tmp_path / "main.py").read_bytes().replace(b"\r\n", b"")


def test_a_file_that_is_named(tmp_path, init):
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(APPS["celery"], encoding="utf-8")
    assert init("celery", "--write").returncode == 1
    assert init("celery", "--write", "--file", "two.py").returncode == 0
    assert (tmp_path / "one.py").read_text(encoding="utf-8") == APPS["celery"]
    assert init("celery", "--file", "three.py").returncode == 2


@pytest.mark.parametrize("what", ["test_windback.py", "tests"])
def test_it_writes_nothing_through_a_link(tmp_path, init, what):
    """A link in a project of somebody else would name any place that its user may write to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    project = tmp_path / "project"
    (project / "tests").mkdir(parents=True)
    (project / "main.py").write_text(APPS["fastapi"], encoding="utf-8")
    if what == "tests":
        (project / "tests").rmdir()
        (project / "tests").symlink_to(outside)
    else:
        (project / "tests" / what).symlink_to(outside / "made.py")  # which does not exist
    ended = subprocess.run(
        [*COMMAND, "init", "fastapi", "--write"],
        cwd=project,
        env={"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == (1 if what == "tests" else 0), ended.stderr
    assert list(outside.iterdir()) == []
    assert "add_middleware" in (project / "main.py").read_text(encoding="utf-8")


def test_odd_files_beside_the_application_stop_nothing(tmp_path, init):
    (tmp_path / "main.py").write_text(APPS["fastapi"], encoding="utf-8")
    os.mkfifo(tmp_path / "fifo.py")
    with (tmp_path / "sparse.py").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "link.py").symlink_to("/dev/zero")
    (tmp_path / "minus.py").write_text(f"x = {'-' * 100_000}1\n", encoding="utf-8")
    (tmp_path / "brackets.py").write_text(f"x = {'(' * 50_000}{')' * 50_000}\n", encoding="utf-8")
    (tmp_path / "zero.py").write_bytes(b"x = '\0'")
    ended = init("fastapi")
    # Python 3.8's own parser writes this, for "brackets.py".
    errors = ended.stderr.replace("s_push: parser stack overflow\n", "")
    assert (ended.returncode, errors) == (0, "")
    assert "--write puts them into main.py" in ended.stdout
    for name in ("fifo.py", "folder.py"):
        ended = init("fastapi", "--file", name)
        assert ended.returncode == 2, ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("separator", ["\x0c", "\x1c", "\x85", "\u2028", "\v"])
def test_lines_are_those_that_python_counts(tmp_path, init, separator):
    before = f'from fastapi import FastAPI\nTEXT = "a{separator}b{separator}c"\napp = FastAPI()\nafter = 1\n'
    (tmp_path / "main.py").write_bytes(before.encode())
    assert init("fastapi", "--write").returncode == 0
    lines = (tmp_path / "main.py").read_bytes().decode().split("\n")
    place = lines.index("app.add_middleware(WindbackMiddleware)")
    assert (lines[place - 1], lines[place + 1]) == ("app = FastAPI()", "after = 1")
    assert "\n".join(each for each in lines if "Middleware" not in each) == before
