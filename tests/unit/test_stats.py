"""Counters that no thread spoils, and the values that report them."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from windback import DeliveryReport, FlushResult, Stats
from windback.stats import AtomicCounter


def test_a_counter_adds_and_reports_the_new_value():
    counter = AtomicCounter()
    assert counter.value() == 0
    assert counter.add() == 1
    assert counter.add(41) == 42
    assert counter.add(-2) == 40
    assert counter.move(-40, 1) == 0
    assert counter.value() == 0


def test_a_counter_counts_beyond_any_size_of_memory():
    counter = AtomicCounter()
    counter.add(2**62)
    assert counter.add(5) == 2**62 + 5


def test_no_addition_is_lost_between_threads(eager_switches):
    counter = AtomicCounter()
    values = [[] for _ in range(8)]

    def run(mine):
        for _ in range(5_000):
            mine.append(counter.add())

    threads = [threading.Thread(target=run, args=(mine,)) for mine in values]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert counter.value() == 40_000
    assert sorted(value for mine in values for value in mine) == list(range(1, 40_001))


def test_a_flush_is_true_only_if_nothing_is_left():
    assert FlushResult(pending=0, delivered=3, rejected=1, dropped=1)
    assert not FlushResult(pending=1, delivered=3, rejected=0, dropped=0)


def test_a_report_decodes_its_events_at_each_access():
    report = DeliveryReport("delivered", 2, "ok", 200, None, "key-1", [b'{"n":1}', b'{"n":2}'])
    assert report.events == [{"n": 1}, {"n": 2}]
    assert report.events is not report.events
    assert '"n"' not in repr(report), "events are customers' data, and reports get logged"
    assert DeliveryReport("dropped", 3, "queue_full").events == []


@pytest.mark.parametrize(
    "value", [Stats(), FlushResult(0, 0, 0, 0), DeliveryReport("delivered", 0, "ok")], ids=repr
)
def test_what_reports_is_frozen(value):
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, 1)
