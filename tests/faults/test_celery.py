"""Celery in each of its pools: every event arrives once, of the customer that its task has bound."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from servers import environment

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Celery's pools need a fork"),
    pytest.mark.timeout(300),
]

APP = """\
import os
from celery import Celery
import windback.http.transport  # so that not each child loads it, which takes most of its time
from windback import Windback, context

client = Windback(flush_interval=3600, shutdown_timeout=60)
folder = os.path.join(os.getcwd(), "broker")
os.makedirs(folder, exist_ok=True)
app = Celery("app", broker="filesystem://")
app.conf.update(
    broker_transport_options={"data_folder_in": folder, "data_folder_out": folder, "polling_interval": 0.02},
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    worker_max_tasks_per_child=MOST,
)

def address(n):
    return "user%d@example.com" % n

@app.task
def track(n):
    try:
        assert not client.track("login", {"n": -1}), "the customer of another task"
        with context.bound(customer_email=address(n), plan="pro"):
            pause()
            helper(n)
            with context.bound(seat=n):
                pause()
            if n % 5 == 4:
                raise KeyError(n)
    finally:
        open(os.path.join(os.getcwd(), "done-%d" % n), "w").close()

def pause():
    import time
    time.sleep(0.01)  # others have their turn

def helper(n):
    client.track("login", {"n": n, "pid": os.getpid()})
"""

SEND = """\
import app
from windback import context

with context.bound(customer_email="sender@example.com", plan="secret-plan"):
    app.client.track("sent")
    for n in range(20):
        app.track.apply_async((n,), headers={"mine": n})
app.client.flush(60)
"""

POOLS = {
    "prefork": ("--pool=prefork",),
    "prefork, one task for each process": ("--pool=prefork", "--max-tasks-per-child=1"),
    "threads": ("--pool=threads",),
    "gevent": ("--pool=gevent",),
    "solo": ("--pool=solo",),
}


def python(folder, url, *arguments):
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=folder,
        env=environment(url, C_FORCE_ROOT="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout


@contextmanager
def worker(folder, url, *options):
    """Run one, end it as a deployment does, and yield what tells how it goes."""
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=warning")
    command = ["-m", "celery", "-A", "app", "worker", "--concurrency=4", *quiet, *options]
    with (folder / "output").open("w+b") as output:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            cwd=folder,
            env=environment(url, C_FORCE_ROOT="1"),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield lambda: (folder / "output").read_text(errors="replace")
            process.send_signal(signal.SIGTERM)
            process.wait(90)
        finally:
            process.kill()
            process.wait()


def wait_until_done(folder, count, output):
    deadline_s = time.monotonic() + 150
    while len(list(folder.glob("done-*"))) < count:
        assert time.monotonic() < deadline_s, output()
        time.sleep(0.05)


@pytest.mark.parametrize("options", POOLS.values(), ids=POOLS)
def test_twenty_of_twenty_each_of_its_own_customer(tmp_path, server, options):
    (tmp_path / "app.py").write_text(APP.replace("MOST", "None"), encoding="utf-8")
    python(tmp_path, server.url, "-c", SEND)
    with worker(tmp_path, server.url, *options) as output:
        wait_until_done(tmp_path, 20, output)
    found = [(each.customer_email, each.properties) for each in server.events("login")]
    for _, properties in found:
        pid = properties.pop("pid")
        assert pid > 0
    expected = [(f"user{n}@example.com", {"n": n, "plan": "pro"}) for n in range(20)]
    assert sorted(found, key=lambda each: each[1]["n"]) == expected, output()


def test_nothing_of_the_sender_is_in_the_broker(tmp_path, server):
    """An address is personal data, and a broker keeps what it gets in places of its own."""
    (tmp_path / "app.py").write_text(APP.replace("MOST", "1"), encoding="utf-8")
    python(tmp_path, server.url, "-c", SEND)
    assert [each.customer_email for each in server.events("sent")] == ["sender@example.com"]
    messages = [path.read_bytes() for path in (tmp_path / "broker").glob("*.msg")]
    assert len(messages) == 20
    for message in messages:
        parts = json.loads(message)
        everything = message + base64.b64decode(parts["body"])
        assert b"mine" in everything  # what an application gives is there
        for ours in (b"example.com", b"secret-plan", b"windback"):
            assert ours not in everything.replace(str(tmp_path).encode(), b"")
