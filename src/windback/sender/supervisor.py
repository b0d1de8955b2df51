"""The application's side of worker="process": starts the sender, wakes it, and replaces it.

Two threads sleep nearly always. The maintenance thread does the work that is too slow for a request: it
starts the sender, makes segments ahead, writes to the pipe. The listener waits for the sender's messages, or
its end.
"""

from __future__ import annotations

import _thread
import contextlib
import logging
import os
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Optional, Set

import orjson

from .. import clock, isolation, log
from ..config import OPTIONS, Config
from ..delivery.hooks import Hooks
from ..descriptor import Descriptor
from ..http import egress
from ..journal.merging import left_behind
from ..process import lifecycle
from ..remote.counters import Block, Counters
from ..remote.link import GRACE_S, LOOK_S, Link, RemoteFlush
from ..remote.queue import SharedQueue
from ..remote.stopped import is_stopped, problem_of
from ..stats import AtomicCounter, DeliveryReport, Stats
from .protocol import FLUSH, FLUSH_END, LOOK, SLEEP_ON, WAKE

if TYPE_CHECKING:
    import subprocess

    from .main import Sender


_BOOT = """\
import json, os, sys
memory, answers, length = map(int, sys.argv[1:])
data = b""
while len(data) < length:
    data += os.read(0, length - len(data)) or sys.exit()
options = json.loads(data)
sys.path += [folder for folder in options.pop("path") if folder not in sys.path]
try:
    from windback.sender.main import main
    main(options, 0, answers, memory)
except BaseException as error:
    text = f"the sender process ended with {type(error).__name__}: {error}"
    os.write(answers, json.dumps({"log": [30, text]}).encode() + b"\\n")
    raise
"""
#: What the sender imports that is not of the standard library.
_NEEDED = (
    *("anyio", "certifi", "exceptiongroup", "h11", "httpcore", "httpx", "idna", "orjson", "redis", "sniffio"),
    *("tenacity", "typing_extensions"),
)
#: How often journals of exited children are looked for (seconds): at first, after a while; when that begins.
_CHILDREN_SOON_S, _CHILDREN_S, _FRESH_S = 0.25, 2.0, 10.0
#: After this many senders in a row that ended before they were ready, a thread takes over.
_DEATHS_IN_A_ROW = 3
#: How long a process that is asked to end may deliver remaining events (seconds).
_END_S = 2.0
#: A sender that ends this soon after its start (seconds) is replaced after a pause, which doubles each time.
_TOO_SOON_S, _PAUSE_S, _PAUSE_CAP_S = 5.0, 0.05, 10.0


class _Running(NamedTuple):
    """A sender: a process, or one in a thread. answers: where to read.

    commands: where to write. Once that is closed the sender ends, so nobody may hold it for long.
    """

    process: Optional[subprocess.Popen[bytes]]
    here: Optional[Sender]
    commands: Descriptor
    answers: Descriptor

    @property
    def peer(self) -> object:
        """What tells it from another."""
        return self.process or self.here


