"""A Django project under real servers and commands: what it tracks arrives, also at SIGTERM."""

from __future__ import annotations

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from calls import eventually
from django_project import FILES, VIEWS, run, write
from servers import GUNICORN, UVICORN, AppServer

RUNSERVER = [sys.executable, "manage.py", "runserver", "127.0.0.1:{port}"]
SERVERS = {
    "gunicorn": [*GUNICORN, "-w", "2", "wsgi"],
    "gunicorn, preloaded": [*GUNICORN, "-w", "2", "--preload", "wsgi"],
    "gunicorn with threads": [*GUNICORN, "--threads", "4", "wsgi"],
    "gunicorn with gevent": [*GUNICORN, "-k", "gevent", "wsgi"],
    "uvicorn": [*UVICORN, "asgi:application"],
    "uvicorn, 2 workers": [*UVICORN, "--workers", "2", "asgi:application"],
    "gunicorn's uvicorn worker": [*GUNICORN, "-k", "uvicorn_worker.UvicornWorker", "asgi:application"],
    "runserver": [*RUNSERVER, "--noreload"],
}


def numbers(server):
    return sorted(stored.properties["n"] for stored in server.events("login"))


@pytest.mark.parametrize("command", SERVERS.values(), ids=SERVERS)
def test_fifty_of_fifty_arrive_after_sigterm_and_none_that_was_rolled_back(tmp_path, server, command):
    views = [each for each in VIEWS if each != "async" or "gevent" not in command]  # which has no asyncio
    with AppServer(tmp_path, FILES, command, server.url) as app:
        assert app.get_all([f"/{views[n % len(views)]}/{n}" for n in range(50)]) == [200] * 50
        said = app.end()
    assert numbers(server) == list(range(50)), said
    assert server.events("rolled back") == []
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["gunicorn with threads", "uvicorn"])
def test_requests_at_the_same_time_never_see_anothers_customer(tmp_path, server, name):
    with AppServer(tmp_path, FILES, SERVERS[name], server.url) as app, ThreadPoolExecutor(8) as pool:
        answers = [
            pool.submit(app.get, f"/{VIEWS[n % 4]}/{n}", X_User=f"customer{n}@example.com")
            for n in range(200)
        ]
        assert [each.result() for each in answers] == [200] * 200
        app.end()
    found = {stored.properties["n"]: stored.customer_email for stored in server.events("login")}
    own = {n: f"customer{n}@example.com" for n in range(200)}
    fixed = dict.fromkeys(range(3, 200, 4), "jane@example.com")  # this view names its customer itself
    assert found == {**own, **fixed}


@pytest.mark.timeout(600)
def test_runserver_starts_and_delivers_ten_of_ten_times(tmp_path, server):
    """With and without its reloader: which of its threads loads the application first is chance."""
    for n in range(10):
        command = RUNSERVER if n % 2 else [*RUNSERVER, "--noreload"]
        with AppServer(tmp_path, FILES, command, server.url) as app:
            assert app.get(f"/commit/{n}") == 200
            if n % 2:  # at Ctrl-C the reloader leaves the application a quarter of a second
                eventually(lambda count=n + 1: len(numbers(server)) == count, 50)
                app.signal_group(signal.SIGINT)
                said = app.wait()
            else:
                said = app.end()
            assert "Traceback" not in said
    assert numbers(server) == list(range(10))


@pytest.mark.timeout(200)
def test_each_reload_of_runserver_delivers(tmp_path, server):
    settings = FILES["settings.py"].replace('"shutdown_timeout": 40', '"flush_interval": 3600')
    files = {**FILES, "settings.py": settings}
    with AppServer(tmp_path, files, RUNSERVER, server.url) as app:
        assert app.get_all([f"/sync/{n}" for n in range(20)]) == [200] * 20
        assert numbers(server) == []

        def reloads() -> bool:
            (tmp_path / "urls.py").touch()  # again: the reloader may take its first look only after a touch
            time.sleep(2)
            return numbers(server) == list(range(20))

        eventually(reloads, 100)


@pytest.mark.parametrize("name", ["import_rows", "plain"])
def test_what_a_command_tracks_arrives(tmp_path, server, name):
    write(tmp_path)
    ended = run(tmp_path, server.url, "manage.py", name)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert numbers(server) == list(range(50))


def test_a_command_with_a_scope_ends_with_status_1_if_its_events_are_left(tmp_path, server):
    write(tmp_path)
    server.faults([{"status": 503}])
    ended = run(tmp_path, server.url, "manage.py", "import_rows")
    server.faults([])
    assert ended.returncode == 1
    assert "50 events were not delivered" in ended.stderr


def test_starting_makes_no_client_no_thread_and_loads_no_http(tmp_path, server):
    write(tmp_path)
    code = """\
import django, os, sys, threading
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import windback.client
made = []
windback.client.Windback.__init__ = lambda *_, **__: made.append(1)
django.setup()
print(made, threading.active_count(), "httpx" in sys.modules, "django.test.utils" in sys.modules)
"""
    ended = run(tmp_path, server.url, "-c", code)
    assert ended.stdout.split() == ["[]", "1", "False", "False"], ended.stderr


