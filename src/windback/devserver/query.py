"""The search language: one parser for the page, the control plane and `wait`. Pure.

    event:login email:*@acme.com plan:pro mrr>5000 -event:api_call status:429 after:-10m "free text"

Terms are separated by blanks and all must match; a minus negates one. A name that is not a column is a
property. docs/dev-server.md has the whole of it.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import (
    Callable,
    Dict,
    FrozenSet,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    cast,
)

from .clock import in_utc, moment_of
from .errors import ApiError
from .labels import inbox_named


class Subject(Protocol):
    """What can be searched for: an event or a request."""

    def values(self, column: str) -> Sequence[object]:
        """What it has under the name of a column; nothing when it has none."""
        ...

    def properties(self) -> Sequence[Mapping[str, object]]:
        """The properties of the event, or of each event of a request."""
        ...

    def text(self) -> str:
        """All of its text, for words without a field."""
        ...


class Term(NamedTuple):
    """One condition of a query."""

    #: The name of a column, "" for a word without a field, or "properties.…".
    field: str
    operator: str
    value: str
    negated: bool
    #: As it was written.
    source: str
    holds: Callable[[Subject], bool]

    def matches(self, subject: Subject) -> bool:
        """Whether *subject* fulfils it."""
        return self.holds(subject) is not self.negated


class Query(NamedTuple):
    """All conditions; without any, everything matches."""

    terms: Tuple[Term, ...]

    def matches(self, subject: Subject) -> bool:
        """Whether *subject* fulfils them all."""
        return all(term.matches(subject) for term in self.terms)

    def failing(self, subject: Subject) -> List[Term]:
        """The conditions that *subject* does not fulfil."""
        return [term for term in self.terms if not term.matches(subject)]

    @property
    def fields(self) -> FrozenSet[str]:
        """The names that the query asks for."""
        return frozenset(term.field for term in self.terms)

    def exact(self, field: str) -> Optional[str]:
        """The one value that *field* must have, if the query requires one."""
        for term in self.terms:
            if term.field == field and term.operator == ":" and not term.negated and "*" not in term.value:
                return term.value
        return None

    def time(self, field: str) -> Optional[str]:
        """The time of `after` or `before`, as ISO 8601 with microseconds."""
        return next((term.value for term in self.terms if term.field == field and not term.negated), None)


class _Token(NamedTuple):
    start: int
    field: str
    operator: str
    value: str
    negated: bool
    quoted: bool
    source: str
    #: Where the value starts.
    value_at: int


#: Characters of a query.
MAX_LENGTH = 2_000

#: Columns by how they are compared.
_TEXTS = ("event", "name", "batch", "request", "idempotency", "method", "path", "fault", "customer_id")
_FOLDED = ("email", "customer")  # the case of the letters does not count
_NUMBERS = ("id", "attempt", "delay", "duration")
_TIMES = ("after", "before")
_ALIASES = {
    "customer_email": "email",
    "customer_name": "name",
    "batch_id": "batch",
    "request_id": "request",
    "idempotency_key": "idempotency",
    "delay_s": "delay",
    "duration_ms": "duration",
    "inbox": "key",
}
_COLUMNS = frozenset({*_TEXTS, *_FOLDED, *_NUMBERS, *_TIMES, "status", "key", "has"})

_PROPERTIES = "properties."

_field = re.compile(r"([A-Za-z0-9_$.-]+)(>=|<=|[:=<>])").match
_blank = re.compile(r"\s").match
_status = re.compile(r"stored|ignored|none|[1-5](?:\d\d|xx)").fullmatch
_ago = re.compile(r"-(\d+(?:\.\d+)?)([smhd])").fullmatch
_epoch = re.compile(r"\d{9,11}(?:\.\d+)?").fullmatch
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse(text: str, now: float) -> Query:
    """The query in *text*; times like ``-10m`` count from *now*.

    Raises `ApiError` 400 that names the column.
    """
    if len(text) > MAX_LENGTH:
        raise bad(MAX_LENGTH, f"the query is longer than {MAX_LENGTH} characters")
    return Query(tuple(_term(token, now) for token in _tokens(text) if not _is_everything(token)))


def named(event: str) -> Term:
    """The condition that the event has exactly this name."""
    return Term("event", ":", event, False, f"event:{event}", _column("event", _same(event)))  # noqa: FBT003 - a tuple


def bad(column: int, problem: str) -> ApiError:
    """400 for a query with a mistake at *column*, which counts from 0 here and from 1 in the answer."""
    return ApiError(400, "INVALID_QUERY", f"column {column + 1}: {problem}", extra={"column": column + 1})


def _tokens(text: str) -> List[_Token]:
    tokens: List[_Token] = []
    at = 0
    while at < len(text):
        if _blank(text, at):
            at += 1
            continue
        start = at
        negated = text[at] == "-"
        at += negated
        if at == len(text) or _blank(text, at):
            raise bad(start, "a term is missing after the minus")
        found = _field(text, at)
        field, operator = (found[1], found[2]) if found else ("", "")
        if found:
            at = found.end()
            if at == len(text) or _blank(text, at):
                raise bad(at, f"a value is missing after {field}{operator}")
        value_at = at
        quoted = text[at] == '"'
        value, at = _quoted(text, at) if quoted else _word(text, at)
        if at < len(text) and not _blank(text, at):
            raise bad(at, "a blank is missing after the closing quote")
        tokens.append(
            _Token(
                start,
                field,
                ":" if operator == "=" else operator,
                value,
                negated,
                quoted,
                text[start:at],
                value_at,
            )
        )
    return tokens


def _is_everything(token: _Token) -> bool:
    return token.source == "*"


def _word(text: str, at: int) -> Tuple[str, int]:
    end = at
    while end < len(text) and not _blank(text, end):
        end += 1
    return text[at:end], end


def _quoted(text: str, at: int) -> Tuple[str, int]:
    start, value = at, ""
    at += 1
    while at < len(text):
        if text[at] == '"':
            return value, at + 1
        if text[at] == "\\" and text[at + 1 : at + 2] in ('"', "\\"):
            at += 1
        value += text[at]
        at += 1
    raise bad(start, "the closing quote is missing")


def _term(token: _Token, now: float) -> Term:
    field = _ALIASES.get(token.field, token.field)
    value = token.value
    holds: Callable[[Subject], bool]
    if not field:
        holds = _anywhere(value, wild=not token.quoted)
    elif field not in _COLUMNS:
        path = field[len(_PROPERTIES) :] if field.startswith(_PROPERTIES) else field
        if not path:
            raise bad(token.start, "the name of a property is missing")
        field = _PROPERTIES + path
        holds = _property(path, token)
    elif field in _TIMES:
        value = in_utc(_time(token, now))
        holds = _after(value) if field == "after" else _before(value)
    elif field in _NUMBERS:
        holds = _column(field, _compared(token, _number(token)))
    elif token.operator != ":":
        raise bad(token.start, f"{token.field} has no order; use {token.field}:{value}")
    elif field == "has":
        holds = _has(_ALIASES.get(value, value))
    else:
        if field == "key":
            value = inbox_named(value)
        holds = _column(field, _text_column(field, value, token))
    return Term(field, token.operator, value, token.negated, token.source, holds)


def _text_column(field: str, value: str, token: _Token) -> Callable[[object], bool]:
    if field == "key":
        return _same(value)
    if field != "status":
        return _text_matcher(token, fold=field in _FOLDED)
    if not _status(value):
        raise bad(token.value_at, "a status is stored, ignored, none, a number such as 429, or 4xx")
    return like(value.replace("xx", "*"), fold=False)


def _column(name: str, test: Callable[[object], bool]) -> Callable[[Subject], bool]:
    return lambda subject: any(test(value) for value in subject.values(name))


def _has(name: str) -> Callable[[Subject], bool]:
    if name in _COLUMNS:
        return lambda subject: any(value not in (None, "") for value in subject.values(name))
    path = name[len(_PROPERTIES) :] if name.startswith(_PROPERTIES) else name
    return lambda subject: any(_found(properties, path) for properties in subject.properties())


def _after(moment: str) -> Callable[[Subject], bool]:
    return _column("received_at", lambda value: cast("str", value) > moment)


def _before(moment: str) -> Callable[[Subject], bool]:
    return _column("received_at", lambda value: cast("str", value) < moment)


def _anywhere(word: str, *, wild: bool) -> Callable[[Subject], bool]:
    test = like(f"*{word}*", fold=True) if wild and "*" in word else None
    folded = word.lower()
    if test is not None:
        return lambda subject: test(subject.text())
    return lambda subject: folded in subject.text().lower()


def _property(path: str, token: _Token) -> Callable[[Subject], bool]:
    test = _value_matcher(token) if token.operator == ":" else _compared(token, _number(token))

    def holds(subject: Subject) -> bool:
        return any(
            test(element)
            for properties in subject.properties()
            for value in _found(properties, path)
            for element in (cast("List[object]", value) if type(value) is list else (value,))
        )

    return holds


def _found(properties: Mapping[str, object], path: str) -> List[object]:
    """The values at *path*: under exactly that name, or step by step down into objects."""
    while path not in properties:
        name, _, path = path.partition(".")
        inner = properties.get(name)
        if not path or type(inner) is not dict:
            return []
        properties = cast("Dict[str, object]", inner)
    return [properties[path]]


def _value_matcher(token: _Token) -> Callable[[object], bool]:
    text = _text_matcher(token, fold=False)
    try:
        number: Optional[float] = float(token.value)
    except ValueError:
        number = None

    def matches(value: object) -> bool:
        if type(value) is bool:
            return text("true" if value else "false")
        if value is None:
            return text("null")
        if type(value) in (int, float):
            return value == number or text(str(value))
        return type(value) is str and text(value)

    return matches


def _text_matcher(token: _Token, *, fold: bool) -> Callable[[object], bool]:
    if "*" in token.value and not token.quoted:
        return like(token.value, fold=fold)
    return _same(token.value, fold=fold)


def _same(text: str, *, fold: bool = False) -> Callable[[object], bool]:
    if fold:
        folded = text.lower()
        return lambda value: type(value) is str and value.lower() == folded
    return lambda value: str(value) == text if value is not None else False


def like(pattern: str, *, fold: bool) -> Callable[[object], bool]:
    """Whether the text of a value has the parts between the stars, one after the other.

    By hand and not as a regular expression, whose time would grow with the power of the number of stars.
    """
    if "*" not in pattern:
        return _same(pattern, fold=fold)
    first, *middle, last = (pattern.lower() if fold else pattern).split("*")

    def matches(value: object) -> bool:
        if value is None:
            return False
        text = str(value).lower() if fold else str(value)
        if not text.startswith(first) or len(text) < len(first) + len(last) or not text.endswith(last):
            return False
        at, end = len(first), len(text) - len(last)
        for part in middle:
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True

    return matches


_ORDERS: Dict[str, Callable[[float, float], bool]] = {
    ":": lambda value, bound: value == bound,
    ">": lambda value, bound: value > bound,
    ">=": lambda value, bound: value >= bound,
    "<": lambda value, bound: value < bound,
    "<=": lambda value, bound: value <= bound,
}


def _compared(token: _Token, bound: float) -> Callable[[object], bool]:
    order = _ORDERS[token.operator]
    return lambda value: type(value) in (int, float) and order(cast("float", value), bound)


def _number(token: _Token) -> float:
    try:
        number = float(token.value)
    except ValueError:
        number = float("nan")
    if number != number or abs(number) == float("inf"):  # noqa: PLR0124 - nan is what differs from itself
        raise bad(token.value_at, f"{token.field} needs a number here, not {token.value}")
    return number


def _time(token: _Token, now: float) -> datetime:
    if token.operator != ":":
        raise bad(token.start, f"{token.field} is followed by a colon")
    ago = _ago(token.value)
    try:
        if ago:
            return datetime.fromtimestamp(now - float(ago[1]) * _UNITS[ago[2]], timezone.utc)
        if _epoch(token.value):
            return datetime.fromtimestamp(float(token.value), timezone.utc)
        moment = moment_of(token.value)
    except (OverflowError, OSError, ValueError):
        moment = None
    if moment is None:
        raise bad(token.value_at, f"{token.field} needs a time, such as -10m, -2h or 2026-11-26T14:00:00Z")
    return moment
