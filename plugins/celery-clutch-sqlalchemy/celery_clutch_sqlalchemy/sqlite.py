"""Runs in a file, with SQLite; for one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from celery_clutch.errors import ClutchError, ConfigurationError, CorruptRecord, StoreUnavailable
from celery_clutch.stores.base import Settles, Verdict
from sqlalchemy import URL, Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from .store import SQLStore


class SQLiteStore(SQLStore):
    """Every write is one transaction that has the file for itself."""

    scheme = "sqlite"
    defaults = {"timeout": "20"}  # seconds for which a transaction waits for another to end

    def _problem(self, url: URL) -> str:
        named = url.database and url.database != ":memory:" and not url.database.startswith("file:")
        return "" if named else "does not say which file: sqlite:///path/to/file"

    def _connected(self, connection: Any) -> None:
        connection.create_function("clutch_now", 0, time.time)
        connection.execute("PRAGMA foreign_keys = ON")

    def _call(self, routine: str, *args: Any) -> Any:
        def work(connection: Connection) -> Any:
            with _transaction(connection):
                *own, ttl, result_ttl = args
                return _ROUTINES[routine](_Database(connection, ttl, result_ttl), *own)

        return self._do(work)

    def _pairs(self, items: Mapping[str, bytes | None]) -> tuple[Any, ...]:
        return (items,)

    def _steps(self, settles: Sequence[Settles]) -> tuple[Any, ...]:
        return (settles,)

    @contextmanager
    def _alone(self, connection: Connection) -> Iterator[None]:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")  # the file keeps to it
        with _transaction(connection):
            yield

    def _judge(self, exc: DBAPIError) -> type[ClutchError] | None:
        if any(text in str(exc.orig) for text in ("no such table", "no such column")):
            return ConfigurationError
        return StoreUnavailable if isinstance(exc, _REFUSED) else CorruptRecord


_REFUSED = (InterfaceError, OperationalError)


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


# --- the routines --------------------------------------------------------------------------------
#
# They are what functions and procedures are to the servers.


class _Database:
    """A transaction."""

    def __init__(self, connection: Connection, ttl: float, result_ttl: float) -> None:
        self._connection = connection
        self._ttl = ttl
        self._result_ttl = result_ttl

    def ttl(self, state: str) -> float:
        """Seconds for which a run is kept."""
        return self._ttl if state == "RUNNING" else self._result_ttl

    def do(self, statement: str, *args: Any) -> int:
        """The number of rows that it changed."""
        return self._connection.exec_driver_sql(statement, args).rowcount

    def row(self, query: str, *args: Any) -> Any:
        """The first row, or None."""
        return self._connection.exec_driver_sql(query, args).first()

    def many(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            self._connection.exec_driver_sql(statement, rows)

    def run(self, prefix: str, run: str) -> Any:
        return self.row(
            "SELECT id, state, generation, remaining, failing, dead, ender, ended_at, expires_at"
            " FROM clutch_run WHERE prefix = ? AND run = ? AND expires_at > ?",
            *(prefix, run, time.time()),
        )

    def renew(self, id: int, state: str, *, shorten: bool = False) -> None:
        """Set the time until which a run is kept."""
        expires = time.time() + self.ttl(state)
        self.do(
            "UPDATE clutch_run SET expires_at = ? WHERE id = ? AND (? OR expires_at < ?)",
            *(expires, id, shorten, expires),
        )


def _create(
    db: _Database,
    prefix: str,
    run: str,
    name: str | None,
    tags: str,
    meta: bytes,
    units: int,
    jobs: int,
    pages: Mapping[str, bytes],
    data: Mapping[str, bytes],
) -> tuple[bool]:
    now = time.time()
    query = "DELETE FROM clutch_run WHERE prefix = ? AND run = ? AND expires_at <= ?"
    db.do(query, prefix, run, now)
    if db.run(prefix, run):
        return (False,)
    state, ended = ("RUNNING", None) if units else ("SUCCEEDED", now)
    db.do(
        "INSERT INTO clutch_run (prefix, run, name, tags, meta, state, generation, jobs, remaining,"
        " created_at, updated_at, ended_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)",
        *(prefix, run, name, tags, meta, state, jobs, units, now, now, ended, now + db.ttl(state)),
    )
    (id,) = db.row("SELECT last_insert_rowid()")
    for table, items in (("page", pages), ("data", data)):
        rows = [(id, *item) for item in items.items()]
        db.many(f"INSERT INTO clutch_{table} (run_id, name, value) VALUES (?, ?, ?)", rows)
    return (True,)


def _begin(
    db: _Database,
    prefix: str,
    run: str,
    address: str,
    slot: str,
    generation: int,
    limit: int,
) -> tuple[Verdict, bytes | None]:
    found = db.run(prefix, run)
    if not found or found.state == "CANCELLED" or found.generation != generation:
        return Verdict.DROP, None
    if _has_result(db, found.id, slot):
        return Verdict.DONE, None
    db.renew(found.id, found.state)
    job = _job(db, found.id, address)
    if job and job.held is not None:
        return Verdict.RUN, job.held
    if job and job.starts >= limit:
        return Verdict.GIVE_UP, None
    db.do(
        "INSERT INTO clutch_job (run_id, address, starts, started_at) VALUES (?, ?, 1, ?)"
        " ON CONFLICT (run_id, address) DO UPDATE SET starts = starts + 1, started_at = excluded.started_at",
        *(found.id, address, time.time()),
    )
    return Verdict.RUN, None


def _complete(
    db: _Database,
    prefix: str,
    run: str,
    address: str,
    slot: str,
    value: bytes,
    generation: int,
    token: str,
    job: bool,
    step: str | None,
    member: str,
    width: int,
    barrier: str | None,
    slots: int,
    changes: Mapping[str, bytes | None],
    info: bytes,
) -> tuple[int, bool, bool, bool, bool, bool]:
    found = db.run(prefix, run)
    if not found:
        return -1, False, False, False, False, False
    state, ender, remaining = found.state, found.ender, found.remaining
    fresh = not _has_result(db, found.id, slot)
    if fresh:
        db.do("INSERT INTO clutch_result VALUES (?, ?, ?)", found.id, slot, value)
        remaining -= 1
        before, failing, dead = _job(db, found.id, address), found.failing, found.dead
        if before and before.attempt is not None and not before.finished:
            failing, dead = failing - (not before.final), dead - before.final
            if state == "FAILED" and not dead:
                state = "RUNNING"
        db.do(
            "INSERT INTO clutch_job (run_id, address, info) VALUES (?, ?, ?) ON CONFLICT (run_id, address) DO UPDATE"
            " SET starts = 0, started_at = NULL, held = NULL, info = excluded.info,"
            " finished = attempt IS NOT NULL",
            *(found.id, address, info),
        )
        rows = [(found.id, key, changed) for key, changed in changes.items()]
        db.many("DELETE FROM clutch_data WHERE run_id = ? AND name = ?", [row[:2] for row in rows])
        db.many("INSERT INTO clutch_data VALUES (?, ?, ?)", [r for r in rows if r[2] is not None])
        if remaining == 0 and state == "RUNNING":
            state, ender = "SUCCEEDED", token
        db.do(
            "UPDATE clutch_run SET remaining = ?, done = done + ?, failing = ?, dead = ? WHERE id = ?",
            *(remaining, job, failing, dead, found.id),
        )
        _update(db, found, state, ender)
    report = settled = joined = False
    if found.generation == generation and step is not None:
        report, settled = _settle(db, found.id, "step", step, member, width, False, token)
    if found.generation == generation and barrier is not None:
        _, joined = _settle(db, found.id, "barrier", barrier, slot, slots, False, address)
    if not fresh:
        db.renew(found.id, state)
    return remaining, fresh, state == "SUCCEEDED" and ender == token, report, settled, joined


def _fail(
    db: _Database,
    prefix: str,
    run: str,
    address: str,
    slot: str,
    failure: bytes,
    attempt: int,
    final: bool,
    generation: int,
    token: str,
    settles: Sequence[Settles],
) -> tuple[bool, bool, list[bool], list[bool]]:
    found = db.run(prefix, run)
    if not found or found.generation != generation:
        return False, False, [], []
    state, ender, job = found.state, found.ender, _job(db, found.id, address)
    known = job is not None and job.attempt is not None
    news = not known or (job.attempt, bool(job.final)) < (attempt, final)
    if news:
        result = _has_result(db, found.id, slot)
        finished = result or bool(job and job.finished)
        db.do(
            "INSERT INTO clutch_job (run_id, address, attempt, final, failure, finished)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run_id, address) DO UPDATE SET attempt = excluded.attempt,"
            " final = excluded.final, failure = excluded.failure, finished = excluded.finished,"
            " starts = 0, started_at = NULL",
            *(found.id, address, attempt, final, failure, finished),
        )
        counted = known and not job.finished
        failing = (not finished and not final) - (counted and not job.final)
        dead = (not finished and final) - (counted and job.final)
        db.do(
            "UPDATE clutch_run SET failing = failing + ?, dead = dead + ? WHERE id = ?",
            *(failing, dead, found.id),
        )
        if final and not result and state == "RUNNING":
            state, ender = "FAILED", token
        _update(db, found, state, ender)
    told = [
        _settle(db, found.id, "step", each.step, each.member, each.width, each.loud, token)
        for each in settles
    ]
    if not news:
        db.renew(found.id, state)
    died = state == "FAILED" and ender == token
    return news, died, [reports for reports, _ in told], [closes for _, closes in told]


def _hold(db: _Database, prefix: str, run: str, address: str, held: bytes) -> tuple[bool]:
    found = db.run(prefix, run)
    if found:
        db.do(
            "INSERT INTO clutch_job (run_id, address, held) VALUES (?, ?, ?) ON CONFLICT (run_id, address) DO UPDATE"
            " SET held = excluded.held, starts = 0, started_at = NULL",
            *(found.id, address, held),
        )
        db.renew(found.id, found.state)
    return (bool(found),)


def _take(
    db: _Database,
    prefix: str,
    run: str,
    name: str,
    lane: str,
    after: int,
    generation: int,
) -> tuple[int]:
    found = db.run(prefix, run)
    if not found or found.state == "CANCELLED" or found.generation != generation:
        return (-1,)
    db.renew(found.id, found.state)
    own = (found.id, name, lane)
    last = db.row(
        "SELECT previous, number FROM clutch_lane WHERE run_id = ? AND name = ? AND lane = ?", *own
    )
    if after != (last.number if last else -1):
        return (last.number if last and last.previous == after else -1,)
    # Numbers rise, so the last one taken is the last of some lane.
    query = "SELECT coalesce(max(number) + 1, 0) FROM clutch_lane WHERE run_id = ? AND name = ?"
    (number,) = db.row(query, *own[:2])
    db.do("INSERT OR REPLACE INTO clutch_lane VALUES (?, ?, ?, ?, ?)", *own, after, number)
    return (number,)


def _transition(
    db: _Database,
    prefix: str,
    run: str,
    sources: list[str],
    target: str,
    generation: int,
) -> tuple[bool]:
    found = db.run(prefix, run)
    if not found or found.generation != generation or found.state not in sources:
        return (False,)
    state = target
    if target == "RUNNING":
        db.do(
            "UPDATE clutch_job SET starts = 0, started_at = NULL, attempt = NULL, final = FALSE,"
            " failure = NULL, finished = FALSE WHERE run_id = ?",
            found.id,
        )
        for table in ("member", "tally", "lane"):
            db.do(f"DELETE FROM clutch_{table} WHERE run_id = ?", found.id)
        db.do(
            "UPDATE clutch_run SET generation = generation + 1, failing = 0, dead = 0 WHERE id = ?",
            found.id,
        )
        state = "RUNNING" if found.remaining else "SUCCEEDED"
    _update(db, found, state, None, moved=True)
    return (True,)


def _update(db: _Database, found: Any, state: str, ender: str | None, moved: bool = False) -> None:
    """Write the state of a run after an event, and the times."""
    now, ended, moved = time.time(), found.ended_at, moved or state != found.state
    if moved:
        ended = None if state == "RUNNING" else now
    db.do(
        "UPDATE clutch_run SET state = ?, ender = ?, updated_at = ?, ended_at = ? WHERE id = ?",
        *(state, ender, now, ended, found.id),
    )
    db.renew(found.id, state, shorten=moved)


def _settle(
    db: _Database,
    id: int,
    kind: str,
    name: str,
    member: str,
    width: int,
    failed: bool,
    who: str,
) -> tuple[bool, bool]:
    """Count a member, once.

    Returns whether *who* reports (it was the first when all had settled and one had failed), and
    whether it closes (it was the first when all had settled).
    """
    own = (id, kind, name)
    new = db.do("INSERT OR IGNORE INTO clutch_member VALUES (?, ?, ?, ?)", *own, member)
    tally = db.row(
        "SELECT settled, failed, reporter, closer FROM clutch_tally"
        " WHERE run_id = ? AND kind = ? AND name = ?",
        *own,
    )
    settled, ever, reporter, closer = tally or (0, False, None, None)
    settled, ever = settled + new, bool(ever or failed)
    if settled >= width:
        closer = closer or who
        reporter = reporter or (who if ever else None)
    db.do(
        "INSERT OR REPLACE INTO clutch_tally VALUES (?, ?, ?, ?, ?, ?, ?)",
        *(*own, settled, ever, reporter, closer),
    )
    return reporter == who, closer == who


def _has_result(db: _Database, id: int, slot: str) -> bool:
    query = "SELECT 1 FROM clutch_result WHERE run_id = ? AND slot = ?"
    return db.row(query, id, slot) is not None


def _job(db: _Database, id: int, address: str) -> Any:
    return db.row(
        "SELECT starts, held, attempt, final, finished FROM clutch_job"
        " WHERE run_id = ? AND address = ?",
        *(id, address),
    )


_ROUTINES: dict[str, Callable[..., tuple[Any, ...]]] = {
    "create": _create,
    "begin": _begin,
    "complete": _complete,
    "fail": _fail,
    "hold": _hold,
    "take": _take,
    "transition": _transition,
}
