"""The raw numbers of a run, and their medians."""

from __future__ import annotations

import statistics
from typing import Any

from clients import ADAPTERS, OWN

PRODUCE_ALONE = "confluent-kafka-produce"


class Results:
    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw
        measured = {run["client"] for run in raw["runs"]}
        self.clients = [name for name in ADAPTERS if name in measured]
        #: Those that do the same job: an event in, queued bytes out.
        self.peers = [name for name in self.clients if name not in (*OWN, "floor", PRODUCE_ALONE)]

    def each(self, step: str, client: str) -> list[dict[str, Any]]:
        return [
            run["result"]
            for run in self.raw["runs"]
            if run["step"] == step and run["client"] == client and "result" in run
        ]

    def get(self, step: str, client: str, field: str) -> float | None:
        """The median over the rounds; None if it was not measured."""
        values = [result[field] for result in self.each(step, client)]
        return statistics.median(values) if values else None

    def queued(self, client: str, field: str, step: str = "memory growth") -> dict[int, float]:
        """What a queued event cost (`bytes`, `micros`), by events queued."""
        grown = [result["queued"] for result in self.each(step, client)]
        counts = grown[0] if grown else {}
        return {int(count): statistics.median(growth[count][field] for growth in grown) for count in counts}

    def one_queued(self, client: str) -> float | None:
        """Bytes of a queued event, where it was measured for all clients."""
        return next(iter(self.queued(client, "bytes", "memory").values()), None)

    def clock(self) -> float | None:
        return self.get("1 thread", self.clients[0], "clock")
