"""RQ with a real Redis: a job's process ends without exit handlers, and each event arrives once."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from servers import environment
from tracking import numbers

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="RQ forks"),
    pytest.mark.timeout(180),
]

TASKS = """\
import os
from windback import Windback

client = Windback(flush_interval=3600, shutdown_timeout={shutdown_timeout}{options})

def track(n):
    client.track_event("login", "jane@example.com", {{"n": n, "pid": os.getpid()}})

def track_and_fail(n):
    track(n)
    raise KeyError(n)

def track_nothing(n):
    pass

def track_and_end(n):
    track(n)
    raise SystemExit(3)
"""

#: A worker of somebody's own, whose work-horse is theirs.
CLASSES = """\
import inspect, os
from rq import Worker

class Own(Worker):
    def main_work_horse(self, job, queue):
        try:
            takes = len(inspect.signature(self.perform_job).parameters)  # older ones: no execution
            self.perform_job(*(job, queue, getattr(self, "execution", None))[:takes])
        finally:
            os._exit(0)

class Quiet(Worker):
    def perform_job(self, job, queue, *execution):
        return super().perform_job(job, queue, *execution)
"""

RUN = """\
import sys
{loads}
from rq.cli import main
sys.argv[0] = "rq"
main()
"""


class Rq:
    """An application with RQ in a folder, and its workers."""

    def __init__(self, folder, redis_url, url, shutdown_timeout=30, options=""):
        self._folder = folder
        self._url = redis_url
        self._environment = environment(url)
        tasks = TASKS.format(shutdown_timeout=shutdown_timeout, options=options)
        (folder / "tasks.py").write_text(tasks, encoding="utf-8")
        (folder / "classes.py").write_text(CLASSES, encoding="utf-8")

    def python(self, code, *arguments, **options):
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
            **options,
        )

    def enqueue(self, task, count):
        code = (
            "import redis, rq, tasks\n"
            f"queue = rq.Queue(connection=redis.Redis.from_url({self._url!r}))\n"
            f"for n in range({count}): queue.enqueue(tasks.{task}, n)"
        )
        ended = self.python(code)
        assert ended.returncode == 0, ended.stdout

    def work(self, *options, command="worker", loads=""):
        """Do all jobs; returns what was said."""
        ended = self.python(RUN.format(loads=loads), command, "--burst", "--url", self._url, *options)
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    def count(self, registry):
        code = (
            "import redis, rq, rq.registry\n"
            f"queue = rq.Queue(connection=redis.Redis.from_url({self._url!r}))\n"
            f"print(len(rq.registry.{registry}(queue=queue)))"
        )
        return int(self.python(code).stdout)


@pytest.fixture
def rq(tmp_path, redis_server, server):
    return Rq(tmp_path, redis_server.url, server.url)


#: What each job would load, which takes most of its time.
LOADS = "import windback.http.transport"
MADE = {
    "in the job": LOADS,
    "in the worker": LOADS + ", tasks",
    "in both": LOADS + "; windback.get_client()",
    "in the job, which loads everything": "",
}


@pytest.mark.parametrize("loads", MADE.values(), ids=MADE)
def test_twenty_of_twenty_wherever_the_client_is_made(rq, server, loads):
    count = 20 if loads else 4
    rq.enqueue("track", count)
    said = rq.work(loads=loads)
    assert numbers(server) == list(range(count)), said
    # Each job was in a process of its own.
    assert len({stored.properties["pid"] for stored in server.events()}) == count
    assert rq.count("FinishedJobRegistry") == count


WORKERS = {
    "spawned": ("--worker-class", "rq.worker.SpawnWorker"),
    "in the worker itself": ("--worker-class", "rq.worker.SimpleWorker"),
    "one's own work-horse": ("--worker-class", "classes.Own"),
    "one's own class": ("--worker-class", "classes.Quiet"),
    "round robin": ("--worker-class", "rq.worker.RoundRobinWorker"),
    "with a scheduler": ("--with-scheduler",),
}


@pytest.mark.parametrize("options", WORKERS.values(), ids=WORKERS)
def test_all_arrive_with_each_kind_of_worker(rq, server, options):
    rq.enqueue("track", 4)
    said = rq.work(*options, loads=LOADS)
    assert numbers(server) == list(range(4)), said


def test_twenty_of_twenty_with_a_pool_of_workers(rq, server):
    rq.enqueue("track", 20)
    said = rq.work("--num-workers", "2", command="worker-pool", loads=LOADS)
    assert numbers(server) == list(range(20)), said


@pytest.mark.parametrize("task", ["track_and_fail", "track_and_end"])
def test_events_of_jobs_that_fail_arrive_and_the_jobs_are_failed(rq, server, task):
    rq.enqueue(task, 5)
    said = rq.work()
    assert numbers(server) == list(range(5)), said
    assert rq.count("FailedJobRegistry") == 5


def test_a_job_that_tracks_nothing_waits_for_nothing(tmp_path, redis_server, silent_url):
    rq = Rq(tmp_path, redis_server.url, silent_url, shutdown_timeout=60)
    rq.enqueue("track_nothing", 5)
    started_s = time.monotonic()
    rq.work()
    assert time.monotonic() - started_s < 60


def test_an_outage_fails_no_job_and_takes_no_longer_than_asked(tmp_path, redis_server, silent_url):
    rq = Rq(tmp_path, redis_server.url, silent_url, shutdown_timeout=0.2)
    rq.enqueue("track", 3)
    said = rq.work()
    assert rq.count("FinishedJobRegistry") == 3, said
    assert said.count("not delivered before the process ended") == 3


def test_os_exit_outside_of_rq_is_as_it_was(rq, server):
    """Only the modules that end a work-horse see another `os`."""
    code = (
        "import os, rq.worker, tasks, json\n"
        "tasks.track(1)\n"
        "module = rq.worker.Worker.main_work_horse.__globals__\n"
        "assert module['os'] is not os and module['os'].getpid() == os.getpid()\n"
        "assert module['os'].path is os.path and not hasattr(module['os'], 'nothing')\n"
        "os._exit(4)"
    )
    assert rq.python(code).returncode == 4
    assert numbers(server) == []


def test_with_a_sender_process_no_job_waits_for_an_outage(tmp_path, redis_server, server, eventually):
    server.faults([{"status": 503, "times": 8}])
    rq = Rq(tmp_path, redis_server.url, server.url, options=", worker='process'")
    rq.enqueue("track", 4)
    rq.work(loads=LOADS)
    eventually(lambda: numbers(server) == list(range(4)), 60)
