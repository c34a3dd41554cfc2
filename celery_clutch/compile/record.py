"""What celery-clutch itself keeps with a run, and how a record reads as a `Status`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from ..errors import CorruptRecord
from ..model import codec, names
from ..model.plan import EACH, Scope, is_in, scope_to_json, upwards
from ..model.shape import Shape, checked
from ..model.status import Failure, State, Status, isoformat
from ..stores.base import Due, Record, ResultStore, Summary
from ..stores.rows import SKIPPED, UNUSUAL
from .header import Header, job_of
from .instance import indices

SHOWN = 20
"""How many failures, and how many kinds of them, a `Status` has at most."""


@dataclass(frozen=True, slots=True)
class Parent:
    """The running job that nested a run.

    ``quiet``: the nested run reports failures to the parent's ``on_failure``, so the parent does
    not report them again. ``shares``: what it changes of its data goes to the job.
    """

    header: Mapping[str, Any]
    task: str
    task_id: str
    attempt: int
    quiet: bool = False
    shares: bool = False

    def to_status(self) -> dict[str, str]:
        return {"run": self.header["run"], "address": self.header["at"]}


@dataclass(frozen=True, slots=True)
class Held:
    """The checkpoint of a job: what it puts away until it completes.

    Attributes:
        value: its result, as JSON.
        runs: the clutches nested in it, which it waits for.
        changes: its changes to the data of its run.
        info: see `execution_info`.
        links: the signatures that get its value, as Celery serialises them.
        replaced: other tasks stand in its place, and one behind them completes it.
        generation: the one in which they do.
    """

    value: bytes = b""
    runs: tuple[str, ...] = ()
    changes: Mapping[str, bytes | None] = field(default_factory=dict)
    info: bytes = b""
    links: tuple[Any, ...] = ()
    replaced: bool = False
    generation: int = 0

    def dumps(self) -> bytes:
        """As a line of JSON, and the value."""
        head: dict[str, Any] = {"runs": self.runs, "changes": changes_to_json(self.changes)}
        head.update(info=self.info.decode(), replaced=self.replaced, gen=self.generation)
        return codec.encode_plan({**head, "links": self.links}) + b"\n" + self.value

    @classmethod
    def loads(cls, data: bytes) -> Held:
        """What `dumps` wrote."""
        first, _, value = data.partition(b"\n")
        try:
            head = codec.decode_plan(first)
            changes, links = changes_from_json(head["changes"]), tuple(head["links"])
            runs, info = tuple(head["runs"]), head["info"].encode()
            replaced, generation = head["replaced"], int(head["gen"])
            return cls(value, runs, changes, info, links, replaced, generation)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise CorruptRecord(f"the checkpoint of a job cannot be read: {exc!r}") from None


def changes_to_json(changes: Mapping[str, bytes | None]) -> dict[str, str | None]:
    """Changes to shared data, for a JSON document."""
    return {key: None if value is None else value.decode() for key, value in changes.items()}


def changes_from_json(data: Mapping[str, str | None]) -> dict[str, bytes | None]:
    """What `changes_to_json` wrote."""
    return {key: None if value is None else value.encode() for key, value in data.items()}


def held_runs(found: Record) -> dict[str, tuple[str, ...]]:
    """The runs that jobs of a run wait for, by the address of the job."""
    held = {address: Held.loads(data).runs for address, data in found.held.items()}
    return {address: runs for address, runs in held.items() if runs}


def due_jobs(found: Record) -> dict[str, Due]:
    """The messages of jobs that are due, by the address of the job."""
    jobs = ((job_of(key), due) for key, due in found.due.items())
    return {address: due for address, due in jobs if address}


def execution_info(attempt: int, start: float, seconds: float, host: str) -> bytes:
    """What is kept of the execution that gave a job its result, as JSON.

    *start* is in seconds since the epoch, by the worker's clock.
    """
    times = {"start": round(start, 3), "seconds": round(seconds, 6)}
    return orjson.dumps({"attempt": attempt, **times, "host": host})


def host_of(info: bytes | None) -> str | None:
    """The host of the execution that gave a job its result, from its info."""
    try:
        host = orjson.loads(info or b"{}").get("host")
    except (AttributeError, ValueError):  # written by somebody else
        return None
    return host if isinstance(host, str) else None


def attempt_of(info: bytes) -> int:
    """The number of the attempt that gave a job its result, from its info."""
    return int(orjson.loads(info or b"{}").get("attempt", 1))


def with_nested(info: bytes, runs: tuple[str, ...]) -> bytes:
    """*info* of a job, with the clutches that were nested in it."""
    return orjson.dumps({**orjson.loads(info or b"{}"), "nested": runs}) if runs else info


def nested(info: bytes | None) -> list[str]:
    """The clutches that were nested in a job, from its info."""
    return list(orjson.loads(info).get("nested", ())) if info and b'"nested"' in info else []


@dataclass(frozen=True, slots=True)
class Meta:
    """What does not change while a run runs.

    Attributes:
        jobs, last, scopes, decides: see `pages.Pages`.
        name, tags, parent, context: see `Clutch` and the hook ``clutch_context``.
        expires: see `Header`.
        awaited: the signature of what waits for the end of the run in somebody else's canvas.
    """

    jobs: int
    last: Shape
    name: str | None = None
    tags: tuple[str, ...] = ()
    scopes: Mapping[str, Scope] = field(default_factory=dict)
    parent: Parent | None = None
    expires: float = 0.0
    context: Mapping[str, str] = field(default_factory=dict)
    awaited: Mapping[str, Any] | None = None
    decides: bool = False

    def origin(self, run: str, generation: int) -> Header:
        """The header that those of all jobs derive from."""
        return Header(run, generation, expires=self.expires, context=self.context)

    def ends(self) -> tuple[State, ...]:
        """The ends of the run that somebody is to be told of."""
        everything = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
        if self.parent or self.awaited or self.scope("").on_end:
            return everything
        found = (State.SUCCEEDED,) if self.scope("").on_success else ()
        death = any(scope.on_death for scope in self.scopes.values())
        return (*found, State.FAILED) if death else found

    def dumps(self) -> bytes:
        """As JSON."""
        scopes = {at: scope_to_json(scope) for at, scope in self.scopes.items() if scope or at}
        data: dict[str, Any] = {"jobs": self.jobs, "last": self.last}
        more = {
            "tags": self.tags,
            "scopes": scopes,
            "expires": self.expires,
            "context": dict(self.context),
            "awaited": dict(self.awaited or {}),
            "parent": self.parent and asdict(self.parent),
            "decides": self.decides,
        }
        data.update((name, value) for name, value in more.items() if value)
        if self.name is not None:
            data["name"] = self.name
        return codec.encode_plan(data)

    @classmethod
    def loads(cls, data: bytes) -> Meta:
        """The meta that `dumps` wrote."""
        try:
            values = dict(codec.decode_plan(data))
            values["last"] = checked(values["last"])
            values["tags"] = tuple(values.get("tags", ()))
            scopes = values.get("scopes", {})
            values["scopes"] = {at: Scope(**scope) for at, scope in scopes.items()}
            parent = values.get("parent")
            values["parent"] = Parent(**parent) if parent else None
            return cls(**values)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as exc:
            raise CorruptRecord(f"the description of a run cannot be read: {exc!r}") from None

    def scope(self, address: str) -> Scope:
        """The scope in force at *address*: that of the nearest subtree around it."""
        for around in upwards(address):
            scope = self._of(around)
            if scope is not None:
                return scope
        return self.scopes.get("", Scope())

    def between(self, outer: str, address: str) -> Iterator[Scope]:
        """The scopes of subtrees inside the one at *outer* that have something at *address* in
        them."""
        for around in upwards(address):
            if around in (address, outer) or not is_in(around, outer):
                continue
            scope = self._of(around)
            if scope is not None:
                yield scope

    def _of(self, address: str) -> Scope | None:
        """The scope of the subtree at *address*, which may be in a branch of a map."""
        if address in self.scopes:
            return self.scopes[address]
        depth = address.count(".")
        for at, scope in self.scopes.items():
            if EACH in at and at.count(".") == depth and _is_instance(at, address):
                return scope
        return None


def _is_instance(template: str, address: str) -> bool:
    """Whether *address* is that of *template* in a branch that its map had from the start."""
    numbers = indices(template, address)
    return numbers is not None and all(number.isdecimal() for number in numbers)


Failing = Iterable[tuple[str, bytes, bool]]
"""Failures as `ResultStore.failures` has them."""


class Tally:
    """Failures counted, and the first *limit* of them by address; None keeps all.

    With *step*, they are those of the step, jobs that have recovered since included; else those of
    jobs without a result. With *final*, only those of jobs that are not tried again.
    """

    def __init__(
        self, limit: int | None = SHOWN, *, step: str | None = None, final: bool = False
    ) -> None:
        self.limit, self.step, self.final = limit, step, final
        self.count = 0
        self.exceptions: Counter[str] = Counter()
        self._first: list[Failure] = []

    def add(self, address: str, data: bytes, finished: bool) -> None:
        """Count a failure, if it is one of those."""
        if self.step is None and finished:
            return
        if self.step is not None and not is_in(address, self.step):
            return
        failure = _failure(address, data)
        if self.final and not failure.final:
            return
        self.count += 1
        self.exceptions[failure.exception] += 1
        self._first.append(failure)
        # Tracebacks of a hundred thousand failures are not kept.
        if self.limit is not None and len(self._first) > 2 * self.limit:
            self._first = self.failures()

    def failures(self) -> list[Failure]:
        """The first of them."""
        return sorted(self._first, key=lambda failure: names.order(failure.address))[: self.limit]


def counted(store: ResultStore, record: Record | Summary, meta: Meta) -> tuple[int, int]:
    """How many jobs of a run will not run, and how many are dead that it goes on without; both
    count as done."""
    if not meta.decides and record.state is not State.SUCCEEDED:
        return 0, 0
    skipped, unusual = store.counts(record.run, [SKIPPED, UNUSUAL])
    found = store.read(record.run) if meta.decides and unusual else None
    return skipped, len(found.tolerated) if found else 0


def failure_of(record: Record, address: str) -> Failure:
    """The failure of the job at *address*, which has one."""
    return _failure(address, record.failures[address])


def status(
    record: Record,
    failures: Failing | None = None,
    *,
    step: str | None = None,
    limit: int | None = SHOWN,
    draining: int = 0,
    skipped: int = 0,
    tolerated: int = 0,
) -> Status:
    """*record* as a `Status`, with at most *limit* of *failures*, or of those of the record;
    *skipped* and *tolerated* are what `counted` says.

    With *step*, for an ``on_failure`` callback: the failures are those of the step, jobs that have
    recovered since included.
    """
    meta = Meta.loads(record.meta)
    tally = Tally(limit, step=step)
    for each in _failing(record) if failures is None else failures:
        tally.add(*each)
    return Status(
        id=record.run,
        name=meta.name,
        tags=meta.tags,
        state=record.state,
        generation=record.generation,
        total=record.jobs,
        done=record.done,
        failing=record.failing,
        dead=record.dead,
        created_at=isoformat(record.created_at),
        updated_at=isoformat(record.updated_at),
        ended_at=None if record.ended_at is None else isoformat(record.ended_at),
        parent=meta.parent.to_status() if meta.parent else None,
        step=step,
        failures=tuple(tally.failures()),
        failure_count=tally.count,
        exceptions=dict(tally.exceptions.most_common(SHOWN)),
        draining=draining,
        skipped=skipped,
        tolerated=tolerated,
    )


def failures(record: Record) -> list[Failure]:
    """The failures of jobs without a result, by address."""
    tally = Tally(None)
    for each in _failing(record):
        tally.add(*each)
    return tally.failures()


def tolerated(record: Record, limit: int | None = None) -> list[Failure]:
    """The failures that the run goes on without, by address; at most *limit*."""
    addresses = sorted(record.tolerated, key=names.order)[:limit]
    return [_failure(address, record.failures[address]) for address in addresses]


def death_below(record: Record, address: str) -> Failure | None:
    """A final failure of a job below *address* that has no result."""
    for each in sorted(record.failures, key=names.order):
        if each.startswith(f"{address}.") and each not in record.finished:
            failure = _failure(each, record.failures[each])
            if failure.final:
                return failure
    return None


def _failing(record: Record) -> Failing:
    return ((at, data, at in record.finished) for at, data in record.failures.items())


def _failure(address: str, data: bytes) -> Failure:
    try:
        return Failure.from_dict(orjson.loads(data))
    except (KeyError, TypeError, ValueError) as exc:
        raise CorruptRecord(f"the failure of job {address} cannot be read: {exc!r}") from None
