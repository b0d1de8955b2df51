"""`windback send` and `windback doctor` against real servers, some of which are not as they should be."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Callable, Iterator

import pytest
from commands import Ended, set_environment

from windback.cli import main

KEY = "sk_test_0123456789"
JANE = "jane@example.com"
# Made for these tests, for the name localhost alone; the second certificate ended in 2021.
PRIVATE_KEY = """\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEILuEwZ0Xbe0XYwiDASRmdJtxACxuXnZbtazHkLKr1ayloAoGCCqGSM49
AwEHoUQDQgAEwbtiWO89Tq2eiYbFm2ML635aZBMb1WhmHHTDwPTV0uAWyeJngEwh
bAnUajm0YgtJlWARdMl4UjBKs/V21TA0rw==
-----END EC PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBiTCCAS+gAwIBAgIBATAKBggqhkjOPQQDAjAoMRIwEAYDVQQKDAlUZXN0IG9u
bHkxEjAQBgNVBAMMCWxvY2FsaG9zdDAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEw
MTAwMDAwMFowKDESMBAGA1UECgwJVGVzdCBvbmx5MRIwEAYDVQQDDAlsb2NhbGhv
c3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATBu2JY7z1OrZ6JhsWbYwvrflpk
ExvVaGYcdMPA9NXS4BbJ4meATCFsCdRqObRiC0mVYBF0yXhSMEqz9XbVMDSvo0gw
RjAPBgNVHRMBAf8EBTADAQH/MBQGA1UdEQQNMAuCCWxvY2FsaG9zdDAdBgNVHQ4E
FgQUfg5jHDgSBnrmzNp6zMMr3AQAiNcwCgYIKoZIzj0EAwIDSAAwRQIgZPFZyuiP
KfBy/pp2bvIsT3cA1OHCCSwBRqi91T/3qW0CIQDeOuvq7PjLYhndVs0KXPv1Sv32
jGwdeQzyg2fub43x3w==
-----END CERTIFICATE-----
"""
EXPIRED = """\
-----BEGIN CERTIFICATE-----
MIIBhzCCAS2gAwIBAgIBAjAKBggqhkjOPQQDAjAoMRIwEAYDVQQKDAlUZXN0IG9u
bHkxEjAQBgNVBAMMCWxvY2FsaG9zdDAeFw0yMDAxMDEwMDAwMDBaFw0yMTAxMDEw
MDAwMDBaMCgxEjAQBgNVBAoMCVRlc3Qgb25seTESMBAGA1UEAwwJbG9jYWxob3N0
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEwbtiWO89Tq2eiYbFm2ML635aZBMb
1WhmHHTDwPTV0uAWyeJngEwhbAnUajm0YgtJlWARdMl4UjBKs/V21TA0r6NIMEYw
DwYDVR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwHQYDVR0OBBYE
FH4OYxw4EgZ65szaeszDK9wEAIjXMAoGCCqGSM49BAMCA0gAMEUCIQCGC3Gq2/7X
YZXaLPXUz5EnLT6pbaFetZwM871iXClcRwIgSQqSKIc6czvmuaAcfR2XHt4OgAps
SPXKMqwPYHuCs3w=
-----END CERTIFICATE-----
"""


class Checked(Ended):
    """What `windback doctor --json` found."""

    @property
    def states(self):
        return {each["name"]: each["state"] for each in self.json["checks"]}

    @property
    def texts(self):
        return {each["name"]: each["text"] for each in self.json["checks"]}


@pytest.fixture
def run(server, capsys, monkeypatch) -> Callable[..., Checked]:
    set_environment(monkeypatch, API_KEY=KEY, BASE_URL=server.url)

    def run(*arguments: str) -> Checked:
        capsys.readouterr()
        status = main(arguments)
        ended = Checked(status, *capsys.readouterr())
        assert KEY not in ended.out + ended.err
        return ended

    return run


# send


def test_send_sends_one_event_and_shows_it(run, server):
    done = run(
        "send", "login", "--email", JANE, "-p", "plan=pro", "-p", "n=3", "-p", 'zip="3"', "-p", "a=b=c"
    )
    assert (done.status, done.err) == (0, "")
    (event,) = server.events()
    assert (event.event, event.customer_email) == ("login", JANE)
    assert event.properties == {"plan": "pro", "n": 3, "zip": "3", "a": "b=c"}
    assert json.loads(done.out[len("sent: ") :])["timestamp"] == event.timestamp


def test_send_takes_a_time_and_answers_in_json(run, server):
    done = run("send", "login", "--email", JANE, "--timestamp", "2025-12-01T10:00:00+01:00", "--json")
    assert (done.status, done.json["sent"], done.json["trouble"]) == (0, 1, None)
    (event,) = server.events()
    assert event.timestamp == done.json["event"]["timestamp"] == "2025-12-01T10:00:00+01:00"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["login"], "--email"),
        (["login", "--email", "jane"], "customer_email: has no '@'"),
        (["login", "--email", JANE, "--timestamp", "noon"], "timestamp: 'noon' is not an ISO 8601 time"),
        (["login", "--email", JANE, "-p", "plan"], "'plan' is not key=value"),
        (["login", "--email", JANE, "-p", "a=1", "-p", "a=2"], "'a' is given twice"),
        (["", "--email", JANE], "event: is empty"),
        (["login", "--email", JANE, "--base-url", "http://example.com"], "must use https"),
    ],
)
def test_send_refuses_what_can_not_be_sent(run, server, arguments, says):
    done = run("send", *arguments)
    assert (done.status, done.out) == (2, "")
    assert says in done.err
    assert server.counts().requests == 0


def test_send_reports_what_the_api_has_against_it(run, server):
    done = run("send", "login", "--email", "jane@")
    assert done == (1, "", "windback send: 400: customer_email: must look like name@host\n")
    server.faults([{"path": "/track", "status": 402}])
    done = run("send", "login", "--email", JANE, "--json")
    assert (done.status, done.json["sent"]) == (1, 0)
    assert done.json["trouble"].startswith("402: ")


# doctor


def test_doctor_finds_nothing_wrong_and_reports_how_long_it_took(run, server):
    done = run("doctor")
    assert (done.status, done.err) == (0, "")
    head, *rows, last = done.out.splitlines()
    assert head.split() == ["state", "check", "took", "found"]
    assert [re.split(r" {2,}", row)[:2] for row in rows] == [
        ["ok", name] for name in ("key", "URL", "proxy", "connection", "clock", "test event")
    ]
    assert re.search(r"test event +\d+ ms  windback_doctor was accepted", done.out)
    assert last == "nothing is wrong"
    (event,) = server.events()
    assert (event.event, event.customer_email) == ("windback_doctor", "doctor@example.com")


def test_doctor_sends_no_event_if_asked_not_to(run, server):
    done = run("doctor", "--no-event", "--json")
    assert (done.status, done.json["ok"]) == (0, True)
    assert (done.states["clock"], done.states["test event"]) == ("ok", "skipped")
    assert server.counts().events == 0


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "there is none: set WINDBACK_API_KEY to the secret key (sk_…)"),
        ("pub_live_1", "WINDBACK_API_KEY is a public key (pub_…), which is only for the cancel flow"),
        ('"sk_live_1"', "must start with sk_"),
        ("sk_live 1", "contains a space"),
    ],
)
def test_doctor_names_what_is_wrong_with_the_key(run, server, monkeypatch, key, says):
    monkeypatch.setenv("WINDBACK_API_KEY", key)
    done = run("doctor", "--json")
    assert done.status == 1
    assert says in done.texts["key"]
    assert {name for name, state in done.states.items() if state == "problem"} == {"key"}
    assert done.states["test event"] == "skipped"
    assert server.counts().events == 0


@pytest.mark.parametrize(
    ("url", "check", "says"),
    [
        ("ftp://example.com", "URL", "must look like"),
        ("http://example.com/api/v1", "URL", "must use https"),
        ("https://windback.invalid/api/v1", "DNS", "windback.invalid was not found ("),
    ],
)
def test_doctor_names_what_is_wrong_with_the_address(run, url, check, says):
    done = run("doctor", "--json", "--base-url", url)
    assert done.status == 1
    assert says in done.texts[check]
    assert list(done.states)[-1] == check  # nothing after it can be known


def test_doctor_names_variables_that_are_misspelt(run, monkeypatch):
    monkeypatch.setenv("WINDBACK_PROJEKT_SLUG", "shop")
    monkeypatch.setenv("WINDBACK_FLUSH_INTERVAL", "2")
    monkeypatch.setenv("WINDBACK_HOME", "/srv")  # of something else
    found = run("doctor", "--no-event", "--json").json["checks"]
    assert [each["text"] for each in found if each["name"] == "variable"] == [
        "nothing reads WINDBACK_FLUSH_INTERVAL; write flush_interval as an argument of Windback",
        "nothing reads WINDBACK_PROJEKT_SLUG; did you mean 'WINDBACK_PROJECT_SLUG'?",
    ]


def test_doctor_sees_that_nobody_listens(run):
    with contextlib.closing(socket.socket()) as taken:  # the port is ours, and nobody listens there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        done = run("doctor", "--json", "--base-url", f"http://127.0.0.1:{port}/api/v1")
    assert done.status == 1
    assert f"nothing listens on port {port} of this machine" in done.texts["connection"]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "the API does not know this key"),
        (402, "the Windback subscription has expired"),
        (403, "is it of the right kind and project?"),
        (404, "does the URL end with the path of the API"),
        (429, "too many requests; wait"),
        (503, "the server, or a gateway in front of it, fails"),
    ],
)
def test_doctor_reports_what_an_answer_means(run, server, status, says):
    server.faults([{"path": "/track", "status": status}])
    done = run("doctor", "--json")
    assert done.status == 1
    assert done.texts["test event"].startswith(f"{status}: ")
    assert says in done.texts["test event"]


def test_doctor_waits_no_longer_than_asked(run, server):
    server.faults([{"path": "/track", "hang": True}])
    started_s = time.monotonic()
    done = run("doctor", "--json", "--timeout", "0.3")
    assert time.monotonic() - started_s < 5
    assert (done.status, done.texts["answer"][:27]) == (1, "no answer: no answer in tim")


class Other:
    """A server of another kind: TLS, or none, and an answer that was written before."""

    def __init__(self, folder: Path, certificate: str, date: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._context = None
        if certificate:
            (folder / "both.pem").write_text(PRIVATE_KEY + certificate)
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(folder / "both.pem")
        self._answer = f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                connection.settimeout(10)
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                with connection, connection.makefile("rb") as stream:
                    length = 0
                    for line in iter(stream.readline, b"\r\n"):
                        name, _, value = line.lower().partition(b":")
                        if not line:
                            raise ConnectionResetError  # only looked whether somebody is here
                        length = int(value) if name == b"content-length" else length
                    stream.read(length)
                    connection.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def make_other(tmp_path) -> Iterator[Callable[..., Other]]:
    made = []

    def make(certificate: str = "", date: str = "") -> Other:
        made.append(Other(tmp_path, certificate, date or formatdate(usegmt=True)))
        return made[-1]

    yield make
    for other in made:
        other.close()


@pytest.mark.parametrize(("ahead_s", "way"), [(3600, "ahead of"), (-90, "behind")])
def test_doctor_sees_a_clock_that_is_wrong(run, make_other, ahead_s, way):
    other = make_other(date=formatdate(time.time() - ahead_s, usegmt=True))
    done = run("doctor", "--json", "--base-url", f"http://127.0.0.1:{other.port}")
    assert done.status == 1
    assert re.match(rf"[\d,]+ s {way} the server's: events get wrong times", done.texts["clock"])


def test_doctor_speaks_tls(run, make_other, tmp_path, monkeypatch):
    other = make_other(CERTIFICATE)
    (tmp_path / "ca.pem").write_text(CERTIFICATE)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    done = run("doctor", "--json", "--base-url", f"https://localhost:{other.port}")
    assert done.status == 0, done.out
    assert re.fullmatch(r"TLSv1\.\d, certificate of Test only until 2120-01-01", done.texts["TLS"])


@pytest.mark.parametrize(
    ("certificate", "host", "is_known", "says"),
    [
        (CERTIFICATE, "localhost", False, "is not trusted"),
        (CERTIFICATE, "127.0.0.1", True, "is not for 127.0.0.1"),
        (EXPIRED, "localhost", True, "has expired, or the clock of this machine is wrong"),
        ("", "localhost", True, "and this machine have no TLS version in common"),
    ],
)
def test_doctor_names_what_is_wrong_with_tls(
    run, make_other, tmp_path, monkeypatch, certificate, host, is_known, says
):
    if is_known:
        (tmp_path / "ca.pem").write_text(certificate or CERTIFICATE)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    other = make_other(certificate)
    done = run("doctor", "--json", "--base-url", f"https://{host}:{other.port}")
    assert done.status == 1
    assert says in done.texts["TLS"]
    assert list(done.states)[-1] == "TLS"
