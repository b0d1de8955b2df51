"""Events of the whole process: its exit, its forks, its signals.

`lifecycle` notices a fork and has the deadline of the exit.

Imports: no other package.
"""
