"""A request goes out, an answer comes back: httpx and the network below it. The key goes to one host only.

One deadline covers all of a request: `names` looks up the host within it, and `network` connects, sends and
receives.

Imports: `api`.
"""
