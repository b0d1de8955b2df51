"""`windback relay`: a relay as a service."""

from __future__ import annotations

import contextlib
import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Generator, Mapping, Optional, Tuple, Union

import typer

from windback.config import OPTIONS
from windback.secrets import broker_address, read_keys

from .common import (
    BASE_URL,
    COMPRESS,
    CommandError,
    above_0,
    command,
    help_of,
    logging_to_stderr,
    main_app,
    said,
    stopped_by_signals,
)

if TYPE_CHECKING:
    from windback.relay import BrokerRelay, Relay

logger = logging.getLogger("windback")


@command(
    main_app,
    "relay",
    "send the events that other processes write to journals or a broker, until stopped",
    "The key is read from WINDBACK_API_KEY, with --broker also from WINDBACK_API_KEYS or --keys. SIGTERM "
    "and SIGINT make it deliver the events that it has read, for up to --shutdown-timeout; the others stay "
    "where they are. Exit code 0 after that, 2 if it can't start. With --once: 0 if all were sent, 1 if "
    "not.",
)
def relay(
    journal: Optional[str] = typer.Option(
        None,
        "--journal",
        metavar="DIR",
        help="the directory of the journals; created if missing (default: WINDBACK_JOURNAL)",
    ),
    broker: Optional[str] = typer.Option(
        None,
        "--broker",
        metavar="URL",
        help="URL of a Redis in which applications store their events; put a password into "
        "WINDBACK_BROKER, the default, because other users can see command lines",
    ),
    base_url: Optional[str] = BASE_URL,
    flush_interval: Optional[float] = typer.Option(
        None,
        "--flush-interval",
        metavar="S",
        callback=above_0,
        help=help_of("flush_interval", "journals only"),
    ),
    max_in_flight: int = typer.Option(
        OPTIONS["max_in_flight"].default,
        "--max-in-flight",
        "--concurrency",
        metavar="N",
        min=1,
        show_default=False,
        help=help_of("max_in_flight"),
    ),
    batch_size: Optional[int] = typer.Option(
        None,
        "--batch-size",
        metavar="N",
        min=1,
        help=help_of("batch_size", "journals only"),
    ),
    claim_after: Optional[float] = typer.Option(
        None,
        "--claim-after",
        metavar="S",
        callback=above_0,
        help="take over another relay's batches after it was silent for this many seconds "
        "(default: 15, or twice the shutdown timeout; broker only)",
    ),
    compress: bool = COMPRESS,
    shutdown_timeout: float = typer.Option(
        OPTIONS["shutdown_timeout"].default,
        "--shutdown-timeout",
        metavar="S",
        callback=above_0,
        show_default=False,
        help=help_of("shutdown_timeout"),
    ),
    poll_interval: float = typer.Option(
        0.05,
        "--poll-interval",
        metavar="S",
        callback=above_0,
        help="seconds between two checks for new events while there are none",
    ),
    fsync: Optional[str] = typer.Option(
        None,
        "--fsync",
        metavar="interval|batch",
        autocompletion=lambda: ["interval", "batch"],
        help="how often delivery progress is synced to disk: every second, "
        "or for each batch (default: never, the kernel writes it; journals only)",
    ),
    keys: Optional[str] = typer.Option(
        None,
        "--keys",
        metavar="FILE",
        help="for several projects: a file with slug=sk_… per line, readable only by its owner; replaces "
        "WINDBACK_API_KEYS and WINDBACK_API_KEY (broker only)",
    ),
    listen: Optional[str] = typer.Option(
        None,
        "--listen",
        metavar="[HOST:]PORT",
        help="answer /healthz, /readyz and /metrics there; the default host is 127.0.0.1, and port 0 is a "
        "free port (default: don't listen)",
    ),
    once: bool = typer.Option(False, "--once", help="send the present events, and end"),
) -> int:
    """Run the command. Returns the exit code."""
    journal, broker = _places(
        journal or "",
        broker or "",
        {"--flush-interval": flush_interval, "--batch-size": batch_size, "--fsync": fsync},
        {"--claim-after": claim_after, "--keys": keys},
    )
    from windback.relay import BrokerRelay, Relay  # loads a lot

    with logging_to_stderr(logging.INFO):
        with said(journal):
            relay: Union[BrokerRelay, Relay]
            if broker:
                relay = BrokerRelay(
                    broker,
                    api_keys=None if keys is None else read_keys(keys),
                    base_url=base_url,
                    concurrency=max_in_flight,
                    claim_after=claim_after,
                    compress=compress,
                    shutdown_timeout=shutdown_timeout,
                    poll_interval=poll_interval,
                )
            else:
                relay = Relay(
                    journal,
                    base_url=base_url,
                    flush_interval=1.0 if flush_interval is None else flush_interval,
                    max_in_flight=max_in_flight,
                    batch_size=100 if batch_size is None else batch_size,
                    compress=compress,
                    shutdown_timeout=shutdown_timeout,
                    poll_interval=poll_interval,
                    fsync=fsync,
                )
        where = f"to {broker_address(broker).place}" if broker else f"under {Path(journal).absolute()}"
        is_all = True
        with stopped_by_signals(relay.stop), _answering(relay, listen):
            # From this line on, readers may rely on it: SIGTERM ends the relay in good order.
            logger.info("relay: sending the events that are written %s", where)
            if once:
                is_all = relay.drain()
                relay.close()
                is_all = is_all and not _is_left(relay, journal)
            else:
                relay.run()
        stats = relay.stats()
        logger.info(
            "relay: ended; %d events read, %d delivered, %d rejected, %d left in the %s; "
            "%d requests, %d of them repeated",
            stats.adopted,
            stats.delivered,
            stats.rejected,
            stats.pending,
            "broker" if broker else "journals",
            stats.requests,
            stats.retries,
        )
    return 0 if is_all else 1


