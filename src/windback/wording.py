"""Counts with their nouns, for messages and log lines. Pure."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 event", "2 events"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
