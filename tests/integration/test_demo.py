"""The examples run as a user runs them: each in a process of its own, judged by what it prints."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
from datetime import datetime, timezone
from pathlib import Path
from typing import Dict, List, Tuple

import httpx
import pytest

from windback.devserver import DevServer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

#: The purchases in the log, and their prices in cents, counted by other means than the demo's:
#: awk '{ sub(/\r/, ""); sub(/\./, "", $5); s += $5 } END { print NR, s }' CDNOW_sample.txt
PURCHASES, CENTS = 6_919, 24_409_194


def run(*command: str, timeout_s: float, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **env},
        capture_output=True,
        encoding="utf-8",
        timeout=timeout_s,
        check=False,
    )


def table(output: str) -> Dict[str, Tuple[int, ...]]:
    """The rows of the table: what was due, what the client says, what the server has."""
    rows = re.findall(r"^(\w[\w ]*?) {2,}([\d,]+) +([\d,]+) +([\d,]+)$", output, re.MULTILINE)
    return {label: tuple(int(number.replace(",", "")) for number in numbers) for label, *numbers in rows}


def check_table(output: str) -> None:
    assert table(output) == {
        "purchases": (PURCHASES,) * 3,
        "lost": (0,) * 3,
        "counted twice": (0,) * 3,
        "sum in cents": (CENTS,) * 3,
        "churn events": (10,) * 3,
        "cancel flows": (5,) * 3,
        "cancel reasons": (5,) * 3,
        "recovery templates": (5,) * 3,
    }
    assert "Server and client agree." in output
    assert re.search(r"^[\d,]+ events/s", output, re.MULTILINE)
    assert re.search(r"^track_event: p50 [\d.]+ µs, p99 [\d.]+ µs$", output, re.MULTILINE)


both = pytest.mark.parametrize("demo", ["demo.py", "async_demo.py"])


@both
def test_demo(demo):
    done = run("-W", "error", str(EXAMPLES / demo), timeout_s=60)
    assert done.stderr == ""
    assert done.returncode == 0
    check_table(done.stdout)


@both
def test_demo_loses_nothing_while_a_fifth_of_the_requests_fails(demo):
    done = run("-W", "error", str(EXAMPLES / demo), "--faults", timeout_s=120)
    assert done.returncode == 0, done.stdout + done.stderr
    check_table(done.stdout)
    line = re.search(r"^(\d+) faults in (\d+) requests: (.*)$", done.stdout, re.MULTILINE)
    assert line is not None
    kinds = {kind: int(count) for count, kind in re.findall(r"(\d+) ([^,]+)", line[3])}
    failures = sum(count for kind, count in kinds.items() if kind != "latency")
    assert sum(kinds.values()) == int(line[1])
    # The rng are seeded and there are hundreds of requests, so a fifth is about a fifth in every run.
    assert 0.15 < failures / int(line[2]) < 0.25
    for kind in ("status 503", "status 429", "drop before", "drop after", "latency"):
        assert kinds[kind] > 0
    again = re.search(r"^(\d+) batches sent again; (\d+) requests came twice", done.stdout, re.MULTILINE)
    assert again is not None
    assert int(again[1]) >= failures - 25  # 25 is how many requests are no batches
    assert int(again[2]) > 0


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals on this system")
@both
def test_demo_draws_a_progress_bar_on_a_terminal(demo):
    import fcntl
    import termios

    ours, theirs = os.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # a new one has no width
        command = [sys.executable, str(EXAMPLES / demo)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as process:
            os.close(theirs)
            drawn = b""
            while True:
                try:
                    part = os.read(ours, 4096)
                except OSError:  # Linux: the other side is closed
                    break
                if not part:
                    break
                drawn += part
        assert process.returncode == 0
    finally:
        os.close(ours)
    assert f"{PURCHASES}/{PURCHASES}".encode() in drawn


def test_the_demo_ends_with_the_address_of_the_page_and_can_keep_serving_it():
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--keep"]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            last = ""
            while "until Ctrl-C" not in last:
                last = process.stdout.readline()
                assert last, "the demo ended without keeping the server"
            address = last.split()[-1]
            assert "<title>windback dev</title>" in httpx.get(address).text
            assert httpx.get(address + "_dev/counts").json()["events"] == PURCHASES
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def examples(monkeypatch):
    """Import a module of the examples as their scripts do, and leave no trace."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("purchases", "scoreboard"):
        monkeypatch.setitem(sys.modules, name, load(name))
    return sys.modules


def test_the_table_shows_a_disagreement(examples, capsys):
    """The check of the demos would notice a lost purchase, and one that was lost by both alike."""
    row, show = examples["scoreboard"].Row, examples["scoreboard"].show
    assert show([row("purchases", 3, 3, 3), row("lost", 0, 0, 0)]) is True
    assert show([row("purchases", 3, 3, 2), row("lost", 0, 0, 1)]) is False
    assert "purchases                        3             3             2  <--" in capsys.readouterr().out
    assert show([row("purchases", 3, 2, 2), row("lost", 0, 1, 1)]) is False


