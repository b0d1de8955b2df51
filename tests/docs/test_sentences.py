"""No sentence of README and docs is longer than 30 words; a colon and a semicolon end one, too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LIMIT = 30


def sentences(text):
    """Yield the sentences of a page: of paragraphs, of items, and of cells of tables; not of code."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = text.replace("**", "")
    for part in re.split(r"\n\s*\n|\n(?=\s*[-*|]|\s*\d+\. )|\|", text):
        yield from re.split(r"[.:;?!](?:\s|$)", " ".join(part.split()))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_sentence_is_long(path):
    counted = {
        text: len(re.findall(r"\w[\w'.,-]*", text)) for text in sentences(path.read_text(encoding="utf-8"))
    }
    assert [text for text, words in counted.items() if words > LIMIT] == []


def test_the_count_finds_a_long_sentence():
    long = "word " * 31
    assert [len(text.split()) for text in sentences(f"Short one. {long}. | {long} |")].count(31) == 2
