"""The tables as the store reads them. The migrations say what they are made of.

Names are compared byte by byte, so MariaDB and MySQL keep them as bytes: their collations differ in
what they take for the same.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
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
    """The time by the clock of the database, in seconds since the epoch."""

    type = Double()
    inherit_cache = True
    name = "clutch_now"
    _register = False  # applications do not see it in sqlalchemy.func


@compiles(now, "mysql")
@compiles(now, "mariadb")
def _now(*_: Any, **__: Any) -> str:
    return "UNIX_TIMESTAMP(SYSDATE(6))"


_metadata = MetaData()


def _table(title: str, /, **columns: TypeEngine[Any]) -> Table:
    return Table(title, _metadata, *(Column(each, kind) for each, kind in columns.items()))


_integer, _blob = BigInteger(), LargeBinary()
_moment: Double[float] = Double()

runs = _table(
    "clutch_run",
    id=_integer,
    prefix=Name(),
    run=Name(),
    name=Text(),
    tags=Text(),
    meta=_blob,
    state=String(),
    generation=_integer,
    jobs=_integer,
    remaining=_integer,
    done=_integer,
    failing=_integer,
    dead=_integer,
    created_at=_moment,
    updated_at=_moment,
    ended_at=_moment,
    expires_at=_moment,
)
pages = _table("clutch_page", run_id=_integer, name=Name(), value=_blob)
data = _table("clutch_data", run_id=_integer, name=Name(), value=_blob)
results = _table("clutch_result", run_id=_integer, slot=Name(), value=_blob)
jobs = _table(
    "clutch_job",
    run_id=_integer,
    address=Name(),
    starts=_integer,
    started_at=_moment,
    info=_blob,
    held=_blob,
    failure=_blob,
    finished=Boolean(),
)
