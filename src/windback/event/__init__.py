"""Arguments become bytes: an event is checked, stamped and encoded once; batches of them are cut and joined.

Pure but for the clock that stamps events. Imports: `config`, `errors`.
"""
