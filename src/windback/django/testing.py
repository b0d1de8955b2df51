"""Tests send nothing: after Django's `setup_test_environment` events go into `outbox`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, List, Optional

from ..client import set_capture

if TYPE_CHECKING:
    from ..testing.captured import CapturedEvents

#: The one list of captured events, made when tests run.
_outboxes: List[CapturedEvents] = []


def is_testing() -> bool:
    """Whether `setup_test_environment` was called. It never is in an application that serves users."""
    utils = sys.modules.get("django.test.utils")
    return utils is not None and hasattr(utils._TestState, "saved_data")  # noqa: SLF001


def is_test_command() -> bool:
    """Whether this is `manage.py test`, or a process that it started."""
    return "test" in sys.argv[1:]


def outbox() -> CapturedEvents:
    """Return the list of what was tracked since the start of the tests, or since it was cleared."""
    if not _outboxes:
        from ..testing.captured import CapturedEvents

        _outboxes.append(CapturedEvents())
    return _outboxes[0]


def capture_if_testing() -> None:
    """Capture from now on what all clients track, once tests run and nothing else captures."""
    if is_testing() and not _outboxes:
        capture()


def capture() -> None:
    """Put all events of all clients into `outbox`; a capture that is there already goes on."""
    earlier = set_capture(outbox().add)
    if earlier is not None:
        set_capture(earlier)


def watch_test_environment() -> None:
    """Make `setup_test_environment` capture, so that clients which are used directly are caught as well.

    Only where a test run is likely: the module is not needed elsewhere, and slow to load.
    """
    if not ("pytest" in sys.modules or "django.test.utils" in sys.modules or is_test_command()):
        return
    from django.test import utils

    set_up, tear_down = utils.setup_test_environment, utils.teardown_test_environment
    if set_up.__module__ == __name__:  # `ready` ran before
        return

    def set_up_and_capture(debug: Optional[bool] = None) -> None:  # noqa: FBT001 - as Django has it
        set_up(debug)
        capture()

    def tear_down_and_send() -> None:
        tear_down()
        _outboxes.clear()
        set_capture(None)

    for module in (utils, sys.modules.get("django.test.runner")):  # which may have imported the two already
        if module is not None:
            setattr(module, set_up.__name__, set_up_and_capture)
            setattr(module, tear_down.__name__, tear_down_and_send)
