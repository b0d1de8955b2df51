"""Output for people: lines, tables, a progress bar. Colours and bars are for terminals only."""

from __future__ import annotations

import sys
from typing import IO, List, Mapping, Optional, Sequence

import rich.progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from windback.text import shown

#: Wider than any table: a pipe has no width of 80 columns.
_NO_END = 100_000


def console(file: IO[str]) -> Console:
    """Return a console for *file*: without codes if it is not a terminal, whatever the environment."""
    is_terminal = file.isatty()
    return Console(
        file=file,
        force_terminal=is_terminal,
        width=None if is_terminal else _NO_END,
        highlight=False,
        emoji=False,
    )


def is_shown() -> bool:
    """Whether there is a terminal to show progress on."""
    return sys.stderr.isatty()


def write_line(text: str) -> None:
    """Write one line of text, without characters that control a terminal."""
    sys.stdout.write(printable(text) + "\n")


def printable(text: str) -> str:
    """Return a text of a server or a file without characters that control a terminal."""
    encoding = sys.stdout.encoding or "utf-8"
    safe = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown(safe).encode(encoding, "backslashreplace").decode(encoding)


def print_table(
    rows: Sequence[Sequence[object]], *, right: Sequence[int] = (), styles: Optional[Mapping[str, str]] = None
) -> None:
    """Write rows in columns; the first row has their names.

    right: the columns that are numbers. styles: the style of words in the first column on a terminal.
    """
    texts = [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, name in enumerate(texts[0]):
        table.add_column(Text(name), justify="right" if place in right else "left", overflow="fold")
    for row in texts[1:]:
        table.add_row(Text(row[0], style=(styles or {}).get(row[0], "")), *map(Text, row[1:]))
    out = console(sys.stdout)
    with out.capture() as drawn:
        out.print(table)
    sys.stdout.writelines(line.rstrip() + "\n" for line in drawn.get().splitlines())


class Progress:
    """A progress bar on a terminal; elsewhere nothing.

    total: the final value for `show`. text: the text beside the bar; None: the count of *unit*.
    """

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._unit = unit
        self._bar: Optional[rich.progress.Progress] = None
        if is_shown():
            columns: List[rich.progress.ProgressColumn] = [
                rich.progress.TextColumn("{task.description}:"),
                rich.progress.BarColumn(),
                rich.progress.TaskProgressColumn(),
                rich.progress.TextColumn("{task.fields[text]}", markup=False),
                rich.progress.TimeRemainingColumn(),
            ]
            self._bar = rich.progress.Progress(*columns, console=console(sys.stderr), transient=True)
            self._task = self._bar.add_task(what, total=total, text="")

    def show(self, done: int, text: Optional[str] = None) -> None:
        """Draw it again, at most a few times per second."""
        if self._bar is not None:
            total = self._bar.tasks[0].total or 0
            text = f"{done:,} of {total:,.0f} {self._unit}" if text is None else text
            self._bar.update(self._task, completed=done, text=text)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()
