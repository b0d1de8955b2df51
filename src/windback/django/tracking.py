"""`track_event` and `track` with transactions in mind, and `client`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Protocol, cast

from django.db import transaction

from ..event.encode import Properties, Timestamp
from . import conf, testing

if TYPE_CHECKING:
    from ..client import Windback


class _Prepared(Protocol):
    def send(self) -> bool: ...


def track_event(
    event: str,
    customer_email: str,
    properties: Optional[Properties] = None,
    *,
    timestamp: Optional[Timestamp] = None,
    using: Optional[str] = None,
    on_commit: Optional[bool] = None,
) -> bool:
    """Record something a customer did; inside `atomic` it is sent on commit, and not at all on rollback.

    It is checked, stamped and encoded at the call, so that later changes and mistakes do not leak into the
    commit.

    Args:
        event: See `Windback.track_event`.
        customer_email: See `Windback.track_event`.
        properties: See `Windback.track_event`.
        timestamp: See `Windback.track_event`.
        using: The alias of the database whose transaction counts; the default one if None.
        on_commit: False sends immediately, also inside `atomic`. None: WINDBACK["ON_COMMIT"].

    Returns:
        Whether the event was accepted, or waits for the commit. False, too, without a usable client, which
        one WARNING has the reason.

    Raises:
        InvalidEventError: The event can't be sent.
    """
    testing.capture_if_testing()
    current = conf.get_client_or_none()
    if current is None:
        return False
    if not _waits_for_commit(using, on_commit=on_commit):
        return current.track_event(event, customer_email, properties, timestamp=timestamp)
    return _send_on_commit(current.prepare(event, customer_email, properties, timestamp=timestamp), using)


def track(
    event: str,
    properties: Optional[Properties] = None,
    *,
    timestamp: Optional[Timestamp] = None,
    using: Optional[str] = None,
    on_commit: Optional[bool] = None,
) -> bool:
    """Record something that the customer of this request did, as `track_event` does.

    Args:
        event: See `Windback.track`.
        properties: See `Windback.track`.
        timestamp: See `Windback.track`.
        using: See `track_event`.
        on_commit: See `track_event`.

    Returns:
        Whether the event was accepted, or waits for the commit. False without a customer.

    Raises:
        InvalidEventError: The event can't be sent.
    """
    testing.capture_if_testing()
    current = conf.get_client_or_none()
    if current is None:
        return False
    if not _waits_for_commit(using, on_commit=on_commit):
        return current.track(event, properties, timestamp=timestamp)
    prepared = current._prepare_tracked(event, properties, timestamp)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return _send_on_commit(prepared, using)


def _waits_for_commit(using: Optional[str], *, on_commit: Optional[bool]) -> bool:
    wanted = conf.sends_on_commit() if on_commit is None else on_commit
    return wanted and transaction.get_connection(using).in_atomic_block


def _send_on_commit(prepared: Optional[_Prepared], using: Optional[str]) -> bool:
    if prepared is None:
        return False
    transaction.on_commit(prepared.send, using=using, robust=True)
    return True


class _LazyClient:
    """Stands for the client that the settings make, which no import may do."""

    def __getattr__(self, name: str) -> object:
        testing.capture_if_testing()
        return getattr(conf.get_client(), name)

    def __repr__(self) -> str:
        return "<windback.django.client>"


#: The client of the project, made at first use. Its own `track_event` knows nothing of transactions.
client = cast("Windback", _LazyClient())
