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
        return [run["result"] for run in self._runs(step, client)]

    def _runs(self, step: str, client: str) -> list[dict[str, Any]]:
        runs = self.raw["runs"]
        return [run for run in runs if (run["step"], run["client"]) == (step, client) and "result" in run]

    def get(self, step: str, client: str, field: str) -> float | None:
        """The median over the rounds; None if it was not measured."""
        values = [result[field] for result in self.each(step, client)]
        return statistics.median(values) if values else None

    def ratio(
        self, step: str, client: str, other: str, field: str, field_of_other: str | None = None
    ) -> float | None:
        """The median over the rounds of a client's number by that of another in the same round.

        A machine may be faster in one round than in the next, and a ratio within a round does not show it.
        """
        by_round = {
            name: {run["round"]: run["result"] for run in self._runs(step, name)} for name in (client, other)
        }
        ratios = [
            result[field] / divisor
            for number, result in by_round[client].items()
            if (divisor := by_round[other].get(number, {}).get(field_of_other or field))
        ]
        return statistics.median(ratios) if ratios else None

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
