"""What a round consists of."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from clients import ADAPTERS, OWN
from environments import BESIDE

#: Work between two calls, as `sum(range(n))`: 26 µs, 0.27 ms and 2.7 ms where it was set up.
LIGHT, MEDIUM, HEAVY = 2_000, 20_000, 200_000


#: More than any burst.
MANY = 10**9
#: What is compared in an event loop: the client that needs one, and what an application could take instead.
IN_LOOP = ("floor", "windback", "windback-async-task", "windback-async-thread", "statsig", "posthog")
#: What can be measured of clients that need an event loop. The other measurements call from threads.
IN_ANY_LOOP = ("in_loop", "cold", "exit")

Size = TypeVar("Size")


@dataclasses.dataclass(frozen=True)
class Step:
    """What is measured of each client in a round."""

    name: str
    measure: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    #: Instead of `arguments`: as many events as a client manages in about a second, but no more than these.
    burst: int | None = None
    #: Seconds that the sink takes to answer.
    latency: float = 0.0
    #: Takes part in so many of the rounds.
    rounds: int = 99
    #: Empty: all clients. The call alone: those too that deliver nothing.
    clients: tuple[str, ...] = ()
    call_alone: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    #: Measured in this environment, for those that are measured in more than one.
    environment: str | None = None
    #: Seconds after which it has failed.
    limit: float = 150


def plan(*, quick: bool) -> list[Step]:
    def size(full: Size, small: Size) -> Size:
        return small if quick else full

    calls = {
        "1 thread": {"threads": 1, "calls": size(20_000, 10_000)},
        "8 threads": {"threads": 8, "calls": size(3_000, 1_000)},
        "8 busy threads": {"threads": 8, "calls": size(600, 500), "passes": size(5, 2), "work": LIGHT},
        "32 busy threads": {"threads": 32, "calls": size(150, 125), "passes": size(5, 2), "work": LIGHT},
    }
    saturated = {
        "8 threads, light": {"threads": 8, "work": LIGHT},
        "8 threads, medium": {"threads": 8, "work": MEDIUM},
        "8 threads, heavy": {"threads": 8, "work": HEAVY},
        "40 threads, heavy": {"threads": 40, "work": HEAVY},
    }
    seconds = size(2.0, 0.8)
    own = ("floor", *OWN)
    slow = size(6_000, 4_000)
    in_loop = {"seconds": size(2.0, 0.5)}
    queues = tuple(name for name, adapter in ADAPTERS.items() if adapter.queues)
    #: Those whose whole life is one process, with nothing on disk.
    whole = tuple(
        name
        for name, adapter in ADAPTERS.items()
        if adapter.delivers and name not in ("windback-journal", "windback-fsync", "windback-relay")
    )
    return [
        *(Step(name, "latency", arguments, call_alone=True) for name, arguments in calls.items()),
        Step(
            "busy disk",
            "latency",
            {**calls["8 busy threads"], "beside_syncs": True},
            clients=("windback", "windback-journal", "windback-fsync"),
        ),
        Step("end to end", "throughput", burst=MANY),
        Step("50 ms", "throughput", burst=slow, latency=0.05, rounds=size(2, 1)),
        Step(
            "50 ms, max_in_flight=1",
            "throughput",
            burst=slow,
            latency=0.05,
            rounds=size(2, 1),
            clients=("windback",),
            options={"max_in_flight": 1},
        ),
        Step(
            "compress=True",
            "throughput",
            burst=MANY,
            rounds=1,
            clients=("windback",),
            options={"compress": True},
        ),
        *(
            Step(
                name,
                "in_loop",
                {**in_loop, "count": size(50_000, 10_000), "uvloop": name == "uvloop"},
                clients=IN_LOOP,
            )
            for name in ("asyncio", "uvloop")
        ),
        *(
            Step(
                f"cold start, {name}",
                "cold",
                {"times": size(5, 3)},
                rounds=size(3, 1),
                clients=whole,
                environment=name,
            )
            for name in BESIDE
        ),
        *(
            Step(name, "saturate", {**threads, "seconds": seconds}, rounds=size(2, 1), clients=size((), own))
            for name, threads in saturated.items()
        ),
        Step(
            "exit",
            "exit",
            {"count": 100_000, "patience": 60},
            rounds=size(3, 1),
            clients=("windback-process",),
        ),
        # A slow answer, so that the events are pending when the script ends.
        Step(
            "exit, pending",
            "exit",
            {"count": size(10_000, 2_000)},
            latency=0.05,
            rounds=1,
            clients=tuple(name for name in whole if ADAPTERS[name].queues),
        ),
        Step(
            "drain",
            "drain",
            {"count": size(10_000_000, 300_000)},
            rounds=1,
            clients=("windback-relay",),
            limit=900,
        ),
        Step(
            "memory", "memory", {"counts": [size(50_000, 20_000)]}, rounds=1, clients=queues, call_alone=True
        ),
        Step(
            "memory growth",
            "memory",
            {"counts": [10**3, 10**4, 10**5, 10**6]},
            rounds=size(3, 1),
            clients=("floor", "windback"),
        ),
    ]
