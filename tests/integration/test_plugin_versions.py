"""The pytest plugin in other people's suites: it starts with each version, and loads nothing heavy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import SOURCE

#: From the oldest that run on this Python to the newest.
VERSIONS = ["pytest==7.4.4 pluggy==1.0.0", "pytest==8.0.0 pluggy==1.3.0", "pytest pluggy"]
if sys.version_info < (3, 12):
    VERSIONS += ["pytest==7.0.1 pluggy==1.0.0", "pytest==7.1.3 pluggy==0.13.1"]
if sys.version_info < (3, 11):
    VERSIONS += ["pytest==6.2.5 pluggy==0.13.1"]
if sys.version_info < (3, 10):
    VERSIONS += ["pytest==6.2.0 pluggy==0.12.0"]
if sys.version_info < (3, 9):
    VERSIONS += ["pytest==5.4.3 pluggy==0.12.0", "pytest==5.4.3 pluggy==0.13.1"]

SUITE = """
import sys
loaded_at_the_start = set(sys.modules)
import pytest

def test_of_something_else():
    heavy = {"anyio", "asyncio", "httpx", "orjson", "ssl", "unittest.mock", "windback.client"}
    if sys.version_info < (3, 9):
        heavy -= {"asyncio", "ssl"}  # unittest, which pytest loads, loads them there
    assert heavy.isdisjoint(loaded_at_the_start)

def test_tracks():
    from windback import Windback
    client = Windback("sk_test_1", "shop", shutdown_timeout=0.1)
    client.track_event("login", "jane@example.com")

def test_fails_by_itself():
    from windback import Windback
    Windback("sk_test_1", "shop", shutdown_timeout=0.1).track_event("login", "jane@example.com")
    raise ValueError("of the test")

@pytest.mark.windback_live
def test_live():
    pass

def test_captures(windback_events):
    from windback import Windback
    with Windback("sk_test_1", "shop") as client:
        client.track_event("login", "jane@example.com", {"n": 1})
    assert [each.event for each in windback_events] == ["login"]

@pytest.fixture
def tracks_at_the_end():
    yield
    from windback import Windback
    Windback("sk_test_1", "shop", shutdown_timeout=0.1).track_event("logout", "jane@example.com")

def test_fixture(tracks_at_the_end):
    pass
"""


@pytest.fixture(scope="module", params=VERSIONS)
def packages(request, tmp_path_factory):
    """A folder with these packages, from the registry."""
    folder = tmp_path_factory.mktemp("packages")
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    start = [uv, "pip", "install", "-p", sys.executable] if uv else [sys.executable, "-m", "pip", "install"]
    subprocess.run([*start, "-q", "--target", str(folder), *request.param.split()], check=True, timeout=120)
    return folder


def run(packages, folder, *arguments):
    """Run pytest as it is in *packages*."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "windback.testing.plugin",
            "-p",
            "no:cacheprovider",
            *arguments,
        ],
        cwd=folder,
        env={
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("WINDBACK_", "PYTEST_"))
            },
            "PYTHONPATH": os.pathsep.join([str(packages), str(SOURCE)]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.timeout(300)
def test_it_works_with_each_version(packages, tmp_path):
    (tmp_path / "test_app.py").write_text(SUITE, encoding="utf-8")
    done = run(packages, tmp_path, "-vrA", "-W", "default")
    assert done.stderr == ""
    outcomes = re.findall(r"^test_app.py::(\w+) ([A-Z]+)", done.stdout, re.MULTILINE)
    assert outcomes == [
        ("test_of_something_else", "PASSED"),
        ("test_tracks", "FAILED"),
        ("test_fails_by_itself", "FAILED"),
        ("test_live", "PASSED"),
        ("test_captures", "PASSED"),
        ("test_fixture", "PASSED"),
        ("test_fixture", "ERROR"),
    ], done.stdout
    assert "of the test" in done.stdout
    assert done.stdout.count("this test would have sent events to api.windbackai.com") >= 2
