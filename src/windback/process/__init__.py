"""Events of the whole process: its exit, its forks, its signals.

`lifecycle` notices a fork, and has the deadline of the exit. What a client makes anew in a forked child is in
the `reset` of its engine, in `delivery` or `remote`.

Imports: no other package.
"""
