"""A handler for AWS Lambda. The lines marked `windback` are all that it needs."""

from __future__ import annotations

from typing import Dict

from windback import get_client  # windback
from windback.serverless import flush_after  # windback


@flush_after  # windback
def handler(event: Dict[str, int], _context: object) -> str:
    """Track one event for each invocation."""
    get_client().track_event("report_made", "jane@example.com", {"number": event["number"]})
    return f"report {event['number']}"
