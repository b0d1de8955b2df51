"""dramatiq, arq, APScheduler, and scripts: what a job tracked arrives when its program ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from servers import SOURCE, environment
from tracking import numbers

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="these programs are ended by signals"),
    pytest.mark.timeout(240),
]

HEAD = """\
import asyncio, os, sys, time
from pathlib import Path
import windback.http.transport  # so that children do not load it
from windback import Windback, context

client = Windback(flush_interval=3600, shutdown_timeout=60)

def track_one(n):
    with context.bound(customer_email="user%d@example.com" % n):
        client.track("login", {"n": n})
    (Path(os.environ["DONE"]) / str(n)).touch()
"""


class Jobs:
    """Programs in a folder, and which of their jobs are done."""

    def __init__(self, folder, url, **more):
        self.folder = folder
        self.done = folder / "done"
        self.done.mkdir()
        self._environment = environment(url, DONE=str(self.done), **more)

    def write(self, name, code):
        (self.folder / name).write_text(HEAD + textwrap.dedent(code), encoding="utf-8")

    def run(self, *arguments):
        """Run a program to its end; what it said."""
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=150,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    def run_until_done(self, count, *arguments):
        """Run a program until *count* jobs are done, and end it as a deployment does; what it said."""
        path = self.folder / "output"
        with path.open("w+b") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                deadline_s = time.monotonic() + 120
                while len(list(self.done.iterdir())) < count:
                    assert process.poll() is None, path.read_text()
                    assert time.monotonic() < deadline_s, path.read_text()
                    time.sleep(0.05)
                process.send_signal(signal.SIGTERM)
                process.wait(90)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return path.read_text()


def check(server, said):
    assert numbers(server) == list(range(20)), said
    for stored in server.events():
        assert stored.customer_email == f"user{stored.properties['n']}@example.com"


@pytest.mark.parametrize("options", [("--processes=2", "--threads=2"), ("--processes=1", "--use-spawn")])
def test_dramatiq(tmp_path, server, redis_server, options):
    jobs = Jobs(tmp_path, server.url, REDIS_URL=redis_server.url)
    jobs.write(
        "tasks.py",
        """
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker

        dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))
        track = dramatiq.actor(track_one, actor_name="track")
        """,
    )
    jobs.run("-c", "import tasks\nfor n in range(20): tasks.track.send(n)")
    check(server, jobs.run_until_done(20, "-m", "dramatiq", "tasks", *options))


@pytest.fixture(scope="session")
def arq_folder():
    """Where arq is, with the redis-py that it asks for: an older one than other tests need."""
    folder = (
        Path(__file__).resolve().parents[2] / ".cache" / f"arq-{sys.version_info[0]}.{sys.version_info[1]}"
    )
    if not (folder / "arq").is_dir():
        uv = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
        pip = [sys.executable, "-m", "pip", "install"]
        new = folder.with_name(f"{folder.name}-{os.getpid()}")
        has_uv = subprocess.run([*uv, "--help"], stdout=subprocess.DEVNULL, check=False).returncode == 0
        command = [*(uv if has_uv else pip), "--quiet", "--target", str(new), "arq"]
        made = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if made.returncode:
            pytest.fail(f"arq could not be installed for its test: {made.stderr}")
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    return folder


ARQ = """
import arq
from arq.connections import RedisSettings
{client}

async def track(_, n):
{body}

class WorkerSettings:
    functions = [track]
    redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])
    poll_delay = 0.05
    handle_signals = True
