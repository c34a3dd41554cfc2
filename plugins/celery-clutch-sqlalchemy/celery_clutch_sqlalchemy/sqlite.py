"""Runs in a file, with SQLite; for one machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery_clutch.errors import ClutchError, ConfigurationError, CorruptRecord, StoreUnavailable
from sqlalchemy import URL, Connection, Table
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from .store import SQLAlchemyStore, replacing


class SQLiteStore(SQLAlchemyStore):
    """Every write is one transaction that has the file for itself."""

    scheme = "sqlite"
    defaults = {"timeout": "20"}  # seconds for which a transaction waits for another to end

    def _problem(self, url: URL) -> str:
        named = url.database and url.database != ":memory:" and not url.database.startswith("file:")
        return "" if named else "does not say which file: sqlite:///path/to/file"

    def _connected(self, connection: Any) -> None:
        connection.create_function("clutch_now", 0, time.time)
        connection.execute("PRAGMA foreign_keys = ON")

    def _begin(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _upsert(self, table: Table, changing: str) -> Any:
        return replacing(insert(table), changing)

    @contextmanager
    def _alone(self, connection: Connection) -> Iterator[None]:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")  # the file keeps to it
        with self._transaction(connection):
            yield

    def _judge(self, exc: DBAPIError) -> type[ClutchError]:
        if any(text in str(exc.orig) for text in ("no such table", "no such column")):
            return ConfigurationError
        refused = isinstance(exc, (InterfaceError, OperationalError))
        return StoreUnavailable if refused else CorruptRecord
