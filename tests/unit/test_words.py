"""The package and its documentation use the standard terms of the field, no words of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: What is not written, and what is written instead.
INSTEAD = {
    r"off our hands": "settled; delivered, rejected or dropped",
    r"who(ever|so)|who comes next": "the next process, the caller",
    r"(?<!there )is no (?!longer)[a-z]+": "is not a …",
    r"has it done|have it done": "arranges for",
    r'"""Have ': "Make, Ensure, Arrange for",
    r"(take|takes|took|taken)[- ]in": "apply, merge, record",
    r"the dead(?! letter)|the living": "exited processes, running processes",
    r"(im)?patient(ly)?": "with a timeout",
    r"hurr(y|ies|ied)": "expedite, early",
    r"naps?|_nap": "sleep",
    r"bur(y|ies|ied)": "move to the dead letters",
    r"strays?|_strays": "leaked segments",
    r"_?resides?|residents?|vacates?": "run, close, own",
    r"_?attend(s|ed)?|_?tend(s|ed|ing)?|_?tid(y|ies|ied)|keepers?|upkeep": "maintain, maintenance",
    r"syncer": "fsync thread",
    r"leave word": "notify",
    r"rng|law": "jitter, random; invariant",
    r"spots?|_spots?": "location, offset",
    r"told|says|hears?|knows of": "receives, returns, reads, has",
    r"mend(s|ed|ing)?": "fix",
    r"in vain": "without effect",
    r"at once": "immediately",
    r"meanwhile": "in the meantime, in between",
    r"all the same": "anyway",
    r"on the disk": "on disk, synced",
    r"nobody's business": "allowed",
    r"1 (events|batches|requests|segments|letters)": "1 event",
    r"a (object|int|error|event|exception|answer|empty|old|instance|address|attempt|entry|id|item)": "an …",
}

#: (file, text): where a word has to be, because a format, a standard or a letter to a customer has it.
ALLOWED = {
    ("devserver/recovery.py", "told"): "a letter to a customer",
    ("devserver/recovery.py", "meanwhile"): "a letter to a customer",
}


def read_texts():
    for path in sorted((ROOT / "src" / "windback").rglob("*")):
        if path.suffix in {".py", ".js", ".html", ".css", ".lua"}:
            yield str(path.relative_to(ROOT / "src" / "windback")), path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        yield str(path.relative_to(ROOT)), path.read_text()


def test_every_text_uses_standard_terms():
    any_of_them = re.compile(rf"(?<![\w/-])(?:{'|'.join(INSTEAD)})(?![\w-])".lower())
    found = []
    for name, text in read_texts():
        for number, line in enumerate(text.lower().splitlines(), 1):
            found += [
                f"{name}:{number}: {hit[0]!r}: {instead_of(hit[0])}"
                for hit in any_of_them.finditer(line)
                if (name, hit[0]) not in ALLOWED
            ]
    assert not found, "\n".join(found)


def instead_of(word):
    return next(instead for words, instead in INSTEAD.items() if re.fullmatch(words.lower(), word))


@pytest.mark.parametrize("word", ["off our hands", "whoever", "is no success", "_nap", "1 events"])
def test_the_search_finds_the_words(word):
    assert instead_of(word)
