"""What is the same on all databases: rows, connections and errors."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import orjson
from celery_clutch.errors import (
    ClutchError,
    ConfigurationError,
    CorruptRecord,
    StoreUnavailable,
)
from celery_clutch.model.status import State
from celery_clutch.stores.base import NOTHING, StoreOptions, Summary, without_secrets
from celery_clutch.stores.buckets import Buckets, counts_from_row
from celery_clutch.stores.machine import TransactionalStore, listing, position
from celery_clutch.stores.rows import Head, Rows, Wanted
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Table,
    and_,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    make_url,
    null,
    or_,
    select,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from . import migrate
from .schema import counts as count_table
from .schema import now, rows, runs
from .schema import owners as owner_table

T = TypeVar("T")
Kinds = dict[str, dict[str, bytes]]

MIGRATE = "run: celery -A proj clutch migrate"

_CHUNK = 1000  # names in one query
_OURS = ("pool_size", "clutch_listen")  # of the query of a URL
_COUNTS = ("jobs", "remaining", "generation", "failing", "dead")
_TIMES = ("created_at", "updated_at", "ended_at", "expires_at")
_CHANGING = ("state", "ender", *_COUNTS, *_TIMES)
_WRITTEN = ("run", "name", "tags", "ends", *_CHANGING)
_HEAD = (*_WRITTEN, "meta")


class SQLAlchemyStore(TransactionalStore, Buckets):
    """Runs in the tables ``clutch_…`` of a database. Each prefix sees its own runs.

    Args:
        url: as SQLAlchemy reads it. ``pool_size`` in its query is how many connections a process
            keeps (5); it opens ten more for a while when it needs them.
    """

    scheme: str
    """SQLAlchemy's name of the dialect and driver."""

    defaults: Mapping[str, str] = {}
    """What is in the query of the URL unless it says otherwise."""

    arguments: Mapping[str, Any] = {}
    """What else the driver is to connect with."""

    together = True
    """Whether what is read by the statement that locks a run is as of when it has the lock."""

    lock_timeout = 4
    """Seconds for which a transaction waits for others."""

    def __init__(self, url: str, options: StoreOptions = StoreOptions()) -> None:
        super().__init__(url, options)
        self._url, self._own = self._parse(url)
        self._engines: dict[int, Engine] = {}
        self._put = self._upsert(rows, "value")
        self._hold = self._upsert(count_table, "bucket").values(counts=b"{}", expires_at=0.0)

    # --- what each database does in its own way --------------------------------------------

    @abstractmethod
    def _begin(self, connection: Connection) -> None:
        """Begin a transaction that is going to write."""

    @abstractmethod
    def _upsert(self, table: Table, changing: str) -> Any:
        """An insert that writes the column *changing* of rows that exist."""

    @abstractmethod
    def _alone(self, connection: Connection) -> AbstractContextManager[None]:
        """Let nobody else migrate meanwhile."""

    @abstractmethod
    def _judge(self, exc: DBAPIError) -> type[ClutchError]:
        """What an error of the driver means."""

    def _problem(self, url: URL) -> str:
        """What is wrong with *url*, as the end of a sentence."""
        return ""

    def _connected(self, connection: Any) -> None:
        """Prepare a new connection of the driver."""

    # --- rows ------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, run: str, wanted: Wanted = NOTHING) -> Iterator[Rows | None]:
        with self._writing() as connection:
            found = connection.execute(self._locking(run, wanted)).all()
            if not found:
                yield None
                return
            id = found[0].id
            with self._reading(run):
                head = _head(found[0])
                known = self._known(wanted, found)
                work = Rows(replace(head), partial(_load, connection, id), known)
                yield work
            self._write(connection, id, work)
            if work.head != head:
                values = {name: getattr(work.head, name) for name in _CHANGING}
                values |= {"state": work.head.state.value, "its_id": id}
                connection.execute(_UPDATE, values)

    def _locking(self, run: str, wanted: Wanted) -> Any:
        """A query for the head of a run, locked, and for the rows that are wanted along with it."""
        query = select(runs.c.id, *_columns(_WRITTEN)).where(self._is(run))
        if self.together:
            # SQLite finds these by its index, where it would look at every row for pairs.
            keys = {key for some in wanted.values() for key in some}
            among = rows.c.kind.in_(wanted), rows.c.key.in_(keys)
            query = query.add_columns(rows.c.kind, rows.c.key, rows.c.value)
            query = query.outerjoin_from(runs, rows, and_(rows.c.run_id == runs.c.id, *among))
        return query.with_for_update()

    def _known(self, wanted: Wanted, found: Sequence[Any]) -> dict[str, dict[str, bytes | None]]:
        """The rows that `_locking` has found, and None for those that are wanted and not there."""
        if not self.together:
            return {}
        known: dict[str, dict[str, bytes | None]]
        known = {kind: dict.fromkeys(keys) for kind, keys in wanted.items()}
        for row in found:
            if row.kind is not None and row.key in known[row.kind]:
                known[row.kind][row.key] = row.value
        return known

    def insert(self, head: Head, rows: Mapping[str, Mapping[str, bytes]]) -> bool:
        values = {
            **{name: getattr(head, name) for name in _HEAD},
            "prefix": self.options.prefix,
            "state": head.state.value,
            "tags": orjson.dumps(head.tags).decode(),
            "ends": orjson.dumps(head.ends).decode(),
        }
        with self._writing() as connection:
            query = select(runs.c.id, runs.c.expires_at).where(self._named(head.run))
            found = connection.execute(query.with_for_update()).one_or_none()
            if found is not None:
                if found.expires_at > time.time():
                    return False
                connection.execute(delete(runs).where(runs.c.id == found.id))
            try:
                connection.execute(insert(runs), values)
            except IntegrityError:  # somebody else was faster
                return False
            id = connection.execute(select(runs.c.id).where(self._named(head.run))).scalar_one()
            changed = {kind: dict[str, bytes | None](some) for kind, some in rows.items()}
            self._write(connection, id, Rows(head, lambda kind, keys: {}, changed=changed))
        return True

    def snapshot(self, run: str, kinds: Sequence[str]) -> tuple[Head, Kinds] | None:
        # One statement sees one state of things.
        own = rows.c.kind, rows.c.key, rows.c.value
        nothing = (type_coerce(null(), column.type).label(column.name) for column in own)
        heads = select(*nothing, *_columns(_HEAD))
        mine = select(*own, *(null() for _ in _HEAD))
        mine = mine.join(runs, runs.c.id == rows.c.run_id).where(rows.c.kind.in_(kinds))
        found = self._all(union_all(heads.where(self._is(run)), mine.where(self._is(run))))
        if not found:
            return None
        written: Kinds = {kind: {} for kind in kinds}
        for row in found:
            if row.kind is not None:
                written[row.kind][row.key] = row.value
        with self._reading(run):
            return _head(next(row for row in found if row.kind is None)), written

    def rows(self, run: str, kind: str, keys: Sequence[str] | None) -> Mapping[str, bytes]:
        queries = _queries(self._id(run), kind, keys)
        return {row.key: row.value for query in queries for row in self._all(query)}

    def some_rows(self, run: str, kind: str, count: int) -> Iterator[Mapping[str, bytes]]:
        (query,) = _queries(self._id(run), kind, None)
        query, after = query.order_by(rows.c.key).limit(count), ""
        while found := self._all(query.where(rows.c.key > after)):
            yield {row.key: row.value for row in found}
            after = found[-1].key

    def heads(self, before: tuple[float, str] | None, count: int) -> list[Head]:
        return self._heads(before, count)

    def _heads(self, before: tuple[float, str] | None, count: int, *only: Any) -> list[Head]:
        """Heads without what is long and no part of a listing."""
        wanted = [runs.c.prefix == self.options.prefix, runs.c.expires_at > time.time(), *only]
        if before is not None:
            at, run = before
            equal = and_(runs.c.created_at == at, runs.c.run < run)
            wanted.append(or_(runs.c.created_at < at, equal))
        columns = _columns(_WRITTEN)
        query = select(*columns, _DUE.label("due")).where(*wanted)
        query = query.order_by(runs.c.created_at.desc(), runs.c.run.desc()).limit(count)
        heads = []
        for row in self._all(query):
            with self._reading(row.run):
                heads.append(_head(row))
        return heads

    def delete(self, run: str) -> bool:
        return self._count(delete(runs).where(self._is(run))) > 0

    # --- owners ----------------------------------------------------------------------------

    def renew(self, owners: Sequence[str], seconds: float) -> None:
        if owners:
            statement = self._upsert(owner_table, "until").values(
                prefix=self.options.prefix, owner=bindparam("name"), until=now() + seconds
            )
            # In one order, so that none waits for another in a circle.
            names = [{"name": owner} for owner in sorted(set(owners))]
            with self._writing() as connection:
                connection.execute(statement, names)

    def owners(self) -> dict[str, float]:
        query = select(owner_table.c.owner, (owner_table.c.until - now()).label("left"))
        found = self._all(query.where(owner_table.c.prefix == self.options.prefix))
        return {row.owner: row.left for row in found}

    def retire(self, owners: Sequence[str]) -> None:
        mine = owner_table.c.prefix == self.options.prefix
        for some in _chunks(owners):
            self._count(delete(owner_table).where(mine, owner_table.c.owner.in_(some)))

    # --- counts by time ----------------------------------------------------------------------

    def add_counts(self, counts: Mapping[str, Mapping[str, int]], seconds: float) -> None:
        begun = False
        for bucket in counts:
            mine = self._bucket([bucket])
            with self._writing() as connection:
                # The row is there from here on, and nobody else has it.
                connection.execute(self._hold, {"prefix": self.options.prefix, "bucket": bucket})
                row = connection.execute(select(*_COUNTED).where(mine)).one()
                begun = begun or not row.expires_at
                known = _counts(row)
                for name, number in counts[bucket].items():
                    known[name] = known.get(name, 0) + number
                values = {"counts": orjson.dumps(known), "expires_at": time.time() + seconds}
                connection.execute(update(count_table).where(mine).values(values))
        if begun:  # for each that begins, one has expired
            old = count_table.c.expires_at <= time.time()
            self._count(delete(count_table).where(self._bucket(), old))

    def read_counts(self, buckets: Sequence[str]) -> list[dict[str, int]]:
        queries = (select(*_COUNTED).where(self._bucket(some)) for some in _chunks(buckets))
        found = {row.bucket: _counts(row) for query in queries for row in self._all(query)}
        return [found.get(bucket, {}) for bucket in buckets]

    def _bucket(self, buckets: Sequence[str] | None = None) -> Any:
        mine = count_table.c.prefix == self.options.prefix
        return mine if buckets is None else and_(mine, count_table.c.bucket.in_(buckets))

    # --- made faster, and what a database needs besides --------------------------------------

    def peek(self, run: str) -> tuple[State, int] | None:
        found = self._all(select(runs.c.state, runs.c.generation).where(self._is(run)))
        with self._reading(run):
            return (State(found[0].state), found[0].generation) if found else None

    def outline(self, run: str) -> tuple[State, bytes] | None:
        found = self._all(select(runs.c.state, runs.c.meta).where(self._is(run)))
        with self._reading(run):
            return (State(found[0].state), found[0].meta) if found else None

    def finished(self, run: str, addresses: Sequence[str]) -> set[str]:
        queries = _queries(self._id(run), "result", addresses)
        keys = (query.with_only_columns(rows.c.key) for query in queries)
        return {row.key for query in keys for row in self._all(query)}

    def unfinished(self, cursor: str = "", count: int = 500) -> tuple[list[Summary], str]:
        wanted = or_(runs.c.state == State.RUNNING.value, _DUE > 0)
        return listing(self._heads(position(cursor), count + 1, wanted), count)

    def check(self) -> list[str]:
        try:
            found = self._do(migrate.revision)
        except ClutchError:
            return []  # there is nothing to say then
        if found == migrate.newest():
            return []
        there = "there are no tables" if found is None else f"the tables are of revision {found}"
        return [f"{self!r}: {there}, and this version needs {migrate.newest()}; {MIGRATE}"]

    def migrate(self) -> list[str]:
        def work(connection: Connection) -> list[str]:
            with self._alone(connection):
                return migrate.upgrade(connection)

        return self._do(work)

    def prune(self, limit: int = 1000) -> int:
        expired = runs.c.prefix == self.options.prefix, runs.c.expires_at <= time.time()
        ids = [row.id for row in self._all(select(runs.c.id).where(*expired).limit(limit))]
        gone = delete(runs).where(*expired)
        return sum(self._count(gone.where(runs.c.id.in_(some))) for some in _chunks(ids))

    def close(self) -> None:
        engine = self._engines.pop(os.getpid(), None)
        if engine is not None:
            engine.dispose()

    # --- connections -----------------------------------------------------------------------

    @property
    def _engine(self) -> Engine:
        # Each process has its own. That of a parent stays where it is: whoever closed its
        # connections here would close them there.
        engine = self._engines.get(os.getpid())
        return engine or self._engines.setdefault(os.getpid(), self._make_engine())

    def _make_engine(self) -> Engine:
        engine = create_engine(
            self._url,
            isolation_level="AUTOCOMMIT",  # each statement is a transaction, and costs one trip
            skip_autocommit_rollback=True,
            pool_reset_on_return=None,
            pool_recycle=3600,  # servers close what is idle for long
            pool_timeout=20,
            pool_size=int(self._own.get("pool_size", "5")),
            hide_parameters=True,
            connect_args=dict(self.arguments),
        )

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _: Any) -> None:
            self._connected(connection)

        return engine

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection, _intact(connection):
                yield connection
        except (DBAPIError, PoolTimeout) as exc:
            raise self._translated(exc) from exc

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A connection in a transaction."""
        with self._connection() as connection, self._transaction(connection):
            yield connection

    @contextmanager
    def _transaction(self, connection: Connection) -> Iterator[None]:
        self._begin(connection)
        try:
            yield
        except (SQLAlchemyError, ClutchError):
            if not connection.invalidated:
                connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")

    def _do(self, work: Callable[[Connection], T]) -> T:
        """What *work* returns, which is given a connection."""
        with self._connection() as connection:
            return work(connection)

    def _all(self, query: Any) -> Sequence[Any]:
        return self._do(lambda connection: connection.execute(query).all())

    def _count(self, statement: Any) -> int:
        return self._do(lambda connection: connection.execute(statement).rowcount)

    def _translated(self, exc: DBAPIError | PoolTimeout) -> ClutchError:
        kind: type[ClutchError] = StoreUnavailable
        if isinstance(exc, DBAPIError) and not exc.connection_invalidated:
            kind = self._judge(exc)
        reason = str(getattr(exc, "orig", None) or exc)
        if kind is ConfigurationError:
            first = reason.partition("\n")[0]
            return kind(f"{self!r} lacks what this version needs ({first}); {MIGRATE}")
        return kind(f"{self!r}: {reason}")

    # --- private ---------------------------------------------------------------------------

    def _parse(self, url: str) -> tuple[URL, dict[str, str]]:
        """What to connect to, and what is for this store.

        Raises:
            ConfigurationError: without the credentials of *url*.
        """
        try:
            parsed = make_url(url).set(drivername=self.scheme)
            own = {name: str(parsed.query[name]) for name in _OURS if name in parsed.query}
            int(own.get("pool_size", "5"))
        except (ArgumentError, ValueError):  # their texts may have a piece of the password
            raise ConfigurationError(
                f"{without_secrets(url)} is not the URL of a database"
            ) from None
        place = without_secrets(url)
        # SQLAlchemy takes the rest of a password for a host or a database, which drivers quote.
        if parsed.host and (place.endswith("://...") or "@" in f"{parsed.host}{parsed.database}"):
            raise ConfigurationError(
                f"{place} is not the URL of a database: in a password @ is written as %40, / as "
                "%2F, ? as %3F and # as %23"
            )
        if problem := self._problem(parsed):
            raise ConfigurationError(f"{place} {problem}")
        parsed = parsed.difference_update_query(_OURS)
        defaults = {key: value for key, value in self.defaults.items() if key not in parsed.query}
        return parsed.update_query_dict(defaults), own

    def _named(self, run: str) -> Any:
        return and_(runs.c.prefix == self.options.prefix, runs.c.run == run)

    def _is(self, run: str) -> Any:
        return and_(self._named(run), runs.c.expires_at > time.time())

    def _id(self, run: str) -> Any:
        return select(runs.c.id).where(self._is(run)).scalar_subquery()

    def _write(self, connection: Connection, id: int, work: Rows) -> None:
        gone: list[Any] = [rows.c.kind.in_(work.cleared)] if work.cleared else []
        written = []
        for kind, changed in work.changed.items():
            for some in _chunks([key for key, value in changed.items() if value is None]):
                gone.append(_these(kind, some))
            written += [(kind, key, value) for key, value in changed.items() if value is not None]
        if gone:
            connection.execute(delete(rows).where(rows.c.run_id == id, or_(*gone)))
        if written:
            names = ("run_id", "kind", "key", "value")
            values = [dict(zip(names, (id, *row), strict=True)) for row in written]
            connection.execute(self._put, values)

    @contextmanager
    def _reading(self, run: str) -> Iterator[None]:
        try:
            yield
        except (TypeError, ValueError) as exc:
            raise CorruptRecord(f"the record of run {run!r} cannot be read: {exc!r}") from None


def replacing(statement: Any, changing: str) -> Any:
    """`SQLAlchemyStore._upsert` where that is an ``ON CONFLICT``."""
    keys = {
        "value": ("run_id", "kind", "key"),
        "until": ("prefix", "owner"),
        "bucket": ("prefix", "bucket"),
    }[changing]
    return statement.on_conflict_do_update(
        index_elements=keys, set_={changing: statement.excluded[changing]}
    )


def _columns(names: Sequence[str]) -> list[Any]:
    return [runs.c[name] for name in names]


def _head(row: Any) -> Head:
    """The head of a run from a row that has some of its columns.

    Raises:
        TypeError, ValueError: it cannot be read.
    """
    known = {name: getattr(row, name) for name in (*_HEAD, "due") if hasattr(row, name)}
    for name in ("tags", "ends"):
        known[name] = orjson.loads(known[name])
        if not isinstance(known[name], list):
            raise TypeError(f"its {name} are no list")
        known[name] = tuple(known[name])
    return Head(**{**known, "state": State(row.state)})


# --- what is asked again and again is put together once -------------------------------------------

_UPDATE = (
    update(runs)
    .where(runs.c.id == bindparam("its_id"))
    .values({name: bindparam(name) for name in _CHANGING})
)
_DUE = (
    select(func.count())
    .where(rows.c.run_id == runs.c.id, rows.c.kind == "due")
    .correlate(runs)
    .scalar_subquery()
)


_COUNTED = (count_table.c.bucket, count_table.c.counts, count_table.c.expires_at)


def _counts(row: Any) -> dict[str, int]:
    """What a row has counted."""
    return counts_from_row(row.bucket, row.counts, row.expires_at)


def _these(kind: str, keys: Sequence[str]) -> Any:
    """Whether a row is of this kind, with one of these keys."""
    return and_(rows.c.kind == kind, rows.c.key.in_(keys))


def _queries(id: Any, kind: str, keys: Sequence[str] | None) -> list[Any]:
    """What asks for the rows of a run, by its number or a query for that."""
    query = select(rows.c.key, rows.c.value).where(rows.c.run_id == id)
    if keys is None:
        return [query.where(rows.c.kind == kind)]
    return [query.where(_these(kind, some)) for some in _chunks(keys)]


def _load(
    connection: Connection, id: int, kind: str, keys: Sequence[str] | None
) -> dict[str, bytes]:
    """Rows of a run that is locked."""
    queries = _queries(id, kind, keys)
    return {key: value for query in queries for key, value in connection.execute(query)}


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


@contextmanager
def _intact(connection: Connection) -> Iterator[None]:
    """Do not keep a connection that was left in the middle, as by a soft time limit."""
    try:
        yield
    except (SQLAlchemyError, ClutchError):
        raise
    except BaseException:
        connection.invalidate()
        raise
