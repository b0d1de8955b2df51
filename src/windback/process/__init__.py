"""What happens to the process as a whole: its exit, its forks, its signals.

Imports: nothing above `errors`.
"""
