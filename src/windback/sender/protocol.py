"""What an application and its sender process say to each other.

Lines over two pipes, beside `journal.counters`.

    to the sender      first the options, as JSON; then WAKE, SLEEP_ON, FLUSH number patient,
                       FLUSH_END number, LOOK number
    from the sender    JSON objects with one key: ready, asleep, log, report, gave_up

The end of the input tells the sender that the application is gone, or has closed its client.
"""

WAKE, SLEEP_ON, FLUSH, FLUSH_END, LOOK = b"wake", b"sleep-on", b"flush", b"flush-end", b"look"
