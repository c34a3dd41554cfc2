"""Runs in PostgreSQL, with psycopg 3.

What is on the path of a job is one call of a procedure, which has the rules of
`celery_clutch.stores.machine` and the same rows. Nothing is kept in the session of the server, so
that a pooler may give each transaction another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
import psycopg
from celery_clutch.errors import ClutchError, ConfigurationError, CorruptRecord, StoreUnavailable
from celery_clutch.model.status import State
from celery_clutch.stores.base import (
    ENDED,
    Attempted,
    Begun,
    Claim,
    Completed,
    Completion,
    Failed,
    StoreOptions,
    Verdict,
)
from sqlalchemy import Connection, Table, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from .schema import runs
from .store import SQLAlchemyStore, replacing

_UNUSUAL = -2  # what remains, as a function says it where the rules have to decide
_RECHECK = 10.0  # seconds after which a waiting client looks at the state itself
_OLD = ("42P01", "42703", "42883", "3F000")  # no such table, column, function or schema
_REFUSED = ("08", "25", "28", "3D", "40", "42501", "53", "54", "55", "57", "58")
_LOCK = 0x636C75746368  # "clutch"


class PostgreSQLStore(SQLAlchemyStore):
    """`begin`, `complete` and `fail` are one round trip, for runs and jobs as most are; `wait`
    listens for the end of a run.

    Args:
        url: with ``clutch_listen=0`` in its query, `wait` polls.
    """

    scheme = "postgresql+psycopg"
    together = False  # other tables are read as of when the statement began to wait
    defaults = {"connect_timeout": "5"}
    arguments = {"prepare_threshold": None}

    def __init__(self, url: str, options: StoreOptions = StoreOptions()) -> None:
        super().__init__(url, options)
        self._kept = {state.value: options.kept(state) for state in State}
        self._listens = self._own.get("clutch_listen") != "0"

    def _begin(self, connection: Connection) -> None:
        connection.exec_driver_sql(
            f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{self.lock_timeout}s'"
        )

    def _upsert(self, table: Table, changing: str) -> Any:
        return replacing(insert(table), changing)

    @contextmanager
    def _alone(self, connection: Connection) -> Iterator[None]:
        with self._transaction(connection):
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            yield

    def _judge(self, exc: DBAPIError) -> type[ClutchError]:
        state = getattr(exc.orig, "sqlstate", None) or ""
        if state in _OLD:
            return ConfigurationError
        if state.startswith(_REFUSED) or isinstance(exc.orig, psycopg.OperationalError):
            return StoreUnavailable
        return CorruptRecord

    # --- in one round trip --------------------------------------------------------------------

    def begin(self, claim: Claim) -> Begun:
        if claim.unless:
            return super().begin(claim)
        told = {
            **self._told(claim.run, claim.address),
            "generation": claim.generation,
            "owner": claim.owner,
            "limit": claim.limit,
            "turn": claim.turn,
            "page": claim.page,
            "receipts": claim.receipts,
            "lapsed": claim.lapsed,
        }
        verdict, held, who = self._call("CALL clutch_begin(%s, NULL, NULL, NULL)", told)
        return Begun(Verdict(verdict), held, who or "")

    def complete(self, done: Completion) -> Completed:
        if not done.is_usual or done.is_gated:
            return super().complete(done)
        told = {
            **self._told(done.run, done.address),
            "token": done.token,
            "changed": list(done.changes),
            "settles": done.settles,
            "barriers": done.barriers,
            "next": done.next,
        }
        changes = list(done.changes.values()) or None
        remaining, fresh, generation, succeeded, settled, due, keys, pages = self._call(
            _COMPLETE, told, done.value, done.info, changes
        )
        if remaining == _UNUSUAL:
            return super().complete(done)
        found = dict(zip(keys or (), pages or (), strict=True))
        told_once = tuple(settled or ()), tuple(due or ()), found
        return Completed(remaining, fresh, generation, succeeded, *told_once)

    def fail(self, failed: Attempted) -> Failed:
        if failed.final and failed.tolerances:
            return super().fail(failed)
        told = {
            **self._told(failed.run, failed.address),
            "generation": failed.generation,
            "attempt": failed.attempt,
            "final": int(failed.final),
            "token": failed.token,
            "settles": failed.settles,
            "turns": failed.turns,
            "retry": failed.retry,
        }
        recorded, died, settled, due, keys, pages = self._call(_FAIL, told, failed.failure)
        if recorded is None:
            return super().fail(failed)
        found = dict(zip(keys or (), pages or (), strict=True))
        return Failed(recorded, died, tuple(settled or ()), tuple(due or ()), found)

    def _told(self, run: str, address: str) -> dict[str, Any]:
        """What each call is told."""
        return {
            "prefix": self.options.prefix,
            "run": run,
            "address": address,
            "now": time.time(),
            "kept": self._kept,
            "wait": f"{self.lock_timeout}s",
        }

    def _call(self, query: str, told: Mapping[str, Any], *more: Any) -> Any:
        """The row that *query* answers, which is one call."""
        sent = (orjson.dumps(told).decode(), *more)
        with self._connection() as connection:
            # The driver itself: SQLAlchemy's part of it would take as long again.
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            try:
                return driver.execute(query, sent).fetchone()
            except psycopg.Error as exc:
                if driver.closed:  # the others may be so, too
                    connection.invalidate(exc)
                    connection.engine.dispose()
                raise DBAPIError(
                    query, None, exc, connection_invalidated=connection.invalidated
                ) from exc

    # --- waiting ----------------------------------------------------------------------------

    def notify(self, run: str) -> None:
        # Not of every change: whoever notifies has to wait for all others who do.
        query = (
            "SELECT pg_notify('clutch_' || id, '') FROM clutch_runs"
            " WHERE prefix = %s AND run = %s AND state <> 'RUNNING'"
        )
        self._do(lambda connection: connection.exec_driver_sql(query, (self.options.prefix, run)))

    def delete(self, run: str) -> bool:
        query = (
            "WITH gone AS (DELETE FROM clutch_runs WHERE prefix = %s AND run = %s"
            " AND expires_at > %s RETURNING id)"
            " SELECT pg_notify('clutch_' || id, '') FROM gone"
        )
        args = (self.options.prefix, run, time.time())
        return bool(self._do(lambda connection: connection.exec_driver_sql(query, args).all()))

    def wait(self, run: str, timeout: float | None = None) -> State | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        id, state, left = self._look(run, deadline)
        if state is None or state in ENDED or left <= 0:
            return state
        if self._listens:
            with self._listening(), psycopg.connect(**self._parameters()) as connection:
                self._try(connection.info.backend_pid, connection.execute(_PID).fetchone())
                if self._listens:
                    connection.execute(f"LISTEN clutch_{id}")
                while self._listens:
                    _, state, left = self._look(run, deadline)
                    if state is None or state in ENDED or left <= 0:
                        return state
                    for _ in connection.notifies(timeout=left, stop_after=1):
                        pass
        return super().wait(run, None if deadline is None else deadline - time.monotonic())

    async def wait_async(self, run: str, timeout: float | None = None) -> State | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        id, state, left = await asyncio.to_thread(self._look, run, deadline)
        if state is None or state in ENDED or left <= 0:
            return state
        if self._listens:
            with self._listening():
                connect = psycopg.AsyncConnection.connect
                async with await connect(**self._parameters()) as connection:
                    found = await (await connection.execute(_PID)).fetchone()
                    self._try(connection.info.backend_pid, found)
                    if self._listens:
                        await connection.execute(f"LISTEN clutch_{id}")
                    while self._listens:
                        _, state, left = await asyncio.to_thread(self._look, run, deadline)
                        if state is None or state in ENDED or left <= 0:
                            return state
                        async for _ in connection.notifies(timeout=left, stop_after=1):
                            pass
        left_over = None if deadline is None else deadline - time.monotonic()
        return await super().wait_async(run, left_over)

    def _try(self, told: int, found: Any) -> None:
        """Do not listen where a pooler is in between: it says another number than the server."""
        self._listens = bool(found) and found[0] == told

    def _look(self, run: str, deadline: float | None) -> tuple[int, State | None, float]:
        """The number of the run, its state, and for how long to wait for news."""
        found = self._all(select(runs.c.id, runs.c.state).where(self._is(run)))
        left = _RECHECK if deadline is None else min(deadline - time.monotonic(), _RECHECK)
        with self._reading(run):
            return (found[0].id, State(found[0].state), left) if found else (0, None, left)

    def _parameters(self) -> dict[str, Any]:
        """A listener is no connection of the pool, which it would keep from others."""
        _, parameters = self._engine.dialect.create_connect_args(self._url)
        return {**parameters, **self.arguments, "autocommit": True}

    @contextmanager
    def _listening(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as exc:
            raise StoreUnavailable(f"{self!r}: {exc}") from exc


_COMPLETE = f"CALL clutch_complete(%s, %s, %s, %s{', NULL' * 8})"
_FAIL = f"CALL clutch_fail(%s, %s{', NULL' * 6})"
_PID = "SELECT pg_backend_pid()"
