"""before_send: a user's function between an event and its bytes. It must not hurt the application."""

from __future__ import annotations

from typing import Callable, Dict, Mapping, Optional

from ..errors import InvalidEventError
from .encode import BeforeSend, Properties, Timestamp, build, check_fields, encode_built


class HookedEncoder:
    """Encodes like `event.encode`, with before_send in between; returns None for an event it refused.

    A hook that raises, or returns an event that can't be sent, refuses the event: the hook may be there to
    remove something, so sending the event as it was could give away what it should have kept.
    """

    def __init__(
        self,
        before_send: BeforeSend,
        refuse: Callable[[str], object],
        count_error: Callable[[str, BaseException], object],
    ) -> None:
        self._before_send = before_send
        self._refuse = refuse
        self._count_error = count_error

    def encode(
        self,
        event: str,
        customer_email: str,
        properties: Optional[Properties],
        timestamp: Optional[Timestamp],
        max_event_bytes: int,
    ) -> Optional[bytes]:
        """Return the event's bytes, or None. Raises InvalidEventError if the caller's event can't be sent."""
        built = build(event, customer_email, properties, timestamp)
        given = dict(built)
        if isinstance(properties, Mapping):
            given["properties"] = dict(properties)  # the hook may change it, and it is the caller's
        try:
            wanted = self._before_send(given)
            if wanted is None:
                self._refuse("before_send")
                return None
            return encode_built(_rebuild(wanted), max_event_bytes)
        except Exception as error:  # noqa: BLE001 - whatever the hook raises must not reach the app
            encode_built(built, max_event_bytes)  # was it the caller's event that can't be encoded?
            self._refuse("before_send_error")
            self._count_error("before_send", error)
            return None


def _rebuild(wanted: object) -> Dict[str, object]:
    if not isinstance(wanted, Mapping):
        message = f"before_send must return an event or None, not a {type(wanted).__name__}"
        raise InvalidEventError(message, path="")
    fields = check_fields(wanted)
    return build(
        fields.get("event"), fields.get("customer_email"), fields.get("properties"), fields.get("timestamp")
    )
