"""`windback import` as it is typed: real files, a real server, real kills."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest
from commands import COMMAND, Ended, set_environment

from windback.cli import main
from windback.devserver import DevServer

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT / "examples" / "data" / "CDNOW_sample.txt"
# Several processes in a row, each of which has to load everything.
pytestmark = pytest.mark.timeout(180)
HEAD = "event,customer_email,timestamp,plan\n"
ROW = "login,jane@example.com,2025-12-01T10:00:00Z,pro\n"


@pytest.fixture(autouse=True)
def _environment(server, monkeypatch):
    set_environment(monkeypatch, API_KEY="sk_test_1", BASE_URL=server.url)


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Ended]:
    """Run the command in this process."""

    def run(*arguments: object, **others: str) -> Ended:
        capsys.readouterr()
        with monkeypatch.context() as here:
            for name, value in others.items():
                here.setenv(name, value)
            status = main(["import", *map(str, arguments)])
        return Ended(status, *capsys.readouterr())

    return run


@pytest.fixture
def make(tmp_path) -> Callable[..., Path]:
    def make(text: str, name: str = "rows.csv", encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return make


@pytest.fixture
def purchases(tmp_path) -> Path:
    """The sample of the demo, ten times over, each row with a number of its own."""
    path = tmp_path / "purchases.csv"
    lines = LOG.read_text(encoding="ascii").splitlines() * 10
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["customer_email", "day", "order", "cds"])
        for order, line in enumerate(lines, 1):
            _, customer, day, cds, _ = line.split()
            day = f"{day[:4]}-{day[4:6]}-{day[6:]}"
            writer.writerow([f"customer-{customer}@example.com", day, order, cds])
    assert order == 69_190
    return path


PURCHASES = ["--event", "purchase", "--timestamp-column", "day", "--utc", "--map", "order:int"]


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, "import", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def wait_for_events(server: DevServer, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 50
    while server.counts().events < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def sent_in(path: Path) -> int:
    return json.loads(path.with_name(f"{path.name}.windback").read_bytes())["sent"]


# no row is lost, and none is sent twice


def test_it_survives_kills_and_ends_with_each_row_once(purchases, server, run):
    for at in (7_000, 30_000, 55_000):
        process = start(purchases, *PURCHASES)
        wait_for_events(server, at, process)
        process.kill()
        process.communicate()
        assert at - 1_000 < sent_in(purchases) < 69_190
    done = run(purchases, *PURCHASES)
    assert done == (0, "sent: 69190, bad: 0, rejected: 0\n", "")
    assert server.counts().events == server.distinct_events() == 69_190
    assert {each.properties["order"] for each in server.events()} == {*range(1, 69_191)}
    again = run(purchases, *PURCHASES, "--json")
    assert (again.status, again.json["sent"]) == (0, 69_190)
    assert server.counts().events == 69_190


def test_what_was_sent_but_not_noted_is_recognised(make, server, run):
    """As if the kill came between the answer and the note: the state is that of before."""
    path = make("event,customer_email\n" + "login,jane@example.com\n" * 950)
    state = path.with_name("rows.csv.windback")
    process = start(path, "--rate", "100")
    wait_for_events(server, 100, process)
    process.kill()
    process.communicate()
    noted = state.read_bytes()
    assert run(path).status == 0
    assert server.counts().events == 950
    state.write_bytes(noted)
    done = run(path)
    assert (done.status, done.out) == (0, "sent: 950, bad: 0, rejected: 0\n")
    assert server.counts().events == 950
    assert server.counts().duplicate_events >= 850
    assert len({each.timestamp for each in server.events()}) == 1  # when the import began


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_the_same_command_goes_on(make, server, run, number):
    path = make(HEAD + ROW * 1_000)
    process = start(path, "--rate", "100")
    wait_for_events(server, 100, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    sent = sent_in(path)
    assert out == f"sent: {sent}, bad: 0, rejected: 0\n"
    assert err == f"stopped after line {sent + 1:,}; run the same command to continue from there\n"
    assert run(path).out == "sent: 1000, bad: 0, rejected: 0\n"
    assert server.counts().events == 1_000


def test_a_server_that_is_away_for_a_moment_is_waited_for(make, tmp_path):
    path = make(HEAD + ROW * 12_000)
    with DevServer(db=tmp_path / "db") as server:
        process = start(path, "--base-url", server.url)
        wait_for_events(server, 3_000, process)
        server.kill()
        server.start()
        out, err = process.communicate(timeout=50)
        assert (process.returncode, out, err) == (0, "sent: 12000, bad: 0, rejected: 0\n", "")
        assert server.counts().events == 12_000


def test_a_rate_limit_is_kept_to(make, run):
    path = make(HEAD + ROW * 4_000)
    with DevServer(rate_limits=True) as server:
        done = run(path, "--base-url", server.url)
        assert (done.status, done.out) == (0, "sent: 4000, bad: 0, rejected: 0\n")
        assert server.counts().events == 4_000


def test_a_refusal_stops_it_and_nothing_is_lost(make, server, run):
    path = make(HEAD + ROW * 250)
    server.faults([{"path": "/track", "status": 402}])
    done = run(path)
    assert (done.status, done.out) == (1, "sent: 0, bad: 0, rejected: 0\n")
    assert "402" in done.err
    assert "stopped after line 0; run the same command to continue from there" in done.err
    server.clear_faults()
    assert run(path).status == 0
    assert server.counts().events == 250


def test_a_chosen_rate_is_kept(make, server, run):
    path = make(HEAD + ROW * 150)
    started_s = time.monotonic()
    assert run(path, "--rate", "100").status == 0
    assert time.monotonic() - started_s > 1.0
    assert server.counts().events == 150


def test_two_together_are_one_too_many(make, server, run):
    path = make(HEAD + ROW * 1_000)
    process = start(path, "--rate", "100")
    wait_for_events(server, 1, process)
    assert run(path) == (2, "", f"windback import: another import of {path} is running\n")
    process.kill()
    process.communicate()


# what rows become


def test_columns_become_properties_and_empty_cells_nothing(make, server, run):
    path = make(HEAD + ROW + "login,jim@example.com,2025-12-01T10:00:00+01:00,\n")
    assert run(path).status == 0
    first, second = server.events()
    assert (first.event, first.customer_email, first.timestamp) == (
        "login",
        "jane@example.com",
        "2025-12-01T10:00:00Z",
    )
    assert (first.properties, second.properties) == ({"plan": "pro"}, {})


def test_columns_are_mapped_and_made_numbers_if_asked_to(make, server, run):
    path = make("mail;what;when;zip;n;x;ok;more\njane@example.com;a;2025-12-01;01234;3;4.50;yes;[1]\n")
    done = run(
        *(path, "--email-column", "mail", "--event-column", "what", "--timestamp-column", "when", "--utc"),
        *("--delimiter", ";", "--map", "zip", "--map", "n=count:int", "--map", "x:float", "--map", "ok:bool"),
        *("--map", "more:json"),
    )
    assert done == (0, "sent: 1, bad: 0, rejected: 0\n", "")
    (event,) = server.events()
    assert (event.event, event.timestamp) == ("a", "2025-12-01T00:00:00Z")
    assert event.properties == {"zip": "01234", "count": 3, "x": 4.5, "ok": True, "more": [1]}


def test_json_lines_are_events_as_they_are(make, server, run):
    rows = [
        {"event": "login", "customer_email": "jane@example.com", "properties": {"n": 12345678901234567}},
        {"event": "login", "customer_email": "jane@example.com", "plan": "pro", "seats": 3},
    ]
    path = make("".join(json.dumps(row) + "\n\n" for row in rows), "rows.jsonl")
    assert run(path).status == 0
    assert [each.properties for each in server.events()] == [
        {"n": 12345678901234567},
        {"plan": "pro", "seats": 3},
    ]


def test_a_cell_may_hold_line_ends_and_quotes(make, server, run):
    path = make(HEAD + 'login,jane@example.com,,"two\nlines, ""quoted"""\n' + ROW)
    assert run(path).status == 0
    assert [each.properties["plan"] for each in server.events()] == ['two\nlines, "quoted"', "pro"]


