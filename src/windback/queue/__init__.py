"""Where accepted events wait: in memory, or in a journal on disk. `put` takes no lock.

`intake` decides what a full or a closed queue answers. `outbox` leases batches, takes them back, and splits
one that is too large.

Imports: `journal`, `event`.
"""
