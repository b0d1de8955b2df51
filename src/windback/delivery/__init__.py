"""Who sends what, and when: the schedule, the verdict on an answer, retries, the gate, flushes, the workers.

What a status code means is in `verdict`. A batch that is too large (413) is split by `queue.outbox`, and one
of a track_events call by `track_events`. How long a flush or a close may take is in `engine`, how long tries
go on in `retry`, a pause of the whole queue in `gate`.

Imports: `broker`, `http`, `process`, `queue`, `api`, `event`.
"""
