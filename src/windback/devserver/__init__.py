"""A local server with the Windback API, for trying things out, for tests and for benchmarks.

    with DevServer() as server:
        client = Windback("sk_test_local", "my-project", base_url=server.url)

It keeps what arrives in SQLite, counts it, and makes faults on demand. It is for one machine: it binds to
loopback only. Needs ``pip install 'windback[dev-server]'`` to run; importing this package loads no web
framework.
"""

from __future__ import annotations

from .process import (
    ConfiguredOffer,
    Counts,
    DevServer,
    DevServerError,
    FaultRule,
    RateLimit,
    RequestRecord,
    StoredEvent,
    WebhookAttempt,
    WebhookDelivery,
)

__all__ = [
    "ConfiguredOffer",
    "Counts",
    "DevServer",
    "DevServerError",
    "FaultRule",
    "RateLimit",
    "RequestRecord",
    "StoredEvent",
    "WebhookAttempt",
    "WebhookDelivery",
]
