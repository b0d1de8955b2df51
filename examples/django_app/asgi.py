"""For uvicorn and other ASGI servers: they end without exit handlers, so the application is wrapped."""

import os

from django.core.asgi import get_asgi_application

from windback.asgi import WindbackMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = WindbackMiddleware(get_asgi_application())