def test_a_dry_run_sends_nothing_and_needs_no_key(make, server, run):
    path = make(HEAD + ROW * 2 + "login,nobody,,\n")
    done = run(path, "--dry-run", WINDBACK_API_KEY="")
    assert done.status == 1
    head, *rows, last = done.out.splitlines()
    assert head.split() == ["event", "customer_email", "timestamp", "properties"]
    assert rows == ['login  jane@example.com  2025-12-01T10:00:00Z  {"plan":"pro"}'] * 2
    assert last == "nothing was sent; good: 2, bad: 1"
    assert done.err == "line 4: customer_email: has no '@', so it is not an email address\n"
    assert server.counts().requests == 0
    assert sorted(each.name for each in path.parent.iterdir()) == ["rows.csv"]
    found = run(path, "--dry-run", "--json").json
    assert (found["good"], found["bad"], len(found["first"])) == (2, 1, 2)


# bad rows


def test_bad_rows_are_listed_with_their_lines_and_the_others_are_sent(make, server, run, tmp_path):
    bad = {
        3: "login,jane@example.com\n",
        5: "login,jane@example.com,2025-12-01T10:00:00Z,pro,more\n",
        6: "login,jane,2025-12-01T10:00:00Z,pro\n",
        7: "login,jane@example.com,yesterday,pro\n",
        8: ",jane@example.com,2025-12-01T10:00:00Z,pro\n",
        9: 'login,jane@example.com,2025-12-01T10:00:00Z,"pro"x\n',
    }
    path = make(HEAD + "".join(bad.get(line, ROW) for line in range(2, 12)))
    done = run(path, "--report", tmp_path / "report.jsonl")
    assert (done.status, done.out) == (1, "sent: 4, bad: 6, rejected: 0\n")
    assert done.err.splitlines() == [
        "line 3: 2 cells, and there are 4 columns",
        "line 5: 5 cells, and there are 4 columns",
        "line 6: customer_email: has no '@', so it is not an email address",
        "line 7: timestamp: 'yesterday' is not an ISO 8601 time such as '2025-12-01T10:00:00Z'",
        "line 8: no event",
        "line 9: not CSV: ',' expected after '\"'",
    ]
    listed = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [each["line"] for each in listed] == [*bad]
    assert server.counts().events == 4


