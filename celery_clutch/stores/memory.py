"""``memory://``: runs in this process, for tests, eager mode and the embedded worker."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import AlreadyEngaged
from ..status import State
from .base import (
    ENDED,
    Begun,
    Completed,
    Failed,
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
    reporter: str | None = None


@dataclass
class _Run:
    meta: bytes
    pages: dict[str, bytes]
    remaining: int
    name: str | None
    tags: tuple[str, ...]
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
    starts: dict[str, int] = field(default_factory=dict)
    steps: dict[str, _Step] = field(default_factory=dict)

    def unfinished(self, *, final: bool) -> int:
        return sum(
            key[1] is final and address not in self.finished
            for address, (key, _) in self.failures.items()
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
        name: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        with self._changed:
            if self._get(run) is not None:
                raise AlreadyEngaged(f"a run with the id {run!r} exists")
            new = self._runs[run] = _Run(meta, dict(pages), units, name, tuple(tags))
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
            if found is None or found.state is State.CANCELLED or found.generation != generation:
                return Begun(Verdict.DROP)
            if slot in found.results:
                return Begun(Verdict.DONE)
            self._touch(found)
            held = found.held.get(address)
            if held is not None:
                return Begun(Verdict.RUN, held)
            starts = found.starts[address] = found.starts.get(address, 0) + 1
            return Begun(Verdict.GIVE_UP if starts > limit else Verdict.RUN)

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
                found.starts.pop(address, None)
                found.held.pop(address, None)
                if address in found.failures:
                    found.finished.add(address)
                    if found.state is State.FAILED and not found.unfinished(final=True):
                        found.state, found.ended_at = State.RUNNING, None
                if not found.remaining and found.state is State.RUNNING:
                    self._end(found, State.SUCCEEDED, token)
                self._touch(found)
            report = ""
            if settles and generation == found.generation:
                report = self._settle(found, settles, token, failed=False)
            succeeded = found.state is State.SUCCEEDED and found.ender == token
            return Completed(found.remaining, fresh, succeeded, report)

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
                found.starts.pop(address, None)
                if slot in found.results:
                    found.finished.add(address)
                elif final and found.state is State.RUNNING:
                    self._end(found, State.FAILED, token)
                self._touch(found)
            died = found.state is State.FAILED and found.ender == token
            reports = [self._settle(found, each, token, failed=True) for each in settles]
            return Failed(news, died, tuple(filter(None, reports)))

    def values(self, run: str, slots: Sequence[str]) -> list[bytes | MissingType]:
        with self._changed:
            found = self._get(run)
            results = found.results if found else {}
            return [results.get(slot, Missing) for slot in slots]

    def hold(self, run: str, address: str, held: bytes) -> None:
        with self._changed:
            if found := self._get(run):
                found.held[address] = held
                found.starts.pop(address, None)
                self._touch(found)

    def transition(
        self, run: str, sources: Iterable[State], target: State, generation: int
    ) -> bool:
        with self._changed:
            found = self._get(run)
            if found is None or found.generation != generation or found.state not in set(sources):
                return False
            if target is State.RUNNING:
                found.generation += 1
                found.failures.clear()
                found.finished.clear()
                found.starts.clear()
                found.steps.clear()
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

    def scan(self, cursor: str = "", count: int = 100) -> tuple[list[Summary], str]:
        with self._changed:
            runs = [
                (found.created_at, run) for run in list(self._runs) if (found := self._get(run))
            ]
            runs.sort(reverse=True)
            if cursor:
                at, _, last = cursor.partition(" ")
                runs = [entry for entry in runs if entry < (float(at), last)]
            page = [
                Summary(run, self._runs[run].name, self._runs[run].tags, self._runs[run].state, at)
                for at, run in runs[:count]
            ]
            more = len(runs) > count
            return page, f"{page[-1].created_at!r} {page[-1].run}" if more else ""

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

    def _settle(self, found: _Run, settles: Settles, token: str, *, failed: bool) -> str:
        step = found.steps.setdefault(settles.step, _Step())
        step.settled.add(settles.member)
        step.failed |= failed and settles.loud
        if len(step.settled) < settles.width or not step.failed:
            return ""
        if step.reporter is None:
            step.reporter = token
        return settles.step if step.reporter == token else ""
