"""Counters, and the values that report them."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Callable, Dict, Iterable, List, Literal, Mapping, Optional, Sequence

import orjson


class AtomicCounter:
    """An integer that any thread may add to without a lock.

    The position of a BytesIO, moved with seek(n, SEEK_CUR), is an add-and-fetch in one C call. CPython never
    runs another thread during that call. `+=` on an attribute takes several steps, and two threads that
    interleave there lose one of the additions.
    """

    __slots__ = ("move", "value")

    #: `move(n, 1)` adds n and returns the new value, `value()` returns it. Both are methods of C.
    move: Callable[[int, int], int]
    value: Callable[[], int]

    def __init__(self) -> None:
        position = io.BytesIO()
        self.move, self.value = position.seek, position.tell

    def add(self, amount: int = 1) -> int:
        """Add *amount* and return the new value, which never goes below 0."""
        return self.move(amount, 1)


def nonzero(counters: Mapping[str, AtomicCounter]) -> Dict[str, int]:
    """Return the values of counters that any thread may add to, without those that are 0."""
    found = {}
    for name, counter in list(counters.items()):
        value = counter.value()
        if value:
            found[name] = value
    return found


@dataclass(frozen=True)
class Stats:
    """The counts of all events given to track_event, at one moment.

    Always `accepted == delivered + rejected + dropped + pending`.

    Attributes:
        accepted: Events that were queued. Never falls.
        refused: Events that track_event refused, by reason; they were never accepted. The reasons are
            "queue_full", "before_send", "before_send_error", "scrub_error", "disabled", "no_customer"
            (`track` without a customer), and "closed" (after close(), or at the end of the process).
        delivered: Events that the API answered with a success.
        rejected: Events that the API will never accept; `rejected_by_reason` has the reasons.
        dropped: Events that were discarded after they were accepted. `dropped_by_reason` has the reasons:
            "queue_full" with overflow="drop_oldest", "closed" when the deadline of close() passed,
            "journal_removed" when somebody removed the journal's files.
        pending: Events that are not settled yet; `in_flight` of them are in a request.
        pending_bytes: The encoded size of these events.
        requests: HTTP requests for batches.
        retries: How many of these requests repeated one.
        worker_deaths: Workers that ended with an exception, and were replaced.
        hook_errors: Exceptions from on_delivery, before_send, scrub and the functions that find a customer.
        adopted: Events that exited processes left in the journal. They count as accepted, too.
        journal_bytes: Bytes of this process's segments.
        problem: Why events can't be delivered now, and the seconds since the first try that failed. None
            if nothing prevents delivery.
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
    """The result of flush and close. True if every event accepted before the call was delivered or rejected.

    Attributes:
        pending: How many of these events are not settled.
        delivered: Events delivered during the call, including events accepted during the call.
        rejected: Events rejected during the call.
        dropped: Events dropped during the call.
        problem: Why events are pending: the last failure and the seconds until the next try, or that time
            ran out. None if no event is pending.
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
        """Return what happened between two moments.

        Args:
            before: The counters at the first moment.
            after: The counters at the second moment.
            pending: How many of the events accepted before are not settled.

        Returns:
            The result.
        """
        problem = None
        if pending:
            has_answers = after.delivered > before.delivered or after.rejected > before.rejected
            time_ran_out = "time ran out while events were delivered" if has_answers else _NO_ANSWER
            problem = after.problem or time_ran_out
        return cls(
            pending=pending,
            delivered=after.delivered - before.delivered,
            rejected=after.rejected - before.rejected,
            dropped=after.dropped - before.dropped,
            problem=problem,
        )


def sum_of_stats(several: Iterable[Stats]) -> Stats:
    """Return the counters of several queues as those of one. `problem` is the first one found."""
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
    """Return the results of several queues as one."""
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
    """What happened to one batch. on_delivery gets it once.

    Attributes:
        outcome: "delivered", "rejected" or "dropped".
        count: The number of events.
        reason: "ok", "too_large", "invalid", "status_409", "queue_full", "closed" and others.
        status: The HTTP status of the API's answer. None if there was none.
        message: The API's message. None if there was none.
        events: The events, decoded from the batch. Empty for events that made room for newer ones under
            overflow="drop_oldest": these are only counted.
    """

    outcome: Outcome
    count: int
    reason: str
    status: Optional[int] = None
    message: Optional[str] = None
    idempotency_key: Optional[str] = None
    _records: Sequence[bytes] = field(default=(), repr=False)

    def to_wire(self) -> Dict[str, object]:
        """Return the form in which the report crosses to another process.

        Returns:
            The fields, as values that JSON has.
        """
        fields = dict(self.__dict__)
        return {**fields, "_records": [record.decode() for record in self._records]}

    @classmethod
    def from_wire(cls, fields: Dict[str, object]) -> DeliveryReport:
        """Read a report that another process sent.

        Args:
            fields: The value that `to_wire` returned.

        Returns:
            The report.
        """
        records = fields["_records"]
        assert isinstance(records, list)
        return cls(**{**fields, "_records": [record.encode() for record in records]})  # type: ignore[arg-type]

    @property
    def events(self) -> List[Mapping[str, object]]:
        """The events as they were sent, decoded at each access."""
        return [orjson.loads(record) for record in self._records]
