"""Run the Python blocks of a Markdown document, in their order and in one namespace.

`tests/docs` starts this as a program, so each document has a process of its own. Its exit delivers what the
clients of the document tracked, as it does for a reader.
"""

from __future__ import annotations

import builtins
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Dict
from unittest import SkipTest

from sybil import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

#: What a page assumes, such as an application: `given/fastapi.py` runs before the blocks of `fastapi.md`.
GIVEN = Path(__file__).resolve().parents[1] / "docs" / "given"


def evaluate(path: str, replaced: Dict[str, str]) -> Dict[str, object]:
    """Run the blocks of the document at *path*, with some texts *replaced*, and return their names."""
    text = Path(path).read_text(encoding="utf-8")
    for old, new in replaced.items():
        text = text.replace(old, new)
    document = Document(text, path)
    page = sys.modules["page"] = ModuleType(
        "page"
    )  # some libraries look up the module of what they are given
    page.__file__ = path
    document.namespace = page.__dict__
    for parser in (PythonCodeBlockParser(), SkipParser()):
        for region in parser(document):
            document.add(region)
    given = GIVEN / (Path(path).stem.replace("-", "_").lower() + ".py")
    if given.exists():
        exec(compile(given.read_text(encoding="utf-8"), str(given), "exec"), document.namespace)  # noqa: S102
    for example in document.examples():
        try:
            with suppress(SkipTest):
                example.evaluate()
        except SystemExit as ended:
            if ended.code:
                raise
    # sybil takes it away, and before Python 3.10 each call of a function looks for it there.
    document.namespace["__builtins__"] = builtins
    return document.namespace


if __name__ == "__main__":
    evaluate(sys.argv[1], dict(each.split("=>") for each in sys.argv[2:]))
