"""Write the generated parts of the docs: `python docs/generate.py`. A test fails when they are old.

`--site DIR` adds the Markdown of each page, and `llms.txt`, to a site that is built.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Optional

from windback.config import OPTIONS
from windback.delivery.verdict import CLASSES, STATUSES, Action, Rule
from windback.options import Option

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent


def options_table() -> str:
    """Return the table of all options of a client."""
    rows = [f"| `{name}` | {_default(said)} | {said.help} |" for name, said in OPTIONS.items()]
    return "\n".join(["| option | default | what it is |", "| --- | --- | --- |", *rows])


def _default(said: Option) -> str:
    value = said.default
    if isinstance(value, str):
        text = f'`"{value}"`' if said.environment is None else f"`{value}`"
    elif isinstance(value, bool) or value is None:
        text = f"`{value}`"
    elif isinstance(value, int) and value >= 1 << 20:
        text = f"{value >> 20} MiB"
    else:
        text = f"{value:,}"
    if said.environment is None:
        return text
    return f"`{said.environment}`" + ("" if value is None else f", else {text}")


_BATCH = {
    Action.ACK: "delivered",
    Action.KEEP: "retried, then kept",
    Action.WAIT: "the queue waits as long as asked",
    Action.SPLIT: "halved; a single event is rejected",
    Action.PAUSE: "kept, tried again after 5 minutes",
}


def statuses_table() -> str:
    """Return what each status code means."""
    rules = {
        **{f"other {number}xx" if number > 2 else f"{number}xx": rule for number, rule in CLASSES.items()},
        **{str(status): rule for status, rule in STATUSES.items()},
    }
    rows = [
        f"| {name} | {_BATCH[rule.action]} | {_plain(rule)} | {rule.why} |"
        for name, rule in sorted(
            rules.items(), key=lambda pair: pair[0].replace("other ", "").replace("x", "~")
        )
    ]
    return "\n".join(["| status | a batch | a plain call | why |", "| --- | --- | --- | --- |", *rows])


def _plain(rule: Rule) -> str:
    if rule.action is Action.ACK:
        return "returns"
    if not rule.is_retried:
        return "raises"
    return "retried" if rule.is_unprocessed else "retried, unless it must happen only once"


#: The clients that are measured beside this one, as the results name them and as a reader does.
_CLIENTS = {
    "windback": "**windback**",
    "opentelemetry-logs": "OpenTelemetry (logs)",
    "sentry-logs": "sentry (logs)",
    "segment": "segment",
    "posthog": "posthog",
}
#: Heading in the results, column there, column here.
_COLUMNS = (
    ("The call, in µs", "1 thread p50", "a call (µs, median)"),
    ("The call while the threads are busy, in µs", "8 busy p99", "with 8 busy threads (µs, p99)"),
    ("End to end", "CPU ms / 1,000", "CPU of 1,000 events (ms)"),
    ("End to end", "events/s", "events a second"),
)


def newest_results() -> Path:
    """Return the page of the newest whole run of `make bench`."""
    return max((ROOT / "benchmarks" / "results").glob("????-??-??.md"))


def peers_table() -> str:
    """Return the newest measured numbers of this client and of its peers."""
    text = newest_results().read_text(encoding="utf-8")
    found = [_column(text, heading, column) for heading, column, _ in _COLUMNS]
    head = " | ".join(["", *(name for _, _, name in _COLUMNS)])
    rows = [" | ".join([name, *(column[client] for column in found)]) for client, name in _CLIENTS.items()]
    return "\n".join([f"|{head} |", "| --- |" + " ---: |" * len(_COLUMNS), *(f"| {row} |" for row in rows)])


def _column(text: str, heading: str, column: str) -> Dict[str, str]:
    first_table = re.search(r"(^\|.*\n)+", text.partition(f"## {heading}\n")[2], re.MULTILINE)
    assert first_table is not None
    lines = first_table[0].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    place = table[0].index(column)
    return {row[0]: row[place] for row in table[2:]}


# -- docs/evidence.md -------------------------------------------------------------------------------

#: So many of those that are better are named.
_NAMED = 5
_EXIT = "Exit with 10,000 events just made"
#: Heading in the results, column there, what it is, and whether less is better.
_COMPARED = (
    ("The call, in µs", "1 thread p50", "a call, median (µs)", True),
    ("The call, in µs", "8 threads p99.9", "a call with 8 threads, p99.9 (µs)", True),
    ("The call while the threads are busy, in µs", "8 busy p99", "a call in 8 busy threads, p99 (µs)", True),
    (
        "The call while the threads are busy, in µs",
        "8 busy slowdown",
        "what 8 busy threads take longer",
        True,
    ),
    ("End to end", "events/s", "events a second", False),
    ("End to end", "events/s at 50 ms", "events a second at 50 ms round trips", False),
    ("End to end", "CPU ms / 1,000", "CPU of 1,000 events (ms)", True),
    ("End to end", "bytes sent", "bytes sent for an event", True),
    ("End to end", "bytes queued", "bytes of a queued event", True),
    ("End to end", "import ms", "import (ms)", True),
    ("Out of a saturated process", "8 threads, light", "events a second of 8 threads that never rest", False),
    ("Cold start, in ms", "base install: first event", "a process's first event (ms)", True),
    (
        "Cold start, in ms",
        "rich, click, trio: first event",
        "the same beside rich, click and trio (ms)",
        True,
    ),
    (
        _EXIT,
        "seconds until the process ends",
        "an exit that delivers 10,000 events just made (s)",
        True,
    ),
    ("On the wire", "header bytes", "header bytes of a request", True),
)


def section(heading: str) -> str:
    """Return the first table of a section of the newest results; its text, if it has no table."""
    text = newest_results().read_text(encoding="utf-8").partition(f"## {heading}\n")[2]
    if not text:
        return "Not in these results: the next `make bench` measures it."
    text = text.partition("\n## ")[0]
    table = re.search(r"(^\|.*\n)+", text + "\n", re.MULTILINE)
    return (text if table is None else table[0]).strip()


def circumstances() -> str:
    """Return the date, the machine and the versions of the newest results."""
    newest = newest_results()
    lines = newest.read_text(encoding="utf-8").partition("\n![")[0].splitlines()
    said = [line for line in lines if line.startswith("- ") and "how it is measured" not in line]
    return "\n".join([f"- `benchmarks/results/{newest.stem}.json`", *said])


def missed_goals() -> str:
    """Return the goals that the newest results miss."""
    lines = section("Goals").splitlines()
    missed = [line for line in lines[2:] if "missed" in line]
    return "\n".join([*lines[:2], *missed]) if missed else "None."


def where_peers_win() -> str:
    """Return each compared number in which another client is better than this one."""
    text = newest_results().read_text(encoding="utf-8")
    rows = []
    for heading, column, what, is_less_better in _COMPARED:
        if f"## {heading}\n" not in text:
            continue
        found = _column(text, heading, column)
        own = _number(found["windback"])
        peers = {name: _number(value) for name, value in found.items() if not _is_own(name)}
        if heading == _EXIT:
            arrived, made = (_column(text, heading, name) for name in ("arrived", "of"))
            peers = {name: value for name, value in peers.items() if arrived[name] == made[name]}
        better = {
            name: value
            for name, value in peers.items()
            if value is not None and own is not None and (value < own if is_less_better else value > own)
        }
        best_first = sorted(better, key=better.__getitem__, reverse=not is_less_better)
        named = [f"{name} {found[name].partition(' (')[0]}" for name in best_first[:_NAMED]]
        others = [f"{len(better) - _NAMED} more"] if len(better) > _NAMED else []
        rows.append(f"| {what} | {found['windback']} | {', '.join(named + others) or '-'} |")
    return "\n".join(["| | windback | better |", "| --- | ---: | --- |", *rows])


def _is_own(name: str) -> bool:
    """Whether a row is this client in another set-up, or no client that an application could use."""
    return name.startswith(("windback", "AsyncWindback")) or name in {"floor", "confluent-kafka-produce"}


def _number(cell: str) -> Optional[float]:
    found = re.match(r"[\d.,e+-]*\d", cell)
    return float(found[0].replace(",", "")) if found else None


def three_numbers() -> str:
    """Return three measured numbers for the README, with the command."""
    text = newest_results().read_text(encoding="utf-8")
    call, cpu, rate = (
        _column(text, heading, column)["windback"]
        for heading, column in (
            ("The call, in µs", "1 thread p50"),
            ("End to end", "CPU ms / 1,000"),
            ("End to end", "events/s"),
        )
    )
    return (
        f"`make bench` measures it beside its peers: a call takes {call} µs, 1,000 events take {cpu} ms\n"
        f"of CPU until they are delivered, and a process sends {rate} events a second.\n"
        "[The evidence](docs/evidence.md) has the tables, and where others win."
    )


#: What is written between `<!-- NAME -->` and `<!-- /NAME -->` of which page.
PARTS: Dict[str, Dict[str, Callable[[], str]]] = {
    "../README.md": {"numbers": three_numbers},
    "evidence.md": {
        "circumstances": circumstances,
        "peers win": where_peers_win,
        "missed": missed_goals,
        **{
            heading: partial(section, heading)
            for heading in (
                "The call, in µs",
                "The call while the threads are busy, in µs",
                "End to end",
                "Out of a saturated process",
                "In an event loop",
                "Cold start, in ms",
                _EXIT,
                "On the wire",
                "A queued event, by events queued",
                "Lost, doubled, failed",
            )
        },
    },
    "index.md": {"peers": peers_table},
    "reference.md": {"options": options_table, "statuses": statuses_table},
}


def generated(page: str) -> str:
    """Return the text of *page* with its generated parts as they should be."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, make in PARTS[page].items():
        head, _, rest = text.partition(f"<!-- {name} -->\n")
        _, mark, tail = rest.partition(f"<!-- /{name} -->")
        if not mark:
            message = f"{page} has no part between <!-- {name} --> and <!-- /{name} -->"
            raise SystemExit(message)
        text = f"{head}<!-- {name} -->\n{make()}\n{mark}{tail}"
    return text


def write_texts(site: Path) -> None:
    """Put the Markdown of each page beside its HTML, and `llms.txt`, which lists them, at the top."""
    described = [
        "# windback",
        "",
        "> The Python SDK of Windback. `track_event` queues an event; a worker sends, retries and counts.",
    ]
    for page in sorted(DOCS.rglob("*.md")):
        name = page.relative_to(DOCS).as_posix()
        text = page.read_text(encoding="utf-8")
        target = site / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        described.append(f"- [{title[1] if title else name}]({name})")
    (site / "llms.txt").write_text("\n".join([*described[:3], "", *described[3:]]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--site"]:
        write_texts(Path(sys.argv[2]))
    else:
        for each in PARTS:
            (DOCS / each).write_text(generated(each), encoding="utf-8")
            sys.stdout.write(f"{each} is up to date\n")
