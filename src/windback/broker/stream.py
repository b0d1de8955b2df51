"""The queue of a relay: batches of one project that applications left in Redis, each under its own key.

An entry of the stream is a batch already, so it is never assembled anew. Every relay sends the same bytes
under the same key, and a relay that takes an entry over splits it the same way.

Only the thread that calls `poll` talks to Redis. Workers settle batches under the scheduler's lock, which
must not wait for a network: they append to `_done` and wake that thread, and it acknowledges.

If a server asks one relay to slow down, this applies to the whole project. The pause is stored in Redis, by
its clock, and the other relays find it there whenever they read.

In an outage a relay keeps entries for long. It announces this regularly (`TOUCH`). An entry that was idle
for `claim_s` belongs to a relay that has exited, and another relay takes it over.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections import deque
from contextlib import suppress
from itertools import chain
from typing import Callable, Deque, Dict, List, NoReturn, Optional, Sequence, Tuple

from .. import clock
from ..event.batch import Batch
from ..outage import OutageLog
from ..queue.line import Line
from ..queue.outbox import Outbox
from ..stats import DeliveryReport
from ..steps import call, in_one_step
from .connection import Connection, pairs
from .layout import (
    FORGET,
    GROUP,
    MAX_DEAD,
    MOVE_TO_DEAD_LETTERS,
    PAUSE,
    READ,
    SETTLE,
    TOUCH,
    BrokerError,
    Entry,
    ForeignError,
    Value,
    entry_of,
    foreign_letter,
    keys_of,
    letters_of,
)

logger = logging.getLogger("windback")

_UNBOUNDED = 1 << 62
#: Pauses while Redis can't be reached (seconds): the first, which doubles, and the longest.
_PAUSE_S, _PAUSE_CAP_S = 0.1, 5.0
#: How long one command may take: stopping a relay waits for it.
_COMMAND_S = 5.0
#: A consumer without entries that was idle for this long is removed (milliseconds).
_FORGOTTEN_MS = 3_600_000
#: Returned entries get this idle time (milliseconds), so that any other relay takes them over immediately.
_GIVEN_BACK_MS = 1 << 40
#: How long the end may wait for Redis.
_END_S = 2.0


class Held:
    """An entry that this relay has read; the source of its batches."""

    __slots__ = ("_done", "_left", "_on_done", "entry", "letters")

    def __init__(self, entry: Entry, done: Deque[Held], on_done: Callable[[], None]) -> None:
        self.entry = entry
        #: Its dead letters, by the key of the rejected batch.
        self.letters: Dict[str, List[Tuple[Value, ...]]] = {}
        self._left = len(entry.records)
        self._done = done
        self._on_done = on_done

    @property
    def name(self) -> str:
        """Its place in Redis."""
        return self.entry.id.decode()

    def lease(self, batch: Batch) -> None:
        """Do nothing: Redis has recorded the consumer."""

    def split(self, batch: Batch, halves: Sequence[Batch]) -> None:
        """Do nothing: Redis has recorded the whole entry."""

    def settle(self, batch: Batch) -> None:
        """Let the entry be acknowledged once all its events are settled."""
        left = self._left - len(batch)
        done = [] if left else [call(self._done.append, self)]
        in_one_step(*done, call(setattr, self, "_left", left), call(setattr, batch, "is_settled", True))
        if not left:
            self._on_done()


class StreamQueue:
    """The entries of one project in Redis. ahead: entries that are read before earlier ones are done."""

    intake = None
    disk = None

    def __init__(
        self,
        place: str,
        project: Optional[str],
        connect: Callable[[float], Connection],
        timeout_s: float,
        claim_s: float,
        ahead: int,
        on_done: Callable[[], None],
    ) -> None:
        self._place = place
        self.project = project
        self._keys = keys_of(project)
        self._connect = connect
        self._timeout_s = min(timeout_s, _COMMAND_S)
        self._claim_s = claim_s
        self._ahead = ahead
        self._on_done = on_done
        self.outbox = Outbox(Line[NoReturn](_UNBOUNDED), move_to_dead_letters=self._keep_letters)
        self._start()

    def reset(self) -> None:
        """Become an empty queue, as in a forked child, which has no entries there."""
        self.outbox.reset(Line(_UNBOUNDED))
        self._start()

    def _start(self) -> None:
        self._connection = self._connect(self._timeout_s)
        self._consumer = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self._is_prepared = False
        #: Whether dead letters were dropped last, for want of room.
        self._is_full = False
        #: What Redis takes for this relay's, by id, until it is acknowledged.
        self._held: Dict[bytes, Held] = {}
        self._done: Deque[Held] = deque()
        #: Entries to acknowledge.
        self._settled: List[bytes] = []
        #: Foreign entries, and what is wrong with each.
        self._foreign: List[Tuple[bytes, Dict[bytes, bytes], str]] = []
        #: Entries with dead letters.
        self._rejected: List[Held] = []
        self._cursor = b"0-0"
        self._claimed_s = self._touched_s = float("-inf")
        self._outage = OutageLog()
        self._retry_s, self._pause_s = 0.0, _PAUSE_S
        #: Until when this relay was asked to wait, to be shared with the others.
        self._pauses: Deque[float] = deque()
        #: Until when all relays of the project wait, according to Redis.
        self.paused_until_s = float("-inf")
        #: Batches taken over from exited relays.
        self.claimed = 0
        #: Why nothing can be read now.
        self.trouble: Optional[str] = None

    @property
    def is_held_back(self) -> bool:
        """Always False: freed room wakes the thread that reads."""
        return False

    # -- the thread that polls -----------------------------------------------------------------

    def poll(self) -> Callable[[], int]:
        """Acknowledge settled entries, read new ones; see RelayQueue. Raises nothing."""
        found: List[Held] = []
        now_s = clock.now_s()
        if now_s >= self._retry_s:
            try:
                self._work(found, now_s)
            except BrokerError as error:
                self._is_ill(error, now_s)
            else:
                self._is_well(now_s)

        def add() -> int:
            self.outbox.add_batches(
                [Batch(held.entry.records, 0, held.entry.key, source=held) for held in found]
            )
            return len(found)

        return add

    def _work(self, found: List[Held], now_s: float) -> None:
        """Raises BrokerError; entries found before that count."""
        self.prepare()
        self._share_pauses()
        self._settle()
        if now_s - self._touched_s >= self._claim_s / 3:
            self._touch(0)
            self._touched_s = now_s
        room = self._ahead - len(self._held)
        if room > 0 and now_s - self._claimed_s >= self._claim_s / 3:
            room -= self._claim(found, room)
            if self._cursor == b"0-0":  # everything was searched
                self._claimed_s = now_s
        self._read(found, room)
        self._move_rejected()

    def _share_pauses(self) -> None:
        while self._pauses:
            left_ms = math.ceil((self._pauses[0] - clock.now_s()) * 1000)
            if left_ms > 0:
                self._connection.script(PAUSE, (self._keys.pause,), left_ms)
            self._pauses.popleft()

    def _read(self, found: List[Held], room: int) -> None:
        """Read up to *room* new entries, and the pause of the project."""
        keys = (self._keys.events, self._keys.pause)
        answer = self._connection.script(READ, keys, GROUP, self._consumer, max(0, room))
        assert isinstance(answer, list)
        left_ms, streams = answer
        if left_ms > 0:
            self.paused_until_s = clock.now_s() + left_ms / 1000
        for _, entries in streams or ():
            self._take(pairs(entries), found)

    def prepare(self) -> None:
        """Check that Redis can be used, and make the group. Raises BrokerError."""
        if self._is_prepared:
            return
        self._connection.check(self._keys)
        try:
            consumers = self._connection.call("XINFO CONSUMERS", self._keys.events, GROUP)
        except BrokerError as error:
            if not error.no_group:
                raise
            self._make_group()  # that needs memory, so it is not tried if there is one
        else:
            for each in consumers if isinstance(consumers, list) else ():
                if not each["pending"] and each["idle"] > _FORGOTTEN_MS:
                    self._connection.script(FORGET, (self._keys.events,), GROUP, each["name"])
        self._is_prepared = True

    def _make_group(self) -> None:
        try:
            self._connection.call("XGROUP", "CREATE", self._keys.events, GROUP, "0", "MKSTREAM")
        except BrokerError as error:
            if "BUSYGROUP" not in error.text:  # another relay was faster
                raise

    def _take(self, entries: List[Tuple[bytes, Dict[bytes, bytes]]], found: List[Held]) -> None:
        for entry_id, fields in entries:
            if entry_id in self._held:  # this relay itself took its entry for abandoned
                continue
            try:
                held = Held(entry_of(entry_id, fields, self.project), self._done, self._on_done)
            except ForeignError as error:
                self._foreign.append((entry_id, fields, str(error)))
            else:
                self._held[entry_id] = held
                found.append(held)

    def _claim(self, found: List[Held], room: int) -> int:
        """Take over the entries of exited relays. Returns how many."""
        idle_ms = int(self._claim_s * 1000)
        command = (
            "XAUTOCLAIM",
            self._keys.events,
            GROUP,
            self._consumer,
            idle_ms,
            self._cursor,
            "COUNT",
            room,
        )
        answer = self._connection.call(*command)
        assert isinstance(answer, (list, tuple))
        cursor, entries = answer[0], pairs(answer[1])
        assert isinstance(cursor, bytes)
        self._cursor = cursor
        before = len(found)
        self._take(entries, found)
        count = len(found) - before
        self.claimed += count
        if count:
            logger.info("broker %s: batches taken over from an exited relay: %d", self._place, count)
        if len(answer) > 2 and answer[2]:
            logger.warning(
                "broker %s: undelivered batches were deleted there by another program: %d",
                self._place,
                len(answer[2]),
            )
        return count

    def _settle(self) -> None:
        """Remove settled entries from Redis, except those with dead letters."""
        while self._done:
            held = self._done.popleft()
            if held.letters:
                self._rejected.append(held)
            else:
                self._settled.append(held.entry.id)
        if self._settled:
            self._connection.script(SETTLE, (self._keys.events,), GROUP, *self._settled)
            for entry_id in self._settled:
                del self._held[entry_id]
            self._settled.clear()

    def _move_rejected(self) -> None:
        """Remove the entries that have dead letters, and foreign entries."""
        while self._rejected:
            held = self._rejected[-1]
            self._to_dead_letters(held.entry.id, [*chain.from_iterable(held.letters.values())])
            del self._held[held.entry.id]
            self._rejected.pop()
        while self._foreign:
            entry_id, fields, why = self._foreign[-1]
            self._to_dead_letters(entry_id, [foreign_letter(entry_id, fields, why)])
            self._foreign.pop()
            logger.warning(
                "broker %s: entry %s is not a valid batch: %s; it was moved to the dead letters",
                self._place,
                entry_id.decode(),
                why,
            )

    def _to_dead_letters(self, entry_id: bytes, letters: Sequence[Tuple[Value, ...]]) -> None:
        packed = [value for letter in letters for value in (len(letter), *letter)]
        dropped = self._connection.script(
            MOVE_TO_DEAD_LETTERS, self._keys[:2], GROUP, entry_id, MAX_DEAD, *packed
        )
        if dropped and not self._is_full:
            logger.warning(
                "broker %s: there are %s dead letters, which is all that are kept: rejected events are "
                "dropped now; see `windback broker replay`",
                self._place,
                f"{MAX_DEAD:,}",
            )
        self._is_full = bool(dropped)

    def _touch(self, idle_ms: int) -> None:
        """Announce that this relay runs; or, with a long time, that others may take its entries."""
        if self._held:
            self._connection.script(TOUCH, (self._keys.events,), GROUP, self._consumer, idle_ms, *self._held)

    def _is_ill(self, error: BrokerError, now_s: float) -> None:
        if error.no_group:  # a Redis without persistence was restarted
            self._is_prepared = False
        self._retry_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_CAP_S)
        if self.trouble is None:
            self._touched_s = float("-inf")
        self.trouble = error.text
        line = self._outage.trouble(now_s, "", 0, 0)
        if line is not None:
            logger.warning("broker %s; retrying until it answers", error.text)

    def _is_well(self, now_s: float) -> None:
        self._pause_s = _PAUSE_S
        if self.trouble is not None:
            self.trouble = None
            self._claimed_s = now_s  # other relays could not announce themselves either
            self._outage.recovered(now_s, 0, 0)
            logger.info("broker %s: it answers again", self._place)

    def left(self) -> int:
        """Return how many entries are in the stream, of any relay. Raises BrokerError."""
        answer = self._connection.call("XLEN", self._keys.events)
        assert isinstance(answer, int)
        return answer

    # -- the drain side, under its lock --------------------------------------------------------

    def share_pause(self, seconds: float) -> None:
        """Make all relays of the project wait for this long."""
        self._pauses.append(clock.now_s() + seconds)
        self._on_done()

    def _keep_letters(self, batch: Batch, report: DeliveryReport) -> bool:
        """Keep the events of a rejected batch as dead letters, which are written when the entry ends."""
        held = batch.source
        assert isinstance(held, Held)
        held.letters[batch.key] = letters_of(held.entry, batch.records, batch.key, report)
        return True

    def release(self) -> None:
        """Acknowledge settled entries, and return the others, so that other relays take them immediately."""
        self._connection.close()
        self._connection = self._connect(min(_END_S, self._timeout_s))
        with suppress(BrokerError):  # they take them over later
            self._settle()
            self._move_rejected()
            self._touch(_GIVEN_BACK_MS)
            self._connection.script(FORGET, (self._keys.events,), GROUP, self._consumer)
        self._connection.close()
