"""Parts of messages and log lines. Pure."""

from __future__ import annotations

from typing import Iterable


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 event", "2 events"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def with_article(noun: str) -> str:
    """Return a noun with its article: "a str", "an int"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return the end of an error about *name*: the most similar of *names*, if there is one.

    prefix: written before it.
    """
    from difflib import get_close_matches

    found = get_close_matches(name, list(names), 1)
    return f"; did you mean {prefix + found[0]!r}?" if found else ""
