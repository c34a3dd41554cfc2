"""Databases for the tests, and stores in them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
from celery_clutch.stores.base import StoreOptions
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError

from celery_clutch_sqlalchemy import clutch_stores
from celery_clutch_sqlalchemy.store import SQLAlchemyStore

T = TypeVar("T")

SERVERS = {
    "postgresql": ("postgresql+psycopg", "postgresql://postgres@127.0.0.1/postgres"),
    "mariadb": ("mysql+pymysql", "mariadb://root@127.0.0.1/test"),
}
KINDS = [*SERVERS, "sqlite"]
PATIENCE = 90.0
"""Seconds after which what was awaited counts as failed."""


def missing(service: str, reason: object) -> NoReturn:
    """Skip; where all services are meant to be there (``CI=true``), fail."""
    message = f"{service} is missing: {reason}"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@contextmanager
def database(kind: str, directory: Path) -> Iterator[str]:
    """The URL of a new and empty database, which is dropped in the end."""
    if kind == "sqlite":
        yield f"sqlite:///{directory / f'{uuid.uuid4().hex}.db'}"
        return
    scheme, default = SERVERS[kind]
    url = make_url(os.environ.get(f"CLUTCH_TEST_{kind.upper()}", default))
    name = f"clutch_test_{uuid.uuid4().hex[:12]}"
    engine = create_engine(url.set(drivername=scheme), isolation_level="AUTOCOMMIT")
    try:
        admin = engine.connect()
    except OperationalError as exc:
        missing(f"{kind} at {url}", exc.orig)
    with admin:
        admin.exec_driver_sql(f"CREATE DATABASE {name}")
        try:
            yield url.set(database=name).render_as_string(hide_password=False)
        finally:
            force = " WITH (FORCE)" if kind == "postgresql" else ""
            admin.exec_driver_sql(f"DROP DATABASE {name}{force}")
    engine.dispose()


def open_store(url: str, options: StoreOptions = StoreOptions()) -> SQLAlchemyStore:
    """A store as an app opens it."""
    store = clutch_stores()[url.partition("://")[0]](url, options)
    assert isinstance(store, SQLAlchemyStore)
    return store


@contextmanager
def plain(url: str, **options: Any) -> Iterator[Connection]:
    """A connection with no store around it."""
    parsed = make_url(url)
    scheme = SERVERS.get(parsed.drivername, (parsed.drivername,))[0]
    engine = create_engine(parsed.set(drivername=scheme), **options)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is sent to any database meanwhile, by SQLAlchemy or straight to psycopg; what the driver
    adds of its own is not in it."""
    import psycopg  # some tests do without

    sent: list[str] = []
    straight = psycopg.Connection.execute

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    def execute(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        sent.append(query)
        return straight(self, query, *args, **options)

    event.listen(Engine, "before_cursor_execute", note)
    psycopg.Connection.execute = execute  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        psycopg.Connection.execute = straight  # type: ignore[method-assign]
        event.remove(Engine, "before_cursor_execute", note)


def until(condition: Callable[[], T], what: str) -> T:
    """Wait until *condition* is true and return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} seconds in vain for {what}"
        time.sleep(0.02)
    return value
