"""A queue of either kind, and who was called by it."""

from __future__ import annotations

import contextlib
import threading

from sides import journal_queue, memory_queue

from windback import QueueFullError
from windback.event.batch import Limits
from windback.journal import format as fmt
from windback.journal import segment
from windback.journal.directory import names
from windback.queue.intake import NoRoomError

LIMITS = Limits(100, 500_000, 1.0)


THREADS = 8
MIB = 1 << 20


class Made:
    """A queue, who was called by it, and its drain side as one call."""

    def __init__(self, kind, root, *, max_events=500_000, max_bytes=64 * MIB, overflow="drop_newest", **more):
        self.wakes = 0
        self.full = []
        bounds = max_events, max_bytes, overflow, self.wake, self.full.append
        if kind == "memory":
            self.queue = memory_queue(*bounds)
        else:
            self.queue = journal_queue(*bounds, root, more.get("max_journal_bytes", 64 * MIB))
        if kind == "journal":
            self.queue.writer.prepare()
        self.put = self.queue.put

    def wake(self):
        self.wakes += 1

    def maintain(self):
        while getattr(self.queue, "needs_maintenance", False):
            self.queue.maintain()()

    def take(self, limits=LIMITS):
        self.maintain()
        return self.queue.take(limits)

    def drain(self, limits=LIMITS):
        """Take and ack everything; return the events."""
        records = []
        while True:
            batch = self.take(limits)
            if batch is None:
                self.maintain()
                return records
            records += batch.records
            self.queue.ack(batch)


@contextlib.contextmanager
def making_queues(root):
    """Make queues, which are let go of at the end, whatever becomes of them in between."""
    made = []

    def make(kind="journal", root=root, **options):
        made.append(Made(kind, root, **options))
        return made[-1]

    yield make
    for each in made:
        each.queue.reset()


def fill(made, count, start=0):
    return [made.put(b"%d" % n) for n in range(start, start + count)]


def crash(made):
    """Leave all files as they are and free the locks, as the kernel does for a process that is killed."""
    made.queue.reset()


def files(root):
    return sorted(path.name for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")


def on_disk(root):
    """Every valid record of events under *root*, by place."""
    found = {}
    for name in names(root):
        for segment_id in segment.ids(root / name, fmt.EVENTS):
            data = segment.path_of(root / name, fmt.EVENTS, segment_id).read_bytes()
            for record in fmt.scan(data, fmt.seed(int(name, 16), segment_id, fmt.EVENTS)):
                found[name, segment_id, record.at] = record.payload
    return found


def fill_up(made):
    """Put until nothing more fits; return how many did."""
    for n in range(1_000):
        try:
            if not made.put(b"%05d" % n + b"x" * 59_995):
                return n
        except (QueueFullError, NoRoomError):
            return n
    raise AssertionError("this queue has no bound")


def run_threads(work, count=THREADS):
    """Run *work* in threads at once; what one of them raises is raised here."""
    failures = []
    together = threading.Barrier(count)

    def main(n):
        together.wait()
        try:
            work(n)
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=main, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    return threads, failures
