"""Events of the whole process: its exit, its forks, its signals.

Imports: nothing above `errors`.
"""
