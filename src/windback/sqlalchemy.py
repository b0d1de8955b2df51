"""SQLAlchemy: an event of a transaction is sent when that commits, and never if it is rolled back."""

from __future__ import annotations

from typing import Dict, List, Optional, Protocol, Union, cast

from .client import AsyncWindback, Windback
from .default import client_or_none
from .errors import ConfigurationError
from .event.encode import Properties, Timestamp

try:
    from sqlalchemy import event as events
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, SessionTransaction, scoped_session
except ImportError as error:
    raise ImportError("windback.sqlalchemy needs SQLAlchemy 2: pip install 'windback[sqlalchemy]'") from error

AnySession = Union[Session, "scoped_session[Session]", AsyncSession, "async_scoped_session[AsyncSession]"]


def track_on_commit(
    session: AnySession,
    event: str,
    customer_email: Optional[str] = None,
    properties: Optional[Properties] = None,
    *,
    timestamp: Optional[Timestamp] = None,
    client: Union[Windback, AsyncWindback, None] = None,
) -> bool:
    """Record something a customer did, to be sent when the session's transaction commits.

    The event is checked, stamped and encoded now; later changes to *properties* do not count. It is sent
    after the outermost transaction has committed. A rollback discards it, also that of a savepoint around
    the call, and so does closing the session without a commit. Begins a transaction if there is none, as
    `session.add` does.

    Args:
        session: A Session or an AsyncSession, or a scoped_session of either.
        event: See `Windback.track_event`.
        customer_email: See `Windback.track_event`. None: the customer that is bound, as in `Windback.track`.
        properties: See `Windback.track_event`.
        timestamp: See `Windback.track_event`; None: now, not when the transaction commits.
        client: The client that sends. None: `windback.get_client()`.

    Returns:
        Whether the event waits for the commit. False if there is no customer, if before_send refused the
        event, or if there is no usable client, with one WARNING.

    Raises:
        InvalidEventError: The event can't be sent.
        ConfigurationError: *session* is not a session, or has autobegin=False and no transaction.
    """
    own = _own_session(session)
    current = client if client is not None else client_or_none()
    if current is None:
        return False
    prepared: Optional[_Prepared]
    if customer_email is None:
        prepared = current._prepare_tracked(event, properties, timestamp)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # for this
    else:
        prepared = current.prepare(event, customer_email, properties, timestamp=timestamp)
    if prepared is None:
        return False
    waiting = cast("_Waiting", own.info.setdefault(_KEY, {}))
    waiting.setdefault(_transaction(own), []).append(prepared)
    return True


class _Prepared(Protocol):
    """What is sent on commit."""

    def send(self) -> bool: ...


#: The events of each transaction that is not over: of the outermost one, and of savepoints.
_Waiting = Dict[SessionTransaction, List[_Prepared]]
_KEY = "windback"


def _own_session(session: object) -> Session:
    """Return the session that does the work."""
    registry = getattr(session, "registry", None)
    if isinstance(session, (scoped_session, async_scoped_session)) and callable(registry):
        session = registry()
    if isinstance(session, AsyncSession):
        session = session.sync_session
    if not isinstance(session, Session):
        raise ConfigurationError(
            f"track_on_commit takes a Session or an AsyncSession of SQLAlchemy, not {type(session).__name__}"
        )
    return session


def _transaction(session: Session) -> SessionTransaction:
    """Return the innermost transaction or savepoint; begin one if necessary."""
    current = session.get_nested_transaction() or session.get_transaction()
    if current is not None:
        return current
    if not session.autobegin:
        raise ConfigurationError(
            "track_on_commit: this session has autobegin=False and no transaction; begin one first"
        )
    return session.begin()


def _on_commit(session: Session) -> None:
    """Send the events of the outermost transaction; pass those of a savepoint on to what is around it."""
    waiting: Optional[_Waiting] = session.info.get(_KEY)
    if not waiting:
        return
    over = session.get_nested_transaction() or session.get_transaction()
    prepared = [] if over is None else waiting.pop(over, [])
    outer = None if over is None else _around(over)
    if outer is not None:
        waiting.setdefault(outer, []).extend(prepared)
        return
    for each in prepared:
        each.send()


def _around(transaction: SessionTransaction) -> Optional[SessionTransaction]:
    """Return the transaction or savepoint around a savepoint, without those that a flush opens."""
    outer = transaction.parent
    while outer is not None and not outer.nested and outer.parent is not None:
        outer = outer.parent
    return outer


def _on_end(session: Session, transaction: SessionTransaction) -> None:
    """Discard the events of a transaction that ends without a commit."""
    waiting: Optional[_Waiting] = session.info.get(_KEY)
    if waiting:
        waiting.pop(transaction, None)


# Of the class, so that each session has them without another call.
events.listen(Session, "after_commit", _on_commit)
events.listen(Session, "after_transaction_end", _on_end)
