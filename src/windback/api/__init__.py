"""The API of Windback in Python: arguments become a request, an answer becomes a model or an error.

Pure: no socket, no clock. Imports: `event`, `errors`, `models`.
"""
