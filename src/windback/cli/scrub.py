"""`windback scrub`: what scrubbers make of texts, tried out on a terminal. Sends nothing."""

from __future__ import annotations

import sys
from typing import Dict, List, Sequence

import orjson
import typer

from windback.event.scrubbing import Scrubbing, dumped
from windback.scrub import NAMED, STANDARD, Scrubber

from .common import command, main_app
from .terminal import write_line


def scrubbers_of(names: Sequence[str]) -> List[Scrubber]:
    """Return the scrubbers of these names, in the order in which STANDARD has them. Raises BadParameter."""
    wanted: Dict[str, None] = {}
    for name in ",".join(names).split(","):
        if name == "standard":
            wanted.update(dict.fromkeys(each for each, scrubber in NAMED.items() if scrubber in STANDARD))
        elif name in NAMED:
            wanted[name] = None
        elif names:
            known = ", ".join(("standard", *NAMED))
            raise typer.BadParameter(f"{name!r} is not one of {known}")
    return [scrubber for name, scrubber in NAMED.items() if name in wanted]


def _check(names: List[str]) -> List[str]:
    scrubbers_of(names)
    return names


#: Of what sends.
SCRUB: List[str] = typer.Option(
    [],
    "--scrub",
    metavar="NAMES",
    callback=_check,
    show_default=False,
    help=f"replace private data: standard, or some of {', '.join(NAMED)}, with commas between them",
)


def scrubbing_of(names: Sequence[str]) -> Scrubbing:
    """Return what runs the scrubbers of these names."""
    return Scrubbing(scrubbers_of(names), lambda _, __: None)  # none of them raises


@command(
    main_app,
    "scrub",
    "show what scrubbers make of a text, or of the properties of an event in JSON",
    "Without TEXT it reads lines from standard input. Without --scrub it takes standard. Sends nothing.",
)
def scrub(
    texts: List[str] = typer.Argument(
        None, metavar="[TEXT]...", show_default=False, help="a text, or the properties of an event in JSON"
    ),
    names: List[str] = SCRUB,
) -> int:
    """Run the command; the exit code."""
    scrubbing = scrubbing_of(names or ["standard"])
    for text in texts or (line.rstrip("\r\n") for line in sys.stdin):
        write_line(_scrubbed(text, scrubbing))
    return 0


def _scrubbed(text: str, scrubbing: Scrubbing) -> str:
    try:
        properties: object = orjson.loads(text)
    except ValueError:
        properties = None
    if not isinstance(properties, dict):
        return scrubbing.text(text, "track_event", ("properties", "text"))
    fields = scrubbing.fields("track_event", b'{"properties":%b}' % text.encode())
    return text if fields is None else dumped(fields)[len('{"properties":') : -1].decode()
