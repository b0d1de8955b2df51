"""The loop around tries: how many are made, how long each may take, and what is told between them."""

from __future__ import annotations

import asyncio

import pytest

from windback import clock
from windback.api.answer import Answer, Failure
from windback.delivery import retry_loop
from windback.delivery.retry import RetryPolicy

OK, DOWN, BAD = Answer(200), Answer(500), Answer(400)


class Run:
    """Calls the loop with tries that give *answers*, and records what happens in which order."""

    def __init__(self, kind, answers, policy, *, on_sleep=lambda: None):
        self.events = []
        self._answers = list(answers)
        self._on_sleep = on_sleep
        self.answer = self._send(policy) if kind == "sync" else asyncio.run(self._send_async(policy))

    def _attempt(self, left_s):
        self.lefts = [*getattr(self, "lefts", []), left_s]
        given = self._answers.pop(0)
        self.events.append(given)
        if isinstance(given, BaseException):
            raise given
        return given

    def _sleep(self, seconds):
        self.events.append("sleep")
        assert seconds >= 0
        self._on_sleep()

    def _failed(self, answer):
        self.events.append(("failed", answer))

    def _send(self, policy):
        return retry_loop.send(self._attempt, policy, self._sleep, self._failed)

    async def _send_async(self, policy):
        async def attempt(left_s):
            return self._attempt(left_s)

        async def sleep(seconds):
            self._sleep(seconds)

        return await retry_loop.send_async(attempt, policy, sleep, self._failed)


@pytest.fixture(params=["sync", "async"])
def run(request):
    return lambda *args, **options: Run(request.param, *args, **options)


def test_a_first_try_that_succeeds_is_all(run):
    seen = run([OK], RetryPolicy(3, 10.0))
    assert (seen.answer, seen.events, seen.lefts) == (OK, [OK], [10.0])


def test_each_failure_is_told_before_the_wait_for_the_next_try(run):
    seen = run([DOWN, DOWN, OK], RetryPolicy(3, 10.0))
    failure = [DOWN, ("failed", DOWN), "sleep"]
    assert seen.events == [*failure, *failure, OK]
    assert seen.answer is OK


def test_the_last_answer_is_returned_when_the_tries_are_used_up(run):
    others = [Answer(500, {"n": str(n)}) for n in range(3)]
    seen = run(others, RetryPolicy(2, 10.0))
    assert seen.answer is others[2]
    assert [each for each in seen.events if each != "sleep"] == [
        step for each in others for step in (each, ("failed", each))
    ]
    assert seen.events.count("sleep") == 2


def test_what_no_other_try_would_change_ends_it(run):
    seen = run([DOWN, BAD], RetryPolicy(5, 10.0))
    assert seen.answer is BAD
    assert seen.events == [DOWN, ("failed", DOWN), "sleep", BAD, ("failed", BAD)]


def test_without_time_no_try_is_made_and_none_is_reported(run):
    seen = run([], RetryPolicy(3, 10.0, deadline_s=clock.now_s() - 1))
    assert seen.answer == Answer(None, failure=Failure.TIMEOUT)
    assert seen.events == []


def test_who_gives_up_during_the_wait_gets_the_last_answer(run):
    given_up = []
    policy = RetryPolicy(9, 10.0, is_over=lambda: bool(given_up))
    seen = run([DOWN], policy, on_sleep=lambda: given_up.append(True))
    assert seen.answer is DOWN
    assert seen.events == [DOWN, ("failed", DOWN), "sleep"]


def test_no_wait_begins_that_would_pass_the_deadline(run):
    far = Answer(429, {"retry-after": "60"})
    seen = run([far], RetryPolicy(9, 10.0, deadline_s=clock.now_s() + 30))
    assert seen.answer is far
    assert seen.events == [far, ("failed", far)]
    assert 0 < seen.lefts[0] <= 10.0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), ValueError("boom")], ids=repr)
@pytest.mark.parametrize("before", [[], [DOWN]], ids=["first try", "second try"])
def test_an_exception_of_a_try_ends_the_loop_as_it_is(run, error, before):
    with pytest.raises(type(error)) as caught:
        run([*before, error], RetryPolicy(3, 10.0))
    assert caught.value is error
