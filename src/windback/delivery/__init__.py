"""Who sends what, and when: the schedule, the verdict on an answer, retries, the gate, flushes, the workers.

Imports: `http`, `queue`, `api`, `event`, `process`.
"""
