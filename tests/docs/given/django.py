import os
import sys
from pathlib import Path

import django

import windback

sys.path.insert(0, str(Path(windback.__file__).parents[2] / "examples" / "django_app"))
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import settings

settings.DATABASES["orders"] = dict(settings.DATABASES["default"])
django.setup()

import pytest
from django.core.asgi import get_asgi_application
from django.db import connection, models, transaction
from django.http import HttpResponse
from django.urls import path

INSTALLED_APPS = []
MIDDLEWARE = []
urlpatterns = []


class Order(models.Model):  # noqa: DJ008
    total = models.IntegerField()

    class Meta:
        app_label = "page"


with connection.schema_editor() as editor:
    editor.create_model(Order)
