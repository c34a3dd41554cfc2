"""The store in a database of Django's: for every database that Django has.

The rules are those of `TransactionalStore`; here is how rows are read and written. Whatever changes
a run is a transaction that locks the run's row first.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import orjson
from django.conf import settings
from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from django.db.models import Count, FilteredRelation, OuterRef, Q, Subquery

from celery_clutch import State
from celery_clutch.errors import ConfigurationError, CorruptRecord, StoreUnavailable
from celery_clutch.stores.base import ENDED, NOTHING, StoreOptions
from celery_clutch.stores.buckets import Buckets, counts_from_row
from celery_clutch.stores.machine import TransactionalStore
from celery_clutch.stores.rows import Head, Rows, Wanted

from .models import Bucket, Owner, Row, Run

_CHUNK = 5000
"""Keys that are asked for at once."""

_SINGLE = ("run", "name", "generation", "jobs", "remaining", "failing", "dead", "ender")
_TIMES = ("created_at", "updated_at", "ended_at", "expires_at")
_COLUMNS = ("pk", "state", "tags", "ends", *_SINGLE, *_TIMES)
"""What a head is made of; ``meta`` may be large, and is read where it is asked for."""

_FAILED = (OperationalError, InterfaceError, InternalError, ProgrammingError)


class DjangoStore(TransactionalStore, Buckets):
    """Runs in the tables of this app, through a connection of Django's.

    Inside ``transaction.atomic`` everything is part of the transaction. What starts a run, or
    starts it again, is refused there: its messages would be sent before the commit. The setting
    ``CLUTCH_ALLOW_IN_TRANSACTION`` allows it.

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

    # --- what the machine asks for ------------------------------------------------------------

    @contextmanager
    def transaction(self, run: str, wanted: Wanted = NOTHING) -> Iterator[Rows | None]:
        with self._connection(), transaction.atomic(using=self.alias):
            found = self._locked(run).filter(expires_at__gt=time.time())
            columns = found.values_list(*_COLUMNS).first()
            if columns is None:
                yield None
                return
            pk, before = columns[0], _head(columns)
            rows = Rows(replace(before), partial(self._load, pk), self._known(pk, wanted))
            yield rows
            self._write(pk, rows)
            if rows.head != before:
                self._of(Run).filter(pk=pk).update(**_changes(rows.head))

    def insert(self, head: Head, rows: Mapping[str, Mapping[str, bytes]]) -> bool:
        try:
            with self._connection(), self._starting():
                self._erase(self._locked(head.run).filter(expires_at__lte=time.time()))
                new = Run(prefix=self.options.prefix, run=head.run, meta=head.meta, name=head.name)
                new.tags, new.ends = orjson.dumps(head.tags).decode(), " ".join(head.ends)
                new.jobs, new.created_at = head.jobs, head.created_at
                for column, value in _changes(head).items():
                    setattr(new, column, value)
                new.save(using=self.alias, force_insert=True)
                self._insert(new.pk, rows)
        except IntegrityError:
            return False
        return True

    def snapshot(
        self, run: str, kinds: Sequence[str]
    ) -> tuple[Head, dict[str, dict[str, bytes]]] | None:
        # Django asks nothing at all where nothing can be in a list.
        wanted = list(kinds) or [""]
        relation = FilteredRelation("rows", condition=Q(rows__kind__in=wanted))
        columns = (*_COLUMNS, "wanted__kind", "wanted__key", "wanted__value")
        with self._connection():
            # One statement for what changes, and so one moment; meta does not change.
            found = list(self._run(run).annotate(wanted=relation).values_list(*columns))
            if not found:
                return None
            head = _head(found[0])
            meta = self._of(Run).filter(pk=found[0][0]).values_list("meta", flat=True).first()
        if meta is None:
            return None  # deleted just now
        head.meta = bytes(meta)
        rows: dict[str, dict[str, bytes]] = {kind: {} for kind in kinds}
        for *_, kind, key, value in found:
            if kind is not None:
                rows[kind][key] = bytes(value)
        return head, rows

    def rows(self, run: str, kind: str, keys: Sequence[str] | None) -> Mapping[str, bytes]:
        found: dict[str, bytes] = {}
        with self._connection():
            for rows in self._some(self._rows(run, kind), keys):
                found.update((key, bytes(value)) for key, value in rows.values_list("key", "value"))
        return found

    def some_rows(self, run: str, kind: str, count: int) -> Iterator[Mapping[str, bytes]]:
        rows, after = self._rows(run, kind).order_by("key").values_list("key", "value"), ""
        while True:
            with self._connection():
                found = list(rows.filter(key__gt=after)[:count])
            if not found:
                return
            yield {key: bytes(value) for key, value in found}
            after = found[-1][0]

    def heads(self, before: tuple[float, str] | None, count: int) -> list[Head]:
        due = self._of(Row).filter(run=OuterRef("pk"), kind="due").order_by().values("run")
        counted = Subquery(due.annotate(n=Count("pk")).values("n"))
        runs = self._runs()
        if before is not None:
            created, run = before
            runs = runs.filter(Q(created_at__lt=created) | Q(created_at=created, run__lt=run))
        runs = runs.order_by("-created_at", "-run").annotate(due=counted)
        with self._connection():
            found = list(runs.values_list(*_COLUMNS, "due")[:count])
        return [replace(_head(columns), due=columns[-1] or 0) for columns in found]

    def delete(self, run: str) -> bool:
        with self._connection(), transaction.atomic(using=self.alias):
            return self._erase(self._locked(run).filter(expires_at__gt=time.time())) > 0

    def renew(self, owners: Sequence[str], seconds: float) -> None:
        until = time.time() + seconds
        found = [Owner(prefix=self.options.prefix, owner=each, until=until) for each in owners]
        with self._connection(), transaction.atomic(using=self.alias):
            self._upsert(Owner, found, ["prefix", "owner"], ["until"])

    def owners(self) -> dict[str, float]:
        with self._connection():
            found = self._owners().values_list("owner", "until")
            return {owner: until - time.time() for owner, until in found}

    def retire(self, owners: Sequence[str]) -> None:
        with self._connection():
            self._owners().filter(owner__in=list(owners)).delete()

    # --- counts by time ----------------------------------------------------------------------

    def add_counts(self, counts: Mapping[str, Mapping[str, int]], seconds: float) -> None:
        begun = False
        for bucket, added in counts.items():
            with self._connection(), transaction.atomic(using=self.alias):
                self._lock_sqlite()
                buckets = self._buckets().select_for_update()
                row, _ = buckets.get_or_create(prefix=self.options.prefix, bucket=bucket)
                begun = begun or not row.expires_at
                known = _counts(row)
                for name, number in added.items():
                    known[name] = known.get(name, 0) + number
                row.counts, row.expires_at = orjson.dumps(known), time.time() + seconds
                row.save(using=self.alias)
        if begun:  # for each that begins, one has expired
            with self._connection():
                self._buckets().filter(expires_at__lte=time.time()).delete()

    def read_counts(self, buckets: Sequence[str]) -> list[dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        with self._connection():
            for rows in self._some(self._buckets(), buckets, "bucket"):
                found.update((row.bucket, _counts(row)) for row in rows)
        return [found.get(bucket, {}) for bucket in buckets]

    def _buckets(self) -> Any:
        return self._of(Bucket).filter(prefix=self.options.prefix)

    # --- where the database can do better ------------------------------------------------------

    def peek(self, run: str) -> tuple[State, int] | None:
        with self._connection():
            found = self._run(run).values_list("state", "generation").first()
        return found and (_state(run, found[0]), found[1])

    def outline(self, run: str) -> tuple[State, bytes] | None:
        with self._connection():
            found = self._run(run).values_list("state", "meta").first()
        return found and (_state(run, found[0]), bytes(found[1]))

    def finished(self, run: str, addresses: Sequence[str]) -> set[str]:
        found: set[str] = set()
        with self._connection():
            for rows in self._some(self._rows(run, "result"), addresses):
                found.update(rows.values_list("key", flat=True))
        return found

    def transition(
        self,
        run: str,
        sources: Iterable[State],
        target: State,
        generation: int,
        *,
        retry_tolerated: bool = False,
    ) -> bool:
        move = partial(super().transition, retry_tolerated=retry_tolerated)
        if target is State.RUNNING:
            with self._connection(), self._starting():
                return move(run, sources, target, generation)
        return move(run, sources, target, generation)

    def prune(self, limit: int = 1000) -> int:
        expired = self._of(Run).filter(prefix=self.options.prefix, expires_at__lte=time.time())
        with self._connection(), transaction.atomic(using=self.alias):
            # What another one prunes just now is not waited for.
            expired = self._lock(expired.order_by("expires_at"), skip_locked=True)
            return self._erase(expired[:limit])

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

    # --- the server -----------------------------------------------------------------------------

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
        database = connections[self.alias].settings_dict
        pooled = database["OPTIONS"].get("pool")
        if not (database["CONN_MAX_AGE"] is None or database["CONN_MAX_AGE"] or pooled):
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

    def _pending(self) -> list[str]:
        """The migrations of this app that the database lacks."""
        from django.db.migrations.executor import MigrationExecutor

        with self._connection():
            executor = MigrationExecutor(connections[self.alias])
            leaves = executor.loader.graph.leaf_nodes("celery_clutch_django")
            return [step.name for step, _ in executor.migration_plan(leaves)]

    # --- connections and transactions -------------------------------------------------------------

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """A connection that is fit for use; Django's exceptions become those of the interface.

        A connection that failed is closed, so that the next call gets a new one; within a
        transaction of the caller it is the caller's to close.
        """
        try:
            self._ready()
            yield
        except transaction.TransactionManagementError:
            raise  # the caller's transaction is broken already
        except _FAILED as exc:
            raise self._problem(exc) from exc

    def _problem(self, exc: DatabaseError | InterfaceError) -> Exception:
        if isinstance(exc, ProgrammingError) or str(exc).startswith("no such "):
            return ConfigurationError(
                f"the database {self.alias!r} does not have what celery-clutch needs there: run "
                f"manage.py migrate celery_clutch_django --database {self.alias} ({exc})"
            )
        connection = connections[self.alias]
        if not connection.in_atomic_block:
            connection.close()
        return StoreUnavailable(f"the database {self.alias!r} does not answer: {exc}")

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

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """A transaction that starts a run. It is no part of one of the caller's.

        That of a ``TestCase`` does not count, as with Django's ``durable``.
        """
        allowed = bool(getattr(settings, "CLUTCH_ALLOW_IN_TRANSACTION", False))
        with ExitStack() as stack:
            try:
                stack.enter_context(transaction.atomic(using=self.alias, durable=not allowed))
            except RuntimeError as exc:
                raise ConfigurationError(
                    f"a transaction is open on the database {self.alias!r}: workers would get the "
                    "messages of the run before they can see it. Use engage_on_commit(clutch) "
                    "instead of engage(), and transaction.on_commit(run.resume) instead of "
                    "resume(); or set CLUTCH_ALLOW_IN_TRANSACTION = True"
                ) from exc
            yield

    # --- rows -----------------------------------------------------------------------------------

    def _of(self, model: Any) -> Any:
        return model.objects.using(self.alias)

    def _runs(self) -> Any:
        return self._of(Run).filter(prefix=self.options.prefix, expires_at__gt=time.time())

    def _run(self, run: str) -> Any:
        return self._runs().filter(run=run)

    def _rows(self, run: str, kind: str) -> Any:
        """The rows of one kind of a run that has not expired."""
        return self._of(Row).filter(
            run__prefix=self.options.prefix,
            run__run=run,
            run__expires_at__gt=time.time(),
            kind=kind,
        )

    def _load(self, pk: int, kind: str, keys: Sequence[str] | None) -> dict[str, bytes]:
        """Rows of a run that is locked."""
        rows = self._of(Row).filter(run=pk, kind=kind)
        return {
            key: bytes(value)
            for some in self._some(rows, keys)
            for key, value in some.values_list("key", "value")
        }

    def _known(self, pk: int, wanted: Wanted) -> dict[str, dict[str, bytes | None]]:
        """The rows of a run that are wanted, in one query; None where there is none."""
        known: dict[str, dict[str, bytes | None]]
        known = {kind: dict.fromkeys(keys) for kind, keys in wanted.items()}
        keys = {key for some in wanted.values() for key in some}
        if keys:
            rows = self._of(Row).filter(run=pk, kind__in=list(wanted), key__in=keys)
            for kind, key, value in rows.values_list("kind", "key", "value"):
                if key in known[kind]:
                    known[kind][key] = bytes(value)
        return known

    def _owners(self) -> Any:
        return self._of(Owner).filter(prefix=self.options.prefix)

    def _some(self, rows: Any, keys: Sequence[str] | None, column: str = "key") -> Iterator[Any]:
        """Those of *rows* with one of *keys*, as many keys at once as the database takes."""
        if keys is None:
            yield rows
            return
        size = min(connections[self.alias].features.max_query_params or _CHUNK, _CHUNK) - 10
        for start in range(0, len(keys), size):
            yield rows.filter(**{f"{column}__in": list(keys[start : start + size])})

    def _locked(self, run: str) -> Any:
        """The row of a run, locked when it is read. In a transaction."""
        return self._lock(self._of(Run).filter(prefix=self.options.prefix, run=run))

    def _lock(self, runs: Any, *, skip_locked: bool = False) -> Any:
        """Rows of runs, locked when they are read. In a transaction, before it reads anything."""
        features = connections[self.alias].features
        if features.has_select_for_update:
            skip_locked = skip_locked and features.has_select_for_update_skip_locked
            return runs.select_for_update(skip_locked=skip_locked)
        self._lock_sqlite()
        return runs

    def _lock_sqlite(self) -> None:
        """A transaction of SQLite that begins with a write, here of nothing, waits for its turn there
        and then, rather than fail where it would turn from reading to writing."""
        if not connections[self.alias].features.has_select_for_update:
            self._of(Run).filter(pk=0).update(generation=0)

    def _write(self, pk: int, rows: Rows) -> None:
        """Write what has changed of a run that is locked."""
        if rows.cleared:
            self._of(Row).filter(run=pk, kind__in=list(rows.cleared)).delete()
        written: dict[str, dict[str, bytes]] = {}
        gone = Q()
        for kind, changed in rows.changed.items():
            written[kind] = {key: value for key, value in changed.items() if value is not None}
            deleted = [key for key in changed if key not in written[kind]]
            if deleted:
                gone |= Q(kind=kind, key__in=deleted)
        if gone:
            self._of(Row).filter(gone, run=pk).delete()
        self._insert(pk, written)

    def _insert(self, pk: int, rows: Mapping[str, Mapping[str, bytes]]) -> None:
        """Write rows, over those that are there."""
        found = [
            Row(run_id=pk, kind=kind, key=key, value=value)
            for kind, some in rows.items()
            for key, value in some.items()
        ]
        self._upsert(Row, found, ["run", "kind", "key"], ["value"])

    def _upsert(self, model: Any, found: list[Any], unique: list[str], update: list[str]) -> None:
        features = connections[self.alias].features
        if not features.supports_update_conflicts:  # Oracle
            for each in found:
                self._of(model).filter(**{name: getattr(each, name) for name in unique}).delete()
            self._of(model).bulk_create(found, batch_size=100)
            return
        self._of(model).bulk_create(
            found,
            batch_size=100,
            update_conflicts=True,
            update_fields=update,
            # MySQL looks at every unique key, and does not want them named.
            unique_fields=unique if features.supports_update_conflicts_with_target else None,
        )

    def _erase(self, runs: Any) -> int:
        keys = list(runs.values_list("pk", flat=True))
        if keys:
            self._of(Row).filter(run__in=keys).delete()
            self._of(Run).filter(pk__in=keys)._raw_delete(self.alias)
        return len(keys)


def _head(columns: Sequence[Any]) -> Head:
    """The head of a run from `_COLUMNS`, without its ``meta``."""
    _, state, tags, ends, *rest = columns[: len(_COLUMNS)]
    more = dict(zip((*_SINGLE, *_TIMES), rest, strict=True))
    try:
        labels = tuple(orjson.loads(tags))
    except ValueError as exc:
        raise CorruptRecord(f"the tags of run {more['run']!r} cannot be read: {exc}") from None
    return Head(state=_state(more["run"], state), tags=labels, ends=tuple(ends.split()), **more)


def _counts(row: Bucket) -> dict[str, int]:
    """What a bucket has counted."""
    return counts_from_row(row.bucket, bytes(row.counts), row.expires_at)


def _changes(head: Head) -> dict[str, Any]:
    """The columns of a head that change."""
    names = ("generation", "jobs", "remaining", "failing", "dead", "ender", *_TIMES[1:])
    return {"state": head.state.value, **{name: getattr(head, name) for name in names}}


def _state(run: str, value: str) -> State:
    try:
        return State(value)
    except ValueError:
        raise CorruptRecord(f"run {run!r} has the state {value!r}, which there is not") from None
