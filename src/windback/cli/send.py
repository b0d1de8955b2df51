"""`windback send`: send one event now."""

from __future__ import annotations

import os
from typing import Dict, List, Optional

import orjson
import typer

from windback.errors import InvalidEventError
from windback.event.encode import encode
from windback.event.scrubbing import scrub_event

from .. import clock
from .common import (
    BASE_URL,
    MAX_EVENT_BYTES,
    CommandError,
    command,
    event_as_it_is,
    json_option,
    main_app,
    print_json,
    said,
)
from .scrub import SCRUB, scrubbing_of
from .terminal import write_line


def properties_of(texts: List[str]) -> Dict[str, object]:
    """Read `-p key=value`: a JSON value is used as such, any other is a text. Raises BadParameter."""
    properties: Dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{text!r} is not key=value")
        if name in properties:
            raise typer.BadParameter(f"{name!r} is given twice")
        try:
            properties[name] = orjson.loads(value)
        except orjson.JSONDecodeError:
            properties[name] = value
    return properties


def _check(texts: List[str]) -> List[str]:
    properties_of(texts)
    return texts


@command(
    main_app,
    "send",
    "send one event, and print the API's answer",
    "The key is read from WINDBACK_API_KEY. Exit code 0 if the API accepted it, 1 if not, 2 if nothing "
    "could be sent.",
)
def send(
    event: str = typer.Argument(
        ..., metavar="EVENT", show_default=False, help=("the event's name, such as login")
    ),
    email: str = typer.Option(
        ..., "--email", metavar="ADDRESS", show_default=False, help=("the customer's email address")
    ),
    texts: List[str] = typer.Option(
        [],
        "--property",
        "-p",
        metavar="KEY=VALUE",
        callback=_check,
        show_default=False,
        help='a property; a JSON VALUE, such as 3, true or "3", is used as such, any other as text; can be '
        "repeated",
    ),
    timestamp: Optional[str] = typer.Option(
        None, "--timestamp", metavar="TIME", help="when it happened, in ISO 8601 with a zone (default: now)"
    ),
    scrubbers: List[str] = SCRUB,
    base_url: Optional[str] = BASE_URL,
    json: bool = json_option(),
) -> int:
    """Run the command. Returns the exit code."""
    from .sending import BatchSender, configuration

    try:
        record = encode(event, email, properties_of(texts), timestamp, MAX_EVENT_BYTES)
        if scrubbers:
            record = scrub_event(record, scrubbing_of(scrubbers), MAX_EVENT_BYTES)
    except InvalidEventError as error:
        raise CommandError(f"{error.path}: {error.detail}") from None
    with said(""):
        sender = BatchSender(configuration(base_url), clock.sleep, retries=2)
    try:
        outcome = sender.send([record], os.urandom(16).hex())
    finally:
        sender.close()
    trouble = outcome.rejected[0].reason if outcome.rejected else outcome.trouble
    if json:
        print_json({"sent": outcome.delivered, "event": event_as_it_is(record), "trouble": trouble})
    elif trouble is None:
        write_line(f"sent: {record.decode()}")
    if trouble is not None:
        raise CommandError(trouble, status=1)
    return 0
