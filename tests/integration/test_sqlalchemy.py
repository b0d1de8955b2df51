"""`track_on_commit`: the events that are sent are those of the rows that are in the database afterwards."""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
from contextlib import suppress

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.orm import object_session as session_of

from windback import (
    AsyncWindback,
    ConfigurationError,
    InvalidEventError,
    Windback,
    context,
    get_client,
    set_client,
)
from windback.sqlalchemy import track_on_commit
from windback.testing import capturing

JANE = "jane@example.com"


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    n: Mapped[int] = mapped_column(primary_key=True)


def use_real_transactions(engine):
    """Let SQLAlchemy begin them: the module sqlite3 does not do so before a savepoint."""

    @event.listens_for(engine, "connect")
    def connect(connection, _record):
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection):
        connection.exec_driver_sql("BEGIN")


@pytest.fixture
def engine(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'rows.db'}")
    use_real_transactions(engine)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def client():
    with Windback("sk_test_1", base_url="http://127.0.0.1:9/api/v1", shutdown_timeout=0) as client:
        set_client(client)
        yield client
        set_client(None)


@pytest.fixture
def tracked():
    with capturing() as captured:
        yield lambda: [each.properties["n"] for each in captured]


def add(session, n):
    session.add(Row(n=n))
    assert track_on_commit(session, "row_added", JANE, {"n": n})


def rows(engine):
    with engine.connect() as connection:
        return [n for (n,) in connection.execute(text("SELECT n FROM rows ORDER BY n"))]


def test_a_commit_sends_and_a_rollback_does_not(engine, tracked):
    with Session(engine) as session:
        add(session, 1)
        assert tracked() == []
        session.commit()
        assert tracked() == [1]
        add(session, 2)
        session.rollback()
        add(session, 3)
        session.commit()
    assert tracked() == rows(engine) == [1, 3]


def test_values_of_a_loop_are_those_of_the_call(engine, tracked):
    properties = {}
    with Session(engine) as session, session.begin():
        for n in range(3):
            properties["n"] = n
            session.add(Row(n=n))
            track_on_commit(session, "row_added", JANE, properties)
    assert tracked() == rows(engine) == [0, 1, 2]


def test_savepoints(engine, tracked):
    with Session(engine) as session, session.begin():
        add(session, 1)
        with session.begin_nested():
            add(session, 2)
            with suppress(KeyError), session.begin_nested():
                add(session, 3)
                raise KeyError
            with session.begin_nested():
                add(session, 4)
        with suppress(KeyError), session.begin_nested():
            with session.begin_nested():
                add(session, 5)  # released, and then rolled back by the one around it
            raise KeyError
        assert tracked() == []
    assert sorted(tracked()) == rows(engine) == [1, 2, 4]


def test_a_session_that_is_closed_or_fails_sends_nothing(engine, tracked):
    with Session(engine) as session:
        add(session, 1)
    with suppress(KeyError), Session(engine) as session, session.begin():
        add(session, 2)
        raise KeyError
    with Session(engine) as session:
        add(session, 3)
        session.close()
        add(session, 4)  # the same session, used again
        session.commit()
    assert tracked() == rows(engine) == [4]


def test_a_flush_that_fails(engine, tracked):
    with Session(engine) as session:
        add(session, 1)
        session.commit()
        add(session, 1)  # a duplicate
        with pytest.raises(Exception, match="UNIQUE"):
            session.flush()
        session.rollback()
        session.commit()
    assert tracked() == rows(engine) == [1]


def test_an_event_of_a_mapper_that_a_flush_calls(engine, tracked):
    def after_insert(_mapper, _connection, row):
        track_on_commit(session_of(row), "row_added", JANE, {"n": row.n})

    event.listen(Row, "after_insert", after_insert)
    try:
        with Session(engine) as session:
            session.add(Row(n=1))
            with session.begin_nested():
                session.add(Row(n=2))
            session.flush()
            session.commit()
            session.add(Row(n=3))
            session.flush()
            session.rollback()
    finally:
        event.remove(Row, "after_insert", after_insert)
    assert sorted(tracked()) == rows(engine) == [1, 2]


@pytest.mark.parametrize("seed", range(40))
def test_events_and_rows_agree_whatever_a_session_does(engine, tracked, seed):
    rng = random.Random(seed)
    session = Session(engine)
    for n in range(60):
        add(session, n)
        action = rng.choice(["", "", "", "flush", "savepoint", "savepoint", "release", "undo", *LAST])
        nested = session.get_nested_transaction()
        if action == "savepoint":
            session.begin_nested()
        elif action == "release" and nested is not None:
            nested.commit()
        elif action == "undo" and nested is not None:
            nested.rollback()
        elif action in LAST or action == "flush":
            getattr(session, action)()
    rng.choice([session.commit, session.rollback])()
    session.close()
    assert sorted(tracked()) == rows(engine)
    assert not session.info["windback"], "nothing stays with the session"