def test_without_a_key_the_checks_say_so_and_requests_are_answered(tmp_path, server):
    write(tmp_path)
    ended = run(tmp_path, server.url, "manage.py", "check", WINDBACK_API_KEY="")
    assert ended.returncode == 1
    assert "windback.E001" in ended.stderr
    with AppServer(tmp_path, FILES, [*GUNICORN, "wsgi"], server.url, WINDBACK_API_KEY="") as app:
        assert app.get_all([f"/{VIEWS[n % 4]}/{n}" for n in range(8)]) == [200] * 8
        said = app.end()
    assert said.count("no client could be made") == 1


def test_without_django_the_error_names_the_extra(tmp_path, server):
    (tmp_path / "django.py").write_text("raise ImportError('none')")
    code = """\
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "django" else found(name, *rest)
import windback.django
"""
    ended = run(tmp_path, server.url, "-c", code)
    assert 'pip install "windback[django]"' in ended.stderr


# -- tests of a project send nothing ---------------------------------------------------------------

TESTS = """\
import unittest
import windback
from django.db import transaction
from django.test import Client, TestCase, TransactionTestCase
from windback.django import client, track_event
from windback.django.test import TrackedEventsMixin

own = windback.Windback()

class A(TrackedEventsMixin, TestCase):
    def test_views(self):
        for n, kind in enumerate(["sync", "commit", "rollback"]):
            self.client.get(f"/{kind}/{n}")
        self.assert_tracked("login", customer_email="jane@example.com", count=3)
        self.assert_not_tracked("rolled back")

    def test_nothing_is_left_of_another_test(self):
        self.assert_not_tracked("login")

    def test_clients_that_are_used_directly_are_caught(self):
        own.track_event("login", "jane@example.com", {"n": 1})
        client.track_event("login", "jane@example.com", {"n": 2})
        self.assert_tracked("login", count=2)

    def test_callbacks_that_are_run_count_once(self):
        with self.captureOnCommitCallbacks(execute=True):
            track_event("login", "jane@example.com")
        self.assert_tracked("login", count=1)

    def test_a_savepoint_that_is_rolled_back(self):
        try:
            with transaction.atomic():
                track_event("login", "jane@example.com")
                raise KeyError
        except KeyError:
            pass
        self.assert_not_tracked("login")

    def test_a_failed_assertion_shows_what_there_is(self):
        track_event("logout", "jane@example.com")
        with self.assertRaisesRegex(AssertionError, "logout"):
            self.assert_tracked("login")

class B(TrackedEventsMixin, TransactionTestCase):
    def test_commit(self):
        self.client.get("/commit/1")
        self.assert_tracked("login", count=1)

class C(TestCase):
    def test_without_the_mixin(self):
        self.client.get("/sync/1")
        own.track_event("login", "jane@example.com")
"""
PYTEST = """\
import pytest
from windback.django import track_event
from windback.django.test import tracked_events

@pytest.mark.django_db
def test_fixture(client, windback_events, django_capture_on_commit_callbacks):
    client.get("/sync/1")  # in a transaction, that of the test
    tracked_events(windback_events).assert_tracked("login", count=1)
    assert windback_events == []
    with django_capture_on_commit_callbacks(execute=True):
        client.get("/commit/2")
    windback_events.assert_tracked("login", properties={"n": 2}, count=1)

def test_without_a_database_or_a_fixture():
    assert track_event("login", "jane@example.com", on_commit=False)
"""


@pytest.mark.parametrize("options", [[], ["--parallel", "2"]], ids=["alone", "parallel"])
def test_manage_py_test_sends_nothing_and_the_mixin_asserts(tmp_path, server, options):
    write(tmp_path, tests=TESTS)
    ended = run(tmp_path, server.url, "manage.py", "test", *options)
    assert "Ran 8 tests" in ended.stderr, ended.stderr
    assert ended.returncode == 0, ended.stderr
    assert server.events() == []


def test_a_script_that_runs_the_tests_sends_nothing(tmp_path, server):
    script = """\
import os, sys
import django
from django.conf import settings
from django.test.utils import get_runner
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()
sys.exit(bool(get_runner(settings)().run_tests(["tests"])))
"""
    write(tmp_path, tests=TESTS, runtests=script)
    ended = run(tmp_path, server.url, "runtests.py")
    assert "Ran 8 tests" in ended.stderr, ended.stderr
    assert ended.returncode == 0, ended.stderr
    assert server.events() == []


def test_pytest_sends_nothing_and_has_fixtures(tmp_path, server):
    write(tmp_path, tests=TESTS, test_more=PYTEST)
    ended = run(
        tmp_path,
        server.url,
        *(
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:schemathesis",
            "-p",
            "no:cacheprovider",
            "tests.py",
            "test_more.py",
        ),
        DJANGO_SETTINGS_MODULE="settings",
    )
    assert ended.returncode == 0, ended.stdout
    assert "10 passed" in ended.stdout
    assert server.events() == []


def test_an_application_that_keeps_its_mail_in_memory_is_not_a_test(tmp_path, server):
    settings = FILES["settings.py"] + 'EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"\n'
    write(tmp_path, settings=settings)
    code = """\
import django, os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
django.setup()
from django.core.mail import send_mail
send_mail("Hello", "Hello", "a@example.com", ["b@example.com"])
from windback.django import track_event
track_event("login", "jane@example.com", {"n": 1})
"""
    ended = run(tmp_path, server.url, "-c", code)
    assert ended.returncode == 0, ended.stderr
    assert numbers(server) == [1]
