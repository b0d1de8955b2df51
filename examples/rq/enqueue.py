"""Put 20 jobs into the queue: `python enqueue.py`. REDIS_URL is the queue's Redis."""

from __future__ import annotations

import os

import redis
import rq
from tasks import send_invoice

url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
queue = rq.Queue(connection=redis.Redis.from_url(url))
for number in range(20):
    queue.enqueue(send_invoice, "jane@example.com", number)
print(f"{len(queue)} jobs wait")
