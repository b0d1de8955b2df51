"""AWS Lambda: deliver what a handler tracked before it answers, for afterwards the process is frozen."""

from __future__ import annotations

import functools
import logging
from typing import Callable, Protocol, TypeVar

from .client import Windback
from .errors import ConfigurationError, WindbackError

logger = logging.getLogger("windback")

Payload = TypeVar("Payload")
Result = TypeVar("Result")


class Context(Protocol):
    """What of Lambda's context object is used."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until Lambda ends the invocation."""
        ...


LambdaContext = TypeVar("LambdaContext", bound=Context)
Handler = Callable[[Payload, LambdaContext], Result]


def flush_after(
    client: Windback, *, timeout: float = 2.0, margin: float = 0.5
) -> Callable[[Handler[Payload, LambdaContext, Result]], Handler[Payload, LambdaContext, Result]]:
    """Decorate a handler, so that each invocation ends with a flush, also one that raises.

    timeout: seconds that the flush may take; margin: seconds before the end of the invocation by which it
    has to be over, should that come first. What is not delivered by then stays queued for the next
    invocation of this process, and a log line says how much. Raises ConfigurationError for a negative number.
    """
    if timeout < 0 or margin < 0:
        message = f"timeout and margin are seconds and not negative, not {timeout} and {margin}"
        raise ConfigurationError(message)

    def decorate(handler: Handler[Payload, LambdaContext, Result]) -> Handler[Payload, LambdaContext, Result]:
        @functools.wraps(handler)
        def flushed(payload: Payload, context: LambdaContext) -> Result:
            try:
                return handler(payload, context)
            finally:
                left_s = context.get_remaining_time_in_millis() / 1000 - margin
                _flush(client, max(0.0, min(timeout, left_s)))

        return flushed

    return decorate


def _flush(client: Windback, timeout: float) -> None:
    try:
        result = client.flush(timeout)
    except WindbackError as error:  # closed; telemetry must not be what an invocation fails of
        logger.warning("nothing was flushed after the handler: %s", error)
        return
    if not result:
        logger.warning("%d events wait for the next invocation of this process", result.pending)
