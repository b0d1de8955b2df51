"""The user's hooks, before_send, scrub and on_delivery: the one place that counts and logs their errors.

Every engine has one `Hooks`, whether threads, tasks or another process send its events.
"""

from __future__ import annotations

import logging
import threading
from typing import Callable, Dict, List, Optional, Set

from .. import debugging
from ..api.answer import Answer
from ..config import Config
from ..event.batch import Batch
from ..event.before_send import HookedEncoder
from ..event.encode import Encode, encode
from ..event.scrubbing import ScrubbedEncoder, Scrubbing
from ..stats import AtomicCounter, DeliveryReport, Outcome

logger = logging.getLogger("windback")


#: Receives each try to send a batch: the number of events, the answer, and the seconds that it took.
OnTry = Callable[[int, Answer, float], object]


class Hooks:
    """Calls the hooks of one client. An exception of a hook is counted; the first of each hook is logged."""

    def __init__(self, config: Config) -> None:
        self._before_send = config.before_send
        self._on_delivery = (
            debugging.watched_report(config.on_delivery) if config.debug else config.on_delivery
        )
        #: Runs the scrubbers; None without scrubbers.
        self.scrubbing = Scrubbing(config.scrub, self.failed) if config.scrub else None
        #: Added by integrations that measure.
        self.on_try: List[OnTry] = []
        self.reset()

    def reset(self) -> None:
        """Start counting anew, as in a forked child."""
        #: How many exceptions hooks raised.
        self.errors = AtomicCounter()
        #: By hook: a token of the error that is logged. No exception is kept, nor what its traceback holds.
        self._logged: Dict[str, object] = {}
        self._reporting: Set[int] = set()

    def tried(self, batch: Batch, answer: Answer, duration_s: float) -> None:
        """Tell the integrations of a try. Their errors are logged, and harm no delivery."""
        for call in self.on_try:
            try:
                call(len(batch), answer, duration_s)
            except Exception as error:
                logger.debug("a measurement of a request failed", exc_info=error)

    @property
    def wants_reports(self) -> bool:
        """Whether there is an on_delivery."""
        return self._on_delivery is not None

    @property
    def is_reporting(self) -> bool:
        """Whether on_delivery runs in the calling thread right now."""
        return threading.get_ident() in self._reporting

    def encoder(self, refuse: Callable[[str], object]) -> Encode:
        """Return what makes bytes of an event; *refuse* counts an event that a hook turned away."""
        chosen: Encode = encode
        if self._before_send is not None:
            chosen = HookedEncoder(self._before_send, refuse, self.failed).encode
        if self.scrubbing is not None:
            chosen = ScrubbedEncoder(chosen, self.scrubbing, refuse, self.failed).encode
        return chosen

    def report(self, report: DeliveryReport) -> None:
        """Call on_delivery. Whatever it raises, delivery goes on.

        Only a KeyboardInterrupt in the main thread is raised again: that is Ctrl-C, and the application's.
        """
        if self._on_delivery is None:
            return
        thread = threading.get_ident()
        self._reporting.add(thread)
        try:
            self._on_delivery(report)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            self.failed("on_delivery", error)
        finally:
            self._reporting.discard(thread)

    def failed(self, hook: str, error: BaseException) -> None:
        """Count an exception of the hook called *hook*, and log the first."""
        self.errors.add()
        token = object()
        if self._logged.setdefault(hook, token) is token:
            logger.warning(
                "%s raised %s; it is called for later events as well, and further errors are only counted "
                "(stats().hook_errors)",
                hook,
                _text(error),
            )


def _text(error: BaseException) -> str:
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the exception is the user's, and its __str__, too
        return name
    return f"{name}: {text}" if text else name


def report_of(
    outcome: Outcome, batch: Batch, reason: str, answer: Answer, message: Optional[str] = None
) -> DeliveryReport:
    """Return the report of a batch, for on_delivery."""
    return DeliveryReport(outcome, len(batch), reason, answer.status, message, batch.key, batch.records)
