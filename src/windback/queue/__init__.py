"""Where accepted events wait: in memory, or in a journal on disk. `put` takes no lock.

Imports: `journal`, `event`, `stats`.
"""
