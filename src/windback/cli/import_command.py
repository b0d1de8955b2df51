"""`windback import`: the command and its options. `importing` does the work."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import List, Optional, Tuple

import typer

from .common import BASE_URL, COMPRESS, CommandError, above_0, command, json_option, main_app
from .importing import Given, Import, Report
from .rows import KINDS, Columns, Lines
from .scrub import SCRUB

#: The format of a file, by the end of its name.
_FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}


def _property(text: str) -> Tuple[str, Tuple[str, str]]:
    """Read COLUMN[=NAME][:KIND]."""
    head, colon, kind = text.rpartition(":")
    if not colon or kind not in KINDS:
        head, kind = text, "text"
    column, _, name = head.partition("=")
    if not column:
        raise typer.BadParameter(f"{text!r} is not COLUMN, COLUMN=NAME or COLUMN=NAME:KIND")
    return column, (name or column, kind)


def _check_maps(texts: List[str]) -> List[str]:
    for text in texts:
        _property(text)
    return texts


def _check_delimiter(text: str) -> str:
    text = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if len(text) != 1 or text in '"\r\n':
        raise typer.BadParameter(f"{text!r} is not one character; 'tab' is one")
    return text


@command(
    main_app,
    "import",
    "send the rows of a CSV file, or of JSON lines, as events",
    "Rows are sent in chunks, under idempotency keys; progress is noted in FILE.windback. After a kill, an "
    "outage or Ctrl-C, the same command continues from there. Chunks that were being sent at that moment "
    "are sent again under the same keys: their rows count once where the API honours idempotency keys. Bad "
    "rows, and rows that the API rejects, are listed with their lines, and don't stop the import. The key "
    "is read from WINDBACK_API_KEY. Status 0 if all rows were sent, 1 if not, 2 if it could not start.",
)
def import_file(
    path: Path = typer.Argument(
        ...,
        metavar="FILE",
        show_default=False,
        help=("a CSV file whose first line has the names, or a JSON object per line"),
    ),
    event: Optional[str] = typer.Option(None, "--event", metavar="NAME", help="the name of all events"),
    event_column: str = typer.Option(
        "event", "--event-column", metavar="COLUMN", help="the column with the name of each event"
    ),
    email_column: str = typer.Option(
        "customer_email", "--email-column", metavar="COLUMN", help="the column with the customer's address"
    ),
    timestamp_column: str = typer.Option(
        "timestamp",
        "--timestamp-column",
        metavar="COLUMN",
        help="the column with the time, in ISO 8601 (default for a row without one: when the import began)",
    ),
    is_utc: bool = typer.Option(False, "--utc", help="times without a zone, and dates, are in UTC"),
    maps: List[str] = typer.Option(
        [],
        "--map",
        metavar="COLUMN=NAME:KIND",
        callback=_check_maps,
        show_default=False,
        help="make this column this property; NAME and KIND (text, int, float, bool, json) are optional; "
        "can be repeated (default: all other columns, unchanged)",
    ),
    kind: Optional[str] = typer.Option(
        None, "--format", metavar="FORMAT", help="csv or jsonl (default: by the name of the file)"
    ),
    delimiter: Optional[str] = typer.Option(
        None,
        "--delimiter",
        metavar="CHAR",
        help=("the character between the cells of CSV (default: a comma; for .tsv a tab)"),
    ),
    encoding: Optional[str] = typer.Option(
        None,
        "--encoding",
        metavar="NAME",
        help=("the file's encoding (default: that of its byte order mark, else UTF-8)"),
    ),
    is_dry: bool = typer.Option(
        False, "--dry-run", help="send nothing: check all rows, and show the first events"
    ),
    rate: Optional[float] = typer.Option(
        None, "--rate", metavar="N", callback=above_0, help="events per second, at most"
    ),
    state: Optional[Path] = typer.Option(
        None, "--state", metavar="PATH", help="where to note the progress (default: FILE.windback)"
    ),
    restart: bool = typer.Option(
        False, "--restart", help="forget the progress, and send all rows, also those sent before"
    ),
    report: Optional[Path] = typer.Option(
        None, "--report", metavar="PATH", help="list the bad rows in this file, as JSON lines"
    ),
    scrubbers: List[str] = SCRUB,
    base_url: Optional[str] = BASE_URL,
    compress: bool = COMPRESS,
    json: bool = json_option(),
) -> int:
    """Run the command. Returns the exit code."""
    kind = kind or _FORMATS.get(path.suffix.lower())
    if kind not in ("csv", "jsonl"):
        raise CommandError(f"the format of {path} is not known: add --format csv or --format jsonl")
    if delimiter is None:
        delimiter = "tab" if path.suffix.lower() == ".tsv" else ","
    given = Given(
        path=path,
        columns=Columns(
            event=event,
            event_column=event_column,
            email_column=email_column,
            timestamp_column=timestamp_column,
            properties=dict(map(_property, maps)) if maps else None,
            is_utc=is_utc,
        ),
        kind=kind,
        delimiter=_check_delimiter(delimiter),
        is_dry=is_dry,
        rate=rate,
        state=state or path.with_name(f"{path.name}.windback"),
        restart=restart,
        scrubbers=scrubbers,
        base_url=base_url,
        compress=compress,
        json=json,
    )
    with contextlib.closing(Lines(path, encoding)) as lines, contextlib.closing(Report(report)) as bad_rows:
        import_ = Import(given, lines, bad_rows)
        return import_.try_out() if is_dry else import_.run()
