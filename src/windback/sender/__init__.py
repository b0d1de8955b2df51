"""A process of the application's own that sends its events (`worker="process"`), and who looks after it.

Imports: `relay`, `remote`, `delivery`.
"""
