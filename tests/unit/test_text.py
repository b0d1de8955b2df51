"""What a terminal, a log or a spreadsheet would obey is escaped, and the rest stays as it is."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys

import pytest

from windback.api.answer import Answer, error_of
from windback.cli.common import logging_to_stderr, print_json
from windback.devserver.export import _cell
from windback.text import shown, shown_json

#: C0, DEL, C1, bidirectional marks and isolates, zero width, line separators, soft hyphen, tags, BOM.
ACTING = [
    *"\x00\x07\x08\x1b\n\r\x7f\x80\x85\x9b\x9d\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069",
    *"\xad\ufeff\U000e0001\U000e0041",
]
PLAIN = "Zoë paid 5 €, \u4f60\u597d \U0001f600, \u05d0\u05d1"


@pytest.mark.parametrize("char", ACTING, ids=ascii)
def test_a_character_that_acts_is_shown_as_its_number(char):
    assert shown(f"a{char}b").isprintable()
    assert char not in shown(f"a{char}b")
    if char >= "\x7f":
        escaped = shown_json(f'"a{char}b"')
        assert char not in escaped
        assert json.loads(escaped) == f"a{char}b"


def test_plain_text_of_any_language_stays():
    assert shown(PLAIN) == shown_json(PLAIN) == PLAIN


@pytest.mark.parametrize("char", ACTING, ids=ascii)
def test_json_on_standard_output_has_none_of_them(char, capfdbinary):
    print_json({"event": f"a{char}b", char: [PLAIN]})
    sys.stdout.flush()
    written = capfdbinary.readouterr().out
    assert char not in written.decode().rstrip("\n")
    assert json.loads(written) == {"event": f"a{char}b", char: [PLAIN]}


@pytest.mark.parametrize("body", [b'{"error": "%s"}', b'{"error": {"message": "%s", "code": "%s"}}', b"%s"])
def test_an_error_of_the_server_is_one_line_that_acts_on_nothing(body):
    told = json.dumps("a\n\x1b[2J\x9b2J\u202eb").strip('"').encode()
    answer = Answer(400, {"x-request-id": "r\x9b1", "location": "\x9b"}, body.replace(b"%s", told))
    error = error_of(answer, 0.0, str)
    assert str(error).isprintable()
    assert (error.code or "").isprintable()
    assert (error.request_id or "").isprintable()


def test_an_error_of_the_server_is_cut():
    answer = Answer(400, {}, json.dumps({"error": "x" * 1_000_000}).encode())
    assert len(str(error_of(answer, 0.0, str))) < 3_000


def test_log_lines_of_the_command_line_act_on_nothing(capsys):
    with logging_to_stderr(logging.INFO):
        logging.getLogger("windback").info("the file %s", "a\x1b[2J\u202e\x9bb")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


FORMULAS = [
    *("=1+1", "+1+1", "-1+1", "@SUM(1)", " =1", "\t=1", "\r=1", "\n=1", '"=1', "'=1", "\u200b=1", "\ufeff=1"),
    *("a;=1", "a,=1", "a\t=1", "a|=1", "a\n=1", "a\r=1", "a\r\n=1", "a; =1", 'a;"=1', "a\u2028=1", "a\x0b=1"),
    *("\uff1d1", "\uff0b1", "\uff0d1", "\uff20A", "a;\uff1d1", "a\n\uff0b1", "-2+3+cmd|' /C calc'!A0", "=-1"),
    *("a;-1+cmd", "a,-5-cmd", "\x00=1", "\xa0=1", "a;;=1", "+", "-", "=", "@"),
]


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
def test_no_cell_or_part_of_one_is_a_formula(text):
    signs = "=+-@\uff1d\uff0b\uff0d\uff20"
    safe = _cell(text)
    place = next(index for index, char in enumerate(safe) if char in signs)
    assert safe[place - 1] == "'"
    assert safe.replace("'", "") == text.replace("'", "")


@pytest.mark.parametrize(
    "text",
    [
        *("login", "jane+tag@example.com", "2025-12-01T10:00:00Z", "a-b", "1=1", "-5", "-1.5e-7", "a, b; c"),
        *('{"n":-5,"list":[1,-2,-3.5],"text":"a-b"}', '[-1,{"a":-1}]', ""),
    ],
)
def test_a_cell_that_is_harmless_stays(text):
    assert _cell(text) == text


def test_a_file_of_cells_is_read_back_by_column():
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerow([_cell("a;b"), _cell('x"y'), _cell("l\nm")])
    assert next(csv.reader(io.StringIO(out.getvalue()))) == ["a;b", 'x"y', "l\nm"]
