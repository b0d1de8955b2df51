"""Sends the events of other processes: from their journals, or from a stream in Redis (`windback relay`).

Imports: `remote`, `delivery`, `broker`, `queue`, `journal`, `api`, `event`.
"""

from .broker import BrokerRelay
from .journal import Relay

__all__ = ["BrokerRelay", "Relay"]
