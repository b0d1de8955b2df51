"""A Django project for the tests that start real servers and commands."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Dict

from servers import environment

FILES: Dict[str, str] = {
    "manage.py": """\
        import os, sys
        from django.core.management import execute_from_command_line
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
        if __name__ == "__main__":
            execute_from_command_line(sys.argv)
        """,
    "settings.py": """\
        import os
        from pathlib import Path
        SECRET_KEY = "key"
        ROOT_URLCONF = "urls"
        USE_TZ = True
        ALLOWED_HOSTS = ["*"]
        DEBUG = True
        LOGGING = {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"console": {"class": "logging.StreamHandler"}},
            "loggers": {"windback": {"handlers": ["console"], "level": "INFO"}},
        }
        DATABASES = {"default": {
            "ENGINE": "django.db.backends.sqlite3", "NAME": Path(__file__).with_name("db.sqlite3")}}
        INSTALLED_APPS = [
            "django.contrib.contenttypes", "django.contrib.auth", "windback.django", "shop"]
        MIDDLEWARE = ["windback.django.WindbackMiddleware"]
        WINDBACK = {"CUSTOMER": "urls.find_customer", "OPTIONS": {"shutdown_timeout": 40}}
        """,
    "urls.py": """\
        import asyncio
        from django.db import transaction
        from django.http import HttpResponse
        from django.urls import path
        from windback.django import client, track, track_event

        def find_customer(request):
            return request.headers.get("x-user", "jane@example.com")

        def health(request):
            return HttpResponse("up")

        def sync_view(request, n):
            return HttpResponse(f"{track('login', {'n': n})}")

        async def async_view(request, n):
            await asyncio.sleep(0)
            return HttpResponse(f"{track('login', {'n': n})}")

        def commit(request, n):
            with transaction.atomic():
                return HttpResponse(f"{track('login', {'n': n})}")

        def rollback(request, n):
            with transaction.atomic():
                track("rolled back", {"n": n})
                transaction.set_rollback(True)
            return HttpResponse(f"{track_event('login', 'jane@example.com', {'n': n})}")

        views = {"sync": sync_view, "async": async_view, "commit": commit, "rollback": rollback}
        urlpatterns = [path("health", health)] + [
            path(f"{name}/<int:n>", view) for name, view in views.items()]
        """,
    "wsgi.py": """\
        import os
        from django.core.wsgi import get_wsgi_application
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
        application = get_wsgi_application()
        """,
    "asgi.py": """\
        import os
        from django.core.asgi import get_asgi_application
        from windback.asgi import WindbackMiddleware
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
        application = WindbackMiddleware(get_asgi_application(), flush_timeout=40)
        """,
    "shop/__init__.py": "",
    "shop/management/__init__.py": "",
    "shop/management/commands/__init__.py": "",
    "shop/management/commands/import_rows.py": """\
        from windback import context
        from windback.django import Command as BaseCommand, track

        class Command(BaseCommand):
            def handle(self, *args, **options):
                context.bind(customer_email="jane@example.com")
                for n in range(50):
                    track("login", {"n": n})
        """,
    "shop/management/commands/plain.py": """\
        from django.core.management.base import BaseCommand
        from windback.django import track_event

        class Command(BaseCommand):
            def handle(self, *args, **options):
                for n in range(50):
                    track_event("login", "jane@example.com", {"n": n})
        """,
}
VIEWS = ("sync", "async", "commit", "rollback")


def write(folder: Path, **more: str) -> None:
    """Write the project into *folder*, with other texts for some files: `settings="…"` for settings.py."""
    for name, text in {**FILES, **{f"{name}.py": text for name, text in more.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")


def run(folder: Path, url: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python in *folder* until it ends."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**environment(url), **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
