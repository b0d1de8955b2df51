"""Nothing is lost without a number, at any instant, whatever the server does: see `Stats`."""

from __future__ import annotations

import random
import threading
from collections import Counter

import pytest
from tracking import OPTIONS

from windback import QueueFullError, Windback

THREADS = 8


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """The pauses of an outage, made so short that many of them fit into a test."""
    monkeypatch.setattr("windback.delivery.retry.backoff_s", lambda attempt, rng, **_: rng * 0.004 * attempt)
    monkeypatch.setattr("windback.delivery.gate.OUTAGE_CAP_S", 0.02)


PASSING = [
    {"status": 500},
    {"status": 503, "retry_after": 0.01},
    {"status": 429, "retry_after": 0.02},
    {"status": 429},
    {"status": 408},
    {"status": 502, "body": "<html>bad gateway</html>"},
    {"drop": "before"},
    {"latency": 0.01},
]
#: The answer is lost after the server took the events: the repeat has to be seen as one.
LOST = [{"drop": "after"}]
#: Never beside LOST: no server takes a batch and calls it invalid when it comes again.
FINAL = [{"status": 400}, {"status": 413}, {"status": 422, "event": "poison", "rate": 1}]


def random_faults(rng, kinds):
    """A fifth to a half of all requests go wrong, each in its way."""
    return [
        {"path": "/track", "rate": 0.02 + 0.06 * rng.random(), "seed": rng.randrange(1 << 30), **kind}
        for kind in (*PASSING, *kinds)
    ]


class Watcher(threading.Thread):
    """Looks at stats() without pause, and keeps whatever it saw that can't be."""

    def __init__(self, client):
        super().__init__(daemon=True)
        self._client = client
        self._stop_it = threading.Event()
        self.wrong = []
        self.looks = 0

    def run(self):
        last = self._client.stats()
        while not self._stop_it.is_set():
            stats = self._client.stats()
            self.looks += 1
            problems = [
                stats.accepted != stats.delivered + stats.rejected + stats.dropped + stats.pending,
                stats.in_flight > stats.pending,
                min(stats.pending, stats.in_flight, stats.pending_bytes) < 0,
                sum(stats.rejected_by_reason.values()) != stats.rejected,
                sum(stats.dropped_by_reason.values()) != stats.dropped,
                # What is counted once stays counted.
                any(
                    getattr(stats, name) < getattr(last, name)
                    for name in ("accepted", "delivered", "rejected", "dropped", "requests", "retries")
                ),
            ]
            if any(problems) and len(self.wrong) < 5:
                self.wrong.append((problems, last, stats))
            last = stats

    def end(self):
        self._stop_it.set()
        self.join()
        assert self.looks > 10
        assert self.wrong == []


def track_from_threads(client, count):
    """Track *count* events in each of the threads; return how each of them was answered, by its id."""
    answers = {}
    together = threading.Barrier(THREADS)
    failures = []

    def work(thread):
        together.wait()
        for n in range(count):
            who = f"{thread}-{n}"
            try:
                answers[who] = client.track_event(
                    "login" if n % 100 else "poison", "jane@example.com", {"who": who, "pad": "x" * (n % 50)}
                )
            except QueueFullError:
                answers[who] = "raised"
            except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
                failures.append(error)
                return

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(answers) == THREADS * count
    return answers