"""
SYNC = ("", "    track_one(n)")
MAKE = "from windback import AsyncWindback; async_client = AsyncWindback(flush_interval=3600)"
ASYNC = (
    MAKE,
    """\
    async with context.bound(customer_email="user%d@example.com" % n):
        await async_client.track("login", {"n": n})
    (Path(os.environ["DONE"]) / str(n)).touch()""",
)


@pytest.mark.parametrize("code", [SYNC, ASYNC], ids=["a client", "an async client"])
def test_arq(tmp_path, server, redis_server, arq_folder, code):
    path = os.pathsep.join([str(arq_folder), str(SOURCE)])
    jobs = Jobs(tmp_path, server.url, REDIS_URL=redis_server.url, PYTHONPATH=path)
    jobs.write("tasks.py", ARQ.replace("{client}", code[0]).replace("{body}", code[1]))
    enqueue = """if True:
        import arq, asyncio, tasks

        async def main():
            queue = await arq.create_pool(tasks.WorkerSettings.redis_settings)
            for n in range(20):
                await queue.enqueue_job("track", n)
            await queue.aclose()

        asyncio.run(main())
    """
    jobs.run("-W", "ignore", "-c", enqueue)
    worker = "from arq.cli import cli; cli(['tasks.WorkerSettings'])"
    check(server, jobs.run_until_done(20, "-W", "ignore", "-c", worker))


SCHEDULERS = {
    "a background scheduler": """
        from apscheduler.schedulers.background import BackgroundScheduler

        scheduler = BackgroundScheduler()
        for n in range(20):
            scheduler.add_job(track_one, args=[n])
        scheduler.start()
        while len(list(Path(os.environ["DONE"]).iterdir())) < 20:
            time.sleep(0.05)
        scheduler.shutdown()
    """,
    "processes": """
        from apscheduler.executors.pool import ProcessPoolExecutor
        from apscheduler.schedulers.background import BackgroundScheduler

        if __name__ == "__main__":
            scheduler = BackgroundScheduler(executors={"default": ProcessPoolExecutor(2)})
            for n in range(20):
                scheduler.add_job(track_one, args=[n], misfire_grace_time=600)
            scheduler.start()
            while len(list(Path(os.environ["DONE"]).iterdir())) < 20:
                time.sleep(0.05)
            scheduler.shutdown()
    """,
    "an asyncio scheduler": """
        from apscheduler.schedulers.asyncio import AsyncIOScheduler
        from windback import AsyncWindback

        async_client = AsyncWindback(flush_interval=3600, shutdown_timeout=60)

        async def track(n):
            async with context.bound(customer_email="user%d@example.com" % n):
                await async_client.track("login", {"n": n})
            (Path(os.environ["DONE"]) / str(n)).touch()

        async def main():
            scheduler = AsyncIOScheduler()
            for n in range(20):
                scheduler.add_job(track, args=[n])
            scheduler.start()
            while len(list(Path(os.environ["DONE"]).iterdir())) < 20:
                await asyncio.sleep(0.05)
            scheduler.shutdown()

        asyncio.run(main())
    """,
}


@pytest.mark.parametrize("code", SCHEDULERS.values(), ids=SCHEDULERS)
def test_apscheduler(tmp_path, server, code):
    jobs = Jobs(tmp_path, server.url)
    jobs.write("program.py", code)
    check(server, jobs.run("-W", "ignore", "program.py"))


def test_apscheduler_that_blocks_until_sigterm(tmp_path, server):
    """Such a program ends by the signal, without exit handlers: it needs handle_signals=True."""
    jobs = Jobs(tmp_path, server.url)
    code = """
        from apscheduler.schedulers.blocking import BlockingScheduler

        client = Windback(flush_interval=3600, shutdown_timeout=60, handle_signals=True)
        scheduler = BlockingScheduler()
        for n in range(20):
            scheduler.add_job(track_one, args=[n])
        scheduler.start()
    """
    jobs.write("program.py", code)
    check(server, jobs.run_until_done(20, "-W", "ignore", "program.py"))


SCRIPT = """
import sys
from windback import Windback

client = Windback(max_retries=1)
for n in range(1000):
    client.track_event("login", "jane@example.com", {"n": n})
if not client.flush():
    sys.exit(1)
"""


def test_a_script_that_delivered_everything_succeeds(server, run):
    server.faults([{"latency": 0.3}])
    ended = run(SCRIPT, url=server.url, within_s=55)
    server.faults([])
    assert (ended.status, ended.err) == (0, "")
    assert numbers(server) == list(range(1000))


def test_a_script_that_did_not_fails_and_gives_the_reason(dead_url, run):
    ended = run(SCRIPT, url=dead_url, within_s=55)
    assert ended.status == 1
    assert "1000 events were not delivered before the process ended" in ended.err
    assert "refused" in ended.err
