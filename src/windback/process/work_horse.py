"""RQ: each job runs in a forked process that ends by `os._exit`, with no exit handler and no hook of RQ's.

Such a process, the work-horse, often imports the tasks, and windback with them, when its job already runs.
What RQ still looks up after the job is the name `os`. So the modules that end a work-horse get an `os` whose
`_exit` delivers first.
"""

from __future__ import annotations

import contextlib
import os
import sys
from types import ModuleType
from typing import Callable, Iterator, List, NoReturn

#: The method that runs one job and ends the process: it has this name in every version.
_METHOD = "main_work_horse"


class _Os(ModuleType):
    """The module `os`, with another `_exit`."""

    def __init__(self, at_exit: Callable[[], object]) -> None:
        super().__init__("os")
        self.__at_exit = at_exit

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def _exit(self, status: int) -> NoReturn:
        with contextlib.suppress(BaseException):  # the job is done, and its process must end
            self.__at_exit()
        os._exit(status)


def follow(at_exit: Callable[[], object]) -> None:
    """Call *at_exit* before a work-horse ends, if RQ is loaded. Calling it again finds new worker classes."""
    worker = getattr(sys.modules.get("rq.worker"), "Worker", None)
    if not isinstance(worker, type):
        return
    for root in worker.__mro__:
        for kind in _with_subclasses(root) if _METHOD in vars(root) else ():
            names = getattr(vars(kind).get(_METHOD), "__globals__", {})
            if names.get("os") is os:
                names["os"] = _Os(at_exit)


def _with_subclasses(kind: type) -> Iterator[type]:
    yield kind
    subclasses: List[type] = type.__subclasses__(kind)
    for each in subclasses:
        yield from _with_subclasses(each)
