"""`max_journal_bytes` counts everything in the directory, and a process takes little of it.

What counts is what the disk has given: a segment of 1 MiB with one event in it may be nearly all hole.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import List

import pytest
from inside import journal_of, queue_of, start_no_worker
from tracking import left_in

from windback import Windback
from windback.journal import format as fmt
from windback.journal.directory import names

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")

MIB = 1 << 20
BOUND = 8 * MIB
TOOLS = """\
import os, signal, sys, time
from windback import Windback

def make(root, **options):
    return Windback(journal=root, max_journal_bytes=8 << 20, shutdown_timeout=0.1, **options)

def track(client, *numbers, pad=0):
    return [client.track_event("login", "jane@example.com", {"n": n, "pad": "x" * pad}) for n in numbers]

"""


def taken_under(root: Path) -> int:
    """What the disk has given to everything under *root*."""
    return sum(path.lstat().st_blocks * 512 for path in root.rglob("*"))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "journal"


def deliver_rest(root, server, eventually):
    """Have a client deliver what is there; the numbers that have arrived."""
    with Windback(api_key="sk_test_1", base_url=server.url, journal=root, flush_interval=0.01) as client:
        client.track_event("login", "jane@example.com", {"n": -1})
        eventually(lambda: not [name for name in names(root) if name != journal_of(client).name])
        assert client.flush(20)
    return sorted(event.properties["n"] for event in server.events())


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "client.close(0); os._exit(0)"])
def test_a_program_that_tracks_one_event_and_ends_while_the_server_is_down_never_fills_the_journal(
    root, server, run, dead_url, eventually, end
):
    code = f"""\
accepted = 0
for n in range(60):
    there, here = os.pipe()
    child = os.fork()
    if not child:
        client = make({str(root)!r})
        os.write(here, b"%d" % track(client, n)[0])
        {end}
    os.waitpid(child, 0)
    accepted += int(os.read(there, 9))
    os.close(there)
    os.close(here)
print(accepted)
"""
    ended = run(TOOLS + code, url=dead_url)
    assert (ended.status, ended.out) == (0, ["60"])
    assert taken_under(root) <= BOUND
    assert deliver_rest(root, server, eventually) == list(range(-1, 60))


def test_small_leftovers_are_merged_so_a_crash_loop_takes_what_its_events_need(
    root, server, run, dead_url, eventually
):
    """Also where little of the bound is left. One event takes 200 bytes, and a directory three pages."""
    root.mkdir(0o700)
    (root / "dead").mkdir(0o700)
    (root / "dead" / "0123456789abcdef.jsonl").write_bytes(b"x" * (BOUND - MIB))
    code = f"""\
accepted = 0
for n in range(150):
    there, here = os.pipe()
    child = os.fork()
    if not child:
        os.write(here, b"%d" % track(make({str(root)!r}), n)[0])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    accepted += int(os.read(there, 9))
    os.close(there)
    os.close(here)
print(accepted)
"""
    ended = run(TOOLS + code, url=dead_url, within_s=200)
    assert (ended.status, ended.out) == (0, ["150"]), ended
    assert taken_under(root) <= BOUND
    assert len(names(root)) < 20
    assert deliver_rest(root, server, eventually) == list(range(-1, 150))


def test_processes_that_run_at_the_same_time_share_the_bound(root, server, run, dead_url, eventually):
    """Each of them has a segment and a ledger of its own, and none takes what is not there."""
    code = f"""\
there, here = os.pipe()
ready, go = os.pipe()
for n in range(24):
    if not os.fork():
        client = make({str(root)!r}, worker="thread")
        os.close(go)
        os.write(here, b"%d" % track(client, n)[0])
        os.read(ready, 1)
        os.kill(os.getpid(), signal.SIGKILL)
print(sum(int(os.read(there, 1)) for _ in range(24)))
total = sum(os.lstat(os.path.join(folder, file)).st_blocks * 512
            for folder, _, files in os.walk({str(root)!r}) for file in files)
print(total <= 8 << 20, total)
os.close(go)
for _ in range(24):
    os.wait()
