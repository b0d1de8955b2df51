"""Sends what other processes wrote: their journals, or a stream in Redis (`windback relay`).

Imports: everything but `client`, `cli`, `testing` and `sender`.
"""

from .broker import BrokerRelay
from .journal import Relay

__all__ = ["BrokerRelay", "Relay"]
