"""What the fuzz tests share: how a function becomes a target, and strategies that several use."""

from __future__ import annotations

import json
import time
from datetime import timedelta, timezone
from functools import wraps

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

JANE = "jane@example.com"
#: CPU time of one example (seconds): a hundred times what the slowest takes.
MOST_S = 10.0
EXAMPLES = 25


#: The targets, by name, for `make fuzz`.
TARGETS = {}


def fuzzed(function, strategy, **options):
    """Return *function* as a test that hypothesis calls with values of *strategy*."""
    checks = list(HealthCheck)
    options = settings(deadline=None, database=None, suppress_health_check=checks, **options)
    return options(given(strategy)(function))


def target(*strategies):
    """Make a test of a function that gets one value of each strategy."""

    def decorate(function):
        @wraps(function)
        def bounded(values):
            started = time.thread_time()
            function(*values)
            assert time.thread_time() - started < MOST_S

        del bounded.__wrapped__  # hypothesis reads the signature
        TARGETS[function.__name__[len("test_") :]] = bounded, st.tuples(*strategies)
        return fuzzed(bounded, st.tuples(*strategies), max_examples=EXAMPLES, derandomize=True)

    return decorate


# -- Strategies ----------------------------------------------------------------------------------------

texts = st.text(st.characters(), max_size=80)  # with lone surrogates
#: Texts that are nearly right, and those that mean something somewhere.
odd_texts = st.one_of(
    texts,
    st.sampled_from(
        ["", " ", "\0", "\ud800", "NaN", "Infinity", "-0", "1e999", "9" * 400, "null", "\ufeff", "%00"]
    ),
)
json_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
)


def nested(leaves, size=12):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)
        ),
        max_leaves=size,
    )


json_values = nested(json_leaves)


def mixed(*names):
    """Objects with some of these names, whose values are anything that JSON has."""
    return st.dictionaries(
        st.one_of(st.sampled_from(names), st.text(max_size=6)), json_values, max_size=len(names)
    )


def dumped(value):
    return json.dumps(value).encode()


#: Bytes that are JSON, nearly JSON, and no JSON.
bodies = st.one_of(
    st.binary(max_size=200),
    json_values.map(dumped),
    st.tuples(json_values.map(dumped), st.integers(0, 200)).map(lambda pair: pair[0][: pair[1]]),
    st.sampled_from(
        [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5_000, b'"\\ud800"', b"\xef\xbb\xbf{}", b"{}{}"]
    ),
)


zones = st.one_of(st.none(), st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone))