def check_end(server, client, answers, reports):
    """The client's numbers, the callers', the hook's and the server's are the same ones."""
    stats = client.stats()
    counts = Counter(answers.values())
    assert stats.accepted == counts[True]
    assert stats.refused.get("queue_full", 0) == counts[False] + counts["raised"]
    assert stats.pending == stats.in_flight == stats.pending_bytes == 0
    assert stats.accepted == stats.delivered + stats.rejected + stats.dropped
    assert (stats.worker_deaths, stats.hook_errors) == (0, 0)
    events = server.events()
    assert [stored for stored in events if "who" not in stored.properties] == []
    arrived = Counter(stored.properties["who"] for stored in events)
    assert set(arrived) <= {who for who, answer in answers.items() if answer is True}
    assert {who: times for who, times in arrived.items() if times > 1} == {}
    assert len(arrived) == stats.delivered
    reported = Counter()
    for report in reports:
        reported[report.outcome] += report.count
    counted = {"delivered": stats.delivered, "rejected": stats.rejected, "dropped": stats.dropped}
    assert reported == {outcome: count for outcome, count in counted.items() if count}
    return stats


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kinds", [LOST, FINAL], ids=["lost", "final"])
def test_random_faults_lose_nothing(server, seed, kinds):
    server.faults(random_faults(random.Random(seed), kinds))
    reports = []
    client = Windback(
        **OPTIONS, base_url=server.url, batch_size=20, flush_interval=0.005, on_delivery=reports.append
    )
    watcher = Watcher(client)
    watcher.start()
    answers = track_from_threads(client, 250)
    assert client.flush(25), client.stats()
    watcher.end()
    assert client.close()
    stats = check_end(server, client, answers, reports)
    assert stats.accepted == THREADS * 250
    assert stats.dropped == 0
    assert stats.retries > 0
    assert stats.requests == server.counts().track_requests
    if kinds is LOST:
        assert stats.delivered == stats.accepted
        assert server.counts().duplicates > 0
    else:
        assert set(stats.rejected_by_reason) <= {"invalid", "too_large"}
        assert stats.rejected > 0


@pytest.mark.parametrize(
    "bound",
    [{"max_queue_size": 30}, {"max_queue_bytes": 4_000, "max_event_bytes": 1_000}],
    ids=["count", "bytes"],
)
@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest", "block", "raise"])
def test_a_tiny_queue_and_random_faults(server, overflow, bound):
    server.faults(random_faults(random.Random(overflow), LOST))
    reports = []
    client = Windback(
        **OPTIONS, **bound, base_url=server.url, overflow=overflow, block_timeout=30, batch_size=10,
        flush_interval=0.005, on_delivery=reports.append,
    )  # fmt: skip
    watcher = Watcher(client)
    watcher.start()
    answers = track_from_threads(client, 20 if overflow == "block" else 1_000)
    assert client.flush(25), client.stats()
    watcher.end()
    assert client.close()
    stats = check_end(server, client, answers, reports)
    counts = Counter(answers.values())
    if overflow == "drop_newest":
        assert counts[False] > 0
        assert counts["raised"] == stats.dropped == 0
    elif overflow == "drop_oldest":
        assert stats.dropped_by_reason["queue_full"] > 0
        assert counts["raised"] == 0
    elif overflow == "block":
        assert counts[True] == len(answers)
        assert stats.dropped == 0
    else:
        assert counts["raised"] > 0
        assert counts[False] == stats.dropped == 0


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_a_close_in_the_middle(server, eventually, overflow):
    """Every event is delivered, rejected, dropped by the close, or was refused by it."""
    server.faults([*random_faults(random.Random(7), LOST), {"path": "/track", "latency": 0.05}])
    reports = []
    client = Windback(
        **OPTIONS, base_url=server.url, overflow=overflow, max_queue_size=5_000, batch_size=10,
        flush_interval=0.005, on_delivery=reports.append,
    )  # fmt: skip
    accepted = []
    enough = threading.Event()

    def work(thread):
        n = 0
        while True:
            if client.track_event("login", "jane@example.com", {"who": f"{thread}-{n}"}):
                accepted.append(f"{thread}-{n}")
            elif client.stats().refused.get("closed"):
                return
            n += 1
            if n == 500:
                enough.set()

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    watcher = Watcher(client)
    watcher.start()
    for thread in threads:
        thread.start()
    assert enough.wait(20)
    result = client.close(0.2)
    for thread in threads:
        thread.join(20)
    eventually(lambda: client.stats().pending == 0)  # a request under way is settled by its answer
    watcher.end()
    stats = client.stats()
    assert stats.accepted == len(accepted) == len(set(accepted))
    assert stats.accepted == stats.delivered + stats.rejected + stats.dropped
    # What no longer got out was dropped by the deadline; the close itself evicts nothing.
    assert stats.dropped_by_reason["closed"] > 0
    # Of each thread one more, at most, that was accepted while the close began.
    assert result.pending + THREADS >= stats.dropped_by_reason["closed"]
    arrived = [stored.properties["who"] for stored in server.events()]
    assert len(arrived) == len(set(arrived)) >= stats.delivered
    assert set(arrived) <= set(accepted)
