"""The client's side when another process sends: what it writes, how it asks, and the counters they share.

How long a flush or a close may take is in `engine`.

Imports: `delivery`, `process`, `queue`, `journal`.
"""
