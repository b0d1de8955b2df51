"""The rows of a file that is imported: CSV or JSON lines, read line by line, in constant memory."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import os
from pathlib import Path
from typing import (
    BinaryIO,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    TextIO,
    Tuple,
    TypeVar,
)

import orjson

from .common import CommandError

#: Far more than an event may have: a longer line is not a row but another kind of file.
MAX_LINE = 1_000_000

#: A byte order mark identifies the encoding. The longer ones first: UTF-32's starts as UTF-16's does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


_NEWLINES = ("\n", b"\n")
Line = TypeVar("Line", str, bytes)


class UnreadableError(Exception):
    """Nothing after this place can be trusted."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")


class _LongLineError(Exception):
    """One line is too long; the next may be a row again."""


class Row(NamedTuple):
    """The contents of one line, or, in CSV with line ends between quotes, of several.

    line: the first of them, from 1. problem: why there are no fields.
    """

    line: int
    fields: Mapping[str, object] = {}
    problem: str = ""


class Lines:
    """The lines of a file, decoded, with a digest of all lines that were read.

    Raises CommandError for a file that can't be opened and for an unknown encoding, and UnreadableError.
    """

    def __init__(self, path: Path, encoding: Optional[str]) -> None:
        try:
            self.encoding = codecs.lookup(encoding).name if encoding else None
            "\n".encode(self.encoding or "utf-8")
        except (LookupError, ValueError):  # unknown, or not of texts, such as base64
            raise CommandError(f"the encoding {encoding!r} is not known") from None
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from None
        self.size = os.fstat(self._file.fileno()).st_size
        start = self._file.read(4)
        found = next((name for mark, name in _MARKS if start.startswith(mark)), None)
        if found and self.encoding and not self.encoding.startswith(found):
            self._file.close()
            raise CommandError(f"{path} starts with the byte order mark of {found}, not {encoding}")
        self.encoding = found or self.encoding or "utf-8"
        # In UTF-16 and -32 the mark shows the byte order and must be kept; in UTF-8 it must be skipped.
        self._file.seek(3 if start.startswith(codecs.BOM_UTF8) else 0)
        self.is_empty = self.size == self._file.tell()
        self.count = 0
        self._digest = hashlib.sha256()
        # Where a line end is one byte, each line can be decoded, and can fail, separately.
        self._text: Optional[TextIO] = None
        if "\n".encode(self.encoding) != b"\n":
            self._text = io.TextIOWrapper(self._file, encoding=self.encoding, newline="")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._decoded() if self._text is None else self._from_text(self._text)
        if not line:
            raise StopIteration
        self.count += 1
        if "\0" in line:
            raise UnreadableError(
                self.count,
                (f"contains zeros, so it is not {self.encoding} text; choose the encoding with --encoding"),
            )
        self._digest.update(line.encode("utf-8", "surrogatepass"))
        return line

    def _decoded(self) -> str:
        raw = self._whole(self._file.readline)
        try:
            assert self.encoding is not None
            return raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            byte = f"byte 0x{raw[error.start]:02X} in column {error.start + 1}"
            raise UnreadableError(
                self.count + 1,
                f"{byte} is not {self.encoding}; choose the file's encoding, such as --encoding cp1252",
            ) from None

    def _from_text(self, text: TextIO) -> str:
        try:
            return self._whole(text.readline)
        except UnicodeError:
            raise UnreadableError(
                self.count + 1, f"is not {self.encoding}; choose the file's encoding with --encoding"
            ) from None

    def _whole(self, readline: Callable[[int], Line]) -> Line:
        """Return the next line. One that is too long is read to its end, and raises _LongLineError."""
        line = readline(MAX_LINE)
        if len(line) < MAX_LINE or line[-1:] in _NEWLINES:
            return line
        while line and line[-1:] not in _NEWLINES:
            line = readline(MAX_LINE)
        self.count += 1
        raise _LongLineError

    def position(self) -> int:
        """Return approximately how many bytes of the file were read."""
        return self._file.tell()

    def skip_to(self, count: int) -> str:
        """Read until *count* lines were read; return the digest of all of them."""
        while self.count < count:
            try:
                next(self)
            except StopIteration:
                break
            except _LongLineError:
                pass
        return self.digest()

    def digest(self) -> str:
        """Return a fingerprint of all lines so far."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        (self._text or self._file).close()


class CsvRows:
    """The rows of a CSV file, whose first line names the columns. Raises CommandError and UnreadableError."""

    def __init__(self, lines: Lines, delimiter: str) -> None:
        self._lines = lines
        self._delimiter = delimiter
        self.columns: List[str] = []
        try:
            for cells in self._reader():
                self.columns = [cell.strip() for cell in cells]
                if self.columns:
                    break
        except (csv.Error, _LongLineError) as error:
            raise CommandError(
                f"line {lines.count} should contain the names of the columns, but is not CSV: {error}"
            ) from None
        twice = {name for name in self.columns if self.columns.count(name) > 1}
        if twice:
            raise CommandError(f"line {lines.count} has a column twice: {', '.join(sorted(twice))}")

    def _reader(self) -> Iterator[List[str]]:
        return csv.reader(self._lines, delimiter=self._delimiter, strict=True)

    def __iter__(self) -> Iterator[Row]:
        reader = self._reader()
        width = len(self.columns)
        while True:
            line = self._lines.count + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                hint = "; a quote that is never closed?" if self._lines.count > line else ""
                yield Row(line, problem=f"not CSV: {error}{hint}")
                continue
            except _LongLineError:
                reader = self._reader()
                yield Row(line, problem=_TOO_LONG)
                continue
            if len(cells) == width:
                yield Row(line, {name: cell for name, cell in zip(self.columns, cells) if cell})
            elif cells:
                yield Row(line, problem=f"{len(cells)} cells, and there are {width} columns")


_TOO_LONG = f"more than {MAX_LINE:,} characters"


class JsonRows:
    """The rows of a file with a JSON object on each line. Raises UnreadableError."""

    #: Unknown until they are read.
    columns: Optional[List[str]] = None

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[Row]:
        while True:
            number = self._lines.count + 1
            try:
                line = next(self._lines)
            except StopIteration:
                return
            except _LongLineError:
                yield Row(number, problem=_TOO_LONG)
                continue
            if line.strip():
                yield _parsed(number, line)


def _parsed(number: int, line: str) -> Row:
    try:
        value: object = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Row(number, problem=f"not JSON: {str(error).partition(': line ')[0]}")
    if not isinstance(value, dict):
        return Row(number, problem=f"expected a JSON object, not a {type(value).__name__}")
    return Row(number, value)


# -- from a row to an event --------------------------------------------------------------------------


class BadRowError(Exception):
    """A row misses something, or has a value that can't be used."""


