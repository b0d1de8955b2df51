"""Each Python block of README and docs runs, against a local server, from the top of its page to the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from windback.devserver import DevServer

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SKIPPED = re.compile(r"^<!-- skip: next(.*)-->$", re.MULTILINE)
#: What defines tests is run by pytest, with the plugin of this package.
TESTS = re.compile(r"^(?:async )?def test_|^class \w+\(.*TestCase", re.MULTILINE)


@pytest.fixture(scope="module")
def server():
    with DevServer() as running:
        yield running


def run(arguments, server, key, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
    ended = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env={
            **environment,
            "PYTHONPATH": os.pathsep.join([str(SUPPORT), str(ROOT / "src")]),
            "WINDBACK_API_KEY": key,
            "WINDBACK_BASE_URL": server.url,
            "WINDBACK_PROJECT_SLUG": "my-project",
            "WINDBACK_WEBHOOK_SECRET": "whsec_local",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    if ended.returncode:
        pytest.fail(f"it ended with {ended.returncode}:\n{ended.stdout}", pytrace=False)
    return ended.stdout


WITH_BLOCKS = [path for path in PAGES if BLOCK.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", WITH_BLOCKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_blocks_of_a_page_run(path, server, tmp_path):
    replaced = {
        "http://127.0.0.1:8787/api/v1": server.url,
        "/var/lib/app/windback": str(tmp_path / "journal"),
        "sk_live_your_secret_key": f"sk_test_{path.stem}",
    }
    blocks = "\n".join(BLOCK.findall(path.read_text(encoding="utf-8")))
    if TESTS.search(blocks):
        (tmp_path / "test_page.py").write_text(
            f"from documents import evaluate\nnames = evaluate({str(path)!r}, {replaced!r})\n"
            'globals().update({name: value for name, value in names.items() if name[0] != "_"})\n'
        )
        (tmp_path / "pytest.ini").write_text(
            "[pytest]\nfilterwarnings = error\nasyncio_default_fixture_loop_scope = function\n"
        )
        out = run(["-m", "pytest", "-q", "test_page.py"], server, f"sk_test_{path.stem}", tmp_path)
        assert f"{len(TESTS.findall(blocks))} passed" in out
    else:
        texts = [f"{old}=>{new}" for old, new in replaced.items()]
        out = run([SUPPORT / "documents.py", path, *texts], server, f"sk_test_{path.stem}", tmp_path)
        assert "Traceback" not in out, out


def test_the_first_block_of_the_readme_sends_its_event(server, tmp_path):
    first = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))[0]
    (tmp_path / "first.py").write_text(first.replace("sk_live_your_secret_key", "sk_test_first"))
    run(["first.py"], server, "sk_test_other", tmp_path)
    (event,) = server.wait("feature_used", key="sk_test_first")
    assert event.customer_email == "jane@example.com"


def test_few_blocks_are_not_run_and_each_says_why():
    reasons = [
        (path.name, reason.strip())
        for path in PAGES
        for reason in SKIPPED.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(reasons) <= 5, reasons
    assert all(re.fullmatch(r'"[^"]{10,}"', reason) for _, reason in reasons), reasons


def test_no_page_hides_a_block_from_this():
    hidden = re.compile(r"^ *```(?:py|pycon|python3|Python)\n|^ +```python\n|skip: start", re.MULTILINE)
    assert [path.name for path in PAGES if hidden.search(path.read_text(encoding="utf-8"))] == []
