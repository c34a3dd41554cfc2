"""Runs in MariaDB, with PyMySQL."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from celery_clutch.errors import ClutchError, ConfigurationError, CorruptRecord, StoreUnavailable
from celery_clutch.stores.base import Settles
from sqlalchemy import URL, Connection, insert
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from .schema import pages as page_table
from .store import SQLStore

_COLLIDED = (1020, 1205, 1213)  # changed since read, lock wait timeout, deadlock
_OLD = (1054, 1146, 1305, 1318)  # no such column, table or procedure; wrong number of arguments
_REFUSED = (1142, 1143, 1227, 1290, 1370, 1792, 1836, 4150)  # rights, and servers to read from
_OLDEST = (10, 6)  # has JSON_TABLE
_BATCH = 1 << 20  # bytes of pages in one message


class MariaDBStore(SQLStore):
    """Every write is one call of a procedure; what is waited for is polled."""

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

    def _call(self, routine: str, *args: Any) -> Any:
        return self._do(lambda connection: _call(connection, routine, args))

    def _create(
        self,
        run: str,
        record: tuple[Any, ...],
        pages: Mapping[str, bytes],
        data: Mapping[str, bytes],
    ) -> bool:
        first, *others = _batches(pages)
        lists = (*self._pairs(first), *self._pairs(data), bool(others))
        args = (*self._key(run), *record, *lists, *self._ttls)

        def work(connection: Connection) -> bool:
            (id,) = _call(connection, "create", args)
            if others and id is not None:
                try:
                    for batch in others:
                        rows = [{"run_id": id, "name": k, "value": v} for k, v in batch.items()]
                        connection.execute(insert(page_table).values(rows))
                except BaseException:
                    connection.exec_driver_sql("ROLLBACK")
                    raise
                connection.exec_driver_sql("COMMIT")
            return id is not None

        return self._do(work)

    def _pairs(self, items: Mapping[str, bytes | None]) -> tuple[Any, ...]:
        return (json.dumps([[_text(key), _text(value)] for key, value in items.items()]),)

    def _steps(self, settles: Sequence[Settles]) -> tuple[Any, ...]:
        steps = [[_text(s.step), _text(s.member), s.width, int(s.loud)] for s in settles]
        return (json.dumps(steps),)

    def _states(self, states: list[str]) -> str:
        return ",".join(states)

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

    def _judge(self, exc: DBAPIError) -> type[ClutchError] | None:
        code = exc.orig.args[0] if exc.orig and exc.orig.args else 0
        if code in _COLLIDED:
            return None
        if code in _OLD:
            return ConfigurationError
        if code in _REFUSED or isinstance(exc, (InterfaceError, OperationalError)):
            return StoreUnavailable
        return CorruptRecord


def _call(connection: Connection, routine: str, args: Sequence[Any]) -> Any:
    # Names go as bytes, so that the character set of the connection does not matter.
    sent = tuple(each.encode() if isinstance(each, str) else each for each in args)
    query = f"CALL clutch_{routine}({', '.join(['%s'] * len(sent))})"
    return connection.exec_driver_sql(query, sent).one()


def _text(value: str | bytes | None) -> str | None:
    octets = value.encode() if isinstance(value, str) else value
    return None if octets is None else b64encode(octets).decode()


def _batches(pages: Mapping[str, bytes]) -> list[dict[str, bytes]]:
    """*pages* in batches that fit into a message; there is always one."""
    batches: list[dict[str, bytes]] = [{}]
    size = 0
    for key, page in pages.items():
        size += len(key) + len(page)
        if size > _BATCH and batches[-1]:
            batches.append({})
            size = len(key) + len(page)
        batches[-1][key] = page
    return batches
