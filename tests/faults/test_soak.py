"""A short form of `make soak`: every way of tracking at once, while the server, the relays and Redis fail."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it forks")


def load():
    spec = importlib.util.spec_from_file_location("soak", Path(__file__).resolve().parents[1] / "soak.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module  # a NamedTuple looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(300)
def test_each_event_arrives_once_whatever_fails(tmp_path):
    result = load().soak(20_000, tmp_path, kill_every_s=2, redis_restarts=1)
    assert result.is_clean, str(result)
    assert result.relays_killed
    assert result.redis_restarts == 1
    assert result.counts.faults
