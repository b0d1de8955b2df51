"""The client's side when another process sends: what it writes, how it asks, and the counters they share.

Imports: `delivery`, `process`, `queue`, `journal`.
"""
