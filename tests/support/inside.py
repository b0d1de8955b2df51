"""The inner parts of a client that a test waits for, breaks or looks at.

Only this file reaches into them. So a part that moves is found here, and a test says what it needs.
"""

from __future__ import annotations

from windback.process import lifecycle


def config_of(client):
    """Return the checked options of a client."""
    return client._config


def engine_of(owner):
    """Return the engine of a client, a sender or a relay."""
    return owner._engine


def queue_of(owner):
    """Return the queue of a client, a sender or a relay."""
    return engine_of(owner).queue


def scheduler_of(owner):
    """Return what decides for the workers of a client, a sender or a relay."""
    return engine_of(owner).scheduler


def journal_of(client):
    """Return what writes the journal of a client."""
    return queue_of(client).writer


def link_of(client):
    """Return a client's link to the process that sends."""
    return engine_of(client)._link


def running_sender(client):
    """Return the sender that runs for a client; None while there is none."""
    return link_of(client)._running


def state_of_loop(client):
    """Return what a client has in the running event loop, made at the first call."""
    return engine_of(client).loops.current()


def is_syncing(owner):
    """Return whether the thread that syncs the journal to disk is at work."""
    return engine_of(owner)._fsync_thread._is_running


def start_by(client, start):
    """Make *start* what starts a worker of a client."""
    scheduler_of(client)._start_worker = start


def start_no_worker(client):
    """Make a client keep what it accepts: none of its workers starts."""
    start_by(client, lambda *_: False)


def adopt_later(queue, found):
    """Make *found* what a queue has seen of exited processes; None: it has not looked yet."""
    queue._to_adopt = found


def has_adopted(queue):
    """Return whether a queue has looked for exited processes, and has read all that they left."""
    return queue._reader is None and queue._to_adopt is not None and not queue._to_adopt


def reader_of(queue):
    """Return what reads the journal of an exited process right now."""
    return queue._reader


def ledger_of(source):
    """Return the file in which a journal notes what is settled."""
    return source._ledger._current


def journals_of(relay):
    """Return the journals that a relay drains."""
    return relay._queue


def projects_of(relay):
    """Return the relay of each project of a broker."""
    return relay._projects


def encoder_of(client):
    """Return what makes bytes of an event, with the hooks of a client."""
    return client._encode


def way_of(client):
    """What an event passes in a client: two functions, and the attributes of the engine."""
    return client._encode, client._put, dict(client._engine.__dict__)


def locks_held():
    """Return which locks of the package the calling thread has, of those that know their thread."""
    locks = [("loading", lifecycle.loading), ("noticing", lifecycle._noticing)]
    for engine in lifecycle.engines():
        locks.append(("scheduler", getattr(getattr(engine, "scheduler", None), "lock", None)))
        locks.append(("maintaining", getattr(getattr(engine, "queue", None), "_maintaining", None)))
    return {name for name, lock in locks if lock is not None and lock._is_owned()}
