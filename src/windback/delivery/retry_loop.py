"""The loop around tries, for threads and for tasks; tenacity drives it and `delivery.Tries` decides."""

from __future__ import annotations

import random
import time
from typing import Awaitable, Callable, Optional

import tenacity

from .. import clock
from ..api.answer import Answer, Failure
from .retry import Tries

OnTry = Callable[[Answer], object]


def retry(
    attempt: Callable[[float], Answer],
    tries: Tries,
    sleep: Callable[[float], None],
    on_try: Optional[OnTry] = None,
) -> Answer:
    """Call *attempt*, with the seconds that it may take, until an answer settles it or `tries` has enough."""

    def make() -> Answer:
        left_s = tries.left_s(clock.now_s())
        if left_s <= 0.0:
            return tries.last or Answer(None, failure=Failure.TIMEOUT)
        answer = attempt(left_s)
        if on_try is not None:
            on_try(answer)
        return answer

    first = make()
    if first.ok:  # nearly always, and tenacity's loop would cost as much as 20 events
        return first
    answers = [first]
    retrying = tenacity.Retrying(
        retry=lambda state: _again(tries, state),
        wait=lambda _: tries.delay_s,
        sleep=sleep,
    )
    return retrying(lambda: answers.pop() if answers else make())


async def retry_async(
    attempt: Callable[[float], Awaitable[Answer]],
    tries: Tries,
    sleep: Callable[[float], Awaitable[object]],
    on_try: Optional[OnTry] = None,
) -> Answer:
    """Do the same for a task."""

    async def make() -> Answer:
        left_s = tries.left_s(clock.now_s())
        if left_s <= 0.0:
            return tries.last or Answer(None, failure=Failure.TIMEOUT)
        answer = await attempt(left_s)
        if on_try is not None:
            on_try(answer)
        return answer

    first = await make()
    if first.ok:
        return first
    answers = [first]

    async def next_answer() -> Answer:
        return answers.pop() if answers else await make()

    async def nap(seconds: float) -> None:
        await sleep(seconds)

    retrying = tenacity.AsyncRetrying(
        retry=lambda state: _again(tries, state),
        wait=lambda _: tries.delay_s,
        sleep=nap,
    )
    return await retrying(next_answer)


def _again(tries: Tries, state: tenacity.RetryCallState) -> bool:
    assert state.outcome is not None
    answer: Answer = state.outcome.result()
    dice = random.random()
    return tries.again(answer, now_s=clock.now_s(), wall_s=time.time(), dice=dice)
