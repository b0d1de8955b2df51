"""How a process ends and forks: the one place that knows every client's threads, locks and connections.

A client registers its Engine here; nothing else in the package installs an exit handler or a fork hook.
Each Engine owns everything that must not cross a fork (the scheduler's lock, the transports' locks, the
queue, the workers), so a child only has to call `Engine.reset`.

Not every process ends by atexit, and not every fork runs Python's hooks. multiprocessing, similar packages
and Celery end their children by `os._exit`, each after a hook of its own. RQ does so without a hook
(`work_horse`), and uWSGI forks in C.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Protocol, Set, cast

from .. import clock
from ..config import Config
from ..report import Report
from ..stats import FlushResult, Stats
from . import work_horse

logger = logging.getLogger("windback")


class Engine(Protocol):
    """The methods of a client for the end of the process, for forks and for tests."""

    config: Config
    #: Seconds that the end of the process may take to deliver the remaining events.
    shutdown_timeout: float

    def begin_exit(self) -> None:
        """Accept no more events, start no thread, and make the workers send without pauses."""

    def finish_exit(self, deadline_s: float) -> int:
        """Wait until the remaining events are sent, or send them. Returns how many were given up."""
        ...

    def reset(self) -> None:
        """Make everything new and empty, in a forked child."""

    def retire(self) -> bool:
        """Deliver the events of a client without references. Closes it and returns True when none remain."""
        ...

    def forked(self) -> None:
        """Handle a fork, in the parent."""

    def flush_from_outside(self, deadline_s: float) -> Callable[[], object]:
        """Start to deliver the queued events. Returns a function that waits for it, until the deadline."""
        ...

    def stats(self) -> Stats:
        """Return the counts of all events so far."""
        ...

    def report(self) -> Report:
        """Return the state of the client at this moment."""
        ...

    async def flush_async(self, timeout: Optional[float]) -> FlushResult:
        """Deliver the queued events within *timeout* seconds."""
        ...


#: Held while httpx and similar modules are imported, and a fork waits for it: the child would have the import
#: lock of a half loaded module, held by a thread that does not exist there. Reentrant, because an imported
#: module may fork: trio calls ldconfig, and gevent's subprocess forks in Python.
loading = threading.RLock()
#: A fork waits no longer than this for an import, which takes seconds where many threads compute.
_LOADING_S = 30.0

#: The interpreter is exiting; no thread may be started any more.
exiting = False
#: Called after the exit has drained all clients.
after_exit: List[Callable[[], object]] = []

#: Called in a forked child, when all its clients are new.
in_child: List[Callable[[], object]] = []
#: Receive the engine of each client that was closed.
on_close: List[Callable[[Engine], object]] = []
#: The same, for tests.
on_forget: Optional[Callable[[Engine], object]] = None

_engines: List[Engine] = []
#: More open clients than this are probably a mistake.
_MANY = 20
_said_how = False
_waits: List[bool] = []
_installed = False
#: The process that the clients were made for.
_pid = os.getpid()
_noticing = threading.RLock()

_followed: Set[str] = set()
#: The process in which modules to follow were last searched, before its first worker started.
_followed_in = _pid


def register(engine: Engine) -> None:
    """Drain *engine* at exit, and empty it in forked children."""
    global _installed  # noqa: PLW0603 - hooks can be installed only once per process
    notice_fork()
    if not _installed:
        _installed = True
        atexit.register(_at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
            _load_what_ends_threads()
    _follow()
    _engines.append(engine)
    _warn_of_many()
    if engine.config.status is not None:
        from . import status

        if status.end not in on_close:
            on_close.append(status.end)
            in_child.insert(0, status.serve_in_child)
            after_exit.insert(0, status.end_all)
        status.serve(engine, why_no_threads)


def _load_what_ends_threads() -> None:
    """Load the library that glibc needs to end a thread by pthread_exit, as older CPythons do (bpo-44434).

    glibc loads it when the first thread ends. A process that is forked in the meantime would have half of it,
    and crash when its own first thread ends.
    """
    if sys.platform == "linux" and sys.version_info < (3, 9, 6):
        import ctypes

        with contextlib.suppress(OSError):  # another C library, which needs no such thing
            ctypes.CDLL("libgcc_s.so.1")


def forget(engine: Engine) -> None:
    """Undo `register`, for a client that was closed."""
    if engine in _engines:
        _engines.remove(engine)
        for call in on_close:
            call(engine)
        if on_forget is not None:
            on_forget(engine)


def is_open(engine: Engine) -> bool:
    """Whether the client of *engine* is not closed."""
    return any(each is engine for each in _engines)


def _warn_of_many() -> None:
    """Log once how clients are meant to be used, for programs that make one per request."""
    global _said_how  # noqa: PLW0603 - once per process
    if len(_engines) >= _MANY and not _said_how:
        _said_how = True
        logger.warning(
            "%d windback clients are open in this process, each with its own queue, worker and connections; "
            "make one at start-up, share it (it is safe in threads and tasks), and close() the others",
            len(_engines),
        )


def engines() -> List[Engine]:
    """All clients that are not closed."""
    return list(_engines)


def events_were(count: int) -> str:
    """Return the start of a message about *count* events: "1 event was", "5 events were"."""
    return "1 event was" if count == 1 else f"{count} events were"


def _at_exit() -> None:
    """Drain all clients at the same time, within the longest of their deadlines."""
    global exiting  # noqa: PLW0603 - a process exits once
    notice_fork()
    exiting = True
    left_behind = engines()
    started_s = clock.now_s()
    for engine in left_behind:
        engine.begin_exit()
    left = sum(engine.finish_exit(started_s + engine.shutdown_timeout) for engine in left_behind)
    _warn_of_losses(left)
    _keep_exit_status()
    for call in after_exit:
        call()


def warn_of_losses() -> None:
    """Log how many events end with this process now. Events in a journal do not."""
    _warn_of_losses(sum(engine.report().lost_if_killed for engine in engines()))


def _warn_of_losses(count: int) -> None:
    if count:
        logger.warning("%s not delivered before the process ended", events_were(count))


def _keep_exit_status() -> None:
    """Make a process that Ctrl-C ended still end by that signal.

    CPython remembers in a flag that a KeyboardInterrupt left the last code that was run from text. The
    modules that the drain loads are such code as well, and reset the flag.
    """
    if getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
        with contextlib.suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")  # noqa: S102 - it has to be text


def _follow() -> None:
    """Follow the ends of child processes that run no exit handlers, for the modules that are loaded."""
    for util in _utils():
        _followed.add(util.name)
        if util.is_in_child():
            util.finalize()
        # Again in a child, after it forgot its finalizers: the parent's, and under a fork server its own.
        util.register_after_fork(_at_exit, util.finalize)
    celery = sys.modules.get("celery.signals")
    if celery is not None and "celery" not in _followed:
        _followed.add("celery")
        celery.worker_process_shutdown.connect(_on_celery_exit, weak=False)
        celery.worker_shutdown.connect(_on_celery_shutdown, weak=False)
    work_horse.follow(_at_exit)


def follow_in_child() -> None:
    """Search once more in a forked child, which may only now have loaded such a module, as billiard does."""
    global _followed_in  # noqa: PLW0603 - once per process
    if _followed_in != os.getpid():
        _followed_in = os.getpid()
        _follow()


class _Util(NamedTuple):
    """multiprocessing.util, or that of a similar package: multiprocess (of dill), billiard."""

    name: str
    register_after_fork: Callable[[object, Callable[[object], object]], object]
    make_finalizer: Callable[..., object]

    def finalize(self, _: object = None) -> None:
        """Run the exit handler when a child of this kind ends."""
        # A priority that is not negative runs before the process waits for its own children.
        self.make_finalizer(None, _at_exit, exitpriority=10)

    def is_in_child(self) -> bool:
        """Whether this process was started by that package."""
        process = sys.modules.get(self.name.rpartition(".")[0] + ".process")
        current = getattr(process, "_current_process", None)
        return current is not None and type(current).__name__ != "_MainProcess"


def _utils() -> List[_Util]:
    """Find those that are loaded and not followed yet, by their attributes and not by their names."""
    found: Dict[str, _Util] = {}
    for module in list(sys.modules.values()):
        try:
            # Not getattr: that loads modules which their package loads lazily.
            names = object.__getattribute__(module, "__dict__")
            register, finalizer = names["register_after_fork"], names["Finalize"]
            home = str(register.__module__)  # others may have imported it from there
        except (AttributeError, KeyError, TypeError):
            continue
        if home not in _followed and callable(register) and callable(finalizer):
            found[home] = _Util(home, register, finalizer)
    return list(found.values())


def _on_celery_exit(**_: object) -> None:
    _at_exit()


def _on_celery_shutdown(**_: object) -> None:
    # The exit handlers run later, when the threads of gevent's pool, which resolve names, no longer exist.
    flush_all()


def flush_all() -> None:
    """Deliver the events of all clients at the same time, within the longest of their deadlines."""
    started_s = clock.now_s()
    waits = [engine.flush_from_outside(started_s + engine.shutdown_timeout) for engine in engines()]
    for wait in waits:
        wait()


async def flush_all_async(timeout: Optional[float]) -> int:
    """Do the same in a task, for event loops that must not block. Returns how many events remain.

    timeout: seconds; None: each client's own shutdown_timeout.
    """
    import anyio

    left: List[int] = []

    async def flush(engine: Engine) -> None:
        left.append(
            (await engine.flush_async(engine.shutdown_timeout if timeout is None else timeout)).pending
        )

    async with anyio.create_task_group() as tasks:
        for engine in engines():
            tasks.start_soon(flush, engine)
    return sum(left)


def _before_fork() -> None:
    _follow()
    _waits.append(loading.acquire(timeout=_LOADING_S))


def _in_parent() -> None:
    if _waits.pop():
        loading.release()
    for engine in _engines:
        engine.forked()


def _in_child() -> None:
    global _pid, exiting, loading  # noqa: PLW0603 - a child is another process
    if _waits and _waits.pop():
        loading.release()
    else:  # nothing waited before the fork, or it gave up: the holder may be a thread of the parent
        loading = threading.RLock()
    _pid = os.getpid()
    exiting = False
    for engine in _engines:
        engine.reset()
    for call in in_child:
        call()


def notice_fork() -> None:
    """Do the work of the fork hooks after a fork that did not run them, such as uWSGI's by default."""
    if os.getpid() == _pid:
        return
    with _noticing:
        if os.getpid() != _pid:
            _in_child()


