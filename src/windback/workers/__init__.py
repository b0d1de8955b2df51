"""The workers: threads or tasks that lease a batch, send it and settle it, again and again.

Both shells do the same in the same order and decide nothing: `dispatch` says what comes next,
`transport` sends, `delivery` judges. What differs is how one sleeps, and how one starts.
"""
