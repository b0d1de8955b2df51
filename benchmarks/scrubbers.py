"""What scrubbers cost: CPU time of one track_event, without a queue or a network. Prints a table.

The cases take turns, so that whatever else the machine does is the same for each.
"""

from __future__ import annotations

import argparse
import statistics
import time
import timeit
from typing import Callable

from windback import Windback, scrub

EMAIL = "jane@example.com"
PLAIN = {"feature": "export", "plan": "pro", "seats": 5, "note": "asked for a report in German twice"}
PRIVATE = {**PLAIN, "mail": "bob@example.com", "card": "4111 1111 1111 1111"}


def call(properties: dict[str, object], **options: object) -> Callable[[], object]:
    """Return one track_event up to where the event would be queued."""
    client = Windback("sk_test_1", **options)  # type: ignore[arg-type]
    return lambda: client.prepare("feature_used", EMAIL, properties)


def main() -> None:
    """Measure each case in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=2_000)
    options = parser.parse_args()
    cases = {
        "no scrubber": call(PLAIN),
        "one that returns its text": call(PLAIN, scrub=lambda text, _: text),
        **{f"`{name}`": call(PLAIN, scrub=scrubber) for name, scrubber in scrub.NAMED.items()},
        "`STANDARD`": call(PLAIN, scrub=scrub.STANDARD),
        "`STANDARD`, and it replaces two texts": call(PRIVATE, scrub=scrub.STANDARD),
        "`before_send` that returns its event": call(PLAIN, before_send=lambda event: event),
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, case in cases.items():
            seconds = timeit.timeit(case, number=options.calls, timer=time.process_time)
            taken[name].append(seconds / options.calls * 1e6)
    print("| scrub | µs |\n| --- | --- |")
    for name, times in taken.items():
        print(f"| {name} | {statistics.median(times):.1f} |")


if __name__ == "__main__":
    main()
