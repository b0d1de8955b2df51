"""Sends what other processes wrote: their journals, or a stream in Redis (`windback relay`).

Imports: everything but `client`, `cli`, `testing` and `sender`.
"""

from .forwarder import BrokerRelay, Relay

__all__ = ["BrokerRelay", "Relay"]
