"""What both demos share besides the log: the faults, and the table that sets server against client."""

from __future__ import annotations

from collections import Counter
from typing import Iterable, List, NamedTuple, Sequence

from purchases import Purchase

from windback import Stats
from windback.devserver import DevServer, FaultRule

#: One request in five fails: 1 - 0.93 * 0.97 * 0.94 * 0.94. One in ten is late, too.
FAULTS: List[FaultRule] = [
    {"rate": 0.10, "seed": 1, "latency": 0.1},
    {"rate": 0.07, "seed": 2, "status": 503},
    {"rate": 0.03, "seed": 3, "status": 429, "retry_after": 1},
    {"rate": 0.06, "seed": 4, "drop": "before"},  # the request is lost
    {"rate": 0.06, "seed": 5, "drop": "after"},  # the request was taken, and the answer is lost
]


class Calls(NamedTuple):
    """How many of the calls that are answered immediately ended, by method."""

    churn_events: int
    cancel_flows: int
    reasons: int
    templates: int


class Client(NamedTuple):
    """The client's numbers.

    cents: of the purchases it accepted. took_ns: of each track_event. seconds: from the first of them
    to the last answer.
    """

    stats: Stats
    cents: int
    took_ns: Sequence[int]
    seconds: float
    calls: Calls


class Row(NamedTuple):
    """A line of the table. Server and client agree when all three numbers are the same."""

    label: str
    due: int
    client: int
    server: int

    @property
    def is_right(self) -> bool:
        """Whether both have the number that was due."""
        return self.due == self.client == self.server


def compare(purchases: Sequence[Purchase], due: Calls, client: Client, server: DevServer) -> List[Row]:
    """Compare the client's numbers with the server's database."""
    stats, counts, events = client.stats, server.counts(), server.events()
    received = Counter(event.properties["order"] for event in events)
    lost = stats.rejected + stats.dropped + stats.pending + sum(stats.refused.values())
    missing = sum(purchase.order not in received for purchase in purchases)
    cents = sum(purchase.cents for purchase in purchases)
    stored_cents = sum(int(str(event.properties["cents"])) for event in events)
    # A dropped answer has no status: such a request is in the log again, when it was repeated.
    reasons = {each.path for each in server.requests(10_000) if each.method == "PATCH" and each.status == 200}
    created = due.churn_events + due.cancel_flows  # each cancel flow creates a churn event
    asked = client.calls.churn_events + client.calls.cancel_flows
    return [
        Row("purchases", len(purchases), stats.delivered, len(events)),
        Row("lost", 0, lost, missing),
        Row("counted twice", 0, stats.delivered + lost - len(purchases), len(events) - len(received)),
        Row("sum in cents", cents, client.cents, stored_cents),
        Row("churn events", created, asked, counts.churn_events),
        Row("cancel flows", due.cancel_flows, client.calls.cancel_flows, counts.cancel_flows),
        Row("cancel reasons", due.reasons, client.calls.reasons, len(reasons)),
        Row("recovery templates", due.templates, client.calls.templates, counts.templates),
    ]


def show(rows: Iterable[Row]) -> bool:
    """Print the table, and return whether server and client agree in every row."""
    print(f"\n{'':20}{'due':>14}{'client says':>14}{'server has':>14}")
    all_right = True
    for row in rows:
        mark = "" if row.is_right else "  <-- not the same"
        print(f"{row.label:20}{row.due:14,}{row.client:14,}{row.server:14,}{mark}")
        all_right = all_right and row.is_right
    print("Server and client agree.\n" if all_right else "SERVER AND CLIENT DISAGREE.\n")
    return all_right


def show_speed(client: Client) -> None:
    """Print events a second, and what a call of track_event takes."""
    took_ns = sorted(client.took_ns)
    p50_us, p99_us = (took_ns[len(took_ns) * percent // 100] / 1000 for percent in (50, 99))
    rate = len(took_ns) / client.seconds
    print(f"{rate:,.0f} events/s, from the first call of track_event to the last answer")
    print(f"track_event: p50 {p50_us:.1f} µs, p99 {p99_us:.1f} µs")


def show_faults(client: Client, server: DevServer) -> None:
    """Print what the server did to the client, and how the client took it."""
    counts = server.counts()
    kinds = Counter(each.fault for each in server.requests(10_000) if each.fault)
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    print(f"{counts.faults} faults in {counts.requests} requests: {listed}")
    print(
        f"{client.stats.retries} batches sent again; "
        f"{counts.duplicates} requests came twice, and the server knew them by their Idempotency-Key"
    )