def misses_forks() -> bool:
    """Whether this program may fork without running Python's hooks."""
    return _uwsgi() is not None


def why_no_threads() -> Optional[str]:
    """Return why no thread may be started here although the system allows it; None nearly everywhere."""
    uwsgi = _uwsgi()
    if uwsgi is None:
        return None
    options = {name.decode() if isinstance(name, bytes) else str(name) for name in uwsgi.opt}
    if {"enable-threads", "threads"}.isdisjoint(options):
        return (
            "uWSGI runs without --enable-threads, so no thread runs between requests: "
            "events are sent only by flush(), close() and at exit; add --enable-threads"
        )
    if uwsgi.masterpid() == os.getpid():
        # It forks without the interpreter's lock: if a thread has it then, the child waits for it forever.
        return (
            "this is uWSGI's master, where no thread may run: events tracked before it forks are sent only "
            "by flush(); or load the application in each worker (--lazy-apps)"
        )
    return None


class _Uwsgi(Protocol):
    """The module that uWSGI adds to the interpreter that it embeds."""

    opt: Mapping[object, object]

    def masterpid(self) -> int: ...


def _uwsgi() -> Optional[_Uwsgi]:
    module = sys.modules.get("uwsgi")
    return cast("_Uwsgi", module) if hasattr(module, "opt") else None
