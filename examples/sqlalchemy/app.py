"""Orders in a database, with an event for each that is really there: `python app.py`."""

from __future__ import annotations

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from windback.sqlalchemy import track_on_commit  # windback


class Base(DeclarativeBase):
    """All tables."""


class Order(Base):
    """One order."""

    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)


engine = create_engine("sqlite://")
Base.metadata.create_all(engine)


def order(number: int, *, pays: bool) -> None:
    """Store an order; without a payment all of it is undone."""
    with Session(engine) as session, session.begin():
        session.add(Order(number=number))
        track_on_commit(session, "ordered", "jane@example.com", {"number": number})
        if not pays:
            session.rollback()


for number in range(4):
    order(number, pays=number != 2)
with Session(engine) as session:
    print(f"{session.query(Order).count()} orders")
