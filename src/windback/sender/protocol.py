"""The messages between an application and its sender process.

Lines over two pipes; counters are in `remote.counters`.

    to the sender      first the options, as JSON; then WAKE, SLEEP_ON, FLUSH number has_timeout,
                       FLUSH_END number, LOOK number
    from the sender    JSON objects with one key: ready, asleep, log, report, gave_up

The end of the input means that the application has ended, or has closed its client.
"""

WAKE, SLEEP_ON, FLUSH, FLUSH_END, LOOK = b"wake", b"sleep-on", b"flush", b"flush-end", b"look"
