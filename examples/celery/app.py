"""A task for Celery that tracks an event. The lines marked `windback` are all that it needs."""

from __future__ import annotations

import os

from celery import Celery

from windback import Windback  # windback

client = Windback()  # windback
app = Celery("app", broker=os.environ.get("BROKER_URL", "redis://127.0.0.1:6379/0"))
app.conf.task_ignore_result = True


@app.task
def send_invoice(email: str, number: int) -> None:
    """Track that an invoice was sent."""
    client.track_event("invoice_sent", email, {"number": number})
