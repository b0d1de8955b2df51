"""Shared by the commands that send: a configuration, and batches that are sent under their own keys."""

from __future__ import annotations

import time
from collections import deque
from typing import Callable, Deque, List, NamedTuple, Optional, Sequence

from windback.api.answer import Answer, error_of
from windback.config import Config, resolve_for_sender
from windback.delivery import retry_loop
from windback.delivery.retry import RetryPolicy
from windback.delivery.sink import ApiSink
from windback.delivery.verdict import Action, judge
from windback.event.batch import Batch
from windback.http.transport import SyncTransport

#: Retries of a request before a command gives up: half a minute of backoff, plus all Retry-After pauses.
RETRIES = 8


def configuration(
    base_url: Optional[str],
    *,
    api_key: Optional[str] = None,
    timeout_s: float = 10.0,
    compress: bool = False,
) -> Config:
    """Return the configuration of the environment and the options. Raises ConfigurationError."""
    return resolve_for_sender(
        api_key=api_key,
        base_url=base_url,
        timeout=timeout_s,
        max_retries=0,
        compress=compress,
        shutdown_timeout=1.0,
    )


class Outcome(NamedTuple):
    """The result for a batch. rejected: the place in it and the reason, for each event that the API rejected.

    trouble: why the result for some events is not known; None: all were delivered or rejected.
    """

    delivered: int
    rejected: Sequence[Rejection]
    trouble: Optional[str]


class Rejection(NamedTuple):
    """An event that the API rejected."""

    place: int
    reason: str


class BatchSender:
    """Sends batches, from several threads at the same time. sleep: called between two tries."""

    def __init__(self, config: Config, sleep: Callable[[float], None], *, retries: int = RETRIES) -> None:
        self._config = config
        self._retries = retries
        self._sleep = sleep
        self._transport = SyncTransport(config)
        self._sink = ApiSink(self._transport)
        self._gzip = config.compress

    def send(self, records: Sequence[bytes], key: str) -> Outcome:
        """Send *records* until each is delivered or rejected, or a person has to fix something.

        The same records under the same key make the same requests, however they are split.
        """
        waiting: Deque[Batch] = deque([Batch(records, 0, key)] if records else [])
        delivered = 0
        rejected: List[Rejection] = []
        while waiting:
            batch = waiting[0]
            gzip = self._gzip
            answer = self._send_batch(batch, gzip=gzip)
            verdict = judge(answer, events=len(batch), gzipped=gzip)
            if verdict.action is Action.PLAIN:
                self._gzip = False
                continue
            if verdict.action is Action.ACK:
                delivered += len(waiting.popleft())
            elif verdict.action is Action.SPLIT:
                waiting.popleft()
                waiting.extendleft(reversed(batch.halves()))
            elif verdict.action is Action.REJECT and answer.status != 409:
                place = len(records) - sum(map(len, waiting))
                waiting.popleft()
                rejected += [Rejection(place + each, self._text(answer)) for each in range(len(batch))]
            else:
                return Outcome(delivered, rejected, self._text(answer))
        return Outcome(delivered, rejected, None)

    def _send_batch(self, batch: Batch, *, gzip: bool) -> Answer:
        """Send a batch, with retries."""
        return retry_loop.send(
            lambda left_s: self._sink.attempt(batch, left_s, gzip=gzip),
            RetryPolicy(self._retries, self._config.timeout),
            self._sleep,
        )

    def _text(self, answer: Answer) -> str:
        error = error_of(answer, time.time(), self._config.redact)
        # Only one event is left, so its place is not mentioned.
        message = error.message.replace("events[0].", "", 1)
        return f"{error.status}: {message}" if error.status else message

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()
