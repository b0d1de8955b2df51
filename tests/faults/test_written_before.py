"""A journal and a stream that an earlier version wrote are delivered by this one, under the keys of then.

The files in `tests/data/before` were made by that version: a journal of a killed process with a hundred
events, of which ten were delivered, ten under way, and ten split in halves; three entries of a stream.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import pytest
from relays import running
from tracking import left_in, numbers

from windback import Windback
from windback.broker.layout import keys_of
from windback.relay import BrokerRelay, Relay

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a journal needs flock")

DATA = Path(__file__).parents[1] / "data" / "before"
KEYS = json.loads((DATA / "keys.json").read_text())


@pytest.fixture
def root(tmp_path):
    with tarfile.open(DATA / "journal.tar.xz") as tar:
        for member in tar:  # not `extractall`, whose defaults differ between Pythons
            path = tmp_path / member.name
            if member.isdir():
                path.mkdir()
            else:
                path.write_bytes(tar.extractfile(member).read())
    for path in [tmp_path / "journal", *(tmp_path / "journal").iterdir()]:
        path.chmod(0o700)
    return tmp_path / "journal"


@pytest.mark.parametrize("who", ["thread", "process", "relay"])
def test_a_journal_of_the_version_before_is_delivered(root, server, eventually, who):
    if who == "relay":
        relay = Relay(root, "sk_test_1", base_url=server.url)
        assert relay.drain(20)
        relay.close()
    else:
        with Windback("sk_test_1", base_url=server.url, journal=root, worker=who) as client:
            assert client.flush(60)
            assert client.stats().adopted == 90
    assert numbers(server) == list(range(10, 100))
    keys = {each.idempotency_key for each in server.requests()}
    assert {KEYS["leased"], f"{KEYS['split']}-0", f"{KEYS['split']}-1"} <= keys
    eventually(lambda: not left_in(root))


@pytest.mark.usefixtures("no_environment")
def test_a_stream_of_the_version_before_is_delivered(redis_server, server, eventually):
    entries = json.loads((DATA / "stream.json").read_text())
    events = keys_of("shop").events
    for entry in entries:
        redis_server.client.xadd(events, entry)
    relay = BrokerRelay(redis_server.url, "sk_test_1", project_slug="shop", base_url=server.url)
    with running(relay):
        eventually(lambda: redis_server.client.xlen(events) == 0)
    assert numbers(server) == list(range(30))
    keys = {each.idempotency_key for each in server.requests()}
    assert {entry["key"] for entry in entries} <= keys