"""
    ended = run(TOOLS + code, url=dead_url)
    assert (ended.status, ended.out[0], ended.out[1][:4]) == (0, "24", "True"), ended
    assert deliver_rest(root, server, eventually) == list(range(-1, 24))


def test_at_the_bound_events_are_refused_whatever_takes_the_room(root, dead_url):
    """Files of other programs too, and dead letters: the bound is what the user wants to give in all."""
    root.mkdir(0o700)
    (root / "dead").mkdir(0o700)
    (root / "dead" / "0123456789abcdef.jsonl").write_bytes(b"x" * (BOUND - MIB))
    client = Windback(
        api_key="sk_test_1", base_url=dead_url, journal=root, max_journal_bytes=BOUND, shutdown_timeout=0
    )
    accepted = [client.track_event("login", "jane@example.com", {"pad": "x" * 10_000}) for _ in range(1_000)]
    assert 20 < sum(accepted) < 100
    assert taken_under(root) <= BOUND
    assert client.stats().refused["queue_full"] == 1_000 - sum(accepted)
    client.close(0)


def test_what_a_process_costs_before_its_first_event_and_after_it_near_the_bound(root, dead_url):
    """docs/durability.md says these numbers."""
    options = {"api_key": "sk_test_1", "base_url": dead_url, "shutdown_timeout": 0}
    client = Windback(**options, journal=root)
    assert taken_under(root) <= 2 * fmt.SMALL_BYTES + 4096
    client.close(0)
    root.joinpath("ballast").write_bytes(b"x" * (BOUND // 2))
    before = taken_under(root)
    client = Windback(**options, journal=root, max_journal_bytes=BOUND)
    client.track_event("login", "jane@example.com")
    queue_of(client).maintain()
    assert taken_under(root) - before <= 3 * fmt.SMALL_BYTES + 4096
    client.close(0)
    assert (
        taken_under(root) - before <= 16_384
    )  # what is left: a directory, a segment with an event, and a ledger


def test_a_leftover_is_whole_after_the_unused_part_was_given_back(root, server, run, dead_url, eventually):
    """A bound that is reached has exited processes' segments cut; events of all sizes are still there."""
    code = f"""\
client = make({str(root)!r}, max_event_bytes=200_000)
track(client, *range(100), pad=1_000)
track(client, *range(100, 110), pad=120_000)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(TOOLS + code, url=dead_url).status == -signal.SIGKILL
    before = taken_under(root)
    client = Windback(
        api_key="sk_test_1", base_url=dead_url, journal=root, max_journal_bytes=BOUND, shutdown_timeout=0
    )
    start_no_worker(client)
    while client.track_event("login", "jane@example.com", {"n": -2, "pad": "x" * 20_000}):
        pass
    assert taken_under(root) <= BOUND
    mine = journal_of(client).name
    others = sum(path.lstat().st_blocks * 512 for path in root.rglob("*.seg") if mine not in str(path))
    assert others < before
    queue_of(client).reset()
    client.close(0)
    arrived = [n for n in deliver_rest(root, server, eventually) if n >= 0]
    assert arrived == list(range(110))
    assert left_in(root) == []


def test_a_cut_that_is_itself_cut_off_costs_nothing(root, server, run, dead_url, eventually):
    """Killed between the two steps of giving back, a process leaves a segment that is short."""
    code = f"""\
client = make({str(root)!r})
track(client, *range(50))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(TOOLS + code, url=dead_url).status == -signal.SIGKILL
    for path in root.rglob("*.seg"):
        end = len(path.read_bytes().rstrip(b"\0"))
        os.truncate(path, max(end, fmt.HEADER_BYTES))
    assert deliver_rest(root, server, eventually) == list(range(-1, 50))
    assert not (root / "bad").exists()


@pytest.mark.parametrize("fsync", [None, "batch"])
@pytest.mark.parametrize("worker", ["thread", "process"])
def test_a_long_outage_takes_no_more_descriptors_than_a_short_one(root, server, worker, fsync):
    """An application has 1,024 of them by default, and its own files and connections need them."""
    server.faults([{"status": 503}])
    client = Windback(
        api_key="sk_test_1",
        base_url=server.url,
        journal=root,
        worker=worker,
        fsync=fsync,
        flush_interval=0.01,
    )
    most = {}
    numbers = iter(range(10_000))
    for segments in (10, 40):
        while len(list(root.rglob("*.seg"))) < segments:
            assert client.track_event("login", "jane@example.com", {"n": next(numbers), "pad": "x" * 30_000})
            most[segments] = max(most.get(segments, 0), len(list(Path("/dev/fd").iterdir())))
    assert most[40] < most[10] + 20  # each of the 30 segments in between had two
    server.clear_faults()
    assert client.flush(30)
    stats = client.stats()
    client.close()
    assert stats.accepted == stats.delivered == next(numbers)
    assert sorted(event.properties["n"] for event in server.events()) == list(range(stats.accepted))


@pytest.fixture
def waiting(root, server):
    """A client whose journal holds 30 MiB that the server did not take yet; most of its files are closed."""
    server.faults([{"status": 503}])
    client = Windback(api_key="sk_test_1", base_url=server.url, journal=root, flush_interval=0.01)
    while len(list(root.rglob("*.seg"))) < 30:
        assert client.track_event("login", "jane@example.com", {"pad": "x" * 30_000})
    yield client
    client.close()


def test_closed_files_are_read_as_soon_as_the_process_has_a_descriptor_again(waiting, server, eventually):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: List[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 8, limits[1]))  # noqa: PTH208
        server.clear_faults()

        def is_short() -> bool:
            with suppress(OSError):
                taken.append(os.open(os.devnull, os.O_RDONLY))
            return "the journal can't be read" in (waiting.stats().problem or "")

        eventually(is_short, within_s=30)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert waiting.flush(60)
    stats = waiting.stats()
    assert (stats.delivered, stats.worker_deaths) == (stats.accepted, 0)
    assert server.count() == stats.accepted


def test_events_whose_files_somebody_removed_are_counted_and_the_others_delivered(
    waiting, root, server, caplog
):
    removed = sorted(root.rglob("*.seg"))[10:20]
    for path in removed:
        path.unlink()
    server.clear_faults()
    assert waiting.flush(60)
    stats = waiting.stats()
    assert stats.dropped_by_reason == {"journal_removed": stats.dropped}
    assert stats.accepted == stats.delivered + stats.dropped
    assert server.count() == stats.delivered
    assert 10 * 30 <= stats.dropped <= 10 * 36
    assert "somebody removed the file" in caplog.text
