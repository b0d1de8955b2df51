"""Two workers of four threads; each has a client of its own, made after the fork."""

import os

bind = f"127.0.0.1:{os.environ['APP_PORT']}"
workers = 2
threads = 4
keepalive = 30  # nginx keeps its connections
graceful_timeout = 20  # more than the client's shutdown_timeout, in which it hands over what is queued
accesslog = None
