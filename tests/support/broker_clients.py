"""Clients and relays of a broker without API keys, and the keys of their streams."""

from __future__ import annotations

import contextlib

from windback import Windback
from windback.broker.layout import keys_of
from windback.relay import BrokerRelay

#: Of applications without a project.
EVENTS, DEAD, PAUSE = keys_of(None)
#: Of those with one.
MINE = keys_of("my-project")
#: This server takes it for no email address, the client does.
POISON = "jane@"


@contextlib.contextmanager
def making_clients(redis_server, mark):
    """Make clients that have no key.

    The address means nothing beside a broker, but that tests on the same port share no place in memory.
    """
    with contextlib.ExitStack() as stack:

        def make(**options):
            shared = {"broker": redis_server.url, "base_url": f"http://127.0.0.1:9/{mark}"}
            options = {**shared, "flush_interval": 0.01, **options}
            client = Windback(**options)
            stack.callback(client.close)
            return client

        yield make


def relay_of(server, redis_server, **options):
    """Make a relay from Redis to the server."""
    return BrokerRelay(
        **{"broker": redis_server.url, "api_key": "sk_test_1", "base_url": server.url, **options}
    )
