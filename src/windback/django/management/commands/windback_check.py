"""`manage.py windback_check`: do the settings make a client, and does an event arrive?"""

from __future__ import annotations

from argparse import ArgumentParser

from django.core.management.base import BaseCommand, CommandError

from windback.django import conf
from windback.errors import ConfigurationError


class Command(BaseCommand):
    """Check the settings of windback, and send a test event on request."""

    help = "Shows the project and API of the settings; --send sends one event there and waits for it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add --send."""
        parser.add_argument("--send", action="store_true", help="send the event windback_check")
        parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds to wait for it")

    def handle(self, *, send: bool, timeout: float, **_: object) -> None:
        """Look, and send."""
        try:
            client = conf.get_client()
        except ConfigurationError as error:
            raise CommandError(error.message) from None
        self.stdout.write(f"client: {client!r}")
        self.stdout.write(
            f"events inside atomic are sent {'on commit' if conf.sends_on_commit() else 'immediately'}"
        )
        if not send:
            return
        if not client.track_event("windback_check", "check@example.com"):
            raise CommandError(f"the event was refused: {dict(client.stats().refused)}")
        result = client.flush(timeout)
        if not result or result.rejected:
            reasons = ", ".join(client.stats().rejected_by_reason)
            raise CommandError(
                f"the event did not arrive: {result.problem or reasons or 'no answer in time'}"
            )
        self.stdout.write(self.style.SUCCESS("the event windback_check was delivered"))
