"""What the stores of all databases have in common: connections, errors and reading.

Whatever writes is one call of a routine (`SQLStore._call`), which is one transaction: a function in
PostgreSQL, a procedure in MariaDB, and a Python function in SQLite, where nothing is far away.
"""

from __future__ import annotations

import os
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import orjson
from celery_clutch.errors import (
    AlreadyEngaged,
    ClutchError,
    ConfigurationError,
    CorruptRecord,
    StoreUnavailable,
)
from celery_clutch.model.status import State
from celery_clutch.stores.base import (
    NOTHING,
    Begun,
    Completed,
    Execution,
    Failed,
    Joins,
    Missing,
    MissingType,
    Record,
    ResultStore,
    Settles,
    StoreOptions,
    Summary,
    Verdict,
    without_secrets,
)
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    and_,
    create_engine,
    delete,
    event,
    make_url,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from . import migrate
from .schema import data, jobs, now, pages, results, runs

T = TypeVar("T")

MIGRATE = "run: celery -A proj clutch migrate"

_TRIES = 5  # of a transaction that collides with others
_CHUNK = 1000  # names in one query


class SQLStore(ResultStore):
    """Runs in the tables ``clutch_…`` of a database.

    Args:
        url: as SQLAlchemy reads it. ``pool_size`` in its query is how many connections a process
            keeps (5); it opens ten more for a while when it needs them.
    """

    scheme: str
    """SQLAlchemy's name of the dialect and driver."""

    defaults: Mapping[str, str] = {}
    """What is in the query of the URL unless it says otherwise."""

    lock_timeout = 4
    """Seconds for which a transaction waits for others before it is tried again."""

    def __init__(self, url: str, options: StoreOptions = StoreOptions()) -> None:
        super().__init__(url, options)
        self._url, self._pool = self._parse(url)
        self._engines: dict[int, Engine] = {}

    # --- what each database does in its own way --------------------------------------------

    @abstractmethod
    def _call(self, routine: str, *args: Any) -> Any:
        """The row that *routine* answers; one transaction."""

    @abstractmethod
    def _pairs(self, items: Mapping[str, bytes | None]) -> tuple[Any, ...]:
        """The arguments for names and values."""

    @abstractmethod
    def _steps(self, settles: Sequence[Settles]) -> tuple[Any, ...]:
        """The arguments for the steps of a failure."""

    @abstractmethod
    def _alone(self, connection: Connection) -> AbstractContextManager[None]:
        """Let nobody else migrate meanwhile."""

    @abstractmethod
    def _judge(self, exc: DBAPIError) -> type[ClutchError] | None:
        """What an error of the driver means; None if the transaction may be tried again."""

    def _problem(self, url: URL) -> str:
        """What is wrong with *url*, as the end of a sentence."""
        return ""

    def _connected(self, connection: Any) -> None:
        """Prepare a new connection of the driver."""

    # --- primitives ----------------------------------------------------------------------

    def create(
        self,
        run: str,
        meta: bytes,
        pages: Mapping[str, bytes],
        units: int,
        *,
        jobs: int = 0,
        name: str | None = None,
        tags: Sequence[str] = (),
        data: Mapping[str, bytes] = NOTHING,
    ) -> None:
        labels = orjson.dumps(list(tags)).decode()
        if not self._create(run, (name, labels, meta, units, jobs), pages, data):
            raise AlreadyEngaged(f"a run with the id {run!r} exists")

    def _create(
        self,
        run: str,
        record: tuple[Any, ...],
        pages: Mapping[str, bytes],
        data: Mapping[str, bytes],
    ) -> bool:
        lists = (*self._pairs(pages), *self._pairs(data))
        (created,) = self._call("create", *self._key(run), *record, *lists, *self._ttls)
        return bool(created)

    def page(self, run: str, key: str) -> bytes | MissingType:
        query = select(pages.c.value).join(runs, runs.c.id == pages.c.run_id)
        rows = self._rows(query.where(self._is(run), pages.c.name == key))
        return rows[0].value if rows else Missing

    def begin(self, run: str, address: str, slot: str, generation: int, limit: int) -> Begun:
        args = (*self._key(run), address, slot, generation, limit)
        verdict, held = self._call("begin", *args, *self._ttls)
        return Begun(Verdict(verdict), held)

    def complete(
        self,
        run: str,
        address: str,
        slot: str,
        value: bytes,
        *,
        generation: int,
        token: str,
        job: bool = True,
        settles: Settles | None = None,
        joins: Joins | None = None,
        changes: Mapping[str, bytes | None] = NOTHING,
        info: bytes = b"",
    ) -> Completed:
        step = (settles.step, settles.member, settles.width) if settles else (None, None, None)
        barrier = (joins.barrier, joins.width) if joins else (None, None)
        remaining, fresh, succeeded, report, settled, joined = self._call(
            "complete",
            *(*self._key(run), address, slot, value, generation, token, job),
            *(*step, *barrier, *self._pairs(changes), info, *self._ttls),
        )
        return Completed(
            remaining=remaining,
            fresh=bool(fresh),
            succeeded=bool(succeeded),
            report=settles.step if settles and report else "",
            settled=settles.step if settles and settled else "",
            joined=bool(joined),
        )

    def fail(
        self,
        run: str,
        address: str,
        slot: str,
        failure: bytes,
        *,
        attempt: int,
        final: bool,
        generation: int,
        token: str,
        settles: Sequence[Settles] = (),
    ) -> Failed:
        recorded, died, reports, settled = self._call(
            "fail",
            *(*self._key(run), address, slot, failure, attempt, final, generation, token),
            *(*self._steps(settles), *self._ttls),
        )
        return Failed(
            recorded=bool(recorded),
            died=bool(died),
            reports=_told(settles, reports),
            settled=_told(settles, settled),
        )

    def values(self, run: str, slots: Sequence[str]) -> list[bytes | MissingType]:
        query = select(results.c.slot, results.c.value)
        found = {row.slot: row.value for row in self._results(query, run, slots)}
        return [found.get(slot, Missing) for slot in slots]

    def hold(self, run: str, address: str, held: bytes) -> None:
        self._call("hold", *self._key(run), address, held, *self._ttls)

    def take(self, run: str, key: str, lane: str, after: int, generation: int) -> int:
        args = (*self._key(run), key, lane, after, generation)
        (number,) = self._call("take", *args, *self._ttls)
        return int(number)

    def data(self, run: str) -> dict[str, bytes] | None:
        source = runs.outerjoin(data, data.c.run_id == runs.c.id)
        query = select(data.c.name, data.c.value).select_from(source).where(self._is(run))
        rows = self._rows(query)
        return {row.name: row.value for row in rows if row.name is not None} if rows else None

    def executions(self, run: str) -> dict[str, Execution]:
        query = (
            select(jobs.c.address, jobs.c.starts, jobs.c.started_at, jobs.c.info)
            .join(runs, runs.c.id == jobs.c.run_id)
            .where(self._is(run), or_(jobs.c.starts > 0, jobs.c.info.is_not(None)))
        )
        return {
            row.address: Execution(row.starts, row.started_at, row.info)
            for row in self._rows(query)
        }

    def transition(
        self, run: str, sources: Iterable[State], target: State, generation: int
    ) -> bool:
        states = self._states([state.value for state in sources])
        args = (*self._key(run), states, target.value, generation)
        (moved,) = self._call("transition", *args, *self._ttls)
        return bool(moved)

    def _states(self, states: list[str]) -> Any:
        return states

    def read(self, run: str) -> Record | None:
        numbers = [runs.c[name] for name in _NUMBERS]
        # One statement sees one state of things.
        record = select(
            runs.c.run.label("name"),
            null().label("failure"),
            null().label("held"),
            null().label("finished"),
            runs.c.meta,
            runs.c.state,
            *numbers,
        ).where(self._is(run))
        marks = (
            select(
                *(jobs.c.address, jobs.c.failure, jobs.c.held, jobs.c.finished),
                *(null() for _ in ("meta", "state", *numbers)),
            )
            .join(runs, runs.c.id == jobs.c.run_id)
            .where(self._is(run), or_(jobs.c.failure.is_not(None), jobs.c.held.is_not(None)))
        )
        rows = self._rows(union_all(record, marks))
        with self._reading(run):
            return _record(run, rows) if rows else None

    def scan(
        self,
        cursor: str = "",
        count: int = 100,
        *,
        state: State | None = None,
        name: str | None = None,
        tag: str | None = None,
    ) -> tuple[list[Summary], str]:
        wanted = [runs.c.prefix == self.options.prefix, runs.c.expires_at > now()]
        if cursor:
            wanted.append(runs.c.id < int(cursor))
        if state is not None:
            wanted.append(runs.c.state == state.value)
        if name is not None:
            wanted.append(runs.c.name == name)
        if tag is not None:  # finds some that do not have it, too
            wanted.append(runs.c.tags.contains(orjson.dumps(tag).decode(), autoescape=True))
        columns = [runs.c[column] for column in _SUMMARY]
        query = select(runs.c.id, *columns).where(*wanted).order_by(runs.c.id.desc())
        rows = self._rows(query.limit(count + 1))
        summaries = [self._summary(row) for row in rows[:count]]
        following = str(rows[count - 1].id) if len(rows) > count else ""
        return [each for each in summaries if each.matches(state, name, tag)], following

    def delete(self, run: str) -> bool:
        return self._count(delete(runs).where(self._is(run))) > 0

    # --- made faster, and what a database needs besides --------------------------------------

    def peek(self, run: str) -> tuple[State, int] | None:
        rows = self._rows(select(runs.c.state, runs.c.generation).where(self._is(run)))
        with self._reading(run):
            return (State(rows[0].state), rows[0].generation) if rows else None

    def finished(self, run: str, slots: Sequence[str]) -> set[str]:
        return {row.slot for row in self._results(select(results.c.slot), run, slots)}

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
        expired = and_(runs.c.prefix == self.options.prefix, runs.c.expires_at <= now())
        query = select(runs.c.id).where(expired).order_by(runs.c.expires_at).limit(limit)
        ids, deleted = [row.id for row in self._rows(query)], 0
        for some in _chunks(ids):
            gone = delete(runs).where(runs.c.id.in_(some), runs.c.expires_at <= now())
            deleted += self._count(gone)
        return deleted

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
            hide_parameters=True,
            **self._pool,
        )

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _: Any) -> None:
            self._connected(connection)

        return engine

    def _do(self, work: Callable[[Connection], T]) -> T:
        """What *work* returns, which is given a connection; once more when it collides."""
        for tries in range(1, _TRIES + 1):
            try:
                with self._engine.connect() as connection, _intact(connection):
                    return work(connection)
            except (DBAPIError, PoolTimeout) as exc:
                error = self._translated(exc)
                if error is not None:
                    raise error from exc
                last = exc
                time.sleep(random.uniform(0, 0.005 * 2**tries))
        reason = getattr(last, "orig", last)
        raise StoreUnavailable(f"{self!r}: in vain after {_TRIES} tries: {reason}") from last

    def _rows(self, query: Any) -> Sequence[Any]:
        return self._do(lambda connection: connection.execute(query).all())

    def _count(self, statement: Any) -> int:
        return self._do(lambda connection: connection.execute(statement).rowcount)

    def _results(self, query: Any, run: str, slots: Sequence[str]) -> Iterator[Any]:
        query = query.join(runs, runs.c.id == results.c.run_id).where(self._is(run))
        for some in _chunks(slots):
            yield from self._rows(query.where(results.c.slot.in_(some)))

    def _translated(self, exc: DBAPIError | PoolTimeout) -> ClutchError | None:
        """The error to raise; None if the transaction may be tried again."""
        kind: type[ClutchError] | None = StoreUnavailable
        if isinstance(exc, DBAPIError):
            kind = StoreUnavailable if exc.connection_invalidated else self._judge(exc)
        if kind is None:
            return None
        reason = str(getattr(exc, "orig", None) or exc)
        if kind is ConfigurationError:
            first = reason.partition("\n")[0]
            return kind(f"{self!r} lacks what this version needs ({first}); {MIGRATE}")
        return kind(f"{self!r}: {reason}")

    # --- private ---------------------------------------------------------------------------

    def _parse(self, url: str) -> tuple[URL, dict[str, Any]]:
        """What to connect to, and options of the pool.

        Raises:
            ConfigurationError: without the credentials of *url*.
        """
        try:
            parsed = make_url(url).set(drivername=self.scheme)
            size = parsed.query.get("pool_size", "5")
            pool = {"pool_size": int(str(size))}
        except (ArgumentError, ValueError):  # their texts may have a piece of the password
            raise ConfigurationError(
                f"{without_secrets(url)} is not the URL of a database"
            ) from None
        if problem := self._problem(parsed):
            raise ConfigurationError(f"{without_secrets(url)} {problem}")
        parsed = parsed.difference_update_query(["pool_size"])
        defaults = {key: value for key, value in self.defaults.items() if key not in parsed.query}
        parsed = parsed.update_query_dict(defaults)
        return parsed, pool

    def _key(self, run: str) -> tuple[str, str]:
        return self.options.prefix, run

    @property
    def _ttls(self) -> tuple[float, float]:
        return self.options.ttl, self.options.result_ttl

    def _is(self, run: str) -> Any:
        key = runs.c.prefix == self.options.prefix, runs.c.run == run
        return and_(*key, runs.c.expires_at > now())

    def _summary(self, row: Any) -> Summary:
        with self._reading(row.run):
            values = {column: getattr(row, column) for column in _SUMMARY}
            tags = orjson.loads(row.tags)
            if not isinstance(tags, list):
                raise TypeError("its tags are no list")
            return Summary(**{**values, "tags": tuple(tags), "state": State(row.state)})

    @contextmanager
    def _reading(self, run: str) -> Iterator[None]:
        try:
            yield
        except (TypeError, ValueError) as exc:
            raise CorruptRecord(f"the record of run {run!r} cannot be read: {exc!r}") from None


