"""`examples/fleet` does what its page says: all of it is started as written, and what arrives is counted."""

from __future__ import annotations

import configparser
import importlib.util
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FLEET = Path(__file__).resolve().parents[2] / "examples" / "fleet"
SYSTEMD_ANALYZE = shutil.which("systemd-analyze")
UNITS = sorted((FLEET / "systemd").glob("*.service"))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it runs no redis-server")


@pytest.mark.timeout(180)
def test_what_goes_in_at_nginx_comes_out_at_the_api():
    done = subprocess.run(
        [sys.executable, str(FLEET / "run.py"), "--events", "3000"],
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 processes are ready: redis, app, nginx, relay1, relay2\n")
    assert "arrived: 3,000, lost: 0, doubled: 0" in done.stdout


def test_the_runner_reports_what_is_wrong_and_leaves_nothing_behind(tmp_path):
    """gunicorn, which is not there, ends at once."""
    for path in FLEET.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    procfile = tmp_path / "Procfile"
    procfile.write_text(procfile.read_text().replace("exec gunicorn", "exec gunicorn-that-is-not-there"))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py"), "--events", "10"],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 1
    assert "the fleet failed: nginx and gunicorn: " in done.stderr
    assert "ended: app" in done.stderr
    assert "gunicorn-that-is-not-there" in done.stderr


def test_each_variable_of_the_procfile_has_a_value():
    values = dict(line.split("=", 1) for line in (FLEET / ".env").read_text().splitlines())
    named = set(re.findall(r"\$([A-Z][A-Z0-9_]*)", (FLEET / "Procfile").read_text()))
    assert named - set(values) == set()
    assert "PORT" not in values  # which runners of Procfiles set by themselves
    assert not any(name.startswith("WINDBACK_API_KEY") for name in values)
    assert values["WINDBACK_BROKER"] == f"redis://127.0.0.1:{values['REDIS_PORT']}/0"


def test_each_file_that_the_page_names_is_there():
    page = (FLEET / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([^)#]+)", page)) | {"app.py", "gunicorn.conf.py"}
    assert [name for name in sorted(named) if not (FLEET / name).exists()] == []
    installed = set(re.findall(r"install -m 0644 ([\w@.-]+)", page))
    assert [name for name in installed if not list(FLEET.rglob(name))] == []


@pytest.mark.parametrize("path", UNITS, ids=[path.name for path in UNITS])
def test_a_unit_starts_as_somebody_else_and_has_no_key(path):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(path, encoding="utf-8")
    service = unit["Service"]
    assert service.get("User") == "app" or service.get("DynamicUser") == "yes"
    assert service["ExecStart"].startswith("/opt/")
    assert service["NoNewPrivileges"] == "yes"
    assert not re.search(r"sk_\w", path.read_text(encoding="utf-8"))


@pytest.mark.skipif(SYSTEMD_ANALYZE is None, reason="there is no systemd here")
@pytest.mark.parametrize("path", UNITS, ids=[path.name for path in UNITS])
def test_systemd_understands_a_unit(path, tmp_path):
    """All but the programs, which are not here, and the user."""
    text = re.sub(r"/opt/\S+/bin/\w+", "/bin/true", path.read_text(encoding="utf-8"))
    copy = tmp_path / path.name.replace("@", "@1")
    copy.write_text(text.replace("User=app", "User=root"), encoding="utf-8")
    done = subprocess.run(
        [SYSTEMD_ANALYZE, "verify", str(copy)], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_application_answers_for_what_it_could_not_take(tmp_path, monkeypatch):
    """Without a server: what becomes of requests that make no sense, and of a full queue."""
    for name in ("API_KEY", "PROJECT_SLUG", "BASE_URL"):
        monkeypatch.delenv(f"WINDBACK_{name}", raising=False)
    monkeypatch.setenv("WINDBACK_BROKER", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("WINDBACK_JOURNAL", str(tmp_path / "journal"))
    spec = importlib.util.spec_from_file_location("fleet_app", FLEET / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)

    def post(body, path="/events", method="POST"):
        said = []
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(body)}
        answer = b"".join(app.application(environ, lambda status, _: said.append(status)))
        return said[0], answer

    try:
        assert post(b"", "/healthz", "GET") == ("200 OK", b'{"status": "ok"}')
        assert post(b"", "/other")[0].startswith("404")
        assert post(b"{")[0].startswith("400")
        assert post(b"[7]")[0].startswith("400")
        assert post(b'[{"event": "", "customer_email": "jane@example.com"}]')[0].startswith("400")
        event = b'[{"event": "login", "customer_email": "jane@example.com"}]'
        assert post(event) == ("202 Accepted", b'{"accepted": 1}')
        monkeypatch.setattr(app.client, "_put", lambda _: False)
        assert post(event) == ("503 Service Unavailable", b'{"accepted": 0}')
    finally:
        app.client.close(0)
