"""The rules of a run, once, over the rows of one transaction. Pure; knows no database.

A store author derives from `TransactionalStore` and says how rows are read and written; `Redis` and
PostgreSQL have `begin`, `complete` and `fail` as scripts of their own besides, which the contract
compares with what is here.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import orjson

from ..errors import AlreadyEngaged, CorruptRecord
from ..model.status import State
from . import rules
from .base import (
    ENDED,
    NOBODY,
    NOTHING,
    STOPPED,
    TURNS,
    Attempted,
    Begun,
    Claim,
    Completed,
    Completion,
    Due,
    Failed,
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
from .rows import (
    RENEWED,
    TOLERATED,
    UNUSUAL,
    Head,
    Rows,
    Wanted,
)


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

    def insert_and_push(
        self, head: Head, rows: Mapping[str, Mapping[str, bytes]], queue: str, message: bytes
    ) -> bool:
        """`insert`, and `push` of a message in the same step, if the run is written."""
        raise NotImplementedError(f"{self!r} is no broker")

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
        message: tuple[str, bytes] | None = None,
    ) -> None:
        now = time.time()
        kinds = tuple(state.value for state in ends)
        head = Head(run, meta, name, tuple(tags), kinds, jobs, jobs, created_at=now)
        rows = Rows(head, lambda kind, keys: {})
        for key, since in due.items():
            rows.put("due", key, Due(since).dumps())
        if not jobs:
            rules.end_run(rows, State.SUCCEEDED)
        self._touch(head)
        written = {kind: dict(rules.present(changed)) for kind, changed in rows.changed.items()}
        found = {"page": pages, "data": data, **written}
        if message is None:
            created = self.insert(head, found)
        else:
            created = self.insert_and_push(head, found, *message)
        if not created:
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
            if rows.head.state is State.SUCCEEDED or rules.is_superfluous(rows, claim):
                return Begun(Verdict.DROP)
            failure = rows.get("failure", claim.address)
            if failure is not None:
                attempt, final, _ = rules.flags_of(failure)
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
            due = rules.made_due(rows) if fresh else rules.due_of(rows, done.address)
            answer = Completed(
                remaining=head.remaining,
                fresh=fresh,
                generation=head.generation,
                succeeded=head.state is State.SUCCEEDED and head.ender == (done.token or None),
                settled=tuple(settled),
                due=due,
                pages=rules.pages_of(rows, due),
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
        rules.drop_checkpoint(rows, address)
        for key, value in done.changes.items():
            rows.put("data", key, value)
        rules.add_jobs(rows, done.jobs, done.skips)
        if not rules.finish_job(rows, address):
            rules.count_done(rows, done.counts)
        if done.growth is not None:
            rules.grow(rows, done.growth, address)
        if done.next is not None and rules.goes_on(head):
            rules.put_due(rows, done.next[0], done.next[1], address)
        settled: list[str] = []
        if done.settles:
            rules.settle(rows, done.settles, done, settled, failed=False)
        rules.count_towards(rows, done.barriers, done, settled)
        if done.stop is not None:
            rows.put("result", STOPPED, done.stop)
            rules.end_early(rows, done)
        if not head.remaining and head.state is State.RUNNING:
            rules.end_run(rows, State.SUCCEEDED, done.token, address)
        self._touch(head)
        rules.drain(head)
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
            before = (0, False) if known is None else rules.flags_of(known)[:2]
            news = before < (failed.attempt, failed.final)
            if before[1] and not failed.final:
                news = False  # a job that is dead stays so until it has a result
            settled = self._failed(rows, failed, known) if news else []
            retry = failed.retry[0] if failed.retry else ""
            due: tuple[str, ...] = ()
            if news:
                due = rules.made_due(rows)
            elif before == (failed.attempt, failed.final):
                # A copy; what a later attempt finds due it sends itself.
                due = rules.due_of(rows, failed.address)
            due = tuple(key for key in due if key != retry)
            ended = head.ender == (failed.token or None)
            answer = Failed(
                recorded=news,
                died=ended and head.state is State.FAILED,
                succeeded=ended and head.state is State.SUCCEEDED,
                tolerated=rules.is_tolerated(rows, failed.address),
                settled=tuple(settled),
                due=due,
                pages=rules.pages_of(rows, due),
                unusual=rows.get("barrier", UNUSUAL) is not None,
            )
        if news:
            self.notify(failed.run)
        return answer

    def _failed(self, rows: Rows, failed: Attempted, known: bytes | None) -> list[str]:
        """Record a failure that is news; the steps that have settled with it."""
        head, address = rows.head, failed.address
        finished = int(rows.get("result", address) is not None)
        if known is not None and not rules.flags_of(known)[2]:
            rules.count_failure(head, known, -1)
        settled: list[str] = []
        dead = failed.final and not finished
        over: Tolerance | None = None
        if dead:
            over = rules.tolerate(rows, failed, settled)
            finished = TOLERATED if over else 0
        row = b"%d %d %d\n" % (failed.attempt, failed.final, finished) + failed.failure
        rows.put("failure", address, row)
        if not finished:
            rules.count_failure(head, row, +1)
            if failed.retry and not failed.final and rules.goes_on(head):
                rules.put_due(rows, failed.retry[0], failed.retry[1], address)
            if failed.final and head.state is State.RUNNING:
                rules.end_run(rows, State.FAILED, failed.token, address)
        for settles in failed.settles:
            rules.settle(rows, settles, failed, settled, failed=True)
        if dead:
            rules.end_turns(rows, failed, over)
        if not head.remaining and head.state is State.RUNNING:
            rules.end_run(rows, State.SUCCEEDED, failed.token, address)
        self._touch(head)
        rules.drain(head)
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
                rules.put_due(rows, key, time.time(), address)
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
            return held, rules.children_of(rows, address)

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
                retried = rules.retry_tolerated(rows) if retry_tolerated else []
                rules.resume(rows, retried)
            else:
                rules.forget_messages(rows)
                # Who is to be told of the end was told when the run failed.
                rules.end_run(rows, State.CANCELLED, told=head.state is State.FAILED)
            self._touch(head)
        self.notify(run)
        return True

    def skip(self, run: str, address: str, number: int, generation: int, idle: int = 0) -> None:
        with self.transaction(run) as rows:
            if rows is None or rows.head.generation != generation:
                return
            key = f"taken {address}"
            if rows.number("mark", key) < number:
                rows.put("mark", key, b"%d" % number)
                if idle:
                    rows.add("mark", f"idle {address}", idle)

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
        return {address: rules.read_lease(address, value) for address, value in found.items()}

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
                    finished = bool(rules.flags_of(value)[2])
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
            flag = rules.flags_of(value)[2]
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
