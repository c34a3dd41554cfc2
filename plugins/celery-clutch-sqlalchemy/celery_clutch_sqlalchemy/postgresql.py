"""Runs in PostgreSQL, with psycopg 3."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from celery_clutch.errors import ClutchError, ConfigurationError, CorruptRecord, StoreUnavailable
from celery_clutch.model.status import State
from celery_clutch.stores.base import ENDED, Settles
from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from .schema import runs
from .store import SQLStore

_RECHECK = 10.0  # seconds after which a waiting client looks at the state itself
_COLLIDED = ("40001", "40P01", "55P03")  # serialisation, deadlock, lock timeout
_OLD = ("42P01", "42703", "42883", "3F000")  # no such table, column, function or schema
_LOCK = 0x636C75746368  # "clutch"


class PostgreSQLStore(SQLStore):
    """Every write is one call of a function; `wait` listens for the end of a run."""

    scheme = "postgresql+psycopg"
    defaults = {"connect_timeout": "5"}

    def _connected(self, connection: Any) -> None:
        connection.execute(
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED;"
            f"SET lock_timeout = '{self.lock_timeout}s'"
        )

    def _call(self, routine: str, *args: Any) -> Any:
        query = f"SELECT * FROM clutch_{routine}({', '.join(['%s'] * len(args))})"
        return self._do(lambda connection: connection.exec_driver_sql(query, args).one())

    def _pairs(self, items: Mapping[str, bytes | None]) -> tuple[Any, ...]:
        return list(items), list(items.values())

    def _steps(self, settles: Sequence[Settles]) -> tuple[Any, ...]:
        steps, members = [each.step for each in settles], [each.member for each in settles]
        return steps, members, [each.width for each in settles], [each.loud for each in settles]

    @contextmanager
    def _alone(self, connection: Connection) -> Iterator[None]:
        connection.exec_driver_sql("BEGIN")
        try:
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            yield
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")

    def _judge(self, exc: DBAPIError) -> type[ClutchError] | None:
        state = getattr(exc.orig, "sqlstate", None) or ""
        if state in _COLLIDED:
            return None
        if state in _OLD:
            return ConfigurationError
        refused = state.startswith(("08", "25", "28", "3D", "42501", "53", "54", "55", "57", "58"))
        if refused or isinstance(exc.orig, psycopg.OperationalError):
            return StoreUnavailable
        return CorruptRecord

    def delete(self, run: str) -> bool:
        query = (
            "WITH gone AS (DELETE FROM clutch_run WHERE prefix = %s AND run = %s"
            " AND expires_at > clutch_now() RETURNING id)"
            " SELECT pg_notify('clutch_' || id, '') FROM gone"
        )
        key = self._key(run)
        return bool(self._do(lambda connection: connection.exec_driver_sql(query, key).all()))

    # --- waiting ----------------------------------------------------------------------------

    def wait(self, run: str, timeout: float | None = None) -> State | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        id, state, left = self._look(run, deadline)
        if state is None or state in ENDED or left <= 0:
            return state
        with self._listening(), psycopg.connect(**self._parameters()) as connection:
            connection.execute(f"LISTEN clutch_{id}")
            while True:
                _, state, left = self._look(run, deadline)
                if state is None or state in ENDED or left <= 0:
                    return state
                for _ in connection.notifies(timeout=left, stop_after=1):
                    pass

    async def wait_async(self, run: str, timeout: float | None = None) -> State | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        id, state, left = await asyncio.to_thread(self._look, run, deadline)
        if state is None or state in ENDED or left <= 0:
            return state
        with self._listening():
            async with await psycopg.AsyncConnection.connect(**self._parameters()) as connection:
                await connection.execute(f"LISTEN clutch_{id}")
                while True:
                    _, state, left = await asyncio.to_thread(self._look, run, deadline)
                    if state is None or state in ENDED or left <= 0:
                        return state
                    async for _ in connection.notifies(timeout=left, stop_after=1):
                        pass

    def _look(self, run: str, deadline: float | None) -> tuple[int, State | None, float]:
        """The number of the run, its state, and for how long to wait for news."""
        rows = self._rows(select(runs.c.id, runs.c.state).where(self._is(run)))
        left = _RECHECK if deadline is None else min(deadline - time.monotonic(), _RECHECK)
        with self._reading(run):
            return (rows[0].id, State(rows[0].state), left) if rows else (0, None, left)

    def _parameters(self) -> dict[str, Any]:
        """A listener is no connection of the pool, which it would keep from others."""
        _, parameters = self._engine.dialect.create_connect_args(self._url)
        return {**parameters, "autocommit": True}

    @contextmanager
    def _listening(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as exc:
            raise StoreUnavailable(f"{self!r}: {exc}") from exc
