"""What the two sides of one queue share: the events that wait, and how many bytes are held."""

from __future__ import annotations

from collections import deque
from typing import Deque, Generic, Optional, TypeVar, Union

from ..stats import AtomicCounter

Place = TypeVar("Place")


class Line(Generic[Place]):
    """Events in order, each as bytes or, if it is in a journal, as the place where it is.

    The callers' side appends and the drain side pops; under overflow="drop_oldest" callers pop, too.
    max_events: the bound of a queue in memory. length: if it is given, older items are forgotten.
    evicts: callers may pop.
    """

    __slots__ = ("announced", "evicted", "evicts", "in_memory", "items", "max_events", "move_bytes")

    def __init__(self, max_events: int, length: Optional[int] = None, *, evicts: bool = False) -> None:
        self.max_events = max_events
        self.evicts = evicts
        self.items: Deque[Union[bytes, Place]] = deque(maxlen=length)
        bytes_held = AtomicCounter()
        #: Adds to the bytes of all events held, leased ones included.
        self.move_bytes = bytes_held.move
        #: Counts the events that callers discarded, each in the step in which it leaves.
        self.evicted = AtomicCounter()
        #: In a queue with a journal: bytes of the events that wait in memory instead.
        self.in_memory = AtomicCounter()
        #: Holds one item while nothing was logged about a full queue; each time there is room again, it does.
        self.announced: Deque[bool] = deque((False,))