class SenderLink(Link):
    """Starts, wakes and replaces the sender of one client."""

    def __init__(self, config: Config, queue: SharedQueue, hooks: Hooks) -> None:
        self._running: Optional[_Running] = None
        super().__init__(config, queue, hooks)

    def reset(self) -> None:
        """Forget the sender in a forked child, where it is the parent's."""
        running = self._running
        if running is not None:
            running.commands.close()
            running.answers.close()
            if running.process is not None:
                running.process.returncode = 0  # not a child of this process, so don't wait for it
            if running.here is not None:
                running.here.abandon()
        self._running = None
        egress.senders.discard(self)
        super().reset()
        self._use_thread = False
        self._deaths = self._soon_deaths = self._stillborn = 0
        self._gave_up: Set[int] = set()
        #: How many searches for journals of exited processes the sender was asked for, and what was there.
        self._looks = AtomicCounter()
        self._left: Set[str] = set()
        #: When this process last forked: a child may exit with events in its journal and without a sender.
        self._forked_s: Optional[float] = None
        #: When the next sender is started, while there is none.
        self._restart_s: Optional[float] = None
        self._listener: Optional[int] = None

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is one that a flush waits for."""
        running = self._running
        is_sender = running is not None and running.here is not None and running.here.is_current
        return is_sender or threading.get_ident() == self._listener or super().is_current

    # -- the maintenance thread ----------------------------------------------------------------

    def maintain(self) -> None:
        """Start the sender if there is none, wake it, and make room for more events."""
        super().maintain()
        self._send(WAKE)

    def _ensure(self) -> None:
        """Start a sender, if none runs and there is a directory for it."""
        if self._running is not None or not self._queue.writer.has_home:
            return
        if not self._queue.writer.written and not self._looks.value():
            return
        if self._block is None:
            self._block = Block.create()
        if egress.refuse is not None:  # events that a test must not send, no other process may send
            self._start_here()
            return
        if not self._use_thread:
            try:
                self._start_process()
            except (OSError, RuntimeError, ValueError) as error:
                self._take_over(str(error))
        if self._use_thread and self._running is None:
            self._start_here()

    def _take_over(self, why: str) -> None:
        if not self._use_thread:
            self._use_thread = True
            message = "can't start a sender process (%s); events are sent from a thread of this process"
            log.later(logging.WARNING, message, why)

    def _start_process(self) -> None:
        import subprocess

        executable = sys.executable or ""
        if getattr(sys, "frozen", False) or "__compiled__" in globals():
            raise ValueError("this program is frozen, so its executable is not a Python interpreter")
        if not os.path.basename(executable).lower().startswith(("python", "pypy")):  # noqa: PTH119
            raise ValueError(f"this program, {executable or 'unknown'}, is not a Python interpreter")
        assert self._block is not None
        config = self.config
        options = {name: getattr(config, name) for name, said in OPTIONS.items() if said.is_for_sender}
        sent = orjson.dumps(
            {
                **options,
                "name": self._queue.writer.name,
                "path": isolation.path(_NEEDED),
                "api_key": config.api_key and config.api_key.reveal(),
                "broker": config.broker.url.reveal() if config.broker is not None else False,
                "journal": str(config.journal),
                "reports": self._hooks.wants_reports,
            }
        )
        # An exception that strikes from here on closes what was opened, and a sender that was started ends.
        answers, answers_there = map(Descriptor, os.pipe())
        passed = (self._block.descriptor, answers_there.number)
        process = subprocess.Popen(  # noqa: S603 - our own module
            [*isolation.command(executable, _BOOT), *map(str, passed), str(len(sent))],
            stdin=subprocess.PIPE,
            # A program that waits for the end of the application's output must not wait for its sender, too.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=passed,
            start_new_session=True,  # Ctrl-C is for the application
        )
        assert process.stdin is not None
        with process.stdin:
            commands = Descriptor(os.dup(process.stdin.fileno()))
        os.set_inheritable(commands.number, False)  # noqa: FBT003
        with contextlib.suppress(OSError):  # it has ended already, which the listener detects
            os.write(commands.number, sent)
        os.set_blocking(commands.number, False)
        self._begin(_Running(process, None, commands, answers))

    def _start_here(self) -> None:
        assert self._block is not None
        commands_there, commands = os.pipe()
        answers, answers_there = os.pipe()
        here = self._make_here(commands_there, answers_there)
        try:
            _thread.start_new_thread(here.run_until_done, ())
        except RuntimeError:  # then the caller of flush does the work
            for descriptor in (commands, answers, commands_there, answers_there):
                os.close(descriptor)
            return
        os.set_blocking(commands, False)
        self._begin(_Running(None, here, Descriptor(commands), Descriptor(answers)))

    def _begin(self, running: _Running) -> None:
        self._running = running
        egress.senders.add(self)
        # The listener has no hold of the commands: they are closed once this link lets go of them.
        listened = (running.process, running.peer, running.answers, clock.now_s())
        with contextlib.suppress(RuntimeError):  # out of threads: only reports and log lines are lost
            _thread.start_new_thread(self._listen, listened)

    def _make_here(self, commands: int, answers: int) -> Sender:
        """Make a sender for a thread of this process. Its reports go directly to the client's hooks."""
        with lifecycle.loading:
            from .main import Sender  # loads httpx
        assert self._block is not None
        on_delivery = self._hooks.report if self._hooks.wants_reports else None
        config = replace(self.config, worker="thread", on_delivery=on_delivery)
        return Sender(config, self._queue.writer.name, commands, answers, self._block)

    def _send(self, *words: bytes) -> None:
        running = self._running
        if running is not None:
            # A full pipe wakes the sender as well; a broken one is handled by the listener.
            with contextlib.suppress(OSError):
                os.write(running.commands.number, b" ".join(words) + b"\n")

    # -- events of exited children -------------------------------------------------------------

    def forked(self) -> None:
        """Search for events of exited children from now on."""
        self._forked_s = clock.now_s()
        self._maintenance.wake()

    def _rest_s(self) -> Optional[float]:
        if self._forked_s is None or self._is_closed:
            return None
        is_fresh = clock.now_s() - self._forked_s < _FRESH_S
        return _CHILDREN_SOON_S if is_fresh else _CHILDREN_S

    def _look(self) -> None:
        """Make the sender deliver the events of children that have exited."""
        left = self._left_behind()
        if left - self._left:
            self._left = left
            number = self._next_look()
            if number:
                super().maintain()
                self._send(LOOK, b"%d" % number)

    def _left_behind(self) -> Set[str]:
        assert self.config.journal is not None
        with contextlib.suppress(OSError):
            return set(left_behind(self.config.journal, self._queue.writer.name))
        return set()

    def _next_look(self) -> int:
        counters = self._counters()
        is_under_way = counters.adopted_pending > 0 or counters.looked < self._looks.value()
        if not self._queue.writer.has_home or not (is_under_way or self._left_behind()):
            return 0
        return self._looks.add()

    # -- the listener --------------------------------------------------------------------------

    def _listen(
        self, process: Optional[subprocess.Popen[bytes]], peer: object, answers: Descriptor, since_s: float
    ) -> None:
        self._listener = threading.get_ident()
        with contextlib.suppress(Exception):
            threading.current_thread().name = "windback-listener"
        rest = b""
        while True:
            try:
                data = os.read(answers.number, 1 << 16)
            except OSError:
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(orjson.loads(line))
        if process is not None:
            process.wait()
        self._ended(peer, since_s)

    def _take(self, message: object) -> None:
        assert isinstance(message, dict)
        if "ready" in message:
            self._stillborn = 0
        elif "asleep" in message:
            self._queue.intake.wake_at = 0  # from here on the next event wakes it, and it checks once more
            self._send(SLEEP_ON)
        elif "log" in message:
            level, text = message["log"]
            log.later(level, "%s", text)
            log.write()
        elif "gave_up" in message:
            self._gave_up.add(int(message["gave_up"]))
        elif "report" in message:
            self._hooks.report(DeliveryReport.from_wire(message["report"]))

    def _ended(self, peer: object, since_s: float) -> None:
        """Handle the end of a sender, expected or not."""
        running = self._running
        if running is None or running.peer is peer:
            egress.senders.discard(self)
        if running is None or running.peer is not peer:
            return
        if self._is_closed:
            self._running = None
            return
        self._deaths += 1
        if self._block is not None:
            self._block.write(self._block.read()._replace(in_flight=0))
        is_soon = clock.now_s() - since_s < _TOO_SOON_S
        self._soon_deaths = self._soon_deaths + 1 if is_soon else 0
        self._stillborn += 1
        if self._stillborn >= _DEATHS_IN_A_ROW:
            self._take_over("each sender process that is started ends immediately")
        pause_s = min(_PAUSE_S * 2.0 ** min(self._soon_deaths, 16), _PAUSE_CAP_S) if is_soon else 0.0
        self._restart_s = clock.now_s() + pause_s
        del running
        self._running = None  # now, and not before: from here on another may be started
        log.write()
        clock.sleep(pause_s)
        self.wake()

    # -- flush, close, stats -------------------------------------------------------------------

    def _ask(self, flush: RemoteFlush) -> None:
        """Ask the sender for a flush, or start one first. A caller that waits calls this repeatedly."""
        if self._running is None and not self._maintenance.wake():
            self.maintain()  # no thread does it
        running = self._running
        if running is not None and flush.asked is not running.peer:
            flush.has_timeout = flush.has_timeout or flush.asked is not None  # the first one died
            flush.asked = running.peer
            if flush.look:
                self._send(LOOK, b"%d" % flush.look)
            self._send(FLUSH, b"%d" % flush.number, b"%d" % flush.has_timeout)

    def _is_hopeless(self, flush: RemoteFlush, counters: Counters) -> bool:
        del counters
        self._ask(flush)
        if self._stopped_sender() is None:
            flush.sender_seen_s = clock.now_s()
        is_alone = not flush.has_timeout and clock.now_s() - flush.sender_seen_s > GRACE_S
        return is_alone or flush.number in self._gave_up

    def _stopped_sender(self) -> Optional[int]:
        """Return the process id of the sender, if it is stopped."""
        running = self._running
        if running is None or running.process is None or not is_stopped(running.process.pid):
            return None
        return running.process.pid

    def end_flush(self, flush: RemoteFlush) -> Stats:
        """Stop waiting; returns the counters."""
        self._send(FLUSH_END, b"%d" % flush.number)
        self._gave_up.discard(flush.number)
        return super().end_flush(flush)

    def _complete(self, stats: Stats) -> Stats:
        problem = stats.problem
        if self._running is None and self._deaths and stats.pending:
            left_s = max(0.0, (self._restart_s or 0.0) - clock.now_s())
            problem = f"the sender process ended unexpectedly; another is started in {left_s:.1f} s"
        stopped = self._stopped_sender() if stats.pending else None
        if stopped is not None:
            problem = problem_of("the sender", stopped)
        return replace(
            stats,
            problem=problem,
            workers=int(self._running is not None),
            worker_deaths=stats.worker_deaths + self._deaths,
        )

    def close(self) -> None:
        """Let the sender end once it has delivered the remaining events."""
        super().close()
        self._running = None

    def end_process(self) -> None:
        """End the sender process. The next event starts another; in a test, a thread."""
        import subprocess

        running = self._running
        if running is None or running.process is None:
            return
        process = running.process
        del running
        self._running = None
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._queue.intake.wake_at = 0

    def wait_if_closed(self, deadline_s: float) -> None:
        """Wait until the sender of a closed client is done."""
        while self._is_closed and self in egress.senders and clock.now_s() < deadline_s:
            clock.sleep(LOOK_S)

    def exit(self, deadline_s: float) -> int:
        """Leave the remaining events to the sender process, or deliver them. Returns how many are left.

        The process is not waited for: it ends when it has delivered them.
        """
        if not self.stats().pending:
            self.close()
            return 0
        super().maintain()  # out of threads, but a process may be started even now
        self._turn.wait(_END_S)
        running = self._running
        if running is None:
            self._send_from_here(deadline_s)
        elif running.process is None:
            flush = self.begin_flush(has_timeout=True)
            while not self.is_done(flush) and clock.now_s() < deadline_s:
                clock.sleep(LOOK_S)
        else:
            self.close()
            running.process.returncode = 0  # or subprocess would warn about it
            return 0
        left = self.stats().pending
        self.close()
        return left

    def _send_from_here(self, deadline_s: float) -> None:
        if self._block is None or not self._queue.writer.has_home:
            return
        commands_there, commands = os.pipe()
        answers, answers_there = os.pipe()
        os.close(commands)
        os.set_blocking(answers_there, False)
        self._make_here(commands_there, answers_there).run_until_done(deadline_s)
        os.close(answers)
