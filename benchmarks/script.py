"""A whole process with one client, a short script: ``python script.py CLIENT URL COUNT [flush]``.

With `flush` it waits until its events are delivered and ends at once. Otherwise it prints the time of its
last line and ends as a Python process does: what a client does then is what is measured.
"""

from __future__ import annotations

import os
import sys
import time

from clients import ADAPTERS, EMAIL, EVENT

LOOP = """
def run():
    for i in range({count}):
        p = {prepare}
        {statement}
    {end}
"""
PATIENCE = 60.0


def main() -> None:
    name, url, count, *flush = sys.argv[1:]
    client, is_async = ADAPTERS[name].setup(url), ADAPTERS[name].is_async
    end = ("await " if is_async else "") + f"flush({PATIENCE})" if flush else "pass"
    code = LOOP.format(count=count, prepare=client.prepare, statement=client.statement, end=end)
    names = {"EVENT": EVENT, "EMAIL": EMAIL, "flush": client.flush, **client.names}
    exec(("async " if is_async else "") + code.lstrip(), names)  # noqa: S102 - a template and our own statements
    if is_async:
        import asyncio

        asyncio.run(names["run"]())
    else:
        names["run"]()
    if flush:
        os._exit(0)
    print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main()