def test_what_the_api_rejects_is_listed_with_its_line(make, server, run):
    """The server takes "jane@" for no address; the client does."""
    poison = "login,jane@,2025-12-01T10:00:00Z,pro\n"
    path = make(HEAD + ROW * 120 + poison + ROW * 30 + poison + ROW * 5)
    done = run(path, "--json")
    assert done.status == 1
    assert done.json == {"sent": 155, "bad": 0, "rejected": 2, "lines": 158, "trouble": None}
    assert [line.partition(": ")[0] for line in done.err.splitlines()] == ["line 122", "line 153"]
    assert "customer_email: must look like name@host" in done.err
    assert server.counts().events == 155


def test_many_bad_rows_do_not_flood_the_terminal(make, run):
    done = run(make(HEAD + "a,b\n" * 50))
    assert (done.status, done.out) == (1, "sent: 0, bad: 50, rejected: 0\n")
    assert len(done.err.splitlines()) == 21
    assert done.err.splitlines()[-1] == "and 30 more bad rows; --report FILE lists all of them"


def test_json_lines_that_are_none_are_bad_rows(make, run):
    path = make('{"event": "a", "customer_email": "a@b.c"}\n[1]\n{"event"\n{"event": "a"}\n', "rows.jsonl")
    done = run(path)
    assert (done.status, done.out) == (1, "sent: 1, bad: 3, rejected: 0\n")
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["line 2", "line 3", "line 4"]


def test_a_row_that_would_obey_a_terminal_does_not(make, run):
    done = run(make(HEAD + "login,jane@example.com,\x1b[2J,pro\n"))
    assert done.status == 1
    assert "\x1b" not in done.err
    assert "\\x1b[2J" in done.err


def test_a_quote_that_is_never_closed_and_a_line_without_end_cost_neither_memory_nor_the_rest(make, run):
    path = make(HEAD + 'login,"open,,\n' + ROW * 5_000 + "x" * 3_000_000 + "\n" + ROW)
    done = run(path)
    assert done.status == 1
    first, *_, last = done.err.splitlines()
    assert first.startswith("line 2: not CSV: ")
    assert "a quote that is never closed?" in first
    assert last == "line 5003: more than 1,000,000 characters"
    sent = int(re.match(r"sent: (\d+), bad: \d+, rejected: 0", done.out)[1])
    assert 2_000 < sent < 5_000


# encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_the_mark_at_the_start_or_an_option_reports_the_encoding(make, server, run, encoding):
    path = make(HEAD + "login,jane@example.com,,größer\n" * 3, encoding=encoding)
    options = ["--encoding", "cp1252"] if encoding == "cp1252" else []
    assert run(path, *options) == (0, "sent: 3, bad: 0, rejected: 0\n", "")
    assert [each.properties for each in server.events()] == [{"plan": "größer"}] * 3


def test_a_wrong_encoding_is_named_and_the_right_one_goes_on_from_there(make, server, run):
    path = make(HEAD + ROW * 150 + "login,jane@example.com,,größer\n" * 2, encoding="cp1252")
    done = run(path)
    assert done.status == 1
    why, where = done.err.splitlines()
    assert why.startswith(
        "windback import: line 152: byte 0xF6 in column 27 is not utf-8; choose the file's encoding"
    )
    assert where == "stopped after line 101; run the same command to continue from there"
    assert run(path, "--encoding", "cp1252").out == "sent: 152, bad: 0, rejected: 0\n"
    assert server.counts().events == 152


def test_utf_16_without_a_mark_is_seen(make, run):
    path = make(HEAD + ROW, encoding="utf-16-le")
    done = run(path)
    assert (done.status, done.out) == (2, "")
    assert "line 1: contains zeros, so it is not utf-8 text; choose the encoding with --encoding" in done.err
    assert run(path, "--encoding", "utf-16-le").status == 0


