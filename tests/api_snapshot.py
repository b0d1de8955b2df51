"""The public API as text: `python tests/api_snapshot.py --write` after a change to it that is meant.

What the page "Python API" documents, and the modules of the integrations: each public function with its
parameters and the type that it returns, each attribute with its type. Read from the source by griffe.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Iterator, List, Union

import griffe

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOT = ROOT / "tests" / "data" / "api.txt"
PAGE = ROOT / "docs" / "api.md"
#: Documented on pages of their own.
MODULES = (
    *("asgi", "aws_lambda", "context", "django", "django.test", "fastapi", "flask", "opentelemetry"),
    *("prometheus", "scrub", "serverless", "sqlalchemy", "webhooks"),
)


def lines_of(found: Union[griffe.Object, griffe.Alias], name: str) -> Iterator[str]:
    """Yield a line for *found*, and one for each public part of it."""
    if found.is_function:
        yield f"{name}({', '.join(parameter(each) for each in found.parameters)}) -> {found.returns}"
    elif found.is_class:
        yield f"class {name}({', '.join(str(base) for base in found.bases)})"
        for part, member in sorted(found.all_members.items()):
            if part == "__init__" or not part.startswith("_"):
                yield from lines_of(member, f"{name}.{part}")
    elif found.is_attribute:
        yield f"{name}: {found.annotation}"


def parameter(said: griffe.Parameter) -> str:
    """Return a parameter as it is written, with its kind where that matters."""
    kind = said.kind.value if said.kind else ""
    mark = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
    text = f"{mark}{said.name}" + (f": {said.annotation}" if said.annotation else "")
    return (
        text
        + (f" = {said.default}" if said.default else "")
        + (" [by name]" if kind == "keyword-only" else "")
    )


def snapshot() -> str:
    """Return the public API, a line for each part of it."""
    package = griffe.load("windback", search_paths=[str(ROOT / "src")], resolve_aliases=True)
    named = re.findall(r"^::: windback\.?([\w.]*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    pages = (ROOT / "docs").rglob("*.md")
    documented = {word for page in pages for word in re.findall(r"\w+", page.read_text(encoding="utf-8"))}
    lines: List[str] = []
    for path in sorted({*named, *MODULES}):
        found = package[path]
        if not found.is_module:
            lines += lines_of(found, path)
            continue
        exported = {str(each) for each in found.exports or ()}
        for part, member in sorted(found.members.items()):
            is_ours = not member.is_alias and (member.is_class or member.is_function) and part in documented
            if part in exported or (not exported and is_ours):
                lines += lines_of(member, f"{path}.{part}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv:
        SNAPSHOT.write_text(snapshot(), encoding="utf-8")
    sys.stdout.write(snapshot())