def _flag(text: str) -> object:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]


#: The conversions of a text.
KINDS: Mapping[str, Callable[[str], object]] = {
    "text": str,
    "int": int,
    "float": float,
    "bool": _flag,
    "json": orjson.loads,
}


class Columns(NamedTuple):
    """The meaning of each column.

    event: the name of all events; None: it is in *event_column*. properties: the name and the kind of
    the property for each column; None: all others, under their own names, unchanged.
    """

    event: Optional[str]
    event_column: str
    email_column: str
    timestamp_column: str
    properties: Optional[Mapping[str, Tuple[str, str]]]
    is_utc: bool

    def missing(self, columns: List[str]) -> List[str]:
        """Return the required columns that are missing."""
        needed = [self.email_column, *(self.properties or ())]
        if self.event is None:
            needed.append(self.event_column)
        return [name for name in needed if name not in columns]

    def arguments(
        self, fields: Mapping[str, object], now: str
    ) -> Tuple[object, object, Dict[str, object], object]:
        """Return event, customer_email, properties and timestamp of a row. Raises BadRowError."""
        event = self.event
        if event is None and self.event_column not in fields:
            raise BadRowError(f"no {self.event_column}")
        if self.email_column not in fields:
            raise BadRowError(f"no {self.email_column}")
        timestamp = fields.get(self.timestamp_column, now)
        if self.is_utc and isinstance(timestamp, str):
            timestamp = _in_utc(timestamp)
        return (
            fields[self.event_column] if event is None else event,
            fields[self.email_column],
            self._properties(fields),
            timestamp,
        )

    def _properties(self, fields: Mapping[str, object]) -> Dict[str, object]:
        if self.properties is not None:
            return {
                name: _made(column, fields[column], kind)
                for column, (name, kind) in self.properties.items()
                if column in fields
            }
        taken = {self.email_column, self.timestamp_column, "properties"}
        if self.event is None:
            taken.add(self.event_column)
        properties = {name: value for name, value in fields.items() if name not in taken}
        whole = fields.get("properties", {})
        if isinstance(whole, str):
            whole = _made("properties", whole, "json")
        if not isinstance(whole, dict):
            raise BadRowError("properties: must be an object")
        properties.update(whole)
        return properties


def _made(column: str, value: object, kind: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return KINDS[kind](value)
    except (ValueError, KeyError):
        raise BadRowError(f"{column}: {value[:40]!r} is not {kind}") from None


def _in_utc(text: str) -> str:
    if len(text) == len("2025-12-01"):
        return f"{text}T00:00:00Z"
    has_zone = text[-1:] in "Zz" or "+" in text[10:] or "-" in text[10:]
    return text if has_zone else f"{text}Z"
