"""Several changes in one step: nothing can come between them, and no reader sees them half made.

CPython runs a call of a function written in C to its end before anything else happens in the interpreter:
no other thread, signal handler, finalizer or exception from outside. An iterator that is written in C and
calls only such functions makes several calls of them one. That is how an event leaves a queue and is in a
batch, or how a batch is settled and counted, without a lock that a caller or a reader would have to take.

Two rules keep a step whole when memory runs out in its middle. A call that may allocate comes first, where
its failure changes nothing, or last, where it has done its work before its result is allocated. And the
functions may call no Python code: no `__eq__`, `__hash__` or `__del__` of a class.
"""

from __future__ import annotations

from collections import deque
from itertools import chain, starmap
from typing import Callable, Iterable, Iterator


def call(function: Callable[..., object], *arguments: object) -> Iterator[object]:
    """Return a call that `in_one_step` makes."""
    return starmap(function, (arguments,))


def in_one_step(*calls: Iterable[object]) -> None:
    """Make all *calls*, in order. The first that raises ends the step, and what it raised is raised."""
    deque(chain.from_iterable(calls), maxlen=0)
