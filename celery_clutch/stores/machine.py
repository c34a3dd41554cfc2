"""The rules of a run, once, over the rows of one transaction. Pure; knows no database.

A store author derives from `TransactionalStore` and says how rows are read and written; `Redis` and
PostgreSQL have `begin`, `complete` and `fail` as scripts of their own besides, which the contract
compares with what is here.

The rows of a run are bytes by *kind* and key:

========== ==================== ======================================================
kind       key                  value
========== ==================== ======================================================
page       key of the page      as given to ``create``
result     address              as given to ``complete``
info       address              as given to ``complete``
data       key                  as given to ``create`` or ``complete``
lease      address              `Lease`, while the job is under way
failure    address              ``attempt final finished``, a new line, and as given to ``fail``
held       address              as given to ``checkpoint``
child      address, blank, id   as given to ``report``
barrier    name                 how many results it has counted
member     step/member          ``done`` or ``failed``
mark       what is marked       of this generation: how many have settled, what was reported
due        what is due          `Due`
========== ==================== ======================================================

Of the kind barrier are, for good, also ``more <name>``, how many results more a barrier waits for;
``added <address>``, the branches added to a parallel; ``dead <name>``, how many deaths a parallel
has tolerated; ``tolerated <address>``, which barrier the branch of such a death counts towards;
``skipped``, how many jobs will not run; ``end``, the last barrier has opened; and ``unusual``: a
death was tolerated, or branches were added, so that whoever has the rules a second time leaves the
run to those here.

"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from ..errors import AlreadyEngaged, CorruptRecord
from ..model.status import State
from .base import (
    END,
    ENDED,
    NOBODY,
    NOTHING,
    STOPPED,
    TURNS,
    Attempted,
    Barrier,
    Begun,
    Claim,
    Completed,
    Completion,
    Due,
    Failed,
    Growth,
    Lease,
    Missing,
    MissingType,
    Record,
    ResultStore,
    Settles,
    Summary,
    Tolerance,
    Turn,
    Verdict,
)

KINDS = (
    *("page", "result", "info", "data", "lease", "failure"),
    *("held", "child", "barrier", "member", "mark", "due"),
)
"""Every kind of row."""

ROOT = "page 0"
"""What is due when a run starts, or starts again."""

TELLS = ("failure ", "success ", "death ", "end ")
"""What begins so is due to somebody who is to be told of something that has happened."""

OVER = b"over"
"""The mark of a branch that has ended, and not by a death."""

TOLERATED = 2
"""The flag of a death without which the run goes on."""

SKIPPED = "skipped"
"""The barrier that counts the jobs that will not run."""

UNUSUAL = "unusual"
"""The barrier that marks a run in which a death was tolerated, or branches were added."""

RENEWED = 1.0
"""Seconds for which the time that a run is kept need not be written again by what changes nothing
else of its head; less where runs are not kept for long."""

Load = Callable[[str, Sequence[str] | None], Mapping[str, bytes]]

Wanted = Mapping[str, Sequence[str]]
"""Keys of rows by kind."""


@dataclass
class Head:
    """What there is of a run once. A store keeps it as columns, so that it can list by them.

    ``due`` is how many rows of that kind there are; it is read only.
    """

    run: str
    meta: bytes = b""
    name: str | None = None
    tags: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    jobs: int = 0
    remaining: int = 0
    state: State = State.RUNNING
    generation: int = 0
    failing: int = 0
    dead: int = 0
    ender: str = ""
    created_at: float = 0.0
    updated_at: float = 0.0
    ended_at: float | None = None
    expires_at: float = 0.0
    due: int = 0

    def drops(self, generation: int) -> bool:
        """Whether messages of *generation* are of no use."""
        return self.state is State.CANCELLED or self.generation != generation

    def summary(self) -> Summary:
        """As in a listing."""
        return Summary(
            run=self.run,
            name=self.name,
            tags=self.tags,
            state=self.state,
            jobs=self.jobs,
            done=self.jobs - self.remaining,
            failing=self.failing,
            dead=self.dead,
            created_at=self.created_at,
            updated_at=self.updated_at,
            ended_at=self.ended_at,
            due=self.due,
        )


@dataclass
class Rows:
    """The rows of one run in a transaction. What is written is kept here until the store writes it.

    Args:
        head: of the run; written back at the end.
        load: reads rows of a kind: those with these keys, or with None all of them.
        known: rows that were read already, by kind and key; None stands for one that is not there.

    Attributes:
        cleared: kinds of which every row is to be deleted, before what has *changed* is written.
        changed: rows to write by kind and key; None deletes the row.
    """

    head: Head
    load: Load
    known: dict[str, dict[str, bytes | None]] = field(default_factory=dict)
    cleared: set[str] = field(default_factory=set)
    changed: dict[str, dict[str, bytes | None]] = field(default_factory=dict)

    def fetch(self, kind: str, keys: Iterable[str]) -> None:
        """Read rows that are going to be asked for."""
        known = self.known.setdefault(kind, {})
        unknown = [key for key in keys if key not in known]
        if unknown and kind not in self.cleared:
            found = self.load(kind, unknown)
            known.update((key, found.get(key)) for key in unknown)

    def get(self, kind: str, key: str) -> bytes | None:
        """One row; None if there is none."""
        changed = self.changed.get(kind, {})
        if key in changed:
            return changed[key]
        self.fetch(kind, (key,))
        return self.known[kind].get(key)

    def items(self, kind: str) -> dict[str, bytes]:
        """All rows of a kind."""
        found: dict[str, bytes | None] = {}
        if kind not in self.cleared:
            found.update(self.load(kind, None))
        found.update(self.changed.get(kind, {}))
        return {key: value for key, value in found.items() if value is not None}

    def put(self, kind: str, key: str, value: bytes | None) -> None:
        """Write a row, or delete it."""
        changed = self.changed.setdefault(kind, {})
        if value is None and self.known.get(kind, {}).get(key, b"") is None:
            changed.pop(key, None)  # there is nothing to delete
        else:
            changed[key] = value

    def clear(self, kind: str) -> None:
        """Delete all rows of a kind."""
        self.cleared.add(kind)
        self.changed.pop(kind, None)
        self.known[kind] = {}

    def number(self, kind: str, key: str) -> int:
        """A row that counts."""
        return int(self.get(kind, key) or 0)

    def add(self, kind: str, key: str, more: int = 1) -> int:
        """Count *more*; how many there are now."""
        count = self.number(kind, key) + more
        self.put(kind, key, b"%d" % count)
        return count


class TransactionalStore(ResultStore):
    """A store that says how rows are read and written; the rules of a run are here.

    What is read in a transaction must still be so when it ends: lock the run, or check and call
    again.
    """

    # --- what a store author writes ----------------------------------------------------------

    @abstractmethod
    def transaction(
        self, run: str, wanted: Wanted = NOTHING
    ) -> AbstractContextManager[Rows | None]:
        """The rows of a run, for this caller alone; None if there is no such run.

        *wanted* says which rows are going to be asked for, by kind: where a query costs a round
        trip, read them all in one, and give them to `Rows` as ``known``. The head needs no
        ``meta``.

        At the end of the block ``head``, ``cleared`` and ``changed`` are written, all of them or,
        after an exception, none.
        """

    @abstractmethod
    def insert(self, head: Head, rows: Mapping[str, Mapping[str, bytes]]) -> bool:
        """Write a new run with its rows by kind and key; False, and nothing is written, if there is
        one of this id that has not expired. One that has is replaced."""

    @abstractmethod
    def snapshot(
        self, run: str, kinds: Sequence[str]
    ) -> tuple[Head, dict[str, dict[str, bytes]]] | None:
        """The head of a run and all its rows of these kinds, as of one moment."""

    @abstractmethod
    def rows(self, run: str, kind: str, keys: Sequence[str] | None) -> Mapping[str, bytes]:
        """Rows of one kind: those with these keys, or with None all; none of a run that is not
        there."""

    @abstractmethod
    def heads(self, before: tuple[float, str] | None, count: int) -> list[Head]:
        """At most *count* heads, ordered by (``created_at``, ``run``), the last first; those that
        come after *before* in that order."""

    # delete, renew, owners and retire are a store's own, too.

    # --- the life of a run -------------------------------------------------------------------

    def create(
        self,
        run: str,
        meta: bytes,
        pages: Mapping[str, bytes],
        jobs: int,
        *,
        name: str | None = None,
        tags: Sequence[str] = (),
        data: Mapping[str, bytes] = NOTHING,
        ends: Iterable[State] = (),
        due: Mapping[str, float] = NOTHING,
    ) -> None:
        now = time.time()
        kinds = tuple(state.value for state in ends)
        head = Head(run, meta, name, tuple(tags), kinds, jobs, jobs, created_at=now)
        rows = Rows(head, lambda kind, keys: {})
        for key, since in due.items():
            rows.put("due", key, Due(since).dumps())
        if not jobs:
            _end(rows, State.SUCCEEDED)
        self._touch(head)
        written = {kind: dict(_present(changed)) for kind, changed in rows.changed.items()}
        if not self.insert(head, {"page": pages, "data": data, **written}):
            raise AlreadyEngaged(f"a run with the id {run!r} exists")
        if head.state in ENDED:
            self.notify(run)

    def begin(self, claim: Claim) -> Begun:
        with self.transaction(claim.run, _asked(claim)) as rows:
            if rows is None or rows.head.drops(claim.generation):
                return Begun(Verdict.DROP)
            self._renew(rows.head)
            for key in claim.receipts:
                rows.put("due", key, None)
            if rows.get("result", claim.address) is not None:
                return Begun(Verdict.DONE)
            if rows.head.state is State.SUCCEEDED or _is_superfluous(rows, claim):
                return Begun(Verdict.DROP)
            failure = rows.get("failure", claim.address)
            if failure is not None:
                attempt, final, _ = _flags(failure)
                if final or attempt > claim.turn // TURNS:
                    return Begun(Verdict.DROP)
            held = rows.get("held", claim.address)
            if held is not None:
                return Begun(Verdict.RUN, held)
            lapses = 0
            row = rows.get("lease", claim.address)
            if row is not None:
                lease = Lease.loads(row)
                if claim.turn > lease.turn:
                    lapses = lease.lapses
                elif lease.owner in (claim.lapsed, NOBODY):
                    lapses = lease.lapses + 1
                else:
                    return Begun(Verdict.BUSY, owner=lease.owner)
                if lapses >= claim.limit:
                    return Begun(Verdict.GIVE_UP)
            lease = Lease(claim.owner, claim.turn, lapses, time.time(), claim.page)
            rows.put("lease", claim.address, lease.dumps())
            return Begun(Verdict.RUN)

    def complete(self, done: Completion) -> Completed:
        with self.transaction(done.run, _completed(done)) as rows:
            if rows is None:
                return Completed(-1)
            head = rows.head
            fresh = rows.get("result", done.address) is None
            settled = self._completed(rows, done) if fresh else []
            due = _new(rows) if fresh else _due(rows, done.address)
            answer = Completed(
                remaining=head.remaining,
                fresh=fresh,
                generation=head.generation,
                succeeded=head.state is State.SUCCEEDED and head.ender == (done.token or None),
                settled=tuple(settled),
                due=due,
                pages=_pages(rows, due),
                unusual=rows.get("barrier", UNUSUAL) is not None,
            )
        if fresh:
            self.notify(done.run)
        return answer

    def _completed(self, rows: Rows, done: Completion) -> list[str]:
        """Record a result; the steps that have settled with it."""
        head, address = rows.head, done.address
        rows.put("result", address, done.value)
        rows.put("info", address, done.info)
        rows.put("lease", address, None)
        _drop_checkpoint(rows, address)
        for key, value in done.changes.items():
            rows.put("data", key, value)
        _add_jobs(rows, done.jobs, done.skips)
        if not _finish(rows, address):
            _done(rows, done.counts)
        if done.growth is not None:
            _grow(rows, done.growth, address)
        if done.next is not None and _goes_on(head):
            _put_due(rows, done.next[0], done.next[1], address)
        settled: list[str] = []
        if done.settles:
            _settle(rows, done.settles, done, settled, failed=False)
        _count_towards(rows, done.barriers, done, settled)
        if done.stop is not None:
            rows.put("result", STOPPED, done.stop)
            _end_early(rows, done)
        if not head.remaining and head.state is State.RUNNING:
            _end(rows, State.SUCCEEDED, done.token, address)
        self._touch(head)
        _drain(head)
        return settled

    def fail(self, failed: Attempted) -> Failed:
        with self.transaction(failed.run, _failed(failed)) as rows:
            if rows is None:
                return Failed()
            rows.put("lease", failed.address, None)
            head = rows.head
            if head.generation != failed.generation:
                return Failed()
            known = rows.get("failure", failed.address)
            before = (0, False) if known is None else _flags(known)[:2]
            news = before < (failed.attempt, failed.final)
            if before[1] and not failed.final:
                news = False  # a job that is dead stays so until it has a result
            settled = self._failed(rows, failed, known) if news else []
            retry = failed.retry[0] if failed.retry else ""
            due: tuple[str, ...] = ()
            if news:
                due = _new(rows)
            elif before == (failed.attempt, failed.final):
                # A copy; what a later attempt finds due it sends itself.
                due = _due(rows, failed.address)
            due = tuple(key for key in due if key != retry)
            ended = head.ender == (failed.token or None)
            answer = Failed(
                recorded=news,
                died=ended and head.state is State.FAILED,
                succeeded=ended and head.state is State.SUCCEEDED,
                tolerated=_is_tolerated(rows, failed.address),
                settled=tuple(settled),
                due=due,
                pages=_pages(rows, due),
                unusual=rows.get("barrier", UNUSUAL) is not None,
            )
        if news:
            self.notify(failed.run)
        return answer

    def _failed(self, rows: Rows, failed: Attempted, known: bytes | None) -> list[str]:
        """Record a failure that is news; the steps that have settled with it."""
        head, address = rows.head, failed.address
        finished = int(rows.get("result", address) is not None)
        if known is not None and not _flags(known)[2]:
            _count(head, known, -1)
        settled: list[str] = []
        dead = failed.final and not finished
        over: Tolerance | None = None
        if dead:
            over = _tolerate(rows, failed, settled)
            finished = TOLERATED if over else 0
        row = b"%d %d %d\n" % (failed.attempt, failed.final, finished) + failed.failure
        rows.put("failure", address, row)
        if not finished:
            _count(head, row, +1)
            if failed.retry and not failed.final and _goes_on(head):
                _put_due(rows, failed.retry[0], failed.retry[1], address)
            if failed.final and head.state is State.RUNNING:
                _end(rows, State.FAILED, failed.token, address)
        for settles in failed.settles:
            _settle(rows, settles, failed, settled, failed=True)
        if dead:
            _end_turns(rows, failed, over)
        if not head.remaining and head.state is State.RUNNING:
            _end(rows, State.SUCCEEDED, failed.token, address)
        self._touch(head)
        _drain(head)
        return settled

    def checkpoint(
        self, run: str, address: str, held: bytes, generation: int, due: Sequence[str] = ()
    ) -> bool:
        with self.transaction(run) as rows:
            if rows is None or rows.head.drops(generation):
                return False
            if rows.get("result", address) is not None:
                return False
            rows.put("held", address, held)
            rows.put("lease", address, None)
            for key in due:
                _put_due(rows, key, time.time(), address)
            self._touch(rows.head)
            return True

    def report(
        self, run: str, address: str, child: str, outcome: bytes
    ) -> tuple[bytes, dict[str, bytes]] | None:
        with self.transaction(run) as rows:
            held = None if rows is None else rows.get("held", address)
            if rows is None or held is None:
                return None
            key = f"{address} {child}"
            if child and rows.get("child", key) is None:
                rows.put("child", key, outcome)
            self._touch(rows.head)
            return held, _children(rows, address)

    def release(self, run: str, address: str, owner: str, turn: int) -> None:
        with self.transaction(run) as rows:
            row = None if rows is None else rows.get("lease", address)
            if rows is None or row is None:
                return
            lease = Lease.loads(row)
            if (lease.owner, lease.turn) == (owner, turn):
                rows.put("lease", address, replace(lease, owner=NOBODY).dumps())

    def transition(
        self,
        run: str,
        sources: Iterable[State],
        target: State,
        generation: int,
        *,
        retry_tolerated: bool = False,
    ) -> bool:
        if target not in (State.RUNNING, State.CANCELLED):
            raise ValueError(f"a run is {target.value} by what its jobs do, not by a transition")
        with self.transaction(run) as rows:
            if rows is None or rows.head.generation != generation:
                return False
            head = rows.head
            if head.state not in set(sources):
                return False
            if target is State.RUNNING:
                retried = _retry_tolerated(rows) if retry_tolerated else []
                _resume(rows, retried)
            else:
                _forget_messages(rows)
                # Who is to be told of the end was told when the run failed.
                _end(rows, State.CANCELLED, told=head.state is State.FAILED)
            self._touch(head)
        self.notify(run)
        return True

    def skip(self, run: str, address: str, number: int, generation: int) -> None:
        with self.transaction(run) as rows:
            if rows is None or rows.head.generation != generation:
                return
            key = f"taken {address}"
            if rows.number("mark", key) < number:
                rows.put("mark", key, b"%d" % number)

    # --- what is due -------------------------------------------------------------------------

    def remind(self, run: str, due: Mapping[str, float]) -> None:
        with self.transaction(run) as rows:
            if rows is None:
                return
            for key, since in due.items():
                known = rows.get("due", key)
                entry = Due.loads(known) if known is not None else Due(since)
                rows.put("due", key, Due(since, entry.tries, entry.cause).dumps())

    def tried(self, run: str, keys: Sequence[str]) -> None:
        with self.transaction(run) as rows:
            if rows is None:
                return
            for key in keys:
                known = rows.get("due", key)
                if known is not None:
                    entry = Due.loads(known)
                    again = Due(time.time(), entry.tries + 1, entry.cause)
                    rows.put("due", key, again.dumps())

    def published(self, run: str, keys: Sequence[str]) -> None:
        with self.transaction(run) as rows:
            if rows is not None:
                for key in keys:
                    rows.put("due", key, None)

    # --- reading -----------------------------------------------------------------------------

    def page(self, run: str, key: str) -> bytes | MissingType:
        return self.rows(run, "page", [key]).get(key, Missing)

    def values(self, run: str, addresses: Sequence[str]) -> list[bytes | MissingType]:
        found = self.rows(run, "result", addresses) if addresses else {}
        return [found.get(address, Missing) for address in addresses]

    def added(self, run: str) -> dict[str, list[tuple[str, Any]]]:
        start = "added "
        found: dict[str, list[tuple[str, Any]]] = {}
        for key, value in self.rows(run, "barrier", None).items():
            if key.startswith(start):
                branches = orjson.loads(value)
                found[key[len(start) :]] = [(branch, of) for branch, of in branches]
        return found

    def counts(self, run: str, barriers: Sequence[str]) -> list[int]:
        found = self.rows(run, "barrier", barriers) if barriers else {}
        return [int(found.get(name, 0)) for name in barriers]

    def data(self, run: str) -> dict[str, bytes] | None:
        found = self.snapshot(run, ("data",))
        return None if found is None else dict(found[1].get("data", {}))

    def leases(self, run: str) -> dict[str, Lease]:
        found = self.rows(run, "lease", None)
        return {address: _lease(address, value) for address, value in found.items()}

    def infos(self, run: str) -> dict[str, bytes]:
        return dict(self.rows(run, "info", None))

    def read(self, run: str) -> Record | None:
        found = self.snapshot(run, ("failure", "held", "due"))
        return None if found is None else record(*found)

    def brief(self, run: str) -> Record | None:
        found = self.snapshot(run, ())
        return None if found is None else record(*found)

    def failures(self, run: str, count: int = 500) -> Iterator[tuple[str, bytes, bool]]:
        for rows in self.some_rows(run, "failure", count):
            for address, value in rows.items():
                try:
                    finished = bool(_flags(value)[2])
                except ValueError as exc:
                    what = f"the failure of job {address} of run {run!r} cannot be read: {exc!r}"
                    raise CorruptRecord(what) from None
                yield address, value.partition(b"\n")[2], finished

    def some_rows(self, run: str, kind: str, count: int) -> Iterator[Mapping[str, bytes]]:
        """All rows of one kind, about *count* at a time; each is seen once. This one has them all
        in memory."""
        yield self.rows(run, kind, None)

    def scan(
        self,
        cursor: str = "",
        count: int = 100,
        *,
        state: State | None = None,
        name: str | None = None,
        tag: str | None = None,
    ) -> tuple[list[Summary], str]:
        page, following = listing(self.heads(position(cursor), count + 1), count)
        return [each for each in page if each.matches(state, name, tag)], following

    def notify(self, run: str) -> None:
        """Tell who waits for the run, or watches it, that it has changed."""

    def _renew(self, head: Head) -> None:
        """Renew the time to live of a run, unless that was done just now."""
        lately = min(RENEWED, self.options.kept(head.state) / 100)
        if abs(time.time() - head.updated_at) > lately:
            self._touch(head)

    def _touch(self, head: Head) -> None:
        """Renew the time to live of a run."""
        head.updated_at = time.time()
        head.expires_at = head.updated_at + self.options.kept(head.state)


def position(cursor: str) -> tuple[float, str] | None:
    """What `TransactionalStore.heads` is given for the *cursor* of a listing."""
    created, _, run = cursor.partition(" ")
    return (float(created), run) if cursor else None


def listing(heads: Sequence[Head], count: int) -> tuple[list[Summary], str]:
    """A page of *count* runs, and the cursor for the next one, if there are more *heads*."""
    page = [head.summary() for head in heads[:count]]
    following = f"{page[-1].created_at!r} {page[-1].run}" if len(heads) > count else ""
    return page, following


def record(head: Head, rows: Mapping[str, Mapping[str, bytes]]) -> Record:
    """The record of a run from its rows of the kinds failure, held and due."""
    failures: dict[str, bytes] = {}
    finished: set[str] = set()
    tolerated: set[str] = set()
    try:
        for address, value in rows.get("failure", {}).items():
            failures[address] = value.partition(b"\n")[2]
            flag = _flags(value)[2]
            if flag:
                finished.add(address)
            if flag == TOLERATED:
                tolerated.add(address)
        due = {key: Due.loads(value) for key, value in rows.get("due", {}).items()}
    except ValueError as exc:
        raise CorruptRecord(f"the rows of run {head.run!r} cannot be read: {exc!r}") from None
    return Record(
        run=head.run,
        meta=head.meta,
        state=head.state,
        generation=head.generation,
        jobs=head.jobs,
        remaining=head.remaining,
        failing=head.failing,
        dead=head.dead,
        created_at=head.created_at,
        updated_at=head.updated_at,
        ended_at=head.ended_at,
        failures=failures,
        finished=frozenset(finished),
        tolerated=frozenset(tolerated),
        held=dict(rows.get("held", {})),
        due=due,
    )


# --- what is read for sure -----------------------------------------------------------------------

_OF_JOB = ("result", "failure", "held", "lease")
"""The kinds of which a job has one row."""


def _asked(claim: Claim) -> Wanted:
    """The rows that `TransactionalStore.begin` reads."""
    wanted = {kind: [claim.address] for kind in _OF_JOB}
    barriers = [name for name, _ in claim.unless]
    return {"due": claim.receipts, **wanted, "barrier": barriers}


def _completed(done: Completion) -> Wanted:
    """Those that `TransactionalStore.complete` reads if no barrier opens."""
    wanted = _of_outcome(done.address)
    _add_step(wanted, done.settles)
    for barrier in done.barriers:
        if barrier.width > 1 or barrier.grows:
            wanted["barrier"].append(barrier.name)
        else:
            _add_step(wanted, barrier.settles)
            _add_turn(wanted, barrier.turn)
    return wanted


def _failed(failed: Attempted) -> Wanted:
    """Those that `TransactionalStore.fail` reads."""
    wanted = _of_outcome(failed.address)
    for settles in failed.settles:
        _add_step(wanted, settles)
    for turn in failed.turns:
        _add_turn(wanted, turn)
    if failed.final:
        for tolerance in failed.tolerances:
            wanted["result"].append(tolerance.member)
            wanted["barrier"] += [tolerance.step, f"dead {tolerance.step}"]
    return wanted


def _of_outcome(address: str) -> dict[str, list[str]]:
    wanted = {kind: [address] for kind in _OF_JOB}
    return {**wanted, "barrier": [UNUSUAL], "member": [], "mark": []}


def _add_step(wanted: dict[str, list[str]], settles: Settles | None) -> None:
    if settles is not None:
        wanted["member"].append(f"{settles.step}/{settles.member}")
        wanted["mark"] += [f"{what} {settles.step}" for what in ("settled", "failed", "reported")]


def _add_turn(wanted: dict[str, list[str]], turn: Turn | None) -> None:
    if turn is not None:
        wanted["mark"] += [f"turn {turn.member}", f"taken {turn.address}"]


# --- the rules ---------------------------------------------------------------------------------


def _end(rows: Rows, state: State, token: str = "", cause: str = "", *, told: bool = False) -> None:
    """The run has reached *state*, through the job *cause*; nothing is due if that was *told*."""
    head = rows.head
    head.state, head.ender, head.ended_at = state, token, time.time()
    if state.value in head.ends and not told:
        key = f"death {cause}" if state is State.FAILED else f"end {state.value}"
        _put_due(rows, key, head.ended_at, cause)


def _drain(head: Head) -> None:
    """What still ran when the run failed or was cancelled moves its end."""
    if head.state in (State.FAILED, State.CANCELLED):
        head.ended_at = head.updated_at


def _resume(rows: Rows, retried: Sequence[str]) -> None:
    """The next generation: what is done stays done, the rest is forgotten. So are tolerated deaths
    in the branches *retried*."""
    head = rows.head
    over = [_over(key) for key, value in rows.items("mark").items() if value == OVER]
    tolerated = _tolerated(rows, retried)
    for kind in ("failure", "mark"):
        rows.clear(kind)
    for address, failure in tolerated.items():
        rows.put("failure", address, failure)
    for key in over:
        rows.put("mark", key, OVER)
    _forget_messages(rows)
    for key, value in rows.items("member").items():
        step = key.rpartition("/")[0]
        if value == b"done":
            rows.add("mark", f"settled {step}")
        else:
            rows.put("member", key, None)
    head.generation += 1
    head.state, head.ender, head.ended_at = State.RUNNING, "", None
    head.failing = head.dead = 0
    if not head.remaining or _has_ended(rows):
        _end_early(rows, None)
    else:
        _put_due(rows, ROOT, time.time(), "")


def _tolerated(rows: Rows, retried: Sequence[str]) -> dict[str, bytes]:
    """The failures that the run goes on without, but for those in the branches *retried*."""
    found: dict[str, bytes] = {}
    if rows.get("barrier", UNUSUAL) is None:
        return found
    for address, failure in rows.items("failure").items():
        again = any(f"{address}.".startswith(f"{branch}.") for branch in retried)
        if _flags(failure)[2] == TOLERATED and not again:
            found[address] = failure
    return found


def _forget_messages(rows: Rows) -> None:
    """Pages and jobs are no longer due; who is to be told of what has happened still is."""
    for key in rows.items("due"):
        if not key.startswith(TELLS):
            rows.put("due", key, None)


def _finish(rows: Rows, address: str) -> bool:
    """The job has its result: its failure no longer counts. Whether the job counted as done by
    then, because its death was tolerated."""
    head = rows.head
    failure = rows.get("failure", address)
    if failure is None:
        return False
    attempt, final, finished = _flags(failure)
    if finished:
        return finished == TOLERATED
    _count(head, failure, -1)
    rows.put("failure", address, b"%d %d 1\n" % (attempt, final) + failure.partition(b"\n")[2])
    if head.state is State.FAILED and not head.dead:
        head.state, head.ender, head.ended_at = State.RUNNING, "", None
    return False


def _done(rows: Rows, jobs: int) -> None:
    """So many jobs are done that were to come, or had been given up."""
    if rows.head.remaining:
        rows.head.remaining -= jobs
    elif jobs:
        rows.add("barrier", SKIPPED, -jobs)


def _add_jobs(rows: Rows, jobs: int, skips: int) -> None:
    """There are so many jobs more, and so many of all will not run."""
    head = rows.head
    head.jobs += jobs
    if head.state is State.SUCCEEDED:
        skips += jobs  # it ended before
    else:
        head.remaining += jobs - skips
    if skips:
        rows.add("barrier", SKIPPED, skips)


def _goes_on(head: Head) -> bool:
    """Whether what follows from something is due."""
    return head.state not in (State.CANCELLED, State.SUCCEEDED)


def _end_early(rows: Rows, by: Completion | Attempted | None) -> None:
    """The run has succeeded if it runs; what remains is skipped."""
    head = rows.head
    if head.state is not State.RUNNING:
        return
    if head.remaining:
        rows.add("barrier", SKIPPED, head.remaining)
        head.remaining = 0
    if by is None:
        _end(rows, State.SUCCEEDED)
    else:
        _end(rows, State.SUCCEEDED, by.token, by.address)


def _has_ended(rows: Rows) -> bool:
    """Whether the run would have succeeded, had it not been cancelled or failed by then."""
    return rows.get("barrier", END) is not None or rows.get("result", STOPPED) is not None


def _count(head: Head, failure: bytes, by: int) -> None:
    """Count a job without a result as dead or failing."""
    if _flags(failure)[1]:
        head.dead += by
    else:
        head.failing += by


def _count_towards(
    rows: Rows,
    barriers: Iterable[Barrier],
    by: Completion | Attempted,
    settled: list[str],
    opened: Iterable[str] = (),
) -> None:
    """Count one for each of *barriers* whose gate is open, and open those that wait for no more.

    *opened* are gates that are open already.
    """
    gates = {"", *opened}
    for barrier in barriers:
        if barrier.gate not in gates or not _is_full(rows, barrier):
            continue
        if barrier.closes and rows.get("result", barrier.name) is not None:
            continue
        gates.add(barrier.name)
        _open(rows, barrier, by, settled)


def _is_full(rows: Rows, barrier: Barrier) -> bool:
    """Count one for *barrier*; whether it is the last."""
    if barrier.width == 1 and not barrier.grows:
        return True
    count = rows.add("barrier", barrier.name)
    if count < barrier.width:
        return False
    return count == barrier.width + rows.number("barrier", f"more {barrier.name}")


def _open(rows: Rows, barrier: Barrier, by: Completion | Attempted, settled: list[str]) -> None:
    """All that *barrier* waits for is done."""
    if barrier.settles:
        _settle(rows, barrier.settles, by, settled, failed=False)
    if barrier.turn:
        _take_turn(rows, barrier.turn, by, over=True)
    if barrier.then == END:
        rows.put("barrier", END, b"1")
        _end_early(rows, by)
    elif barrier.then and _goes_on(rows.head):
        _put_due(rows, barrier.then, time.time(), by.address)


def _is_superfluous(rows: Rows, claim: Claim) -> bool:
    """Whether the job need not start: enough has been done without it."""
    return any(rows.number("barrier", name) >= enough for name, enough in claim.unless)


def _tolerate(rows: Rows, failed: Attempted, settled: list[str]) -> Tolerance | None:
    """Let the run go on without a branch of the dead job, if it may; which."""
    for tolerance in failed.tolerances:
        rows.put("barrier", UNUSUAL, b"1")
        if rows.get("result", tolerance.member) is not None:
            _done(rows, 1)
            return tolerance  # by another death
        if tolerance.need and rows.number("barrier", tolerance.step) >= tolerance.need:
            _done(rows, 1)
            return tolerance
        died = f"dead {tolerance.step}"
        if rows.number("barrier", died) < tolerance.limit:
            rows.add("barrier", died)
            rows.put("result", tolerance.member, failed.stand_in)
            width = tolerance.barriers[0].width if tolerance.barriers else tolerance.need
            counts = int(bool(tolerance.barriers))
            known = f"{width} {counts} {tolerance.step}".encode()
            rows.put("barrier", f"tolerated {tolerance.member}", known)
            _done(rows, 1)
            gate = (tolerance.member,)
            _count_towards(rows, tolerance.barriers, failed, settled, gate)
            return tolerance
    return None


def _is_tolerated(rows: Rows, address: str) -> bool:
    """Whether the job is dead, and the run goes on without its branch."""
    failure = rows.get("failure", address)
    return failure is not None and _flags(failure)[2] == TOLERATED


def _end_turns(rows: Rows, failed: Attempted, tolerance: Tolerance | None) -> None:
    """The branches that are over with a death: those around the job, up to the one that is
    tolerated."""
    for turn in failed.turns:
        member = turn.member
        if tolerance is None:
            _take_turn(rows, turn, failed, over=False)
        elif member == tolerance.member:
            _take_turn(rows, turn, failed, over=True)
        elif member.startswith(f"{tolerance.member}."):
            _take_turn(rows, turn, failed, over=False)


def _retry_tolerated(rows: Rows) -> list[str]:
    """Forget the deaths that were tolerated in parallels which wait for more branches; the
    addresses of these."""
    start = "tolerated "
    retried: list[str] = []
    for key, value in rows.items("barrier").items():
        if not key.startswith(start):
            continue
        member = key[len(start) :]
        width, counts, step = value.decode().split(" ", 2)
        enough = int(width) + rows.number("barrier", f"more {step}")
        if rows.number("barrier", step) >= enough:
            continue
        rows.put("barrier", key, None)
        rows.put("result", member, None)
        rows.put("mark", _over(f"turn {member}"), None)
        rows.add("barrier", f"dead {step}", -1)
        rows.add("barrier", step, -int(counts))
        rows.head.remaining += 1
        retried.append(member)
    return retried


def _grow(rows: Rows, growth: Growth, cause: str) -> None:
    """Branches are added to a parallel."""
    rows.put("barrier", UNUSUAL, b"1")
    for name, more in growth.barriers.items():
        rows.add("barrier", f"more {name}", more)
    key = f"added {growth.step}"
    added = orjson.loads(rows.get("barrier", key) or b"[]")
    rows.put("barrier", key, orjson.dumps([*added, *growth.branches]))
    for page, data in growth.pages.items():
        rows.put("page", page, data)
    _add_jobs(rows, growth.jobs, 0)
    if not _goes_on(rows.head):
        return
    for page in growth.due:
        _put_due(rows, f"page {page}", time.time(), cause)
    if growth.limit:
        _use_idle(rows, growth, len(added), cause)


def _use_idle(rows: Rows, growth: Growth, before: int, cause: str) -> None:
    """Start as many of the branches added as had no branch left to start when another was over."""
    idle = f"idle {growth.step}"
    taken = f"taken {growth.step}"
    free = min(rows.number("mark", idle), len(growth.branches))
    for index in range(free):
        branch = growth.branches[index][0]
        _put_due(rows, f"page {growth.step}/{branch}", time.time(), cause)
    if free:
        rows.add("mark", idle, -free)
        number = max(rows.number("mark", taken), growth.width + before)
        rows.put("mark", taken, b"%d" % (number + free))


def _settle(
    rows: Rows,
    settles: Settles,
    by: Completion | Attempted,
    settled: list[str],
    *,
    failed: bool,
) -> None:
    """Count a member of a step, once; what follows when the last has settled."""
    step, key = settles.step, f"{settles.step}/{settles.member}"
    known = rows.get("member", key)
    if not failed:
        rows.put("member", key, b"done")
    elif known is None:
        rows.put("member", key, b"failed")
    count = rows.number("mark", f"settled {step}")
    if known is None:
        count = rows.add("mark", f"settled {step}")
    if failed and settles.loud:
        rows.put("mark", f"failed {step}", b"1")
    width = settles.width
    if rows.get("barrier", UNUSUAL) is not None:
        width += len(orjson.loads(rows.get("barrier", f"added {step}") or b"[]"))
    if count < width:
        return
    if known is None:
        settled.append(step)
    reported = rows.get("mark", f"reported {step}") or rows.head.state is State.CANCELLED
    if rows.get("mark", f"failed {step}") and not reported:
        rows.put("mark", f"reported {step}", b"1")
        _put_due(rows, f"failure {step}", time.time(), by.address)


def _take_turn(rows: Rows, turn: Turn, by: Completion | Attempted, *, over: bool) -> None:
    """A branch is over, for good or by a death: the next one of its parallel that is not is due."""
    key, wanted = f"turn {turn.member}", _goes_on(rows.head)
    known = rows.get("mark", key)
    if over:
        rows.put("mark", key, OVER)
    elif known is None and wanted:
        rows.put("mark", key, b"dead")
    if known is not None or not wanted:
        return
    key = f"taken {turn.address}"
    number = max(rows.number("mark", key), turn.limit)
    if rows.head.generation:
        number = _not_over(rows, turn, number)
    if number < turn.width:
        rows.put("mark", key, b"%d" % (number + 1))
        _put_due(rows, f"page {turn.address}/{number}", time.time(), by.address)
        return
    added = orjson.loads(rows.get("barrier", f"added {turn.address}") or b"[]")
    if number - turn.width < len(added):
        rows.put("mark", key, b"%d" % (number + 1))
        branch = added[number - turn.width][0]
        _put_due(rows, f"page {turn.address}/{branch}", time.time(), by.address)
    else:
        rows.put("mark", key, b"%d" % number)
        rows.add("mark", f"idle {turn.address}")


def _not_over(rows: Rows, turn: Turn, number: int) -> int:
    """The first branch from *number* on that was not over when the run was resumed."""
    while number < turn.width:
        marks = [f"over {turn.address}.{number + each}" for each in range(100)]
        rows.fetch("mark", marks)
        for mark in marks:
            if not rows.get("mark", mark):
                return number
            number += 1
    return number


def _over(key: str) -> str:
    """What stays, when the run is resumed, of the mark that a branch is over."""
    return f"over {key.partition(' ')[2]}"


def _put_due(rows: Rows, key: str, since: float, cause: str) -> None:
    rows.put("due", key, Due(since, 0, cause).dumps())


def _new(rows: Rows) -> tuple[str, ...]:
    """What has become due in this transaction."""
    changed = rows.changed.get("due", {})
    return tuple(sorted(key for key, value in changed.items() if value is not None))


def _due(rows: Rows, cause: str) -> tuple[str, ...]:
    """What is due that follows from the job *cause*."""
    found = [key for key, value in rows.items("due").items() if Due.loads(value).cause == cause]
    return tuple(sorted(found))


def _pages(rows: Rows, due: Sequence[str]) -> dict[str, bytes]:
    """The pages that are due."""
    keys = [key.partition(" ")[2] for key in due if key.startswith("page ")]
    rows.fetch("page", keys)
    return dict(_present({key: rows.get("page", key) for key in keys}))


def _drop_checkpoint(rows: Rows, address: str) -> None:
    """The job has completed: what it has put away, and what was reported to it, is over."""
    if rows.get("held", address) is None:
        return
    rows.put("held", address, None)
    for child in _children(rows, address):
        rows.put("child", f"{address} {child}", None)


def _children(rows: Rows, address: str) -> dict[str, bytes]:
    """What was reported to the job at *address*, by child."""
    found: dict[str, bytes] = {}
    for key, value in rows.items("child").items():
        job, _, child = key.partition(" ")
        if job == address:
            found[child] = value
    return found


def _flags(failure: bytes) -> tuple[int, bool, int]:
    """The attempt of a failure, whether it was final, and whether the job counts as done since: 1
    for a result, `TOLERATED` for a tolerated death."""
    attempt, final, finished = failure.partition(b"\n")[0].split()
    return int(attempt), final == b"1", int(finished)


def _lease(address: str, value: bytes) -> Lease:
    try:
        return Lease.loads(value)
    except ValueError as exc:
        raise CorruptRecord(f"the lease of job {address} cannot be read: {exc!r}") from None


def _present(rows: Mapping[str, bytes | None]) -> Iterable[tuple[str, bytes]]:
    return ((key, value) for key, value in rows.items() if value is not None)
