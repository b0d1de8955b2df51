"""Write the generated parts of the docs: `python docs/generate.py`. A test fails when they are old."""

from __future__ import annotations

import sys
from pathlib import Path

from windback.config import OPTIONS
from windback.delivery.verdict import CLASSES, STATUSES, Action, Rule
from windback.options import Option

REFERENCE = Path(__file__).with_name("reference.md")


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


#: What is written between `<!-- NAME -->` and `<!-- /NAME -->`.
PARTS = {"options": options_table, "statuses": statuses_table}


def generated(text: str) -> str:
    """Return *text* with its generated parts as they should be."""
    for name, make in PARTS.items():
        head, _, rest = text.partition(f"<!-- {name} -->\n")
        _, mark, tail = rest.partition(f"<!-- /{name} -->")
        if not mark:
            message = f"{REFERENCE.name} has no part between <!-- {name} --> and <!-- /{name} -->"
            raise SystemExit(message)
        text = f"{head}<!-- {name} -->\n{make()}\n{mark}{tail}"
    return text


if __name__ == "__main__":
    REFERENCE.write_text(generated(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{REFERENCE.name} is up to date\n")
