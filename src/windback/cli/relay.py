"""`windback relay`: a relay as a service of its own."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    CommandError,
    Commands,
    add_command,
    logging_to_stderr,
    said,
    seconds,
    stopped_by_signals,
    whole,
)

if TYPE_CHECKING:
    from windback.relay import Relay

logger = logging.getLogger("windback")


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "relay",
        "send what other processes write into journals under a directory, until told to stop",
        run,
        details=(
            "The key is read from WINDBACK_API_KEY and nowhere else. SIGTERM and SIGINT let it deliver what "
            "it has read, for up to --shutdown-timeout; what is left stays in the journals. Status 0 after "
            "that, 2 if it can't start. With --once: 0 if all of it went, 1 if not."
        ),
    )
    parser.add_argument(
        "--journal",
        metavar="DIR",
        default=os.environ.get("WINDBACK_JOURNAL"),
        help="where the journals are; made if it isn't there (default: WINDBACK_JOURNAL)",
    )
    parser.add_argument(
        "--base-url", metavar="URL", help="of the API (default: WINDBACK_BASE_URL, else Windback's own)"
    )
    parser.add_argument(
        "--flush-interval",
        metavar="S",
        type=seconds,
        default=1.0,
        help="seconds an event may wait for others to travel with (default: %(default)s)",
    )
    parser.add_argument(
        "--max-in-flight", metavar="N", type=whole, default=4, help="requests at once (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=whole,
        default=100,
        help="events in a request, at most 100 (default: %(default)s)",
    )
    parser.add_argument(
        "--compress", action="store_true", help="gzip the requests, until the API refuses that"
    )
    parser.add_argument(
        "--shutdown-timeout",
        metavar="S",
        type=seconds,
        default=5.0,
        help="seconds that the end may take to deliver what was read (default: %(default)s)",
    )
    parser.add_argument(
        "--poll-interval",
        metavar="S",
        type=seconds,
        default=0.05,
        help="seconds between two looks for new events while there are none (default: %(default)s)",
    )
    parser.add_argument("--once", action="store_true", help="send what there is now, and end")


def run(given: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    if not given.journal:
        raise CommandError("where are the journals? Give --journal DIR, or set WINDBACK_JOURNAL")
    with logging_to_stderr(logging.INFO):
        with said(given.journal):
            relay = _make(given)
        logger.info("relay: sends what is written under %s", Path(given.journal).absolute())
        is_all = True
        with stopped_by_signals(relay.stop):
            if given.once:
                is_all = relay.drain()
                relay.close()
                is_all = is_all and not _is_left(Path(given.journal))
            else:
                relay.run()
        stats = relay.stats()
        logger.info(
            "relay: ends; %d events read, %d delivered, %d rejected, %d left in the journals; "
            "%d requests, %d of them repeated",
            stats.adopted,
            stats.delivered,
            stats.rejected,
            stats.pending,
            stats.requests,
            stats.retries,
        )
    return 0 if is_all else 1


def _is_left(root: Path) -> bool:
    """Whether there is anything that nobody sends."""
    from windback.journal.inspect import unattended

    return any(each.undelivered or each.newer for each in unattended(root))


def _make(given: argparse.Namespace) -> Relay:
    from windback.relay import Relay  # loads a lot

    return Relay(
        given.journal,
        base_url=given.base_url,
        flush_interval=given.flush_interval,
        max_in_flight=given.max_in_flight,
        batch_size=given.batch_size,
        compress=given.compress,
        shutdown_timeout=given.shutdown_timeout,
        poll_interval=given.poll_interval,
    )
