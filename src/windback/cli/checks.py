"""The result of one check of `windback doctor`."""

from __future__ import annotations

from typing import NamedTuple, Optional

OK, WARNING, PROBLEM, SKIPPED = "ok", "warning", "problem", "skipped"


class Check(NamedTuple):
    """The result of one check. took_s: how long it took, where that is informative."""

    name: str
    state: str
    text: str
    took_s: Optional[float] = None
