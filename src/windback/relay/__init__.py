"""Sends the events of other processes: from their journals, or from a stream in Redis (`windback relay`).

`forwarder` looks for events and has the deadline of a drain; the end takes as long as a close in `delivery`.

Imports: `remote`, `delivery`, `broker`, `queue`, `journal`, `api`, `event`.
"""

from .broker import BrokerRelay
from .journal import Relay

__all__ = ["BrokerRelay", "Relay"]
