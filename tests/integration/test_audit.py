"""`make audit`, with the real pip-audit: what a database knows of the oldest and newest versions."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
H11 = ("h11", ["0.14.0"], "CVE-2025-43859", "0.16.0")

pytestmark = [
    pytest.mark.skipif(sys.version_info < (3, 10), reason="pip-audit needs Python 3.10"),
    pytest.mark.timeout(300),
]


@pytest.fixture
def database():
    """An advisory database, in the form of OSV's. Fill `advisories`: package, versions, id, fix."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append((asked["package"]["name"], asked["version"]))
            found = [
                {
                    "id": name,
                    "affected": [
                        {
                            "package": {"name": package, "ecosystem": "PyPI"},
                            "ranges": [
                                {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": fix}]}
                            ],
                        }
                    ],
                }
                for package, versions, name, fix in server.advisories
                if package == asked["package"]["name"] and asked["version"] in versions
            ]
            body = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.advisories, server.asked = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def audit(port, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "tests/audit.py", "--vulnerability-service=osv"),
            *(f"--osv-url=http://127.0.0.1:{port}/query", f"--cache-dir={tmp_path}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    return done.returncode, done.stdout + done.stderr


def test_an_advisory_with_a_fix_that_this_python_can_have_is_an_error(database, tmp_path):
    database.advisories = [
        H11,
        ("redis", ["5.0.1"], "CVE-of-redis", "5.0.2"),
        ("flask", ["3.0.3"], "CVE-of-flask", "3.1.3"),  # which does not install on Python 3.8
    ]
    status, output = audit(database.server_port, tmp_path)
    assert status == 1, output
    assert output.count("redis 5.0.1: CVE-of-redis: raise the bound to 5.0.2") == 2, output
    assert output.count("flask 3.0.3: CVE-of-flask: no fix for Python 3.8") == 2, output
    assert "audited: bounds to raise: 2" in output
    # The bound on h11 holds at both ends, on each Python.
    assert {version for name, version in database.asked if name == "h11"} == {"0.14.0", "0.16.0"}


def test_where_no_database_is_reached_it_reports_it(database, tmp_path):
    database.shutdown()
    database.server_close()
    status, output = audit(database.server_port, tmp_path)
    assert status == 0
    assert output.startswith("NOT AUDITED: ")


def test_a_database_without_the_known_advisory_is_not_believed(database, tmp_path):
    status, output = audit(database.server_port, tmp_path)
    assert status == 0
    assert output.startswith("NOT AUDITED: the database has no CVE-2025-43859")
