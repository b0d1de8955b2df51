"""A job for RQ that tracks an event. The lines marked `windback` are all that it needs."""

from __future__ import annotations

from windback import Windback  # windback

client = Windback()  # windback


def send_invoice(email: str, number: int) -> None:
    """Track that an invoice was sent."""
    client.track_event("invoice_sent", email, {"number": number})
