"""The state of a client at one moment, for people: `print(client.report())` and `windback status`.

Pure, apart from the time of day, which the age of an event is counted to.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from typing import Dict, List, Mapping, Optional, Sequence, cast

import orjson

from .config import Config
from .models import parse_time
from .stats import Stats
from .wording import counted


@dataclass(frozen=True)
class Report:
    """The state of a client at one moment. As text, it has a line for each of these.

    Attributes:
        project: The project's slug. None if the client has none.
        destination: Where events are sent: the URL of the API, or the broker.
        worker: "thread", "task", "process", or None if a relay sends; see the option.
        journal: The directory of the journal. None if events are in memory.
        stats: The counters; `pending` is the length of the queue, and `problem` is why it can't be sent.
        oldest_s: The age of the oldest event that is not delivered (seconds). None if there is no such event.
            It counts from the event's timestamp, also if you gave one.
        lost_if_killed: How many events would be lost if this process were killed now.
    """

    project: Optional[str]
    destination: str
    worker: Optional[str]
    journal: Optional[str]
    stats: Stats
    oldest_s: Optional[float] = None
    lost_if_killed: int = 0

    def __str__(self) -> str:
        stats = self.stats
        name = "a client without a project" if self.project is None else f"project {self.project}"
        place = "in memory" if self.journal is None else f"in the journal {self.journal}"
        by = "a relay" if self.worker is None else f'worker="{self.worker}"'
        oldest = "" if self.oldest_s is None else f", the oldest {shown_age(self.oldest_s)} old"
        repeated = f", {stats.retries:,} of them repeated" if stats.retries else ""
        return "\n".join(
            [
                f"{name}, to {self.destination} by {by}",
                f"queue:     {counted(stats.pending, 'event')} {place}, {_size(stats.pending_bytes)}{oldest}",
                f"events:    {_sums(stats)}",
                f"requests:  {stats.requests:,}{repeated}",
                f"problem:   {stats.problem or 'none'}",
                f"if killed: {self.what_is_lost()}",
            ]
        )

    def what_is_lost(self) -> str:
        """Say what would be lost if this process were killed now.

        Returns:
            One sentence without its end.
        """
        kept = self.stats.pending - self.lost_if_killed
        if not self.stats.pending:
            return "nothing would be lost"
        if not self.lost_if_killed:
            return f"nothing would be lost: {self._who_sends(kept)}"
        sending = min(self.stats.in_flight, self.lost_if_killed)
        some = f" ({sending:,} in a request, which may arrive)" if sending else ""
        lost = f"{counted(self.lost_if_killed, 'event')} would be lost{some}"
        if self.journal is None:
            return f"{lost}, from memory; journal=DIRECTORY keeps events on disk"
        return f"{lost}, from memory: the disk had no room" + (f"; {self._who_sends(kept)}" if kept else "")

    def _who_sends(self, kept: int) -> str:
        who = {None: "the relay", "process": "the sender process, or the next process that uses the journal,"}
        sender = who.get(self.worker, "the next process that uses the journal")
        return f"{sender} sends the {counted(kept, 'event')} in the journal"

    def to_wire(self) -> Dict[str, object]:
        """Return the form in which the report crosses to another process.

        Returns:
            The fields, as values that JSON has.
        """
        return asdict(self)

    @classmethod
    def from_wire(cls, fields_: Mapping[str, object]) -> Report:
        """Read a report that another process sent, which may be of another version.

        Args:
            fields_: The value that `to_wire` returned.

        Returns:
            The report. Unknown fields are left out.
        """
        stats = cast("Mapping[str, object]", fields_["stats"])
        known = {each.name for each in fields(Stats)}
        counts = Stats(**{name: value for name, value in stats.items() if name in known})  # type: ignore[arg-type]
        names = {each.name for each in fields(cls)} - {"stats"}
        others = {name: value for name, value in fields_.items() if name in names}
        return cls(stats=counts, **others)  # type: ignore[arg-type]  # a report wrote them


def report_of(config: Config, stats: Stats, firsts: Sequence[bytes] = (), in_memory: int = 0) -> Report:
    """Return the report of a client.

    firsts: events of which one is the oldest. in_memory: how many events a kill would take.
    """
    broker = config.broker
    return Report(
        project=config.project_slug,
        destination=config.base_url if broker is None else broker.place,
        worker=config.worker,
        journal=None if config.journal is None else str(config.journal),
        stats=stats,
        oldest_s=oldest_s(firsts) if stats.pending else None,
        lost_if_killed=min(in_memory, stats.pending),
    )


def oldest_s(records: Sequence[bytes]) -> Optional[float]:
    """Return the age of the oldest of *records*, encoded events (seconds); None if there is none."""
    times = [parse_time(str(orjson.loads(record).get("timestamp"))) for record in records]
    known = [each for each in times if each is not None]
    return max(0.0, (datetime.now(timezone.utc) - min(known)).total_seconds()) if known else None


def _sums(stats: Stats) -> str:
    parts: List[str] = [f"{stats.accepted:,} accepted, {stats.delivered:,} delivered"]
    for count, outcome, reasons in (
        (stats.rejected, "rejected", stats.rejected_by_reason),
        (stats.dropped, "dropped", stats.dropped_by_reason),
        (sum(stats.refused.values()), "refused", stats.refused),
    ):
        if count:
            parts.append(f"{count:,} {outcome} ({', '.join(sorted(reasons))})")
    return ", ".join(parts)


def _size(size_bytes: int) -> str:
    if size_bytes < 10_000:
        return counted(size_bytes, "byte")
    return f"{size_bytes / 1000:,.0f} kB" if size_bytes < 10_000_000 else f"{size_bytes / 1e6:,.0f} MB"


def shown_age(seconds: float) -> str:
    """Return a duration for people, in the unit that fits.

    Args:
        seconds: The duration.

    Returns:
        Such as "12.3 s", "15 min", "3 h" or "4 days".
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
