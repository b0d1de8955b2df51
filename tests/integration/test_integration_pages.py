"""The pages of the integrations as a new user reads them: code in an empty folder, commands, and SIGTERM."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import List

import pytest
from calls import eventually
from ports import free_port
from servers import STARTS_WITHIN_S, environment

PAGES = Path(__file__).resolve().parents[2] / "docs" / "integrations"
BIN = Path(sys.executable).parent

pytestmark = [pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM"), pytest.mark.timeout(180)]


def section(page: str) -> str:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return re.split(r"^## (?:A whole .+|See it)\n", text, flags=re.MULTILINE)[1].partition("\n## ")[0]


def blocks(page: str, language: str) -> List[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(page), re.DOTALL)


def program(page: str, number: int = 0) -> List[str]:
    """Return what `windback dev` runs on a page, with the Python of these tests."""
    lines = "".join(blocks(page, "sh") + blocks(page, "console")).replace("$ ", "").splitlines()
    line = [each for each in lines if each.startswith("windback dev -- ")][number]
    name, *rest = shlex.split(line.partition("#")[0])[3:]
    return [sys.executable, *rest] if name == "python" else [str(BIN / name), *rest]


class Running:
    """A program in a folder, which finds the local server in its environment as under `windback dev`."""

    def __init__(self, folder: Path, command: List[str], url: str, **more: str) -> None:
        self._log = (folder / "log").open("w+b")
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(url, PYTHONUNBUFFERED="1", **more),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()


def get(port: int, path: str, running: Running) -> int:
    deadline_s = time.monotonic() + STARTS_WITHIN_S
    while True:
        with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection, suppress(OSError):
            connection.request("GET", path, headers={"X-User": "jane@example.com"})
            return connection.getresponse().status
        assert time.monotonic() < deadline_s, running.log()
        time.sleep(0.05)


def tracked(server):
    return [(each.event, each.customer_email, dict(each.properties)) for each in server.events()]


@pytest.mark.parametrize("page", ["fastapi", "flask"])
def test_the_application_of_the_page_delivers_at_sigterm(page, tmp_path, server):
    (tmp_path / "main.py").write_text(blocks(page, "python")[0], encoding="utf-8")
    port = free_port()
    with Running(tmp_path, [*program(page), "--port", str(port)], server.url) as running:
        assert [get(port, "/export", running) for _ in range(20)] == [200] * 20
        running.end()
        assert tracked(server) == [("export", "jane@example.com", {"rows": 3})] * 20, running.log()


def test_the_customer_of_the_fastapi_page_is_found_for_a_websocket_too(tmp_path, server):
    chat = """
from fastapi.testclient import TestClient
from fastapi.websockets import WebSocket

@app.websocket("/chat")
async def chat(socket: WebSocket, track: Track):
    await socket.accept()
    track("message", {"text": await socket.receive_text()})
    await socket.close()

with TestClient(app) as browser:
    with browser.websocket_connect("/chat", headers={"X-User": "jane@example.com"}) as socket:
        socket.send_text("hello")
"""
    (tmp_path / "main.py").write_text(blocks("fastapi", "python")[0] + chat, encoding="utf-8")
    subprocess.run([sys.executable, "main.py"], cwd=tmp_path, env=environment(server.url), check=True)
    assert tracked(server) == [("message", "jane@example.com", {"text": "hello"})]


def django_project(folder, server):
    """Make the project of the page."""
    subprocess.run(
        [sys.executable, "-m", "django", "startproject", "shop", "."],
        cwd=folder,
        env=environment(server.url),
        check=True,
    )
    for name, text in zip(("settings.py", "urls.py"), blocks("django", "python")):
        with (folder / "shop" / name).open("a", encoding="utf-8") as file:
            file.write(text)


def test_the_last_command_of_the_django_page_shows_what_survives(tmp_path, server):
    django_project(tmp_path, server)
    text = (PAGES / "django.md").read_text(encoding="utf-8")
    command, output = re.findall(
        r"^```console\n\$ (windback doctor --app .+)\n([^`]+)```", text, re.MULTILINE
    )[-1]
    ended = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=tmp_path,
        env=environment(server.url, PATH=f"{BIN}:{os.environ['PATH']}"),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )

    def found(lines: str) -> List[str]:
        return [" ".join(re.sub(r"[\d,]+ ms", "", line).split()) for line in lines.splitlines()]

    assert found(ended.stdout) == found(output)


def test_the_django_project_of_the_page_delivers_what_was_committed(tmp_path, server):
    django_project(tmp_path, server)
    port = free_port()
    with Running(tmp_path, [*program("django"), str(port), "--noreload"], server.url) as running:
        paths = ["/order/99", "/order/2000"] * 5
        assert [get(port, path, running) for path in paths] == [200] * 10, running.log()
        running.end()
        assert tracked(server) == [("order", "jane@example.com", {"total": 99})] * 5, running.log()


def on(redis_server, text: str) -> str:
    """Return the code of a page with the Redis of the test."""
    assert "6379" in text
    return text.replace("6379", str(redis_server.port))


def test_the_tasks_of_the_celery_page_arrive(tmp_path, server, redis_server):
    (tmp_path / "app.py").write_text(on(redis_server, blocks("celery", "python")[0]), encoding="utf-8")
    with Running(tmp_path, [*program("celery"), "--concurrency", "2"], server.url) as running:
        subprocess.run(
            [sys.executable, "app.py"],
            cwd=tmp_path,
            env=environment(server.url, WINDBACK_ENABLED="0"),
            check=True,
        )
        waiting = redis_server.client
        eventually(lambda: waiting.llen("celery") + waiting.hlen("unacked") == 0, within_s=60)
        running.end()
        assert [each[0] for each in tracked(server)] == ["invoice_sent"] * 20, running.log()


def test_the_jobs_of_the_rq_page_arrive(tmp_path, server, redis_server):
    tasks, enqueue = blocks("rq", "python")
    (tmp_path / "tasks.py").write_text(tasks, encoding="utf-8")
    (tmp_path / "enqueue.py").write_text(on(redis_server, enqueue), encoding="utf-8")
    subprocess.run([sys.executable, "enqueue.py"], cwd=tmp_path, env=environment(server.url), check=True)
    command = [*program("rq"), "--url", redis_server.url]
    subprocess.run(
        command, cwd=tmp_path, env={**environment(server.url), "PYTHONPATH": f"{tmp_path}"}, check=True
    )
    assert [each[0] for each in tracked(server)] == ["invoice_sent"] * 20


def test_the_handler_of_the_serverless_page_delivers_before_it_returns(tmp_path, server):
    text = (PAGES / "serverless.md").read_text(encoding="utf-8")
    (tmp_path / "app.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], encoding="utf-8")
    subprocess.run(program("serverless"), cwd=tmp_path, env=environment(server.url), check=True)
    assert [each[:2] for each in tracked(server)] == [("report_made", "jane@example.com")]
