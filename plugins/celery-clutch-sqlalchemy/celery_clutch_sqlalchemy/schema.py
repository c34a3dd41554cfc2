"""The tables as the store reads them. The migrations say what they are made of.

Names are compared byte by byte, so MariaDB keeps them as bytes: its collations differ in what they
take for the same.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Double,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects.mysql import VARBINARY
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeDecorator, TypeEngine

FAMILY = ("mysql", "mariadb")
"""What SQLAlchemy calls MariaDB."""


class Name(TypeDecorator[str]):
    """Text that is itself only when every byte is."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return VARBINARY() if dialect.name in FAMILY else Text()

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        return value.encode() if value is not None and dialect.name in FAMILY else value

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        return value.decode() if isinstance(value, bytes) else value


class now(GenericFunction[float]):
    """The time by the clock of the database, in seconds since the epoch.

    SQLite has it from the store.
    """

    type = Double()
    inherit_cache = True
    name = "clutch_now"
    _register = False  # applications do not see it in sqlalchemy.func


@compiles(now, "mysql")
@compiles(now, "mariadb")
def _now_mariadb(*_: Any, **__: Any) -> str:
    return "UNIX_TIMESTAMP(SYSDATE(6))"


@compiles(now, "postgresql")
def _now_postgresql(*_: Any, **__: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS double precision)"


_metadata = MetaData()


def _table(title: str, /, **columns: TypeEngine[Any]) -> Table:
    return Table(title, _metadata, *(Column(each, kind) for each, kind in columns.items()))


_integer, _blob = BigInteger(), LargeBinary()
_moment: Double[float] = Double()

runs = _table(
    "clutch_runs",
    id=_integer,
    prefix=Name(),
    run=Name(),
    meta=_blob,
    name=Text(),
    tags=Text(),
    ends=Text(),
    jobs=_integer,
    remaining=_integer,
    state=String(),
    generation=_integer,
    failing=_integer,
    dead=_integer,
    ender=Name(),
    created_at=_moment,
    updated_at=_moment,
    ended_at=_moment,
    expires_at=_moment,
)
rows = _table("clutch_rows", run_id=_integer, kind=Name(), key=Name(), value=_blob)
owners = _table("clutch_owners", prefix=Name(), owner=Name(), until=_moment)
counts = _table("clutch_counts", prefix=Name(), bucket=Name(), counts=_blob, expires_at=_moment)
