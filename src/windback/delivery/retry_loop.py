"""The one loop around tries, for threads and for tasks: tenacity drives it and a `RetryPolicy` decides.

Workers, track_events and plain calls come here with a function that makes one try. The first try is made
before tenacity is asked: nearly always it succeeds, and tenacity's loop would cost as much as 20 events.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Awaitable, Callable, Optional

from .. import clock, event_loops
from ..api.answer import Answer, Failure
from ..process import lifecycle
from .retry import RetryPolicy, jitter, retry_delay_s

if TYPE_CHECKING:
    from tenacity import RetryCallState

#: Gets the answer of each try that failed, before the wait for the next one.
OnFailure = Callable[[Answer], object]


def send(
    attempt: Callable[[float], Answer],
    policy: RetryPolicy,
    sleep: Callable[[float], None] = clock.sleep,
    on_failure: Optional[OnFailure] = None,
) -> Answer:
    """Make tries until one succeeds or *policy* allows no other.

    Args:
        attempt: Makes one try; gets the seconds that it may take.
        policy: Decides whether there is another try, and after how long.
        sleep: Waits the given seconds between two tries.
        on_failure: Called after each try that failed.

    Returns:
        The answer to the last try; Failure.TIMEOUT if there was no time for any.
    """
    left_s = policy.left_s(clock.now_s())
    answer = Answer(None, failure=Failure.TIMEOUT) if left_s <= 0.0 else attempt(left_s)
    if answer.ok or left_s <= 0.0:
        return answer
    load()
    from tenacity import Retrying

    plan = _Plan(policy)
    for each in Retrying(
        retry=plan.retry, wait=plan.wait, stop=plan.stop, sleep=sleep, retry_error_callback=_last_answer
    ):
        if each.retry_state.attempt_number > 1:
            left_s = policy.left_s(clock.now_s())
            if left_s <= 0.0:
                break
            answer = attempt(left_s)
        if not answer.ok and on_failure is not None:
            on_failure(answer)
        each.retry_state.set_result(answer)
    return answer


async def send_async(
    attempt: Callable[[float], Awaitable[Answer]],
    policy: RetryPolicy,
    sleep: Callable[[float], Awaitable[None]] = event_loops.sleep,
    on_failure: Optional[OnFailure] = None,
) -> Answer:
    """Do what `send` does, in a task."""
    left_s = policy.left_s(clock.now_s())
    answer = Answer(None, failure=Failure.TIMEOUT) if left_s <= 0.0 else await attempt(left_s)
    if answer.ok or left_s <= 0.0:
        return answer
    from tenacity import AsyncRetrying  # loaded already: it would block the event loop

    plan = _Plan(policy)
    async for each in AsyncRetrying(
        retry=plan.retry, wait=plan.wait, stop=plan.stop, sleep=sleep, retry_error_callback=_last_answer
    ):
        if each.retry_state.attempt_number > 1:
            left_s = policy.left_s(clock.now_s())
            if left_s <= 0.0:
                break
            answer = await attempt(left_s)
        if not answer.ok and on_failure is not None:
            on_failure(answer)
        each.retry_state.set_result(answer)
    return answer


def load() -> None:
    """Load tenacity, and no fork happens halfway. It loads asyncio, so who never fails starts sooner."""
    with lifecycle.loading:
        importlib.import_module("tenacity")


class _Plan:
    """The answers of a policy to what tenacity asks."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._delay_s = 0.0

    def retry(self, state: RetryCallState) -> bool:
        answer = _last_answer(state)
        # Older versions of tenacity ask for the wait after the stop, which depends on it.
        self._delay_s = retry_delay_s(answer, state.attempt_number, jitter(), time.time())
        return self._policy.allows_retry(answer, state.attempt_number)

    def stop(self, state: RetryCallState) -> bool:
        return self._policy.is_last(state.attempt_number, clock.now_s(), self._delay_s)

    def wait(self, state: RetryCallState) -> float:
        del state
        return self._delay_s


def _last_answer(state: RetryCallState) -> Answer:
    assert state.outcome is not None
    answer: Answer = state.outcome.result()
    return answer
