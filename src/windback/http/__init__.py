"""A request goes out, an answer comes back: httpx and the network below it. The key goes to one host only.

Imports: `api`, `event`.
"""
