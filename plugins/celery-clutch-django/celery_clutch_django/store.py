"""The store in a database of Django's: for every database that Django has.

Whatever changes a run is a transaction that locks the run's row first. On PostgreSQL the store of
postgresql.py does the same in one statement for each call.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from django.db import (
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from django.db.models import FilteredRelation, Q

from celery_clutch import ResultStore, State
from celery_clutch.errors import (
    AlreadyEngaged,
    ConfigurationError,
    CorruptRecord,
    StoreUnavailable,
)
from celery_clutch.stores.base import (
    ENDED,
    NOTHING,
    Begun,
    Completed,
    Execution,
    Failed,
    Joins,
    Missing,
    MissingType,
    Record,
    Settles,
    StoreOptions,
    Summary,
    Verdict,
)

from .models import CHILDREN, Datum, Job, Member, Page, Result, Run, Tag, Tally

F = TypeVar("F", bound=Callable[..., Any])

_TRIES = 5
"""How often a call that lost against another transaction is made."""

_CONFLICTS = frozenset(
    ("40001", "40P01", 1213, 1020)  # serialisation and deadlock: PostgreSQL, MySQL, MariaDB
)
_CHUNK = 5000
"""Slots that are asked for at once."""


def _primitive(method: F) -> F:
    """A call of the store: Django's exceptions become those of the interface.

    A connection that failed is closed, so that the next call gets a new one; within a transaction
    of the caller it is the caller's to close.
    """

    @functools.wraps(method)
    def call(self: DjangoStore, *args: Any, **kwargs: Any) -> Any:
        for tries_left in reversed(range(_TRIES)):
            try:
                self._ready()
                return method(self, *args, **kwargs)
            except transaction.TransactionManagementError:
                raise  # the caller's transaction is broken already
            except (OperationalError, InterfaceError, InternalError, ProgrammingError) as exc:
                if isinstance(exc, ProgrammingError) or str(exc).startswith("no such "):
                    raise self._unmigrated(exc) from exc
                connection = connections[self.alias]
                if not connection.in_atomic_block:
                    if tries_left and _code(exc) in _CONFLICTS:
                        time.sleep(random.uniform(0, 0.05))
                        continue
                    connection.close()
                raise StoreUnavailable(
                    f"the database {self.alias!r} does not answer: {exc}"
                ) from exc
        raise AssertionError("unreachable")

    return cast(F, call)


def _code(exc: Exception) -> object:
    """The code of a database's error: SQLSTATE, or MySQL's number."""
    cause = exc.__cause__
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return state or next(iter(getattr(cause, "args", ())), None)


class DjangoStore(ResultStore):
    """Runs in the tables of this app, through a connection of Django's.

    Inside ``transaction.atomic`` everything is part of the transaction.

    Args:
        url: ``django://alias``.
        options: the prefix is a column, so that several apps can share the tables.
        alias: of the database, in ``DATABASES``.
    """

    def __init__(
        self, url: str, options: StoreOptions = StoreOptions(), *, alias: str = "default"
    ) -> None:
        super().__init__(url, options)
        self.alias = alias
        self._here = threading.local()

    # --- primitives that write --------------------------------------------------------------

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
        now = time.time()
        new = Run(prefix=self.options.prefix, run=run, meta=meta, remaining=units, jobs=jobs)
        new.name, new.created_at, new.updated_at, new.state = name, now, now, State.RUNNING.value
        if not units:
            _end(new, State.SUCCEEDED)
        new.expires_at = now + self._ttl(new)
        try:
            with transaction.atomic(using=self.alias):
                self._erase(self._locked_rows(run, expires_at__lte=now))
                new.save(using=self.alias, force_insert=True)
                self._insert(
                    Tag, [{"run": new, "position": i, "tag": t} for i, t in enumerate(tags)]
                )
                self._insert(Page, [{"run": new, "key": k, "page": p} for k, p in pages.items()])
                self._insert(Datum, [{"run": new, "key": k, "value": v} for k, v in data.items()])
        except IntegrityError as exc:
            raise AlreadyEngaged(f"a run with the id {run!r} exists") from exc

    @_primitive
    def begin(self, run: str, address: str, slot: str, generation: int, limit: int) -> Begun:
        with self._changing(run) as found:
            if found is None or _drops(found, generation):
                return Begun(Verdict.DROP)
            if self._rows(Result).filter(run=found, slot=slot).exists():
                return Begun(Verdict.DONE)
            self._touch(found)
            job = self._job(found, address)
            if job.held is not None:
                return Begun(Verdict.RUN, bytes(job.held))
            if job.starts >= limit:
                return Begun(Verdict.GIVE_UP)
            job.starts, job.started_at = job.starts + 1, time.time()
            job.save(using=self.alias)
            return Begun(Verdict.RUN)

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
        with self._changing(run) as found:
            if found is None:
                return Completed(-1)
            fresh = not self._rows(Result).filter(run=found, slot=slot).exists()
            if fresh:
                self._insert(Result, [{"run": found, "slot": slot, "value": value}])
                found.remaining -= 1
                found.done += job
                self._finish(found, address, info)
                self._change(found, changes)
                if not found.remaining and found.state == State.RUNNING:
                    _end(found, State.SUCCEEDED, token)
                self._touch(found)
            current = generation == found.generation
            report = settled = joined = False
            if settles and current:
                report, settled = self._settle(found, settles, token, failed=False)
            if joins and current:
                joined = self._join(found, joins, slot, address)
            return Completed(
                remaining=found.remaining,
                fresh=fresh,
                succeeded=found.state == State.SUCCEEDED and found.ender == token,
                report=settles.step if settles and report else "",
                settled=settles.step if settles and settled else "",
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
        with self._changing(run) as found:
            if found is None or found.generation != generation:
                return Failed()
            job = self._job(found, address)
            news = job.attempt is None or (job.attempt, job.final) < (attempt, final)
            if news:
                _count(found, job, -1)
                has_result = self._rows(Result).filter(run=found, slot=slot).exists()
                job.attempt, job.final, job.failure = attempt, final, failure
                job.starts, job.started_at = 0, None
                job.finished = job.finished or has_result
                job.save(using=self.alias)
                _count(found, job, +1)
                if final and not has_result and found.state == State.RUNNING:
                    _end(found, State.FAILED, token)
                self._touch(found)
            told = [(each.step, self._settle(found, each, token, failed=True)) for each in settles]
            return Failed(
                recorded=news,
                died=found.state == State.FAILED and found.ender == token,
                reports=tuple(step for step, (report, _) in told if report),
                settled=tuple(step for step, (_, settled) in told if settled),
            )

    @_primitive
    def hold(self, run: str, address: str, held: bytes) -> None:
        with self._changing(run) as found:
            if found is not None:
                job = self._job(found, address)
                job.held, job.starts, job.started_at = held, 0, None
                job.save(using=self.alias)
                self._touch(found)

    @_primitive
    def take(self, run: str, key: str, lane: str, after: int, generation: int) -> int:
        with self._changing(run) as found:
            if found is None or _drops(found, generation):
                return -1
            counter = self._tally(found, Tally.COUNTER, key)
            last = self._rows(Member).filter(tally=counter, name=lane).first()
            last = last or Member(tally=counter, name=lane, number=-1)
            if last.number == after:
                last.previous, last.number = after, counter.count
                last.save(using=self.alias)
                counter.count += 1
                counter.save(using=self.alias)
            elif last.previous != after:
                return -1
            self._touch(found)
            return int(last.number)

    @_primitive
    def transition(
        self, run: str, sources: Iterable[State], target: State, generation: int
    ) -> bool:
        allowed = set(sources)
        with self._changing(run) as found:
            if found is None or found.generation != generation or found.state not in allowed:
                return False
            _end(found, target)
            if target is State.RUNNING:
                found.generation += 1
                found.failing = found.dead = 0
                self._rows(Job).filter(run=found).update(
                    starts=0,
                    started_at=None,
                    attempt=None,
                    final=False,
                    failure=None,
                    finished=False,
                )
                self._rows(Member).filter(tally__run=found).delete()
                self._rows(Tally).filter(run=found).delete()
                if found.remaining:
                    found.ended_at = None
                else:
                    _end(found, State.SUCCEEDED)
            self._touch(found)
            return True

    @_primitive
    def delete(self, run: str) -> bool:
        with transaction.atomic(using=self.alias):
            return self._erase(self._locked_rows(run, expires_at__gt=self._now())) > 0

    @_primitive
    def prune(self, limit: int = 1000) -> int:
        expired = self._rows(Run).filter(prefix=self.options.prefix, expires_at__lte=self._now())
        features = connections[self.alias].features
        if features.has_select_for_update:
            # What another one prunes just now is not waited for.
            expired = expired.select_for_update(
                skip_locked=features.has_select_for_update_skip_locked
            )
        with transaction.atomic(using=self.alias):
            return self._erase(expired.order_by("expires_at")[:limit])

    # --- primitives that read ---------------------------------------------------------------

    @_primitive
    def page(self, run: str, key: str) -> bytes | MissingType:
        found = self._of(Page, run).filter(key=key).values_list("page", flat=True).first()
        return Missing if found is None else bytes(found)

    @_primitive
    def values(self, run: str, slots: Sequence[str]) -> list[bytes | MissingType]:
        found: dict[str, bytes] = {}
        for some in self._chunks(slots):
            rows = self._of(Result, run).filter(slot__in=some).values_list("slot", "value")
            found.update((slot, bytes(value)) for slot, value in rows)
        return [found.get(slot, Missing) for slot in slots]

    @_primitive
    def finished(self, run: str, slots: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for some in self._chunks(slots):
            found.update(self._of(Result, run).filter(slot__in=some).values_list("slot", flat=True))
        return found

    @_primitive
    def data(self, run: str) -> dict[str, bytes] | None:
        # One statement, so that it is one moment: a run without data has one row of nothing.
        rows = list(self._run(run).values_list("data__key", "data__value"))
        return {key: bytes(value) for key, value in rows if key is not None} if rows else None

    @_primitive
    def executions(self, run: str) -> dict[str, Execution]:
        jobs = self._of(Job, run).filter(Q(starts__gt=0) | Q(info__isnull=False))
        fields = "address", "starts", "started_at", "info"
        return {
            address: Execution(starts, started_at, _bytes(info))
            for address, starts, started_at, info in jobs.values_list(*fields)
        }

    @_primitive
    def read(self, run: str) -> Record | None:
        # One statement for what changes. What was given to create does not, and may be large.
        told = Q(places__failure__isnull=False) | Q(places__held__isnull=False)
        fields = (
            *("pk", "state", "generation", "remaining", "done", "failing", "dead"),
            *("created_at", "updated_at", "ended_at"),
            *("told__address", "told__failure", "told__finished", "told__held"),
        )
        rows = list(
            self._run(run)
            .annotate(told=FilteredRelation("places", condition=told))
            .values_list(*fields)
        )
        meta = rows and self._rows(Run).filter(pk=rows[0][0]).values_list("meta", flat=True).first()
        if not rows or meta is None:
            return None
        _, state, generation, remaining, done, failing, dead, created, updated, ended = rows[0][:10]
        jobs = [row[10:] for row in rows if row[10] is not None]
        return Record(
            run=run,
            meta=bytes(meta),
            state=_state(run, state),
            generation=generation,
            remaining=remaining,
            done=done,
            failing=failing,
            dead=dead,
            created_at=created,
            updated_at=updated,
            ended_at=ended,
            failures={at: bytes(failure) for at, failure, _, _ in jobs if failure is not None},
            finished=frozenset(at for at, _, finished, _ in jobs if finished),
            held={at: bytes(held) for at, _, _, held in jobs if held is not None},
        )

    @_primitive
    def peek(self, run: str) -> tuple[State, int] | None:
        found = self._run(run).values_list("state", "generation").first()
        return found and (_state(run, found[0]), found[1])

    @_primitive
    def scan(
        self,
        cursor: str = "",
        count: int = 100,
        *,
        state: State | None = None,
        name: str | None = None,
        tag: str | None = None,
    ) -> tuple[list[Summary], str]:
        rows = self._runs()
        if state is not None:
            rows = rows.filter(state=state.value)
        if name is not None:
            rows = rows.filter(name=name)
        if tag is not None:
            rows = rows.filter(pk__in=self._rows(Tag).filter(tag=tag).values("run"))
        if cursor:
            at, _, last = cursor.partition(" ")
            rows = rows.filter(Q(created_at__lt=float(at)) | Q(created_at=float(at), run__lt=last))
        rows = rows.defer("meta", "ender").prefetch_related("tags").order_by("-created_at", "-run")
        page = list(rows[: count + 1])
        following = f"{page[count - 1].created_at!r} {page[count - 1].run}" if page[count:] else ""
        found = [_summary(row) for row in page[:count]]
        # MySQL finds names and tags in upper case as well.
        return [each for each in found if each.matches(state, name, tag)], following

    # --- waiting ------------------------------------------------------------------------------

    async def wait_async(self, run: str, timeout: float | None = None) -> State | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.005
        while True:
            peeked = await asyncio.to_thread(self._look, run)
            left = pause if deadline is None else deadline - time.monotonic()
            if peeked is None or peeked[0] in ENDED or left <= 0:
                return peeked[0] if peeked else None
            await asyncio.sleep(min(pause, left))
            pause = min(pause * 1.5, 0.5)

    def _look(self, run: str) -> tuple[State, int] | None:
        """`peek` in a thread of the event loop, whose connections nobody else closes."""
        try:
            return self.peek(run)
        finally:
            connections[self.alias].close_if_unusable_or_obsolete()

    # --- the rest -------------------------------------------------------------------------------

    def check(self) -> list[str]:
        try:
            pending = self._pending()
        except (ConfigurationError, StoreUnavailable):
            return []  # there is nothing to say then
        found = []
        if pending:
            found.append(
                f"the database {self.alias!r} lacks {', '.join(pending)} of celery_clutch_django: "
                f"run manage.py migrate --database {self.alias}"
            )
        settings = connections[self.alias].settings_dict
        pooled = settings["OPTIONS"].get("pool")
        if not (settings["CONN_MAX_AGE"] is None or settings["CONN_MAX_AGE"] or pooled):
            found.append(
                f"a worker opens a connection to the database {self.alias!r} for every job: set "
                f"CONN_MAX_AGE of DATABASES[{self.alias!r}] to some seconds"
            )
        return found

    def migrate(self) -> list[str]:
        """Apply the migrations of this app, as ``manage.py migrate celery_clutch_django`` does."""
        from django.core.management import call_command

        pending = self._pending()
        if pending:
            call_command("migrate", "celery_clutch_django", database=self.alias, verbosity=0)
        return [f"applied migration {name} to the database {self.alias!r}" for name in pending]

    def close(self) -> None:
        """Close this thread's connection, unless a transaction is open on it."""
        connection = connections[self.alias]
        if not connection.in_atomic_block:
            connection.close()

    def _ready(self) -> None:
        """Make this thread's connection fit for use: no other process's, and not a broken one."""
        here, process = self._here, os.getpid()
        connection = connections[self.alias]
        forked = getattr(here, "process", process) != process
        if forked and connection.connection and connection.connection is here.connection:
            # The parent goes on with it. It is kept, because closing it would say goodbye to the
            # server in the parent's name.
            here.inherited = connection
            del connections[self.alias]
            connection = connections[self.alias]
        if connection.connection is not None and connection.errors_occurred:
            if not connection.in_atomic_block and not connection.is_usable():
                connection.close()
            else:
                connection.errors_occurred = False
        connection.ensure_connection()
        here.process, here.connection = process, connection.connection

    # --- private --------------------------------------------------------------------------------

    @_primitive
    def _pending(self) -> list[str]:
        """The migrations of this app that the database lacks."""
        from django.db.migrations.executor import MigrationExecutor

        executor = MigrationExecutor(connections[self.alias])
        leaves = executor.loader.graph.leaf_nodes("celery_clutch_django")
        return [step.name for step, _ in executor.migration_plan(leaves)]

    def _now(self) -> Any:
        """The clock that times to live are read from: that of those who write them."""
        return time.time()

    def _rows(self, model: Any) -> Any:
        return model.objects.using(self.alias)

    def _runs(self) -> Any:
        return self._rows(Run).filter(prefix=self.options.prefix, expires_at__gt=self._now())

    def _run(self, run: str) -> Any:
        return self._runs().filter(run=run)

    def _of(self, model: Any, run: str) -> Any:
        """The rows of *model* that belong to a run."""
        return self._rows(model).filter(
            run__prefix=self.options.prefix, run__run=run, run__expires_at__gt=self._now()
        )

    def _chunks(self, slots: Sequence[str]) -> Iterator[Sequence[str]]:
        size = min(connections[self.alias].features.max_query_params or _CHUNK, _CHUNK) - 10
        for start in range(0, len(slots), size):
            yield slots[start : start + size]

    def _insert(self, model: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows(model).bulk_create([model(**row) for row in rows], batch_size=100)

    def _locked_rows(self, run: str, **conditions: Any) -> Any:
        """The row of a run, locked when it is read. In a transaction."""
        rows = self._rows(Run).filter(prefix=self.options.prefix, run=run)
        if connections[self.alias].features.has_select_for_update:
            return rows.filter(**conditions).select_for_update()
        # SQLite: a transaction that begins with a write waits for its turn there and then, rather
        # than fail where it would turn from reading to writing.
        rows.update(prefix=self.options.prefix)
        return rows.filter(**conditions)

    @contextmanager
    def _changing(self, run: str) -> Iterator[Any]:
        """A transaction around a run that is locked; None when there is no such run."""
        with transaction.atomic(using=self.alias):
            rows = self._locked_rows(run, expires_at__gt=self._now())
            yield next(iter(rows.defer("meta")), None)

    def _touch(self, found: Any) -> None:
        found.updated_at = time.time()
        found.expires_at = found.updated_at + self._ttl(found)
        found.save(using=self.alias)  # what is deferred is not written

    def _ttl(self, found: Any) -> float:
        return self.options.result_ttl if found.state in ENDED else self.options.ttl

    def _erase(self, runs: Any) -> int:
        keys = [found.pk for found in runs.only("pk")]
        if keys:
            for model, path in CHILDREN:
                self._rows(model).filter(**{f"{path}__in": keys}).delete()
            self._rows(Run).filter(pk__in=keys)._raw_delete(self.alias)
        return len(keys)

    def _job(self, found: Any, address: str) -> Any:
        job = self._rows(Job).filter(run=found, address=address).first()
        return job or Job(run=found, address=address)

    def _finish(self, found: Any, address: str, info: bytes) -> None:
        job = self._job(found, address)
        _count(found, job, -1)
        job.starts, job.started_at, job.held, job.info = 0, None, None, info
        job.finished = job.attempt is not None
        job.save(using=self.alias)
        if job.finished and found.state == State.FAILED and not found.dead:
            found.state, found.ended_at = State.RUNNING.value, None

    def _change(self, found: Any, changes: Mapping[str, bytes | None]) -> None:
        if changes:
            self._rows(Datum).filter(run=found, key__in=list(changes)).delete()
            kept = {key: value for key, value in changes.items() if value is not None}
            self._insert(Datum, [{"run": found, "key": k, "value": v} for k, v in kept.items()])

    def _tally(self, found: Any, kind: str, name: str) -> Any:
        tally = self._rows(Tally).filter(run=found, kind=kind, name=name).first()
        if tally is None:
            tally = Tally(run=found, kind=kind, name=name)
            tally.save(using=self.alias)
        return tally

    def _counted(self, tally: Any, member: str) -> None:
        """Count *member*, once."""
        if not self._rows(Member).filter(tally=tally, name=member).exists():
            self._insert(Member, [{"tally": tally, "name": member}])
            tally.count += 1

    def _settle(
        self, found: Any, settles: Settles, token: str, *, failed: bool
    ) -> tuple[bool, bool]:
        """Count a member: whether *token* is to report the step, and whether it settled it."""
        step = self._tally(found, Tally.STEP, settles.step)
        self._counted(step, settles.member)
        step.failed = step.failed or (failed and settles.loud)
        full = step.count >= settles.width
        if full:
            step.closer = step.closer or token
            if step.failed:
                step.reporter = step.reporter or token
        step.save(using=self.alias)
        return full and step.reporter == token, full and step.closer == token

    def _join(self, found: Any, joins: Joins, slot: str, address: str) -> bool:
        barrier = self._tally(found, Tally.BARRIER, joins.barrier)
        self._counted(barrier, slot)
        if barrier.count >= joins.width:
            barrier.closer = barrier.closer or address
        barrier.save(using=self.alias)
        return bool(barrier.closer == address)

    def _unmigrated(self, exc: Exception) -> ConfigurationError:
        return ConfigurationError(
            f"the database {self.alias!r} does not have what celery-clutch needs there: run "
            f"manage.py migrate celery_clutch_django --database {self.alias} ({exc})"
        )


def _drops(found: Any, generation: int) -> bool:
    return bool(found.state == State.CANCELLED or found.generation != generation)


def _end(found: Any, state: State, token: str | None = None) -> None:
    found.state, found.ender, found.ended_at = state.value, token, time.time()


def _count(found: Any, job: Any, by: int) -> None:
    """Count a job that has failed and has no result, as failing or as dead."""
    if job.attempt is not None and not job.finished:
        if job.final:
            found.dead += by
        else:
            found.failing += by


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def _state(run: str, value: str) -> State:
    try:
        return State(value)
    except ValueError:
        raise CorruptRecord(f"run {run!r} has the state {value!r}, which there is not") from None


def _summary(row: Any) -> Summary:
    tags = sorted(row.tags.all(), key=lambda tag: tag.position)
    return Summary(
        run=row.run,
        name=row.name,
        tags=tuple(tag.tag for tag in tags),
        state=_state(row.run, row.state),
        jobs=row.jobs,
        done=row.done,
        failing=row.failing,
        dead=row.dead,
        created_at=row.created_at,
        updated_at=row.updated_at,
        ended_at=row.ended_at,
    )
