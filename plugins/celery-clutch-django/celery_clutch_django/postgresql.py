"""The store in PostgreSQL: every call is one statement, and so one round trip and one transaction.

What writes is a function in the database; the migrations create them, and
``migrations/sql`` has their text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import connections
from django.db.models import FloatField, Func

from celery_clutch import State
from celery_clutch.errors import AlreadyEngaged
from celery_clutch.stores.base import (
    NOTHING,
    Begun,
    Completed,
    Failed,
    Joins,
    Settles,
    Verdict,
)

from .store import DjangoStore, _primitive


class PostgreSQLStore(DjangoStore):
    """Runs in PostgreSQL."""

    @_primitive
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
        (created,) = self._call(
            "create(%s, %s, %s::bytea, %s, %s, %s, %s::text[], %s::text[], %s::bytea[],"
            " %s::text[], %s::bytea[], %s, %s)",
            *(run, meta, units, jobs, name, list(tags)),
            *(list(pages), list(pages.values()), list(data), list(data.values())),
        )
        if not created:
            raise AlreadyEngaged(f"a run with the id {run!r} exists")

    @_primitive
    def begin(self, run: str, address: str, slot: str, generation: int, limit: int) -> Begun:
        verdict, held = self._call(
            "begin(%s, %s, %s, %s, %s, %s, %s, %s)", run, address, slot, generation, limit
        )
        return Begun(Verdict(verdict), None if held is None else bytes(held))

    @_primitive
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
        settling = (settles.step, settles.member, settles.width) if settles else (None,) * 3
        joining = (joins.barrier, joins.width) if joins else (None, None)
        remaining, fresh, succeeded, report, settled, joined = self._call(
            "complete(%s, %s, %s, %s, %s::bytea, %s, %s, %s, %s, %s, %s, %s, %s,"
            " %s::text[], %s::bytea[], %s::bytea, %s, %s)",
            *(run, address, slot, value, generation, token, job),
            *(*settling, *joining, list(changes), list(changes.values()), info),
        )
        step = settles.step if settles else ""
        return Completed(
            remaining=remaining,
            fresh=fresh,
            succeeded=succeeded,
            report=step if report else "",
            settled=step if settled else "",
            joined=joined,
        )

    @_primitive
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
            "fail(%s, %s, %s, %s, %s::bytea, %s, %s, %s, %s, %s::text[], %s::text[],"
            " %s::integer[], %s::boolean[], %s, %s)",
            *(run, address, slot, failure, attempt, final, generation, token),
            [each.step for each in settles],
            [each.member for each in settles],
            [each.width for each in settles],
            [each.loud for each in settles],
        )
        return Failed(recorded, died, tuple(reports), tuple(settled))

    @_primitive
    def hold(self, run: str, address: str, held: bytes) -> None:
        self._call("hold(%s, %s, %s, %s::bytea, %s, %s)", run, address, held)

    @_primitive
    def take(self, run: str, key: str, lane: str, after: int, generation: int) -> int:
        call = "take(%s, %s, %s, %s, %s, %s, %s, %s)"
        return int(self._call(call, run, key, lane, after, generation)[0])

    @_primitive
    def transition(
        self, run: str, sources: Iterable[State], target: State, generation: int
    ) -> bool:
        names = [source.value for source in sources]
        call = "transition(%s, %s, %s::text[], %s, %s, %s, %s)"
        return bool(self._call(call, run, names, target.value, generation)[0])

    @_primitive
    def delete(self, run: str) -> bool:
        with connections[self.alias].cursor() as cursor:
            call = "SELECT celery_clutch_django_delete(%s, %s)"
            cursor.execute(call, [self.options.prefix, run])
            return bool(cursor.fetchone()[0])

    def _call(self, call: str, *args: Any) -> Any:
        """Call a function of the database between the prefix and the times to live."""
        args = (self.options.prefix, *args, self.options.ttl, self.options.result_ttl)
        with connections[self.alias].cursor() as cursor:
            cursor.execute(f"SELECT * FROM celery_clutch_django_{call}", args)
            return cursor.fetchone()

    def _now(self) -> Any:
        return Func(template="celery_clutch_django_now()", output_field=FloatField())
