"""The applications in `examples/`: each runs as a real program, and its events arrive.

The lines that an application needs for windback are marked `# windback`; they are counted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import List

import pytest
from lambda_runtime import Answer, LambdaRuntime
from servers import environment

from windback.devserver import DevServer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

#: How many lines each file has that an application without windback would not have, beside calls that track.
LINES = {
    "celery/app.py": 2,
    "lambda/app.py": 3,
    "rq/tasks.py": 2,
    "sqlalchemy/app.py": 1,
}


@pytest.fixture(scope="module")
def _process():
    with DevServer() as server:
        yield server


@pytest.fixture
def server(_process):
    _process.reset()
    return _process


#: Runs a program whose exit may take long, for the machine may do much else.
UNHURRIED = """\
import runpy, windback
windback.set_client(windback.Windback(shutdown_timeout=60))
runpy.run_path({!r}, run_name="__main__")
"""


def run(folder: str, arguments: List[str], url: str, **more: str) -> str:
    """Run a program in the folder of an example; what it said."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=EXAMPLES / folder,
        env=environment(url, PYTHONDONTWRITEBYTECODE="1", **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def numbers(server, event):
    return sorted(stored.properties["number"] for stored in server.events(event))


@pytest.mark.parametrize("path", LINES)
def test_an_application_needs_so_many_lines(path):
    text = (EXAMPLES / path).read_text(encoding="utf-8")
    marked = [line for line in text.splitlines() if line.endswith("  # windback")]
    assert len(marked) == LINES[path]
    unmarked = [line for line in text.splitlines() if line not in marked and "import" in line]
    assert not any("windback" in line for line in unmarked), "a line that counts is not marked"


@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform == "win32", reason="RQ forks")
def test_rq(server, redis_server):
    said = run("rq", ["enqueue.py"], server.url, REDIS_URL=redis_server.url)
    assert said == "20 jobs wait\n"
    code = "import sys, windback.http.transport; from rq.cli import main; sys.argv[0] = 'rq'; main()"
    run("rq", ["-c", code, "worker", "--burst", "--url", redis_server.url], server.url)
    assert numbers(server, "invoice_sent") == list(range(20))


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is frozen there")
def test_lambda(tmp_path, server):
    with LambdaRuntime(tmp_path, "app.handler", server.url, cwd=str(EXAMPLES / "lambda")) as function:
        for number in range(4):
            assert function.invoke({"number": number}) == Answer("response", f"report {number}")
    assert numbers(server, "report_made") == list(range(4)), function.output()


def test_sqlalchemy(server):
    assert run("sqlalchemy", ["-c", UNHURRIED.format("app.py")], server.url) == "3 orders\n"
    assert numbers(server, "ordered") == [0, 1, 3]


@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform == "win32", reason="Celery forks")
def test_celery(server, redis_server):
    said = run("celery", ["enqueue.py"], server.url, BROKER_URL=redis_server.url)
    assert said == "20 tasks wait\n"
    # Once all tasks have run, the worker gets the signal that a deployment sends.
    code = """if True:
        import os, signal, sys, threading, time, redis, windback.http.transport
        from celery.__main__ import main

        def end():
            queue = redis.Redis.from_url(os.environ["BROKER_URL"])
            while queue.llen("celery") or queue.hlen("unacked"):
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=end, daemon=True).start()
        sys.argv = ["celery", "-A", "app", "worker", "--concurrency=2", "--loglevel=warning"]
        sys.exit(main())
    """
    said = run("celery", ["-c", code], server.url, BROKER_URL=redis_server.url, C_FORCE_ROOT="1")
    assert numbers(server, "invoice_sent") == list(range(20)), said
