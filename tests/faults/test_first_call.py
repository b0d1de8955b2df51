"""The first plain call of a process: what loading the transport takes is a part of its timeout."""

from __future__ import annotations

import pytest

CODE = """
import asyncio, sys, time
from windback import AsyncWindback, Windback, WindbackTimeoutError


class Slow:
    "As a disk that is slow: it takes longer to load the transport than the call may take."
    def find_spec(self, name, path=None, target=None):
        if name == "httpx":
            time.sleep(1.5)


sys.meta_path.insert(0, Slow())


async def main():
    client = {make}(timeout=1.0, max_retries=0)
    call = client.get_churn_event("1")
    return await call if {is_async} else call

assert "httpx" not in sys.modules
try:
    asyncio.run(main())
    print("an answer")
except WindbackTimeoutError as error:
    print("too late:", error)
"""


@pytest.mark.parametrize("make", ["Windback", "AsyncWindback"])
def test_a_call_whose_timeout_is_over_when_the_transport_is_loaded_is_not_sent(run, server, make):
    ended = run(CODE.format(make=make, is_async=make == "AsyncWindback"), url=server.url)
    assert ended.err == ""
    (line,) = ended.out
    assert line.startswith("too late: no answer in time")