def test_what_the_server_has_is_counted_on_the_server(examples):
    """A purchase that never arrives, and one that arrives twice, are seen whatever the client says."""
    from windback import Windback

    scoreboard = examples["scoreboard"]
    purchases = examples["purchases"].read_log()[:3]
    with DevServer() as server, Windback("sk_test_demo", "cdnow", base_url=server.url) as client:
        for purchase in (purchases[0], purchases[0], purchases[1]):  # the third is forgotten
            client.track_event(
                "purchase", purchase.customer_email, purchase.properties, timestamp=purchase.at
            )
        assert client.flush(timeout=30)
        calls = scoreboard.Calls(0, 0, 0, 0)
        says = scoreboard.Client(client.stats(), sum(each.cents for each in purchases), [1], 1.0, calls)
        rows = {each.label: each for each in scoreboard.compare(purchases, calls, says, server)}
    assert rows["purchases"].is_right  # by mere chance, which is why the next two are there
    assert (rows["lost"].server, rows["counted twice"].server) == (1, 1)
    assert rows["sum in cents"].server == 2 * purchases[0].cents + purchases[1].cents
    assert not any(rows[label].is_right for label in ("lost", "counted twice", "sum in cents"))
    assert rows["churn events"].is_right


def test_the_log_is_read_to_the_cent(examples):
    purchases = examples["purchases"].read_log()
    assert (len(purchases), sum(each.cents for each in purchases)) == (PURCHASES, CENTS)
    first = purchases[0]
    assert first == (1, "customer-0001@example.com", datetime(1997, 1, 1, tzinfo=timezone.utc), 2, 2933)


def test_gone_quiet_wants_a_rhythm_and_then_a_long_silence(examples):
    module = examples["purchases"]

    def bought(customer: str, *days: str) -> List[object]:
        at = [datetime.strptime(f"{day} +0000", "%Y-%m-%d %z") for day in days]
        return [module.Purchase(order, customer, each, 1, 1_000) for order, each in enumerate(at)]

    log = [
        *bought("quiet", "1998-01-01", "1998-01-11", "1998-01-21"),  # every 10 days, then nothing for 160
        *bought("still", "1998-05-01", "1998-05-21", "1998-06-10", "1998-06-30"),  # bought on the last day
        *bought("twice", "1997-01-01", "1997-01-02"),  # two days are no rhythm
        *bought("same", "1997-01-01", "1997-01-01", "1997-01-01"),  # nor is one
        *bought("pause", "1998-04-11", "1998-04-13", "1998-04-15"),  # 76 days are a pause
        *bought(
            "slow", "1997-09-01", "1997-11-01", "1998-01-01"
        ),  # 180 days of silence, but not over 4 times 61
    ]
    (quiet,) = module.gone_quiet(log)
    assert quiet == ("quiet", 3, 3_000, 20, 10.0, 160)
    assert quiet.cents_a_month == 3_000


def test_quickstart():
    """It looks for `windback dev` on a port that may be taken here, so another one stands in."""
    source = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 15
    with DevServer() as server:
        assert source.count('"http://127.0.0.1:8787/api/v1"') == 1
        done = run(
            "-X", "dev", "-c", source.replace("127.0.0.1:8787", f"127.0.0.1:{server.port}"), timeout_s=30
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"evt_\w+ new\n", done.stdout)
        (event,) = server.events()
        assert (event.event, event.customer_email) == ("feature_used", "jane@example.com")
        assert event.properties == {"feature": "exports", "plan": "pro"}
        assert server.counts().churn_events == 1


def test_quickstart_names_the_port_of_windback_dev():
    from windback.devserver.options import BASE_PATH, DEFAULT_HOST, DEFAULT_PORT

    source = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    assert f'"http://{DEFAULT_HOST}:{DEFAULT_PORT}{BASE_PATH}"' in source


FIVE_LINES = """
    from windback import Windback

    client = Windback("sk_test_five_lines", "my-project")
    client.track_event("feature_used", "jane@example.com", {"feature": "exports"})
    print("done")
"""

FIVE_LINES_ASYNC = """
    import asyncio, trio
    from windback import AsyncWindback

    client = AsyncWindback("sk_test_five_lines", "my-project")
    async def main():
        await client.track_event("feature_used", "jane@example.com", {"feature": "exports"})
    RUN
    print("done")
"""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(FIVE_LINES, id="sync"),
        pytest.param(FIVE_LINES_ASYNC.replace("RUN", "asyncio.run(main())"), id="asyncio"),
        pytest.param(FIVE_LINES_ASYNC.replace("RUN", "trio.run(main)"), id="trio"),
    ],
)
def test_a_script_that_just_ends_delivers_its_event(script, tmp_path):
    """No flush, no close, no `with`: the end of the process delivers, and says nothing on standard error."""
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(script), encoding="utf-8")
    with DevServer() as server:
        done = run("-W", "always", str(file), timeout_s=30, WINDBACK_BASE_URL=server.url)
        assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
        (event,) = server.events()
        assert (event.event, event.customer_email) == ("feature_used", "jane@example.com")
        assert event.properties == {"feature": "exports"}
        assert server.counts().track_requests == 1
