"""Every request to the API: the newest ones whole, tallies of all, and what each of the last seconds saw."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import Deque, Dict, Iterable, List, Optional, Tuple

from .clock import iso
from .exchange import Exchange

#: Requests kept for inspection; older ones are forgotten, the tallies are not.
KEPT_REQUESTS = 10_000

#: Inboxes with a tally of their own; the oldest one makes room for one more.
KEPT_INBOXES = 10_000

#: Bytes of bodies kept with them.
KEPT_BODIES = 50_000_000

#: How many seconds have statistics of their own, and how many minutes: a week.
KEPT_SECONDS, KEPT_MINUTES = 600, 7 * 24 * 60

#: Inboxes and event names that a second or a minute has statistics of; of names, the most frequent ones.
KEPT_INBOXES_OF_A_SPAN, KEPT_NAMES = 100, 500

#: Event names that a series shows one by one, and durations that are kept of a second and of a minute.
SHOWN_NAMES, KEPT_DURATIONS, KEPT_OF_A_MINUTE = 8, 1_000, 100


class Tally:
    """Counts of requests, of one inbox or of all."""

    def __init__(self) -> None:
        self.requests = self.track_requests = self.rejected = self.faults = 0
        self.duplicates = self.duplicate_events = 0
        self.by_status: Counter[int] = Counter()
        self.last_at = 0.0

    def start(self, exchange: Exchange) -> None:
        """Count a request that has come."""
        self.requests += 1
        self.track_requests += exchange.is_track
        self.last_at = exchange.received_at

    def finish(self, exchange: Exchange) -> None:
        """Count what became of it."""
        if exchange.status is not None:
            self.by_status[exchange.status] += 1
        if exchange.fault:
            self.faults += 1
        elif is_rejected(exchange):
            self.rejected += 1
        if exchange.duplicate:
            self.duplicates += 1
            self.duplicate_events += exchange.events

    @property
    def last(self) -> Optional[str]:
        """When the last one came."""
        return iso(self.last_at) if self.last_at else None

    def describe(self) -> Dict[str, object]:
        """The counts as JSON."""
        return {
            "requests": self.requests,
            "track_requests": self.track_requests,
            "rejected": self.rejected,
            "duplicates": self.duplicates,
            "duplicate_events": self.duplicate_events,
            "faults": self.faults,
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
        }


def is_rejected(exchange: Exchange) -> bool:
    """Whether the server itself refused events."""
    status = exchange.status
    return exchange.is_track and not exchange.fault and status is not None and 400 <= status < 500


class Span:
    """What happened to one inbox within one second, or one minute, from *at* on."""

    __slots__ = ("_kept_durations", "at", "by_class", "durations", "events", "names", "reasons", "rejected")

    def __init__(self, at: int, kept_durations: int) -> None:
        self.at = at
        self._kept_durations = kept_durations
        self.events = self.rejected = 0
        self.names: Counter[str] = Counter()
        self.by_class: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.durations: List[float] = []

    def add(self, exchange: Exchange) -> None:
        """Count a request that is over."""
        if exchange.names:
            self.names.update(exchange.names)
            if len(self.names) > 2 * KEPT_NAMES:
                self.names = Counter(dict(self.names.most_common(KEPT_NAMES)))
            self.events += exchange.events - exchange.ignored
        status = exchange.status
        self.by_class["none" if status is None else f"{status // 100}xx"] += 1
        if is_rejected(exchange):
            self.rejected += exchange.events or 1
        if status is None or status >= 400:  # a fault may also be a pause before a good answer
            reason = f"fault: {exchange.fault}" if exchange.fault else exchange.reason or "no answer"
            self.reasons[reason] += 1
        if exchange.duration_s is not None and len(self.durations) < self._kept_durations:
            self.durations.append(exchange.duration_s)


class Spans:
    """The newest *kept* spans of *length_s* seconds."""

    def __init__(self, length_s: int, kept: int, kept_durations: int) -> None:
        self._kept_durations = kept_durations
        self._length_s = length_s
        self._kept_s = length_s * kept
        self._spans: Deque[Tuple[int, Dict[Optional[str], Span]]] = deque()

    def at(self, now_s: float, inbox: Optional[str]) -> Span:
        """Return the one of this moment, which is in the newest or begins it."""
        at = int(now_s) // self._length_s * self._length_s
        if not self._spans or self._spans[-1][0] < at:
            self._spans.append((at, {}))
            while self._spans[0][0] <= at - self._kept_s:
                self._spans.popleft()
        newest, inboxes = self._spans[-1]
        if inbox not in inboxes and len(inboxes) >= KEPT_INBOXES_OF_A_SPAN:
            inbox = None  # counted in what is shown of all
        span = inboxes.get(inbox)
        if span is None:
            span = inboxes[inbox] = Span(newest, self._kept_durations)
        return span

    def of(self, inbox: Optional[str]) -> Iterable[Span]:
        """Return those of an inbox, or of all, oldest first."""
        for _, inboxes in self._spans:
            for name, span in inboxes.items():
                if inbox in (None, name):
                    yield span


class Journal:
    """Counts every request and remembers the last `KEPT_REQUESTS`; *first* is the number of the first."""

    def __init__(self, first: int = 1, kept_bodies: int = KEPT_BODIES) -> None:
        self._kept_bodies = kept_bodies
        self._started = self._forgotten = first - 1
        #: How many requests are over, since the start of the server; a cursor.
        self.finished = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything, requests under way included; request ids go on from where they were."""
        self._forgotten = self._started
        self.recent: Deque[Exchange] = deque()
        self._finished: Deque[Exchange] = deque(maxlen=KEPT_REQUESTS)
        self._with_bodies: Deque[Exchange] = deque()
        self._body_bytes = 0
        self._groups: Dict[object, List[Exchange]] = {}
        self.total = Tally()
        self.tallies: Dict[str, Tally] = {}
        self.forgotten_inboxes = 0
        self._seconds = Spans(1, KEPT_SECONDS, KEPT_DURATIONS)
        self._minutes = Spans(60, KEPT_MINUTES, KEPT_OF_A_MINUTE)

    def start(self, method: str, path: str, query: bytes, headers: List[Tuple[bytes, bytes]]) -> Exchange:
        """Enter a request as soon as its head is read, so that one that hangs can be seen."""
        self._started += 1
        exchange = Exchange(self._started, method, path, query, headers)
        self.recent.append(exchange)
        if len(self.recent) > KEPT_REQUESTS:
            self._forget(self.recent.popleft())
        self.total.start(exchange)
        if exchange.inbox is not None:
            tally = self.tallies.get(exchange.inbox)
            if tally is None:
                tally = self.tallies[exchange.inbox] = Tally()
                if len(self.tallies) > KEPT_INBOXES:
                    del self.tallies[next(iter(self.tallies))]
                    self.forgotten_inboxes += 1
            tally.start(exchange)
        return exchange

    def _forget(self, exchange: Exchange) -> None:
        group = self._groups.get(exchange.group)
        if group is not None:
            group.remove(exchange)
            if not group:
                del self._groups[exchange.group]

    def read(self, exchange: Exchange) -> None:
        """The body is there: note which attempt this is.

        The same Idempotency-Key, or the same bytes, to the same place from the same caller are attempts at
        one thing. Reading is not: the same question may be asked again.
        """
        if exchange.method == "GET":
            return
        key = exchange.headers.get("idempotency-key")
        same = key if key is not None else hash(exchange.body) if exchange.body else None
        if same is None or self.has_forgotten(exchange):
            return
        exchange.group = (exchange.inbox, exchange.method, exchange.path, same)
        group = self._groups.setdefault(exchange.group, [])
        exchange.attempt = group[-1].attempt + 1 if group else 1
        group.append(exchange)

    def has_forgotten(self, exchange: Exchange) -> bool:
        """Whether a request came before the last reset."""
        return exchange.number <= self._forgotten

    def finish(self, exchange: Exchange) -> None:
        """Tally a request that was answered, dropped or left hanging."""
        exchange.duration_s = time.perf_counter() - exchange.clock
        if self.has_forgotten(exchange):
            return
        self.finished += 1
        self._finished.append(exchange)
        self._keep_bodies(exchange)
        self.total.finish(exchange)
        tally = self.tallies.get(exchange.inbox) if exchange.inbox is not None else None
        if tally is not None:
            tally.finish(exchange)
        now_s = time.time()
        for spans in (self._seconds, self._minutes):
            spans.at(now_s, exchange.inbox).add(exchange)

    def _keep_bodies(self, exchange: Exchange) -> None:
        self._with_bodies.append(exchange)
        self._body_bytes += exchange.size
        while self._body_bytes > self._kept_bodies or len(self._with_bodies) > KEPT_REQUESTS:
            oldest = self._with_bodies.popleft()
            self._body_bytes -= oldest.size
            oldest.forget_bodies()

    def remember(self, minutes: Iterable[Tuple[float, str, str, int]]) -> None:
        """Count the events that an earlier server stored, by minute, inbox and name, oldest first."""
        for at_s, inbox, event, count in minutes:
            span = self._minutes.at(at_s, inbox)
            span.events += count
            span.names[event] += count

    # Reading

    @property
    def forgotten(self) -> int:
        """How many requests came since the last reset and are not kept any more."""
        return self.recent[0].number - 1 - self._forgotten if self.recent else 0

    def find(self, number: int) -> Optional[Exchange]:
        """The request of this number, if it is still kept."""
        if not self.recent or not self.recent[0].number <= number <= self.recent[-1].number:
            return None
        return self.recent[number - self.recent[0].number]

    def group_of(self, exchange: Exchange) -> List[Exchange]:
        """All attempts at the same, as far as they are kept, oldest first."""
        return self._groups.get(exchange.group, [exchange])

    def finished_since(self, finished: int, limit: int) -> Tuple[List[Exchange], int]:
        """The newest *limit* of those that were over after `finished` was that; how many were left out."""
        count = max(0, self.finished - finished)
        shown = min(count, limit, len(self._finished))
        return list(self._finished)[len(self._finished) - shown :], count - shown

    def tally_of(self, inbox: Optional[str]) -> Tally:
        """The counts of an inbox, or of all."""
        return self.total if inbox is None else self.tallies.get(inbox) or Tally()

    def seconds(self, inbox: Optional[str]) -> Iterable[Span]:
        """What is known of the last seconds, oldest first; one for each inbox that was busy then."""
        return self._seconds.of(inbox)

    def minutes(self, inbox: Optional[str]) -> Iterable[Span]:
        """The same for the last minutes."""
        return self._minutes.of(inbox)
