"""Lines of user code, and what SIGTERM loses, beside peers: ``python benchmarks/ecosystem.py [NAME ...]``.

Each client is in the same FastAPI application, as its documentation writes it, under a real uvicorn. 50
requests track an event each, and SIGTERM follows immediately. What arrives at the sink is counted. Each peer
runs twice: at its defaults, and with the lines that its documentation gives for a clean end.

``--write`` puts the table between the markers of docs/ecosystem.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime as dt
import importlib.metadata
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Iterator

from sink import sink

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "ecosystem.md"
BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"
EVENTS = 50
#: The name of the event, which the sink counts, and what else it has.
EVENT, EMAIL = '"feature_used"', '"user@example.com"'
PROPERTIES = '{"feature": "export"}'

APP = """\
import os
from fastapi import FastAPI
SINK = os.environ["SINK"]
{before}
app = FastAPI({argument})
{after}
@app.get("/ready")
def ready():
    return {{}}
@app.get("/")
def use():
    {call}
    return {{}}
"""
LIFESPAN = """\
from contextlib import asynccontextmanager
@asynccontextmanager
async def lifespan(app):
    yield
    {close}
"""


@dataclasses.dataclass(frozen=True)
class Peer:
    """What a user writes. before, after: around the line that makes the application. close: a clean end."""

    package: str
    call: str
    before: str
    after: str = ""
    close: str | None = None


PEERS = {
    "windback": Peer(
        "windback",
        f"windback.get_client().track_event({EVENT}, {EMAIL}, {PROPERTIES})",
        "import windback.fastapi",
        "app.add_middleware(windback.fastapi.WindbackMiddleware)",
    ),
    "posthog": Peer(
        "posthog",
        f"posthog.capture({EVENT}, distinct_id={EMAIL}, properties={PROPERTIES})",
        'from posthog import Posthog\nposthog = Posthog("phc_key", host=SINK)',
        close="posthog.shutdown()",
    ),
    "segment": Peer(
        "segment-analytics-python",
        f"analytics.track({EMAIL}, {EVENT}, {PROPERTIES})",
        'import segment.analytics as analytics\nanalytics.write_key = "key"\nanalytics.host = SINK',
        close="analytics.shutdown()",
    ),
    "sentry (logs)": Peer(
        "sentry-sdk",
        f'sentry_sdk.logger.info({EVENT}, attributes={{"user": {EMAIL}, **{PROPERTIES}}})',
        'import sentry_sdk\nsentry_sdk.init(dsn=SINK.replace("://", "://key@") + "/1", enable_logs=True)',
        close="sentry_sdk.flush()",
    ),
    "OpenTelemetry (logs)": Peer(
        "opentelemetry-sdk",
        f'logger.emit(body={EVENT}, attributes={{"user": {EMAIL}, **{PROPERTIES}}})',
        "from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter\n"
        "from opentelemetry.sdk._logs import LoggerProvider\n"
        "from opentelemetry.sdk._logs.export import BatchLogRecordProcessor\n"
        "provider = LoggerProvider()\n"
        'exporter = OTLPLogExporter(endpoint=SINK + "/v1/logs")\n'
        "provider.add_log_record_processor(BatchLogRecordProcessor(exporter))\n"
        'logger = provider.get_logger("app")',
        close="provider.shutdown()",
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    lines: int
    arrived: int
    end_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Count lines, and what SIGTERM loses.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(PEERS)} (all)")
    parser.add_argument("--rounds", type=int, default=3, help="how often all take their turn (3)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/ecosystem.md")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in PEERS]
    if unknown:
        parser.error(f"no such client: {', '.join(unknown)}")
    chosen = options.names or list(PEERS)
    rounds = [[row for name in chosen for row in measure(name, PEERS[name])] for _ in range(options.rounds)]
    text = table(chosen, rounds)
    print(text)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        PAGE.write_text(head + BEGIN + text + END + rest.split(END)[1], encoding="utf-8")


def measure(name: str, peer: Peer) -> Iterator[Row]:
    yield run(name, peer, "")
    if peer.close is not None:
        yield run(f"{name}, with its clean end", peer, LIFESPAN.format(close=peer.close))


def run(name: str, peer: Peer, lifespan: str) -> Row:
    """Start the application, make the requests, end it, and count."""
    argument = "lifespan=lifespan" if lifespan else ""
    before = f"{peer.before}\n{lifespan}"
    text = APP.format(before=before, after=peer.after, argument=argument, call=peer.call)
    lines = [line for line in f"{before}\n{peer.after}".splitlines() if line.strip()]
    with sink() as url, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "app.py").write_text(text, encoding="utf-8")
        with server(Path(folder), url) as (base, process):
            for _ in range(EVENTS):
                get(f"{base}/")
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            end_s = time.monotonic() - started
        time.sleep(0.5)  # what is still on its way
        arrived = int(re.search(rb'"events": (\d+)', get(f"{url}/_stats"))[1])  # type: ignore[index]
    return Row(name, len(lines), arrived, end_s)


@contextlib.contextmanager
def server(folder: Path, url: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {**os.environ, "SINK": url, "WINDBACK_BASE_URL": url, "WINDBACK_API_KEY": "sk_test_bench"}
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "--log-level", "error", "app:app"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError):
                get(f"{base}/ready")
                break
            if process.poll() is not None:
                sys.exit(
                    f"the application did not start: is everything of requirements.txt installed? {folder}"
                )
            time.sleep(0.1)
        yield base, process
    finally:
        process.kill()
        process.wait()


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - this machine
        return bytes(answer.read())


def table(chosen: list[str], rounds: list[list[Row]]) -> str:
    """Return the table, with the worst round of each row."""
    lines = [
        "| client | version | lines of yours | arrived after SIGTERM | the end took |",
        "|---|---|---|---|---|",
    ]
    for rows in zip(*rounds):
        name = rows[0].name.partition(",")[0]
        arrived = sorted({row.arrived for row in rows})
        span = f"{arrived[0]}" if len(arrived) == 1 else f"{arrived[0]} to {arrived[-1]}"
        end_s = statistics.median(row.end_s for row in rows)
        version = importlib.metadata.version(PEERS[name].package)
        lines.append(f"| {rows[0].name} | {version} | {rows[0].lines} | {span} of {EVENTS} | {end_s:.1f} s |")
    versions = ", ".join(f"{each} {importlib.metadata.version(each)}" for each in ("fastapi", "uvicorn"))
    today = dt.datetime.now().astimezone().date().isoformat()
    python = ".".join(map(str, sys.version_info[:3]))
    lines += ["", f"{today}, CPython {python}, {versions}, {len(rounds)} rounds, {len(chosen)} clients."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
