"""The loops that take batches and send them: threads, tasks of an event loop, and threads for maintenance.

Only this package and `sender` start threads for delivery.
"""
