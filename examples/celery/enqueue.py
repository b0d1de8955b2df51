"""Send 20 tasks to the workers: `python enqueue.py`."""

from __future__ import annotations

from app import send_invoice

for number in range(20):
    send_invoice.delay("jane@example.com", number)
print("20 tasks wait")