@contextlib.contextmanager
def _answering(relay: Union[Relay, BrokerRelay], listen: Optional[str]) -> Generator[None, None, None]:
    if listen is None:
        yield
        return
    if find_spec("prometheus_client") is None:
        raise CommandError("--listen needs prometheus-client: pip install 'windback[metrics]'")
    from windback.relay.health import answering

    host, _, port = listen.rpartition(":")
    if not port.isdigit() or int(port) > 65_535:
        raise CommandError(f"--listen must be a port, or HOST:PORT, not {listen!r}")
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(answering(relay, host.strip("[]") or "127.0.0.1", int(port)))
        except OSError as error:
            raise CommandError(f"can't listen on {listen}: {error.strerror or error}") from None
        logger.info("relay: answers /healthz, /readyz and /metrics on %s", url)
        yield


def _places(
    journal: str, broker: str, journals_only: Mapping[str, object], broker_only: Mapping[str, object]
) -> Tuple[str, str]:
    """Return the source of events: a directory or a broker; the other one is empty."""
    if not journal and not broker:
        journal, broker = os.environ.get("WINDBACK_JOURNAL", ""), os.environ.get("WINDBACK_BROKER", "")
    if journal and broker:
        raise CommandError("--journal and --broker can't be combined; give one of them")
    if not journal and not broker:
        raise CommandError(
            "--journal or --broker is required: give --journal DIR or --broker URL, "
            "or set WINDBACK_JOURNAL or WINDBACK_BROKER"
        )
    refused = [
        name for name, value in (journals_only if broker else broker_only).items() if value is not None
    ]
    if refused:
        raise CommandError(
            f"{refused[0]} has no effect with {'--broker' if broker else '--journal'}; leave it out"
        )
    return journal, broker


def _is_left(relay: Union[Relay, BrokerRelay], journal: str) -> bool:
    """Whether events remain that no process or relay sends."""
    from windback.relay import BrokerRelay

    if isinstance(relay, BrokerRelay):
        with said(journal):
            return relay.left() > 0
    from windback.journal.inspect import without_sender

    return any(each.undelivered or each.newer for each in without_sender(Path(journal)))
