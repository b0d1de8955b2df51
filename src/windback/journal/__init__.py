"""Files that keep events after a process has ended: segments, ledgers of leases, directories and their locks.

Imports: `event`.
"""
