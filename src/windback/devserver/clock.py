"""Times as text and back."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Optional

_moment = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d)(:\d\d)?(?:\.(\d{1,9}))?)?([Zz]|[+-]\d\d:?\d\d)?", re.ASCII
).fullmatch


def iso(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC with microseconds, so that answers sort by time."""
    return in_utc(datetime.fromtimestamp(seconds, timezone.utc))


def in_utc(moment: datetime) -> str:
    """The same for a time with a zone."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment_of(text: str) -> Optional[datetime]:
    """The time in ISO 8601 *text*, in UTC unless it has a zone; None if it is not a time.

    `fromisoformat` of Python 3.8 knows neither a Z nor fractions of any length.
    """
    found = _moment(text)
    if found is None:
        return None
    day, minute, second, fraction, zone = found.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{minute or '00:00'}{second or ':00'}")
        moment = moment.replace(microsecond=int((fraction or "0")[:6].ljust(6, "0")), tzinfo=timezone.utc)
        if zone and zone not in "Zz":
            offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
            moment = moment - offset if zone[0] == "+" else moment + offset
    except (OverflowError, ValueError):
        return None
    return moment
