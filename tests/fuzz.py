"""Feed every target of tests/property/test_fuzz_*.py with new inputs for minutes: `make fuzz`.

Each round gives each target some hundred inputs, from a seed that is printed when one fails. A target that
fails is left out of later rounds, and the status is 1.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
import traceback
from pathlib import Path

from hypothesis import seed

sys.path[:0] = [str(Path(__file__).with_name(name)) for name in ("property", "support")]
fuzzing = importlib.import_module("fuzzing")

for path in sorted(Path(__file__).with_name("property").glob("test_fuzz_*.py")):
    importlib.import_module(path.stem)
TARGETS, fuzzed = fuzzing.TARGETS, fuzzing.fuzzed


def main() -> int:
    """Run the targets; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--only", nargs="+", choices=sorted(TARGETS), default=sorted(TARGETS))
    parser.add_argument("--seed", type=int, help="of the first round, as it was printed; one round alone")
    parser.add_argument("--examples", type=int, default=200, help="in a round, of each target")
    options = parser.parse_args()
    deadline_s = time.monotonic() + 60.0 * options.minutes
    rounds = dict.fromkeys(options.only, 0)
    failed = set()
    while len(failed) < len(rounds):
        number = random.SystemRandom().getrandbits(48) if options.seed is None else options.seed
        for name in [each for each in rounds if each not in failed]:
            function, strategy = TARGETS[name]
            try:
                seed(number)(fuzzed(function, strategy, max_examples=options.examples))()
            except Exception:  # noqa: BLE001 - what it is, is what is looked for
                failed.add(name)
                traceback.print_exc()
                sys.stdout.write(f"FAILED {name}: make fuzz ARGS='--only {name} --seed {number}'\n")
            rounds[name] += 1
            if time.monotonic() >= deadline_s:
                break
        if options.seed is not None or time.monotonic() >= deadline_s:
            break
    for name, count in rounds.items():
        verdict = "FAILED" if name in failed else "ok"
        sys.stdout.write(f"{name}: {count * options.examples:,} inputs, {verdict}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
