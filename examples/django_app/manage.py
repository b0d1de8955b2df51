"""A Django project that tracks. To see what it tracks, run these in two terminals.

$ windback dev -- python examples/django_app/manage.py runserver
$ curl localhost:8000/export -H "X-User: jane@example.com"
"""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
execute_from_command_line(sys.argv)
