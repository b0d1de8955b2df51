"""Counters, and the values that report them."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Callable, Dict, Iterable, List, Literal, Mapping, Optional, Sequence

import orjson


class AtomicCounter:
    """An integer that any thread may add to without a lock.

    A BytesIO's position, moved with seek(n, SEEK_CUR), is an add-and-fetch in one C call, during
    which CPython never lets another thread run. `+=` on an attribute is several steps, and two
    threads in them lose one of the additions.
    """

    __slots__ = ("move",)

    #: `move(n, 1)` adds n and returns the new value; the bound method of C, because the hot path calls it.
    move: Callable[[int, int], int]

    def __init__(self) -> None:
        self.move = io.BytesIO().seek

    def add(self, amount: int = 1) -> int:
        """Add *amount* and return the new value, which never goes below 0."""
        return self.move(amount, 1)

    @property
    def value(self) -> int:
        """The current value."""
        return self.move(0, 1)


@dataclass(frozen=True)
class Stats:
    """What became of the events given to track_event, at one instant.

    Always `accepted == delivered + rejected + dropped + pending`. Events that the call itself turned
    away were never accepted: `refused` counts them by reason ("queue_full", "before_send",
    "before_send_error", "scrub_error", "disabled", "no_customer" for `track` where no customer is known, and
    "closed" after close() or once the process ends).

    delivered: the API answered with a success; rejected: it never will (`rejected_by_reason`);
    dropped: discarded here after they were accepted (`dropped_by_reason`: "queue_full" under
    drop_oldest, "closed" at the close deadline); pending: still here, `in_flight` of them in a
    request. pending_bytes: their encoded size. requests, retries: HTTP requests made for batches,
    and how many of them repeated one. worker_deaths: workers that ended with an exception, and were
    replaced. hook_errors: exceptions from on_delivery, before_send, scrub and what finds a customer.
    adopted: events that processes which died left in the journal, counted in `accepted` as well;
    journal_bytes: of this process's segments. problem: why delivery is held up right now, and for how many
    seconds; from the first try that failed on, None while nothing holds it up.
    """

    accepted: int = 0
    delivered: int = 0
    rejected: int = 0
    dropped: int = 0
    pending: int = 0
    in_flight: int = 0
    pending_bytes: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    rejected_by_reason: Mapping[str, int] = field(default_factory=dict)
    dropped_by_reason: Mapping[str, int] = field(default_factory=dict)
    requests: int = 0
    retries: int = 0
    workers: int = 0
    worker_deaths: int = 0
    hook_errors: int = 0
    adopted: int = 0
    journal_bytes: int = 0
    problem: Optional[str] = None


_NO_ANSWER = "time ran out before the first answer"


@dataclass(frozen=True)
class FlushResult:
    """What flush and close achieved; true only if all that was accepted before the call is off our hands.

    pending: how many of those are still here. delivered, rejected, dropped: what happened during the
    call, events accepted meanwhile included. problem: why some are still here, in words: the last failure
    and the seconds until the next try, or that time ran out; None if none are.
    """

    pending: int
    delivered: int
    rejected: int
    dropped: int
    problem: Optional[str] = None

    def __bool__(self) -> bool:
        return self.pending == 0

    @classmethod
    def between(cls, before: Stats, after: Stats, pending: int) -> FlushResult:
        """Return what happened between two moments, of which *pending* events are left."""
        problem = None
        if pending:
            has_answers = after.delivered > before.delivered or after.rejected > before.rejected
            time_ran_out = "time ran out while deliveries went on" if has_answers else _NO_ANSWER
            problem = after.problem or time_ran_out
        return cls(
            pending=pending,
            delivered=after.delivered - before.delivered,
            rejected=after.rejected - before.rejected,
            dropped=after.dropped - before.dropped,
            problem=problem,
        )


def sum_of_stats(several: Iterable[Stats]) -> Stats:
    """Return the counters of several queues as those of one; `problem` is the first there is."""
    every = list(several)
    sums: Dict[str, object] = {"problem": next((each.problem for each in every if each.problem), None)}
    for name in (each.name for each in fields(Stats) if each.name != "problem"):
        values = [getattr(each, name) for each in every]
        if name in ("refused", "rejected_by_reason", "dropped_by_reason"):
            counts: Counter[str] = Counter()
            for value in values:
                counts.update(value)
            sums[name] = dict(counts)
        else:
            sums[name] = sum(values)
    return Stats(**sums)  # type: ignore[arg-type]  # the names are its own


def sum_of_results(several: Sequence[FlushResult]) -> FlushResult:
    """Return what several queues achieved as what one did."""
    return FlushResult(
        pending=sum(each.pending for each in several),
        delivered=sum(each.delivered for each in several),
        rejected=sum(each.rejected for each in several),
        dropped=sum(each.dropped for each in several),
        problem=next((each.problem for each in several if each.problem), None),
    )


Outcome = Literal["delivered", "rejected", "dropped"]


@dataclass(frozen=True)
class DeliveryReport:
    """What became of one batch, given to on_delivery once.

    outcome: "delivered", "rejected" or "dropped"; count: events; reason: "ok", "too_large",
    "invalid", "status_409", "queue_full", "closed", …; status and message: the API's answer, None
    where there was none. `events` decodes the batch; it is empty for events that made room for newer
    ones under overflow="drop_oldest", which are counted only.
    """

    outcome: Outcome
    count: int
    reason: str
    status: Optional[int] = None
    message: Optional[str] = None
    idempotency_key: Optional[str] = None
    _records: Sequence[bytes] = field(default=(), repr=False)

    def to_wire(self) -> Dict[str, object]:
        """Return what another process makes a report from."""
        fields = dict(self.__dict__)
        return {**fields, "_records": [record.decode() for record in self._records]}

    @classmethod
    def from_wire(cls, fields: Dict[str, object]) -> DeliveryReport:
        """Return the report that `to_wire` was called on."""
        records = fields["_records"]
        assert isinstance(records, list)
        return cls(**{**fields, "_records": [record.encode() for record in records]})  # type: ignore[arg-type]

    @property
    def events(self) -> List[Mapping[str, object]]:
        """The events as they were sent, decoded at each access."""
        return [orjson.loads(record) for record in self._records]
