"""Redis between applications and relays: its contents, and the code that writes and reads them.

Imports: `http`, `queue`, `api`, `event`.
"""
