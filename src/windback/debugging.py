"""debug=True: what happens to each event, in readable lines on the logger "windback".

A client without it does not come here: its functions are not wrapped.
"""

from __future__ import annotations

import logging
import sys
from typing import Callable, Mapping, Optional

import orjson

from .stats import DeliveryReport

logger = logging.getLogger("windback")


def show_lines() -> None:
    """Let lines of level DEBUG pass; write them to stderr if the application has set up no logging."""
    if logger.level == logging.NOTSET or logger.level > logging.DEBUG:
        logger.setLevel(logging.DEBUG)
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        logger.addHandler(handler)


def watched_encode(encode: Callable[..., Optional[bytes]]) -> Callable[..., Optional[bytes]]:
    """Return *encode*, with a line for each event that before_send turned away."""

    def watched(event: str, customer_email: str, *rest: object) -> Optional[bytes]:
        record = encode(event, customer_email, *rest)
        if record is None:
            logger.debug("refused by before_send: %s of %s", event, _masked(customer_email))
        return record

    return watched


def watched_put(put: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
    """Return *put*, with a line for each event."""

    def watched(record: bytes) -> bool:
        is_accepted = put(record)
        what = "queued" if is_accepted else "refused (see stats().refused)"
        logger.debug("%s: %s, %d bytes", what, _described(orjson.loads(record)), len(record))
        return is_accepted

    return watched


def watched_report(
    on_delivery: Optional[Callable[[DeliveryReport], object]],
) -> Callable[[DeliveryReport], object]:
    """Return *on_delivery*, with a line for each event of the batch."""

    def watched(report: DeliveryReport) -> None:
        events = report.events
        status = "" if report.status is None else f", status {report.status}"
        why = f"{report.reason}{status}" + (f": {report.message}" if report.message else "")
        for event in events:
            logger.debug("%s: %s (%s)", report.outcome, _described(event), why)
        if not events:
            count = "1 event" if report.count == 1 else f"{report.count} events"
            logger.debug("%s: %s (%s)", report.outcome, count, why)
        if on_delivery is not None:
            on_delivery(report)

    return watched


def _described(event: Mapping[str, object]) -> str:
    properties = event.get("properties")
    names = f" with {', '.join(properties)}" if isinstance(properties, Mapping) and properties else ""
    return f"{event.get('event')} of {_masked(event.get('customer_email'))}{names}"


def _masked(email: object) -> str:
    """An address in a log is personal data: its first letter and its domain tell which it is."""
    name, _, domain = str(email).rpartition("@")
    return f"{name[:1]}…@{domain}"
