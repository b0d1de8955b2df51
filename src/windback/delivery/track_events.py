"""track_events: batches that the caller sends, one after the other.

Pure: returns the next batch, and records the answer to it.
"""

from __future__ import annotations

from collections import deque
from typing import Callable, Deque, Iterable, List, Optional, Sequence

from ..api.answer import Answer, error_of
from ..errors import InvalidEventError
from ..event import batch as batching
from ..event.batch import Batch, Limits
from ..event.encode import Encode, Event, check_fields
from ..models import TrackResult
from .verdict import Action, judge


def encode_all(events: object, encode: Encode, max_event_bytes: int) -> List[Optional[bytes]]:
    """Encode every event before any is sent; None for one that before_send refused.

    Raises InvalidEventError with the index of the first that can't be sent.
    """
    if isinstance(events, (str, bytes, dict)) or not isinstance(events, Iterable):
        raise InvalidEventError(
            f"track_events takes a list of events, not a {type(events).__name__}; track_event takes one",
            path="events",
        )
    records = []
    for index, event in enumerate(events):
        try:
            fields = check_fields(event)
            records.append(_encode_fields(fields, encode, max_event_bytes))
        except InvalidEventError as error:
            raise error.at(index) from None
    return records


def _encode_fields(fields: Event, encode: Encode, max_event_bytes: int) -> Optional[bytes]:
    # `encode` checks the types, which a mapping does not promise.
    return encode(
        fields.get("event"),  # type: ignore[arg-type]
        fields.get("customer_email"),  # type: ignore[arg-type]
        fields.get("properties"),  # type: ignore[arg-type]
        fields.get("timestamp"),  # type: ignore[arg-type]
        max_event_bytes,
    )


class DirectSend:
    """The batches of one track_events call."""

    def __init__(self, records: Sequence[Optional[bytes]], limits: Limits, *, gzip: bool) -> None:
        wanted = [record for record in records if record is not None]
        self.gzip = gzip
        self._batches: Deque[Batch] = deque(Batch(part, 0) for part in batching.chunks(wanted, limits))
        self._total = len(wanted)
        self._refused = len(records) - len(wanted)
        self._sent = self._requests = 0

    def next_batch(self) -> Optional[Batch]:
        """Return the batch to send now, None after the last."""
        return self._batches[0] if self._batches else None

    def take_all(self) -> List[bytes]:
        """Return all events, as if all batches were delivered; for tests that capture them."""
        taken = [record for batch in self._batches for record in batch.records]
        self._sent, self._requests = len(taken), len(self._batches)
        self._batches.clear()
        return taken

    def settle(self, batch: Batch, answer: Answer, wall_s: float, redact: Callable[[str], str]) -> None:
        """Record the answer to the last try of *batch*. Raises its error, unless the batch can be split."""
        verdict = judge(answer, events=len(batch), gzipped=self.gzip)
        if verdict.action is Action.PLAIN:
            self.gzip = False
            return
        if verdict.action is Action.ACK:
            self._batches.popleft()
            self._sent += len(batch)
            self._requests += 1
            return
        if verdict.action is Action.SPLIT and answer.status == 413:
            self._batches.popleft()
            self._batches.extendleft(reversed(batch.halves()))
            return
        error = error_of(answer, wall_s, redact)
        if self._sent:
            error.message += f" ({self._sent} of {self._total} events were delivered before)"
            error.args = (error.message,)
        raise error

    def result(self) -> TrackResult:
        """Return the counts, after the last batch."""
        return TrackResult(sent=self._sent, requests=self._requests, refused=self._refused)
