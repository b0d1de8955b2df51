"""Text that somebody else wrote, made fit to be shown: in a log, an error or a terminal."""

from __future__ import annotations

import re

#: What a terminal obeys, cannot be seen, or turns the order of what follows: C1 controls, bidirectional and
#: invisible marks, lone surrogates.
_HIDDEN = (
    "\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff"
)
_ACTS = re.compile(f"[\x00-\x1f{_HIDDEN}]")
_ACTS_IN_JSON = re.compile(f"[{_HIDDEN}]")  # JSON has none of the others in its strings


def shown(text: str) -> str:
    r"""Return *text* on one line, with each character that acts as `\x1b`, `\u202e` or the like."""
    return _ACTS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shown_json(json: str) -> str:
    r"""Return the same JSON, with each character that acts as `\u` and its number."""
    return _ACTS_IN_JSON.sub(_escape, json)


def _escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
