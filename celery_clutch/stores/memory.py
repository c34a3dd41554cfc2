"""``memory://``: runs in this process, for tests, eager mode and the embedded worker."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import AlreadyEngaged
from ..model.status import State
from .base import (
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
    ResultStore,
    Settles,
    StoreOptions,
    Summary,
    Verdict,
)


@dataclass
class _Step:
    settled: set[str] = field(default_factory=set)
    failed: bool = False
    full: str | None = None  # the token of the call that settled the last member
    reporter: str | None = None


@dataclass
class _Barrier:
    slots: set[str] = field(default_factory=set)
    opener: str | None = None  # the address that opened it


@dataclass
class _Counter:
    taken: int = 0
    lanes: dict[str, tuple[int, int]] = field(default_factory=dict)  # after which, number


@dataclass
class _Run:
    meta: bytes
    pages: dict[str, bytes]
    remaining: int
    jobs: int
    name: str | None
    tags: tuple[str, ...]
    data: dict[str, bytes]
    state: State = State.RUNNING
    generation: int = 0
    done: int = 0
    created_at: float = field(default_factory=time.time)
    updated_at: float = 0.0
    ended_at: float | None = None
    ender: str | None = None  # the token of the call that ended it
    expires_at: float = 0.0
    results: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, tuple[tuple[int, bool], bytes]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    held: dict[str, bytes] = field(default_factory=dict)
    executions: dict[str, Execution] = field(default_factory=dict)
    steps: dict[str, _Step] = field(default_factory=dict)
    barriers: dict[str, _Barrier] = field(default_factory=dict)
    counters: dict[str, _Counter] = field(default_factory=dict)

    def unfinished(self, *, final: bool) -> int:
        return sum(
            key[1] is final and address not in self.finished
            for address, (key, _) in self.failures.items()
        )

    def drops(self, generation: int) -> bool:
        return self.state is State.CANCELLED or self.generation != generation

    def stop(self, address: str) -> None:
        """Forget the starts of *address*."""
        before = self.executions.pop(address, None)
        if before and before.info is not None:
            self.executions[address] = Execution(info=before.info)

    def summary(self, run: str) -> Summary:
        return Summary(
            run=run,
            name=self.name,
            tags=self.tags,
            state=self.state,
            jobs=self.jobs,
            done=self.done,
            failing=self.unfinished(final=False),
            dead=self.unfinished(final=True),
            created_at=self.created_at,
            updated_at=self.updated_at,
            ended_at=self.ended_at,
        )


class MemoryStore(ResultStore):
    """Runs in a dict behind a lock. Each instance is a world of its own."""

    def __init__(self, url: str = "memory://", options: StoreOptions = StoreOptions()) -> None:
        super().__init__(url, options)
        self._runs: dict[str, _Run] = {}
        self._changed = threading.Condition()

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
        with self._changed:
            if self._get(run) is not None:
                raise AlreadyEngaged(f"a run with the id {run!r} exists")
            new = _Run(meta, dict(pages), units, jobs, name, tuple(tags), dict(data))
            self._runs[run] = new
            if not units:
                self._end(new, State.SUCCEEDED)
            self._touch(new)

    def page(self, run: str, key: str) -> bytes | MissingType:
        with self._changed:
            found = self._get(run)
            return Missing if found is None else found.pages.get(key, Missing)

    def begin(self, run: str, address: str, slot: str, generation: int, limit: int) -> Begun:
        with self._changed:
            found = self._get(run)
            if found is None or found.drops(generation):
                return Begun(Verdict.DROP)
            if slot in found.results:
                return Begun(Verdict.DONE)
            self._touch(found)
            held = found.held.get(address)
            if held is not None:
                return Begun(Verdict.RUN, held)
            before = found.executions.get(address, Execution())
            if before.starts >= limit:
                return Begun(Verdict.GIVE_UP)
            found.executions[address] = Execution(before.starts + 1, time.time(), before.info)
            return Begun(Verdict.RUN)

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
        with self._changed:
            found = self._get(run)
            if found is None:
                return Completed(-1)
            fresh = slot not in found.results
            if fresh:
                found.results[slot] = value
                found.remaining -= 1
                found.done += job
                found.executions[address] = Execution(info=info)
                for key, changed in changes.items():
                    found.data.pop(key, None)
                    if changed is not None:
                        found.data[key] = changed
                found.held.pop(address, None)
                if address in found.failures:
                    found.finished.add(address)
                    if found.state is State.FAILED and not found.unfinished(final=True):
                        found.state, found.ended_at = State.RUNNING, None
                if not found.remaining and found.state is State.RUNNING:
                    self._end(found, State.SUCCEEDED, token)
                self._touch(found)
            report = settled = False
            if settles and generation == found.generation:
                report, settled = self._settle(found, settles, token, failed=False)
            step = settles.step if settles else ""
            return Completed(
                remaining=found.remaining,
                fresh=fresh,
                succeeded=found.state is State.SUCCEEDED and found.ender == token,
                report=step if report else "",
                settled=step if settled else "",
                joined=generation == found.generation and self._join(found, joins, slot, address),
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
        with self._changed:
            found = self._get(run)
            if found is None or found.generation != generation:
                return Failed()
            known = found.failures.get(address)
            news = known is None or known[0] < (attempt, final)
            if news:
                found.failures[address] = (attempt, final), failure
                found.stop(address)
                if slot in found.results:
                    found.finished.add(address)
                elif final and found.state is State.RUNNING:
                    self._end(found, State.FAILED, token)
                self._touch(found)
            died = found.state is State.FAILED and found.ender == token
            told = [(each.step, self._settle(found, each, token, failed=True)) for each in settles]
            reports = tuple(step for step, (report, _) in told if report)
            return Failed(news, died, reports, tuple(step for step, (_, full) in told if full))

    def values(self, run: str, slots: Sequence[str]) -> list[bytes | MissingType]:
        with self._changed:
            found = self._get(run)
            results = found.results if found else {}
            return [results.get(slot, Missing) for slot in slots]

    def hold(self, run: str, address: str, held: bytes) -> None:
        with self._changed:
            if found := self._get(run):
                found.held[address] = held
                found.stop(address)
                self._touch(found)

    def take(self, run: str, key: str, lane: str, after: int, generation: int) -> int:
        with self._changed:
            found = self._get(run)
            if found is None or found.drops(generation):
                return -1
            counter = found.counters.setdefault(key, _Counter())
            last, number = counter.lanes.get(lane, (None, -1))
            if after == number:
                number, counter.taken = counter.taken, counter.taken + 1
                counter.lanes[lane] = after, number
            elif after != last:
                return -1
            self._touch(found)
            return number

    def data(self, run: str) -> dict[str, bytes] | None:
        with self._changed:
            found = self._get(run)
            return None if found is None else dict(found.data)

    def executions(self, run: str) -> dict[str, Execution]:
        with self._changed:
            found = self._get(run)
            return {} if found is None else dict(found.executions)

    def transition(
        self, run: str, sources: Iterable[State], target: State, generation: int
    ) -> bool:
        with self._changed:
            found = self._get(run)
            if found is None or found.generation != generation or found.state not in set(sources):
                return False
            if target is State.RUNNING:
                found.generation += 1
                for address in list(found.executions):
                    found.stop(address)
                forgotten = (found.failures, found.finished, found.steps, found.barriers)
                for marks in (*forgotten, found.counters):
                    marks.clear()
                found.state, found.ended_at = State.RUNNING, None
                if not found.remaining:
                    self._end(found, State.SUCCEEDED)
            else:
                self._end(found, target)
            self._touch(found)
            return True

    def read(self, run: str) -> Record | None:
        with self._changed:
            found = self._get(run)
            if found is None:
                return None
            return Record(
                run=run,
                meta=found.meta,
                state=found.state,
                generation=found.generation,
                remaining=found.remaining,
                done=found.done,
                failing=found.unfinished(final=False),
                dead=found.unfinished(final=True),
                created_at=found.created_at,
                updated_at=found.updated_at,
                ended_at=found.ended_at,
                failures={address: data for address, (_, data) in found.failures.items()},
                finished=frozenset(found.finished),
                held=dict(found.held),
            )

    def scan(
        self,
        cursor: str = "",
        count: int = 100,
        *,
        state: State | None = None,
        name: str | None = None,
        tag: str | None = None,
    ) -> tuple[list[Summary], str]:
        with self._changed:
            runs = [
                (found.created_at, run) for run in list(self._runs) if (found := self._get(run))
            ]
            runs.sort(reverse=True)
            if cursor:
                at, _, last = cursor.partition(" ")
                runs = [entry for entry in runs if entry < (float(at), last)]
            page = [self._runs[run].summary(run) for _, run in runs[:count]]
            following = "{!r} {}".format(*runs[count - 1]) if len(runs) > count else ""
            return [each for each in page if each.matches(state, name, tag)], following

    def delete(self, run: str) -> bool:
        with self._changed:
            existed = self._get(run) is not None
            self._runs.pop(run, None)
            self._changed.notify_all()
            return existed

    def wait(self, run: str, timeout: float | None = None) -> State | None:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            while found := self._get(run):
                left = deadline - time.monotonic()
                if found.state in ENDED or left <= 0:
                    return found.state
                # A run that expires meanwhile wakes nobody up.
                self._changed.wait(min(left, found.expires_at - time.time(), 3600))
            return None

    def _get(self, run: str) -> _Run | None:
        found = self._runs.get(run)
        if found is not None and found.expires_at and found.expires_at <= time.time():
            del self._runs[run]
            return None
        return found

    def _touch(self, found: _Run) -> None:
        found.updated_at = time.time()
        ended = found.state in ENDED
        ttl = self.options.result_ttl if ended else self.options.ttl
        found.expires_at = found.updated_at + ttl

    def _end(self, found: _Run, state: State, token: str | None = None) -> None:
        found.state, found.ender = state, token
        found.ended_at = time.time()
        self._changed.notify_all()

    def _settle(
        self, found: _Run, settles: Settles, token: str, *, failed: bool
    ) -> tuple[bool, bool]:
        """Count a member: whether *token* is to report the step, and whether it settled it."""
        step = found.steps.setdefault(settles.step, _Step())
        step.settled.add(settles.member)
        step.failed |= failed and settles.loud
        if len(step.settled) < settles.width:
            return False, False
        step.full = step.full or token
        if step.failed:
            step.reporter = step.reporter or token
        return step.reporter == token, step.full == token

    def _join(self, found: _Run, joins: Joins | None, slot: str, address: str) -> bool:
        if joins is None:
            return False
        barrier = found.barriers.setdefault(joins.barrier, _Barrier())
        barrier.slots.add(slot)
        if len(barrier.slots) >= joins.width:
            barrier.opener = barrier.opener or address
        return barrier.opener == address
