"""Django: events that belong to a transaction are sent when it commits, and never if it is rolled back.

    INSTALLED_APPS += ["windback.django"]
    MIDDLEWARE += ["windback.django.WindbackMiddleware"]  # below AuthenticationMiddleware

    from windback.django import track

    track("export", {"rows": 3})  # of the user who is logged in

Settings are in WINDBACK, a dict: see `windback.django.conf`.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("django") is None:
    raise ImportError('windback.django needs Django: pip install "windback[django]"')

from .command import Command
from .middleware import WindbackMiddleware
from .tracking import client, track, track_event
from .webhooks import webhook_view

__all__ = ["Command", "WindbackMiddleware", "client", "track", "track_event", "webhook_view"]