# what can't be begun


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("", (), "is empty"),
        ("\ufeff", (), "is empty"),
        ("id,mail\n1,a@b.c\n", (), "has no column 'customer_email', but 'id', 'mail'; see --email-column"),
        ("a;customer_email\n", (), "has no column 'customer_email', but 'a;customer_email'"),
        ("customer_email\n", (), "has no column 'event', but 'customer_email'; see --email-column"),
        ("event,customer_email,event\n", (), "line 1 has a column twice: event"),
        (HEAD, ("--map", "mrr:int"), "has no column 'mrr'"),
        (HEAD, ("--map", "=x"), "is not COLUMN, COLUMN=NAME or COLUMN=NAME:KIND"),
        (HEAD, ("--delimiter", "::"), "is not one character"),
        (HEAD, ("--encoding", "klingon"), "the encoding 'klingon' is not known"),
        (HEAD, ("--format", "xml"), "add --format csv or --format jsonl"),
        (HEAD, ("--rate", "0"), "is not a number"),
        (HEAD, ("--state", "/nowhere/state"), "name another with --state"),
        (HEAD, ("--report", "/nowhere/report"), "/nowhere/report: No such file or directory"),
        ("\ufeff" + HEAD, ("--encoding", "cp1252"), "starts with the byte order mark of utf-8, not cp1252"),
    ],
)
def test_what_makes_no_sense_is_status_2_and_sends_nothing(make, server, run, text, options, says):
    done = run(make(text), *options)
    assert (done.status, done.out) == (2, "")
    assert says in done.err
    assert "Traceback" not in done.err
    assert server.counts().requests == 0


def test_a_file_that_is_none_is_status_2(run, tmp_path):
    assert (
        run(tmp_path / "none.csv").err
        == f"windback import: {tmp_path / 'none.csv'}: No such file or directory\n"
    )
    (tmp_path / "folder.csv").mkdir()
    assert run(tmp_path / "folder.csv").status == 2
    assert run(tmp_path / "rows.parquet").status == 2


def test_without_a_key_nothing_begins(make, run):
    path = make(HEAD + ROW)
    done = run(path, WINDBACK_API_KEY="")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "set WINDBACK_API_KEY" in done.err
    assert not path.with_name("rows.csv.windback").exists()


def test_a_file_with_nothing_but_names_is_done_immediately(make, run):
    assert run(make(HEAD)) == (0, "sent: 0, bad: 0, rejected: 0\n", "")


# the state


def test_a_file_that_grew_goes_on_where_it_ended(make, server, run):
    path = make(HEAD + ROW * 150)
    assert run(path).status == 0
    with path.open("a") as file:
        file.write(ROW * 70)
    assert run(path).out == "sent: 220, bad: 0, rejected: 0\n"
    assert server.counts().events == 220


def test_another_file_and_other_columns_are_not_the_same_import(make, server, run):
    path = make(HEAD + ROW * 150)
    assert run(path).status == 0
    done = run(path, "--event", "other")
    assert done.status == 2
    assert "was started with other columns" in done.err
    make(HEAD + ROW.replace("jane", "jill") * 150)
    done = run(path)
    assert done.status == 2
    assert "has changed since its first 151 lines were imported" in done.err
    assert server.counts().events == 150
    assert run(path, "--restart").status == 0
    assert server.counts().events == 300
    assert run(path, "--restart").status == 0
    assert server.counts().events == 450


def test_a_state_that_is_none_is_left_alone(make, run):
    path = make(HEAD + ROW)
    state = path.with_name("mine")
    state.write_text("hello")
    done = run(path, "--state", state)
    assert done.status == 2
    assert f"{state} is not the state of an import; move it away, or choose another" in done.err
    assert state.read_text() == "hello"


# how much it takes


def test_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path, run):
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.csv"
        with path.open("w") as file:
            file.write(HEAD)
            for _ in range(count):
                file.write(f"login,jane@example.com,,{'x' * 20_000}\n")
        code = (
            "import resource, sys; from windback.cli import main\n"
            "assert main(['import', sys.argv[1], '--dry-run']) == 0\n"
            "sys.stderr.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, timeout=50
        )
        path.unlink()
        return int(done.stderr)

    small, large = peak(50), peak(3_000)  # 1 MB and 60 MB
    assert large - small < 8_000 * (1 if sys.platform != "darwin" else 1024)


def test_help_promises_no_more_than_the_api_keeps():
    shown = subprocess.run([*COMMAND, "import", "--help"], capture_output=True, text=True, check=True).stdout
    text = " ".join(shown.split())
    assert "where the API honours idempotency keys" in text
    assert "nothing is sent twice" not in text
