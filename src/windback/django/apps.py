"""The app of INSTALLED_APPS. Starting it makes no client, thread or connection, and never raises."""

from __future__ import annotations

import sys
from pathlib import PurePath

from django.apps import AppConfig
from django.core import checks as registry

from ..process import signals


class WindbackConfig(AppConfig):
    """Registers the system checks, and lets management commands deliver at SIGTERM."""

    name = "windback.django"
    label = "windback"
    verbose_name = "Windback"

    def ready(self) -> None:
        """Do all that is done at start-up."""
        from . import checks, testing

        registry.register(checks.check_settings)
        registry.register(checks.check_databases, registry.Tags.database)
        testing.watch_test_environment()
        if _is_management_command():
            signals.install_for_command()


def _is_management_command() -> bool:
    """Whether this is manage.py or django-admin: servers such as gunicorn handle signals themselves."""
    program = PurePath(sys.argv[0] if sys.argv else "")
    if program.name == "__main__.py":  # python -m django
        return program.parent.name == "django"
    return program.name in ("manage.py", "django-admin", "django-admin.py")
