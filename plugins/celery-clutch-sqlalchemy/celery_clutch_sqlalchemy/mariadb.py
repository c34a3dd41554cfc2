"""Runs in MariaDB, with PyMySQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery_clutch.errors import ClutchError, ConfigurationError, CorruptRecord, StoreUnavailable
from sqlalchemy import URL, Connection, Table
from sqlalchemy.dialects.mysql import insert
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from .store import SQLAlchemyStore

_OLD = (1054, 1146)  # no such column or table
_REFUSED = (1020, 1142, 1143, 1205, 1213, 1227, 1290, 1370, 1792, 1836, 4150)
"""Collisions, missing rights, and servers to read from."""
_OLDEST = (10, 6)


class MariaDBStore(SQLAlchemyStore):
    """What is waited for is polled."""

    scheme = "mysql+pymysql"
    defaults = {"connect_timeout": "5", "read_timeout": "30", "write_timeout": "30"}

    def _problem(self, url: URL) -> str:
        return "" if url.database else "does not say which database: mariadb://host/database"

    def _connected(self, connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SET SESSION sql_mode = 'STRICT_ALL_TABLES', SESSION time_zone = '+00:00',"
                f" SESSION innodb_lock_wait_timeout = {self.lock_timeout}"
            )
            # Less is locked than by default, and so less collides.
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def _begin(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    def _upsert(self, table: Table, changing: str) -> Any:
        statement = insert(table)
        return statement.on_duplicate_key_update({changing: statement.inserted[changing]})

    @contextmanager
    def _alone(self, connection: Connection) -> Iterator[None]:
        dialect: Any = connection.dialect
        if not dialect.is_mariadb or dialect.server_version_info < _OLDEST:
            raise ConfigurationError(
                f"{self!r} needs MariaDB {_OLDEST[0]}.{_OLDEST[1]} or later, and this is "
                f"{'MariaDB' if dialect.is_mariadb else 'MySQL'} {dialect.server_version_info}"
            )
        lock = "CONCAT(LEFT(DATABASE(), 40), '.clutch_migrate')"
        if not connection.exec_driver_sql(f"SELECT GET_LOCK({lock}, 25)").scalar():
            raise StoreUnavailable(f"{self!r}: somebody else is migrating it")
        try:
            yield
        finally:
            connection.exec_driver_sql(f"SELECT RELEASE_LOCK({lock})")

    def _judge(self, exc: DBAPIError) -> type[ClutchError]:
        code = exc.orig.args[0] if exc.orig and exc.orig.args else 0
        if code in _OLD:
            return ConfigurationError
        if code in _REFUSED or isinstance(exc, (InterfaceError, OperationalError)):
            return StoreUnavailable
        return CorruptRecord
