"""Files that keep events over the end of a process: segments, ledgers of leases, directories and their locks.

Imports: `event`, `config`.
"""