_TIMES = ("created_at", "updated_at", "ended_at")
_NUMBERS = ("generation", "remaining", "done", "failing", "dead", *_TIMES)
_SUMMARY = ("run", "name", "tags", "state", "jobs", "done", "failing", "dead", *_TIMES)


def _record(run: str, rows: Sequence[Any]) -> Record:
    """From the row of the run and those of jobs with marks."""
    (own,) = [row for row in rows if row.state is not None]
    failed = [row for row in rows if row.failure is not None]
    return Record(
        run=run,
        meta=own.meta,
        state=State(own.state),
        **{name: getattr(own, name) for name in _NUMBERS},
        failures={row.name: row.failure for row in failed},
        finished=frozenset(row.name for row in failed if row.finished),
        held={row.name: row.held for row in rows if row.held is not None},
    )


def _told(settles: Sequence[Settles], flags: Any) -> tuple[str, ...]:
    """The steps for which a flag is up; there are no flags when there is no such run."""
    pairs = zip(settles, flags or (), strict=False)
    return tuple(each.step for each, flag in pairs if int(flag))


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


@contextmanager
def _intact(connection: Connection) -> Iterator[None]:
    """Do not keep a connection that was left in the middle, as by a soft time limit."""
    try:
        yield
    except SQLAlchemyError:
        raise
    except BaseException:
        connection.invalidate()
        raise
