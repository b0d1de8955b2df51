"""Redis between applications and relays: what is stored there, and who writes and reads it.

Imports: `delivery`, `queue`, `event`.
"""
