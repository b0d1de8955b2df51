"""The sender process of an application (`worker="process"`), and the supervisor that starts and replaces it.

Imports: `relay`, `remote`, `delivery`, `http`, `process`, `journal`.
"""
