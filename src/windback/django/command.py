"""A base for management commands that track."""

from __future__ import annotations

from typing import Optional

from django.core.management.base import BaseCommand, CommandError

from ..context import bound
from ..errors import ClosedError
from ..process.lifecycle import events_were
from . import conf


class Command(BaseCommand):
    """A BaseCommand with a scope, which delivers what it tracked before it ends.

    Derive from it and write `handle` as usual; `windback.context.bind` works inside. A command whose events
    could not be delivered ends with status 1.
    """

    def execute(self, *args: object, **options: object) -> Optional[str]:
        """Run the command, then deliver."""
        with bound():
            output = super().execute(*args, **options)
        client = conf.get_client_or_none()
        if client is None:
            return output
        try:
            result = client.flush()
        except ClosedError:
            return output
        if not result:
            events = events_were(result.pending)
            raise CommandError(f"{events} not delivered ({result.problem or 'no reason is known'})")
        return output