LAST = ["commit", "rollback", "close"]


def test_scoped_sessions_and_subclasses(engine, tracked):
    class Own(Session):
        pass

    scoped = scoped_session(sessionmaker(engine, class_=Own))
    add(scoped, 1)
    scoped.commit()
    add(scoped, 2)
    scoped.remove()
    assert tracked() == rows(engine) == [1]


def test_async_sessions(tmp_path, tracked):
    async def main():
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'async.db'}")
        use_real_transactions(engine.sync_engine)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        async with AsyncSession(engine) as session:
            add(session, 1)
            await session.commit()
            add(session, 2)
            await session.rollback()
            async with session.begin():
                add(session, 3)
                with suppress(KeyError):
                    async with session.begin_nested():
                        add(session, 4)
                        raise KeyError
                async with session.begin_nested():
                    add(session, 5)
            add(session, 6)
        scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
        add(scoped, 7)
        await scoped.commit()
        await scoped.remove()
        async with engine.connect() as connection:
            found = [n for (n,) in await connection.execute(text("SELECT n FROM rows ORDER BY n"))]
        await engine.dispose()
        return found

    assert asyncio.run(main()) == tracked() == [1, 3, 5, 7]


def test_the_customer_that_is_bound(engine):
    with capturing() as captured, Session(engine) as session:
        assert not track_on_commit(session, "row_added")
        with context.bound(customer_email=JANE, plan="pro"):
            assert track_on_commit(session, "row_added", properties={"n": 1})
        session.commit()
    assert [(each.customer_email, each.properties) for each in captured] == [(JANE, {"plan": "pro", "n": 1})]
    assert get_client().stats().refused["no_customer"] == 1


def test_a_customer_that_is_awaited(engine):
    async def find():
        await asyncio.sleep(0)
        return JANE

    async def main():
        async with context.bound(customer_email=find):
            with Session(engine) as session:
                assert track_on_commit(session, "kept", properties={"n": 1})
                session.commit()
                assert track_on_commit(session, "undone", properties={"n": 2})
                session.rollback()

    with capturing() as captured:
        asyncio.run(main())
    assert [(each.event, each.customer_email) for each in captured] == [("kept", JANE)]


def test_a_mistake_raises_at_its_line_and_the_transaction_goes_on(engine, tracked):
    with Session(engine) as session, session.begin():
        add(session, 1)
        with pytest.raises(InvalidEventError):
            track_on_commit(session, "row_added", "no address", {"n": 2})
    assert tracked() == rows(engine) == [1]


def test_another_client_and_one_that_is_closed_in_the_meantime(engine):
    other = AsyncWindback("sk_test_1", base_url="http://127.0.0.1:9/api/v1", shutdown_timeout=0)
    with Session(engine) as session:
        assert track_on_commit(session, "row_added", JANE, client=other)
        session.commit()
        assert other.stats().accepted == 1
        assert track_on_commit(session, "row_added", JANE, client=other)
        asyncio.run(other.close(0))
        session.commit()  # raises nothing
    assert other.stats().refused["closed"] == 1


def test_without_a_key_nothing_is_sent_and_nothing_fails(engine, monkeypatch, no_environment):
    set_client(None)
    with Session(engine) as session:
        assert not track_on_commit(session, "row_added", JANE)


@pytest.mark.parametrize("wrong", [None, "session", object(), sessionmaker()])
def test_what_is_not_a_session(wrong):
    with pytest.raises(ConfigurationError, match="takes a Session or an AsyncSession"):
        track_on_commit(wrong, "row_added", JANE)


def test_a_session_that_must_be_begun(engine, tracked):
    with Session(engine, autobegin=False) as session:
        with pytest.raises(ConfigurationError, match="begin one first"):
            track_on_commit(session, "row_added", JANE, {"n": 1})
        with session.begin():
            add(session, 2)
    assert tracked() == [2]


def test_without_sqlalchemy_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    monkeypatch.delitem(sys.modules, "windback.sqlalchemy")
    with pytest.raises(ImportError, match=r"pip install 'windback\[sqlalchemy\]'"):
        importlib.import_module("windback.sqlalchemy")
